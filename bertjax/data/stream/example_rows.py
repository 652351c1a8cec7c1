"""Rows of fine-tuning as a pure function of (seed, position), from arrays in memory."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from bertjax.data.counter_rng import keys_at, permute, stream_key
from bertjax.data.stream.reader import Batch
from bertjax.heads import HEADS

_ORDER = 3  # what the key is for; 0 to 2 are those of `reader`
_LENGTH_UNIT = 8  # tokens; a length is a multiple of it
_LEAST_BATCHES = 4  # of one shape, except the longest: fewer are not worth a compilation


class ExampleRows:
    """Training rows: every row once per epoch, each epoch in another order."""

    def __init__(self, arrays: Mapping[str, np.ndarray], *, seed: int):
        """Keeps the arrays.

        Args:
            arrays: [n, ...] each, with input_ids [n, t].
            seed: of the run.
        """
        self._arrays = dict(arrays)
        self.num_rows = len(arrays["input_ids"])
        self._key = stream_key(seed, 0, _ORDER)

    @property
    def max_length(self) -> int:
        """Tokens of a row."""
        return int(self._arrays["input_ids"].shape[1])

    def rows(self, positions: np.ndarray) -> Batch:
        """The rows at positions [b], at least 0, as arrays [b, ...]; `row_ids` says which."""
        epoch, index = np.divmod(np.asarray(positions, np.int64), self.num_rows)
        row_ids = permute(index, self.num_rows, keys_at(self._key, epoch))
        return {
            **{name: array[row_ids] for name, array in self._arrays.items()},
            "row_ids": row_ids,
        }


class LengthBatch(NamedTuple):
    """Rows of similar lengths.

    Attributes:
      positions: int64 [b], which rows; the last ones of a batch may be -1 (no row).
      length: columns of the batch, enough for the longest row.
    """

    positions: np.ndarray
    length: int


def batches_by_length(
    lengths: np.ndarray, max_length: int, *, num_lengths: int, shards: int, tokens_per_shard: int
) -> list[LengthBatch]:
    """Batches of rows of similar lengths, each row once, so that batches have little padding.

    Rows are cut to one of a few equally spaced lengths. A length is used only for several whole
    batches, because each shape is compiled.

    Args:
      lengths: int [n], real tokens of the rows.
      max_length: tokens of the longest row at most.
      num_lengths: largest number of lengths; the last is max_length.
      shards: equal parts that each batch is split into.
      tokens_per_shard: largest number, except for a shard of one row.

    Returns:
      Batches in ascending order of their lengths.
    """
    batches: list[LengthBatch] = []
    waiting = np.argsort(lengths, kind="stable")
    for part in range(1, num_lengths + 1):
        length = rounded_length(max_length * part / num_lengths, max_length)
        size = shards * max(1, min(tokens_per_shard // length, -(-len(waiting) // shards)))
        count = int(np.searchsorted(lengths[waiting], length, "right"))
        if length < max_length:
            count -= count % size  # rows that do not fill a batch join the longer ones
            if count < _LEAST_BATCHES * size:
                continue
        for begin in range(0, count, size):
            positions = np.full(size, -1, np.int64)
            rows = waiting[begin : min(begin + size, count)]
            positions[: len(rows)] = rows
            batches.append(LengthBatch(positions, length))
        waiting = waiting[count:]
    return batches


def rounded_length(length: float, most: int) -> int:
    """The next multiple of 8 tokens, but not above `most`."""
    return min(_LENGTH_UNIT * math.ceil(length / _LENGTH_UNIT), most)


def cut_tokens(arrays: Mapping[str, np.ndarray], length: int) -> Batch:
    """The arrays [n, ...]; those with one number per token (as wide as input_ids) cut to `length`.

    Answers per row may have as many labels as a row has tokens: they stay whole.
    """
    width = arrays["input_ids"].shape[1:2]
    answers = [item for head in HEADS.values() for item in head.answers.items()]
    of_rows = {name for name, answer in answers if not answer.per_token}
    return {
        name: array[:, :length] if array.shape[1:2] == width and name not in of_rows else array
        for name, array in arrays.items()
    }


def take_rows(arrays: Mapping[str, np.ndarray], positions: np.ndarray, length: int) -> Batch:
    """Rows of the arrays, as `cut_tokens` cuts them; position -1 gives a row of row_weights 0.

    Args:
      arrays: [n, ...] each, with input_ids [n, t] and row_weights [n].
      positions: integer [b]; -1 = no row.
      length: tokens.
    """
    rows = np.maximum(positions, 0)
    batch = cut_tokens({name: array[rows] for name, array in arrays.items()}, length)
    batch["row_weights"] = batch["row_weights"] * (positions >= 0).astype(np.float32)
    return batch
