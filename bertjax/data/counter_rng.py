"""Random numbers as a pure function of the place where they are used: hashes of key and counter.

A key is 64 bits from (seed, stream, purpose) and a position; element c of a key's sequence is a
hash of the key and c. There is no order of draws, so any row can be made separately, in any batch
and on any machine, with the same result. Only unsigned integers that wrap around are used: no
platform, NumPy version or thread count can change them.

The 64-bit hash is SplitMix64's finalizer (Steele, Lea and Flood 2014), the 32-bit one is lowbias32
(Wellons 2018), with the key's high half added between its two multiplications.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

_GAMMA = 0x9E3779B97F4A7C15  # 2**64 / golden ratio, odd
_MASK64 = 2**64 - 1
_FEISTEL_ROUNDS = 12  # with 8, places were up to 4 % off for permutations of five


def stream_key(*words: int) -> int:
    """Folds integers of any size and sign, in order, into a 64-bit key."""
    key = 0
    for word in words:
        key = int(mix64(np.array([(key ^ (word & _MASK64)) + _GAMMA & _MASK64], np.uint64))[0])
    return key


def keys_at(key: int, positions: np.ndarray) -> np.ndarray:
    """The keys of a stream at some positions; different positions never share a key.

    Args:
        key: from `stream_key`.
        positions: integer [n], at least 0.

    Returns:
        uint64 [n].
    """
    return bits64(np.array([key], np.uint64), positions.astype(np.uint64))


def bits64(keys: np.ndarray, counters: np.ndarray | int) -> npt.NDArray[np.uint64]:
    """64 random bits for each key and counter; the shapes broadcast."""
    counters = np.atleast_1d(np.asarray(counters, np.uint64))
    return mix64(keys + (counters + np.uint64(1)) * np.uint64(_GAMMA))


def bits32(keys: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """32 random bits for each key and column: the fast hash, for whole rows of elements.

    Args:
        keys: uint64 [n].
        columns: uint32 [m], the same for each key, or [n, m].

    Returns:
        uint32 [n, m].
    """
    low = keys.astype(np.uint32)[:, None]
    high = (keys >> np.uint64(32)).astype(np.uint32)[:, None]
    x: np.ndarray = low + columns * np.uint32(0x9E3779B9)
    shifted = x >> np.uint32(16)
    x ^= shifted
    x *= np.uint32(0x7FEB352D)
    np.right_shift(x, np.uint32(15), out=shifted)
    x ^= shifted
    x ^= high
    x *= np.uint32(0x846CA68B)
    np.right_shift(x, np.uint32(16), out=shifted)
    x ^= shifted
    return x


def uniform_int(bits: npt.NDArray[np.uint64], n: np.ndarray | int) -> npt.NDArray[np.int64]:
    """Uniform integers in [0, n) from 64 random bits: floor(bits * n / 2**64).

    Args:
        bits: uint64, any shape.
        n: integers in [1, 2**32], broadcast with `bits`. No value is more or less likely than it
            should be by more than one part in 2**32.

    Returns:
        int64.
    """
    sizes: npt.NDArray[np.uint64] = np.asarray(n).astype(np.uint64)
    low = ((bits & np.uint64(0xFFFFFFFF)) * sizes) >> np.uint64(32)
    return (((bits >> np.uint64(32)) * sizes + low) >> np.uint64(32)).astype(np.int64)


def uniform_float(bits: np.ndarray) -> np.ndarray:
    """Uniform float64 in [0, 1) from 64 random bits: a multiple of 2**-53."""
    return (bits >> np.uint64(11)) * 2.0**-53


def coin_flips(keys: np.ndarray, flips: np.ndarray) -> np.ndarray:
    """Exact draws from Binomial(flips, 1/2).

    Args:
        keys: uint64 [n].
        flips: int64 [n], at least 0.

    Returns:
        int64 [n].
    """
    words = (flips + 63) >> 6
    row = np.repeat(np.arange(len(keys)), words)
    word = np.arange(len(row)) - np.repeat(np.cumsum(words) - words, words)
    unused = np.clip((word + 1) * 64 - flips[row], 0, 63).astype(np.uint64)
    heads = np.bitwise_count(bits64(keys[row], word) >> unused)
    return np.bincount(row, heads, len(keys)).astype(np.int64)


def permute(index: np.ndarray, n: int, keys: np.ndarray) -> npt.NDArray[np.int64]:
    """Shuffles [0, n) without a table: where a keyed permutation sends each index.

    A Feistel network over a x b >= n with modular addition in place of exclusive or, applied until
    the result is below n (Black and Rogaway 2002). a and b are about sqrt(n), so hardly any result
    is above n, and one application is nearly always enough.

    Args:
        index: integer [m], in [0, n).
        n: size of the permutation, 1 to 2**62.
        keys: uint64 [m] or [1]; each key is a permutation of its own.

    Returns:
        int64 [m], in [0, n).
    """
    a = math.isqrt(n - 1) + 1
    b = -(-n // a)
    keys = np.broadcast_to(keys, index.shape)
    out = _feistel(index.astype(np.uint64), a, b, keys)
    outside = np.flatnonzero(out >= n)
    while len(outside):
        out[outside] = _feistel(out[outside], a, b, keys[outside])
        outside = outside[out[outside] >= n]
    return out.astype(np.int64)


def _feistel(x: np.ndarray, a: int, b: int, keys: np.ndarray) -> np.ndarray:
    sizes = np.uint64(a), np.uint64(b)
    halves = [x // sizes[1], x % sizes[1]]
    for i in range(_FEISTEL_ROUNDS):
        side, other = i % 2, 1 - i % 2
        # The top 32 bits are enough: a half is below 2**31.
        hashed = bits64(mix64(halves[other] + keys), i) >> np.uint64(32)
        moved = halves[side] + ((hashed * sizes[side]) >> np.uint64(32))
        halves[side] = np.where(moved >= sizes[side], moved - sizes[side], moved)
    return halves[0] * sizes[1] + halves[1]


def mix64(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """uint64 [n] mixed by splitmix64's finalizer: each bit influences each bit of the result."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
