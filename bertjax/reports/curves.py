"""curves.png: the curves of a run, from metrics.jsonl and evals.jsonl."""

from __future__ import annotations

import datetime
import itertools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bertjax.objectives.objective import Metric
from bertjax.reports.pictures import write_picture
from bertjax.reports.tracker import EVALS, METRICS, SUMMARY, read_lines

CURVES = "curves.png"

_TRAIN, _HELDOUT, _BASELINE = "#4477aa", "#ee6677", "#228833"  # distinguishable by the colour-blind
_IN_TITLE: dict[str, Callable[[Any], str]] = {
    "parameters": "{:,} parameters".format,
    "steps": "{:,} steps".format,
    "hardware": str,
    "seconds": lambda seconds: str(datetime.timedelta(seconds=round(seconds))),
}
_SMOOTHED_SHARE = 0.02  # of the logged steps, in the running mean over the training curve


def plot_curves(workdir: Path, metrics: Sequence[Metric]) -> Path:
    """Plots the metrics that have a title, at most three, and the learning rate over the steps.

    Training values are pale, with their running mean on top; held-out values have markers. A dashed
    line is a baseline, and a dotted line is the start of a phase. The title has parameters, steps,
    hardware and time from summary.json, if that exists.

    Args:
      workdir: folder of the run, which may still be running.
      metrics: of the run.

    Returns:
      The path of the picture, WORKDIR/curves.png.
    """
    from matplotlib.figure import Figure  # slow to import; a Figure has no global state

    steps, evals = read_lines(workdir / METRICS), read_lines(workdir / EVALS)
    path = workdir / SUMMARY
    summary = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    known = {**summary, **(evals[-1] if evals else {})}
    panels = [metric for metric in metrics if metric.title]
    figure = Figure(figsize=(11, 7.5), layout="constrained")
    figure.suptitle(_title(workdir.resolve().name, summary), fontsize=12)
    places = figure.subplots(2, 2, sharex=True).ravel().tolist()
    for axes in places[len(panels) + 1 :]:
        axes.remove()
    for axes, panel in zip(places, panels, strict=False):
        baseline = known.get(f"heldout_{panel.baseline}")
        _draw(axes, steps, evals, panel.name, panel.baseline_label, baseline)
        axes.set(title=panel.title, ylabel=panel.unit)
    rate = places[len(panels)]
    rate.plot(*_series(steps, "learning_rate"), color=_TRAIN)
    rate.set(title="Learning rate", ylabel="learning rate")
    for lowest in places[len(panels) - 1 : len(panels) + 1]:  # of each column
        lowest.tick_params(labelbottom=True)
        lowest.set_xlabel("step")
    rate.yaxis.set_major_formatter(lambda value, _: f"{value:.2e}")
    for axes in figure.axes:
        axes.set_title(axes.get_title(), fontsize=11, fontweight="bold")
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        for begin, phase in _phase_starts(steps):
            axes.axvline(begin, color="gray", linestyle=":", linewidth=1)
            if axes is rate:
                top = axes.get_xaxis_transform()
                axes.text(begin, 1, f" phase {phase}", transform=top, va="top", fontsize=9)
    return write_picture(figure, workdir / CURVES)


def _draw(
    axes: Any,
    steps: Sequence[dict[str, Any]],
    evals: Sequence[dict[str, Any]],
    name: str,
    baseline_label: str = "",
    baseline: float | None = None,
) -> None:
    trained, heldout = _series(steps, name), _series(evals, f"heldout_{name}")
    if not len(trained[0]) and not len(heldout[0]):
        axes.text(0.5, 0.5, "not measured", transform=axes.transAxes, ha="center", va="center")
        axes.set_yticks([])
        return
    if len(trained[0]):
        axes.plot(*trained, color=_TRAIN, alpha=0.25, linewidth=0.8)
        axes.plot(*_running_mean(*trained), color=_TRAIN, label="training")
    if len(heldout[0]):
        x, y = heldout
        marker = "o" if len(x) <= 50 else ""
        axes.plot(x, y, color=_HELDOUT, marker=marker, markersize=3.5, label="held out")
    if baseline is not None:
        label = f"{baseline_label} ({baseline:.3g})"
        axes.axhline(baseline, color=_BASELINE, linestyle="--", linewidth=1.2, label=label)
    axes.legend(frameon=False, fontsize=9)


def _series(records: Sequence[dict[str, Any]], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values [n] of the records that have a value."""
    points = [(r["step"], r[name]) for r in records if r.get(name) is not None]
    x, y = np.array(points, dtype=float).reshape(-1, 2).T
    return x, y


def _running_mean(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means over windows of consecutive points, each placed in the middle of its window."""
    width = max(1, round(_SMOOTHED_SHARE * len(x)))
    window = np.full(width, 1 / width)
    return np.convolve(x, window, "valid"), np.convolve(y, window, "valid")


def _phase_starts(steps: Sequence[dict[str, Any]]) -> list[tuple[int, int]]:
    """(first logged step, phase) of each phase but the first."""
    return [
        (after["step"], after["phase"])
        for before, after in itertools.pairwise(steps)
        if before["phase"] != after["phase"]
    ]


def _title(run: str, summary: dict[str, Any]) -> str:
    found = [in_words(summary[name]) for name, in_words in _IN_TITLE.items() if name in summary]
    return "  ·  ".join([run, *found])
