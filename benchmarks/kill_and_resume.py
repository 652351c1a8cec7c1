"""Kills a training run at random moments, restarts it, and compares it with one left in peace.

    python -m benchmarks.kill_and_resume [--two_phases] [--num_steps=90] [--kills=10] [--output=F]

Runs `tiny` on the embedded corpus, dropout on, saving about thirty times, through the public
command. SIGKILL comes in turns a random time and a random number of steps after the first step of
each start, at least `kills` times and until three of them were inside a save; then once SIGTERM.
The parameters' hash, every logged number and the hash of every step's row ids must be those of the
uninterrupted run. With --two_phases the run goes on with longer, packed rows after a third of its
steps, and is killed three times in each phase at least. Takes about ten minutes on two cores and
writes benchmarks/results/kill_and_resume.json, or kill_and_resume_two_phases.json. A fast device
needs more steps to be killed in.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.harness import RESULTS, Benchmark

RATES = ("sequences_per_second", "real_tokens_per_second", "mfu")
INSIDE_A_SAVE, IN_EACH_PHASE = 3, 3


def options(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    parser.add_argument("--two_phases", action="store_true")
    parser.add_argument("--num_steps", type=int, default=90)
    parser.add_argument("--kills", type=int, default=10)


def target(args: argparse.Namespace) -> Path:
    """The file of the result: each kind of run has one."""
    kind = "_two_phases" if args.two_phases else ""
    return args.output or RESULTS / f"kill_and_resume{kind}.json"


def measure(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Runs both; an error if they differ."""
    two_phases = args.two_phases
    flags = flags_of(args.num_steps, two_phases)
    moments = random.Random(0)
    with tempfile.TemporaryDirectory(prefix="bertjax-kill-") as folder:
        # Most of a start is the compiler; its result is taken from here at the next one.
        environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": f"{folder}/compiled"}
        whole, killed = Path(folder, "whole"), Path(folder, "killed")
        assert run(whole, flags, environment).wait() == 0
        again = [*flags, f"--config.data.store={whole / 'store'}"]

        kills: list[dict[str, Any]] = []
        while (
            len(kills) < args.kills
            or sum(k["inside_a_save"] for k in kills) < INSIDE_A_SAVE
            or (two_phases and min(in_phase(kills, 0), in_phase(kills, 1)) < IN_EACH_PHASE)
        ):
            process = run(killed, again, environment)
            wait_for_steps(process, killed, 1)
            if len(kills) % 2:  # by steps, or it would never come through what takes long
                wait_for_steps(process, killed, moments.randint(2, 7))
                time.sleep(moments.uniform(0, 0.1))
            else:
                time.sleep(moments.uniform(0, 2))
            if process.poll() is not None:
                raise SystemExit("the run ended before it could be killed: raise --num_steps")
            process.kill()
            process.wait()
            kills.append(state_of(killed))
            print(f"kill {len(kills)}: {kills[-1]}", flush=True)
        process = run(killed, again, environment)
        wait_for_steps(process, killed, 1)
        process.send_signal(signal.SIGTERM)
        sigterm_exit = process.wait()
        final_exit = run(killed, again, environment).wait()

        result = {
            "hardware": summary(whole)["hardware"],
            "flags": flags,
            "xla_flags": os.environ.get("XLA_FLAGS", ""),
            "kills": kills,
            "kills_in_phases": [in_phase(kills, phase) for phase in range(1 + two_phases)],
            "kills_inside_a_save": sum(k["inside_a_save"] for k in kills),
            "exit_after_sigterm": sigterm_exit,
            "final_exit": final_exit,
            "params_sha256": summary(killed)["params_sha256"],
            "params_sha256_uninterrupted": summary(whole)["params_sha256"],
            "steps_compared": args.num_steps,
            "steps_that_differ": [
                a["step"] for a, b in zip(steps(killed), steps(whole), strict=True) if a != b
            ],
        }
    print(json.dumps(result, indent=1))
    yield result
    same = result["params_sha256"] == result["params_sha256_uninterrupted"]
    sys.exit(not (same and not result["steps_that_differ"] and sigterm_exit == 75))


def flags_of(num_steps: int, two_phases: bool) -> list[str]:
    """What is set on the command line."""
    flags = [
        "--config=tiny",
        f"--config.num_steps={num_steps}",
        "--config.model.dropout_rate=0.1",
        "--config.model.attention_dropout_rate=0.1",
        f"--config.checkpoint.every_steps={max(1, num_steps // 30)}",
        f"--config.eval.every_steps={max(1, num_steps // 3)}",
        "--config.log.every_steps=1",
    ]
    if not two_phases:
        return flags
    first = num_steps // 3
    phases = (
        {"num_steps": first},
        {"num_steps": num_steps - first, "max_length": 128, "global_batch_size": 8}
        | {"packing_depth": 4},
    )
    return [*flags, f"--config.phases={phases}", "--config.optimizer.warmup_steps=10"]


def run(workdir: Path, flags: list[str], environment: dict[str, str]) -> subprocess.Popen:
    """Starts the public command; its log goes to `WORKDIR.log`, anew at each start."""
    with open(f"{workdir}.log", "wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "bertjax.train", *flags, f"--workdir={workdir}"],
            env=environment,
            stderr=log,
        )


def wait_for_steps(process: subprocess.Popen, workdir: Path, count: int) -> None:
    """Until this start has logged so many steps of its own."""
    while Path(f"{workdir}.log").read_text().count("  loss ") < count:
        if process.poll() is not None:
            raise SystemExit(f"the run ended with {process.returncode}: see {workdir}.log")
        time.sleep(0.01)


def state_of(workdir: Path) -> dict[str, Any]:
    """What a killed run left: its last logged step, its newest checkpoint, an unfinished save."""
    checkpoints = workdir / "checkpoints"
    saved = sorted(path.name for path in checkpoints.glob("step_*"))
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return {
        "lines_logged": len(lines),
        "phase": json.loads(lines[-1])["phase"],
        "newest_checkpoint": saved[-1] if saved else None,
        "inside_a_save": bool(list(checkpoints.glob(".saving_*"))),
    }


def in_phase(kills: list[dict[str, Any]], phase: int) -> int:
    """How many kills came while the run was in a phase."""
    return sum(kill["phase"] == phase for kill in kills)


def steps(workdir: Path) -> list[dict[str, Any]]:
    """The logged steps without their rates, which are never the same twice."""
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(x).items() if k not in RATES} for x in lines]


def summary(workdir: Path) -> dict[str, Any]:
    """What summary.json holds."""
    return json.loads((workdir / "summary.json").read_text())


BENCHMARK = Benchmark(measure, target, options, device="elsewhere")

if __name__ == "__main__":
    BENCHMARK.main()
