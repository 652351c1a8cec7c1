"""Fine-tunes a pre-trained checkpoint beside the same network with weights that were only drawn.

    python -m benchmarks.pretraining_helps --workdir=runs/novels_wiki_gpu --data=../shared/data

Both start through the command, `python -m bertjax.finetune`, with the same seeds, rows, order and
hyper-parameters, once for each learning rate. The drawn weights are those that the pre-training
began with. A task and rate that stand in benchmarks/results/pretraining_helps.json are not run
again, and several processes may share the file: one a core, with taskset and --tasks=. The page is
docs/results/pretraining_helps.md.
"""

from __future__ import annotations

import functools
import itertools
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import app, flags
from filelock import FileLock

from benchmarks.hardware import device_name
from bertjax.fine_tuning.table import TABLE
from bertjax.models import init_params
from bertjax.reports.tracker import SUMMARY
from bertjax.weights.bertjax_checkpoint import write_checkpoint
from bertjax.weights.formats import read_weights
from bertjax.weights.weights import Weights

RESULT = Path(__file__).parent / "results" / "pretraining_helps.json"
PAGE = Path(__file__).parent.parent / "docs" / "results" / "pretraining_helps.md"
TASKS = {  # name: (task, training file, evaluation file)
    "wnut17": ("ner", "ner/wnut17train.conll", "ner/emerging.test.annotated"),
    "stsb": ("stsb", "stsb/sts-train.tsv", "stsb/sts-dev.tsv"),
    "polarity": ("polarity", "polarity/train.tsv", "polarity/dev.tsv"),
    "cola": ("cola", "cola/in_domain_train.tsv", "cola/in_domain_dev.tsv"),
}
STARTS = ("pretrained", "drawn")
PAGE_BEGIN = """\
# A checkpoint of our own, fine-tuned beside drawn weights

Written by `python -m benchmarks.pretraining_helps` from
[pretraining_helps.json](../../benchmarks/results/pretraining_helps.json), which has commands, date,
versions and hardware.

The checkpoint: {num_layers} layers, {hidden_size} wide, {parameters:,} parameters,
{steps:,} steps in {seconds:,.0f} s on {hardware}. Held-out MLM loss {heldout_mlm_loss:.3f} nats
(the training unigrams on the same targets: {heldout_unigram_entropy:.3f}). Its command:
[novels_wiki_gpu.md](novels_wiki_gpu.md).

Each task is fine-tuned by `python -m bertjax.finetune`, in rows of 64, from it and from the weights
that its training began with: the same seeds, rows, order and hyper-parameters, the exact command of
each line is in the file. WNUT-17 is scored on its test file, the others on the development file,
the best of the evaluations, one an epoch. ± is the deviation over the seeds; of the difference, the
standard error of its mean over the pairs of a seed.

The GPU that trained the checkpoint was to do all of this, at three rates, and its time was up when
most of the pre-trained runs had ended and few of the others had (two epochs:
[pretraining_helps_gpu.json](../../benchmarks/results/pretraining_helps_gpu.json)). There 1e-4 and
3e-4 differed little for the pre-trained weights, and 1e-3 was too much but for WNUT-17.
"""
BEST = """
Each start at the better of its rates, chosen for both by the same scores:

| task | pre-trained | drawn | difference |
|---|---|---|---|"""
_WORKDIR = flags.DEFINE_string("workdir", None, "Of a pre-training run.", required=True)
_DATA = flags.DEFINE_string("data", "../shared/data", "Folder of the tasks' files.")
_TASKS = flags.DEFINE_list("tasks", list(TASKS), "What to fine-tune for.")
_SEEDS = flags.DEFINE_string("seeds", "0,1,2", "Two or more seeds, separated by commas.")
_EPOCHS = flags.DEFINE_integer("epochs", 1, "Times each example is seen.")
_LEARNING_RATES = flags.DEFINE_list("learning_rates", ["3e-4"], "Peak learning rates.")
_LOAD = flags.DEFINE_string("load", "", "What else the machine was doing, for the record.")


def main(_: list[str]) -> None:
    """Runs what is missing and writes the table."""
    weights = read_weights(_WORKDIR.value)
    pretraining = json.loads((Path(_WORKDIR.value) / SUMMARY).read_text())
    pretraining |= {name: getattr(weights.config, name) for name in ("num_layers", "hidden_size")}
    _update(lambda results: _check_weights(results, pretraining))
    with tempfile.TemporaryDirectory() as folder:
        drawn = Path(folder) / "drawn"
        params = jax.tree.map(np.asarray, init_params(weights.config, 0))
        write_checkpoint(Weights("drawn", weights.config, params, weights.tokenizer), drawn)
        starts = dict(zip(STARTS, (_WORKDIR.value, str(drawn)), strict=True))
        for rate, name in itertools.product(_LEARNING_RATES.value, _TASKS.value):
            if rate in _update()["tasks"].get(name, {}):
                continue
            started = time.monotonic()
            entry = {
                start: _fine_tune(name, rate, path, Path(folder) / name / rate / start)
                for start, path in starts.items()
            } | {
                "command": " ".join(_command(name, rate, "START", "WORKDIR")[1:]),
                "epochs": _EPOCHS.value,
                "seconds": round(time.monotonic() - started),
                "hardware": device_name(),
                "load": _LOAD.value,
                "date": datetime.now(UTC).date().isoformat(),
                "versions": {"jax": version("jax"), "bertjax": version("bertjax")},
            }
            _update(functools.partial(_add, name, rate, entry))
    page = _page(_update())
    PAGE.write_text(page)
    print(page)


def _update(change: Callable[[dict[str, Any]], None] = lambda _: None) -> dict[str, Any]:
    """The results after `change`, which no other process reads or writes meanwhile."""
    with FileLock(RESULT.with_suffix(".lock")):
        results = json.loads(RESULT.read_text()) if RESULT.exists() else {"tasks": {}}
        change(results)
        RESULT.write_text(json.dumps(results, indent=1) + "\n")
    return results


def _check_weights(results: dict[str, Any], pretraining: dict[str, Any]) -> None:
    before = results.setdefault("pretraining", pretraining)["params_sha256"]
    if before != pretraining["params_sha256"]:
        raise SystemExit(f"{RESULT} is of the weights {before}, {_WORKDIR.value} has others")


def _add(name: str, rate: str, entry: dict[str, Any], results: dict[str, Any]) -> None:
    results["tasks"].setdefault(name, {})[rate] = entry


def _command(name: str, rate: str, start: str, workdir: str) -> list[str]:
    task, train, evaluate = TASKS[name]
    return [
        *(sys.executable, "-m", "bertjax.finetune", f"--task={task}", f"--init_from={start}"),
        f"--train={Path(_DATA.value) / train}",
        f"--eval={Path(_DATA.value) / evaluate}",
        *(f"--workdir={workdir}", f"--seed={_SEEDS.value}", f"--epochs={_EPOCHS.value}"),
        *(f"--learning_rate={rate}", "--max_length=64", "--config.log.tensorboard=False"),
    ]


def _fine_tune(name: str, rate: str, start: str, workdir: Path) -> dict[str, Any]:
    """The scores of all seeds, the mean and the deviation."""
    subprocess.run(_command(name, rate, start, str(workdir)), check=True)
    scores = json.loads((workdir / TABLE).read_text())
    (setting,) = scores["settings"]
    return {scores["main_metric"]: setting["scores"][scores["main_metric"]]}


def _page(results: dict[str, Any]) -> str:
    """Of each task a line a learning rate, and where each start is at its best."""
    lines = [
        PAGE_BEGIN.format_map(results["pretraining"]),
        "| task, metric | epochs | learning rate | pre-trained | drawn | difference | "
        "pre-trained, each seed | drawn, each seed |",
        "|---|---|---|---|---|---|---|---|",
    ]
    best = []
    for name in sorted(results["tasks"], key=list(TASKS).index):
        rates = results["tasks"][name]
        means = {}
        for rate, entry in sorted(rates.items(), key=lambda item: float(item[0])):
            ((metric, pretrained),) = entry["pretrained"].items()
            drawn = entry["drawn"][metric]
            pairs = zip(pretrained["values"], drawn["values"], strict=True)
            differences = [a - b for a, b in pairs]
            error = statistics.stdev(differences) / math.sqrt(len(differences))
            cells = [f"{name}, {metric}", str(entry["epochs"]), rate]
            cells += [f"{x['mean']:.3f} ± {x['deviation']:.3f}" for x in (pretrained, drawn)]
            cells += [f"{statistics.mean(differences):+.3f} ± {error:.3f}"]
            cells += [", ".join(f"{v:.3f}" for v in x["values"]) for x in (pretrained, drawn)]
            lines.append("| " + " | ".join(cells) + " |")
            means[rate] = {"pretrained": pretrained["mean"], "drawn": drawn["mean"]}
        at = {start: max(means, key=lambda rate: means[rate][start]) for start in STARTS}
        scores = {start: means[at[start]][start] for start in STARTS}
        best.append(
            f"| {name} | {scores['pretrained']:.3f} at {at['pretrained']} | "
            f"{scores['drawn']:.3f} at {at['drawn']} | "
            f"{scores['pretrained'] - scores['drawn']:+.3f} |"
        )
    if any(len(rates) > 1 for rates in results["tasks"].values()):
        lines += [BEST, *best]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    app.run(main)
