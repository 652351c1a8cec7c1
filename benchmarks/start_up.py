"""How long a run takes from its command to its first step, with nothing kept from before and again.

    python -m benchmarks.start_up --config=tiny --store=runs/tiny/store

Each recipe starts twice with a cache folder that is empty at first, and stops after one step. The store is there, but its row
index and the program are made at the first start. What the log says of the start is written to benchmarks/results/start_up.json.
"""  # noqa: E501

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from typing import Any

from benchmarks.harness import Benchmark


def options(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    parser.add_argument("--config", action="append", required=True, help="recipe")
    parser.add_argument("--store", required=True)


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Starts each recipe twice."""
    return {"recipes": {recipe: starts(recipe, args.store) for recipe in args.config}}


def starts(recipe: str, store: str) -> dict[str, dict[str, float]]:
    """Seconds of each part of a first and of a second start."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in ("first", "second"):
            flags = [
                *("--config.num_steps=1", "--config.data.global_batch_size=8"),
                *("--config.eval.max_rows=8", f"--workdir={folder}/{name}"),
                f"--config.data.store={store}",
            ]
            log = subprocess.run(
                [sys.executable, "-m", "bertjax.train", f"--config={recipe}", *flags],
                env=os.environ | {"BERTJAX_CACHE": f"{folder}/cache"},
                check=True,
                capture_output=True,
                text=True,
            ).stderr
            line = re.search(r"first step done ([\d.]+) s after the command began \((.*)\)", log)
            assert line is not None, log
            parts = dict(part.rsplit(" ", 1) for part in line[2].split(", "))
            found[name] = {"all": float(line[1]), **{k: float(v) for k, v in parts.items()}}
    return found


BENCHMARK = Benchmark(measure, "start_up.json", options, device="elsewhere")

if __name__ == "__main__":
    BENCHMARK.main()
