"""Rows that hold several pairs each, as a pure function of (seed, stream, position).

The pairs are those of `RowReader` with the same seed and stream, in windows of consecutive
positions. The pairs of a window are packed together and always make the same number of rows, so a
division gives the window of a row and its place there. docs/design/packing.md says why.
"""

from __future__ import annotations

import collections
import concurrent.futures
import logging
import threading
from collections.abc import Sequence

import numpy as np

from bertjax.config import packed_predictions
from bertjax.data.counter_rng import bits64, keys_at, permute, stream_key
from bertjax.data.stream.longest_pack_first import fit_rows, pack_lengths, rows_for
from bertjax.data.stream.pairs import Segments
from bertjax.data.stream.reader import Batch, RowReader, check_positions

_LOG = logging.getLogger(__name__)

_ROW_ORDER = 4  # what the key is for; 0 to 3 are those of `reader` and `example_rows`
_WINDOW_PAIRS = 2**17  # at most; the share of spare rows falls with its square root
_SAMPLED_PAIRS = 2**17
_SAMPLE = 2**31 - 2  # the stream that lengths are sampled from: no phase has this number
_KEPT_WINDOWS = 16  # threads may be in neighbouring ones
_GROUPS = 4  # of pairs of similar length, which are made together


class PackedRows:
    """Makes any rows of a packed stream; safe to share between threads.

    Attributes:
        num_rows: of one epoch.
        depth: pairs in a row at most.
        window_rows: rows that each window makes.
    """

    def __init__(self, pairs: RowReader, depth: int):
        """Determines the number of rows per window from a sample of lengths.

        Args:
            pairs: the stream of the pairs; its `max_predictions` are the slots of a packed row.
            depth: pairs in a row at most, 2 or more.

        Raises:
            ValueError: the depth is below 2, or a row of so many pairs could have more masks than
                slots.
        """
        spec = pairs.spec
        if depth < 2:
            raise ValueError(f"a packed row holds 2 pairs or more, found a depth of {depth}")
        needed = packed_predictions(spec.mask_rate, spec.max_length, depth)
        if 0 < spec.max_predictions < needed:
            raise ValueError(
                f"max_predictions is {spec.max_predictions}, but a row of {spec.max_length} tokens "
                f"in up to {depth} pairs may have {needed} masks: set it to {needed} or more"
            )
        self.depth = depth
        self._pairs = pairs
        self._order_key = stream_key(*pairs.stream, _ROW_ORDER)
        n = pairs.num_rows
        self._windows = -(-n // _WINDOW_PAIRS)  # of an epoch
        # The same for every seed and phase, so that epochs of two runs are equally long.
        sample = pairs.with_stream(seed=0, stream_id=_SAMPLE)
        lengths = pairs.lengths(sample.draw(np.arange(_SAMPLED_PAIRS))[1])
        self.window_rows = rows_for(lengths, n // self._windows, spec.max_length, depth)
        self.num_rows = self._windows * self.window_rows
        self._lock = threading.Lock()
        self._plans: collections.OrderedDict[int, concurrent.futures.Future[np.ndarray]] = (
            collections.OrderedDict()
        )
        mean = float(lengths.mean())
        _LOG.info(
            "packed: windows of %s pairs make %s rows: %.2f pairs per row, %.1f %% real tokens",
            f"{n // self._windows:,}",
            f"{self.window_rows:,}",
            n / self.num_rows,
            100 * n * mean / (self.num_rows * spec.max_length),
        )

    @property
    def max_length(self) -> int:
        """Tokens of a row."""
        return self._pairs.max_length

    def pair_positions(self, positions: np.ndarray) -> np.ndarray:
        """Which pairs the rows at some positions hold.

        Args:
            positions: integer [b], at least 0.

        Returns:
            int64 [b, depth]: positions in the stream of pairs, in the order of the row, then -1.
        """
        window, row = np.divmod(np.asarray(positions, np.int64), self.window_rows)
        table = np.empty((len(row), self.depth), np.int64)
        for number in np.unique(window):
            here = window == number
            offsets = self._plan(int(number))[row[here]].astype(np.int64)
            table[here] = np.where(offsets >= 0, offsets + self._pairs_of(int(number))[0], -1)
        return table

    def left_out(self, window: int) -> int:
        """The number of pairs of a window that are left out of its rows."""
        begin, end = self._pairs_of(window)
        return end - begin - int((self._plan(window) >= 0).sum())

    def rows(self, positions: np.ndarray) -> Batch:
        """The rows at some positions.

        Args:
            positions: integer [b], at least 0.

        Returns:
            A dict, with t = max_length, m = max_predictions and p = depth:
            input_ids int32 [b, t], pairs one after the other and then pad_id; token_type_ids int32
            [b, t]; segment_ids int32 [b, t], 1 for the first pair, 2 for the second, 0 = padding;
            position_ids int32 [b, t], which begin at 0 in each pair; masked_positions int32 [b, m],
            ascending; masked_ids int32 [b, m]; masked_weights float32 [b, m], 1 where a slot is
            used; cls_positions int32 [b, p], where each pair begins; next_sentence_labels int32
            [b, p]; pair_weights float32 [b, p], 1 where there is a pair (elsewhere all three are
            0); row_ids int64 [b], a hash of the pairs' numbers in the row index. Rows without masks
            have none of the three arrays of masks.

        Raises:
            ValueError: a position is negative.
        """
        table = self.pair_positions(check_positions(positions))
        b, t = len(table), self.max_length
        used = table >= 0
        pair_positions = table[used]  # row by row, in the order of the row
        row = np.nonzero(used)[0]
        pair_ids, segments = self._pairs.draw(pair_positions)
        lengths = np.zeros((b, self.depth), np.int64)
        pair_lengths = self._pairs.lengths(segments)
        lengths[used] = pair_lengths
        begins = (np.cumsum(lengths, axis=1) - lengths) * used

        # Each pair's number and first place, repeated over its tokens; 0 over the padding.
        padding = t - lengths.sum(axis=1, keepdims=True)
        spans = np.concatenate([lengths, padding], axis=1).ravel()
        numbers = np.tile(np.append(np.arange(1, self.depth + 1), 0).astype(np.int32), b)
        segment_ids = np.repeat(numbers, spans).reshape(b, t)
        offsets = np.repeat(np.pad(begins, ((0, 0), (0, 1))).astype(np.int32).ravel(), spans)
        position_ids = np.tile(np.arange(t, dtype=np.int32), b) - offsets
        position_ids = position_ids.reshape(b, t) * (segment_ids > 0)

        batch = {
            "input_ids": np.full((b, t), self._pairs.tokens.pad_id, np.int32),
            "token_type_ids": np.zeros((b, t), np.int32),
            "segment_ids": segment_ids,
            "position_ids": position_ids,
            "cls_positions": begins.astype(np.int32),
            "next_sentence_labels": np.zeros((b, self.depth), np.int32),
            "pair_weights": used.astype(np.float32),
            "row_ids": _hash_ids(used, pair_ids),
        }
        batch["next_sentence_labels"][used] = segments.is_random
        first = row * t + begins[used]  # place of each pair in all rows together
        parts = []
        for which in np.array_split(np.argsort(pair_lengths), _GROUPS):
            if not len(which):
                continue
            some = Segments(*(array[which] for array in segments))
            width = int(pair_lengths[which].max())
            part = self._pairs.make(pair_positions[which], pair_ids[which], some, width)
            inside = part["attention_mask"] > 0
            places = (first[which, None] + np.arange(width))[inside]
            for name in ("input_ids", "token_type_ids"):
                batch[name].ravel()[places] = part[name][inside]
            parts.append((which, part))
        if self._pairs.spec.max_predictions:
            batch.update(self._masks(parts, used, begins))
        return batch

    def _masks(
        self, parts: Sequence[tuple[np.ndarray, Batch]], used: np.ndarray, begins: np.ndarray
    ) -> Batch:
        """The masks of all pairs, in the slots of their rows.

        Args:
            parts: which pairs, among those that are used, and their rows of one pair each.
            used: bool [b, depth], where there is a pair.
            begins: int64 [b, depth], first place of each pair in its row.
        """
        b, m = len(used), self._pairs.spec.max_predictions
        row, number = np.nonzero(used)
        counts = np.zeros((b, self.depth), np.int64)
        for which, part in parts:
            counts[row[which], number[which]] = part["masked_weights"].sum(axis=1)
        first = (row * m + (np.cumsum(counts, axis=1) - counts)[used])[:, None]
        masks = {
            "masked_positions": np.zeros((b, m), np.int32),
            "masked_ids": np.zeros((b, m), np.int32),
            "masked_weights": np.zeros((b, m), np.float32),
        }
        for which, part in parts:
            inside = part["masked_weights"] > 0
            slots = (first[which] + np.arange(inside.shape[1]))[inside]
            place = part["masked_positions"] + begins[used][which, None]
            masks["masked_positions"].ravel()[slots] = place[inside]
            masks["masked_ids"].ravel()[slots] = part["masked_ids"][inside]
            masks["masked_weights"].ravel()[slots] = 1.0
        return masks

    def _pairs_of(self, window: int) -> tuple[int, int]:
        """Positions of the first pair of a window and of the one after its last."""
        epoch, number = divmod(window, self._windows)
        n = self._pairs.num_rows
        begin, end = (i * n // self._windows for i in (number, number + 1))
        return epoch * n + begin, epoch * n + end

    def _plan(self, window: int) -> np.ndarray:
        """int32 [window_rows, depth]: offsets from the first pair of the window, then -1.

        Threads that need the same window wait for the one that makes it.
        """
        with self._lock:
            plan = self._plans.get(window)
            makes_it = plan is None
            if plan is None:
                plan = self._plans[window] = concurrent.futures.Future()
                if len(self._plans) > _KEPT_WINDOWS:
                    self._plans.popitem(last=False)
            else:
                self._plans.move_to_end(window)
        if makes_it:
            try:
                plan.set_result(self._make_plan(window))
            except BaseException as error:
                plan.set_exception(error)
                raise
        return plan.result()

    def _make_plan(self, window: int) -> np.ndarray:
        begin, end = self._pairs_of(window)
        lengths = self._pairs.lengths(self._pairs.draw(np.arange(begin, end))[1])
        packed = pack_lengths(lengths, self.max_length, self.depth)
        table = fit_rows(packed, lengths, self.window_rows)
        if (left_out := end - begin - int((table >= 0).sum())) > 0:
            _LOG.info(
                "packed: %s of the %s pairs of window %d found no place",
                f"{left_out:,}",
                f"{end - begin:,}",
                window,
            )
        key = keys_at(self._order_key, np.array([window]))
        return table[permute(np.arange(self.window_rows), self.window_rows, key)]


def _hash_ids(used: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """int64 [b], at least 0: a hash of the ids of each row, given where they stand in it."""
    table = np.zeros(used.shape, np.int64)
    table[used] = ids + 1
    hashed = np.zeros(len(used), np.uint64)
    for column in table.T:
        hashed = bits64(hashed, column)
    return (hashed >> np.uint64(2)).astype(np.int64)
