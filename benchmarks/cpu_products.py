"""Products of a step on a CPU with bfloat16 factors beside float32 ones (`model.factors`, `dtype`).

    python -m benchmarks.cpu_products

For each recipe the three products of its wider dense layer, of its projections and of the decoder,
for 2,048 tokens and 320 predictions: forward, gradient of the rows, gradient of the kernel. Each
in three ways, in turns, the fastest of which counts: float32; factors rounded to bfloat16 with
float32 sums and results; all of bfloat16. Casts to bfloat16 are part of the time. Writes
benchmarks/results/cpu_products.json, a record for each processor and version of jax.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.harness import Benchmark, rows
from bertjax.cli.recipes import load_recipe
from bertjax.models.rounded_product import bfloat16_instructions

RECIPES = ("tiny", "small", "base")
TOKENS, PREDICTIONS, TURNS = 2_048, 320, 7
WAYS: dict[str, tuple[str, str]] = {  # dtypes of factors and result
    "float32": ("float32", "float32"),
    "rounded": ("bfloat16", "float32"),
    "bfloat16": ("bfloat16", "bfloat16"),
}
# Rows [n, i], kernel [i, o] and gradient [n, o]: which two are multiplied, and how.
PASSES = {
    "forward": ("ni,io->no", "rows", "kernel"),
    "gradient of rows": ("no,io->ni", "gradient", "kernel"),
    "gradient of kernel": ("ni,no->io", "rows", "gradient"),
}


def measure(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Times all products, prints them, and returns one record."""
    cases = {
        f"{recipe}, {name}": measure_layer(*shape)
        for recipe in RECIPES
        for name, shape in layers(recipe).items()
    }
    for case, passes in cases.items():
        for name, milliseconds in passes.items():
            times = "  ".join(f"{way} {x:8.2f} ms" for way, x in milliseconds.items())
            print(f"{case:20} {name:20} {times}")
    yield {
        "jax": jax.__version__,
        "instructions": bfloat16_instructions(),
        "milliseconds": cases,
        "speed_of_rounded": geometric_means(cases, "rounded"),
        "speed_of_bfloat16": geometric_means(cases, "bfloat16"),
    }


def layers(recipe: str) -> dict[str, tuple[int, int, int]]:
    """Rows, inputs and outputs of the products of a recipe."""
    model = load_recipe(recipe).model
    d = model.hidden_size
    return {
        "feed-forward": (TOKENS, d, model.intermediate_size),
        "projection": (TOKENS, d, d),
        "decoder": (PREDICTIONS, d, model.vocab_size),
    }


def measure_layer(n: int, i: int, o: int) -> dict[str, dict[str, float]]:
    """Milliseconds of each pass in each way."""
    rng = np.random.default_rng(0)
    shapes = {"rows": (n, i), "kernel": (i, o), "gradient": (n, o)}
    arrays = {
        name: jnp.asarray(rng.standard_normal(shape, np.float32)) for name, shape in shapes.items()
    }
    return {
        name: in_turns(formula, arrays[first], arrays[second])
        for name, (formula, first, second) in PASSES.items()
    }


def in_turns(formula: str, *factors: jax.Array) -> dict[str, float]:
    """Milliseconds of the fastest turn of each way."""
    programs = {way: program(formula, *dtypes) for way, dtypes in WAYS.items()}
    times: dict[str, list[float]] = {way: [] for way in programs}
    for _ in range(1 + TURNS):
        for way, run in programs.items():
            started = time.perf_counter()
            run(*factors).block_until_ready()
            times[way].append(1e3 * (time.perf_counter() - started))
    return {way: min(turns[1:]) for way, turns in times.items()}  # the first compiles


def program(formula: str, factor: str, result: str) -> Callable[..., jax.Array]:
    """The product of float32 arrays, cast first."""

    @jax.jit
    def multiply(*arrays: jax.Array) -> jax.Array:
        cast = (x.astype(factor) for x in arrays)
        return jnp.einsum(formula, *cast, preferred_element_type=jnp.dtype(result))

    return multiply


def geometric_means(cases: dict[str, dict[str, dict[str, float]]], way: str) -> dict[str, float]:
    """How many times as fast as float32 a way is, over all layers, by pass."""
    return {
        name: float(
            np.exp(np.mean([np.log(x[name]["float32"] / x[name][way]) for x in cases.values()]))
        )
        for name in PASSES
    }


BENCHMARK = Benchmark(measure, "cpu_products.json", keep=rows("device", "jax"))

if __name__ == "__main__":
    BENCHMARK.main()
