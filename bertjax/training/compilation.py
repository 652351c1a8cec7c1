"""Compiles the train step ahead of time, in as many microbatches as the memory needs."""

from __future__ import annotations

import functools
import logging
import os
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from bertjax.config import Config, ConfigError, Phase
from bertjax.training.metrics import flops_per_row, peak_flops
from bertjax.training.objectives import Objective
from bertjax.training.optimizer import Optimizer
from bertjax.training.sharding import replicated, row_sharding
from bertjax.training.step import TrainState, train_step

_LOG = logging.getLogger(__name__)
_USABLE = 0.9  # of the memory: the rest is for the runtime and fragmentation


def abstract_batch(phase: Phase, mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of one global batch: b rows of t tokens with m masked positions."""
    b, t, m = phase.global_batch_size, phase.max_length, phase.max_predictions
    shapes: dict[str, tuple[tuple[int, ...], Any]] = {
        "input_ids": ((b, t), jnp.int32),
        "token_type_ids": ((b, t), jnp.int32),
        "attention_mask": ((b, t), jnp.int32),
        "masked_positions": ((b, m), jnp.int32),
        "masked_ids": ((b, m), jnp.int32),
        "masked_weights": ((b, m), jnp.float32),
        "next_sentence_labels": ((b,), jnp.int32),
        "row_weights": ((b,), jnp.float32),
    }
    rows = row_sharding(mesh)
    return {k: jax.ShapeDtypeStruct(s, d, sharding=rows) for k, (s, d) in shapes.items()}


def compile_train_step(
    config: Config,
    phase: Phase,
    objective: Objective,
    optimizer: Optimizer,
    abstract_state: TrainState,
    mesh: Mesh,
) -> tuple[Callable, int]:
    """Compiles the step of one phase for the mesh.

    With `config.num_microbatches` 0, takes the smallest number of parts whose program fits into a
    device's memory, as the compiler counts it: first guessed from the activations, then checked.

    Args:
      abstract_state: shapes, dtypes and shardings of the state.

    Returns:
      The compiled (state, batch, key) -> (state, metrics), which donates the state, and the
      number of microbatches.

    Raises:
      ConfigError: not even one row a device and microbatch fits.
    """
    memory = device_memory_bytes(mesh)
    rows = phase.global_batch_size // (mesh.shape["data"] * mesh.shape["fsdp"])  # a device
    candidates = [n for n in range(1, rows + 1) if rows % n == 0]
    if config.num_microbatches:
        candidates = [config.num_microbatches]
    elif memory:
        state_bytes = _bytes_a_device(abstract_state)
        room = _USABLE * memory - 1.5 * state_bytes  # gradients are a third of the state
        fitting = [n for n in candidates if rows / n * _activation_bytes(config, phase) <= room]
        candidates = candidates[candidates.index(fitting[0]) if fitting else -1 :]
    batch = abstract_batch(phase, mesh)
    key = jax.ShapeDtypeStruct((), jax.random.key(0).dtype, sharding=replicated(mesh))
    needed = 0
    for parts in candidates:
        started = time.monotonic()
        step = jax.jit(
            functools.partial(train_step, objective, optimizer, parts),
            donate_argnums=0,
            out_shardings=(jax.tree.map(lambda x: x.sharding, abstract_state), replicated(mesh)),
        )
        compiled = step.lower(abstract_state, batch, key).compile()
        needed = _program_bytes(compiled)
        _LOG.info(
            "compiled the step of %d rows x %d tokens in %d microbatch%s in %.1f s; "
            "%.2f GB a device%s",
            phase.global_batch_size,
            phase.max_length,
            parts,
            "" if parts == 1 else "es",
            time.monotonic() - started,
            needed / 1e9,
            f" of {memory / 1e9:.1f}" if memory else "",
        )
        if config.num_microbatches or not memory or needed <= _USABLE * memory:
            return compiled, parts
    raise ConfigError(
        f"one row of {phase.max_length} tokens a device needs {needed / 1e9:.2f} GB, and a device "
        f"has {memory / 1e9:.2f} GB: shard the parameters (config.mesh.fsdp), recompute "
        "(config.model.remat=layer) or shorten the rows"
    )


def device_memory_bytes(mesh: Mesh) -> int:
    """Memory that one device may use; host memory shared out on CPU, 0 where it is not known."""
    device = mesh.local_devices[0]
    stats = device.memory_stats() or {}
    if "bytes_limit" in stats:
        return stats["bytes_limit"]
    if device.platform != "cpu":
        return 0
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES") // len(mesh.local_devices)


def estimate_step_seconds(config: Config, phase: Phase, mesh: Mesh) -> tuple[float, str]:
    """A lower bound of a step's time, and how it came about.

    From the arithmetic of the model and the device's known peak, or else the rate of a matrix
    product measured here and now.
    """
    flops = phase.global_batch_size * flops_per_row(
        config.model, phase.max_length, phase.max_predictions
    )
    device = mesh.local_devices[0]
    rate = peak_flops(device.device_kind)
    source = f"the peak of {device.device_kind}"
    if rate is None:
        rate = _measured_matmul_flops(config.model.dtype)
        source = "the rate of a matrix product timed here"
        if device.platform == "cpu":  # simulated devices share the cores that were timed
            rate /= len(mesh.local_devices)
    seconds = flops / (rate * mesh.size)
    return seconds, (
        f"{phase.global_batch_size} rows x {flops / phase.global_batch_size / 1e9:.1f} GFLOP at "
        f"{rate * mesh.size / 1e12:.3g} TFLOP/s, {source}"
    )


def _measured_matmul_flops(dtype: str, size: int = 1_024) -> float:
    x = jnp.ones((size, size), jnp.dtype(dtype))
    multiply = jax.jit(lambda x: x @ x)
    multiply(x).block_until_ready()
    times = []
    for _ in range(5):
        started = time.perf_counter()
        multiply(x).block_until_ready()
        times.append(time.perf_counter() - started)
    return 2 * size**3 / min(times)


def _program_bytes(compiled: Any) -> int:
    usage = compiled.memory_analysis()
    return (
        usage.temp_size_in_bytes
        + usage.argument_size_in_bytes
        + usage.output_size_in_bytes
        - usage.alias_size_in_bytes
    )


def _bytes_a_device(abstract: Any) -> int:
    return sum(
        int(np.prod(x.sharding.shard_shape(x.shape))) * x.dtype.itemsize
        for x in jax.tree.leaves(abstract)
    )


def _activation_bytes(config: Config, phase: Phase) -> float:
    """Activations of one row kept for the backward pass (Korthikanti et al. 2022, equation 1).

    Their figure is for 16 bits; without recomputation, and only a first guess for the compiler.
    """
    model, t = config.model, phase.max_length
    if model.remat == "layer":
        layers = 2.0 * t * model.hidden_size * model.num_layers
    else:
        scores = 0 if model.remat == "attention" else 5 * model.num_heads * t / model.hidden_size
        layers = t * model.hidden_size * model.num_layers * (34 + scores)
    logits = 3 * 4 * phase.max_predictions * model.vocab_size
    return layers * jnp.dtype(model.dtype).itemsize / 2 + logits
