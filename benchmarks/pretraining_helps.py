"""Fine-tunes a pre-trained checkpoint beside the same network with weights that were only drawn.

    python -m benchmarks.pretraining_helps --workdir=runs/short --data=../shared/data

Both start through the command, `python -m bertjax.finetune`, with the same seeds, rows, order and
hyper-parameters. The drawn weights are those that the pre-training began with. A task that stands
in benchmarks/results/pretraining_helps.json is not run again; the table is
docs/results/pretraining_helps.md.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import app, flags

from benchmarks.hardware import cpu_name
from bertjax.interop.bertjax_checkpoint import write_checkpoint
from bertjax.interop.formats import read_weights
from bertjax.interop.weights import Weights
from bertjax.models import init_params
from bertjax.training.fine_tuning_table import TABLE as SCORES_TABLE
from bertjax.training.tracker import SUMMARY

RESULT = Path(__file__).parent / "results" / "pretraining_helps.json"
TABLE = Path(__file__).parent.parent / "docs" / "results" / "pretraining_helps.md"
TASKS = {  # name: (task, training file, evaluation file)
    "wnut17": ("ner", "ner/wnut17train.conll", "ner/emerging.test.annotated"),
    "stsb": ("stsb", "stsb/sts-train.tsv", "stsb/sts-dev.tsv"),
    "polarity": ("polarity", "polarity/train.tsv", "polarity/dev.tsv"),
    "cola": ("cola", "cola/in_domain_train.tsv", "cola/in_domain_dev.tsv"),
}
STARTS = ("pretrained", "drawn")
PAGE = """\
# A checkpoint of our own, fine-tuned beside drawn weights

Written by `python -m benchmarks.pretraining_helps` from
[pretraining_helps.json](../../benchmarks/results/pretraining_helps.json), which has commands, date,
versions and hardware.

The checkpoint: {num_layers} layers, {hidden_size} wide, {parameters:,} parameters,
{steps:,} steps in {seconds:,.0f} s. Held-out MLM loss {heldout_mlm_loss:.3f} nats (the training
unigrams on the same targets: {heldout_unigram_entropy:.3f}), accuracy {heldout_mlm_accuracy:.3f}.
It is a shorter run of the recipe of [novels_wiki.md](novels_wiki.md), whose stores it takes, on
one core:

    python -m bertjax.train --config=docs/results/novels_wiki.py --workdir=runs/short \\
      '--config.phases[0].num_steps=5000' '--config.phases[1].num_steps=1200' \\
      --config.data.store=stores/novels_wiki --config.data.eval_store=stores/wiki_heldout

Each task is fine-tuned by `python -m bertjax.finetune`, {epochs} epochs at {rate}, rows of 64, from
it and from the weights that its training began with. Mean and deviation over the seeds; WNUT-17 on
its test file, the others on the development file.

"""
_WORKDIR = flags.DEFINE_string("workdir", None, "Of a pre-training run.", required=True)
_DATA = flags.DEFINE_string("data", "../shared/data", "Folder of the tasks' files.")
_TASKS = flags.DEFINE_list("tasks", list(TASKS), "What to fine-tune for.")
_SEEDS = flags.DEFINE_string("seeds", "0,1,2,3,4", "Two or more seeds, separated by commas.")
_EPOCHS = flags.DEFINE_integer("epochs", 3, "Times each example is seen.")
_LEARNING_RATE = flags.DEFINE_string("learning_rate", "2e-4", "Peak learning rate.")
_LOAD = flags.DEFINE_string("load", "", "What else the machine was doing, for the record.")


def main(_: list[str]) -> None:
    """Runs what is missing and writes the table."""
    weights = read_weights(_WORKDIR.value)
    pretraining = json.loads((Path(_WORKDIR.value) / SUMMARY).read_text())
    pretraining |= {name: getattr(weights.config, name) for name in ("num_layers", "hidden_size")}
    results: dict[str, Any] = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    before = results.setdefault("pretraining", pretraining)["params_sha256"]
    if before != pretraining["params_sha256"]:
        raise SystemExit(f"{RESULT} is of the weights {before}, {_WORKDIR.value} has others")
    tasks = results.setdefault("tasks", {})
    with tempfile.TemporaryDirectory() as folder:
        drawn = Path(folder) / "drawn"
        params = jax.tree.map(np.asarray, init_params(weights.config, 0))
        write_checkpoint(Weights("drawn", weights.config, params, weights.tokenizer), drawn)
        for name in _TASKS.value:
            if name in tasks:
                continue
            started = time.monotonic()
            starts = dict(zip(STARTS, (_WORKDIR.value, str(drawn)), strict=True))
            tasks[name] = {
                start: _fine_tune(name, path, Path(folder) / name / start)
                for start, path in starts.items()
            } | {
                "command": " ".join(_command(name, "START", "WORKDIR")[1:]),
                "seconds": round(time.monotonic() - started),
                "hardware": f"{os.cpu_count()} cores, {cpu_name()}",
                "load": _LOAD.value,
                "date": datetime.now(UTC).date().isoformat(),
                "versions": {"jax": version("jax"), "bertjax": version("bertjax")},
            }
            RESULT.write_text(json.dumps(results, indent=1) + "\n")
            TABLE.write_text(_table(results))
            print(_table(results), flush=True)


def _command(name: str, start: str, workdir: str) -> list[str]:
    task, train, evaluate = TASKS[name]
    return [
        *(sys.executable, "-m", "bertjax.finetune", f"--task={task}", f"--init_from={start}"),
        f"--train={Path(_DATA.value) / train}",
        f"--eval={Path(_DATA.value) / evaluate}",
        *(f"--workdir={workdir}", f"--seed={_SEEDS.value}", f"--epochs={_EPOCHS.value}"),
        *(
            f"--learning_rate={_LEARNING_RATE.value}",
            "--max_length=64",
            "--config.log.tensorboard=False",
        ),
    ]


def _fine_tune(name: str, start: str, workdir: Path) -> dict[str, Any]:
    """The scores of all seeds, the mean and the deviation."""
    subprocess.run(_command(name, start, str(workdir)), check=True)
    scores = json.loads((workdir / SCORES_TABLE).read_text())
    (setting,) = scores["settings"]
    return {scores["main_metric"]: setting["scores"][scores["main_metric"]]}


def _table(results: dict[str, Any]) -> str:
    """The page docs/results/pretraining_helps.md."""
    run = results["pretraining"]
    lines = [
        PAGE.format_map(run | {"epochs": _EPOCHS.value, "rate": _LEARNING_RATE.value}),
        "| task | metric | pre-trained | drawn | pre-trained, each seed | drawn, each seed |",
        "|---|---|---|---|---|---|",
    ]
    helped: dict[bool, list[str]] = {True: [], False: []}
    for name, entry in results["tasks"].items():
        ((metric, ours),) = entry["pretrained"].items()
        drawn = entry["drawn"][metric]
        cells = [f"{x['mean']:.4f} ± {x['deviation']:.4f}" for x in (ours, drawn)]
        cells += [", ".join(f"{v:.4f}" for v in x["values"]) for x in (ours, drawn)]
        lines.append(f"| {name} | {metric} | " + " | ".join(cells) + " |")
        helped[ours["mean"] > drawn["mean"]].append(name)
    better, worse = (", ".join(helped[which]) or "none" for which in (True, False))
    lines += ["", f"Higher from the pre-trained weights: {better}; from the drawn ones: {worse}."]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    app.run(main)
