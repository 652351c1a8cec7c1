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
from bertjax.models.visibility import Visibility

FORWARD, BACKWARD = "bertjax_attention_forward", "bertjax_attention_backward"  # in the program


def tpu_tiling(length: int, num_heads: int, head_size: int) -> Tiling:
    """Whole rows in multiples of 128 tokens, and as many heads as fill whole lanes of 128."""
    fitting = (n for n in range(1, num_heads) if num_heads % n == 0 and n * head_size % 128 == 0)
    block = min(_round_up(length, 128), 512)
    return Tiling(block, next(fitting, num_heads), head_size, joint=False)


def gpu_tiling(length: int, num_heads: int, head_size: int) -> Tiling:
    """Blocks of at most 64 tokens of one head; Triton requires powers of two, at least 16."""
    return Tiling(min(64, _power_of_two(length)), 1, _power_of_two(head_size), joint=True)


def forward(
    qkv: jax.Array,
    visibility: Visibility,
    words: jax.Array,
    *,
    dropout_rate: float,
    tiling: Tiling,
    **call: Any,
) -> tuple[jax.Array, jax.Array]:
    """Attention of the rows and heads of one device.

    Args:
      qkv: query, key and value, [b, t, 3, h, k].
      visibility: of b rows of t tokens.
      words: uint32 [b, h, 2], `dropout.plane_words` of the heads.
      dropout_rate: of the probabilities; with 0 `words` is not read.
      tiling: of the device.
      **call: settings of `pl.pallas_call` for the device.

    Returns:
      The output [b, t, h, k] in the dtype of `qkv`, 0 at padded queries, and each query's
      log-sum-exp of the scaled scores, [b, h, t] in float32 (or wider), 0 at those queries.
    """
    output, log_sum_exp = _call(
        forward_kernel, FORWARD, 2, qkv, (), (), visibility, words, dropout_rate, tiling, call
    )
    return output, log_sum_exp


def backward(
    qkv: jax.Array,
    visibility: Visibility,
    words: jax.Array,
    output: jax.Array,
    log_sum_exp: jax.Array,
    gradient: jax.Array,
    *,
    dropout_rate: float,
    tiling: Tiling,
    **call: Any,
) -> tuple[jax.Array]:
    """The gradient of query, key and value, [b, t, 3, h, k].

    Args:
      qkv: [b, t, 3, h, k], as given to `forward`.
      visibility: as given to `forward`.
      words: uint32 [b, h, 2], as given to `forward`.
      output: [b, t, h, k], what `forward` returned.
      log_sum_exp: [b, h, t], what `forward` returned.
      gradient: of the output, [b, t, h, k].
      dropout_rate: as given to `forward`.
      tiling: of the device.
      **call: settings of `pl.pallas_call` for the device.
    """
    products = 5 if tiling.block >= qkv.shape[1] else 7
    results = _call(
        backward_kernel, BACKWARD, products, qkv, (output, gradient), (log_sum_exp,), visibility,
        words, dropout_rate, tiling, call,
    )  # fmt: skip
    return (results[0] if tiling.joint else jnp.stack(results, axis=2),)


def _call(
    kernel: Callable[..., None],
    name: str,
    products: int,
    qkv: jax.Array,
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
      qkv: [b, t, 3, h, k].
      rows: other arrays [b, t, h, k].
      scalars: arrays [b, h, t].
      visibility: of b rows of t tokens.
      words: uint32 [b, h, 2], `dropout.plane_words` of the heads.
      dropout_rate: of the probabilities; 0 = `words` is not read.
      tiling: of the device.
      call: settings of `pl.pallas_call` for the device.
    """
    b, t, _, h, k = qkv.shape
    block, g, width = tiling.block, tiling.heads, tiling.head_size
    length = _round_up(t, block)
    num_blocks = length // block
    wide = jnp.promote_types(qkv.dtype, jnp.float32)

    def lay(x: jax.Array) -> jax.Array:
        heads = ((0, 0),) * (x.ndim - 3)
        padded = jnp.pad(x, ((0, 0), (0, length - t), *heads, (0, width - k)))
        return padded.reshape(b, length, -1)

    def row_spec(first: int) -> pl.BlockSpec:
        """The whole row of a program's heads, `first` programs' heads from the left."""
        return pl.BlockSpec((1, length, g * width), lambda b, h, i: (b, 0, first + h))

    def shape(columns: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((b, length, columns), qkv.dtype)

    laid = lay(qkv)
    inputs: list[Any] = [
        *([laid] * 3),
        *(lay(x) for x in rows),
        *(jnp.pad(x, ((0, 0), (0, 0), (0, length - t))).reshape(b, h // g, g, length)
          for x in scalars),
        visibility.laid_out(length),
        words.reshape(b, h // g, g, 2),
    ]  # fmt: skip
    part_spec = pl.BlockSpec((1, block, g * width), lambda b, h, i: (b, i, h))
    if kernel is forward_kernel:
        outputs = [shape(h * width), jax.ShapeDtypeStruct((b, h // g, g, length), wide)]
        out_specs = [part_spec, pl.BlockSpec((1, 1, g, block), lambda b, h, i: (b, h, 0, i))]
    elif tiling.joint:
        outputs = [shape(3 * h * width)]
        out_specs = [pl.BlockSpec((1, block, 3 * h * width), lambda b, h, i: (b, i, 0))]
    else:
        outputs, out_specs = [shape(h * width)] * 3, [part_spec] * 3
    arrays = jax.tree.leaves((inputs[2:], outputs))
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
            *(row_spec(n * (h // g)) for n in range(3)),
            *(row_spec(0) for _ in rows),
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

    def restored(x: jax.Array) -> jax.Array:
        if x.ndim == 4:
            return x.reshape(b, h, length)[..., :t]
        parts = (3, h) if x.shape[2] > h * width else (h,)
        return x.reshape(b, length, *parts, width)[:, :t, ..., :k]

    return [restored(x) for x in results]


def _round_up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


def _power_of_two(size: int) -> int:
    return max(16, 1 << (size - 1).bit_length())
