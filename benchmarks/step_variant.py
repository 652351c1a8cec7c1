"""Times one variant of the training step on this machine's device, alone in its process.

    python -m benchmarks.step_variant --case=base:128:512 --set=attention=pallas --output=FILE

A case and the fields of the model as in benchmarks/step_case.py; flags of the compiler in
XLA_FLAGS. Three steps warm up, thirty are timed in three turns of ten that are queued and waited
for once; the fastest turn counts. Beside the time stand what the program moves
(benchmarks/program_account.py), what the compiler counts of memory and what the device's allocator
saw. With --repeat all steps run twice from the same state, and the result says whether the
parameters are the same to the bit. benchmarks.gpu_variants runs a list of these.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from benchmarks import program_account
from benchmarks.hardware import record
from benchmarks.step_case import (
    activation_size,
    compile_step,
    make_rows,
    objective_and_batch,
    step_config,
)
from bertjax.config import Config
from bertjax.planning.program import make_state
from bertjax.training.compilation import program_bytes
from bertjax.training.metrics import flops_per_row, peak_flops
from bertjax.training.params_hash import params_sha256
from bertjax.training.sharding import make_mesh, replicated
from bertjax.training.step import TrainState

WARM_UP, TURNS = 3, 3


def main() -> None:
    """Times the variant, writes the result and prints it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", required=True, help="model:length:rows[:packed|:span]")
    parser.add_argument("--set", action="append", default=[], help="NAME=VALUE of the model")
    parser.add_argument("--steps", type=int, default=10, help="of a turn")
    parser.add_argument("--repeat", action="store_true", help="twice: the same to the bit?")
    parser.add_argument("--program", type=Path, help="where to write the program, gzipped")
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    config = step_config(args.case, args.set)
    result = {"case": args.case, "fields": args.set, **measure(config, args)}
    args.output.write_text(json.dumps(result, indent=1) + "\n")
    print(
        f"{args.case} {' '.join(args.set)}: {result['milliseconds']:,.2f} ms, "
        f"{result['rows_per_second']:,.4g} rows/s, {result['gigabytes']:,} GB, "
        f"{result['kernels']:,} kernels, {result['activation_transposes']} transposes; "
        f"{result['seconds_to_end_of_steps']} s from the start to the end of the steps"
    )


def measure(config: Config, args: argparse.Namespace) -> dict[str, Any]:
    """Compiles, runs and counts."""
    started = time.monotonic()
    mesh = make_mesh(config.mesh, jax.devices()[:1])
    whole = replicated(mesh)
    step = compile_step(config, mesh)
    compiled = time.monotonic() - started
    text = step.as_text() or ""
    if args.program:
        args.program.write_bytes(gzip.compress(text.encode()))
    first = make_first_state(config, mesh)
    rows = make_rows(config)
    _, shapes = objective_and_batch(config, mesh)
    batch = {name: jax.device_put(rows[name], x.sharding) for name, x in shapes.items()}
    key = jax.device_put(jax.random.key(0), whole)

    def run() -> tuple[TrainState, list[float], float]:
        """From the first state: the last one, seconds of a step by turn, the last loss."""
        # Copied, also on a CPU: the step overwrites what it is given.
        state = jax.device_put(first, whole, may_alias=False)
        return _run(step, state, batch, key, args.steps)

    state, seconds, loss = run()
    ready = time.monotonic() - started
    hashes = [params_sha256(state.params)]
    if args.repeat:
        del state
        state, again, _ = run()
        seconds += again
        hashes.append(params_sha256(state.params))
    (phase,) = config.resolved_phases()
    flops = phase.global_batch_size * flops_per_row(
        config.model, phase.max_length, phase.max_predictions, phase.packing_depth
    )
    device = jax.devices()[0]
    peak = peak_flops(device.device_kind)
    memory = device.memory_stats() or {}
    kernels = program_account.account(text, *activation_size(config))
    return {
        "flags": os.environ.get("XLA_FLAGS", ""),
        "rows_per_second": phase.global_batch_size / min(seconds),
        "milliseconds": 1e3 * min(seconds),
        "milliseconds_of_turns": [1e3 * x for x in seconds],
        "mfu_of_peak": peak and flops / min(seconds) / peak,
        "loss": loss,
        "peak_gigabytes": memory.get("peak_bytes_in_use", 0) / 1e9 or None,
        "program_gigabytes": sum(program_bytes(step).values()) / 1e9,
        **program_account.totals(kernels),
        "kinds": program_account.grouped(kernels, program_account.by_kind),
        "params_sha256": hashes,
        "same_to_the_bit": len(set(hashes)) == 1 if args.repeat else None,
        "model": {x: getattr(config.model, x) for x in ("dtype", "attention", "dropout_rate")},
        "seconds_to_compile": round(compiled, 1),
        "seconds_to_end_of_steps": round(ready, 1),
        **record(),
    }


def make_first_state(config: Config, mesh: Mesh) -> TrainState:
    """Parameters from seed 0, and moments of 0, in NumPy: a step takes the device's for itself.

    Drawn by JAX they would take a program for each shape, most of a short lease's start.
    """
    rng = np.random.default_rng(0)

    def draw(path: Any, x: jax.ShapeDtypeStruct) -> np.ndarray:
        match path[-1].key:
            case "scale":
                return np.ones(x.shape, x.dtype)
            case "bias":
                return np.zeros(x.shape, x.dtype)
        return config.model.initializer_range * rng.standard_normal(x.shape, np.float32)

    state = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), make_state(config, mesh))
    return state._replace(params=jax.tree.map_with_path(draw, state.params))


def _run(
    step: Callable[..., Any], state: TrainState, batch: Any, key: jax.Array, steps: int
) -> tuple[TrainState, list[float], float]:
    seconds = []
    for turn in range(1 + TURNS):
        number = steps if turn else WARM_UP
        started = time.perf_counter()
        for _ in range(number):
            state, metrics = step(state, batch, key)
        loss = float(metrics["loss"])  # waits
        if turn:
            seconds.append((time.perf_counter() - started) / number)
    if not math.isfinite(loss):
        raise SystemExit(f"the loss is {loss}: the step is wrong, and its time says nothing")
    return state, seconds, loss


if __name__ == "__main__":
    main()
