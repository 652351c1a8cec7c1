"""The tables of docs/results/pretraining_helps.md."""

from __future__ import annotations

import json
import math
import statistics

from benchmarks.harness import RESULTS

RESULT = RESULTS / "pretraining_helps.json"
ON_GPU = RESULTS / "pretraining_helps_gpu.json"
TASKS = ("wnut17", "stsb", "polarity", "cola")  # in the order of the tables
STARTS = ("pretrained", "drawn")
BEST = """
Each start at the better of its learning rates, chosen for both by the same scores:

| task | pre-trained | drawn | difference |
|---|---|---|---|"""


def scores() -> str:
    """One line per task and learning rate, then each start at the better of its rates."""
    results = json.loads(RESULT.read_text())
    lines = [
        "| task, metric | epochs | learning rate | pre-trained | drawn | difference | "
        "pre-trained, each seed | drawn, each seed |",
        "|---|---|---|---|---|---|---|---|",
    ]
    best = []
    for name in sorted(results["tasks"], key=TASKS.index):
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
        best_of = {start: means[at[start]][start] for start in STARTS}
        best.append(
            f"| {name} | {best_of['pretrained']:.3f} at {at['pretrained']} | "
            f"{best_of['drawn']:.3f} at {at['drawn']} | "
            f"{best_of['pretrained'] - best_of['drawn']:+.3f} |"
        )
    if any(len(rates) > 1 for rates in results["tasks"].values()):
        lines += [BEST, *best]
    return "\n".join(lines)


def on_gpu() -> str:
    """The runs that had ended when the time on the GPU was up, one line per task and rate."""
    results = json.loads(ON_GPU.read_text())
    lines = [
        "| task, metric | learning rate | pre-trained, each seed | drawn, each seed |",
        "|---|---|---|---|",
    ]
    for task in TASKS:
        rates = results["scores"][task]
        for rate in sorted(rates, key=float):
            cells = [f"{task}, {results['metrics'][task]}", rate]
            for start in STARTS:
                seeds = rates[rate].get(start, {})
                cells.append(", ".join(f"{score:.3f}" for score in seeds.values()))
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)
