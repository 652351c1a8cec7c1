"""What a pre-training run came to: from its summary.json and evals.jsonl, kept as NAME_*."""

from __future__ import annotations

import json
from typing import Any

from benchmarks.tables.values import find, lines

_FIELDS = (  # of summary.json: field, words, format
    ("parameters", "parameters", ",d"),
    ("steps", "steps", ",d"),
    ("seconds", "time, with compilation, evaluations and checkpoints, s", ",.0f"),
    ("hardware", "device, as JAX names it", ""),
    ("heldout_mlm_loss", "held-out MLM loss, final, nats", ".3f"),
    ("heldout_unigram_entropy", "cross-entropy of the training unigrams there, nats", ".3f"),
    ("heldout_mlm_accuracy", "held-out MLM accuracy, final", ".3f"),
    ("heldout_nsp_loss", "held-out NSP loss, final, nats", ".3f"),
    ("heldout_nsp_accuracy", "held-out NSP accuracy, final", ".3f"),
    ("heldout_nsp_majority", "share of the more frequent NSP label", ".3f"),
)
_COLUMNS = (  # of evals.jsonl
    ("heldout_mlm_loss", "MLM loss, nats", ".3f"),
    ("heldout_mlm_accuracy", "MLM accuracy", ".3f"),
    ("heldout_nsp_loss", "NSP loss, nats", ".3f"),
    ("heldout_nsp_accuracy", "NSP accuracy", ".3f"),
    ("heldout_nsp_majority", "share of the more frequent NSP label", ".3f"),
)


def summary(name: str) -> str:
    """One line per field of NAME_summary.json, with the best evaluations of the last phase."""
    found = json.loads(find(f"{name}_summary.json").read_text("utf-8"))
    table = ["| | |", "|---|---|"]
    for field, words, form in _FIELDS:
        if field in found:
            table.append(f"| {words} | {format(found[field], form)} |")
    return "\n".join([*table, *_best(name)])


def _best(name: str) -> list[str]:
    try:
        evals = lines(f"{name}_evals.jsonl")
    except FileNotFoundError:
        return []
    last = [x for x in evals if x["phase"] == evals[-1]["phase"]]
    loss = min(last, key=lambda x: x["heldout_mlm_loss"])
    found = [_line("lowest held-out MLM loss", loss, "heldout_mlm_loss")]
    if "heldout_nsp_accuracy" in last[0]:
        accuracy = max(last, key=lambda x: x["heldout_nsp_accuracy"])
        found.append(_line("highest held-out NSP accuracy", accuracy, "heldout_nsp_accuracy"))
    return found


def _line(words: str, record: dict[str, Any], field: str) -> str:
    return f"| {words} of the last phase | {record[field]:.3f} at step {record['step']:,} |"


def evaluations(name: str, *steps: str) -> str:
    """One line per evaluation of NAME_evals.jsonl, of all steps or of some."""
    chosen = [x for x in lines(f"{name}_evals.jsonl") if not steps or str(x["step"]) in steps]
    if steps and len(chosen) != len(steps):
        raise ValueError(f"{name}_evals.jsonl does not have all of the steps {', '.join(steps)}")
    columns = [column for column in _COLUMNS if column[0] in chosen[0]]
    table = [
        "| step | " + " | ".join(f"held-out {words}" for _, words, _ in columns) + " |",
        "|---" * (1 + len(columns)) + "|",
    ]
    for record in chosen:
        cells = [f"{record['step']:,}", *(format(record[x], form) for x, _, form in columns)]
        table.append("| " + " | ".join(cells) + " |")
    return "\n".join(table)
