"""A plan by arithmetic from the sizes, for chips without a compiler on this machine.

The search also uses it, to try many meshes before a few are compiled. Memory is a fair estimate,
traffic a rough one: docs/results/design_measurements.md compares both with a compiled step.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh

from bertjax.config import Config, ConfigError, MeshConfig, Phase
from bertjax.objectives.objective import make_objective
from bertjax.parallel.sharding import check_fits_mesh
from bertjax.parameters import shapes
from bertjax.plan.collectives import Collective
from bertjax.training.compilation import USABLE, activation_bytes, bytes_a_device
from bertjax.training.optimizer import make_optimizer
from bertjax.training.start import lay_out_state


@dataclasses.dataclass(frozen=True)
class Estimate:
    """The work of one chip in one step, by arithmetic.

    Attributes:
      memory: kind -> bytes.
      flops: of matrix products, including those of remat.
      hbm_bytes: to and from main memory, roughly.
      collectives: their bytes.
      num_microbatches: parts of the batch.
    """

    memory: dict[str, int]
    flops: float
    hbm_bytes: float
    collectives: list[Collective]
    num_microbatches: int


def mesh_sizes(config: MeshConfig, num_chips: int, num_slices: int = 1) -> dict[str, int]:
    """Axis -> size, with -1 filled in.

    Raises:
      ConfigError: the axes do not multiply to the number of chips, or `data` does not divide over
        the slices.
    """
    sizes = config.axes()
    fixed = math.prod(size for size in sizes.values() if size != -1)
    filled = {axis: num_chips // fixed if size == -1 else size for axis, size in sizes.items()}
    if math.prod(filled.values()) != num_chips:
        raise ConfigError(
            f"config.mesh = {sizes} does not multiply to {num_chips} chips: change an axis, or set "
            "one to -1 to fill"
        )
    if filled["data"] % num_slices:
        raise ConfigError(
            f"config.mesh.data = {filled['data']} is not divisible by the {num_slices} slices: "
            "fsdp and tensor stay inside a slice"
        )
    return filled


def estimate(
    config: Config, phase: Phase, sizes: dict[str, int], hbm_bytes: int, num_slices: int = 1
) -> Estimate:
    """Estimates one phase; with `num_microbatches` 0 takes the smallest number that fits.

    Args:
      config: with `model` resolved.
      phase: to estimate.
      sizes: of the mesh's axes.
      hbm_bytes: memory of one chip.
      num_slices: that the axis `data` spans.

    Raises:
      ConfigError: batch, heads or widths do not divide over the mesh.
    """
    mesh: Any = AbstractMesh(tuple(sizes.values()), tuple(sizes))
    check_fits_mesh(config, mesh)
    rows = phase.global_batch_size // (sizes["data"] * sizes["fsdp"])
    params, state = _state_bytes(config, mesh)
    row_activations = activation_bytes(config, phase) / sizes["tensor"]

    def memory(parts: int) -> dict[str, int]:
        return {
            "arguments": state,
            "temporary": int(1.5 * params + rows / parts * row_activations),
        }

    parts = config.num_microbatches
    if not parts:
        allowed = [n for n in range(1, rows + 1) if rows % n == 0]
        fitting = [n for n in allowed if sum(memory(n).values()) <= USABLE * hbm_bytes]
        parts = fitting[0] if fitting else rows
    remat = {"none": 0.0, "attention": 0.0, "layer": 1 / 3}[config.model.remat]
    flops = rows * make_objective(config.model).row_flops(phase)
    itemsize = jnp.dtype(config.model.dtype).itemsize
    copies = params * itemsize / 4  # the kernels in the compute dtype
    return Estimate(
        memory=memory(parts),
        flops=flops * (1 + remat) / sizes["tensor"],
        # Parameters, the optimizer state and gradients are read and written; the copies are written
        # once and read by each microbatch, forward and backward; activations written, and read
        # three times.
        hbm_bytes=2 * (state + params)
        + copies * (1 + 2 * parts) * sizes["fsdp"]
        + 4 * rows * row_activations,
        collectives=_collectives(config, phase, sizes, params, parts, num_slices),
        num_microbatches=parts,
    )


def _collectives(
    config: Config,
    phase: Phase,
    sizes: dict[str, int],
    shard_bytes: int,
    parts: int,
    num_slices: int,
) -> list[Collective]:
    """The collectives that the compiler makes for the three axes: see docs/design/plan.md."""
    itemsize = jnp.dtype(config.model.dtype).itemsize
    shard = shard_bytes * itemsize / 4  # of the parameters, in the compute dtype
    found = []

    def add(kind: str, axis: str, count: int, bytes_each: float) -> None:
        if sizes[axis] > 1:
            across = axis == "data" and num_slices > 1
            found.append(Collective(kind, (axis,), sizes[axis], count, bytes_each, across, ()))

    whole = shard * sizes["fsdp"]
    add("all-gather", "fsdp", 2 * parts, whole)
    add("reduce-scatter", "fsdp", parts, whole)
    if config.mesh.shard_optimizer:
        # Gradients once, and the new parameters: both in float32.
        add("reduce-scatter", "data", 1, shard_bytes)
        add("all-gather", "data", 1, shard_bytes)
    else:
        add("all-reduce", "data", parts, shard)
    rows = phase.global_batch_size // (sizes["data"] * sizes["fsdp"])
    layer = rows / parts * phase.max_length * config.model.hidden_size * itemsize
    passes = 6 if config.model.remat == "layer" else 4  # two sublayers, forward and backward
    add("all-reduce", "tensor", passes * config.model.num_layers * parts, layer)
    return found


def _state_bytes(config: Config, mesh: Any) -> tuple[int, int]:
    """Bytes on one chip: of the parameters, and of the whole training state."""
    params = {
        path: jax.ShapeDtypeStruct(shape, jnp.float32)
        for path, shape in shapes(config.model).items()
    }
    optimizer = make_optimizer(config.optimizer, config.total_steps)
    state = lay_out_state(params, optimizer, mesh, config.mesh.shard_optimizer)
    return bytes_a_device(state.params), bytes_a_device(state)
