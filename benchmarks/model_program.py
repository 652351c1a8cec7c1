"""Counts what BERT BASE's forward and backward pass hold, without running them.

    python -m benchmarks.model_program

Lines of StableHLO, scanned and unrolled, and the bytes that automatic differentiation keeps from
the forward for the backward pass, by `model.remat`. A count, the same on every machine: writes
benchmarks/results/model_program.json.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable
from typing import Any

import jax

from benchmarks.harness import Benchmark
from bertjax.config import MeshConfig, ModelConfig, Phase
from bertjax.models import BertForPreTraining, abstract_params
from bertjax.objectives.objective import abstract_batch, make_objective
from bertjax.objectives.pretraining import (
    pretraining_denominators,
    pretraining_loss,
    pretraining_sums,
)
from bertjax.parallel.sharding import make_mesh

BASE = ModelConfig(dtype="bfloat16", scan_layers=True)
ROWS = {"64 x 128": Phase(1, 128, 64, 20), "16 x 512": Phase(1, 512, 16, 80)}


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Counts and prints."""
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    lines = {}
    for name, scan in (("scanned", True), ("unrolled", False)):
        loss, batch = loss_function(dataclasses.replace(BASE, scan_layers=scan), "64 x 128", mesh)
        program = jax.jit(jax.grad(loss)).lower(abstract_params(BASE), batch, row_keys(batch))
        lines[name] = program.as_text().count("\n")
    kept: dict[str, dict[str, int]] = {}
    for rows in ROWS:
        for remat in ("none", "attention", "layer"):
            loss, batch = loss_function(dataclasses.replace(BASE, remat=remat), rows, mesh)
            kept.setdefault(rows, {})[remat] = round(kept_bytes(loss, batch) / 2**20)
            print(rows, remat, kept[rows][remat], "MiB", flush=True)
    return {
        "model": dataclasses.asdict(BASE),
        "stablehlo_lines": lines,
        "kept_mebibytes": kept,
    }


def loss_function(model: ModelConfig, rows: str, mesh: Any) -> tuple[Callable, dict[str, Any]]:
    """The loss (params, batch, row_keys) -> scalar, and the shapes of a batch."""

    def loss(params: Any, batch: Any, keys: Any) -> jax.Array:
        sums = pretraining_sums(BertForPreTraining(model), params, batch, keys)
        return pretraining_loss(sums, pretraining_denominators(batch))

    batch = abstract_batch(make_objective(model), ROWS[rows], mesh)
    return loss, {k: jax.ShapeDtypeStruct(v.shape, v.dtype) for k, v in batch.items()}


def row_keys(batch: dict[str, Any]) -> jax.ShapeDtypeStruct:
    """Shapes of one key a row."""
    return jax.ShapeDtypeStruct(batch["input_ids"].shape[:1], jax.random.key(0).dtype)


def kept_bytes(loss: Callable, batch: dict[str, Any]) -> int:
    """Bytes of the arrays that the backward pass closes over, parameters among them."""

    def residuals(params: Any, batch: Any, keys: Any) -> Any:
        return jax.vjp(lambda p: loss(p, batch, keys), params)[1]

    kept = jax.eval_shape(residuals, abstract_params(BASE), batch, row_keys(batch))
    return sum(
        x.size * x.dtype.itemsize
        for x in jax.tree.leaves(kept)
        if not jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)
    )


BENCHMARK = Benchmark(measure, "model_program.json")

if __name__ == "__main__":
    BENCHMARK.main()
