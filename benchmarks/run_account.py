"""Where the seconds of a run go: `make train` and others, from the command to the summary.

    python -m benchmarks.run_account --config=tiny

Runs bertjax.train in a process of its own, profiles its main thread, and adds up what the loop
waits for: the store, the program, rows, the step, evaluations, checkpoints, pictures. The loop
works one step ahead, so waiting for the step is where its own work would be hidden. Beside the
seconds of each part stand the CPU seconds of the whole process, which depend less on what else the
machine does. Writes benchmarks/results/run_account.json, a record for each device and recipe.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import pstats
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.harness import Benchmark, device_elsewhere, in_process, rows

# Functions that the loop calls, by file and name.
LOOP = "bertjax/training/loop.py"
PARTS = {
    "store: make or open, vocabulary": ("bertjax/pretraining/job.py", "__init__"),
    "parameters and optimizer state": ("bertjax/training/start.py", "start"),
    "a product timed, for the bound of a step": (
        "bertjax/training/compilation.py",
        "estimate_step_seconds",
    ),
    "rows: index, first batches": ("bertjax/pretraining/job.py", "training_rows"),
    "program of the step (and what is compiled beside the rows)": (
        "concurrent/futures/_base.py",
        "result",
    ),
    "stream: TensorFlow, threads": ("bertjax/training/input.py", "__init__"),
    "waiting for rows": ("~", "<built-in method builtins.next>"),
    "waiting for steps, and lines of the log": (LOOP, "_report"),
    "starting steps": ("jax/_src/stages.py", "__call__"),
    "sums of metrics": ("bertjax/training/since_logged.py", "add"),
    "votes": ("bertjax/parallel/distributed.py", "soon"),
    "evaluations": (LOOP, "_evaluate"),
    "checkpoints: started": (LOOP, "_save"),
    "checkpoints: waiting for the last": ("bertjax/checkpoints/checkpoint.py", "wait"),
    "summary and pictures": (LOOP, "summarize"),
}


def options(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    parser.add_argument("--config", default="tiny", help="recipe")
    parser.add_argument("--num_steps", type=int, default=0, help="0 = all of the recipe")


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Profiles the run in its own process."""
    found = in_process("profiled_run", args.config, args.num_steps, module="run_account")
    return {"config": args.config, **found, "device": device_elsewhere()[0]}


def profiled_run(recipe: str, num_steps: int) -> dict[str, Any]:
    """Seconds by part, CPU seconds, and what came out; called with nothing imported."""
    started, profile = time.perf_counter(), cProfile.Profile()
    import bertjax.pretraining.run as run  # with jax
    from bertjax.cli.recipes import load_recipe

    imported = time.perf_counter() - started
    overrides = {"num_steps": num_steps} if num_steps else {}
    with tempfile.TemporaryDirectory() as folder:
        config = load_recipe(recipe, overrides)
        profile.enable()
        run.pretrain(config, Path(folder) / "run")
        profile.disable()
        everything = time.perf_counter() - started
        summary = json.loads((Path(folder) / "run/summary.json").read_text())
    own, children = (
        resource.getrusage(resource.RUSAGE_SELF),
        resource.getrusage(resource.RUSAGE_CHILDREN),
    )
    parts = {"imports": imported, **seconds_by_part(profile)}
    return {
        "steps": summary["steps"],
        "seconds": everything,
        "parts": parts | {"everything else": everything - sum(parts.values())},
        "cpu_seconds": sum(x.ru_utime + x.ru_stime for x in (own, children)),
        "params_sha256": summary["params_sha256"],
        "heldout_mlm_loss": summary["heldout_mlm_loss"],
    }


def seconds_by_part(profile: cProfile.Profile) -> dict[str, float]:
    """What each of `PARTS` took, with all that it calls, where the loop called it."""
    stats: dict[tuple[str, int, str], tuple[int, int, float, float, Any]]
    stats = pstats.Stats(profile).stats  # type: ignore[attr-defined]
    return {
        part: sum(
            seconds
            for (path, _, name), (*_, callers) in stats.items()
            if path.endswith(file) and name == function
            for (caller, _, _), (*_, seconds) in callers.items()
            if caller.endswith(LOOP)
        )
        for part, (file, function) in PARTS.items()
    }


BENCHMARK = Benchmark(
    measure, "run_account.json", options, device="elsewhere", keep=rows("device", "config", "steps")
)

if __name__ == "__main__":
    BENCHMARK.main()
