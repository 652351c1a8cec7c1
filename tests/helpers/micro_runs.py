"""Runs of recipes/micro.py and what they leave; fixtures `store`, `whole_run` and `whole_runs`."""

import functools
import json

import pytest
from folders import RECIPE

from bertjax.cli import recipes
from bertjax.testing import make_store

STEPS = 18
DIRECTIONS = {  # changes of `micro`
    "bidirectional": {},
    "left_to_right": {
        "model__head": "causal",
        "model__direction": "left_to_right",
        "model__next_sentence": False,
        "model__pooler": False,
    },
}
RATES = ("sequences_per_second", "real_tokens_per_second")  # differ from run to run


@pytest.fixture(scope="session")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("train") / "store"
    return make_store(folder).path


def micro(store, **changes):
    config = recipes.load_recipe(RECIPE)
    config.data.store = str(store)
    for name, value in changes.items():
        section, _, field = name.rpartition("__")
        setattr(getattr(config, section) if section else config, field, value)
    return config


def read(workdir, name="metrics.jsonl"):
    return [json.loads(line) for line in (workdir / name).read_text().splitlines()]


def summary(workdir):
    return json.loads((workdir / "summary.json").read_text())


def computed(workdir):
    """What the steps compute."""
    return [{k: line[k] for k in line if k not in RATES} for line in read(workdir)]


@pytest.fixture(scope="session")
def whole_runs(store, tmp_path_factory):
    """Direction -> the workdir of a run that nothing interrupts."""
    from bertjax.pretraining.run import pretrain  # imports jax, which few tests need

    @functools.cache
    def run(direction):
        workdir = tmp_path_factory.mktemp("train") / "whole"
        assert pretrain(micro(store, **DIRECTIONS[direction]), workdir).exit_code == 0
        return workdir

    return run


@pytest.fixture(scope="session")
def whole_run(whole_runs):
    """The run that nothing interrupts."""
    return whole_runs("bidirectional")


def assert_same_run(workdir, whole_run):
    assert summary(workdir)["params_sha256"] == summary(whole_run)["params_sha256"]
    assert computed(workdir) == computed(whole_run)
    assert read(workdir, "evals.jsonl") == read(whole_run, "evals.jsonl")
