"""The counter-based hash: known answers from plain integers, and fair draws."""

import math

import numpy as np
import pytest
from stream_store import chi_square_excess

from bertjax.data.counter_rng import (
    bits32,
    bits64,
    coin_flips,
    keys_at,
    permute,
    stream_key,
    uniform_float,
    uniform_int,
)

M32, M64 = 2**32 - 1, 2**64 - 1
GAMMA = 0x9E3779B97F4A7C15


def mix64(x):
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & M64
    x = (x ^ x >> 27) * 0x94D049BB133111EB & M64
    return x ^ x >> 31


def plain_key(*words):
    key = 0
    for word in words:
        key = mix64((key ^ word & M64) + GAMMA & M64)
    return key


def plain_bits64(key, counter):
    return mix64(key + (counter + 1) * GAMMA & M64)


def plain_bits32(key, column):
    x = (key & M32) + column * 0x9E3779B9 & M32
    x ^= x >> 16
    x = x * 0x7FEB352D & M32
    x ^= x >> 15
    x ^= key >> 32
    x = x * 0x846CA68B & M32
    return x ^ x >> 16


def plain_permute(index, n, key):
    a = math.isqrt(n - 1) + 1
    b = -(-n // a)
    while True:
        halves = list(divmod(index, b))
        for i in range(12):
            side = i % 2
            size = (a, b)[side]
            hashed = plain_bits64(mix64(halves[1 - side] + key & M64), i) >> 32
            halves[side] = (halves[side] + (hashed * size >> 32)) % size
        index = halves[0] * b + halves[1]
        if index < n:
            return index


def test_known_answers():
    # The first outputs of the published SplitMix64 from seed 0.
    published = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    assert bits64(np.zeros(1, np.uint64), np.arange(3)).tolist() == published


@pytest.mark.parametrize("words", [(0,), (7, 0, 2), (-1,), (2**64 - 1, 3), (10**30, 5, 1, 9)])
def test_equals_plain_integers(words):
    key = stream_key(*words)
    assert key == plain_key(*words)
    positions = np.array([0, 1, 10**7, 2**40, 2**63 - 1])
    keys = keys_at(key, positions)
    assert keys.tolist() == [plain_bits64(key, int(p)) for p in positions]
    columns = np.array([0, 1, 127, 511, 2**32 - 1], np.uint32)
    expected = [[plain_bits32(int(k), int(c)) for c in columns] for k in keys]
    assert bits32(keys, columns).tolist() == expected
    assert bits32(keys, np.tile(columns, (5, 1))).tolist() == expected
    assert bits64(keys, 2**64 - 1).tolist() == [plain_bits64(int(k), M64) for k in keys]
    for n in (1, 2, 3, 1000, 2**31 + 11, 2**32):
        assert uniform_int(keys, n).tolist() == [int(k) * n >> 64 for k in keys]
    assert uniform_float(keys).tolist() == [(int(k) >> 11) / 2**53 for k in keys]
    for n in (1, 2, 3, 7, 1000, 10**6 + 3, 2**40):
        index = positions % n
        assert permute(index, n, keys).tolist() == [
            plain_permute(int(i), n, int(k)) for i, k in zip(index, keys, strict=True)
        ]


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 6, 7, 8, 15, 16, 17, 100, 1023, 1024, 1025, 99_991])
def test_permute_is_a_bijection(n):
    for key in range(3):
        out = permute(np.arange(n), n, keys_at(5, np.array([key])))
        assert np.array_equal(np.sort(out), np.arange(n))


def test_permute_of_a_large_range_has_no_duplicates():
    n = 2**40 - 5
    index = np.concatenate([np.arange(300_000), np.arange(n - 300_000, n)])
    out = permute(index, n, keys_at(5, np.array([1])))
    assert out.min() >= 0
    assert out.max() < n
    assert len(np.unique(out)) == len(index)
    counts = np.bincount(out * 64 // n, minlength=64)
    assert chi_square_excess(counts, len(index) / 64) < 5


@pytest.mark.parametrize("n", [2, 3, 5, 12, 30])
def test_permute_has_no_favourite_places(n):
    keys = keys_at(stream_key(n), np.arange(30_000))
    places = np.stack([permute(np.full(len(keys), i), n, keys) for i in range(n)])
    for place in places:
        assert chi_square_excess(np.bincount(place, minlength=n), len(keys) / n) < 5
    if n > 2:  # where a neighbour lands does not follow from where the first landed
        steps = np.bincount((places[1] - places[0]) % n, minlength=n)
        assert steps[0] == 0
        assert chi_square_excess(steps[1:], len(keys) / (n - 1)) < 5


def test_permute_differs_between_keys():
    n = 1000
    first, second = (permute(np.arange(n), n, keys_at(1, np.array([e]))) for e in (0, 1))
    # Two unrelated permutations agree in one place on average.
    assert (first == second).sum() < 8
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.15
    assert abs(np.corrcoef(first, np.arange(n))[0, 1]) < 0.15


def test_bits_are_fair_and_unrelated():
    keys = keys_at(stream_key(1), np.arange(4000))
    for bits, width in (
        (bits32(keys, np.arange(64, dtype=np.uint32)), 32),
        (bits64(keys[:, None], np.arange(64)), 64),
    ):
        ones = np.stack([((bits >> np.array(i, bits.dtype)) & np.array(1, bits.dtype)).mean()
                         for i in range(width)])  # fmt: skip
        assert abs(ones - 0.5).max() < 5 * 0.5 / math.sqrt(bits.size)
        uniform = bits / 2.0**width
        for one, other in (
            (uniform[:, 1:], uniform[:, :-1]),  # neighbouring columns
            (uniform[1:], uniform[:-1]),  # neighbouring positions
        ):
            correlation = np.corrcoef(one.ravel(), other.ravel())[0, 1]
            assert abs(correlation) < 5 / math.sqrt(one.size)
        top = (uniform * 256).astype(int).ravel()
        assert chi_square_excess(np.bincount(top, minlength=256), top.size / 256) < 5


def test_keys_that_share_a_half_give_other_bits():
    columns = np.arange(1000, dtype=np.uint32)
    low, high = bits32(np.array([1, 1 + 2**32, 2], np.uint64), columns)[[0, 1]]
    assert (low != high).mean() > 0.99


@pytest.mark.parametrize("n", [1, 2, 3, 10, 1000])
def test_uniform_int_is_uniform(n):
    bits = keys_at(stream_key(9), np.arange(200_000))
    counts = np.bincount(uniform_int(bits, n), minlength=n)
    assert len(counts) == n
    if n > 1:
        assert chi_square_excess(counts, len(bits) / n) < 5


def test_coin_flips_are_binomial():
    draws = 60_000
    for k in (1, 2, 7, 63, 64, 65, 130):
        heads = coin_flips(keys_at(stream_key(k), np.arange(draws)), np.full(draws, k))
        expected = np.array([math.comb(k, i) / 2**k for i in range(k + 1)]) * draws
        likely = expected >= 5
        counts = np.bincount(heads, minlength=k + 1)
        assert counts.size == k + 1
        assert counts[~likely].sum() <= 5 * expected[~likely].sum() + 10
        assert chi_square_excess(counts[likely], expected[likely]) < 5


def test_coin_flips_of_unequal_counts_stand_alone():
    keys = keys_at(stream_key(2), np.arange(6))
    flips = np.array([0, 3, 1_000_000, 0, 64, 65])
    heads = coin_flips(keys, flips)
    assert heads[0] == heads[3] == 0
    assert abs(heads[2] - 500_000) < 5 * 500
    alone = [coin_flips(keys[i : i + 1], flips[i : i + 1])[0] for i in range(6)]
    assert heads.tolist() == alone
    assert coin_flips(keys[:0], flips[:0]).tolist() == []
