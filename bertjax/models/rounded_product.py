"""Products with weights whose factors are rounded to bfloat16, with float32 sums and results.

For CPUs that multiply bfloat16 faster than float32 (`model.factors`, docs/design/speed.md).
"""

from __future__ import annotations

import functools
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Dimensions = Any  # `dimension_numbers` of `jax.lax.dot_general`

# Flags of /proc/cpuinfo: the first two of x86, the others of ARM.
_INSTRUCTIONS = ("avx512_bf16", "amx_bf16", "bf16", "svebf16")
_SIZE, _TURNS = 1_024, 3  # of the product that is timed


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def rounded_product(
    x: jax.Array, kernel: jax.Array, dimensions: Dimensions, precision: Any = None
) -> jax.Array:
    """`jax.lax.dot_general` of rows and a kernel, both rounded to bfloat16; sums in float32.

    The gradient of the rows has rounded factors too. That of the kernel has none: CPUs gain nothing
    from it there, and it is the sum over all tokens.

    Args:
      x: [..., in], float32.
      kernel: [in, out] or [out, in], float32.
      dimensions: contract the last axis of x with one axis of the kernel; no batch axes.
      precision: of the product that gives the kernel's gradient.

    Returns:
      [..., out], float32.
    """
    return _round_and_multiply(x, kernel, dimensions)


def _round_and_multiply(x: jax.Array, kernel: jax.Array, dimensions: Dimensions) -> jax.Array:
    return jax.lax.dot_general(
        x.astype(jnp.bfloat16),
        kernel.astype(jnp.bfloat16),
        dimensions,
        preferred_element_type=x.dtype,
    )


def _forward(
    x: jax.Array, kernel: jax.Array, dimensions: Dimensions, precision: Any
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _round_and_multiply(x, kernel, dimensions), (x, kernel)


def _backward(
    dimensions: Dimensions,
    precision: Any,
    factors: tuple[jax.Array, jax.Array],
    gradient: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    x, kernel = factors
    ((_, (axis,)), _) = dimensions
    columns = (((gradient.ndim - 1,), (1 - axis,)), ((), ()))
    rows = tuple(range(x.ndim - 1))
    pair = (x, gradient) if axis == 0 else (gradient, x)
    return (
        _round_and_multiply(gradient, kernel, columns),
        jax.lax.dot_general(*pair, ((rows, rows), ((), ())), precision),
    )


rounded_product.defvjp(_forward, _backward)


@functools.cache
def speed_of_rounding() -> float:
    """How many times as fast as a float32 product a rounded one is on the default device.

    Measured, because instructions alone do not decide it (docs/design/speed.md#on-a-cpu).
    """
    values = np.random.default_rng(0).normal(size=(2, _SIZE, _SIZE)).astype(np.float32)
    x, kernel = map(jnp.asarray, values)
    dimensions = (((1,), (0,)), ((), ()))
    plain = jax.jit(lambda x, kernel: jax.lax.dot_general(x, kernel, dimensions))
    rounded = jax.jit(lambda x, kernel: _round_and_multiply(x, kernel, dimensions))

    def seconds(product: Any) -> float:
        started = time.perf_counter()
        product(x, kernel).block_until_ready()
        return time.perf_counter() - started

    seconds(plain), seconds(rounded)  # compiles
    turns = [(seconds(plain), seconds(rounded)) for _ in range(_TURNS)]
    return min(a for a, _ in turns) / min(b for _, b in turns)


def bfloat16_instructions(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """In words, which instructions for bfloat16 the processor has.

    Args:
      cpuinfo: Linux's description of the processor; other systems have none.
    """
    if not cpuinfo.exists():
        return f"its instructions are unknown without {cpuinfo}"
    words = set(cpuinfo.read_text().split())
    found = [name for name in _INSTRUCTIONS if name in words]
    return f"it has {' and '.join(found) or 'none of ' + ', '.join(_INSTRUCTIONS)}"
