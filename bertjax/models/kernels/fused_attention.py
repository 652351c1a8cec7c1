"""Fused attention in a model: gradients, meshes, and the kernel of each platform."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas import tpu as pl_tpu
from jax.experimental.pallas import triton as pl_triton

from bertjax.models.dropout import plane_words
from bertjax.models.kernels import attention_kernel
from bertjax.models.visibility import Visibility
from bertjax.parallel.partition import Arrays, split_rows_and_heads

_TPU = pl_tpu.CompilerParams(dimension_semantics=("parallel",) * 3)
# Float32 takes twice the registers: with 4 warps the backward kernel spilled 570 bytes per thread.
_GPU = {
    2: pl_triton.CompilerParams(num_warps=4, num_stages=2),
    4: pl_triton.CompilerParams(num_warps=8, num_stages=2),
}


def fused_attention(
    qkv: jax.Array,
    visibility: Visibility,
    row_keys: jax.Array | None,
    dropout_rate: float,
) -> jax.Array:
    """`attention.dot_product_attention` with the kernels of attention_kernel.py.

    The results are the same except for rounding, with the same dropout mask. Padded queries are 0
    here.

    Args:
      qkv: query, key and value, [b, t, 3, h, k], in the compute dtype.
      visibility: of b rows of t tokens.
      row_keys: typed threefry keys [b], or None = no dropout.
      dropout_rate: of the probabilities.

    Returns:
      [b, t, h, k], in the compute dtype.
    """
    b, _, _, h, _ = qkv.shape
    if row_keys is None or dropout_rate == 0.0:
        dropout_rate, words = 0.0, jnp.zeros((b, h, 2), jnp.uint32)
    else:
        # By the head's number in the model: on a mesh each device has the words of its heads.
        words = jnp.stack(plane_words(row_keys, h), axis=-1)
    return _attend(dropout_rate, qkv, visibility, words)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(dropout_rate: float, *arrays: Any) -> jax.Array:
    return _run(attention_kernel.forward, dropout_rate, *arrays)[0]


def _attend_forward(dropout_rate: float, *arrays: Any) -> tuple[jax.Array, Any]:
    output, log_sum_exp = _run(attention_kernel.forward, dropout_rate, *arrays)
    return output, (*arrays, output, log_sum_exp)


def _attend_backward(dropout_rate: float, residuals: Any, gradient: jax.Array) -> tuple[Any, ...]:
    gradients = _run(attention_kernel.backward, dropout_rate, *residuals, gradient)
    return (*gradients, None, None)  # visibility and words are integers


_attend.defvjp(_attend_forward, _attend_backward)


def _run(kernel: Callable[..., Arrays], dropout_rate: float, *arrays: Any) -> Arrays:
    """Runs a kernel on each device's rows and heads, with the tiling of the platform.

    The platform is known only when the program is lowered: bertjax.plan compiles for devices that
    the process does not have.
    """

    def local(*arrays: Any) -> Arrays:
        _, length, _, *heads = arrays[0].shape
        gpu = _GPU[min(4, arrays[0].dtype.itemsize)]

        def on(tiling: Callable[..., Any], **call: Any) -> Callable[..., Arrays]:
            return functools.partial(
                kernel, dropout_rate=dropout_rate, tiling=tiling(length, *heads), **call
            )

        outputs: Arrays = jax.lax.platform_dependent(
            *arrays,
            tpu=on(attention_kernel.tpu_tiling, compiler_params=_TPU),
            cuda=on(attention_kernel.gpu_tiling, compiler_params=gpu),
            cpu=on(attention_kernel.tpu_tiling, interpret=True),
        )
        return outputs

    return split_rows_and_heads(local)(*arrays)
