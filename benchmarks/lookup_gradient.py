"""The gradient of the word table's lookup, scattered and sorted: exactness, error and time.

    python -m benchmarks.lookup_gradient [--output=FILE]

Ids as frequent as words are (Zipf's law), rows of BASE's width: 512 x 128 tokens, on a CPU 8 x 128.
Each path adds the same rows ten times; the result says whether all ten are the same to the bit, how
far the first is from the sum in float64 (of the largest entry), and what one takes: the paths in
turns, the fastest of five. Fails if the sorted sums are not the same to the bit or off by more than
1e-6.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.device_rates import seconds_of_one
from benchmarks.harness import Benchmark
from bertjax.config import LookupGradient, ModelConfig
from bertjax.models.lookup import look_up

PATHS: tuple[LookupGradient, ...] = ("scatter", "sorted")
TIMES, TURNS, LARGEST_ERROR = 10, 5, 1e-6


def measure(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Checks and times both, and prints them."""
    config = ModelConfig()
    rows = 8 if jax.default_backend() == "cpu" else 512
    rng = np.random.default_rng(0)
    ids = np.minimum(rng.zipf(1.2, (rows, 128)) - 1, config.vocab_size - 1).astype(np.int32)
    added = rng.standard_normal((*ids.shape, config.hidden_size), np.float32)
    exact = np.zeros((config.vocab_size, config.hidden_size))
    np.add.at(exact, ids, added)
    table = jnp.zeros(exact.shape, jnp.float32)
    arrays = table, jnp.asarray(ids), jnp.asarray(added)
    functions = {path: gradient_of(path) for path in PATHS}
    result: dict[str, Any] = {"tokens": ids.size, "width": config.hidden_size, "paths": {}}
    for path, function in functions.items():
        sums = [np.asarray(function(*arrays)) for _ in range(TIMES)]
        result["paths"][path] = {
            "same_to_the_bit": all(np.array_equal(x, sums[0]) for x in sums),
            "largest_error": float(np.abs(sums[0] - exact).max() / np.abs(exact).max()),
            "seconds": float("inf"),
        }
    for _ in range(TURNS):
        for path, function in functions.items():
            of_path = result["paths"][path]
            of_path["seconds"] = min(of_path["seconds"], seconds_of_one(function, *arrays))
    yield result
    for path, of_path in result["paths"].items():
        same = "the same" if of_path["same_to_the_bit"] else "not the same"
        print(
            f"{path}: {1e3 * of_path['seconds']:.3f} ms, off by {of_path['largest_error']:.1e} of "
            f"the largest entry, {TIMES} times {same} to the bit"
        )
    ours = result["paths"]["sorted"]
    sys.exit(not ours["same_to_the_bit"] or ours["largest_error"] > LARGEST_ERROR)


def gradient_of(path: LookupGradient) -> Any:
    """The compiled gradient of a path: (table, ids, rows) -> sums [v, d]."""
    config = dataclasses.replace(ModelConfig(), lookup_gradient=path)

    def gradient(table: jax.Array, ids: jax.Array, rows: jax.Array) -> jax.Array:
        (sums,) = jax.vjp(lambda x: look_up(config, x, ids), table)[1](rows)
        return sums

    return jax.jit(gradient)


BENCHMARK = Benchmark(measure, "lookup_gradient.json")

if __name__ == "__main__":
    BENCHMARK.main()
