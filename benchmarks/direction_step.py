"""Times the left-to-right step beside the masked one, in turns on the same rows, with its memory.

    python -m benchmarks.direction_step --case=small:128:16

Both models are the recipe without next sentences, both have dropout 0.1 and the same optimizer. A
turn is one step; the fastest and the median count. Memory is what the compiler counts for the
program. Writes benchmarks/results/direction_step.json and prints a table.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterator
from typing import Any

from benchmarks.harness import RESULTS, Benchmark, UsageError, rows
from benchmarks.step_case import Runner, step_config
from bertjax.config import ConfigError
from bertjax.objectives.objective import make_objective
from bertjax.training.compilation import program_bytes

RESULT = RESULTS / "direction_step.json"
FIELDS = {
    "masked": ("next_sentence=false",),
    "left_to_right": ("next_sentence=false", "head=causal", "direction=left_to_right"),
}


def options(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    parser.add_argument("--case", action="append", default=[], help="recipe:length:rows[:packed]")
    parser.add_argument("--turns", type=int, default=10, help="steps of each")


def measure(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Runs the cases and prints a line for each direction."""
    if not args.case:
        raise UsageError("name a --case")
    for case in args.case:
        try:
            configs = {name: step_config(case, fields) for name, fields in FIELDS.items()}
        except ConfigError as error:
            raise UsageError(str(error)) from error
        runners = {name: Runner(config) for name, config in configs.items()}
        seconds: dict[str, list[float]] = {name: [] for name in runners}
        for runner in runners.values():
            runner.run(2)
        for _ in range(args.turns):
            for name, runner in runners.items():
                started = time.perf_counter()
                runner.run(1)
                seconds[name].append(time.perf_counter() - started)
        found: dict[str, dict[str, Any]] = {}
        for name, runner in runners.items():
            (phase,) = configs[name].resolved_phases()
            found[name] = {
                "step_seconds": seconds[name],
                "median": statistics.median(seconds[name]),
                "fastest": min(seconds[name]),
                "row_flops": make_objective(configs[name].model).row_flops(phase),
                "bytes": program_bytes(runner.program),
            }
        ratios = {
            key: found["left_to_right"][key] / found["masked"][key]
            for key in ("median", "fastest", "row_flops")
        }
        print(f"{case}: left-to-right / masked: {ratios}", flush=True)
        yield {"case": case, "directions": found, "left_to_right_to_masked": ratios}


BENCHMARK = Benchmark(measure, RESULT.name, options, keep=rows("device", "case"))

if __name__ == "__main__":
    BENCHMARK.main()
