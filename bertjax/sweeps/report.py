"""What a sweep reports: sweep.json, and a table of means and intervals."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bertjax.fine_tuning.table import aligned
from bertjax.storage.atomic_files import write_file

SWEEP = "sweep.json"
FORMAT = 1
_CONFIDENCE = 0.95
# What says of which model a record is.
MODEL = ("group", "run", "model", "step", "predicted_tokens", "seconds")
PROGRESS = ("step", "predicted_tokens", "seconds")  # of a pre-training


def summarize(runs: Sequence[Mapping[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Means of the main metric.

    Args:
      runs: those of sweep.json; runs without a score are left out.

    Returns:
      models: a record for each task and model, over its seeds. points: one for each task, group and
        step, over the seeds if the group has one run at that step, else over its runs: then the
        values are the means of each run's seeds, because seeds that start from the same
        pre-training are not independent of each other.
    """
    scored = [run for run in runs if run["score"] is not None]
    models = []
    for members in _grouped(scored, ("task", "model")):
        values = [run["score"] for run in members]
        first = {name: members[0][name] for name in ("task", *MODEL, "main_metric")}
        models.append({**first, "over": "seeds", **interval(values)})
    points = []
    for members in _grouped(models, ("task", "group", "step")):
        point = {name: members[0][name] for name in ("task", "group", "main_metric")}
        if len(members) == 1:
            statistic = {name: members[0][name] for name in ("over", *_STATISTIC)}
        else:
            statistic = {"over": "runs", **interval([member["mean"] for member in members])}
        known = {name: [member[name] for member in members] for name in PROGRESS}
        middle = {
            name: None if None in values else statistics.fmean(values)
            for name, values in known.items()
        }
        points.append({**point, **middle, "step": known["step"][0], **statistic})
    return {"models": models, "points": points}


_STATISTIC = ("n", "mean", "deviation", "interval", "values")


def interval(values: Sequence[float]) -> dict[str, Any]:
    """Mean, sample standard deviation and the 95 % interval of the mean.

    The interval is mean -+ t * deviation / sqrt(n), t the 0.975 quantile of Student's distribution
    with n - 1 degrees of freedom. It and the deviation are None for one value.
    """
    n, mean = len(values), statistics.fmean(values)
    deviation = limits = None
    if n > 1:
        from scipy.stats import t  # slow to import

        deviation = statistics.stdev(values)
        half = float(t.ppf((1 + _CONFIDENCE) / 2, n - 1)) * deviation / math.sqrt(n)
        limits = [mean - half, mean + half]
    found = (n, mean, deviation, limits, list(values))
    return dict(zip(_STATISTIC, found, strict=True))


def write_report(workdir: Path, content: Mapping[str, Any]) -> None:
    """Writes sweep.json, atomically."""
    text = json.dumps({"format": FORMAT, **content}, indent=1, ensure_ascii=False) + "\n"
    write_file(workdir / SWEEP, text.encode("utf-8", "backslashreplace"))


def table(content: Mapping[str, Any]) -> str:
    """The means of each task and model, as text."""
    blocks = []
    for members in _grouped(content["models"], ("task",)):
        task, metric = members[0]["task"], members[0]["main_metric"]
        lines = [["model", "step", "predicted tokens", "seconds", "seeds", metric, "95 % interval"]]
        for model in members:
            lines.append(
                [
                    model["group"],
                    *(_count(model[name]) for name in PROGRESS),
                    str(model["n"]),
                    _mean(model),
                    _limits(model),
                ]
            )
        blocks.append(f"{task}\n{aligned(lines)}")
    return "\n\n".join(blocks) or "no run has finished"


def _count(number: float | None) -> str:
    return "?" if number is None else f"{number:,.0f}"


def _mean(model: Mapping[str, Any]) -> str:
    deviation = model["deviation"]
    return f"{model['mean']:.4f}" + (f" ± {deviation:.4f}" if deviation is not None else "")


def _limits(model: Mapping[str, Any]) -> str:
    limits = model["interval"]
    return f"{limits[0]:.4f} to {limits[1]:.4f}" if limits else ""


def _grouped(
    records: Iterable[Mapping[str, Any]], names: Sequence[str]
) -> Iterable[list[Mapping[str, Any]]]:
    """Records that have the same values under the names, in the order of their first."""
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for record in records:
        groups.setdefault(tuple(record[name] for name in names), []).append(record)
    return groups.values()
