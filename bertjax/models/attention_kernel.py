"""The kernels of fused attention, forward and backward (Dao 2023, "FlashAttention-2"), in Pallas.

No array [b, h, t, t] reaches main memory: scores, softmax and dropout live in one block at a time,
and the backward pass forms them again from q, k and each query's log-sum-exp. The dropout mask is
that of `dropout.random_bits` at (row key, head, query, key), in both passes. One source serves TPU
(Mosaic) and GPU (Triton); `fused_attention.py` puts it into a model, docs/design/attention.md
explains it.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from bertjax.models.dropout import drop_threshold, place_bits

FORWARD, BACKWARD = "bertjax_attention_forward", "bertjax_attention_backward"  # in the program
_MASKED = -1e30  # a score that leaves no probability, and whose difference from any other is finite


@dataclasses.dataclass(frozen=True)
class Tiling:
    """How a device cuts the work.

    Attributes:
      block: queries, or keys, that are in fast memory at a time.
      heads: that one program of the grid works on, one after the other.
      head_size: columns of a head, with those that are added.
    """

    block: int
    heads: int
    head_size: int


def tpu_tiling(length: int, num_heads: int, head_size: int) -> Tiling:
    """Whole rows in multiples of 128 tokens, and as many heads as fill whole lanes of 128."""
    fitting = (n for n in range(1, num_heads) if num_heads % n == 0 and n * head_size % 128 == 0)
    return Tiling(min(_round_up(length, 128), 512), next(fitting, num_heads), head_size)


def gpu_tiling(length: int, num_heads: int, head_size: int) -> Tiling:
    """Blocks of at most 64 tokens of one head; Triton asks for powers of two, of 16 at least."""
    del num_heads
    return Tiling(min(64, _power_of_two(length)), 1, _power_of_two(head_size))


def forward(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    segment_ids: jax.Array,
    words: jax.Array,
    *,
    dropout_rate: float,
    tiling: Tiling,
    **call: Any,
) -> tuple[jax.Array, jax.Array]:
    """Attention of the rows and heads of one device.

    Args:
      query: [b, t, h, k]; so are `key` and `value`.
      key: [b, t, h, k].
      value: [b, t, h, k].
      segment_ids: int32 [b, t]; a query attends to the keys of its own segment, one of 0 to none.
      words: uint32 [b, h, 2], `dropout.plane_words` of the heads.
      dropout_rate: of the probabilities; 0 = `words` is not read.
      tiling: of the device.
      **call: settings of `pl.pallas_call` for the device.

    Returns:
      The output [b, t, h, k] in the dtype of `query`, 0 at queries of segment 0, and each query's
      log-sum-exp of the scaled scores, [b, h, t] in float32 (or wider), 0 at those queries.
    """
    output, log_sum_exp = _call(
        _forward_kernel, FORWARD, 2, (query, key, value), (), segment_ids, words, dropout_rate,
        tiling, call,
    )  # fmt: skip
    return output, log_sum_exp


def backward(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    segment_ids: jax.Array,
    words: jax.Array,
    output: jax.Array,
    log_sum_exp: jax.Array,
    gradient: jax.Array,
    *,
    dropout_rate: float,
    tiling: Tiling,
    **call: Any,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The gradients of query, key and value.

    Args:
      query: as all that is not named here, what `forward` took and returned.
      gradient: of the output, [b, t, h, k].
    """
    # What the softmax subtracts, the sum over keys of p * dp, is that over columns of o * do.
    wide = jnp.promote_types(query.dtype, jnp.float32)
    delta = jnp.einsum("bthk,bthk->bht", output, gradient, preferred_element_type=wide)
    products = 5 if tiling.block >= query.shape[1] else 8
    dq, dk, dv = _call(
        _backward_kernel, BACKWARD, products, (query, key, value, gradient), (log_sum_exp, delta),
        segment_ids, words, dropout_rate, tiling, call,
    )  # fmt: skip
    return dq, dk, dv


def _call(
    kernel: Callable[..., None],
    name: str,
    products: int,
    rows: tuple[jax.Array, ...],
    scalars: tuple[jax.Array, ...],
    segment_ids: jax.Array,
    words: jax.Array,
    dropout_rate: float,
    tiling: Tiling,
    call: dict[str, Any],
) -> list[jax.Array]:
    """Lays the arrays out for the kernel, runs it and undoes the layout.

    A head lies beside the next one, [b, t, h * k]: an array of 64 columns would be padded to 128
    lanes. Every program of the grid (row, heads, block) sees the whole row of its heads.

    Args:
      products: matrix products of [t, t, k] that the kernel computes.
      rows: [b, t, h, k].
      scalars: [b, h, t].
    """
    b, t, h, k = rows[0].shape
    block, g, width = tiling.block, tiling.heads, tiling.head_size
    length = _round_up(t, block)
    num_blocks = length // block
    wide = jnp.promote_types(rows[0].dtype, jnp.float32)

    def lay(x: jax.Array) -> jax.Array:
        padded = jnp.pad(x, ((0, 0), (0, length - t), (0, 0), (0, width - k)))
        return padded.reshape(b, length, h * width)

    inputs = [
        *(lay(x) for x in rows),
        *(jnp.pad(x, ((0, 0), (0, 0), (0, length - t))).reshape(b, h // g, g, length)
          for x in scalars),
        jnp.pad(segment_ids, ((0, 0), (0, length - t)))[:, None, :],
        words.reshape(b, h // g, g, 2),
    ]  # fmt: skip
    row_spec = pl.BlockSpec((1, length, g * width), lambda b, h, i: (b, 0, h))
    part_spec = pl.BlockSpec((1, block, g * width), lambda b, h, i: (b, i, h))
    part = jax.ShapeDtypeStruct((b, length, h * width), rows[0].dtype)
    if kernel is _forward_kernel:
        outputs = [part, jax.ShapeDtypeStruct((b, h // g, g, length), wide)]
        out_specs = [part_spec, pl.BlockSpec((1, 1, g, block), lambda b, h, i: (b, h, 0, i))]
    else:
        outputs, out_specs = [part] * 3, [part_spec] * 3
    results = pl.pallas_call(
        functools.partial(
            kernel,
            tiling=tiling,
            num_blocks=num_blocks,
            scale=k**-0.5,
            dropout_rate=dropout_rate,
        ),
        name=name,
        grid=(b, h // g, num_blocks),
        in_specs=[
            *(row_spec for _ in rows),
            *(pl.BlockSpec((1, 1, g, length), lambda b, h, i: (b, h, 0, 0)) for _ in scalars),
            pl.BlockSpec((1, 1, length), lambda b, h, i: (b, 0, 0)),
            pl.BlockSpec((1, 1, g, 2), lambda b, h, i: (b, h, 0, 0)),
        ],
        out_specs=out_specs,
        out_shape=outputs,
        cost_estimate=pl.CostEstimate(
            flops=products * 2 * b * h * length * length * width,
            transcendentals=b * h * length * length,
            bytes_accessed=sum(x.size * x.dtype.itemsize for x in (*inputs, *outputs)),
        ),
        **call,
    )(*inputs)
    return [
        x.reshape(b, h, length)[..., :t]
        if x.ndim == 4
        else x.reshape(b, length, h, width)[:, :t, :, :k]
        for x in results
    ]


def _forward_kernel(
    q_ref: Any,
    k_ref: Any,
    v_ref: Any,
    segment_ref: Any,
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

        def attend(j: Any, carry: Any, q=q, columns=columns, keep=keep) -> Any:
            highest, total, output = carry
            keys = _block(j, tiling)
            s = _scores(q, k_ref[0, keys, columns], segment_ref, i, j, tiling, scale)
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
        highest, total, output = _loop(num_blocks, attend, start)
        # A token of a segment has itself as a key. Padding has none: its sums are of masked scores.
        real = _column(segment_ref[0, :, _block(i, tiling)]) != 0
        output = output * jnp.where(real, 1 / (total * (1 - dropout_rate)), 0)
        output_ref[0, :, columns] = output.astype(output_ref.dtype)
        log_sum_exp = jnp.where(real, highest + jnp.log(total), 0)
        log_sum_exp_ref[0, 0, pl.ds(head, 1), :] = log_sum_exp.T


def _backward_kernel(
    q_ref: Any,
    k_ref: Any,
    v_ref: Any,
    gradient_ref: Any,
    log_sum_exp_ref: Any,
    delta_ref: Any,
    segment_ref: Any,
    word_ref: Any,
    dq_ref: Any,
    dk_ref: Any,
    dv_ref: Any,
    *,
    tiling: Tiling,
    num_blocks: int,
    scale: float,
    dropout_rate: float,
) -> None:
    """The gradients of one block: as keys over the blocks of queries, then the other way round.

    Where a row is one block both come of the same probabilities.
    """
    here = pl.program_id(2) if num_blocks > 1 else 0
    for head in range(tiling.heads):
        columns = pl.ds(head * tiling.head_size, tiling.head_size)
        wide = log_sum_exp_ref.dtype
        keep = _mask_of(word_ref, head, dropout_rate, tiling)

        def tile(i: Any, j: Any, head=head, columns=columns, keep=keep) -> tuple:
            """q, dO, the dropped p and the gradient of the scores of block i of queries, j of keys.

            The last two are too small by 1 - dropout_rate and too large by that.
            """
            queries, keys = _block(i, tiling), _block(j, tiling)
            q, k = q_ref[0, queries, columns], k_ref[0, keys, columns]
            gradient, v = gradient_ref[0, queries, columns], v_ref[0, keys, columns]
            s = _scores(q, k, segment_ref, i, j, tiling, scale)
            p = jnp.exp(s - _column(log_sum_exp_ref[0, 0, pl.ds(head, 1), queries]))
            dp = keep(_dot(gradient, v, (1, 1)), i, j)
            delta = _column(delta_ref[0, 0, pl.ds(head, 1), queries]) * (1 - dropout_rate)
            ds = p * (dp - delta)
            return q, k, gradient, keep(p, i, j).astype(v.dtype), ds.astype(q.dtype)

        def as_keys(i: Any, carry: Any, tile=tile) -> Any:
            q, k, gradient, p, ds = tile(i, here)
            dk, dv = carry[0] + _dot(ds, q, (0, 0)), carry[1] + _dot(p, gradient, (0, 0))
            return (dk, dv, _dot(ds, k, (1, 0))) if num_blocks == 1 else (dk, dv)

        def as_queries(j: Any, dq: Any, tile=tile) -> Any:
            _, k, _, _, ds = tile(here, j)
            return dq + _dot(ds, k, (1, 0))

        zeros = jnp.zeros((tiling.block, tiling.head_size), wide)
        dk, dv, *dq = _loop(num_blocks, as_keys, (zeros, zeros))
        if num_blocks > 1:
            dq = [_loop(num_blocks, as_queries, zeros)]
        kept = 1 - dropout_rate
        for ref, x, factor in (
            (dq_ref, dq[0], scale / kept), (dk_ref, dk, scale / kept), (dv_ref, dv, 1 / kept)
        ):  # fmt: skip
            ref[0, :, columns] = (x * factor).astype(ref.dtype)


def _scores(
    q: jax.Array, k: jax.Array, segment_ref: Any, i: Any, j: Any, tiling: Tiling, scale: float
) -> jax.Array:
    """The scaled scores of block i of queries and block j of keys, masked by segment."""
    queries = _column(segment_ref[0, :, _block(i, tiling)])
    keys = segment_ref[0, :, _block(j, tiling)]
    keys = jnp.where(keys == 0, -1, keys)  # so that padding meets no padding
    return jnp.where(queries == keys, _dot(q, k, (1, 1)) * scale, _MASKED)


def _mask_of(word_ref: Any, head: int, rate: float, tiling: Tiling) -> Callable[..., jax.Array]:
    """A function of (x, i, j) that drops elements of block i of queries and block j of keys."""
    if rate == 0.0:
        return lambda x, i, j: x
    a, b = (word_ref[0, 0, pl.ds(head, 1), pl.ds(n, 1)] for n in (0, 1))

    def keep(x: jax.Array, i: Any, j: Any) -> jax.Array:
        def places(block: Any, axis: int) -> jax.Array:
            shape = (tiling.block, 1) if axis == 0 else (1, tiling.block)
            place = jax.lax.broadcasted_iota(jnp.int32, shape, axis) + block * tiling.block
            return place.astype(jnp.uint32)

        bits = place_bits(places(i, 0), places(j, 1), a, b)
        return jnp.where(bits >= drop_threshold(rate), x, 0)

    return keep


def _dot(x: jax.Array, y: jax.Array, axes: tuple[int, int]) -> jax.Array:
    """The product of two matrices over an axis of each, summed in float32 or wider."""
    wide = jnp.promote_types(x.dtype, jnp.float32)
    dimensions = (((axes[0],), (axes[1],)), ((), ()))
    return jax.lax.dot_general(x, y, dimensions, preferred_element_type=wide)


def _loop(count: int, body: Callable[[Any, Any], Any], start: Any) -> Any:
    return body(0, start) if count == 1 else jax.lax.fori_loop(0, count, body, start)


def _block(i: Any, tiling: Tiling) -> Any:
    if isinstance(i, int):  # the only block; Triton's lowering takes no hint about a constant
        return pl.ds(i * tiling.block, tiling.block)
    return pl.ds(pl.multiple_of(i * tiling.block, tiling.block), tiling.block)


def _column(x: jax.Array) -> jax.Array:
    return x.T


def _round_up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


def _power_of_two(size: int) -> int:
    return max(16, 1 << (size - 1).bit_length())
