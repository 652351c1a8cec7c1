"""Prints the losses of a few steps on several meshes of 8 simulated devices; see test_sharding."""

import dataclasses
import functools
import os

os.environ["XLA_FLAGS"] = (
    "--xla_force_host_platform_device_count=8 "
    "--xla_backend_optimization_level=0"  # compiles three times faster
)

import jax
import jax.numpy as jnp
import numpy as np

from bertjax.config import MeshConfig, ModelConfig, OptimizerConfig
from bertjax.models import BertForPreTraining, init_params
from bertjax.training.objectives import pretraining_objective
from bertjax.training.optimizer import make_optimizer
from bertjax.training.sharding import (
    make_mesh,
    parameter_shardings,
    replicated,
    row_sharding,
)
from bertjax.training.step import TrainState, train_step

MODEL = ModelConfig(
    vocab_size=96,
    hidden_size=32,
    num_layers=2,
    num_heads=4,
    intermediate_size=64,
    max_positions=16,
    dtype="float32",
)
ROWS, LENGTH, MASKED = 16, 16, 4


def make_batch() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    weights = rng.integers(0, 2, (ROWS, MASKED)).astype(np.float32)  # rows differ in their counts
    weights[:, 0] = 1
    return {
        "input_ids": rng.integers(5, 96, (ROWS, LENGTH), np.int32),
        "token_type_ids": np.repeat([[0] * 8 + [1] * 8], ROWS, 0).astype(np.int32),
        "attention_mask": (np.arange(LENGTH) < rng.integers(8, 17, (ROWS, 1))).astype(np.int32),
        "masked_positions": np.sort(rng.integers(1, 8, (ROWS, MASKED), np.int32)),
        "masked_ids": rng.integers(5, 96, (ROWS, MASKED), np.int32),
        "masked_weights": weights,
        "next_sentence_labels": rng.integers(0, 2, ROWS, np.int32),
        "row_weights": np.ones(ROWS, np.float32),
    }


def losses(
    axes: tuple[int, int, int], num_microbatches: int, model: ModelConfig = MODEL
) -> list[float]:
    size = axes[0] * axes[1] * axes[2]
    mesh = make_mesh(MeshConfig(*axes), jax.devices()[:size])
    # A rate at which the loss falls smoothly: a larger one makes rounding grow from step to step.
    optimizer = make_optimizer(OptimizerConfig(learning_rate=2e-3, warmup_steps=2), 100)
    objective = pretraining_objective(BertForPreTraining(model))
    params = init_params(model, 0)
    placed = jax.device_put(params, parameter_shardings(params, mesh))
    state = TrainState(jnp.int32(0), placed, optimizer.init(placed))
    state = state._replace(
        step=jax.device_put(state.step, replicated(mesh)),
        opt_state={
            name: jax.device_put(tree, parameter_shardings(tree, mesh))
            for name, tree in state.opt_state.items()
        },
    )
    batch = jax.device_put(make_batch(), row_sharding(mesh))
    key = jax.device_put(jax.random.key(0), replicated(mesh))
    with jax.set_mesh(mesh):
        step = jax.jit(functools.partial(train_step, objective, optimizer, num_microbatches))
        result = []
        for _ in range(8):
            state, metrics = step(state, batch, key)
            result.append(float(metrics["loss"]))
    return result


if __name__ == "__main__":
    for axes in ((1, 1, 1), (8, 1, 1), (1, 8, 1), (2, 2, 2)):
        print("x".join(map(str, axes)) + ":", *losses(axes, 1))
    print("1x1x1 in 8 parts:", *losses((1, 1, 1), 8))
    scanned = dataclasses.replace(MODEL, scan_layers=True, remat="layer")
    print("2x1x1 in 4 parts, scanned:", *losses((2, 1, 1), 4, scanned))
