"""Compiled programs on disk: where, whose, and that a second run finds them."""

import os
import subprocess
import sys

import pytest
from folders import RECIPE
from micro_runs import summary


def train(store, workdir, cache, **environment):
    inherited = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    return subprocess.run(
        [
            *(sys.executable, "-m", "bertjax.train", f"--config={RECIPE}"),
            *(f"--workdir={workdir}", f"--config.data.store={store}", "--config.num_steps=3"),
        ],
        env={**inherited, "BERTJAX_CACHE": str(cache), **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.slow
def test_a_second_run_takes_what_the_first_has_compiled(store, tmp_path):
    cache = tmp_path / "cache"
    cache.mkdir()
    first = train(store, tmp_path / "first", cache)
    assert first.returncode == 0, first.stderr
    kept = {path.name for path in (cache / "compiled").glob("*-cache")}
    assert any(name.startswith("jit_train_step") for name in kept)
    assert (cache / "compiled").stat().st_mode & 0o777 == 0o700
    second = train(store, tmp_path / "second", cache)
    assert second.returncode == 0, second.stderr
    assert {path.name for path in (cache / "compiled").glob("*-cache")} == kept
    assert (
        summary(tmp_path / "second")["params_sha256"]
        == summary(tmp_path / "first")["params_sha256"]
    )


@pytest.mark.slow
def test_the_users_own_cache_is_left_alone(store, tmp_path):
    mine = tmp_path / "mine"
    run = train(store, tmp_path / "run", tmp_path / "cache", JAX_COMPILATION_CACHE_DIR=str(mine))
    assert run.returncode == 0, run.stderr
    assert any(mine.iterdir())
    assert not (tmp_path / "cache" / "compiled").exists()
