"""In which order the rows of an epoch come: shuffled as one, or in windows of blocks.

A shuffle of all rows reads everywhere at once, which needs a store that fits the memory or a fast
disk. In two levels, consecutive rows form blocks, the blocks are shuffled, as many of them as make
a window are read together, and the rows of the window are shuffled. Both are keyed permutations:
each row comes once an epoch, and its place follows from the index without a table.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from bertjax.data.counter_rng import bits64, permute, uniform_int
from bertjax.data.store import Split

WINDOW_BLOCKS = 256  # places of the store that a window mixes; so a block is window / 256 rows
_LARGE_STORE = 2**35  # bytes of tokens above which rows are not shuffled as one unless told to
_LARGE_STORE_WINDOW = 2**20  # rows
_SHIFT, _BLOCK, _FIRST_WINDOW = range(3)  # what the bits of an epoch's key are for


def shuffle_window(setting: int, split: Split) -> int:
    """Rows that are shuffled together: what is set, or for -1 what the size of the store asks for.

    The memory of a machine must not decide it: a run would read other rows on another machine.
    """
    if setting >= 0:
        return setting
    token_bytes = split.num_tokens * split.token_shards[0].itemsize if split.num_tokens else 0
    return _LARGE_STORE_WINDOW if token_bytes > _LARGE_STORE else 0


@dataclasses.dataclass(frozen=True)
class RowOrder:
    """A permutation of the rows for each key."""

    num_rows: int  # at most 2**32
    window: int  # rows, at least 256; 0 = all of them are shuffled as one

    def row_ids(self, index: np.ndarray, keys: np.ndarray) -> np.ndarray:
        """Which row comes at an index of the epoch.

        Args:
            index: int64 [m], in [0, num_rows).
            keys: uint64 [m], of the epoch.

        Returns:
            int64 [m], in [0, num_rows).
        """
        if not self.window:
            return permute(index, self.num_rows, keys)
        window, begin, size = self._window_of(index)
        place = np.empty_like(index)
        window_keys = bits64(keys, _FIRST_WINDOW + window)
        for rows in (size == self._span, size != self._span):
            if rows.any():
                inside = (index - begin)[rows]
                place[rows] = permute(inside, int(size[rows][0]), window_keys[rows])
        return self._row_at(begin + place, keys)

    def neighbours(self, index: np.ndarray, keys: np.ndarray, bits: np.ndarray) -> np.ndarray:
        """A random row, int64 [m], of the window that an index of the epoch is in.

        Args:
            index: int64 [m], in [0, num_rows).
            keys: uint64 [m], of the epoch.
            bits: uint64 [m], random.
        """
        _, begin, size = self._window_of(index)
        return self._row_at(begin + uniform_int(bits, size), keys)

    def window_numbers(self, index: np.ndarray) -> np.ndarray:
        """The window, int64 [m], that each index of the epoch is in."""
        return self._window_of(index)[0]

    @property
    def num_windows(self) -> int:
        """Of an epoch; the last is the longest, up to two windows and a part of a block."""
        return max(1, self.num_rows // self._span)

    def blocks(self, window: int, key: np.ndarray) -> list[tuple[int, int]]:
        """The rows [first, end) of each block of a window; `key` uint64 [1] is the epoch's."""
        _, begin, size = self._window_of(np.array([window * self._span]))
        places = np.arange(begin[0], begin[0] + size[0], self._block_rows)
        rows = np.minimum(self._block_rows, begin[0] + size[0] - places)
        firsts = self._row_at(places, np.broadcast_to(key, places.shape))
        ends = firsts + rows
        found = list(zip(firsts.tolist(), np.minimum(ends, self.num_rows).tolist(), strict=True))
        # The shift has taken the end of one block to the beginning.
        return found + [(0, end - self.num_rows) for end in ends.tolist() if end > self.num_rows]

    @property
    def _block_rows(self) -> int:
        return self.window // WINDOW_BLOCKS

    @property
    def _span(self) -> int:
        return self._block_rows * WINDOW_BLOCKS

    def _window_of(self, index: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Number, first index and rows of the window that each index is in."""
        last = self.num_windows - 1
        window = np.minimum(index // self._span, last)
        begin = window * self._span
        return window, begin, np.where(window == last, self.num_rows - begin, self._span)

    def _row_at(self, place: np.ndarray, keys: np.ndarray) -> np.ndarray:
        """The row at a place of the shuffled blocks.

        What does not fill a block stays last; all rows are shifted by a number of the epoch, so
        that these are others in each epoch.
        """
        block, row = np.divmod(place, self._block_rows)
        full = self.num_rows // self._block_rows
        whole = block < full
        if whole.any():
            block[whole] = permute(block[whole], full, bits64(keys[whole], _BLOCK))
        shift = uniform_int(bits64(keys, _SHIFT), self.num_rows)
        return (block * self._block_rows + row + shift) % self.num_rows
