"""Checks the kernels of dropout, residual sum and LayerNorm on a device.

    python -m benchmarks.residual_norm_kernel --check

Compares output and gradients with NumPy in float64, beside the plain path, for lengths and widths
of models, and the dropout mask bit for bit. On a CPU the kernels are interpreted. Writes
benchmarks/results/residual_norm_kernel.json.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.harness import Benchmark, UsageError, cpu_name, nested
from bertjax.config import Dtype, ModelConfig
from bertjax.models.dropout import drop_threshold, random_bits
from bertjax.models.layer_norm import ResidualNorm

sys.path.append(str(Path(__file__).parent.parent / "tests" / "helpers"))

import residual_norm_reference

SHAPES = ((4, 128, 768), (2, 512, 1024), (3, 40, 384))  # rows, length, hidden size
DTYPES: tuple[Dtype, ...] = ("float32", "bfloat16")
RATE, EPSILON = 0.1, 1e-12


def options(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    parser.add_argument("--check", action="store_true", help="compare with float64")


def measure(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Checks all shapes and dtypes; ends with 1 if one fails."""
    if not args.check:
        raise UsageError("say what to do: --check")
    device = jax.devices()[0]
    rows = [check(*shape, dtype) for shape in SHAPES for dtype in DTYPES]
    for row in rows:
        print(json.dumps(row), flush=True)
    chip = cpu_name() if device.platform == "cpu" else device.device_kind
    yield {"what": "checked", "chip": chip, "rows": rows}
    if not all(row["passes"] for row in rows):
        raise SystemExit("the kernels are off; see above")


def check(b: int, t: int, d: int, dtype: Dtype) -> dict[str, Any]:
    """The relative errors of output and gradients on both paths, and whether the mask is right."""
    rng = np.random.default_rng(0)
    x, y, gradient = (jnp.asarray(rng.normal(0.5, 2, (b, t, d)), dtype) for _ in range(3))
    scale, bias = np.linspace((0.5, -1), (1.5, 1), d).T.astype(np.float32)
    keys = jax.random.split(jax.random.key(1), b)
    keep = np.asarray(random_bits(keys, (t, d)) >= drop_threshold(RATE))
    wide = [np.asarray(a, np.float64) for a in (x, y)]
    expected = residual_norm_reference.reference(
        *wide, scale, bias, np.asarray(gradient, np.float64), keep, RATE, EPSILON
    )
    errors, mask_bits_that_differ = {}, -1
    for path in ("xla", "pallas"):
        config = ModelConfig(
            hidden_size=d, dtype=dtype, layer_norm=path, dropout_rate=RATE, layer_norm_eps=EPSILON
        )

        @jax.jit
        def run(
            x: jax.Array, y: jax.Array, scale: jax.Array, bias: jax.Array, config: Any = config
        ) -> Any:
            def apply(x: jax.Array, y: jax.Array, scale: jax.Array, bias: jax.Array) -> Any:
                params = {"params": {"scale": scale, "bias": bias}}
                return ResidualNorm(config).apply(params, x, y, keys)

            output, backward = jax.vjp(apply, x, y, scale, bias)
            return output, *backward(gradient)

        found = run(x, y, scale, bias)
        errors[path] = [
            float(np.linalg.norm(np.float64(a) - b) / np.linalg.norm(b))
            for a, b in zip(found, expected, strict=True)
        ]
        mask_bits_that_differ = int(((np.asarray(found[2]) != 0) != keep).sum())
    rounding = float(jnp.finfo(dtype).eps)
    close = all(
        ours < 4 * rounding and ours < 1.5 * theirs + rounding
        for ours, theirs in zip(errors["pallas"], errors["xla"], strict=True)
    )
    return {
        "shape": [b, t, d],
        "dtype": dtype,
        "errors": errors,
        "mask_bits_that_differ": mask_bits_that_differ,
        "passes": close and mask_bits_that_differ == 0,
    }


BENCHMARK = Benchmark(measure, "residual_norm_kernel.json", options, keep=nested("what", "chip"))

if __name__ == "__main__":
    BENCHMARK.main()
