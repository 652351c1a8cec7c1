"""Makes README.md and its plots from results/*.json: curves, the crossing, and what seeds can show.

`text.md` has the words, with a line {{NAME}} for each block that is made here. No result is written
by hand.
"""

from __future__ import annotations

import functools
import io
import itertools
import json
import math
import re
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bertjax.storage.atomic_files import write_file
from bertjax.sweeps.report import interval
from experiments.direction.arms import ARMS, SIZES, Size

FOLDER = Path(__file__).parent
RESULTS = FOLDER / "results"
# Deviations between seeds that were known before: docs/results/pretraining_helps.md.
KNOWN = FOLDER.parent.parent / "benchmarks" / "results" / "pretraining_helps.json"
AXES = {
    "step": "steps",
    "predicted_tokens": "predicted tokens",
    "seconds": "seconds of training",
}
METRICS = {"blimp": "BLiMP accuracy", "cola": "CoLA, Matthews", "stsb": "STS-B, Spearman"}
_COLOURS = dict(zip(ARMS, ("#4477aa", "#66ccee", "#ee6677", "#228833"), strict=True))


def write(results: Path = RESULTS, folder: Path = FOLDER) -> None:
    """Writes README.md, and a plot for each size that has results.

    Args:
      results: folder of SIZE.json.
      folder: of README.md and the plots.
    """
    found = {
        name: json.loads((results / f"{name}.json").read_text("utf-8"))
        for name in SIZES
        if (results / f"{name}.json").exists()
    }
    blocks: dict[str, Callable[[], str]] = {"before": before}
    for size in ("cpu", "gpu"):
        contents = found.get(size, {})
        blocks[f"plot_{size}"] = functools.partial(_picture, size, contents)
        for kind, make in (
            ("ends", ends),
            ("phenomena", phenomena),
            ("crossings", crossings),
            ("cost", cost),
        ):
            blocks[f"{kind}_{size}"] = functools.partial(make, SIZES[size], contents)
    text = (FOLDER / "text.md").read_text("utf-8")
    page = re.sub(r"^\{\{(\w+)\}\}$", lambda match: blocks[match[1]](), text, flags=re.MULTILINE)
    for size, contents in found.items():
        if points(contents):
            write_file(folder / f"{size}.png", plot(contents))
    write_file(folder / "README.md", page.encode())


def before() -> str:
    """The smallest difference between two arms that the seeds can show, by what was known before.

    Two means of n seeds differ significantly (two-sided, 5 %) if their difference exceeds
    t * s * sqrt(2 / n), s the deviation between seeds and t the 0.975 quantile of Student's
    distribution with 2 n - 2 degrees of freedom.
    """
    known = json.loads(KNOWN.read_text("utf-8"))["tasks"]
    n = len(SIZES["cpu"].seeds)
    lines = []
    for task in ("cola", "stsb"):
        (rate,) = itertools.islice(known[task], 1)
        ((_, scores),) = known[task][rate]["pretrained"].items()
        values = scores["values"]
        deviation = statistics.stdev(values)
        lines.append(
            [METRICS[task], f"{deviation:.3f}", str(len(values)), f"{_smallest(deviation, n):.2f}"]
        )
    return _table(
        ["score", "deviation between seeds, known before", "of seeds", f"smallest difference, {n}"],
        lines,
    )


def _smallest(deviation: float, n: int) -> float:
    from scipy.stats import t  # slow to import

    return float(t.ppf(0.975, 2 * n - 2)) * deviation * math.sqrt(2 / n)


def points(contents: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The scores of all checkpoints: metric, arm, seed, step, tokens, seconds, value."""
    places = {
        (run["arm"], run["seed"], at["step"]): at | {"seconds": seconds(contents, run["arm"], at)}
        for run in contents.get("train", {}).values()
        for at in run["checkpoints"]
    }
    scores = [
        *(("blimp", record, record["overall"]) for record in contents.get("blimp", {}).values()),
        *(
            (record["task"], record, record["score"])
            for record in contents.get("tasks", {}).values()
        ),
    ]
    found = []
    for metric, record, value in scores:
        key = record["arm"], record["seed"], record["step"]
        at = places.get(key, {"step": record["step"], "predicted_tokens": None, "seconds": None})
        found.append(
            {"metric": metric, "arm": record["arm"], "seed": record["seed"], "value": value, **at}
        )
    return sorted(found, key=lambda x: (x["metric"], list(ARMS).index(x["arm"]), x["step"]))


def seconds(contents: Mapping[str, Any], arm: str, checkpoint: Mapping[str, Any]) -> float:
    """Seconds of training up to a checkpoint, if nothing else had run on the machine.

    The steps times the time of a step, where the part `times` has measured it, else as logged.
    """
    if arm not in contents.get("times", {}):
        return float(checkpoint["seconds"])
    begun = contents["times"][arm]["parts"]
    ends = [*(part["first_step"] for part in begun[1:]), math.inf]
    return float(
        sum(
            part["median"] * max(0, min(checkpoint["step"], end) - part["first_step"])
            for part, end in zip(begun, ends, strict=True)
        )
    )


def ends(size: Size, contents: Mapping[str, Any]) -> str:
    """A table of the scores at the last step: means over the seeds with 95 % intervals."""
    chosen = [x for x in points(contents) if x["step"] == size.steps]
    metrics = [name for name in METRICS if any(x["metric"] == name for x in chosen)]
    if not metrics:
        return "Not run yet."
    lines = []
    for arm in ARMS:
        cells = [arm]
        for metric in metrics:
            values = [x["value"] for x in chosen if (x["metric"], x["arm"]) == (metric, arm)]
            cells.append(_mean(values))
        if any(cells[1:]):
            lines.append(cells)
    return _table(["arm", *(METRICS[name] for name in metrics)], lines)


def phenomena(size: Size, contents: Mapping[str, Any]) -> str:
    """BLiMP at the last step, by phenomenon: means over the seeds."""
    last = [x for x in contents.get("blimp", {}).values() if x["step"] == size.steps]
    arms = [arm for arm in ARMS if any(x["arm"] == arm for x in last)]
    if not arms:
        return "Not run yet."
    names = sorted({name for x in last for name in x["phenomena"]})
    lines = [
        [name]
        + [f"{statistics.fmean(x['phenomena'][name] for x in last if x['arm'] == arm):.3f}"
           for arm in arms]
        for name in names
    ]  # fmt: skip
    return _table(["phenomenon", *arms], lines)


def crossings(size: Size, contents: Mapping[str, Any]) -> str:
    """Where a masked arm overtakes left_to_right, for each pair of their seeds."""
    lines = []
    for metric, arm in itertools.product(METRICS, ("masked_15", "masked_40")):
        curves = _curves(contents, metric)
        pairs = itertools.product(
            (seed for name, seed in curves if name == arm),
            (seed for name, seed in curves if name == "left_to_right"),
        )
        steps = [
            overtakes(curves[arm, ours], curves["left_to_right", theirs]) for ours, theirs in pairs
        ]
        if steps:
            lines.append([METRICS[metric], arm, ", ".join(map(_said, steps))])
    if not lines:
        return "Not run yet."
    return _table(["score", "arm", "step, for each pair of seeds"], lines)


def _curves(
    contents: Mapping[str, Any], metric: str
) -> dict[tuple[str, int], list[tuple[float, float]]]:
    curves: dict[tuple[str, int], list[tuple[float, float]]] = {}
    for point in points(contents):
        if point["metric"] == metric:
            curves.setdefault((point["arm"], point["seed"]), []).append(
                (point["step"], point["value"])
            )
    return curves


def overtakes(
    ours: Sequence[tuple[float, float]], theirs: Sequence[tuple[float, float]]
) -> float | None:
    """The step from which on the first curve is not below the second, at all later checkpoints.

    Between checkpoints the curves are lines.

    Args:
      ours: (step, score), ascending.
      theirs: likewise; only steps that both have are compared.

    Returns:
      The step; that of the first checkpoint if the first curve is never below; None if it is below
      at the last one.
    """
    other = dict(theirs)
    gaps = [(step, value - other[step]) for step, value in ours if step in other]
    if not gaps or gaps[-1][1] < 0:
        return None
    crossing = gaps[0][0]
    for (step, gap), (later, after) in itertools.pairwise(gaps):
        if gap < 0 <= after:
            crossing = step + (later - step) * gap / (gap - after)
    return crossing


def _said(step: float | None) -> str:
    return "not within the run" if step is None else f"{step:,.0f}"


def cost(size: Size, contents: Mapping[str, Any]) -> str:
    """Predicted tokens and seconds of each arm, and the held-out loss of its own objective."""
    runs = list(contents.get("train", {}).values())
    lines = []
    for arm in ARMS:
        own = [run for run in runs if run["arm"] == arm]
        if not own:
            continue
        last = [run["checkpoints"][-1] for run in own]
        losses = [
            next(run["evaluations"][-1][name] for name in ("heldout_lm_loss", "heldout_mlm_loss")
                 if name in run["evaluations"][-1])
            for run in own
        ]  # fmt: skip
        lines.append(
            [
                arm,
                ", ".join(str(run["seed"]) for run in own),
                f"{statistics.fmean(at['predicted_tokens'] for at in last):,.0f}",
                f"{statistics.fmean(seconds(contents, arm, at) for at in last):,.0f}",
                ", ".join(f"{loss:.3f}" for loss in losses),
            ]
        )
    if not lines:
        return "Not run yet."
    head = ["arm", "seeds", "predicted tokens", "seconds", "held-out loss of its own objective"]
    return _table(head, lines)


def plot(contents: Mapping[str, Any]) -> bytes:
    """The picture of `draw`, PNG."""
    target = io.BytesIO()
    draw(contents).savefig(target, format="png", dpi=100)
    return target.getvalue()


def draw(contents: Mapping[str, Any]) -> Any:
    """A row of panels for each metric: against steps, predicted tokens and seconds.

    Bars are 95 % intervals of the means over the seeds; dots are the seeds.

    Returns:
      A matplotlib Figure.
    """
    from matplotlib.figure import Figure  # slow to import; a Figure has no global state

    found = points(contents)
    metrics = [name for name in METRICS if any(x["metric"] == name for x in found)]
    figure = Figure(figsize=(13, 3.4 * len(metrics) + 0.6), layout="constrained")
    panels = figure.subplots(len(metrics), len(AXES), squeeze=False)
    for row, metric in zip(panels, metrics, strict=True):
        for panel, (axis, label) in zip(row, AXES.items(), strict=True):
            for arm in ARMS:
                own = [x for x in found if (x["metric"], x["arm"]) == (metric, arm)]
                _line(panel, [x for x in own if x[axis] is not None], axis, arm)
            # The dots decide: an interval of two seeds may be wider than the panel.
            values = [x["value"] for x in found if x["metric"] == metric]
            margin = 0.05 * (max(values) - min(values)) or 0.01
            panel.set_ylim(min(values) - margin, max(values) + margin)
            panel.set_xlabel(label)
            panel.set_ylabel(METRICS[metric])
            panel.grid(alpha=0.3)
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(ARMS), frameon=False)
    return figure


def _line(panel: Any, own: Sequence[Mapping[str, Any]], axis: str, arm: str) -> None:
    if not own:
        return
    steps = sorted({x["step"] for x in own})
    members = [[x for x in own if x["step"] == step] for step in steps]
    middle = [statistics.fmean(x[axis] for x in some) for some in members]
    found = [interval([x["value"] for x in some]) for some in members]
    means = [one["mean"] for one in found]
    panel.plot(middle, means, "o-", color=_COLOURS[arm], label=arm, markersize=4)
    panel.plot(
        [x[axis] for x in own], [x["value"] for x in own], ".", color=_COLOURS[arm], alpha=0.6
    )
    bars = [(at, one["interval"]) for at, one in zip(middle, found, strict=True) if one["interval"]]
    panel.vlines(
        [at for at, _ in bars],
        [low for _, (low, _) in bars],
        [high for _, (_, high) in bars],
        color=_COLOURS[arm],
        alpha=0.3,
    )


def _picture(size: str, contents: Mapping[str, Any]) -> str:
    if not points(contents):
        return "No plot yet."
    return f"![scores against steps, predicted tokens and seconds]({size}.png)"


def _mean(values: Sequence[float]) -> str:
    if not values:
        return ""
    found = interval(values)
    limits = found["interval"]
    said = f" ({limits[0]:.3f} to {limits[1]:.3f})" if limits else ""
    return f"{found['mean']:.3f}{said}"


def _table(head: Iterable[str], lines: Iterable[Iterable[str]]) -> str:
    rows = [list(head), *map(list, lines)]
    rows.insert(1, ["---"] * len(rows[0]))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
