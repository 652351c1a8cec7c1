"""How often a model prefers the acceptable sentence of BLiMP's minimal pairs.

    python -m benchmarks.blimp --model=runs/tiny [--pairs=100]

BLiMP (Warstadt et al. 2020, https://github.com/alexwarstadt/blimp) has 67 paradigms of 1,000 pairs
of an acceptable and an unacceptable English sentence. A pair counts as right if the acceptable
sentence has the higher log-likelihood (`Encoder.score`); a tie is wrong. The pairs of a paradigm
are chosen evenly. Prints the tables beside the figures that the paper's authors published, and
writes benchmarks/results/blimp.json: one record for each model and way of scoring.
"""

from __future__ import annotations

import argparse
import gzip
import json
import statistics
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import bertjax
from benchmarks import harness
from benchmarks.tables import blimp as tables
from bertjax.encoder import Encoder
from bertjax.heads import HEADS

PARADIGM_PAIRS = 1_000
OLD_NAMES = {"syntax/semantics": "syntax_semantics"}  # both are in the files, for one field
# The paper and the published figures count this one's two paradigms as argument structure.
PHENOMENA = {"s-selection": "argument_structure"}


class Pair(NamedTuple):
    """A minimal pair, and where it belongs."""

    paradigm: str
    field: str
    phenomenon: str
    good: str
    bad: str


def options(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    parser.add_argument("--model", required=True, help="whatever bertjax.load takes")
    parser.add_argument("--name", default="", help="of the model in the results; its folder's")
    parser.add_argument(
        "--data", type=Path, default=harness.DATA / "blimp" / "blimp.jsonl.gz", help="the pairs"
    )
    parser.add_argument(
        "--pairs", type=int, default=100, help="per paradigm, 1 to 1,000; 0 = all 1,000"
    )
    parser.add_argument(
        "--mask_rest_of_word",
        action=argparse.BooleanOptionalAction,
        help="of a masked model, see Encoder.score; default: yes",
    )


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Scores the pairs and prints the tables."""
    pairs = read_pairs(args.data, args.pairs)
    encoder = bertjax.load(args.model)
    begun = time.monotonic()
    how = args.mask_rest_of_word
    if how is None and not HEADS[encoder.config.head].predicts_next:
        how = True  # so that the record says it
    found = accuracy(encoder, pairs, mask_rest_of_word=how)
    seconds = time.monotonic() - begun
    print(tables.by_phenomenon([found]), "\n")
    print(tables.by_paradigm(found), "\n")
    return {
        "model": args.name or Path(args.model).name,
        "encoder": repr(encoder),
        "mask_rest_of_word": how,  # null of a left-to-right model
        "pairs_per_paradigm": args.pairs or PARADIGM_PAIRS,
        "seconds": round(seconds, 1),  # compiling included
        "sentences_per_second": round(2 * len(pairs) / seconds, 1),
        **found,
    }


def read_pairs(path: Path, per_paradigm: int = 0) -> list[Pair]:
    """Reads pairs, those of a paradigm together.

    Args:
      path: gzipped JSON lines with uid, field, term, good and bad.
      per_paradigm: how many of each, evenly chosen; 0 = all.

    Raises:
      UsageError: the file is not there, or a paradigm has fewer.
    """
    if not path.exists():
        raise harness.UsageError(f"--data={path}: no such file; expected BLiMP's pairs")
    paradigms: dict[str, list[Pair]] = {}
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for record in map(json.loads, lines):
            uid, field, term = (record[name] for name in ("uid", "field", "term"))
            names = uid, OLD_NAMES.get(field, field), PHENOMENA.get(term, term)
            pair = Pair(*names, record["good"], record["bad"])
            paradigms.setdefault(uid, []).append(pair)
    fewest = min(map(len, paradigms.values()))
    if not 0 <= per_paradigm <= fewest:
        raise harness.UsageError(f"--pairs={per_paradigm}: expected 0 (all), or 1 to {fewest:,}")
    return [pair for pairs in paradigms.values() for pair in _evenly(pairs, per_paradigm)]


def _evenly(pairs: Sequence[Pair], count: int) -> Sequence[Pair]:
    return [pairs[i * len(pairs) // count] for i in range(count)] if count else pairs


def accuracy(encoder: Encoder, pairs: Sequence[Pair], **how: Any) -> dict[str, Any]:
    """The shares of pairs whose acceptable sentence has the higher log-likelihood.

    Args:
      encoder: the model.
      pairs: to score, of `read_pairs`.
      how: further arguments of `Encoder.score`.

    Returns:
      `overall`, and mappings `fields`, `phenomena` and `paradigms`, all from 0 to 1; `overall` and
      those of fields and phenomena are means over paradigms. `num_pairs`, and `num_ties` among
      them: pairs of the same tokens, or of exactly the same log-likelihood.
    """
    scores = encoder.score([text for pair in pairs for text in (pair.good, pair.bad)], **how)
    right: dict[str, list[bool]] = {}
    ties = 0
    for pair, good, bad in zip(pairs, scores[::2], scores[1::2], strict=True):
        # Sentences of the same tokens may differ by rounding, which is no preference.
        tie = good.pieces == bad.pieces or good.log_likelihood == bad.log_likelihood
        ties += tie
        is_right = not tie and good.log_likelihood > bad.log_likelihood
        right.setdefault(pair.paradigm, []).append(is_right)
    paradigms = {name: statistics.fmean(values) for name, values in right.items()}
    return {
        "overall": statistics.fmean(paradigms.values()),
        "fields": _means(paradigms, {(pair.paradigm, pair.field) for pair in pairs}),
        "phenomena": _means(paradigms, {(pair.paradigm, pair.phenomenon) for pair in pairs}),
        "paradigms": paradigms,
        "num_pairs": len(pairs),
        "num_ties": ties,
    }


def _means(paradigms: dict[str, float], groups: Iterable[tuple[str, str]]) -> dict[str, float]:
    """The mean over the paradigms of each group."""
    members: dict[str, list[float]] = {}
    for paradigm, group in sorted(groups):
        members.setdefault(group, []).append(paradigms[paradigm])
    return {group: statistics.fmean(members[group]) for group in sorted(members)}


BENCHMARK = harness.Benchmark(
    measure, "blimp.json", options, keep=harness.rows("model", "mask_rest_of_word")
)

if __name__ == "__main__":
    BENCHMARK.main()
