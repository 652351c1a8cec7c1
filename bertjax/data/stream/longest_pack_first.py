"""Which pairs share a row: longest-pack-first packing of lengths, at most `depth` per row.

The best-fit decreasing of Krell et al. 2021 ("LPFHP" in Efficient Sequence Packing without
Cross-contamination): from the longest length to the shortest, each goes to the row in which it
leaves the least room. Rows with the same lengths are one group with a count, so the time depends
on the number of different lengths and hardly on the number of pairs.
"""

from __future__ import annotations

import collections
import math

import numpy as np

_DEVIATIONS = 2  # of spare room: an overflow of a window is rare, and small where it happens

_Group = tuple[int, tuple[int, ...]]  # number of rows, the lengths in each of them


def pack_lengths(lengths: np.ndarray, capacity: int, depth: int) -> np.ndarray:
    """Packs everything into as few rows as this heuristic finds.

    Args:
        lengths: integer [n], 1 to `capacity`.
        capacity: of a row.
        depth: largest number of things in a row.

    Returns:
        int32 [rows, depth]: indices into `lengths`, the longest first, then -1. Equal lengths are
        taken in their order.
    """
    groups = pack_histogram(np.bincount(lengths, minlength=capacity + 1), capacity, depth)
    held = np.zeros((len(groups), depth), np.int64)
    for i, (_, group) in enumerate(groups):
        held[i, : len(group)] = group
    held = np.repeat(held, [count for count, _ in groups], axis=0)
    table = np.full(held.shape, -1, np.int32)
    # Places and things, both by descending length.
    places = np.argsort(-held, axis=None, kind="stable")[: len(lengths)]
    table.ravel()[places] = np.argsort(-np.asarray(lengths, np.int64), kind="stable")
    return table


def pack_histogram(counts: np.ndarray, capacity: int, depth: int) -> list[_Group]:
    """The groups that hold counts[length] things of each length."""
    done: list[_Group] = []
    by_room: dict[int, list[_Group]] = collections.defaultdict(list)
    rooms = 0  # bit r is set where by_room[r] is not empty

    def add(count: int, group: tuple[int, ...], room: int) -> None:
        nonlocal rooms
        if count == 0:
            return
        if room == 0 or len(group) == depth:
            done.append((count, group))
        else:
            by_room[room].append((count, group))
            rooms |= 1 << room

    for length in range(capacity, 0, -1):
        left = int(counts[length])
        while left:
            fitting = rooms >> length
            if not fitting:
                # A new row is the best fit for as many things as it holds.
                each = min(depth, capacity // length)
                add(left // each, (length,) * each, capacity - each * length)
                add(left % each > 0, (length,) * (left % each), capacity - left % each * length)
                break
            room = length + (fitting & -fitting).bit_length() - 1
            count, group = by_room[room].pop()
            if not by_room[room]:
                rooms ^= 1 << room
            taken = min(count, left)
            left -= taken
            add(count - taken, group, room)
            add(taken, (*group, length), room - length)
    return done + [group for groups in by_room.values() for group in groups]


def fit_rows(table: np.ndarray, lengths: np.ndarray, num_rows: int) -> np.ndarray:
    """Makes a packing have a given number of rows.

    If there are too few rows, the longest things of rows with several move to rows of their own.
    If there are too many, the rows with the fewest things (the emptiest of these first) are left
    out with their content.

    Args:
        table: of `pack_lengths`.
        lengths: what it packed.
        num_rows: at most len(lengths).

    Returns:
        int32 [num_rows, depth], like `table`.
    """
    if len(table) > num_rows:
        tokens = np.where(table >= 0, lengths[table], 0).sum(axis=1)
        order = np.lexsort((tokens, (table >= 0).sum(axis=1)))
        return table[np.sort(order[len(table) - num_rows :])]
    while len(table) < num_rows:
        shared = np.flatnonzero(table[:, 1] >= 0)[: num_rows - len(table)]
        moved = np.full((len(shared), table.shape[1]), -1, np.int32)
        moved[:, 0] = table[shared, 0]
        table = table.copy()
        table[shared, :-1] = table[shared, 1:]
        table[shared, -1] = -1
        table = np.concatenate([table, moved])
    return table


def rows_for(sample: np.ndarray, count: int, capacity: int, depth: int) -> int:
    """How many rows nearly always hold `count` things, by a sample of their lengths.

    The rows that the sample needs, scaled, and `_DEVIATIONS` standard deviations of the scaled
    total on top: the spread of a sum of `count` lengths and the sample's own error.

    Args:
        sample: integer [s], lengths.
        count: things to pack.
        capacity: of a row.
        depth: things in a row at most.
    """
    size = len(sample)
    needed = len(pack_lengths(sample, capacity, depth)) * count / size
    sample = sample.astype(np.int64)
    variance = (size * int((sample**2).sum()) - int(sample.sum()) ** 2) / size**2
    spread = math.sqrt(variance * count * (1 + count / size)) / capacity
    return min(count, math.ceil(needed + _DEVIATIONS * spread))
