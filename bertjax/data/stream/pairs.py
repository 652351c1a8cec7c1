"""Sentence pairs: which tokens a row consists of, drawn for each key.

`create_instances_from_document` of the reference (google-research/bert, create_pretraining_data.py)
with fixed anchors: a row's sentences come from the row index instead of a walk that depends on
earlier draws. docs/design/stream.md describes the differences.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from bertjax.data.counter_rng import bits64, coin_flips, uniform_float, uniform_int
from bertjax.data.store.store import Split
from bertjax.data.stream.rows import RowSpec

# One counter per draw, so that no draw shifts another.
_SHORT, _TARGET, _A_SENTENCES, _RANDOM, _SENTENCE, _DROP_A, _DROP_B, _DOCUMENT = range(8)
_DOCUMENT_DRAWS = 10  # as the reference


class Segments(NamedTuple):
    """Token ranges of n rows, each int64 [n], counted over the split."""

    a_start: npt.NDArray[np.int64]
    a_length: npt.NDArray[np.int64]  # at least 1
    b_start: npt.NDArray[np.int64]
    b_length: npt.NDArray[np.int64]  # at least 1; 0 without next-sentence prediction
    is_random: np.ndarray  # 1 if B comes from another document, else 0


Neighbours = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]
"""From numbers of rows [m] and random bits, uint64 [m]: the sentences [first, end) of a random row
that is read together with each."""


def draw_segments(
    split: Split,
    first: np.ndarray,
    last: np.ndarray,
    keys: np.ndarray,
    spec: RowSpec,
    neighbours: Neighbours | None = None,
) -> Segments:
    """Chooses the tokens of each row.

    The target length is `room`, or with probability `short_row_rate` uniform in [2, room].
    Sentences of the row are taken until it is reached.

    Without next-sentence prediction they are a single segment. Tokens above `room` are dropped in
    front and behind; any number in front is equally likely.

    With it, A is the first 1 to n - 1 of the n sentences. B is random if n is 1, and with
    probability 1/2 otherwise: sentences of another document from a random one on, until they fill
    the target. Otherwise B is the rest of the n sentences. Tokens above `room` are dropped one by
    one from the longer segment (B if both are equal), at either end with probability 1/2, as in
    the reference.

    If there is no other document, in the split or among the neighbours, B comes from the same
    document and still counts as random, as in the reference after ten draws.

    Args:
        split: where the tokens are.
        first: int64 [n], first sentence of each row.
        last: int64 [n], end of each row's sentences, above `first`.
        keys: uint64 [n].
        spec: what a row looks like.
        neighbours: where random sentences come from; None = from any document.
    """
    offsets = split.sentence_offsets.view(np.int64)
    a_start = offsets[first]
    short = np.flatnonzero(uniform_float(bits64(keys, _SHORT)) < spec.short_row_rate)
    target = np.full(len(keys), spec.room)
    target[short] = 2 + uniform_int(bits64(keys[short], _TARGET), spec.room - 1)
    end = last.copy()  # a row ends where it is full, so only the short ones end before
    end[short] = _reach(offsets, first[short] + 1, last[short], a_start[short] + target[short])
    if not spec.next_sentence:
        a_length = offsets[end] - a_start
        dropped = np.maximum(a_length - spec.room, 0)
        a_start = a_start + uniform_int(bits64(keys, _DROP_A), dropped + 1)
        none = np.zeros_like(a_start)
        return Segments(a_start, a_length - dropped, none, none, none)

    num_sentences = end - first
    a_sentences = 1 + uniform_int(bits64(keys, _A_SENTENCES), np.maximum(num_sentences - 1, 1))
    is_random = (num_sentences == 1) | (bits64(keys, _RANDOM) >> np.uint64(63)).astype(bool)
    b_first = first + a_sentences
    b_last = end
    a_length = offsets[b_first] - a_start
    random = np.flatnonzero(is_random)
    b_first[random], b_last[random] = _random_sentences(
        split,
        first[random],
        (target - a_length)[random],
        keys[random],
        neighbours and (lambda which, bits: neighbours(random[which], bits)),
    )
    b_start = offsets[b_first]
    b_length = offsets[b_last] - b_start

    a_kept, b_kept = truncated_lengths(a_length, b_length, spec.room)
    a_start = a_start + coin_flips(bits64(keys, _DROP_A), a_length - a_kept)
    b_start += coin_flips(bits64(keys, _DROP_B), b_length - b_kept)
    return Segments(a_start, a_kept, b_start, b_kept, is_random.astype(np.int64))


def truncated_lengths(
    a_length: npt.NDArray[np.int64], b_length: np.ndarray, room: int
) -> tuple[np.ndarray, np.ndarray]:
    """The lengths after tokens are dropped one by one from the longer segment (B if equal)."""
    half = room // 2
    a_kept = np.minimum(a_length, np.maximum(room - b_length, room - half))
    b_kept = np.minimum(b_length, np.maximum(room - a_length, half))
    return a_kept, b_kept


def _random_sentences(
    split: Split,
    own: np.ndarray,
    target: np.ndarray,
    keys: np.ndarray,
    neighbours: Neighbours | None,
) -> tuple[np.ndarray, np.ndarray]:
    """Sentences of another document: the first, uniform in it or in the neighbour, and the end.

    `own` is a sentence of the row's own document; `target` may be 0 or less, and takes one then.
    """
    offsets = split.sentence_offsets.view(np.int64)
    documents = split.document_offsets.view(np.int64)
    document = np.zeros_like(own)
    begin, end = np.zeros_like(own), np.zeros_like(own)
    again = np.arange(len(own))
    for draw in range(_DOCUMENT_DRAWS):
        bits = bits64(keys[again], _DOCUMENT + draw)
        if neighbours is None:
            drawn = uniform_int(bits, split.num_documents)
            begin[again], end[again] = documents[drawn], documents[drawn + 1]
        else:
            begin[again], end[again] = neighbours(again, bits)
            drawn = np.searchsorted(documents, begin[again], side="right") - 1
        document[again] = drawn
        is_own = (documents[drawn] <= own[again]) & (own[again] < documents[drawn + 1])
        again = again[is_own]
        if len(again) == 0:
            break
    first = begin + uniform_int(bits64(keys, _SENTENCE), end - begin)
    most = documents[document + 1]
    most = np.minimum(most, first + np.maximum(target, 1))  # a sentence has a token at least
    return first, _reach(offsets, first + 1, most, offsets[first] + target)


def _reach(offsets: np.ndarray, low: np.ndarray, high: np.ndarray, goal: np.ndarray) -> np.ndarray:
    """The first sentence in [low, high] that begins at token `goal` or later, else `high`.

    Bisection within each row's bounds stays on the pages that the row needs anyway.
    """
    low, high = low.copy(), high.copy()
    for _ in range(int(np.max(high - low, initial=0)).bit_length()):
        middle = (low + high) >> 1
        reached = (offsets[middle] >= goal) | (low == high)
        high = np.where(reached, middle, high)
        low = np.where(reached, low, middle + 1)
    return high
