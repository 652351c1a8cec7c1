"""In which order the rows of an epoch come: shuffled as one, or in windows of blocks.

A shuffle of all rows reads from all parts of the store, so the store must fit the memory or lie on
a fast disk. The alternative has two levels: consecutive rows form blocks, the blocks are shuffled,
some blocks form a window, and the rows of the window are shuffled. Both shuffles are keyed
permutations: each row comes once per epoch, and its place follows from the index without a table.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from bertjax.data.counter_rng import bits64, permute, uniform_int
from bertjax.data.store.store import Split

WINDOW_BLOCKS = 256  # blocks per window; a block has window / 256 rows
_LARGE_STORE = 2**35  # bytes of tokens; above, the default is to shuffle in windows
_LARGE_STORE_WINDOW = 2**18  # rows
_SHIFT, _BLOCK, _FIRST_WINDOW = range(3)  # purposes of the bits of an epoch's key


def shuffle_window(setting: int, split: Split) -> int:
    """The number of rows that are shuffled together: as set, or for -1 by the size of the store.

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
        ids = np.empty_like(index)
        for rows, window, key in self._groups(index, keys):
            begin, size = self._extent(window)
            place_key = bits64(np.array([key], np.uint64), _FIRST_WINDOW + window)
            place = permute(index[rows] - begin, size, place_key)
            ids[rows] = self._row_at(place, window, key)
        return ids

    def neighbours(self, index: np.ndarray, keys: np.ndarray, bits: np.ndarray) -> np.ndarray:
        """A random row, int64 [m], of the window that an index of the epoch is in.

        Args:
            index: int64 [m], in [0, num_rows).
            keys: uint64 [m], of the epoch.
            bits: uint64 [m], random.
        """
        ids = np.empty_like(index)
        for rows, window, key in self._groups(index, keys):
            place = uniform_int(bits[rows], self._extent(window)[1])
            ids[rows] = self._row_at(place, window, key)
        return ids

    def window_numbers(self, index: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """The window, int64 [m], that each index of the epoch is in."""
        return np.minimum(index // self._span, self.num_windows - 1)

    @property
    def num_windows(self) -> int:
        """Windows of an epoch; the last is the longest, up to two windows and a part of a block."""
        return max(1, self.num_rows // self._span)

    def blocks(self, window: int, key: int) -> list[tuple[int, int]]:
        """The rows [first, end) of each block of a window; `key` is the epoch's."""
        firsts = _first_rows(self, window, key)
        rows = np.full(len(firsts), self._block_rows)
        rows[-1] = self._extent(window)[1] - (len(firsts) - 1) * self._block_rows
        ends = (firsts + rows).tolist()
        found = [(a, min(b, self.num_rows)) for a, b in zip(firsts.tolist(), ends, strict=True)]
        # The shift has taken the end of one block to the beginning.
        return found + [(0, end - self.num_rows) for end in ends if end > self.num_rows]

    @property
    def _block_rows(self) -> int:
        return self.window // WINDOW_BLOCKS

    @property
    def _span(self) -> int:
        return self._block_rows * WINDOW_BLOCKS

    def _extent(self, window: int) -> tuple[int, int]:
        """First index of a window, and how many rows it has."""
        begin = window * self._span
        return begin, self.num_rows - begin if window == self.num_windows - 1 else self._span

    def _groups(self, index: np.ndarray, keys: np.ndarray) -> Iterator[tuple[np.ndarray, int, int]]:
        """For each window of each epoch: places in `index`, the window and the key."""
        numbers = self.window_numbers(index)
        for key in np.unique(keys):
            for window in np.unique(numbers[keys == key]):
                yield np.flatnonzero((numbers == window) & (keys == key)), int(window), int(key)

    def _row_at(self, place: np.ndarray, window: int, key: int) -> np.ndarray:
        """The row at a place of a window's blocks, one after the other."""
        block, row = np.divmod(place, self._block_rows)
        return (_first_rows(self, window, key)[block] + row) % self.num_rows


@functools.lru_cache(maxsize=64)
def _first_rows(order: RowOrder, window: int, key: int) -> np.ndarray:
    """The first row of each block of a window.

    Rows that do not fill a block stay last. All rows are shifted by a number of the epoch, so these
    are other rows in each epoch.
    """
    begin, size = order._extent(window)
    block = np.arange(begin, begin + size, order._block_rows) // order._block_rows
    full = order.num_rows // order._block_rows
    keys = np.array([key], np.uint64)
    whole = block < full
    if full:
        block[whole] = permute(block[whole], full, bits64(keys, _BLOCK))
    shift = uniform_int(bits64(keys, _SHIFT), order.num_rows)
    return (block * order._block_rows + shift) % order.num_rows
