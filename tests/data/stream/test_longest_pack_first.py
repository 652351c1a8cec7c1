"""Packing of lengths: nothing too long, too deep or twice, in as few rows as best fit finds."""

import numpy as np
import pytest

from bertjax.config import packed_predictions
from bertjax.data.stream.longest_pack_first import fit_rows, pack_lengths, rows_for


def draw(name, count, seed=0):
    """Lengths of rows of 512."""
    rng = np.random.default_rng(seed)
    if name == "wikipedia":  # a quarter is full, half of the places are padding
        short = np.minimum(512, 5 + rng.exponential(180, count)).astype(int)
        return np.where(rng.random(count) < 0.25, 512, short)
    if name == "books":  # few rows are not full
        return np.where(rng.random(count) < 0.85, 512, rng.integers(5, 513, count))
    return rng.integers(5, 60, count)  # all short


def tokens(table, lengths):
    return np.where(table >= 0, lengths[table], 0).sum(axis=1)


def best_fit_decreasing(lengths, capacity, depth):
    """Rows that the plain heuristic needs."""
    rows = []
    for length in sorted(lengths, reverse=True):
        open_rows = [row for row in rows if len(row) < depth and sum(row) + length <= capacity]
        if open_rows:
            max(open_rows, key=sum).append(length)
        else:
            rows.append([length])
    return len(rows)


@pytest.mark.parametrize("name", ["wikipedia", "books", "short"])
@pytest.mark.parametrize("depth", [2, 3, 8])
def test_each_is_packed_once_within_room_and_depth(name, depth):
    lengths = draw(name, 1_500)
    table = pack_lengths(lengths, 512, depth)
    assert table.shape[1] == depth
    assert np.array_equal(np.sort(table[table >= 0]), np.arange(1_500))
    assert tokens(table, lengths).max() <= 512
    held = np.where(table >= 0, lengths[table], 0)
    assert (np.diff(held, axis=1) <= 0).all()  # the longest first, then the empty places
    plain = best_fit_decreasing(lengths.tolist(), 512, depth)
    assert len(table) <= 1.01 * plain
    assert len(table) >= max(np.ceil(lengths.sum() / 512), np.ceil(1_500 / depth))


def test_packing_fills_rows():
    # 32 tokens in rows of 8: none is left empty
    assert len(pack_lengths(np.array([8, 5, 3, 4, 4, 2, 6]), 8, 8)) == 4
    assert len(pack_lengths(np.array([5, 5, 5]), 8, 8)) == 3


def test_the_smallest_problems():
    assert pack_lengths(np.array([7]), 8, 2).tolist() == [[0, -1]]
    assert pack_lengths(np.array([3, 5, 4, 4]), 8, 2).tolist() == [[2, 3], [1, 0]]
    assert pack_lengths(np.array([], int), 8, 3).shape == (0, 3)
    assert pack_lengths(np.array([1] * 7), 8, 3).tolist() == [[0, 1, 2], [3, 4, 5], [6, -1, -1]]


def test_more_rows_than_needed_get_the_longest_of_shared_ones():
    lengths = draw("wikipedia", 1_000)
    table = pack_lengths(lengths, 512, 8)
    wide = fit_rows(table, lengths, 900)
    assert len(wide) == 900
    assert np.array_equal(np.sort(wide[wide >= 0]), np.arange(1_000))
    assert (wide[:, 0] >= 0).all()
    assert (np.diff((wide >= 0).astype(int), axis=1) <= 0).all()


def test_fewer_rows_than_needed_leave_out_the_fewest():
    lengths = draw("wikipedia", 1_000)
    table = pack_lengths(lengths, 512, 3)
    narrow = fit_rows(table, lengths, len(table) - 5)
    kept = narrow[narrow >= 0]
    assert len(np.unique(kept)) == len(kept)
    assert len(kept) == 1_000 - np.sort((table >= 0).sum(axis=1))[:5].sum()
    alone = tokens(table, lengths)[table[:, 1] < 0]
    assert lengths.sum() - lengths[kept].sum() == np.sort(alone)[:5].sum()


@pytest.mark.parametrize("name", ["wikipedia", "books", "short"])
@pytest.mark.parametrize(("depth", "count"), [(3, 500), (12, 500), (12, 20_000)])
def test_the_rows_of_a_window_nearly_always_suffice(name, depth, count):
    num_rows = rows_for(draw(name, 20_000, seed=99), count, 512, depth)
    left_out = []
    for seed in range(30):
        lengths = draw(name, count, seed)
        table = fit_rows(pack_lengths(lengths, 512, depth), lengths, num_rows)
        left_out.append(count - (table >= 0).sum())
    assert np.sum(left_out) < 0.001 * 30 * count
    assert np.count_nonzero(left_out) <= 4
    needed = len(pack_lengths(draw(name, 20_000), 512, depth)) * count / 20_000
    # What is spare is in proportion to the spread of a sum, 0.7 of the mean here at most.
    spread = 0.7 * ((1 + count / 20_000) / count) ** 0.5
    assert num_rows < needed * (1 + 2.2 * spread) + 2


@pytest.mark.parametrize("rate", [0.02, 0.15, 0.4])
@pytest.mark.parametrize("depth", [2, 5, 12])
def test_no_row_of_pairs_has_more_masks_than_slots(rate, depth):
    slots = packed_predictions(rate, 128, depth)
    rng = np.random.default_rng(0)
    most = 0
    for _ in range(3_000):
        pairs = rng.integers(1, depth + 1)
        cuts = np.sort(rng.integers(0, 128 - 3 * pairs + 1, pairs))
        lengths = 3 + np.diff(cuts, prepend=0)
        most = max(most, sum(max(1, round(rate * int(n))) for n in lengths))
    assert most <= slots
    assert slots - most <= 0.55 * depth + 2
