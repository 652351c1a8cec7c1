"""sweep.png: the scores of a sweep against steps, predicted tokens and seconds of pre-training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bertjax.reports.pictures import write_picture
from bertjax.sweeps.report import PROGRESS

PLOT = "sweep.png"
# Distinguishable by the colour-blind (Paul Tol's bright scheme); markers tell groups apart in grey.
_COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#bbbbbb")
_MARKERS = "osD^vP*X"
_AXES = dict(
    zip(
        PROGRESS,
        ("pre-training steps", "predicted tokens", "seconds of pre-training"),
        strict=True,
    )
)


def plot_sweep(workdir: Path, content: Mapping[str, Any]) -> Path:
    """Draws a row of three panels for each task, and a line for each group of models.

    Bars are the 95 % intervals of the means, rings the values behind them. The axis of scores
    follows the values, so an interval of few seeds may leave the panel. Over the steps, groups are
    moved sideways a little, so that their bars do not hide each other. A model whose pre-training
    is not known is a dashed line across the panels.

    Args:
      workdir: of the sweep.
      content: that of sweep.json, with at least one finished run.

    Returns:
      The path of the picture, WORKDIR/sweep.png.
    """
    from matplotlib.figure import Figure  # slow to import; a Figure has no global state

    points = content["points"]
    tasks = list(dict.fromkeys(point["task"] for point in points))
    groups = list(dict.fromkeys(point["group"] for point in points))
    figure = Figure(figsize=(13, 3.4 * len(tasks) + 0.9), layout="constrained")
    figure.suptitle(
        f"{workdir.resolve().name}: scores after fine-tuning\n"
        "lines: means; bars: their 95 % intervals, cut where they leave the panel; rings: values",
        fontsize=11,
    )
    rows = figure.subplots(len(tasks), len(_AXES), squeeze=False, sharey="row")
    for row, task in zip(rows, tasks, strict=True):
        here = [point for point in points if point["task"] == task]
        for axes, (name, label) in zip(row, _AXES.items(), strict=True):
            places = [point[name] for point in here if point[name] is not None]
            width = 0.012 * (max(places) - min(places)) if name == "step" and places else 0
            for number, group in enumerate(groups):
                aside = width * (number - (len(groups) - 1) / 2)
                _draw(axes, [p for p in here if p["group"] == group], name, aside, group, number)
            axes.set_xlabel(label)
            axes.set_title(task, fontsize=11, fontweight="bold")
            axes.xaxis.set_major_formatter(_short)
            axes.grid(alpha=0.25)
            axes.spines[["top", "right"]].set_visible(False)
            if not any(point[name] is not None for point in here):
                axes.set_xticks([])
                axes.text(0.5, 0.02, "not known", transform=axes.transAxes, ha="center")
        values = [value for point in here for value in point["values"]]
        margin = 0.1 * (max(values) - min(values)) or 0.05
        row[0].set_ylim(min(values) - margin, max(values) + margin)
        row[0].set_ylabel(here[0]["main_metric"].replace("_", " "))
    handles, labels = rows[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    return write_picture(figure, workdir / PLOT)


def _draw(
    axes: Any,
    points: Sequence[Mapping[str, Any]],
    name: str,
    aside: float,
    group: str,
    number: int,
) -> None:
    """One group in one panel."""
    colour = _COLOURS[number % len(_COLOURS)]
    known = sorted((p for p in points if p[name] is not None), key=lambda p: p[name])
    if known:
        x, y = [p[name] + aside for p in known], [p["mean"] for p in known]
        below = [p["mean"] - (p["interval"] or [p["mean"]])[0] for p in known]
        _, _, (bars,) = axes.errorbar(
            x,
            y,
            yerr=below,  # intervals are symmetric
            color=colour,
            marker=_MARKERS[number % len(_MARKERS)],
            markersize=5,
            linewidth=1.5,
            elinewidth=4,
            label=group,
        )
        bars.set_alpha(0.25)
        for place, point in zip(x, known, strict=True):
            rings = [place] * point["n"]
            axes.plot(rings, point["values"], "o", color=colour, fillstyle="none", markersize=4)
    for point in points:
        if point["step"] is None:
            axes.axhline(point["mean"], color=colour, linestyle="--", linewidth=1.2, label=group)


def _short(value: float, _: Any = None) -> str:
    """A number of an axis: 1,500, 20k, 3M."""
    for unit, name in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= unit:
            return f"{value / (1e3 if name == 'k' else unit):g}{name}"
    return f"{value:,g}"
