"""Masked against left-to-right pre-training: one command per part, each can be interrupted.

    python -m experiments.direction data  --data=DATA --root=runs/direction
    python -m experiments.direction train --root=runs/direction [--size=cpu] [--minutes=150]
    python -m experiments.direction blimp --data=DATA --root=runs/direction
    python -m experiments.direction tasks --data=DATA --root=runs/direction
    python -m experiments.direction times
    python -m experiments.direction page

DATA is a folder with the corpora, tasks and BLiMP that README.md names. A part does what is missing
and stops when its minutes are over; the same command resumes it. Results are added to
experiments/direction/results/SIZE.json as they come, and `page` makes README.md and its plots from
them. `times` takes the time of a step of each arm, in turns: run it when nothing else runs.
Exit codes: 0 the part is complete; 75 time is over or a signal came.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import logging
import os
import signal
import statistics
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

import bertjax
from benchmarks import blimp, harness
from benchmarks.step_case import Runner
from bertjax.config import ConfigError
from bertjax.errors import EXIT_FINISHED, EXIT_PREEMPTED, EXIT_REFUSED, BertjaxError
from bertjax.models import resolve_model
from bertjax.reports.tracker import EVALS, SUMMARY, read_lines
from experiments.direction import page
from experiments.direction.arms import SIZES, Size, checkpoint_path, parts

_LOG = logging.getLogger("bertjax.experiments.direction")
CORPUS = ("corpus/novels.jsonl.gz", "corpus/wiki_train.jsonl.gz")
HELDOUT = "corpus/wiki_heldout.jsonl.gz"
TURNS = 40  # steps of each arm that `times` takes
TASKS = {  # numbers of bertjax.finetune; the same for all arms
    "cola": {
        "train": "cola/in_domain_train.tsv",
        "eval": "cola/in_domain_dev.tsv",
        "max_length": 32,
        "epochs": 2,
        "learning_rate": 1e-4,
    },
    "stsb": {
        "train": "stsb/sts-train.tsv",
        "eval": "stsb/sts-dev.tsv",
        "max_length": 64,
        "epochs": 2,
        "learning_rate": 3e-4,
    },
}


def main(argv: list[str] | None = None) -> int:
    """Runs one part."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.direction",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("part", choices=["data", "train", "blimp", "tasks", "times", "page"])
    parser.add_argument("--size", choices=SIZES, default="cpu", help="see arms.py")
    parser.add_argument("--root", type=Path, default=Path("runs/direction"), help="of the runs")
    parser.add_argument("--data", type=Path, default=harness.DATA, help="of the public files")
    parser.add_argument("--minutes", type=float, default=150.0, help="after which the part stops")
    parser.add_argument("--load", default="", help="what else the machine is doing, for the record")
    parser.add_argument(
        "--results", type=Path, default=page.RESULTS, help="folder of the files of results"
    )
    args = parser.parse_args(argv)
    bertjax.show_log()
    if args.part == "page":
        page.write(args.results)
        return EXIT_FINISHED
    args.root = args.root.resolve()
    args.runs = args.root / args.size
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(EXIT_PREEMPTED))  # where no run handles it
    timer = threading.Timer(60 * args.minutes, os.kill, (os.getpid(), signal.SIGTERM))
    timer.daemon = True
    timer.start()
    try:
        run = {"data": _data, "train": _train, "blimp": _blimp, "tasks": _tasks, "times": _times}
        complete = run[args.part](SIZES[args.size], args)
    except BertjaxError as error:
        print(error, file=sys.stderr)
        return EXIT_REFUSED
    finally:
        timer.cancel()
    return EXIT_FINISHED if complete else EXIT_PREEMPTED


def _stores(root: Path) -> dict[str, str]:
    return {"store": str(root / "store"), "eval_store": str(root / "heldout")}


def _data(size: Size, args: argparse.Namespace) -> bool:
    """Makes the stores: a vocabulary of the training text, and held-out articles."""
    stores = _stores(args.root)
    vocab_size = size.settings["model.vocab_size"]
    inputs = ",".join(str(args.data / name) for name in CORPUS)
    bertjax.build_store(inputs, stores["store"], "train:wordpiece", vocab_size=vocab_size)
    tokenizer = f"{stores['store']}/tokenizer"
    heldout = str(args.data / HELDOUT)
    bertjax.build_store(heldout, stores["eval_store"], tokenizer, heldout_share=0.0)
    return True


def _train(size: Size, args: argparse.Namespace) -> bool:
    """Pre-trains every arm with every seed: all arms of a seed before the next seed."""
    for path in _stores(args.root).values():
        if not Path(path).is_dir():
            raise ConfigError(f"{path}: no such store; make it with the part data first")
    done = _done(args, "train")
    for seed in size.seeds:
        for arm in size.arms:
            if f"{arm}_{seed}" in done:
                continue
            start = ""
            for part in parts(size, arm, seed):
                config, workdir = part.config, args.runs / part.folder
                for name, path in _stores(args.root).items():
                    setattr(config.data, name, path)
                config.init_from = start
                result = bertjax.pretrain(config, workdir)
                if result.preempted:
                    return False
                start = str(workdir)
            _add(args, "train", f"{arm}_{seed}", _curve(size, args.runs, arm, seed))
    return True


def _curve(size: Size, runs: Path, arm: str, seed: int) -> dict[str, Any]:
    """What a finished arm has logged: held-out scores by step, tokens and seconds."""
    record: dict[str, Any] = {"arm": arm, "seed": seed, "evaluations": [], "checkpoints": []}
    tokens = seconds = 0.0
    for part in parts(size, arm, seed):
        workdir = runs / part.folder
        for line in read_lines(workdir / EVALS):
            own = {name: line[name] for name in line if name.startswith("heldout_")}
            record["evaluations"].append({"step": part.first_step + line["step"], **own})
        for path in sorted((workdir / "checkpoints").glob("step_*")):
            progress = json.loads((path / "progress.json").read_text())
            record["checkpoints"].append(
                {
                    "step": part.first_step + int(path.name.removeprefix("step_")),
                    "predicted_tokens": tokens + progress["predicted_tokens"],
                    "seconds": seconds + progress["seconds"],
                }
            )
        summary = json.loads((workdir / SUMMARY).read_text())
        tokens = record["checkpoints"][-1]["predicted_tokens"]
        seconds += summary["seconds"]
    record |= {name: summary[name] for name in ("parameters", "hardware", "params_sha256")}
    return record


def _blimp(size: Size, args: argparse.Namespace) -> bool:
    """Scores checkpoints on BLiMP, the last ones first."""
    pairs = blimp.read_pairs(args.data / "blimp" / "blimp.jsonl.gz", size.pairs)
    done = _done(args, "blimp")
    missing = 0
    with _Stop() as stop:
        for step in sorted(size.evaluated, reverse=True):
            for seed in size.seeds:
                for arm in size.arms:
                    name = f"{arm}_{seed}_{step}"
                    path = checkpoint_path(args.runs, size, arm, seed, step)
                    if name in done or path is None or stop.is_set():
                        missing += name not in done
                        continue
                    begun = datetime.datetime.now(datetime.UTC)
                    found = blimp.accuracy(bertjax.load(path), pairs)
                    took = (datetime.datetime.now(datetime.UTC) - begun).total_seconds()
                    record = {"arm": arm, "seed": seed, "step": step, **found}
                    record["took_seconds"] = round(took, 1)
                    _LOG.info("%s: BLiMP %.4f in %.0f s", name, found["overall"], took)
                    _add(args, "blimp", name, record)
    return not missing


def _tasks(size: Size, args: argparse.Namespace) -> bool:
    """Fine-tunes checkpoints on CoLA and STS-B, one seed for each pre-training."""
    models = []
    for arm in size.arms:
        for seed in size.seeds:
            for step in size.fine_tuned:
                path = checkpoint_path(args.runs, size, arm, seed, step)
                if path is None:
                    continue
                models.append(f"{arm}={path}")
    tasks: dict[str, dict[str, Any]] = {}
    for name, settings in TASKS.items():
        files = {key: str(args.data / str(settings[key])) for key in ("train", "eval")}
        tasks[name] = {**settings, **files}
    workdir = args.runs / "tasks"
    result = bertjax.fine_tune_sweep(models, tasks, workdir, keep_checkpoints=False)
    where = {
        str(checkpoint_path(args.runs, size, arm, seed, step)): (arm, seed, step)
        for arm in size.arms
        for seed in size.seeds
        for step in size.fine_tuned
    }
    done = _done(args, "tasks")
    for run in result.content["runs"]:
        arm, seed, step = where[run["model"]]
        name = f"{run['task']}_{arm}_{seed}_{step}"
        if run["score"] is None or name in done:
            continue
        fields = {name: run[name] for name in ("task", "main_metric", "score")}
        record = {"arm": arm, "seed": seed, "step": step, **fields}
        _add(args, "tasks", name, record)
    complete = len(models) == len(size.arms) * len(size.seeds) * len(size.fine_tuned)
    return complete and not result.preempted


def _times(size: Size, args: argparse.Namespace) -> bool:
    """Times one step of each arm after the other, in turns; a file of results keeps the last."""
    runners = {
        (arm, part.first_step): Runner(_resolved(part.config))
        for arm in size.arms
        for part in parts(size, arm, 0)
    }
    seconds: dict[tuple[str, int], list[float]] = {key: [] for key in runners}
    for runner in runners.values():
        runner.run(2)
    for _ in range(TURNS):
        for key, runner in runners.items():
            started = time.perf_counter()
            runner.run(1)
            seconds[key].append(time.perf_counter() - started)
    for arm in size.arms:
        record: dict[str, Any] = {"arm": arm, "turns": TURNS, "parts": []}
        for (name, first_step), taken in seconds.items():
            if name == arm:
                found = {"median": statistics.median(taken), "fastest": min(taken)}
                record["parts"].append({"first_step": first_step, **found})
                _LOG.info("%s, from step %d: %.4f s a step", arm, first_step, found["median"])
        _add(args, "times", arm, record)
    return True


def _resolved(config: bertjax.Config) -> bertjax.Config:
    """For `Runner`: with the model resolved for this backend, and one microbatch."""
    model = resolve_model(config.model, jax.default_backend())
    return dataclasses.replace(config, model=model, num_microbatches=1)


class _Stop(threading.Event):
    """Is set by SIGTERM or SIGINT; a second signal ends the process."""

    def __enter__(self) -> _Stop:
        self._before = {s: signal.signal(s, self._set) for s in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _set(self, number: int, frame: object) -> None:
        self.set()
        signal.signal(number, signal.SIG_DFL)


def _add(args: argparse.Namespace, part: str, name: str, record: dict[str, Any]) -> None:
    """Puts one record into the file of results, with where it was measured."""
    record = {
        "part": part,
        "name": name,
        **record,
        **harness.commit(),
        **harness.beginning(args.load),
        "machine": harness.machine(),
        "device": harness.device_name(),
        "versions": harness.versions(),
    }
    harness.write_record(_file(args), record, harness.nested("part", "name"))


def _done(args: argparse.Namespace, part: str) -> Mapping[str, Any]:
    """The results of a part: finished ones stay as they were measured."""
    contents: dict[str, dict[str, Any]] = harness.read_contents(_file(args)) or {}
    return contents.get(part, {})


def _file(args: argparse.Namespace) -> Path:
    return Path(args.results) / f"{args.size}.json"


if __name__ == "__main__":
    sys.exit(main())
