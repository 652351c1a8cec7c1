"""Several fine-tuning runs beside each other: means and deviations over the seeds."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bertjax.checkpoints.loadable_workdir import SCORES
from bertjax.storage.atomic_files import write_file

TABLE = "table.json"
_SETTING = ("learning_rate", "batch_size", "num_epochs")


def summarize(workdir: Path, names: Sequence[str], diverged: Mapping[str, str]) -> str:
    """Writes WORKDIR/table.json with the scores of all runs and their means.

    Args:
      workdir: that has the runs' folders.
      names: of the runs' folders, each with its scores.json but for those that diverged.
      diverged: what became of these, which table.json names.

    Returns:
      A table: one line a setting, the best mean of the main metric first. Without runs that
      finished there is none, and no table.json.
    """
    runs = [
        {"folder": name, **json.loads((workdir / name / SCORES).read_text("utf-8"))}
        for name in names
        if name not in diverged
    ]
    if not runs:
        (workdir / TABLE).unlink(missing_ok=True)
        return "no run has finished"
    metric = runs[0]["main_metric"]
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for run in runs:
        groups.setdefault(tuple(run[name] for name in _SETTING), []).append(run)
    settings = [
        {
            **dict(zip(_SETTING, setting, strict=True)),
            "seeds": [run["seed"] for run in members],
            "scores": {
                name: _statistics([run["scores"][name] for run in members])
                for name in members[0]["scores"]
            },
        }
        for setting, members in groups.items()
    ]
    settings.sort(key=lambda setting: -setting["scores"][metric]["mean"])
    content = {
        "task": runs[0]["task"],
        "main_metric": metric,
        "settings": settings,
        "runs": runs,
        "diverged": dict(diverged),
    }
    write_file(workdir / TABLE, (json.dumps(content, indent=1) + "\n").encode())
    return _table(settings, metric)


def in_full(number: float) -> str:
    """A number as short as can be: 2e-05, 3, 0.00010001."""
    short = f"{number:g}"
    return short if float(short) == number else repr(number)


def _statistics(values: Sequence[float]) -> dict[str, Any]:
    """Mean, sample standard deviation (0 for one value) and the values."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return {"mean": statistics.fmean(values), "deviation": deviation, "values": list(values)}


def _table(settings: Sequence[dict[str, Any]], metric: str) -> str:
    names = [metric, *(name for name in settings[0]["scores"] if name != metric)]
    lines = [["learning rate", "batch", "epochs", "seeds", *names]]
    for setting in settings:
        cells = [in_full(setting["learning_rate"]), str(setting["batch_size"])]
        cells += [in_full(setting["num_epochs"]), str(len(setting["seeds"]))]
        for name in names:
            score = setting["scores"][name]
            cells.append(f"{score['mean']:.4f} ± {score['deviation']:.4f}")
        lines.append(cells)
    return aligned(lines)


def aligned(lines: Sequence[Sequence[str]]) -> str:
    """Lines of cells as a table, each column flush right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True))
        for line in lines
    )
