"""The work of one program of the attention kernels: blocks of queries against blocks of keys.

Arrays in fast memory are [block, k] of one head and [block, block] of its scores. See
docs/design/attention.md; `attention_kernel.py` calls these.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from bertjax.models.dropout import drop_threshold, place_bits
from bertjax.models.layers import product_precision
from bertjax.models.visibility import Visibility

_Keep = Callable[..., jax.Array]
_Tile = Callable[..., tuple[jax.Array, ...]]

_MASKED = -1e30  # the score of probability 0; its difference from any other score is finite


@dataclasses.dataclass(frozen=True)
class Tiling:
    """How a device divides the work.

    Attributes:
      block: queries, or keys, in fast memory at a time.
      heads: heads per program of the grid, computed one after the other.
      head_size: columns of a head, padding included.
      joint: whether a program may write into the middle of an array's lines; then the gradients of
        q, k and v are written side by side.
    """

    block: int
    heads: int
    head_size: int
    joint: bool


def forward_kernel(
    q_ref: Any,
    k_ref: Any,
    v_ref: Any,
    visibility: Visibility,
    word_ref: Any,
    output_ref: Any,
    log_sum_exp_ref: Any,
    *,
    tiling: Tiling,
    num_blocks: int,
    scale: float,
    dropout_rate: float,
) -> None:
    """The output of one block of queries, over the blocks of keys."""
    i = pl.program_id(2) if num_blocks > 1 else 0
    for head in range(tiling.heads):
        columns = pl.ds(head * tiling.head_size, tiling.head_size)
        q = q_ref[0, _block(i, tiling), columns]
        wide = log_sum_exp_ref.dtype
        keep = _mask_of(word_ref, head, dropout_rate, tiling)

        def attend(
            j: Any, carry: Any, q: Any = q, columns: Any = columns, keep: _Keep = keep
        ) -> Any:
            highest, total, output = carry
            keys = _block(j, tiling)
            s = _scores(q, k_ref[0, keys, columns], visibility, i, j, tiling, scale)
            new_highest = jnp.maximum(highest, jnp.max(s, axis=1, keepdims=True))
            old = jnp.exp(highest - new_highest)
            p = jnp.exp(s - new_highest)
            total = total * old + jnp.sum(p, axis=1, keepdims=True)
            p = keep(p, i, j)
            v = v_ref[0, keys, columns]
            return new_highest, total, output * old + _dot(p.astype(v.dtype), v, (1, 0))

        start = (
            jnp.full((tiling.block, 1), _MASKED, wide),
            jnp.zeros((tiling.block, 1), wide),
            jnp.zeros(q.shape, wide),
        )
        visited = visibility.key_blocks(i, num_blocks)
        highest, total, output = _loop(num_blocks, visited, attend, start)
        sees_any = visibility.sees_any(_block(i, tiling))  # else the sums are of masked scores
        output = output * jnp.where(sees_any, 1 / (total * (1 - dropout_rate)), 0)
        output_ref[0, :, columns] = output.astype(output_ref.dtype)
        log_sum_exp = jnp.where(sees_any, highest + jnp.log(total), 0)
        log_sum_exp_ref[0, 0, pl.ds(head, 1), :] = log_sum_exp.T


def backward_kernel(
    q_ref: Any,
    k_ref: Any,
    v_ref: Any,
    output_ref: Any,
    gradient_ref: Any,
    log_sum_exp_ref: Any,
    visibility: Visibility,
    word_ref: Any,
    *result_refs: Any,
    tiling: Tiling,
    num_blocks: int,
    scale: float,
    dropout_rate: float,
) -> None:
    """The gradients of one block: first as keys, over the blocks of queries, then as queries.

    If a row is one block, both parts share the probabilities. `result_refs` are those of q, k and
    v, or one that holds the three side by side, all heads of each.
    """
    here = pl.program_id(2) if num_blocks > 1 else 0
    for head in range(tiling.heads):
        columns = pl.ds(head * tiling.head_size, tiling.head_size)
        wide = log_sum_exp_ref.dtype
        keep = _mask_of(word_ref, head, dropout_rate, tiling)

        def tile(
            i: Any, j: Any, head: int = head, columns: Any = columns, keep: _Keep = keep
        ) -> tuple[jax.Array, ...]:
            """q, dO, the dropped p and the gradient of the scores of block i of queries, j of keys.

            The last two are too small by 1 - dropout_rate and too large by that.
            """
            queries, keys = _block(i, tiling), _block(j, tiling)
            q, k = q_ref[0, queries, columns], k_ref[0, keys, columns]
            gradient, v = gradient_ref[0, queries, columns], v_ref[0, keys, columns]
            s = _scores(q, k, visibility, i, j, tiling, scale)
            p = jnp.exp(s - _column(log_sum_exp_ref[0, 0, pl.ds(head, 1), queries]))
            dp = keep(_dot(gradient, v, (1, 1)), i, j)
            # The sum over keys of p * dp, which the softmax subtracts, is that over columns of
            # o * do.
            output = output_ref[0, queries, columns].astype(s.dtype)
            delta = jnp.sum(output * gradient.astype(s.dtype), axis=1, keepdims=True)
            ds = p * (dp - delta * (1 - dropout_rate))
            return q, k, gradient, keep(p, i, j).astype(v.dtype), ds.astype(q.dtype)

        def as_keys(i: Any, carry: Any, tile: _Tile = tile) -> Any:
            q, k, gradient, p, ds = tile(i, here)
            dk, dv = carry[0] + _dot(ds, q, (0, 0)), carry[1] + _dot(p, gradient, (0, 0))
            return (dk, dv, _dot(ds, k, (1, 0))) if num_blocks == 1 else (dk, dv)

        def as_queries(j: Any, dq: Any, tile: _Tile = tile) -> Any:
            _, k, _, _, ds = tile(here, j)
            return dq + _dot(ds, k, (1, 0))

        zeros = jnp.zeros((tiling.block, tiling.head_size), wide)
        visited = visibility.query_blocks(here, num_blocks)
        dk, dv, *dq = _loop(num_blocks, visited, as_keys, (zeros, zeros))
        if num_blocks > 1:
            visited = visibility.key_blocks(here, num_blocks)
            dq = [_loop(num_blocks, visited, as_queries, zeros)]
        kept = 1 - dropout_rate
        for n, (x, factor) in enumerate(
            ((dq[0], scale / kept), (dk, scale / kept), (dv, 1 / kept))
        ):
            if len(result_refs) == 3:
                ref, own = result_refs[n], columns
            else:
                (ref,) = result_refs
                number = (n * pl.num_programs(1) + pl.program_id(1)) * tiling.heads + head
                own = pl.ds(number * tiling.head_size, tiling.head_size)
            ref[0, :, own] = (x * factor).astype(ref.dtype)


def _scores(
    q: jax.Array,
    k: jax.Array,
    visibility: Visibility,
    i: Any,
    j: Any,
    tiling: Tiling,
    scale: float,
) -> jax.Array:
    """The scaled scores of block i of queries and block j of keys, masked."""
    visible = visibility.block(_block(i, tiling), _block(j, tiling))
    return jnp.where(visible, _dot(q, k, (1, 1)) * scale, _MASKED)


def _mask_of(word_ref: Any, head: int, rate: float, tiling: Tiling) -> Callable[..., jax.Array]:
    """A function of (x, i, j) that drops elements of block i of queries and block j of keys."""
    if rate == 0.0:
        return lambda x, i, j: x
    a, b = (word_ref[0, 0, pl.ds(head, 1), pl.ds(n, 1)] for n in (0, 1))

    def keep(x: jax.Array, i: Any, j: Any) -> jax.Array:
        def places(block: Any, axis: int) -> jax.Array:
            shape = (tiling.block, 1) if axis == 0 else (1, tiling.block)
            place = jax.lax.broadcasted_iota(jnp.int32, shape, axis) + block * tiling.block
            return cast(jax.Array, place.astype(jnp.uint32))

        bits = place_bits(places(i, 0), places(j, 1), a, b)
        return jnp.where(bits >= drop_threshold(rate), x, 0)

    return keep


def _dot(x: jax.Array, y: jax.Array, axes: tuple[int, int]) -> jax.Array:
    """The product of two matrices over an axis of each, summed in float32 or wider."""
    wide = jnp.promote_types(x.dtype, jnp.float32)
    dimensions = (((axes[0],), (axes[1],)), ((), ()))
    precision = product_precision(x.dtype)
    return jax.lax.dot_general(x, y, dimensions, precision, preferred_element_type=wide)


def _loop(
    num_blocks: int, visited: tuple[Any, Any], body: Callable[[Any, Any], Any], start: Any
) -> Any:
    """The carry after the visited blocks: from the first up to the one after the last."""
    return body(0, start) if num_blocks == 1 else jax.lax.fori_loop(*visited, body, start)


def _block(i: Any, tiling: Tiling) -> Any:
    if isinstance(i, int):  # the only block; Triton's lowering takes no hint about a constant
        return pl.ds(i * tiling.block, tiling.block)
    return pl.ds(pl.multiple_of(i * tiling.block, tiling.block), tiling.block)


def _column(x: jax.Array) -> jax.Array:
    return x.T
