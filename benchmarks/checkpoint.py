"""Measures a checkpoint of BERT BASE with moments: how long training waits, what a start costs.

    python -m benchmarks.checkpoint --folder=/tmp/checkpoint_benchmark --repeats=3

Fills the state with noise, saves it while donating steps go on, verifies it from the disk and from
the page cache, and restores it. Writes benchmarks/results/checkpoint.json.
"""

from __future__ import annotations

import argparse
import functools
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from benchmarks.harness import Benchmark
from bertjax.checkpoints import checkpoint_directory
from bertjax.checkpoints.checkpoint import CheckpointStore, resolve
from bertjax.config import ModelConfig
from bertjax.models import abstract_params


def options(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    parser.add_argument(
        "--folder", type=Path, required=True, help="on the disk to measure; emptied"
    )
    parser.add_argument("--repeats", type=int, default=3)


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Measures several times."""
    abstract = abstract_params(ModelConfig())
    return {
        "state": "BERT BASE, float32, parameters and two moments",
        "runs": [measure_once(args.folder, abstract) for _ in range(args.repeats)],
    }


def measure_once(folder: Path, abstract: Any) -> dict[str, float]:
    """One save, verification and restoration, in seconds and bytes."""
    shutil.rmtree(folder, ignore_errors=True)
    state = jax.block_until_ready(noise(abstract))
    state = jax.block_until_ready(step(state))  # compiled
    figures: dict[str, float] = {"state_bytes": sum(x.nbytes for x in jax.tree.leaves(state))}
    step_alone, state = seconds(lambda: step(state))
    with CheckpointStore(folder, keep=1) as store:
        start = time.perf_counter()
        store.save(1, state["params"], {"mu": state["mu"], "nu": state["nu"]}, {}, {})
        figures["save_blocks_seconds"] = time.perf_counter() - start
        first_step, state = seconds(lambda: step(state))
        # On a CPU the arrays are not copied before they are donated, but as they are.
        figures["first_step_takes_longer_seconds"] = first_step - step_alone
        store.wait()
        figures["save_done_seconds"] = time.perf_counter() - start
    path = Path(resolve(folder).path)
    files = [file for file in path.rglob("*") if file.is_file()]
    figures["checkpoint_bytes"] = sum(file.stat().st_size for file in files)
    figures["verify_cached_seconds"], _ = seconds(lambda: checkpoint_directory.find_faults(path))
    for file in files:
        with open(file, "rb") as opened:
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    figures["verify_from_disk_seconds"], _ = seconds(lambda: checkpoint_directory.find_faults(path))
    checkpoint = resolve(path)
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    target = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device), abstract
    )
    figures["restore_params_seconds"], _ = seconds(lambda: checkpoint.restore_params(target))
    figures["restore_opt_state_seconds"], _ = seconds(
        lambda: checkpoint.restore_opt_state({"mu": target, "nu": target})
    )
    shutil.rmtree(folder)
    return {name: round(value, 3) for name, value in figures.items()}


def noise(abstract: Any) -> Any:
    """Parameters and moments, float32."""
    leaves, structure = jax.tree.flatten({name: abstract for name in ("params", "mu", "nu")})
    keys = jax.random.split(jax.random.key(0), len(leaves))
    arrays = [
        jax.random.normal(key, leaf.shape, leaf.dtype)
        for key, leaf in zip(keys, leaves, strict=True)
    ]
    return jax.tree.unflatten(structure, arrays)


@functools.partial(jax.jit, donate_argnums=0)
def step(state: Any) -> Any:
    """Touches every element, as an update does, and gives its input away."""
    return jax.tree.map(lambda leaf: leaf * 1.0001, state)


def seconds(function: Callable[[], Any]) -> tuple[float, Any]:
    """How long a call takes until its arrays are there, and what it returns."""
    start = time.perf_counter()
    result = jax.block_until_ready(function())
    return time.perf_counter() - start, result


BENCHMARK = Benchmark(measure, "checkpoint.json", options)

if __name__ == "__main__":
    BENCHMARK.main()
