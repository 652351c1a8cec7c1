"""Checkpoints: what is saved is what is restored, on any number of devices and processes."""

import functools
import json
import logging
import shutil
import socket
from pathlib import Path

import absl.logging
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checkpoint_states import (
    assert_is_step,
    assert_same,
    finish,
    make_params,
    names_in,
    run_python,
    save,
    write_two_checkpoints,
)

from bertjax.checkpoints import checkpoint_directory
from bertjax.checkpoints.checkpoint import CheckpointError, CheckpointStore, resolve
from bertjax.checkpoints.params_hash import params_sha256


@pytest.fixture(scope="module")
def two_checkpoints(tmp_path_factory) -> Path:
    return write_two_checkpoints(tmp_path_factory.mktemp("two_checkpoints"))


@pytest.fixture
def workdir(two_checkpoints, tmp_path) -> Path:
    return Path(shutil.copytree(two_checkpoints, tmp_path / "run"))


# --- saving and restoring -----------------------------------------------------------------------


def test_round_trip_is_bitwise_and_keeps_the_newest(tmp_path):
    with CheckpointStore(tmp_path, keep=2) as store:
        assert store.latest() is None
        for step in (10, 20, 30, 40):
            save(store, step)  # waits for the one before it
        assert store.wait() == 40
        assert store.last_saved == 40
    assert names_in(tmp_path) == ["step_00000030", "step_00000040"]
    with CheckpointStore(tmp_path, keep=2) as store:
        assert store.last_saved is None
        assert_is_step(store.latest(), 40)
        assert store.last_saved == 40
    assert_is_step(resolve(tmp_path / "checkpoints" / "step_00000030"), 30)


def test_restores_as_jax_arrays_where_the_target_has_a_sharding(workdir):
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    abstract = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        make_params(2),
    )
    params = resolve(workdir).restore_params(abstract)
    assert_same(params, make_params(2))
    assert all(leaf.sharding == sharding for leaf in jax.tree.leaves(params))
    leaves = jax.tree.leaves(resolve(workdir).restore_params())
    assert all(isinstance(leaf, np.ndarray) for leaf in leaves)


def test_donated_buffers_do_not_reach_a_save_in_flight(tmp_path):
    @functools.partial(jax.jit, donate_argnums=0)
    def train_step(params):
        return jax.tree.map(lambda leaf: leaf * 1.5 + 1, params)

    params = {
        f"layer_{i}": jax.random.normal(jax.random.key(i), (1024, 1024), jnp.float32)
        for i in range(12)
    }
    params = train_step(params)
    expected = jax.tree.map(lambda leaf: np.array(leaf, copy=True), params)
    with CheckpointStore(tmp_path, keep=1) as store:
        store.save(1, params, {"mu": params}, {}, {})
        steps_in_flight = 0
        while store.last_saved is None:
            params = jax.block_until_ready(train_step(params))
            steps_in_flight += 1
        assert steps_in_flight > 2
        checkpoint = store.latest()
    assert_same(checkpoint.restore_params(), expected)
    assert_same(checkpoint.restore_opt_state(), {"mu": expected})


def test_a_target_that_does_not_fit_is_refused_with_the_paths(workdir):
    target = make_params(2)
    target["encoder"]["layer_1"] = {"kernel": np.zeros((2, 2), np.float32)}
    target["encoder"]["layer_0"]["kernel"] = np.zeros((9, 16), np.float32)
    target["encoder"]["layer_0"]["bias"] = np.zeros(16, np.float32)
    del target["ids"]
    with pytest.raises(CheckpointError) as caught:
        resolve(workdir).restore_params(target)
    message = str(caught.value)
    assert "missing: encoder/layer_1/kernel float32 (2, 2)" in message
    assert "unexpected: ids int32 (3, 2)" in message
    assert "encoder/layer_0/kernel is float32 (8, 16), expected float32 (9, 16)" in message
    assert "encoder/layer_0/bias is bfloat16 (16,), expected float32 (16,)" in message


def test_steps_only_grow(workdir):
    with CheckpointStore(workdir, keep=1) as store:
        for step in (1, 2):
            with pytest.raises(CheckpointError, match=f"step {step} cannot be saved, step 2 is"):
                save(store, step)
        save(store, 3)
    assert names_in(workdir) == ["step_00000003"]


def test_orbax_is_quiet_even_when_absl_logs_everything(tmp_path, caplog):
    verbosity = absl.logging.get_verbosity()
    absl.logging.set_verbosity(absl.logging.INFO)
    try:
        with caplog.at_level(logging.INFO), CheckpointStore(tmp_path, keep=1) as store:
            absl.logging.info("somebody else's line")
            save(store, 1)
            store.wait()
            resolve(tmp_path)
    finally:
        absl.logging.set_verbosity(verbosity)
    assert [record.getMessage() for record in caplog.records] == ["somebody else's line"]


# --- other numbers of devices and processes -----------------------------------------------------


EIGHT_DEVICES = """
import sys, jax
from jax.sharding import NamedSharding, PartitionSpec
from checkpoint_states import *
from bertjax.checkpoints.checkpoint import CheckpointError, CheckpointStore
mesh = jax.make_mesh((8,), ("fsdp",), axis_types=(jax.sharding.AxisType.Auto,))
rows = NamedSharding(mesh, PartitionSpec("fsdp"))
whole = NamedSharding(mesh, PartitionSpec())
place = lambda leaf: rows if leaf.shape and leaf.shape[0] % 8 == 0 else whole
target = lambda tree: jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place(leaf)), tree)
with CheckpointStore(sys.argv[1], keep=0) as store:
    checkpoint = store.latest()
    params = checkpoint.restore_params(target(make_params(2)))
    opt_state = checkpoint.restore_opt_state(target(make_opt_state(2)))
    assert_same(params, make_params(2))
    assert_same(opt_state, make_opt_state(2))
    assert len(params["encoder"]["layer_0"]["kernel"].sharding.device_set) == 8
    assert params["encoder"]["layer_0"]["kernel"].addressable_shards[0].data.shape == (1, 16)
    params, opt_state = make_params(3), make_opt_state(3)
    store.save(3, jax.device_put(params, jax.tree.map(place, params)),
               jax.device_put(opt_state, jax.tree.map(place, opt_state)),
               {"step": 3, "position": 768}, {"seed": 1})
"""


def test_one_device_to_eight_and_back(workdir):
    finish(run_python(EIGHT_DEVICES, workdir, devices=8))
    assert_is_step(resolve(workdir), 3)  # numpy, from the saved metadata


TWO_PROCESSES = """
import sys, jax
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(sys.argv[2], num_processes=2, process_id=int(sys.argv[3]))
from jax.sharding import NamedSharding, PartitionSpec
from checkpoint_states import *
from bertjax.checkpoints.checkpoint import CheckpointError, CheckpointStore
from bertjax.checkpoints.params_hash import params_sha256
mesh = jax.make_mesh((2,), ("fsdp",), axis_types=(jax.sharding.AxisType.Auto,))
rows = NamedSharding(mesh, PartitionSpec("fsdp"))
whole = NamedSharding(mesh, PartitionSpec())
place = lambda leaf: rows if leaf.shape and leaf.shape[0] % 2 == 0 else whole
spread = lambda tree: jax.tree.map(
    lambda leaf: jax.make_array_from_callback(leaf.shape, place(leaf), lambda i: leaf[i]), tree)
with CheckpointStore(sys.argv[1], keep=2) as store:
    assert store.latest() is None
    for step in (1, 2, 3):
        store.save(step, spread(make_params(step)), spread(make_opt_state(step)),
                   {"step": step, "position": 256 * step}, {"seed": 1})
    assert store.wait() == 3
    if jax.process_index() == 0:
        with open(store.directory / "step_00000003" / "params" / "_METADATA", "a") as file:
            file.write(" ")
    checkpoint = store.latest()
    assert checkpoint.step == store.last_saved == 2
    params = checkpoint.restore_params(jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place(leaf)),
        make_params(2)))
    print(params_sha256(params))
    if jax.process_index() == 0:
        (store.directory / "step_00000002" / "progress.json").unlink()
    try:
        store.latest()
    except CheckpointError:
        print("refused")
"""


@pytest.mark.processes
@pytest.mark.slow
def test_two_processes_share_a_workdir(tmp_path):
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        address = f"localhost:{listener.getsockname()[1]}"
    processes = [run_python(TWO_PROCESSES, tmp_path, address, i) for i in range(2)]
    for process in processes:
        assert finish(process).split()[-2:] == [params_sha256(make_params(2)), "refused"]
    assert names_in(tmp_path) == ["unsound_step_00000002", "unsound_step_00000003"]


FAILS_IN_PROCESS_0 = """
import sys, time, jax
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(sys.argv[2], num_processes=2, process_id=int(sys.argv[3]))
from checkpoint_states import *
from bertjax.checkpoints.checkpoint import CheckpointError, CheckpointStore
def fail():
    raise OSError("no uploads today")
mesh = jax.make_mesh((2,), ("fsdp",), axis_types=(jax.sharding.AxisType.Auto,))
whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
spread = lambda tree: jax.tree.map(
    lambda leaf: jax.make_array_from_callback(leaf.shape, whole, lambda i: leaf[i]), tree)
with CheckpointStore(sys.argv[1], keep=2, before_seal=fail) as store:
    store.save(1, spread(make_params(1)), spread(make_opt_state(1)), {"step": 1}, {"seed": 1})
    began = time.monotonic()
    try:
        store.wait()
    except CheckpointError as error:
        print(time.monotonic() - began < 60, store.last_saved, error)
"""


@pytest.mark.processes
@pytest.mark.slow
def test_what_fails_in_one_process_is_told_to_both(tmp_path):
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        address = f"localhost:{listener.getsockname()[1]}"
    processes = [run_python(FAILS_IN_PROCESS_0, tmp_path, address, i) for i in range(2)]
    first, second = (finish(process).splitlines()[-1] for process in processes)
    message = "True None the checkpoint of step 1 was not saved: "
    assert first.startswith(f"{message}no uploads today")
    assert second.startswith(f"{message}process 0 could not finish it")
    assert not list((tmp_path / "checkpoints").glob("step_*"))


def test_the_seal_is_json_that_lists_every_other_file(workdir):
    newest = workdir / "checkpoints" / "step_00000002"
    seal = json.loads((newest / "SEAL.json").read_text())
    files = {path.relative_to(newest).as_posix() for path in newest.rglob("*") if path.is_file()}
    assert set(seal["files"]) == files - {"SEAL.json"}
    assert (seal["format_version"], seal["step"]) == (1, 2)
    assert checkpoint_directory.find_faults(newest) == []
