"""Optimisers with other states than two moments: laid out, saved, resumed and planned for."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from checkpoint_states import assert_same
from folders import PYTHONPATH
from jax.sharding import AbstractMesh, PartitionSpec
from micro_runs import computed, micro, summary

from bertjax.checkpoints.checkpoint import CheckpointError, CheckpointStore, resolve
from bertjax.checkpoints.named_leaves import from_dicts, to_dicts
from bertjax.config import OptimizerConfig
from bertjax.config.checks import validate
from bertjax.models import init_params
from bertjax.plan.arithmetic import estimate
from bertjax.pretraining.run import pretrain
from bertjax.training.optimizer import Optimizer, make_optimizer
from bertjax.training.start import abstract_state, lay_out_state
from bertjax.training.step import TrainState, apply_gradients

ON_DISK = {
    "bert_adamw": ["mu", "nu"],
    "adamw": ["mu", "nu"],
    "lamb": ["mu", "nu"],
    "lion": ["mu"],
    "adafactor": ["ema", "v", "v_col", "v_row"],
}
ONE_CHIP = AbstractMesh((1, 1, 1), ("data", "fsdp", "tensor"))


def wide(store, **changes):
    """With kernels large enough for Adafactor to factor their moments."""
    return micro(store, model__hidden_size=32, model__intermediate_size=64, **changes)


def shapes_of(state):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state)


def assert_same_steps(workdir, whole_run):
    """Not the same evaluations: a run that is stopped ends with one."""
    assert summary(workdir)["params_sha256"] == summary(whole_run)["params_sha256"]
    assert computed(workdir) == computed(whole_run)


def two_counts():
    """Adam's and the schedule's: their names need positions."""
    schedule = optax.linear_schedule(1e-2, 0.0, 100)
    return Optimizer(optax.chain(optax.clip(1.0), optax.adamw(schedule)), schedule)


# Names on disk


@pytest.mark.parametrize("name", ON_DISK)
def test_the_names_on_disk_stay(name):
    """Checkpoints of other versions have the same."""
    config = wide(None, optimizer__name=name)
    validate(config)
    optimizer = make_optimizer(config.optimizer, 10)
    state = abstract_state(config.model, optimizer, ONE_CHIP)
    on_disk = to_dicts(state.opt_state)
    assert sorted(on_disk) == ON_DISK[name]
    for tree in on_disk.values():
        assert jax.tree.structure(tree) == jax.tree.structure(state.params)


@pytest.mark.parametrize(
    ("tree", "dicts"),
    [
        ({}, {}),
        ((), {}),
        (1, {"state": 1}),
        ({"a": {"b": 1}}, {"a": {"b": 1}}),
        (((), ({"a": 1}, ()), {"b": [2]}), {"a": 1, "b": 2}),
        (({"a": 1}, {"a": 2}), {"0": {"a": 1}, "1": {"a": 2}}),
        (({"a": 1}, {"a": {"b": 2}}), {"0": {"a": 1}, "1": {"a": {"b": 2}}}),
        ((1, {"a": 2}), {"0": 1, "1": {"a": 2}}),
        (optax.EmaState(1, {"a": 2}), {"count": 1, "ema": {"a": 2}}),
    ],
)
def test_any_tree_is_named_dicts_and_back(tree, dicts):
    assert to_dicts(tree) == dicts
    assert from_dicts(dicts, tree) == tree


@pytest.fixture(scope="module")
def foreign(tmp_path_factory):
    """A workdir with a checkpoint of an optimiser that is not ours, and its state."""
    optimizer = two_counts()
    params = init_params(micro(None).model, 0)
    state = TrainState(jnp.int32(0), params, optimizer.transformation.init(params))
    update = jax.jit(lambda state: apply_gradients(optimizer, state, state.params)[0])
    state = update(update(state))
    workdir = tmp_path_factory.mktemp("foreign")
    with CheckpointStore(workdir, keep=1) as checkpoints:
        checkpoints.save(2, state.params, state.opt_state, {}, {})
    return workdir, state


def test_any_state_comes_back_as_it_was(foreign):
    workdir, state = foreign
    checkpoint = resolve(workdir)
    abstract = lay_out_state(shapes_of(state.params), two_counts(), ONE_CHIP).opt_state
    assert_same(checkpoint.restore_opt_state(shapes_of(abstract)), state.opt_state)
    names = to_dicts(state.opt_state)
    assert [int(names["1"]["0"]["count"]), int(names["1"]["2"]["count"])] == [2, 2]
    assert_same(checkpoint.restore_opt_state(), names)


def test_the_state_of_another_optimizer_is_refused_by_name(foreign):
    workdir, state = foreign
    for optimizer in (make_optimizer(OptimizerConfig(name="lion"), 10), Optimizer(optax.sgd(1), 1)):
        abstract = shapes_of(lay_out_state(state.params, optimizer, ONE_CHIP).opt_state)
        with pytest.raises(CheckpointError) as caught:
            resolve(workdir).restore_opt_state(abstract)
        assert "opt_state does not fit: " in str(caught.value)
        assert ("missing: mu/embeddings/" in str(caught.value)) == bool(jax.tree.leaves(abstract))
    with pytest.raises(CheckpointError, match=r"unexpected: 1/0/count int32 \(\)"):
        resolve(workdir).restore_opt_state(abstract)


def test_a_checkpoint_without_state_is_refused_by_name(tmp_path):
    params = init_params(micro(None).model, 0)
    with CheckpointStore(tmp_path, keep=1) as checkpoints:
        checkpoints.save(0, params, {}, {}, {})
    optimizer = make_optimizer(OptimizerConfig(), 10)
    abstract = shapes_of(lay_out_state(params, optimizer, ONE_CHIP).opt_state)
    with pytest.raises(CheckpointError, match=r"missing: mu/embeddings/layer_norm/bias float32"):
        resolve(tmp_path).restore_opt_state(abstract)
    stateless = optax.sgd(1.0).init(params)
    assert resolve(tmp_path).restore_opt_state(stateless) == stateless
    assert resolve(tmp_path).restore_opt_state() == {}


# Layout and size


def test_what_has_a_parameters_shape_lies_as_the_parameter():
    mesh = AbstractMesh((1, 2, 2), ("data", "fsdp", "tensor"))
    config = wide(None, optimizer__name="adafactor")
    state = abstract_state(config.model, make_optimizer(config.optimizer, 10), mesh)
    on_disk = to_dicts(state.opt_state)
    place = lambda x: x.sharding.spec  # noqa: E731
    assert jax.tree.map(place, on_disk["ema"]) == jax.tree.map(place, state.params)
    word = on_disk["ema"]["embeddings"]["word"]["embedding"]
    assert place(word) == PartitionSpec("tensor", "fsdp")
    layer = {name: tree["encoder"]["layer_0"]["mlp"] for name, tree in on_disk.items()}
    assert place(layer["v"]["intermediate"]["bias"]) == PartitionSpec("tensor")
    for name, size in (("v_row", 32), ("v_col", 64), ("v", 1)):
        array = layer[name]["intermediate"]["kernel"]
        assert (array.shape, place(array)) == ((size,), PartitionSpec())
    unread = layer["v_row"]["intermediate"]["bias"]
    assert (unread.shape, place(unread)) == ((1,), PartitionSpec())


def test_a_plan_counts_the_state_that_there_is():
    def plan(name):
        config = wide(None, optimizer__name=name)
        config.model.dtype = "float32"
        sizes = {"data": 1, "fsdp": 2, "tensor": 1}
        return estimate(config, config.resolved_phases()[0], sizes, 10**9)

    adamw, lion, adafactor = (
        plan(name).memory["arguments"] for name in ("adamw", "lion", "adafactor")
    )
    assert (adamw - 4) % 3 == 0
    params = (adamw - 4) // 3
    assert lion == 2 * params + 4
    assert lion < adafactor < adamw
    assert plan("lion").hbm_bytes == plan("adamw").hbm_bytes - 2 * params


# Runs


@pytest.mark.slow
def test_a_checkpoint_of_the_two_moments_resumes(store, tmp_path):
    """As it was written before an optimiser had a state of its own: without a count."""
    config = micro(store, optimizer__name="adamw")
    assert pretrain(config, tmp_path / "whole").exit_code == 0
    stopped = tmp_path / "stopped"
    assert pretrain(dataclasses.replace(config, num_steps=8), stopped).exit_code == 0
    checkpoint = resolve(stopped)
    params, state = checkpoint.restore_params(), checkpoint.restore_opt_state()
    assert sorted(state) == ["mu", "nu"]
    shutil.rmtree(stopped / "checkpoints")
    with CheckpointStore(stopped, keep=1) as checkpoints:
        moments = {"mu": state["mu"], "nu": state["nu"]}
        checkpoints.save(8, params, moments, checkpoint.progress, checkpoint.config)
    assert pretrain(config, stopped).exit_code == 0
    assert_same_steps(stopped, tmp_path / "whole")


@pytest.mark.slow
def test_any_chain_trains_and_resumes(store, tmp_path):
    momentum = Optimizer(
        optax.chain(optax.trace(0.9), optax.scale(-0.1)), optax.constant_schedule(0.1)
    )
    assert (
        pretrain(micro(store, num_steps=6), tmp_path / "whole", optimizer=momentum).exit_code == 0
    )
    assert (
        pretrain(micro(store, num_steps=3), tmp_path / "stopped", optimizer=momentum).exit_code == 0
    )
    with pytest.raises(CheckpointError, match="opt_state does not fit: missing: mu/"):
        pretrain(micro(store, num_steps=6), tmp_path / "stopped")
    assert (
        pretrain(micro(store, num_steps=6), tmp_path / "stopped", optimizer=momentum).exit_code == 0
    )
    assert_same_steps(tmp_path / "stopped", tmp_path / "whole")
    lines = computed(tmp_path / "whole")
    assert {line["learning_rate"] for line in lines} == {np.float32(0.1)}
    assert len({line["loss"] for line in lines}) == 6


SHARDED = """
import sys
from pathlib import Path
from test_optimizer_state import wide
from bertjax.pretraining.run import pretrain
store, folder, name = sys.argv[1:]
for steps, workdir, fsdp in ((8, "whole", 2), (4, "stopped", 2), (8, "stopped", 2), (8, "data", 1)):
    config = wide(store, optimizer__name=name, optimizer__learning_rate=1e-3, mesh__fsdp=fsdp)
    config.num_steps = steps
    assert pretrain(config, Path(folder) / workdir).exit_code == 0
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lion", "adafactor"])
def test_another_state_trains_and_resumes_under_fsdp(store, tmp_path, name):
    """On two simulated devices."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=2"
    environment = {
        **os.environ,
        "XLA_FLAGS": flags,
        "PYTHONPATH": f"{PYTHONPATH}{os.pathsep}{Path(__file__).parent}",
    }
    result = subprocess.run(
        [sys.executable, "-c", SHARDED, str(store), str(tmp_path), name],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert result.returncode == 0, result.stderr
    assert_same_steps(tmp_path / "stopped", tmp_path / "whole")
    assert summary(tmp_path / "whole")["hardware"].startswith("2 x")
    for line, other in zip(computed(tmp_path / "whole"), computed(tmp_path / "data"), strict=True):
        assert line["loss"] == pytest.approx(other["loss"], rel=1e-5)
    saved = to_dicts(resolve(tmp_path / "whole").restore_opt_state())
    assert sorted(saved) == ON_DISK[name]
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(saved))
    newest = resolve(tmp_path / "whole").path / "progress.json"
    assert json.loads(newest.read_text())["step"] == 8
