"""The table and the plot of docs/results/packing.md: two runs, with padded and with packed rows."""

from __future__ import annotations

import math
from pathlib import Path

from benchmarks.tables.values import lines

_RUNS = ("padded", "packed")
_PAIRS = 1_024  # eval.max_rows of docs/results/packing.py


def evaluations() -> str:
    """One line per run and evaluation."""
    table = [
        "| rows | step | held-out next-sentence accuracy | held-out next-sentence loss, nats | "
        "held-out MLM loss, nats |",
        "|---|---|---|---|---|",
    ]
    for name in _RUNS:
        for x in lines(f"packing_{name}_evals.jsonl"):
            figures = (x["heldout_nsp_accuracy"], x["heldout_nsp_loss"], x["heldout_mlm_loss"])
            cells = [name, str(x["step"]), *(f"{figure:.3f}" for figure in figures)]
            table.append("| " + " | ".join(cells) + " |")
    return "\n".join(table)


def standard_error() -> str:
    """Of the last accuracies: of a share of that many independent pairs."""
    share = lines("packing_packed_evals.jsonl")[-1]["heldout_nsp_accuracy"]
    return f"{math.sqrt(share * (1 - share) / _PAIRS):.3f}"


def draw(path: Path) -> None:
    """Draws accuracy and MLM loss over the steps."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.5), layout="constrained")
    for name in _RUNS:
        evals = lines(f"packing_{name}_evals.jsonl")
        steps = [line["step"] for line in evals]
        for plot, field, label in zip(
            axes,
            ("heldout_nsp_accuracy", "heldout_mlm_loss"),
            ("held-out next-sentence accuracy", "held-out MLM loss, nats"),
            strict=True,
        ):
            plot.plot(steps, [line[field] for line in evals], marker="o", label=name)
            plot.set(xlabel="step", ylabel=label)
            plot.legend()
    axes[0].axhline(0.65, color="grey", linestyle=":")
    figure.savefig(path, dpi=120)
    plt.close(figure)
