"""The kernels of fused attention, forward and backward (Dao 2023, "FlashAttention-2"), in Pallas.

No array [b, h, t, t] reaches main memory: scores, softmax and dropout exist one block at a time.
The backward pass computes them again from q, k and each query's log-sum-exp. In both passes the
dropout mask is `dropout.random_bits` at (row key, head, query, key). One source serves TPU (Mosaic)
and GPU (Triton). `fused_attention.py` puts it into a model, and docs/design/attention.md explains
it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from bertjax.models.kernels.attention_block import Tiling, backward_kernel, forward_kernel
from bertjax.models.layers import product_precision
from bertjax.models.visibility import Visibility

FORWARD, BACKWARD = "bertjax_attention_forward", "bertjax_attention_backward"  # in the program


def tpu_tiling(length: int, num_heads: int, head_size: int) -> Tiling:
    """Whole rows in multiples of 128 tokens, and as many heads as fill whole lanes of 128."""
    fitting = (n for n in range(1, num_heads) if num_heads % n == 0 and n * head_size % 128 == 0)
    return Tiling(min(_round_up(length, 128), 512), next(fitting, num_heads), head_size)


def gpu_tiling(length: int, num_heads: int, head_size: int) -> Tiling:
    """Blocks of at most 64 tokens of one head; Triton requires powers of two, at least 16."""
    return Tiling(min(64, _power_of_two(length)), 1, _power_of_two(head_size))


def forward(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    visibility: Visibility,
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
      visibility: of b rows of t tokens.
      words: uint32 [b, h, 2], `dropout.plane_words` of the heads.
      dropout_rate: of the probabilities; with 0 `words` is not read.
      tiling: of the device.
      **call: settings of `pl.pallas_call` for the device.

    Returns:
      The output [b, t, h, k] in the dtype of `query`, 0 at padded queries, and each query's
      log-sum-exp of the scaled scores, [b, h, t] in float32 (or wider), 0 at those queries.
    """
    output, log_sum_exp = _call(
        forward_kernel, FORWARD, 2, (query, key, value), (), visibility, words, dropout_rate,
        tiling, call,
    )  # fmt: skip
    return output, log_sum_exp


def backward(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    visibility: Visibility,
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
      query: [b, t, h, k], as given to `forward`; so are `key` and `value`.
      key: [b, t, h, k].
      value: [b, t, h, k].
      visibility: as given to `forward`.
      words: uint32 [b, h, 2], as given to `forward`.
      output: [b, t, h, k], what `forward` returned.
      log_sum_exp: [b, h, t], what `forward` returned.
      gradient: of the output, [b, t, h, k].
      dropout_rate: as given to `forward`.
      tiling: of the device.
      **call: settings of `pl.pallas_call` for the device.
    """
    # The sum over keys of p * dp, which the softmax subtracts, equals that over columns of o * do.
    wide = jnp.promote_types(query.dtype, jnp.float32)
    precision = product_precision(query.dtype)
    delta = jnp.einsum(
        "bthk,bthk->bht", output, gradient, precision=precision, preferred_element_type=wide
    )
    products = 5 if tiling.block >= query.shape[1] else 7
    dq, dk, dv = _call(
        backward_kernel, BACKWARD, products, (query, key, value, gradient), (log_sum_exp, delta),
        visibility, words, dropout_rate, tiling, call,
    )  # fmt: skip
    return dq, dk, dv


def _call(
    kernel: Callable[..., None],
    name: str,
    products: int,
    rows: tuple[jax.Array, ...],
    scalars: tuple[jax.Array, ...],
    visibility: Visibility,
    words: jax.Array,
    dropout_rate: float,
    tiling: Tiling,
    call: dict[str, Any],
) -> list[jax.Array]:
    """Changes the layout of the arrays for the kernel, runs it and restores the layout.

    Heads are side by side, [b, t, h * k], because 64 columns alone would be padded to 128 lanes.
    Every program of the grid (row, heads, block) sees the whole row of its heads.

    Args:
      kernel: `forward_kernel` or `backward_kernel`.
      name: of the kernel in the program.
      products: matrix products of [t, t, k] that the kernel computes.
      rows: arrays [b, t, h, k].
      scalars: arrays [b, h, t].
      visibility: of b rows of t tokens.
      words: uint32 [b, h, 2], `dropout.plane_words` of the heads.
      dropout_rate: of the probabilities; 0 = `words` is not read.
      tiling: of the device.
      call: settings of `pl.pallas_call` for the device.
    """
    b, t, h, k = rows[0].shape
    block, g, width = tiling.block, tiling.heads, tiling.head_size
    length = _round_up(t, block)
    num_blocks = length // block
    wide = jnp.promote_types(rows[0].dtype, jnp.float32)

    def lay(x: jax.Array) -> jax.Array:
        padded = jnp.pad(x, ((0, 0), (0, length - t), (0, 0), (0, width - k)))
        return padded.reshape(b, length, h * width)

    inputs: list[Any] = [
        *(lay(x) for x in rows),
        *(jnp.pad(x, ((0, 0), (0, 0), (0, length - t))).reshape(b, h // g, g, length)
          for x in scalars),
        visibility.laid_out(length),
        words.reshape(b, h // g, g, 2),
    ]  # fmt: skip
    row_spec = pl.BlockSpec((1, length, g * width), lambda b, h, i: (b, 0, h))
    part_spec = pl.BlockSpec((1, block, g * width), lambda b, h, i: (b, i, h))
    part = jax.ShapeDtypeStruct((b, length, h * width), rows[0].dtype)
    if kernel is forward_kernel:
        outputs = [part, jax.ShapeDtypeStruct((b, h // g, g, length), wide)]
        out_specs = [part_spec, pl.BlockSpec((1, 1, g, block), lambda b, h, i: (b, h, 0, i))]
    else:
        outputs, out_specs = [part] * 3, [part_spec] * 3
    arrays = jax.tree.leaves((inputs, outputs))
    scores = int(b * h * length * length * visibility.share_of_blocks(num_blocks))
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
            jax.tree.map(
                lambda _: pl.BlockSpec((1, 1, length), lambda b, h, i: (b, 0, 0)), visibility
            ),
            pl.BlockSpec((1, 1, g, 2), lambda b, h, i: (b, h, 0, 0)),
        ],
        out_specs=out_specs,
        out_shape=outputs,
        cost_estimate=pl.CostEstimate(
            flops=products * 2 * scores * width,
            transcendentals=scores,
            bytes_accessed=sum(x.size * x.dtype.itemsize for x in arrays),
        ),
        **call,
    )(*inputs)
    return [
        x.reshape(b, h, length)[..., :t]
        if x.ndim == 4
        else x.reshape(b, length, h, width)[:, :t, :, :k]
        for x in results
    ]


def _round_up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


def _power_of_two(size: int) -> int:
    return max(16, 1 << (size - 1).bit_length())
