"""The table and the plot of docs/results/train_step.md."""

from __future__ import annotations

from pathlib import Path

from benchmarks.harness import read_contents
from benchmarks.train_step import HEADER, RESULT, lines, queued, with_shares_and_ratios


def devices() -> str:
    """One section per device."""
    results = read_contents(RESULT)
    sections = []
    for device in dict.fromkeys(result["device"] for result in results):
        chosen = [result for result in results if result["device"] == device]
        text = [f"## {device}", "", "| " + " | ".join(HEADER) + " |", "|---" * len(HEADER) + "|"]
        text += ["| " + " | ".join(row) + " |" for row in lines(chosen)]
        if not all(map(queued, chosen)):
            text += [
                "",
                "\\* The products beside these were waited for one by one. That makes them slower "
                "and the share larger than beside queued products. These results are older than "
                "the contender with masked positions. The shares of transformers were stored by "
                "the operations of bertjax; here they are computed by its own.",
            ]
        sections.append("\n".join(text))
    return "\n\n".join(sections)


def draw(path: Path) -> None:
    """Draws the share of each contender."""
    import matplotlib.pyplot as plt

    labels, shares = [], []
    for result in map(with_shares_and_ratios, read_contents(RESULT)):
        for row, run in zip(lines([result]), result["runs"].values(), strict=True):
            labels.append(f"{row[0]} on {result['device']}\n{row[1]}")
            shares.append(run["share_of_measured_matmul"])
    colors = ["tab:blue" if "bertjax" in label else "tab:gray" for label in labels]
    figure, axes = plt.subplots(figsize=(8, 0.6 + 0.5 * len(labels)), layout="constrained")
    axes.barh(range(len(labels)), shares, color=colors, tick_label=labels)
    axes.invert_yaxis()
    axes.set_xlabel("operations a second / those of large matrix products")
    figure.savefig(path, dpi=120)
    plt.close(figure)
