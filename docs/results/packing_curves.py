"""Draws what two runs of packing.py give on held-out pairs, and prints the table of the page.

python docs/results/packing_curves.py RUN_PADDED RUN_PACKED
"""

import json
import sys
from pathlib import Path

import matplotlib.pyplot as plt

TARGET = Path(__file__).parent
figure, axes = plt.subplots(1, 2, figsize=(9, 3.5), layout="constrained")
for name, run in zip(("padded", "packed"), map(Path, sys.argv[1:]), strict=True):
    evals = [json.loads(line) for line in (run / "evals.jsonl").read_text().splitlines()]
    for kept in ("evals", "metrics"):
        (TARGET / f"packing_{name}_{kept}.jsonl").write_bytes((run / f"{kept}.jsonl").read_bytes())
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
    for line in evals:
        figures = (line["heldout_nsp_accuracy"], line["heldout_nsp_loss"], line["heldout_mlm_loss"])
        print(f"| {name} | {line['step']} | " + " | ".join(f"{x:.3f}" for x in figures) + " |")
axes[0].axhline(0.65, color="grey", linestyle=":")
figure.savefig(TARGET / "packing.png", dpi=120)
