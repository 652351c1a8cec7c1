"""The two-level shuffle: each row once an epoch, in windows that read few places of the store."""

import dataclasses
import mmap

import numpy as np
import pytest
from stream_store import chi_square_excess, make_reader, shared_store

from bertjax.data.counter_rng import bits64, keys_at, permute, stream_key
from bertjax.data.store.store_writer import write_store
from bertjax.data.stream import read_ahead
from bertjax.data.stream.packed_rows import PackedRows
from bertjax.data.stream.reader import RowReader
from bertjax.data.stream.row_order import WINDOW_BLOCKS, RowOrder, shuffle_window
from bertjax.data.stream.rows import RowSpec
from bertjax.testing import make_documents, make_tokenizer

SPEC = {"max_length": 48, "max_predictions": 12}
KEY = stream_key(7)
SIZES = [(1, 256), (255, 256), (256, 256), (257, 256), (5_000, 512), (9_999, 1_000), (300, 10**6)]


def keys(n, epoch=0):
    return np.repeat(keys_at(KEY, np.array([epoch])), n)


def make_windowed(window=512, store=None, **spec):
    split = (store or shared_store()).train
    return RowReader(
        split,
        make_tokenizer(),
        RowSpec(**(spec or SPEC)),
        seed=3,
        stream_id=0,
        shuffle_window=window,
    )


@pytest.mark.parametrize(("n", "window"), SIZES)
@pytest.mark.parametrize("epoch", [0, 1, 10**9])
def test_each_row_comes_once(n, window, epoch):
    order = RowOrder(n, window)
    ids = order.row_ids(np.arange(n), keys(n, epoch))
    assert np.array_equal(np.sort(ids), np.arange(n))
    # The same one by one, from anywhere.
    some = np.random.default_rng(0).integers(0, n, 50)
    assert np.array_equal(order.row_ids(some, keys(50, epoch)), ids[some])


@pytest.mark.parametrize(("n", "window"), SIZES)
def test_a_window_is_its_blocks(n, window):
    order = RowOrder(n, window)
    ids = order.row_ids(np.arange(n), keys(n))
    numbers = order.window_numbers(np.arange(n))
    assert np.array_equal(np.unique(numbers), np.arange(order.num_windows))
    for number in range(order.num_windows):
        blocks = list(order.blocks(number, int(keys(1)[0])))
        rows = np.concatenate([np.arange(first, end) for first, end in blocks])
        assert np.array_equal(np.sort(rows), np.sort(ids[numbers == number]))
        # At most two windows' blocks, a part of one, and the one that the shift has cut.
        assert len(blocks) <= 2 * WINDOW_BLOCKS + 2
        index = np.flatnonzero(numbers == number)
        index = np.tile(index, -(-500 // len(index)))
        bits = bits64(keys(1), 10**6 + np.arange(len(index)))
        near = order.neighbours(index, keys(len(index)), bits)
        assert np.isin(near, rows).all()
        if len(rows) < 400:
            assert len(np.unique(near)) > 0.6 * len(rows)  # 0.71 or more on average


def test_windows_and_epochs_differ():
    n, window = 50_000, 2_560
    order = RowOrder(n, window)
    ids = [order.row_ids(np.arange(n), keys(n, epoch)) for epoch in range(3)]
    for one, other in ((0, 1), (1, 2)):
        assert (ids[one] == ids[other]).sum() < 12  # 1 on average
        first = [set(ids[epoch][:window]) for epoch in (one, other)]
        assert len(first[0] & first[1]) / window < 0.2  # 0.05 on average
    # A window has rows from everywhere.
    places = np.bincount(ids[0][:window] * 16 // n, minlength=16)
    assert places.min() > 80  # of 160 on average, in blocks of ten
    # Within a window neighbours of the store are spread evenly.
    place = np.empty(n, np.int64)
    place[ids[0]] = np.arange(n)
    inside = place[:-1] // window == place[1:] // window
    gaps = (place[1:] - place[:-1])[inside] % window
    assert inside.mean() > 0.85
    assert chi_square_excess(np.bincount(gaps * 16 // window, minlength=16), len(gaps) / 16) < 5


def test_what_does_not_fill_a_block_differs_between_epochs():
    order = RowOrder(9_999, 5_120)  # one window: 499 blocks of 20 rows, and 19 rows
    left_over = [order.blocks(0, int(keys(1, epoch)[0]))[499] for epoch in range(3)]
    assert [end - first for first, end in left_over] == [19] * 3
    assert len(set(left_over)) == 3


def test_without_windows_the_order_is_the_permutation():
    index = np.arange(1_000)
    expected = permute(index, 1_000, keys(1_000))
    assert np.array_equal(RowOrder(1_000, 0).row_ids(index, keys(1_000)), expected)


def test_random_segments_come_from_the_window_and_another_document():
    reader = make_windowed(512)
    split = reader.split
    documents, offsets = (
        a.view(np.int64) for a in (split.document_offsets, split.sentence_offsets)
    )
    n, span = reader.num_rows, 512
    row_ids, segments = reader.draw(np.arange(n))
    is_random = segments.is_random.astype(bool)
    assert 0.5 < is_random.mean() < 0.65
    # Token ranges to sentences, to rows, to documents.
    a, b = (
        np.searchsorted(offsets, begin[is_random], side="right") - 1
        for begin in (segments.a_start, segments.b_start)
    )
    row_of_b = np.searchsorted(reader.starts, b, side="right") - 1
    own, other = (np.searchsorted(documents, s, side="right") - 1 for s in (a, b))
    assert (own == other).mean() < 0.01
    place = np.empty(n, np.int64)
    place[row_ids] = np.arange(n)
    last = reader.order.num_windows - 1
    windows = np.minimum(np.arange(n) // span, last)
    # B begins in a row of the window; truncation may move it into the row after that.
    near = [windows[place[np.maximum(row_of_b - back, 0)]] for back in (0, 1)]
    mine = windows[is_random]
    assert ((near[0] == mine) | (near[1] == mine)).all()
    assert (near[0] == mine).mean() > 0.9
    plain, _ = make_reader(**SPEC).draw(np.arange(n))
    assert (plain != row_ids).mean() > 0.99


@pytest.mark.slow
def test_a_row_is_the_same_in_any_batch_packed_or_not():
    windowed = make_windowed(512)
    for source in (windowed, PackedRows(windowed, 2)):
        positions = 10**9 + np.arange(2_000)
        together = source.rows(positions)
        for i in (0, 700, 1_999):
            alone = source.rows(positions[i : i + 1])
            assert all(np.array_equal(alone[name][0], together[name][i]) for name in together)


def test_a_size_decides_where_nothing_is_set():
    split = shared_store().train
    assert shuffle_window(-1, split) == 0
    assert shuffle_window(0, split) == 0
    assert shuffle_window(4_096, split) == 4_096
    shards = (np.empty(0, np.uint16),)

    class Large:
        num_tokens, token_shards = 2**34, shards

    assert shuffle_window(-1, Large()) == 0
    Large.num_tokens += 1
    assert shuffle_window(-1, Large()) == 2**18


@pytest.mark.slow
@pytest.mark.parametrize("share", [1, 0.9])
def test_blocks_are_asked_for_ahead_of_time(monkeypatch, tmp_path, share):
    """What a window's rows need has been asked for, with the window after it; no more is kept."""
    store = write_store(
        tmp_path / "s", make_tokenizer(), make_documents(3_000, seed=5), shard_tokens=100_000
    )
    asked, let_go = {}, []

    def advise(ranges, advice):
        for mapped, begin, length in ranges:
            assert begin % mmap.PAGESIZE == 0
            assert begin + length <= len(mapped)
            pages = range(begin // mmap.PAGESIZE, -(-(begin + length) // mmap.PAGESIZE))
            if advice == mmap.MADV_WILLNEED:
                asked.setdefault(id(mapped), set()).update(pages)
            else:
                let_go.append(len(pages))

    monkeypatch.setattr(read_ahead, "_advise", advise)
    train = store.train.first_documents(share)
    store = dataclasses.replace(store, train=train)
    reader = make_windowed(512, store)
    split = reader.split
    assert len(split.token_shards) > 3
    offsets = split.sentence_offsets.view(np.int64)

    def pages(array, first, end):
        ((mapped, begin, length),) = read_ahead._ranges(array, [(first, end)])
        file = np.frombuffer(mapped, array.dtype)  # elements, for the header has 128 bytes
        at = 128 // array.itemsize
        assert np.array_equal(file[at + first : at + end], array[first:end])
        assert begin <= 128 + first * array.itemsize < begin + mmap.PAGESIZE
        assert begin + length == 128 + end * array.itemsize
        return id(mapped), set(range(begin // mmap.PAGESIZE, -(-(begin + length) // mmap.PAGESIZE)))

    for position in (0, 5 * 512 + 3, 6 * 512):
        reader.rows(np.array([position]))
        reader._read_ahead._pool.submit(int).result()  # what was asked for before has been done
        for index in range(position // 512 * 512, (position // 512 + 2) * 512):
            row = int(reader.order.row_ids(np.array([index]), reader_key(reader))[0])
            first, end = map(int, reader.starts[row : row + 2])
            begin, stop = int(offsets[first]), int(offsets[end])
            shard = int(np.searchsorted(split.shard_starts, begin, side="right")) - 1
            at = int(split.shard_starts[shard])
            for mapped, needed in (
                pages(reader.starts, row, row + 2),
                pages(split.sentence_offsets, first, end + 1),
                pages(split.token_shards[shard], begin - at, stop - at),
            ):
                assert needed <= asked[mapped]
    assert len(reader._read_ahead._windows) == read_ahead._KEPT_WINDOWS
    assert sum(let_go) > 0


def reader_key(reader):
    return keys_at(reader._keys[0], np.array([0]))
