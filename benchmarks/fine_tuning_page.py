"""Writes docs/results/fine_tuning.md from what benchmarks.fine_tuning has measured.

python -m benchmarks.fine_tuning_page
"""

from __future__ import annotations

import json
import math
import statistics
from pathlib import Path
from typing import Any

RESULT = Path(__file__).parent / "results" / "fine_tuning.json"
PAGE = Path(__file__).parent.parent / "docs" / "results" / "fine_tuning.md"
WHO = ("bertjax", "transformers")
NAMES = {
    "polarity": "polarity, accuracy",
    "cola": "CoLA, Matthews",
    "stsb": "STS-B, Spearman",
    "wnut17": "WNUT-17, F1 of entities",
    "squad": "SQuAD v1.1, F1",
}
INTRODUCTION = """\
# Fine-tuning beside transformers

Written by `python -m benchmarks.fine_tuning_page` from
[fine_tuning.json](../../benchmarks/results/fine_tuning.json), which has hardware, versions, load
and date of every run. `python -m benchmarks.fine_tuning --weights=minilm --task=TASK --epochs=N
--batch_size=B` makes the runs: for each seed both programs fine-tune all-MiniLM-L6-v2 (6 layers,
384 wide), on one core of two and in float32 unless said. Weights, the new layer's first numbers,
rows and their order, learning rates (5e-5 at the peak, a tenth of the steps to get there, linear to
0), weight decay, clipping and the moments of evaluation, once an epoch, the best counts, are the
same; the dropout masks are not. So two runs of a pair differ as two seeds of one program do, and
their mean difference says whether one learns better. Without dropout (`--nodropout`) only rounding
is left between them. Both run in the plain way: no compilation by torch, no
padding beyond the longest example of the task.
SQuAD with all of its training questions ran on a GPU, ours alone: the time of the machine was up
before the peer had ended. Its weights had been rounded to float16 to be carried there.

Scores are in points (hundredths) on the development files, WNUT-17 on its test file. ± is the
deviation over the seeds; of the difference, the standard error of its mean. A Matthews correlation
of 0 is that of one class for all.
"""


def main() -> None:
    """Writes the page."""
    results = json.loads(RESULT.read_text())
    keys = sorted(results, key=lambda key: (list(NAMES).index(results[key]["task"]), key))
    entries = [results[key] for key in keys]
    parts = [INTRODUCTION, _summary(entries), *map(_seeds, entries)]
    PAGE.write_text("\n".join(parts))
    print(parts[1])


def _summary(entries: list[dict[str, Any]]) -> str:
    """A line a task, over the seeds that both have run."""
    lines = [
        "| task | epochs | batch | length | seeds | bertjax | transformers | difference | "
        "CPU time of transformers / bertjax |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for entry in entries:
        pairs = [run for run in entry["runs"].values() if len(run) == len(WHO)]
        if not pairs:
            continue
        ours, theirs = ([_points(entry, run[who]) for run in pairs] for who in WHO)
        differences = [a - b for a, b in zip(ours, theirs, strict=True)]
        seconds, their_seconds = (sum(run[who]["cpu_seconds"] for run in pairs) for who in WHO)
        cells = [
            _name(entry),
            str(entry["epochs"]),
            str(entry["batch_size"]),
            str(entry["max_length"]),
            str(len(pairs)),
            _mean(ours, 1),
            _mean(theirs, 1),
            _mean(differences, math.sqrt(len(pairs)), "+"),
            f"{their_seconds / seconds:.2f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _seeds(entry: dict[str, Any]) -> str:
    """Every seed of one task."""
    epochs = "1 epoch" if entry["epochs"] == 1 else f"{entry['epochs']} epochs"
    lines = [
        f"## {_name(entry)}, {epochs} of batches of {entry['batch_size']}",
        "",
        "| seed | bertjax | transformers | difference | seconds (of the CPU), bertjax | "
        "seconds (of the CPU), transformers | hardware |",
        "|---|---|---|---|---|---|---|",
    ]
    for seed, run in sorted(entry["runs"].items(), key=lambda item: int(item[0])):
        points = {who: _points(entry, run[who]) for who in WHO if who in run}
        scores = [f"{points[who]:.2f}{_exact(run[who])}" if who in run else "" for who in WHO]
        both = len(points) == len(WHO)
        difference = f"{points['bertjax'] - points['transformers']:+.2f}" if both else ""
        times = [
            f"{run[who]['seconds']:.0f} ({run[who]['cpu_seconds']:.0f})" if who in run else ""
            for who in WHO
        ]
        places = {
            f"{result['cores']} core, {result['hardware']}"
            if "cores" in result  # of earlier results
            else result["hardware"]
            for result in run.values()
        }
        cells = [seed, *scores, difference, *times, " / ".join(sorted(places))]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _name(entry: dict[str, Any]) -> str:
    share = entry["share_of_training_examples"]
    name = NAMES[entry["task"]] + (f", {share:.0%} of the questions" if share < 1 else "")
    if entry.get("dtype", "float32") != "float32":
        name += f", {entry['dtype']}"
    return name if entry["dropout"] else name + ", no dropout"


def _points(entry: dict[str, Any], result: dict[str, Any]) -> float:
    factor = 1 if entry["task"] == "squad" else 100  # SQuAD's own scores are per cent
    return factor * result["scores"][entry["main_metric"]]


def _exact(result: dict[str, Any]) -> str:
    exact = result["scores"].get("exact_match")
    return "" if exact is None else f" (exact match {exact:.2f})"


def _mean(values: list[float], divisor: float, sign: str = "") -> str:
    mean = f"{statistics.fmean(values):{sign}.2f}"
    return f"{mean} ± {statistics.stdev(values) / divisor:.2f}" if len(values) > 1 else mean


if __name__ == "__main__":
    main()
