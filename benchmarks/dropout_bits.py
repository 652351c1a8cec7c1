"""What a dropout mask costs to draw, by the hash of models/dropout.py and by JAX's generators.

    python -m benchmarks.dropout_bits

Masks of the attention probabilities of one BASE layer, [8, 12, 128, 128], a key for each row as training has them: our hash,
threefry at one word an element (JAX's default) and at one byte, and rbg, whose mask depends on the batch that a row
stands in. Beside them a multiplication of as many float32 numbers. The least of many counts. Writes
benchmarks/results/dropout_bits.json.
"""  # noqa: E501

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.harness import Benchmark
from bertjax.models.dropout import drop_threshold, random_bits

RATE, ROWS, SHAPE = 0.1, 8, (12, 128, 128)
REPEATS = 30


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Times each way of drawing."""
    keys = jax.random.split(jax.random.key(0), ROWS)
    x = jnp.ones((ROWS, *SHAPE), jnp.float32)

    def threefry(dtype: Any, keys: jax.Array) -> jax.Array:
        bits = jax.vmap(lambda key: jax.random.bits(key, SHAPE, dtype))(keys)
        return bits >= round(RATE * 2 ** (8 * jnp.dtype(dtype).itemsize))

    ways: dict[str, tuple[Callable[..., jax.Array], jax.Array]] = {
        "hash of the place": (lambda k: random_bits(k, SHAPE) >= drop_threshold(RATE), keys),
        "threefry, 32 bits": (lambda k: threefry(jnp.uint32, k), keys),
        "threefry, 8 bits": (lambda k: threefry(jnp.uint8, k), keys),
        "rbg, one key for all rows": (
            lambda k: jax.random.bits(k, x.shape, jnp.uint32) >= drop_threshold(RATE),
            jax.random.key(0, impl="rbg"),
        ),
        "a multiplication": (lambda x: x * 1.5, x),
    }
    return {
        "shape": [ROWS, *SHAPE],
        "ways": {name: measure_way(*way) for name, way in ways.items()},
    }


def measure_way(draw: Callable[..., jax.Array], argument: jax.Array) -> dict[str, float]:
    """Seconds to compile, and milliseconds to run."""
    started = time.perf_counter()
    compiled = jax.jit(draw).lower(argument).compile()
    compile_seconds = time.perf_counter() - started
    times = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        compiled(argument).block_until_ready()
        times.append(time.perf_counter() - started)
    return {"compile_seconds": round(compile_seconds, 3), "milliseconds": 1e3 * min(times)}


BENCHMARK = Benchmark(measure, "dropout_bits.json")

if __name__ == "__main__":
    BENCHMARK.main()
