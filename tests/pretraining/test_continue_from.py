"""Runs of several lengths share a trunk: `warmup_stable_decay` and `continue_from`."""

import dataclasses
import re
import shutil

import numpy as np
import pytest
from micro_runs import assert_same_run, computed, micro, read, summary

from bertjax.checkpoints.checkpoint import CheckpointStore, resolve
from bertjax.config import ConfigError, Phase
from bertjax.pretraining.run import pretrain
from bertjax.weights.bertjax_checkpoint import read_checkpoint, write_checkpoint

pytestmark = pytest.mark.slow


def config(store, *phases, continue_from="", **changes):
    """Decays in the last quarter; two lengths of rows, so that the second phase is shared too."""
    changes = {
        "optimizer__schedule": "warmup_stable_decay",
        "optimizer__decay_share": 0.25,
        "checkpoint__every_steps": 3,
        "checkpoint__keep": 1,
        "eval__every_steps": 5,
        "log__every_steps": 4,
    } | changes
    return micro(store, phases=phases, continue_from=str(continue_from), **changes)


def lengths(second, **changes):
    return Phase(4), Phase(second, max_length=64, global_batch_size=4, **changes)


def run(config, workdir):
    assert pretrain(config, workdir).exit_code == 0
    return workdir


def steps(workdir):
    return sorted(int(p.name[5:]) for p in (workdir / "checkpoints").iterdir())


def digests(workdir):
    return {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def short(store, tmp_path_factory):
    """12 steps, the last 3 of which decay."""
    return run(config(store, *lengths(8)), tmp_path_factory.mktemp("continue") / "short")


@pytest.fixture(scope="module")
def long(store, tmp_path_factory):
    """20 steps from the start, the last 5 of which decay."""
    return run(config(store, *lengths(16)), tmp_path_factory.mktemp("continue") / "long")


def test_the_checkpoint_before_the_decay_is_kept(store, short, tmp_path):
    assert steps(short) == [9, 12]  # with keep=1
    run(config(store, *lengths(8), num_steps=10, checkpoint__every_steps=5), tmp_path)
    assert steps(tmp_path) == [9, 10]  # though no save was due
    run(config(store, *lengths(8), num_steps=11, checkpoint__every_steps=1), tmp_path)
    assert steps(tmp_path) == [9, 11]
    run(config(store, *lengths(8), checkpoint__every_steps=1), tmp_path)
    assert steps(tmp_path) == [9, 12]
    assert summary(tmp_path)["params_sha256"] == summary(short)["params_sha256"]
    rates = [line["learning_rate"] for line in read(short)]
    assert rates == pytest.approx([0.0075, 0.01, 0.01 * (1 - (2 / 3) ** 0.5)])  # of steps 4, 8, 12


def test_a_run_that_continues_a_shorter_one_is_the_longer_run(store, short, long, tmp_path):
    before = digests(short)
    trunk = short / "checkpoints" / "step_00000009"
    run(config(store, *lengths(16), continue_from=trunk), tmp_path)
    assert_same_run(tmp_path, long)
    assert steps(tmp_path) == steps(long) == [15, 20]
    assert digests(short) == before


def test_once_begun_it_needs_the_other_run_no_more(store, short, long, tmp_path):
    trunk = shutil.copytree(short, tmp_path / "trunk")
    start = trunk / "checkpoints" / "step_00000009"
    longer = config(store, *lengths(16), continue_from=start, num_steps=10, checkpoint__keep=0)
    branch = run(longer, tmp_path / "branch")
    assert steps(branch) == [9, 10]
    shutil.rmtree(branch / "checkpoints" / "step_00000010")  # as if it was killed before
    shutil.rmtree(trunk)
    run(dataclasses.replace(longer, num_steps=0), branch)
    assert_same_run(branch, long)


def test_many_lengths_begin_from_a_trunk_that_was_stopped(store, short, long, tmp_path):
    """Its own decay is far away, and its checkpoints are the places where the others begin."""
    trunk = run(config(store, *lengths(996), num_steps=16, checkpoint__keep=0), tmp_path / "trunk")
    assert steps(trunk) == [3, 4, 6, 9, 12, 15, 16]
    for whole, second, step in ((short, 8, 9), (long, 16, 15)):
        branch = tmp_path / str(step)
        start = trunk / "checkpoints" / f"step_{step:08d}"
        run(config(store, *lengths(second), continue_from=start), branch)
        assert_same_run(branch, whole)
        assert steps(branch) == steps(whole)
    # From a checkpoint of the first phase, the second one may mask another share of the tokens.
    start = trunk / "checkpoints" / "step_00000004"
    other = config(store, *lengths(8, mask_rate=0.4))
    branch = dataclasses.replace(other, continue_from=str(start))
    branch, other = run(branch, tmp_path / "branch"), run(other, tmp_path / "other")
    assert_same_run(branch, other)
    assert summary(branch)["params_sha256"] != summary(short)["params_sha256"]


def test_a_checkpoint_that_is_too_late_is_refused_and_the_advice_works(
    store, short, long, tmp_path
):
    longer = config(store, *lengths(16), continue_from=short)  # its newest
    with pytest.raises(ConfigError) as error:
        pretrain(longer, tmp_path)
    assert (
        f"config.continue_from={short}/checkpoints/step_00000012: only the first 10 steps are "
        "those of this run (the learning rate of step 11: 0.0042265 there, 0.01 here): set "
    ) in str(error.value)
    assert not steps(tmp_path)
    longer.continue_from = re.search(r"set --config.continue_from=(\S+)", str(error.value))[1]
    assert_same_run(run(longer, tmp_path), long)


def test_another_length_in_the_same_workdir_is_refused_and_the_advice_works(
    store, short, long, tmp_path
):
    longer = config(store, *lengths(16))
    with pytest.raises(ConfigError, match=r"phases\[1\].num_steps: 8 there, 16 .*continue_from"):
        pretrain(longer, short)
    with pytest.raises(ConfigError, match=r"phases\[1\].mask_rate: 0.0 there, 0.4 here"):
        pretrain(config(store, *lengths(8, mask_rate=0.4)), short)
    start = short / "checkpoints" / "step_00000009"
    assert_same_run(run(dataclasses.replace(longer, continue_from=str(start)), tmp_path), long)


def test_what_is_not_the_same_run_is_refused(store, short, tmp_path):
    def refused(message, *phases, continue_from=short / "checkpoints" / "step_00000009", **changes):
        with pytest.raises(ConfigError, match=message):
            pretrain(config(store, *phases, continue_from=continue_from, **changes), tmp_path)
        assert not steps(tmp_path)

    refused(r"config.seed: 0 there, 1 here.*or init_from", *lengths(16), seed=1)
    refused(r"data.mask_rate: 0.15 there, 0.4 here", *lengths(16), data__mask_rate=0.4)
    refused(
        r"first 4 steps .*\(config.phases\[1\].max_predictions: 12 there, 28 here; "
        r"config.phases\[1\].mask_rate: 0.15 there, 0.4 here\): name a checkpoint of step 4 or "
        r"before; none is in .*short/checkpoints$",
        *lengths(16, mask_rate=0.4),
    )
    refused(
        r"first 1 steps .*the learning rate of step 2: 0.0025 there, 0.005",
        *lengths(16),
        optimizer__learning_rate=0.02,
    )
    refused(r"would be left to train, because this run ends at step 9: raise", *lengths(5))
    refused(r"/nothing: no such directory", *lengths(16), continue_from=tmp_path / "nothing")
    with CheckpointStore(tmp_path / "tuned", keep=0) as checkpoints:
        checkpoints.save(3, {"a": np.ones(3)}, {"mu": np.ones(3)}, {}, {"task": {}})
    refused(
        r"step_00000003 belongs to a fine-tuning run: start from its parameters with .*init_from",
        *lengths(16),
        continue_from=tmp_path / "tuned",
    )
    converted = tmp_path / "converted"
    converted.mkdir()
    write_checkpoint(read_checkpoint(short), converted)
    refused(r"was converted from .* no optimizer .*init_from", *lengths(9), continue_from=converted)
    run(config(store, *lengths(16), num_steps=1, init_from=str(converted)), tmp_path / "next")


def test_the_decay_can_be_another_or_none(store, short, tmp_path):
    start = short / "checkpoints" / "step_00000009"
    for name, schedule in (
        ("linear", {"optimizer__decay_shape": "linear", "optimizer__end_learning_rate": 1e-3}),
        ("constant", {"optimizer__schedule": "constant"}),
    ):
        branch = config(store, *lengths(8), continue_from=start, **schedule)
        branch = run(branch, tmp_path / name)
        assert computed(branch)[:2] == computed(short)[:2]
        assert resolve(branch).step == 12
        rates = [line["learning_rate"] for line in read(branch)]
        # The first update of the decay is made at the peak, so the last one is two thirds down.
        assert rates[2] == pytest.approx(0.004 if name == "linear" else 0.01)
