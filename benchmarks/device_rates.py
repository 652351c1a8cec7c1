"""How fast this device multiplies large matrices and copies memory: what a step is measured by.

    python -m benchmarks.device_rates --output=FILE

Twenty calls are queued and waited for once, as the kernels of a step are; the fastest of five
turns counts. The product is of bfloat16 on random numbers (float32 on a CPU); a copy counts what
is read and what is written.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.harness import Benchmark

CALLS, TURNS = 20, 5


def measure(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Measures both and prints them."""
    small = jax.default_backend() == "cpu"
    size, count = (1_024, 1 << 24) if small else (8_192, 1 << 29)
    dtype = jnp.float32 if small else jnp.bfloat16
    x = jax.random.normal(jax.random.key(0), (size, size), dtype)
    numbers = jax.random.normal(jax.random.key(1), (count,), jnp.float32)
    result: dict[str, Any] = {
        "product": f"{size} x {size} x {size}, {x.dtype}",
        "product_flops": 2 * size**3 / seconds_of_one(jnp.matmul, x, x),
        "copy": f"{numbers.nbytes / 2**30:.3g} GiB",
        # Negated, for the compiler would do without a plain copy.
        "copy_bytes_per_second": 2 * numbers.nbytes / seconds_of_one(jnp.negative, numbers),
    }
    yield result
    print(
        f"{result['product_flops'] / 1e12:,.3g} TFLOP/s of a product ({result['product']}), "
        f"{result['copy_bytes_per_second'] / 1e9:,.4g} GB/s of a copy ({result['copy']})"
    )


def seconds_of_one(function: Callable[..., jax.Array], *arrays: jax.Array) -> float:
    """Of one call among CALLS that are queued."""
    call = jax.jit(function)
    call(*arrays).block_until_ready()
    least = float("inf")
    for _ in range(TURNS):
        started = time.perf_counter()
        for _ in range(CALLS):
            out = call(*arrays)
        out.block_until_ready()
        least = min(least, (time.perf_counter() - started) / CALLS)
    return least


BENCHMARK = Benchmark(measure)

if __name__ == "__main__":
    BENCHMARK.main()
