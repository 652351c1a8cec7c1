"""Attention of a batch at once and row by row (`model.attention` = xla, rows), on one CPU device.

    taskset -c 0 python -m benchmarks.attention_rows

Both of 12 heads of 32, float32, in turns: forward without dropout, as evaluations and
`bertjax.load` run it, and forward and backward with dropout 0.1, as training does. The fastest of a
few runs of each. Writes benchmarks/results/attention_rows.json.
"""

from __future__ import annotations

import argparse
import functools
import json
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.harness import Benchmark
from bertjax.models.attention import by_rows, dot_product_attention
from bertjax.models.visibility import Visibility

SHAPES = ((32, 64), (32, 128), (8, 368), (32, 368), (8, 512))  # rows, tokens
HEADS, SIZE = 12, 32
ROUNDS = 5
PATHS: dict[str, Callable] = {"xla": lambda attend: attend, "rows": by_rows}


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Measures all shapes."""
    return {
        "heads": HEADS,
        "head_size": SIZE,
        "cases": [measure_shape(*shape) for shape in SHAPES],
    }


def measure_shape(rows: int, tokens: int) -> dict[str, float]:
    """Milliseconds of both, by the kind of pass."""
    keys = jax.random.split(jax.random.key(0), 3)
    arrays = tuple(jax.random.normal(key, (rows, tokens, HEADS, SIZE)) for key in keys)
    visibility = Visibility(jnp.ones((rows, tokens), jnp.int32))
    row_keys = jax.random.split(jax.random.key(1), rows)

    def forward(path: Callable, *arrays: jax.Array) -> jax.Array:
        attend = path(functools.partial(dot_product_attention, dropout_rate=0.0))
        return attend(*arrays, visibility, None)

    def loss(path: Callable, *arrays: jax.Array) -> jax.Array:
        attend = path(functools.partial(dot_product_attention, dropout_rate=0.1))
        return jnp.square(attend(*arrays, visibility, row_keys)).sum()

    passes = {"forward": forward, "training": jax.grad(loss, argnums=(1, 2, 3))}
    programs = {
        f"{kind}_{name}_ms": jax.jit(functools.partial(run, path))
        for kind, run in passes.items()
        for name, path in PATHS.items()
    }
    times: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(1 + ROUNDS):  # the first compiles
        for name, program in programs.items():
            started = time.perf_counter()
            jax.block_until_ready(program(*arrays))
            times[name].append(1e3 * (time.perf_counter() - started))
    case = {"rows": rows, "tokens": tokens} | {n: round(min(t[1:]), 1) for n, t in times.items()}
    print(json.dumps(case), flush=True)
    return case


BENCHMARK = Benchmark(measure, "attention_rows.json")


if __name__ == "__main__":
    BENCHMARK.main()
