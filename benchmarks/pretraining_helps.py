"""Fine-tunes a pre-trained checkpoint beside the same network with weights that were only drawn.

    python -m benchmarks.pretraining_helps --workdir=runs/novels_wiki_gpu --data=../shared/data

Both start through the command, `python -m bertjax.finetune`, with the same seeds, rows, order and
hyper-parameters, once for each learning rate. The drawn weights are those that the pre-training
began with. A task and rate that stand in benchmarks/results/pretraining_helps.json are not run
again, and several processes may share the file: one a core, with taskset and --tasks=.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks.harness import (
    DATA,
    RESULTS,
    Benchmark,
    Contents,
    Record,
    UsageError,
    comma_list,
    read_contents,
)
from bertjax.fine_tuning.table import TABLE
from bertjax.models import init_params
from bertjax.reports.tracker import SUMMARY
from bertjax.weights.bertjax_checkpoint import write_checkpoint
from bertjax.weights.formats import read_weights
from bertjax.weights.weights import Weights

RESULT = RESULTS / "pretraining_helps.json"
TASKS = {  # name: (task, training file, evaluation file)
    "wnut17": ("ner", "ner/wnut17train.conll", "ner/emerging.test.annotated"),
    "stsb": ("stsb", "stsb/sts-train.tsv", "stsb/sts-dev.tsv"),
    "polarity": ("polarity", "polarity/train.tsv", "polarity/dev.tsv"),
    "cola": ("cola", "cola/in_domain_train.tsv", "cola/in_domain_dev.tsv"),
}
STARTS = ("pretrained", "drawn")


def options(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    parser.add_argument("--workdir", required=True, help="of a pre-training run")
    parser.add_argument("--data", type=Path, default=DATA, help="folder of the tasks' files")
    parser.add_argument(
        "--tasks", type=comma_list, default=list(TASKS), help="what to fine-tune for"
    )
    parser.add_argument("--seeds", default="0,1,2", help="two or more, separated by commas")
    parser.add_argument("--epochs", type=int, default=1, help="times each example is seen")
    parser.add_argument("--learning_rates", type=comma_list, default=["3e-4"], help="at the peak")


def measure(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Runs what is missing."""
    weights = read_weights(args.workdir)
    pretraining = json.loads((Path(args.workdir) / SUMMARY).read_text())
    pretraining |= {name: getattr(weights.config, name) for name in ("num_layers", "hidden_size")}
    _check_weights(read_contents(args.output) or {}, pretraining)
    with tempfile.TemporaryDirectory() as folder:
        drawn = Path(folder) / "drawn"
        params = jax.tree.map(np.asarray, init_params(weights.config, 0))
        write_checkpoint(Weights("drawn", weights.config, params, weights.tokenizer), drawn)
        starts = dict(zip(STARTS, (args.workdir, str(drawn)), strict=True))
        for rate, name in itertools.product(args.learning_rates, args.tasks):
            if rate in (read_contents(args.output) or {"tasks": {}})["tasks"].get(name, {}):
                continue
            started = time.monotonic()
            scores = {
                start: _fine_tune(args, name, rate, path, Path(folder) / name / rate / start)
                for start, path in starts.items()
            }
            yield {
                "pretraining": pretraining,
                "task": name,
                "learning_rate": rate,
                **scores,
                "fine_tuning": " ".join(_command(args, name, rate, "START", "WORKDIR")[1:]),
                "epochs": args.epochs,
                "seconds": round(time.monotonic() - started),
            }


def keep(old: Contents, record: Record) -> Contents:
    """Puts a record under its task and rate; all are of one checkpoint."""
    results = old or {"tasks": {}}
    pretraining = record.pop("pretraining")
    _check_weights(results, pretraining)
    results.setdefault("pretraining", pretraining)
    results["tasks"].setdefault(record["task"], {})[record["learning_rate"]] = record
    return results


def _check_weights(results: dict[str, Any], pretraining: dict[str, Any]) -> None:
    before = results.get("pretraining", pretraining)["params_sha256"]
    if before != pretraining["params_sha256"]:
        raise UsageError(
            f"--workdir has the weights {pretraining['params_sha256']}, the results are of {before}"
        )


def _command(args: argparse.Namespace, name: str, rate: str, start: str, workdir: str) -> list[str]:
    task, train, evaluate = TASKS[name]
    return [
        *(sys.executable, "-m", "bertjax.finetune", f"--task={task}", f"--init_from={start}"),
        f"--train={args.data / train}",
        f"--eval={args.data / evaluate}",
        *(f"--workdir={workdir}", f"--seed={args.seeds}", f"--epochs={args.epochs}"),
        *(f"--learning_rate={rate}", "--max_length=64", "--config.log.tensorboard=False"),
    ]


def _fine_tune(
    args: argparse.Namespace, name: str, rate: str, start: str, workdir: Path
) -> dict[str, Any]:
    """The scores of all seeds, the mean and the deviation."""
    subprocess.run(_command(args, name, rate, start, str(workdir)), check=True)
    scores = json.loads((workdir / TABLE).read_text())
    (setting,) = scores["settings"]
    return {scores["main_metric"]: setting["scores"][scores["main_metric"]]}


BENCHMARK = Benchmark(measure, RESULT.name, options, keep=keep)

if __name__ == "__main__":
    BENCHMARK.main()
