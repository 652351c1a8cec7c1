"""Mixtures: a pure function of the position, in the shares asked for, over any kind of source."""

import numpy as np
import pytest
from stream_store import make_reader, shared_store

from bertjax.data.store.store_writer import write_store
from bertjax.data.stream.mixture import MixedRows, whole_weights
from bertjax.data.stream.packed_rows import PackedRows
from bertjax.data.stream.reader import evaluation_batches
from bertjax.data.stream.tf_data import BatchStream
from bertjax.testing import make_documents, make_tokenizer

SPEC = {"max_length": 48, "max_predictions": 12}


class Numbers:
    """A source whose row at a position is the position."""

    max_length = 8

    def __init__(self, num_rows=100):
        self.num_rows = num_rows

    def rows(self, positions):
        return {"input_ids": positions[:, None] * np.ones(2, int), "row_ids": positions}


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mixture") / "other"
    return write_store(
        folder, make_tokenizer(), make_documents(300, seed=8), make_documents(9, seed=9)
    )


@pytest.fixture
def readers(other):
    return make_reader(seed=3, **SPEC), make_reader(other, seed=4, **SPEC)


@pytest.mark.parametrize("weights", [(7, 3), (1, 1, 1), (1,), (1, 999_999), (5, 2, 90, 1, 13)])
@pytest.mark.parametrize("start", [0, 10**15])
def test_shares_are_exact_and_evenly_spread(weights, start):
    mixture = MixedRows([Numbers() for _ in weights], weights)
    total = sum(weights)
    length = 3 * total if total < 1000 else 50_000
    number, own = mixture.locate(start + np.arange(length))
    before, _ = mixture.locate(np.arange(start % total))
    for k, weight in enumerate(weights):
        # Its rows come in order, none twice and none left out.
        done = start // total * weight + (before == k).sum()
        assert own[number == k].tolist() == list(range(done, done + (number == k).sum()))
        # At no place is it ahead or behind by more rows than there are sources.
        seen = np.cumsum(number == k)
        assert np.abs(seen - np.arange(1, length + 1) * weight / total).max() <= len(weights)
        if total < 1000:
            assert (number == k).sum() == 3 * weight


def test_weights_become_millionths_of_their_sum():
    assert whole_weights([0.7, 0.3]) == (700_000, 300_000)
    assert whole_weights([7, 3]) == (700_000, 300_000)
    assert whole_weights([1, 1, 1]) == (333_333,) * 3
    assert whole_weights([1, 1e-9]) == (1_000_000, 1)


def test_rows_are_those_of_the_sources(readers):
    mixture = MixedRows(readers, (700_000, 300_000))
    positions = 10**9 + np.arange(200)
    batch = mixture.rows(positions)
    number, own = mixture.locate(positions)
    assert (number == 1).sum() == 60
    for k, reader in enumerate(readers):
        expected = reader.rows(own[number == k])
        expected["row_ids"] = expected["row_ids"] + k * readers[0].num_rows
        assert expected.keys() == batch.keys()
        for name, rows in expected.items():
            assert np.array_equal(batch[name][number == k], rows), name
            assert batch[name].dtype == rows.dtype, name


@pytest.mark.parametrize("packed", [False, True])
def test_a_row_is_the_same_in_any_batch_and_on_any_host(readers, packed):
    sources = [PackedRows(reader, 2) for reader in readers] if packed else readers
    mixture = MixedRows(sources, (2, 1))
    positions = 10**7 + np.arange(60)
    together = mixture.rows(positions)
    for i in (0, 1, 2, 59):
        alone = mixture.rows(positions[i : i + 1])
        assert all(np.array_equal(alone[name][0], together[name][i]) for name in together)
    shuffled = np.random.default_rng(0).permutation(60)
    again = mixture.rows(positions[shuffled])
    assert all(np.array_equal(again[name], together[name][shuffled]) for name in together)
    for host in range(2):
        offsets = np.split(np.arange(20), 2)[host]
        with BatchStream(
            mixture, global_batch_size=20, offsets=offsets, position=10**7, num_threads=2
        ) as stream:
            for batch in range(3):
                rows = next(stream)
                for name in rows:
                    expected = together[name][20 * batch + offsets]
                    assert np.array_equal(rows[name], expected), name


def test_by_size_each_row_comes_once(readers):
    mixture = MixedRows(readers)
    n = mixture.num_rows
    assert n == sum(reader.num_rows for reader in readers)
    for epoch in (0, 5):
        ids = mixture.rows(epoch * n + np.arange(n))["row_ids"]
        assert np.array_equal(np.sort(ids), np.arange(n))


def test_sizes_beyond_32_bits_keep_their_shares():
    sizes = [9 * 10**9, 10**9, 3]
    mixture = MixedRows([Numbers(size) for size in sizes])
    number, own = mixture.locate(10**17 + np.arange(10**5))
    assert (number == 0).mean() == pytest.approx(0.9, abs=1e-4)
    assert (own >= 0).all()
    assert own[number == 0][0] == pytest.approx(0.9 * 10**17, rel=1e-6)


def test_held_out_rows_come_once(other):
    readers = [make_reader(store, "heldout", **SPEC) for store in (shared_store(), other)]
    batches = evaluation_batches(MixedRows(readers), global_batch_size=32)
    ids = np.concatenate([batch["row_ids"] for batch in batches])
    n = sum(reader.num_rows for reader in readers)
    assert np.array_equal(np.sort(ids[ids >= 0]), np.arange(n))


def test_sources_of_other_rows_are_refused(other):
    sources = [make_reader(**SPEC), make_reader(other, max_length=64)]
    with pytest.raises(ValueError, match=r"rows of \[48, 64\] tokens"):
        MixedRows(sources)
    with pytest.raises(ValueError, match=r"2 sources .* 1 weights"):
        MixedRows([sources[0], sources[0]], (1,))
