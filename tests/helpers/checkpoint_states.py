"""States that differ in every value from step to step, and runs in other processes."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from folders import PYTHONPATH

from bertjax.checkpoints.checkpoint import CheckpointStore


def make_params(step: int, rows: int = 8) -> dict:
    """Every value depends on the step, so that a mixture of two saves shows."""
    generator = np.random.default_rng(step)
    return {
        "encoder": {
            "layer_0": {
                "kernel": generator.standard_normal((rows, 16), np.float32),
                "bias": generator.standard_normal(16, np.float32).astype(jnp.bfloat16),
            }
        },
        "ids": generator.integers(0, 2**31 - 1, (3, 2), np.int32),
    }


def make_opt_state(step: int, rows: int = 8) -> dict:
    return {
        "mu": make_params(step + 1000, rows),
        "nu": make_params(step + 2000, rows),
        "count": np.asarray(step, np.int32),
    }


def save(store: CheckpointStore, step: int, rows: int = 8) -> None:
    params, opt_state = jax.device_put((make_params(step, rows), make_opt_state(step, rows)))
    store.save(step, params, opt_state, {"step": step, "position": 256 * step}, {"seed": 1})


def assert_same(found, expected) -> None:
    """Bitwise, dtypes and shapes included."""
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        a, b = np.asarray(a), np.asarray(b)
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        assert a.tobytes() == b.tobytes()


def assert_is_step(checkpoint, step: int, rows: int = 8) -> None:
    assert checkpoint.step == step
    assert checkpoint.progress == {"step": step, "position": 256 * step}
    assert checkpoint.config == {"seed": 1}
    assert_same(checkpoint.restore_params(), make_params(step, rows))
    assert_same(checkpoint.restore_opt_state(), make_opt_state(step, rows))


def write_two_checkpoints(workdir: Path) -> Path:
    """A workdir with the checkpoints of steps 1 and 2; tests work on copies of it."""
    with CheckpointStore(workdir, keep=0) as store:
        save(store, 1)
        save(store, 2)
    return workdir


def names_in(workdir: Path) -> list[str]:
    return sorted(path.name for path in (workdir / "checkpoints").iterdir())


def run_python(code: str, *arguments: object, devices: int = 1) -> subprocess.Popen:
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": PYTHONPATH,
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
    }
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen) -> str:
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    return output
