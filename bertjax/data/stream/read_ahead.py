"""Tells the system which parts of a store are read next, so that it fetches whole blocks at once.

A window of `RowOrder` is fetched when the one before it begins, and let go when it is some windows
behind: then a process maps a few windows at most, however long it reads. This is advice: it changes
no row, and a system that ignores it reads page by page.
"""

from __future__ import annotations

import collections
import concurrent.futures
import mmap
import threading

import numpy as np

from bertjax.data.counter_rng import keys_at
from bertjax.data.store.store import Split
from bertjax.data.stream.row_order import RowOrder

_KEPT_WINDOWS = 4  # threads may be in neighbouring ones

_Range = tuple[mmap.mmap, int, int]  # bytes [begin, begin + length) of a mapped file


class ReadAhead:
    """Follows the positions that are read; safe to share between threads."""

    def __init__(self, split: Split, starts: np.ndarray, order: RowOrder, order_key: int):
        """Fetches nothing yet.

        Args:
            split: mapped from files.
            starts: int64 [num_rows + 1], see `row_index`.
            order: with a window.
            order_key: of the stream; `keys_at` gives each epoch's.
        """
        self._split = split
        self._starts = starts
        self._order = order
        self._key = order_key
        self._lock = threading.Lock()
        # Not by those who wait for rows: asking for a window can take as long as reading it.
        self._pool = concurrent.futures.ThreadPoolExecutor(1, "bertjax-read-ahead")
        self._windows: collections.OrderedDict[int, concurrent.futures.Future[list[_Range]]] = (
            collections.OrderedDict()
        )
        # Rows before their window is there read single pages, not as far ahead as the system would.
        for array in (starts, split.sentence_offsets, *split.token_shards):
            _advise(_ranges(array, [(0, len(array))]), mmap.MADV_RANDOM)

    def follow(self, epoch: np.ndarray, index: np.ndarray) -> None:
        """Fetches the windows of some rows and those after them, where that has not happened yet.

        Args:
            epoch: int64 [b].
            index: int64 [b], in the order of the epoch.
        """
        numbers = np.unique(epoch * self._order.num_windows + self._order.window_numbers(index))
        with self._lock:
            for number in (n for first in numbers.tolist() for n in (first, first + 1)):
                if number in self._windows:
                    continue
                self._windows[number] = self._pool.submit(self._fetch, number)
                if len(self._windows) > _KEPT_WINDOWS:
                    ranges = self._windows.popitem(last=False)[1].result()
                    self._pool.submit(_advise, ranges, mmap.MADV_DONTNEED)

    def _fetch(self, number: int) -> list[_Range]:
        """Asks for the row index of a window, then for its sentences, then for their tokens."""
        epoch, window = divmod(number, self._order.num_windows)
        key = int(keys_at(self._key, np.array([epoch]))[0])
        blocks = [(first, end + 1) for first, end in self._order.blocks(window, key)]
        ranges = _ranges(self._starts, blocks)
        _advise(ranges, mmap.MADV_WILLNEED)
        split = self._split
        sentences = [(int(self._starts[a]), int(self._starts[b - 1]) + 1) for a, b in blocks]
        ranges += (offsets := _ranges(split.sentence_offsets, sentences))
        _advise(offsets, mmap.MADV_WILLNEED)
        tokens: list[_Range] = []
        for a, b in sentences:
            begin, end = (int(split.sentence_offsets[i]) for i in (a, b - 1))
            first, last = np.searchsorted(split.shard_starts, (begin, end - 1), side="right") - 1
            for shard in range(first, last + 1):
                start = int(split.shard_starts[shard])
                part = max(begin - start, 0), min(end, int(split.shard_starts[shard + 1])) - start
                tokens += _ranges(split.token_shards[shard], [part])
        _advise(tokens, mmap.MADV_WILLNEED)
        return ranges + tokens


def _ranges(array: np.ndarray, parts: list[tuple[int, int]]) -> list[_Range]:
    """Elements [first, end) of a mapped array as bytes of its file; none if it is in memory."""
    owner: object = array
    while isinstance(owner, np.ndarray):
        owner = owner.base
    if not isinstance(owner, mmap.mmap):
        return []
    file = np.frombuffer(owner, np.uint8)
    start = array.__array_interface__["data"][0] - file.__array_interface__["data"][0]
    ranges = []
    for first, end in parts:
        begin = start + first * array.itemsize
        page = begin - begin % mmap.PAGESIZE
        ranges.append((owner, page, start + end * array.itemsize - page))
    return ranges


def _advise(ranges: list[_Range], advice: int) -> None:
    for mapped, begin, length in ranges:
        mapped.madvise(advice, begin, length)
