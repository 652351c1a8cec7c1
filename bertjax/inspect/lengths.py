"""Lengths of documents, the padding of their rows, and the saving by packing."""

from __future__ import annotations

import dataclasses

import numpy as np

from bertjax.data.store.store import Split
from bertjax.data.stream.longest_pack_first import pack_histogram
from bertjax.data.stream.rows import build_row_index


@dataclasses.dataclass(frozen=True)
class Lengths:
    """Rows of one length; shares are of all positions."""

    length: int
    num_rows: int
    histogram: list[int]  # rows by tokens, in sixteen bins of equal width
    padding: float
    packed_padding: float

    def text(self) -> str:
        """One line."""
        return (
            f"length {self.length}: {self.num_rows:,} rows, {self.padding:.1%} padding; packed "
            f"about {self.packed_padding:.1%}"
        )


def row_lengths(split: Split, length: int) -> Lengths:
    """Measures rows of sentence pairs, with three special tokens each."""
    starts = build_row_index(split, length - 3)
    tokens = np.diff(split.sentence_offsets[starts].view(np.int64))
    used = np.minimum(tokens + 3, length)
    counts = np.bincount(used, minlength=length + 1)
    bins = np.histogram(used, 16, (0, length))[0]
    packed = sum(count for count, _ in pack_histogram(counts, length, depth=length))
    total = int(used.sum())
    return Lengths(
        length,
        len(used),
        bins.tolist(),
        1 - total / max(1, len(used) * length),
        1 - total / max(1, packed * length),
    )
