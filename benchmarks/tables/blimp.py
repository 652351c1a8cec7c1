"""The tables of BLiMP: docs/results/blimp.md, and what `benchmarks.blimp` prints."""

from __future__ import annotations

import functools
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness import RESULTS

RESULT = RESULTS / "blimp.json"
_PUBLISHED = Path(__file__).with_name("blimp_published.json")
MODELS = {"ngram": "5-gram", "lstm": "LSTM", "txl": "Transformer-XL", "gpt2": "GPT-2"}


@functools.cache
def published() -> dict[str, dict[str, Any]]:
    """By paradigm: its phenomenon, and the accuracy of each of `MODELS`, from 0 to 1."""
    paradigms: dict[str, dict[str, Any]] = json.loads(_PUBLISHED.read_text())["paradigms"]
    return paradigms


def scores() -> str:
    """Every record of the results, by phenomenon."""
    records = _records()
    return by_phenomenon(records, [_name(record) for record in records])


def runs() -> str:
    """How many pairs each record has, and how fast they were scored."""
    lines = [
        "| model | pairs per paradigm | pairs | ties | seconds, with compilation | sentences/s |",
        "|---|---|---|---|---|---|",
    ]
    for x in _records():
        cells = [_name(x), *(f"{x[n]:,}" for n in ("pairs_per_paradigm", "num_pairs", "num_ties"))]
        cells += [f"{x['seconds']:,.0f}", f"{x['sentences_per_second']:,.0f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _records() -> list[dict[str, Any]]:
    records: list[dict[str, Any]] = json.loads(RESULT.read_text())
    return records


def _name(record: Mapping[str, Any]) -> str:
    single = record["mask_rest_of_word"] is False
    return f"{record['model']}, single tokens" if single else str(record["model"])


def by_phenomenon(found: Sequence[Mapping[str, Any]], names: Sequence[str] = ("model",)) -> str:
    """A line per phenomenon, then one for all, beside the published figures, in percent.

    Args:
      found: of `benchmarks.blimp.accuracy`, a column each.
      names: of the columns.
    """
    known = published().values()
    lines = [f"| phenomenon | paradigms | {' | '.join([*names, *MODELS.values()])} |"]
    lines.append("|---|" + "---|" * (1 + len(names) + len(MODELS)))
    for phenomenon in sorted(found[0]["phenomena"]):
        rows = [row for row in known if row["phenomenon"] == phenomenon]
        ours = [x["phenomena"][phenomenon] for x in found]
        lines.append(_line(phenomenon, str(len(rows)), ours, _means(rows)))
    ours = [x["overall"] for x in found]
    lines.append(_line("**all**", str(len(known)), ours, _means([*known])))
    return "\n".join(lines)


def by_paradigm(found: Mapping[str, Any]) -> str:
    """A line per paradigm, beside the published figures, in percent."""
    lines = [f"| paradigm | phenomenon | model | {' | '.join(MODELS.values())} |"]
    lines.append("|---|" + "---|" * (2 + len(MODELS)))
    for paradigm, ours in found["paradigms"].items():
        row = published()[paradigm]
        lines.append(_line(paradigm, row["phenomenon"], [ours], _means([row])))
    return "\n".join(lines)


def _means(rows: Sequence[Mapping[str, Any]]) -> list[float]:
    return [statistics.fmean(row[name] for row in rows) for name in MODELS]


def _line(name: str, about: str, ours: Sequence[float], theirs: Sequence[float]) -> str:
    words = f"| {name} | {about} |".replace("_", " ")
    return f"{words} {' | '.join(f'{100 * share:.1f}' for share in (*ours, *theirs))} |"
