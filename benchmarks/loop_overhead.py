"""What the training loop adds to its steps: rows, logging, metrics, the wait for them.

    python -m benchmarks.loop_overhead --store=STORE --case=tiny:32:32 --case=small:128:16

Times the bare step on a batch that lies on the device, then `pretrain` on the store, in turns, and
compares the fastest of either: what is left is the share of the time in which the device waits for the loop. Writes
benchmarks/results/loop_overhead.json.
"""  # noqa: E501

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.harness import Benchmark
from benchmarks.train_step import Bertjax, make_batch, make_config
from bertjax.config import CheckpointConfig, Config, EvalConfig, LogConfig
from bertjax.data.store.store import open_store
from bertjax.pretraining.run import pretrain

ROUNDS = 3


def options(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--case", action="append", required=True, help="recipe:length:rows")
    parser.add_argument("--seconds", type=float, default=15.0, help="of one turn, about")


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Measures the cases."""
    return {"cases": {case: measure_case(case, args.store, args.seconds) for case in args.case}}


def measure_case(case: str, store: Path, seconds: float) -> dict[str, Any]:
    """Seconds a step, bare and in the loop."""
    recipe, length, rows = case.split(":")
    config = make_config(recipe, int(length), int(rows))
    config.model.vocab_size = open_store(store).tokenizer().vocab_size
    bare = Bertjax(config, make_batch(config))
    started = time.perf_counter()
    bare.run(3)
    steps = max(20, 10 * round(seconds / ((time.perf_counter() - started) / 3) / 10))
    times: dict[str, list[float]] = {"bare": [], "loop": []}
    for _ in range(ROUNDS):
        started = time.perf_counter()
        bare.run(steps)
        times["bare"].append((time.perf_counter() - started) / steps)
        times["loop"].append(int(rows) / fastest_rate(config, store, steps))
    best = {name: min(values) for name, values in times.items()}
    return {
        "steps": steps,
        "seconds_a_step": times,
        "overhead": best["loop"] / best["bare"] - 1,
    }


def fastest_rate(config: Config, store: Path, steps: int) -> float:
    """Sequences a second of the fastest stretch between two lines of metrics.jsonl."""
    # As long as the whole turn of the bare step: a shorter one would be luckier.
    every = steps - 10
    config = dataclasses.replace(
        config,
        num_steps=steps,
        data=dataclasses.replace(config.data, store=str(store)),
        checkpoint=CheckpointConfig(every_steps=steps, every_minutes=0),  # at the end
        eval=EvalConfig(every_steps=steps, max_rows=32),
        log=LogConfig(every_steps=every),
    )
    with tempfile.TemporaryDirectory() as folder:
        pretrain(config, Path(folder) / "run")
        lines = (Path(folder) / "run" / "metrics.jsonl").read_text().splitlines()
    return json.loads(lines[0])["sequences_per_second"]


BENCHMARK = Benchmark(measure, "loop_overhead.json", options)

if __name__ == "__main__":
    BENCHMARK.main()
