"""Rows of a split as a pure function of (seed, stream, position), with NumPy only.

A split of n rows has row p % n of epoch p // n at position p. A keyed shuffle of the epoch turns it
into a row of the index (`row_order`), and the position determines the row's pair and mask. So the
whole state of the input is one integer, and a row is the same in any batch and on any host.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import numpy as np

from bertjax.data.counter_rng import keys_at, stream_key
from bertjax.data.store.store import Split
from bertjax.data.stream.masking import TokenIds, mask_rows
from bertjax.data.stream.pairs import Segments, draw_segments
from bertjax.data.stream.read_ahead import ReadAhead
from bertjax.data.stream.row_order import RowOrder
from bertjax.data.stream.rows import RowSpec, row_index

_ORDER, _PAIR, _MASK = range(3)  # what a key is for

Batch = dict[str, np.ndarray]


class Rows(Protocol):
    """A source of rows that depend on their positions only.

    Attributes:
        num_rows: of one epoch.
        max_length: tokens of a row.
    """

    num_rows: int

    @property
    def max_length(self) -> int: ...  # noqa: D102

    def rows(self, positions: np.ndarray) -> Batch:
        """The rows at positions [b], as arrays [b, ...]; `row_ids` int64 [b] says which."""


class RowReader:
    """Makes any rows of a stream; safe to share between threads."""

    def __init__(
        self,
        split: Split,
        tokens: TokenIds,
        spec: RowSpec,
        *,
        seed: int,
        stream_id: int,
        cache: Path | None = None,
        shuffle_window: int = 0,
    ):
        """Opens the row index, building it the first time.

        Args:
            split: documents of a store.
            tokens: the store's tokenizer, or anything with its ids and word starts.
            spec: what a row looks like.
            seed: of the run.
            stream_id: number of the phase, so that phases read different rows.
            cache: where to keep the row index if the store is read-only.
            shuffle_window: rows that are read and shuffled together; 0 = all. Random second
                segments come from the same window.

        Raises:
            ValueError: the split is empty or has another vocabulary.
        """
        if split.num_documents == 0:
            raise ValueError(
                f"{split.folder}: the {split.name} split has no documents; prepare the store from "
                "more text, or with another share held out"
            )
        if len(tokens.word_starts) != tokens.vocab_size or tokens.vocab_size != len(split.unigrams):
            raise ValueError(
                f"{split.folder}: was written with a vocabulary of {len(split.unigrams)}, but the "
                f"tokenizer has {tokens.vocab_size} entries and {len(tokens.word_starts)} word "
                "starts; use the store's own tokenizer"
            )
        self.split = split
        self.tokens = tokens
        self.spec = spec
        self.starts = row_index(split, spec.room, cache)
        self.num_rows = len(self.starts) - 1  # of one epoch
        self.order = RowOrder(self.num_rows, shuffle_window)
        self._open_stream(seed, stream_id)

    def _open_stream(self, seed: int, stream_id: int) -> None:
        self.stream = seed, stream_id
        self._keys = [stream_key(seed, stream_id, purpose) for purpose in (_ORDER, _PAIR, _MASK)]
        self._read_ahead = None
        if self.order.window:
            self._read_ahead = ReadAhead(self.split, self.starts, self.order, self._keys[_ORDER])

    def with_stream(self, *, seed: int, stream_id: int) -> RowReader:
        """Another stream of the same rows."""
        other = copy.copy(self)
        other._open_stream(seed, stream_id)
        return other

    @property
    def max_length(self) -> int:
        """Tokens of a row."""
        return self.spec.max_length

    def rows(self, positions: np.ndarray) -> Batch:
        """The rows at some positions.

        Args:
            positions: integer [b], at least 0.

        Returns:
            A dict, with t = max_length and m = max_predictions:
            input_ids int32 [b, t], padded with pad_id; token_type_ids int32 [b, t];
            attention_mask int32 [b, t], 1 at tokens; masked_positions int32 [b, m], ascending;
            masked_ids int32 [b, m], what stood there; masked_weights float32 [b, m], 1 where a slot
            is used (elsewhere all three are 0); next_sentence_labels int32 [b], 1 where the second
            segment is random; row_weights float32 [b], ones; row_ids int64 [b], numbers in the row
            index. Rows without masks have none of the three arrays of masks.

        Raises:
            ValueError: a position is negative.
        """
        positions = check_positions(positions)
        return self.make(positions, *self.draw(positions), self.max_length)

    def draw(self, positions: np.ndarray) -> tuple[np.ndarray, Segments]:
        """What the rows at some positions will be made of.

        Args:
            positions: int64 [b], at least 0.

        Returns:
            Numbers in the row index, int64 [b], and the token ranges.
        """
        order_key, pair_key, _ = self._keys
        epoch, index = np.divmod(positions, self.num_rows)
        if self._read_ahead is not None:
            self._read_ahead.follow(epoch, index)
        epoch_keys = keys_at(order_key, epoch)
        row_ids = self.order.row_ids(index, epoch_keys)

        def neighbours(which: np.ndarray, bits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            ids = self.order.neighbours(index[which], epoch_keys[which], bits)
            return np.asarray(self.starts[ids]), np.asarray(self.starts[ids + 1])

        segments = draw_segments(
            self.split,
            np.asarray(self.starts[row_ids]),
            np.asarray(self.starts[row_ids + 1]),
            keys_at(pair_key, positions),
            self.spec,
            neighbours if self.order.window else None,
        )
        return row_ids, segments

    def lengths(self, segments: Segments) -> np.ndarray:
        """Tokens of each row, special tokens included, int64 [b]."""
        return segments.a_length + segments.b_length + (self.spec.max_length - self.spec.room)

    def make(
        self, positions: np.ndarray, row_ids: np.ndarray, segments: Segments, width: int
    ) -> Batch:
        """The rows at some positions, from what `draw` found there.

        Args:
            positions: int64 [b], at least 0; they key what is masked.
            row_ids: int64 [b], of `draw`.
            segments: of `draw`, b rows.
            width: columns of the result, enough for each row; fewer columns change no token and no
                mask.

        Returns:
            As `rows`, with t = width and m = min(max_predictions, width).
        """
        column = np.arange(width, dtype=np.int32)
        a_end = (segments.a_length + 1).astype(np.int32)[:, None]  # column of the first [SEP]
        last = a_end
        if self.spec.next_sentence:
            last = a_end + segments.b_length.astype(np.int32)[:, None] + np.int32(1)
        ids = np.full((len(positions), width), self.tokens.pad_id, np.int32)
        ids[:, 0] = self.tokens.cls_id
        self._copy(ids, (column > 0) & (column < a_end), segments.a_start, segments.a_length)
        self._copy(ids, (column > a_end) & (column < last), segments.b_start, segments.b_length)
        np.put_along_axis(ids, a_end, np.int32(self.tokens.sep_id), axis=1)
        np.put_along_axis(ids, last, np.int32(self.tokens.sep_id), axis=1)

        masks: Batch = {}
        if self.spec.max_predictions:
            mask_keys = keys_at(self._keys[_MASK], positions)
            masked = mask_rows(ids, self.lengths(segments), mask_keys, self.spec, self.tokens)
            ids = masked.input_ids
            masks = {
                "masked_positions": masked.positions,
                "masked_ids": masked.ids,
                "masked_weights": masked.weights,
            }
        return {
            "input_ids": ids,
            "token_type_ids": ((column > a_end) & (column <= last)).astype(np.int32),
            "attention_mask": (column <= last).astype(np.int32),
            **masks,
            "next_sentence_labels": segments.is_random.astype(np.int32),
            "row_weights": np.ones(len(positions), np.float32),
            "row_ids": row_ids,
        }

    def _copy(
        self, ids: np.ndarray, where: np.ndarray, starts: np.ndarray, lengths: np.ndarray
    ) -> None:
        """Copies a range of tokens into the columns of each row that `where` marks."""
        width = ids.shape[1]
        tokens = self.split.gather(starts, lengths, width)
        ids[where] = tokens[np.arange(width) < lengths[:, None]]


def check_positions(positions: np.ndarray) -> np.ndarray:
    """Positions as int64.

    Raises:
        ValueError: one is negative.
    """
    positions = np.asarray(positions, np.int64)
    if len(positions) and positions.min() < 0:
        raise ValueError(f"positions start at 0, found {positions.min()}")
    return positions


def evaluation_batches(
    reader: Rows,
    *,
    global_batch_size: int,
    offsets: np.ndarray | None = None,
    max_rows: int = 0,
) -> Iterator[Batch]:
    """The first rows of epoch 0, each once; the same batches every time.

    Every process makes the same number of batches. The last one is filled up with copies of the
    first row that have `row_weights` and `masked_weights` 0 and `row_ids` -1.

    Args:
        reader: of the held-out documents.
        global_batch_size: rows of a batch over all processes.
        offsets: integer [b], this process's rows of each global batch; None = all of them.
        max_rows: largest number of rows; 0 = all.
    """
    offsets = np.arange(global_batch_size) if offsets is None else offsets
    num_rows = min(max_rows, reader.num_rows) if max_rows else reader.num_rows
    for begin in range(0, num_rows, global_batch_size):
        positions = begin + offsets
        real = positions < num_rows
        batch = reader.rows(np.where(real, positions, 0))
        batch["row_weights"] *= real
        if "masked_weights" in batch:
            batch["masked_weights"] *= real[:, None]
        batch["row_ids"] = np.where(real, batch["row_ids"], -1)
        yield batch
