"""Several fine-tuning runs beside each other: means and deviations over the seeds."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bertjax.data.atomic_files import write_file
from bertjax.interop.bertjax_checkpoint import SCORES

TABLE = "table.json"
_SETTING = ("learning_rate", "batch_size", "num_epochs")


def summarize(workdir: Path, folders: Sequence[Path]) -> str:
    """Writes WORKDIR/table.json with the scores of all runs and their means.

    Args:
      folders: of the runs, each with its scores.json.

    Returns:
      A table: one line a setting, the best mean of the main metric first.
    """
    runs = [
        {"folder": folder.name, **json.loads((folder / SCORES).read_text("utf-8"))}
        for folder in folders
    ]
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
    content = {"task": runs[0]["task"], "main_metric": metric, "settings": settings, "runs": runs}
    write_file(workdir / TABLE, (json.dumps(content, indent=1) + "\n").encode())
    return _table(settings, metric)


def _statistics(values: Sequence[float]) -> dict[str, Any]:
    """Mean, sample standard deviation (0 for one value) and the values."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return {"mean": statistics.fmean(values), "deviation": deviation, "values": list(values)}


def _table(settings: Sequence[dict[str, Any]], metric: str) -> str:
    names = [metric, *(name for name in settings[0]["scores"] if name != metric)]
    lines = [["learning rate", "batch", "epochs", "seeds", *names]]
    for setting in settings:
        cells = [f"{setting['learning_rate']:g}", str(setting["batch_size"])]
        cells += [f"{setting['num_epochs']:g}", str(len(setting["seeds"]))]
        for name in names:
            score = setting["scores"][name]
            cells.append(f"{score['mean']:.4f} ± {score['deviation']:.4f}")
        lines.append(cells)
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True))
        for line in lines
    )
