"""Rows of a table by id, and a gradient of the table that adds in a fixed order.

The gradient of a lookup adds the rows of all tokens that have an id. XLA's scatter does that with
atomic additions on GPUs, in the order in which threads arrive: two runs of one program differ by
rounding. The gradient here sorts the ids first, so that equal ones stand side by side as runs, and
adds up the runs inside blocks by products:

    ids        7 7 3 | 9 3 7   ->  sorted  3 3 7 | 7 7 9
    in blocks  (3: 2 rows) (7: 1 row) | (7: 2 rows) (9: 1 row)

A run that lies inside its block is complete. The first and the last run of a block may reach into
the next block. They are a sorted list again, of two entries per block, and are added up in the same
way. In the end each row of the table is written once.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp

from bertjax.config import ModelConfig
from bertjax.parallel.partition import sum_over_rows

_BLOCK = 128  # entries whose runs one product adds up


def look_up(config: ModelConfig, table: jax.Array, ids: jax.Array) -> jax.Array:
    """`jnp.take(table, ids, axis=0)`, with the gradient that `config.lookup_gradient` names.

    Args:
      config: of the model.
      table: [v, d], float32 or float64.
      ids: [b, t], each in [0, v).

    Returns:
      [b, t, d].
    """
    if config.lookup_gradient == "scatter":
        return jnp.take(table, ids, axis=0)
    return _look_up(table.shape[0], table, ids)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _look_up(size: int, table: jax.Array, ids: jax.Array) -> jax.Array:
    return jnp.take(table, ids, axis=0)


def _look_up_forward(size: int, table: jax.Array, ids: jax.Array) -> tuple[jax.Array, jax.Array]:
    return _look_up(size, table, ids), ids


def _look_up_backward(size: int, ids: jax.Array, gradient: jax.Array) -> tuple[jax.Array, None]:
    # Each device sorts and adds its own rows: sorted as one list they would all have to be on it.
    add = sum_over_rows(lambda _, rows: add_rows_by_id(size, *rows))
    return add((), (ids[None], gradient[None])), None


_look_up.defvjp(_look_up_forward, _look_up_backward)


def add_rows_by_id(size: int, ids: jax.Array, rows: jax.Array) -> jax.Array:
    """Adds up the rows of each id, in an order that depends on the ids alone.

    Args:
      size: number of ids, v.
      ids: int [...]; a row whose id is not in [0, v) is not added.
      rows: [..., d].

    Returns:
      [v, d], 0 for an id without rows.
    """
    width = rows.shape[-1]
    ids = jnp.ravel(ids)
    ids = jnp.where((ids >= 0) & (ids < size), ids, size).astype(jnp.int32)
    ids, order = jax.lax.sort_key_val(ids, jnp.arange(ids.size, dtype=jnp.int32))
    sums = jnp.zeros((size, width), rows.dtype)
    for own, added in _add_runs(size, ids, rows.reshape(-1, width)[order]):
        # What has no row of the table has an index of its own behind it, and is dropped.
        index = jnp.where(own < size, own, size + jnp.arange(own.size, dtype=jnp.int32))
        sums = sums.at[index].set(added, mode="drop", unique_indices=True)
    return sums


def _add_runs(size: int, ids: jax.Array, rows: jax.Array) -> list[tuple[jax.Array, jax.Array]]:
    """Adds up the rows of each run of equal ids.

    Args:
      size: an id that stands for none.
      ids: int32 [n], ascending, at most `size`.
      rows: [n, d].

    Returns:
      Pairs of ids [m] and their sums [m, d]. Over all pairs, each id below `size` is there once;
      the others are `size`.
    """
    blocks = max(1, math.ceil(ids.size / _BLOCK))
    padding = (0, blocks * _BLOCK - ids.size)
    ids = jnp.pad(ids, padding, constant_values=size).reshape(blocks, _BLOCK)
    rows = jnp.pad(rows, (padding, (0, 0))).reshape(blocks, _BLOCK, -1)
    starts = ids[:, 1:] != ids[:, :-1]
    run = jnp.pad(jnp.cumsum(starts, axis=1, dtype=jnp.int32), ((0, 0), (1, 0)))  # of each entry
    numbers = jnp.arange(_BLOCK, dtype=jnp.int32)
    is_in_run = run[:, None, :] == numbers[:, None]  # [blocks, runs, entries]
    # HIGHEST: a product with ones and zeros adds up what a GPU or TPU would else round first.
    sums = jnp.matmul(is_in_run.astype(rows.dtype), rows, precision=jax.lax.Precision.HIGHEST)
    own = jnp.min(jnp.where(is_in_run, ids[:, None, :], size), axis=2)
    if blocks == 1:
        return [(own[0], sums[0])]
    last = run[:, -1:]
    inside = jnp.where((numbers > 0) & (numbers < last), own, size)
    # If a block is one run, it is the first one, and the last one is without rows.
    ends = jnp.take_along_axis(sums, last[:, :, None], axis=1) * (last > 0)[:, :, None]
    edges = jnp.concatenate([sums[:, :1], ends], axis=1)
    return [
        (inside.ravel(), sums.reshape(-1, sums.shape[-1])),
        *_add_runs(size, ids[:, [0, -1]].ravel(), edges.reshape(-1, edges.shape[-1])),
    ]
