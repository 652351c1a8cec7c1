"""The tables of docs/results/fine_tuning.md."""

from __future__ import annotations

import json
import math
import statistics
from typing import Any

from benchmarks.harness import RESULTS, circumstances

RESULT = RESULTS / "fine_tuning.json"
WHO = ("bertjax", "transformers")
NAMES = {
    "polarity": "polarity, accuracy",
    "cola": "CoLA, Matthews",
    "stsb": "STS-B, Spearman",
    "wnut17": "WNUT-17, F1 of entities",
    "squad": "SQuAD v1.1, F1",
}


def entries() -> list[dict[str, Any]]:
    """The settings that were run, in the order of NAMES."""
    results = json.loads(RESULT.read_text())
    keys = sorted(results, key=lambda key: (list(NAMES).index(results[key]["task"]), key))
    return [results[key] for key in keys]


def summary() -> str:
    """One line per setting, over the seeds that both have run."""
    lines = [
        "| task | epochs | batch | length | seeds | bertjax | transformers | difference | "
        "CPU time of transformers / bertjax |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for entry in entries():
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
    return "\n".join(lines)


def seeds() -> str:
    """One section per setting, one line per seed."""
    return "\n\n".join(map(_seeds, entries()))


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
            if "cores" in result  # of older results
            else circumstances(result)["device"]
            for result in run.values()
        }
        cells = [seed, *scores, difference, *times, " / ".join(sorted(places))]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


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
