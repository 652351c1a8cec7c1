"""Dropout whose mask is a function of the row, and not of the batch that contains it.

Every row has its own key. So a row has the same mask in one microbatch or in eight, on any mesh, in
a scanned or an unrolled stack of layers, and when it is recomputed (remat).

The bits are a counter-based hash of the key and the element's place. JAX's generator, threefry,
needs over a hundred operations per element, this hash about ten, and a fused kernel can compute it
too. See docs/design/model.md.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np

# Odd, so that counters stay distinct.
_ROW_STEP, _COLUMN_STEP = np.uint32(0x9E3779B1), np.uint32(0x85EBCA77)


def split_row_keys(row_keys: jax.Array | None, count: int) -> list[jax.Array | None]:
    """Derives the keys of the layers, or of the dropout sites of one layer.

    Args:
      row_keys: typed PRNG keys [b], or None = no dropout.
      count: number of sets of keys; a larger number does not change the first ones.

    Returns:
      `count` times keys [b], or None where `row_keys` is None.
    """
    if row_keys is None:
        return [None] * count
    keys = jax.vmap(lambda key: jax.random.split(key, count))(row_keys)
    return [keys[:, index] for index in range(count)]


def dropout(x: jax.Array, rate: float, row_keys: jax.Array | None) -> jax.Array:
    """Zeroes each element with probability `rate` and scales the others by 1 / (1 - rate).

    Args:
      x: activations [b, ..., columns].
      rate: probability of a zero, in [0, 1), resolved to 2**-32.
      row_keys: typed threefry keys [b], one per row; None = no dropout, x is returned unchanged.

    Returns:
      An array like `x`.

    Raises:
      ValueError: the number of keys is not the number of rows, or they are of another kind.
    """
    if row_keys is None or rate == 0.0:
        return x
    if row_keys.shape != x.shape[:1]:
        raise ValueError(
            f"dropout got row_keys of shape {row_keys.shape} for activations {x.shape}; it needs "
            f"one typed key per row, shape {x.shape[:1]} (jax.random.key, not PRNGKey)"
        )
    keep = random_bits(row_keys, x.shape[1:]) >= drop_threshold(rate)
    # 1 / (1 - rate) rounded to bfloat16 is off by 0.2 %, so the product is computed in float32.
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return jnp.where(keep, wide / (1.0 - rate), 0.0).astype(x.dtype)


def random_bits(row_keys: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Random words, each a function of its row's key and its place in the row.

    With (w0, w1) the words of the key, the element at line r and column c of plane g (a head; the
    only plane if `shape` has fewer than three dimensions) is

        mix(mix(r * 0x9E3779B1 + a) + mix(c * 0x85EBCA77 + b)),
        a = mix(g * 0x9E3779B1 + w0),  b = mix(g * 0x85EBCA77 + w1),

    all modulo 2**32, mix being lowbias32 (Wellons 2018, "Prospecting for Hash Functions").

    Args:
      row_keys: typed threefry keys [n].
      shape: of the words of one row, (..., lines, columns).

    Returns:
      uint32 [n, *shape].

    Raises:
      ValueError: the keys are not threefry's.
    """
    *planes, lines, columns = (1, *shape) if len(shape) < 2 else shape
    a, b = plane_words(row_keys, math.prod(planes))
    line = jnp.arange(lines, dtype=jnp.uint32)[:, None]
    column = jnp.arange(columns, dtype=jnp.uint32)[None, :]
    bits = place_bits(line, column, a[..., None, None], b[..., None, None])
    return bits.reshape(row_keys.shape[0], *shape)


def drop_threshold(rate: float) -> np.uint32:
    """Elements whose random bits are below this are dropped."""
    return np.uint32(round(rate * 2**32))


def plane_words(row_keys: jax.Array, num_planes: int) -> tuple[jax.Array, jax.Array]:
    """The words a and b of `random_bits`, uint32 [n, planes] each.

    Raises:
      ValueError: the keys are not threefry's.
    """
    words = jax.random.key_data(row_keys)
    if words.shape[-1] != 2:
        raise ValueError(
            f"dropout needs threefry keys of two words, found keys of {words.shape[-1]}: unset "
            "jax_default_prng_impl"
        )
    plane = jnp.arange(num_planes, dtype=jnp.uint32)
    return (
        _mix(plane * _ROW_STEP + words[:, :1]),
        _mix(plane * _COLUMN_STEP + words[:, 1:]),
    )


def place_bits(line: jax.Array, column: jax.Array, a: jax.Array, b: jax.Array) -> jax.Array:
    """The bits of the elements at the lines and columns of the planes whose words are a and b.

    All uint32, with shapes that broadcast. Only the arguments are read, so a kernel can compute any
    block of a plane.
    """
    return _mix(_mix(line * _ROW_STEP + a) + _mix(column * _COLUMN_STEP + b))


def _mix(x: jax.Array) -> jax.Array:
    """lowbias32: a bijection of 32-bit words in which every input bit flips half of the output."""
    x = (x ^ (x >> np.uint32(16))) * np.uint32(0x7FEB352D)
    x = (x ^ (x >> np.uint32(15))) * np.uint32(0x846CA68B)
    return x ^ (x >> np.uint32(16))
