"""Plans BASE and LARGE for slices of every TPU generation.

    python -m benchmarks.plan_table [--rows=N] [--before=DATE] [--only=TEXT]

Each row is a compile of the real training step in a process of its own, minutes on two free cores,
most useful first. A result is written to benchmarks/results/plan.json as it arrives, and rows that
are there are skipped (unless they are older than --before), so the command can be stopped and run
again. Needs pip install 'bertjax[plan]'.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

from benchmarks.harness import RESULTS, Benchmark, Contents, Record, read_contents

RESULT = RESULTS / "plan.json"
FSDP = "--config.mesh.data=1 --config.mesh.fsdp=16"
SPLIT = "--config.mesh.shard_optimizer=true"
# recipe, phase (0 = length 128, 1 = length 512), topology, slices, other flags
ROWS: list[tuple[str, int, str, int, str]] = [
    ("base", 0, "v5e:4x4", 1, ""),
    ("base", 0, "v5e:4x4", 1, SPLIT),
    ("base", 1, "v5e:4x4", 1, ""),
    ("large", 1, "v5e:4x4", 1, ""),
    ("base", 0, "v6e:4x4", 1, ""),
    ("base", 0, "v5p:2x2x4", 1, ""),
    ("large", 0, "v5e:4x4", 1, ""),
    ("base", 0, "v5e:4x4", 2, ""),
    ("large", 0, "v5e:4x4", 1, FSDP),
    ("large", 0, "v5p:2x2x4", 1, ""),
    ("large", 0, "v6e:4x4", 1, ""),
    ("base", 0, "v4:2x2x2", 1, ""),
    ("large", 0, "v5e:16x16", 1, ""),
    ("large", 0, "v5e:4x4", 1, "--config.mesh.data=4 --config.mesh.fsdp=4"),
    ("large", 1, "v5e:4x4", 1, "--config.num_microbatches=1"),
    ("base", 0, "v5e:16x16", 1, ""),
    ("large", 1, "v5e:16x16", 1, ""),
    ("large", 0, "v4:2x2x2", 1, ""),
    ("large", 0, "v5e:4x4", 2, ""),
    ("large", 1, "v6e:4x4", 1, ""),
    ("large", 1, "v5p:2x2x4", 1, ""),
    ("base", 1, "v5e:16x16", 1, ""),
    ("base", 1, "v6e:4x4", 1, ""),
    ("base", 1, "v5p:2x2x4", 1, ""),
    ("base", 1, "v4:2x2x2", 1, ""),
    ("base", 1, "v5e:4x4", 2, ""),
    ("large", 1, "v4:2x2x2", 1, ""),
    ("large", 1, "v5e:4x4", 2, ""),
    ("large", 1, "v5e:4x4", 1, FSDP),
    ("base", 0, "v5e:4x4", 1, FSDP),
    ("base", 1, "v5e:4x4", 1, FSDP),
]


def options(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    parser.add_argument("--rows", type=int, default=len(ROWS), help="compile at most so many")
    parser.add_argument(
        "--before", default="", help="compile rows again that are older: 2026-11-24"
    )
    parser.add_argument("--only", default="", help="compile rows alone whose command has this text")


def measure(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Plans what is missing, at most `--rows` of it."""
    results = read_contents(args.output) or []
    done = {command(record) for record in results if record["date"] >= args.before}
    missing = [x for x in COMMANDS if x not in done and args.only in x]
    for text in missing[: args.rows]:
        print(text, flush=True)
        yield {"plan": text, **plan(text)}


def keep(old: Contents, record: Record) -> Contents:
    """Puts a row in the place of an older one, in the order of ROWS."""
    results = [x for x in old or [] if command(x) != record["plan"]] + [record]
    return sorted(results, key=lambda x: COMMANDS.index(command(x)))


def command(record: Record) -> str:
    """The command of a row; it was the `command` of the record before records had their own."""
    return str(record.get("plan") or record["command"])


def command_of(recipe: str, phase: int, topology: str, slices: int, flags: str) -> str:
    """The command that plans one row."""
    several = f" --num_slices={slices}" if slices > 1 else ""
    return (
        f"python -m bertjax.plan --config={recipe} --topology={topology}{several} --phase={phase} "
        f"--json {flags}"
    ).strip()


COMMANDS = [command_of(*row) for row in ROWS]


def plan(text: str) -> dict[str, Any]:
    """Runs a command; an answer is both "it fits" (exit code 0) and "it does not" (1)."""
    result = subprocess.run(
        [sys.executable, *text.split()[1:]], stdout=subprocess.PIPE, text=True, check=False
    )
    if result.returncode not in (0, 1) or not result.stdout.startswith("{"):
        raise SystemExit(f"exit code {result.returncode} of {text}")
    found = json.loads(result.stdout)
    del found["versions"]  # the record has them
    return found


BENCHMARK = Benchmark(measure, RESULT.name, options, device="none", keep=keep)

if __name__ == "__main__":
    BENCHMARK.main()
