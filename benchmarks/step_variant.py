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
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from benchmarks import program_account
from benchmarks.harness import Benchmark
from benchmarks.step_case import Runner, activation_size, step_config
from bertjax.checkpoints.params_hash import params_sha256
from bertjax.config import Config
from bertjax.flops import flops_per_row, peak_flops
from bertjax.training.compilation import program_bytes

WARM_UP, TURNS = 3, 3


def options(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    parser.add_argument("--case", required=True, help="model:length:rows[:packed|:span]")
    parser.add_argument("--set", action="append", default=[], help="NAME=VALUE of the model")
    parser.add_argument("--steps", type=int, default=10, help="of a turn")
    parser.add_argument("--repeat", action="store_true", help="twice: the same to the bit?")
    parser.add_argument("--program", type=Path, help="where to write the program, gzipped")


def measure(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Times the variant and prints what it came to."""
    config = step_config(args.case, args.set)
    result = {"case": args.case, "fields": args.set, **measure_step(config, args)}
    yield result
    print(
        f"{args.case} {' '.join(args.set)}: {result['milliseconds']:,.2f} ms, "
        f"{result['rows_per_second']:,.4g} rows/s, {result['gigabytes']:,} GB, "
        f"{result['kernels']:,} kernels, {result['activation_transposes']} transposes; "
        f"{result['seconds_to_end_of_steps']} s from the start to the end of the steps"
    )


def measure_step(config: Config, args: argparse.Namespace) -> dict[str, Any]:
    """Compiles, runs and counts."""
    started = time.monotonic()
    runner = Runner(config)
    compiled = time.monotonic() - started
    text = runner.program.as_text() or ""
    if args.program:
        args.program.write_bytes(gzip.compress(text.encode()))
    seconds, loss, digest = time_turns(runner, args.steps)
    ready, hashes = time.monotonic() - started, [digest]
    if args.repeat:
        again, _, digest = time_turns(runner, args.steps)
        seconds += again
        hashes.append(digest)
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
        "program_gigabytes": sum(program_bytes(runner.program).values()) / 1e9,
        **program_account.totals(kernels),
        "kinds": program_account.grouped(kernels, program_account.by_kind),
        "params_sha256": hashes,
        "same_to_the_bit": len(set(hashes)) == 1 if args.repeat else None,
        "model": {x: getattr(config.model, x) for x in ("dtype", "attention", "dropout_rate")},
        "seconds_to_compile": round(compiled, 1),
        "seconds_to_end_of_steps": round(ready, 1),
    }


def time_turns(runner: Runner, steps: int) -> tuple[list[float], float, str]:
    """From the first state on: seconds of a step by turn, the last loss, the parameters' hash."""
    runner.reset()
    seconds = []
    loss = runner.run(WARM_UP)
    for _ in range(TURNS):
        started = time.perf_counter()
        loss = runner.run(steps)
        seconds.append((time.perf_counter() - started) / steps)
    if not math.isfinite(loss):
        raise SystemExit(f"the loss is {loss}: the step is wrong, and its time says nothing")
    return seconds, loss, params_sha256(runner.state.params)


BENCHMARK = Benchmark(measure, options=options)

if __name__ == "__main__":
    BENCHMARK.main()
