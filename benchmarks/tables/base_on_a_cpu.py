"""The table of docs/results/base_on_a_cpu.md, from the logs of both starts and their notes."""

from __future__ import annotations

import json
import re

from benchmarks.tables.values import find

_LOGS = ("base_on_a_cpu_first.log", "base_on_a_cpu_second.log")
_PATTERNS = (  # what the log says, where
    (
        "memory of the program, as planned",
        r"compiled the step of .*; ([\d.]+ GB per device of [\d.]+)",
    ),
    ("microbatches", r"tokens in (\d+) microbatches"),
    ("compiled in, s", r"microbatches in ([\d.]+) s"),
    ("from the command to the end of its first step, s", r"first step done ([\d.]+) s"),
    ("parts of that, s", r"first step done .* \((.*)\)"),
)


def starts() -> str:
    """One column per start."""
    logs = [find(name).read_text("utf-8") for name in _LOGS]
    notes = json.loads(find("base_on_a_cpu_notes.json").read_text("utf-8"))
    table = [
        "| | first start | second start |",
        "|---|---|---|",
    ]
    for words, pattern in _PATTERNS:
        found = []
        for name, text in zip(_LOGS, logs, strict=True):
            match = re.search(pattern, text)
            if match is None:
                raise ValueError(f"{name} has no line like {pattern}")
            found.append(match[1])
        table.append(f"| {words} | " + " | ".join(found) + " |")
    for words, values in notes["starts"].items():
        table.append(f"| {words} (noted by hand) | " + " | ".join(values) + " |")
    return "\n".join(table)
