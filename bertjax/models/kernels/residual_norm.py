"""Dropout, residual sum and LayerNorm as one kernel in each direction, in Pallas.

Forward it reads x and y and writes their sum and the result; backward it reads the sum and the
gradient and writes both gradients. The dropout mask is drawn again from `dropout.random_bits`, and
kept nowhere. One source serves TPU (Mosaic) and GPU (Triton). docs/design/residual_norm.md derives
the gradients.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pl_tpu
from jax.experimental.pallas import triton as pl_triton

from bertjax.models.dropout import drop_threshold, place_bits, plane_words
from bertjax.parallel.partition import Arrays, on_own_rows

FORWARD, BACKWARD = "bertjax_residual_norm_forward", "bertjax_residual_norm_backward"
_TPU = pl_tpu.CompilerParams(dimension_semantics=("parallel",) * 2)
_GPU = pl_triton.CompilerParams(num_warps=4, num_stages=1)


@dataclasses.dataclass(frozen=True)
class Tiling:
    """How a device divides the work.

    Attributes:
      tokens: of one program of the grid.
      at_once: tokens in fast memory at a time; divides `tokens`.
      columns: of one array in fast memory; divides the hidden size.
    """

    tokens: int
    at_once: int
    columns: int


def tpu_tiling(length: int, size: int) -> Tiling:
    """Blocks of 128 tokens with all columns, or the whole row if it is not cut into such."""
    tokens = 128 if length % 128 == 0 else length
    return Tiling(tokens, tokens, size)


def gpu_tiling(length: int, size: int) -> Tiling:
    """At most 32 tokens a program, 4 at once; Triton requires powers of two."""
    tokens = min(32, length & -length)
    return Tiling(tokens, min(4, tokens), min(1024, size & -size))


def residual_norm(
    x: jax.Array,
    y: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    row_keys: jax.Array | None,
    dropout_rate: float,
    epsilon: float,
) -> jax.Array:
    """LayerNorm(x + dropout(y)).

    The mask is that of `dropout.dropout`. The sum is not rounded before it is normalised.

    Args:
      x: [b, t, d], in the compute dtype; so is `y`.
      y: [b, t, d], the output of a sublayer.
      scale: float32 [d].
      bias: float32 [d].
      row_keys: typed threefry keys [b], or None = no dropout.
      dropout_rate: of y.
      epsilon: added to the variance.

    Returns:
      [b, t, d], in the compute dtype.
    """
    b, t, _ = x.shape
    if row_keys is None or dropout_rate == 0.0:
        dropout_rate, words = 0.0, jnp.zeros((b, 1, 2), jnp.uint32)
    else:
        words = jnp.stack(plane_words(row_keys, 1), axis=-1)
    # Filled up to 16 tokens, since shorter blocks would write many partial sums, and long rows to
    # 128, since a TPU holds a block in fast memory.
    more = ((0, 0), (0, -t % (128 if t > 128 else 16)), (0, 0))
    padded = jnp.pad(x, more), jnp.pad(y, more)
    return _run(dropout_rate, epsilon, *padded, words, scale, bias)[:, :t]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _run(dropout_rate: float, epsilon: float, *arrays: jax.Array) -> jax.Array:
    return _run_forward(dropout_rate, epsilon, *arrays)[0]


def _run_forward(dropout_rate: float, epsilon: float, *arrays: jax.Array) -> tuple[jax.Array, Any]:
    call = functools.partial(_forward, dropout_rate=dropout_rate, epsilon=epsilon)
    output, *kept = _on_each_device(call, *arrays)
    _, _, words, scale, _ = arrays
    return output, (words, scale, *kept)


def _run_backward(
    dropout_rate: float, epsilon: float, residuals: Any, gradient: jax.Array
) -> tuple[jax.Array | None, ...]:
    call = functools.partial(_backward, dropout_rate=dropout_rate)
    of_x, of_y, sums = _on_each_device(call, gradient, *residuals)
    of_scale, of_bias = jnp.sum(sums, axis=0)
    return of_x, of_y, None, of_scale, of_bias


_run.defvjp(_run_forward, _run_backward)


def _on_each_device(call: Callable[..., Arrays], *arrays: jax.Array) -> Arrays:
    """Runs a kernel on each device's rows, with the tiling of the platform.

    The platform is known only when the program is lowered, see fused_attention.py.
    """

    def local(*arrays: jax.Array) -> Arrays:
        _, *sizes = arrays[0].shape

        def on(tiling: Callable[..., Tiling], **others: Any) -> Callable[..., Arrays]:
            return functools.partial(call, tiling=tiling(*sizes), **others)

        outputs: Arrays = jax.lax.platform_dependent(
            *arrays,
            tpu=on(tpu_tiling, compiler_params=_TPU),
            cuda=on(gpu_tiling, compiler_params=_GPU),
            cpu=on(tpu_tiling, interpret=True),
        )
        return outputs

    return on_own_rows(local)(*arrays)


def _forward(
    x: jax.Array,
    y: jax.Array,
    words: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    *,
    tiling: Tiling,
    dropout_rate: float,
    epsilon: float,
    **call: Any,
) -> Arrays:
    """The result and the sum [b, t, d], and of each token mean and 1 / deviation, [b, 1, t]."""
    b, t, d = x.shape
    rows, words_spec, whole, tokens = _specs(d, tiling)
    of_token = jax.ShapeDtypeStruct((b, 1, t), jnp.promote_types(x.dtype, jnp.float32))
    kernel = functools.partial(
        _forward_kernel, tiling=tiling, dropout_rate=dropout_rate, epsilon=epsilon
    )
    outputs: Arrays = pl.pallas_call(
        kernel,
        name=FORWARD,
        grid=(b, t // tiling.tokens),
        in_specs=[rows, rows, words_spec, whole, whole],
        out_specs=[rows, rows, tokens, tokens],
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype)] * 2 + [of_token] * 2,
        cost_estimate=_cost(x, 4),
        **call,
    )(x, y, words, scale[None], bias[None])
    return outputs


def _backward(
    gradient: jax.Array,
    words: jax.Array,
    scale: jax.Array,
    total: jax.Array,
    mean: jax.Array,
    inverse: jax.Array,
    *,
    tiling: Tiling,
    dropout_rate: float,
    **call: Any,
) -> Arrays:
    """The gradients of x and y, and of scale and bias those of each row, [b, 2, d]."""
    b, t, d = gradient.shape
    rows, words_spec, whole, tokens = _specs(d, tiling)
    programs = t // tiling.tokens
    of_programs = jax.ShapeDtypeStruct((b, programs, 2, d), mean.dtype)
    of_x, of_y, sums = pl.pallas_call(
        functools.partial(_backward_kernel, tiling=tiling, dropout_rate=dropout_rate),
        name=BACKWARD,
        grid=(b, programs),
        in_specs=[rows, rows, words_spec, whole, tokens, tokens],
        out_specs=[rows, rows, pl.BlockSpec((1, 1, 2, d), lambda b, i: (b, i, 0, 0))],
        out_shape=[jax.ShapeDtypeStruct(gradient.shape, gradient.dtype)] * 2 + [of_programs],
        cost_estimate=_cost(gradient, 4),
        **call,
    )(gradient, total, words, scale[None], mean, inverse)
    return of_x, of_y, jnp.sum(sums, axis=1)


def _specs(size: int, tiling: Tiling) -> tuple[pl.BlockSpec, ...]:
    """Of [b, t, d], words [b, 1, 2], parameters [1, d] and numbers of tokens [b, 1, t]."""
    return (
        pl.BlockSpec((1, tiling.tokens, size), lambda b, i: (b, i, 0)),
        pl.BlockSpec((1, 1, 2), lambda b, i: (b, 0, 0)),
        pl.BlockSpec((1, size), lambda b, i: (0, 0)),
        pl.BlockSpec((1, 1, tiling.tokens), lambda b, i: (b, 0, i)),
    )


def _cost(x: jax.Array, arrays: int) -> pl.CostEstimate:
    moved = arrays * x.size * x.dtype.itemsize
    return pl.CostEstimate(flops=20 * x.size, transcendentals=0, bytes_accessed=moved)


def _forward_kernel(
    x_ref: Any,
    y_ref: Any,
    word_ref: Any,
    scale_ref: Any,
    bias_ref: Any,
    output_ref: Any,
    total_ref: Any,
    mean_ref: Any,
    inverse_ref: Any,
    *,
    tiling: Tiling,
    dropout_rate: float,
    epsilon: float,
) -> None:
    size, wide = x_ref.shape[2], mean_ref.dtype
    parts = _parts(size, tiling)
    begin = pl.program_id(1) * tiling.tokens

    def normalise(i: Any, carry: None) -> None:
        tokens, first = _tokens(i, tiling), begin + i * tiling.at_once
        totals = []
        for columns in parts:
            y = y_ref[0, tokens, columns].astype(wide)
            y = _dropped(y, word_ref, first, columns, dropout_rate, tiling)
            total = x_ref[0, tokens, columns].astype(wide) + y
            total_ref[0, tokens, columns] = total.astype(total_ref.dtype)
            totals.append(total)
        mean = _row_sum(totals) / size
        inverse = jax.lax.rsqrt(_row_sum([jnp.square(x - mean) for x in totals]) / size + epsilon)
        for total, columns in zip(totals, parts, strict=True):
            scale, bias = scale_ref[:, columns], bias_ref[:, columns]
            output = (total - mean) * inverse * scale + bias
            output_ref[0, tokens, columns] = output.astype(output_ref.dtype)
        mean_ref[0, :, tokens] = mean.T
        inverse_ref[0, :, tokens] = inverse.T

    _loop(tiling, normalise, None)


def _backward_kernel(
    gradient_ref: Any,
    total_ref: Any,
    word_ref: Any,
    scale_ref: Any,
    mean_ref: Any,
    inverse_ref: Any,
    of_x_ref: Any,
    of_y_ref: Any,
    sums_ref: Any,
    *,
    tiling: Tiling,
    dropout_rate: float,
) -> None:
    size, wide = total_ref.shape[2], mean_ref.dtype
    parts = _parts(size, tiling)
    begin = pl.program_id(1) * tiling.tokens

    def backward(i: Any, carry: Any) -> Any:
        tokens, first = _tokens(i, tiling), begin + i * tiling.at_once
        mean, inverse = mean_ref[0, :, tokens].T, inverse_ref[0, :, tokens].T
        gradients = [gradient_ref[0, tokens, columns].astype(wide) for columns in parts]
        normalised = [
            (total_ref[0, tokens, columns].astype(wide) - mean) * inverse for columns in parts
        ]
        scaled = [
            gradient * scale_ref[:, columns]
            for gradient, columns in zip(gradients, parts, strict=True)
        ]
        along = _row_sum([x * y for x, y in zip(scaled, normalised, strict=True)]) / size
        middle = _row_sum(scaled) / size
        for x, y, columns in zip(scaled, normalised, parts, strict=True):
            of_total = (x - middle - y * along) * inverse
            of_x_ref[0, tokens, columns] = of_total.astype(of_x_ref.dtype)
            of_y = _dropped(of_total, word_ref, first, columns, dropout_rate, tiling)
            of_y_ref[0, tokens, columns] = of_y.astype(of_y_ref.dtype)
        of_scale = [x * y for x, y in zip(gradients, normalised, strict=True)]
        return jax.tree.map(jnp.add, carry, (of_scale, gradients))

    # Summed over the tokens at the end, so that a step of the loop only adds.
    zeros = [jnp.zeros((tiling.at_once, tiling.columns), wide) for _ in parts]
    for n, sums in enumerate(_loop(tiling, backward, (zeros, zeros))):
        for one, columns in zip(sums, parts, strict=True):
            sums_ref[0, 0, pl.ds(n, 1), columns] = jnp.sum(one, axis=0, keepdims=True)


def _parts(size: int, tiling: Tiling) -> list[Any]:
    return [pl.ds(start, tiling.columns) for start in range(0, size, tiling.columns)]


def _tokens(i: Any, tiling: Tiling) -> Any:
    return pl.ds(i * tiling.at_once, tiling.at_once)


def _loop(tiling: Tiling, body: Callable[[Any, Any], Any], start: Any) -> Any:
    count = tiling.tokens // tiling.at_once
    return body(0, start) if count == 1 else jax.lax.fori_loop(0, count, body, start)


def _row_sum(parts: list[jax.Array]) -> jax.Array:
    """[tokens, 1], the sum over all columns."""
    return functools.reduce(jnp.add, [jnp.sum(part, axis=1, keepdims=True) for part in parts])


def _dropped(
    y: jax.Array, word_ref: Any, first: Any, columns: Any, rate: float, tiling: Tiling
) -> jax.Array:
    """`dropout.dropout` of some tokens, the first of which is given, at some columns."""
    if rate == 0.0:
        return y
    a, b = (word_ref[0, :, pl.ds(n, 1)] for n in (0, 1))
    line = jax.lax.broadcasted_iota(jnp.int32, (tiling.at_once, 1), 0) + first
    column = jax.lax.broadcasted_iota(jnp.int32, (1, tiling.columns), 1) + columns.start
    bits = place_bits(line.astype(jnp.uint32), column.astype(jnp.uint32), a, b)
    return jnp.where(bits >= drop_threshold(rate), y / (1.0 - rate), 0.0)
