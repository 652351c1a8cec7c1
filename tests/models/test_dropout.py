"""The hash behind dropout: against an independent transcription, and against chance."""

import jax
import numpy as np
import pytest

from bertjax.models.dropout import random_bits

MODULUS = 2**32


def make_keys(rows, seed=0):
    return jax.random.split(jax.random.key(seed), rows)


def mix(x: int) -> int:
    x = ((x ^ (x >> 16)) * 0x7FEB352D) % MODULUS
    x = ((x ^ (x >> 15)) * 0x846CA68B) % MODULUS
    return x ^ (x >> 16)


def element(key_words, plane, line, column):
    """The formula of the docstring in plain integers."""
    w0, w1 = map(int, key_words)
    a = mix((plane * 0x9E3779B1 + w0) % MODULUS)
    b = mix((plane * 0x85EBCA77 + w1) % MODULUS)
    line = mix((line * 0x9E3779B1 + a) % MODULUS)
    column = mix((column * 0x85EBCA77 + b) % MODULUS)
    return mix((line + column) % MODULUS)


def test_bits_are_those_of_the_formula():
    keys = make_keys(3)
    words = np.asarray(jax.random.key_data(keys))
    bits = np.asarray(random_bits(keys, (2, 5, 7)))
    assert bits.dtype == np.uint32
    for (row, plane, line, column), value in np.ndenumerate(bits):
        assert value == element(words[row], plane, line, column)
    # Fewer dimensions are one plane, or one line of it.
    np.testing.assert_array_equal(random_bits(keys, (5, 7)), bits[:, 0])
    np.testing.assert_array_equal(random_bits(keys, (7,)), bits[:, 0, 0])


def test_bits_cannot_be_told_from_chance():
    rows, planes, size = 8, 4, 256
    bits = np.asarray(random_bits(make_keys(rows, seed=1), (planes, size, size)))
    n = bits.size

    def share(condition):
        return condition.mean(), 5 * 0.5 / np.sqrt(condition.size)  # five standard deviations

    for bit in range(32):  # each bit is balanced, and so is its change to each neighbour
        values = (bits >> np.uint32(bit)) & 1
        mean, margin = share(values == 1)
        assert abs(mean - 0.5) < margin, bit
        for axis in range(4):
            first, second = np.split(np.take(values, [0, 1], axis=axis), 2, axis=axis)
            mean, margin = share(first != second)
            assert abs(mean - 0.5) < margin, (bit, axis)

    # The masks at a rate of 0.1: counts over lines, columns and squares vary as binomials do.
    dropped = bits < np.uint32(round(0.1 * MODULUS))
    assert abs(dropped.mean() - 0.1) < 5 * np.sqrt(0.09 / n)
    for axes, count in (((2,), size), ((3,), size), ((0, 1), rows * planes)):
        counts = dropped.sum(axis=axes)
        variance = counts.var() / (count * 0.09)
        assert abs(variance - 1) < 6 * np.sqrt(2 / counts.size), axes
    # Corners of rectangles: a hash without its last mix makes these dependent.
    d = dropped - 0.1
    corners = d[..., :-1, :-1] * d[..., 1:, :-1] * d[..., :-1, 1:] * d[..., 1:, 1:]
    assert abs(corners.mean()) < 5 * 0.09**2 / np.sqrt(corners.size)


def test_rows_and_planes_differ():
    bits = np.asarray(random_bits(make_keys(4), (3, 8, 8)))
    assert len({plane.tobytes() for row in bits for plane in row}) == 12


def test_other_generators_are_refused():
    keys = jax.random.split(jax.random.key(0, impl="rbg"), 2)
    with pytest.raises(ValueError, match="needs threefry keys"):
        random_bits(keys, (4,))
