"""Compiles the training step of one phase for a target, and reads the program."""

from __future__ import annotations

import dataclasses
import itertools
import math
import time
from typing import Any

import jax
from jax.sharding import Mesh

from bertjax import models
from bertjax.config import Config, ModelConfig, Phase
from bertjax.objectives.objective import abstract_batch, make_objective
from bertjax.plan import collectives, hlo, work
from bertjax.plan.topology import Target
from bertjax.training.compilation import compile_train_step, program_bytes
from bertjax.training.optimizer import make_optimizer
from bertjax.training.start import abstract_state
from bertjax.training.step import TrainState


@dataclasses.dataclass(frozen=True)
class Program:
    """The work of one device in one step.

    Attributes:
      memory: kind -> bytes, see `bertjax.training.compilation.program_bytes`.
      flops: of matrix products.
      hbm_bytes: to and from main memory, approximately.
      collectives: one entry per collective.
      checks: name -> True, or what was found instead.
      num_microbatches: parts of the batch.
      compile_seconds: of all programs that were tried.
    """

    memory: dict[str, int]
    flops: float
    hbm_bytes: float
    collectives: list[collectives.Collective]
    checks: dict[str, bool | str]
    num_microbatches: int
    compile_seconds: float


def resolve_model(config: Config, target: Target) -> ModelConfig:
    """The model as training would compute it on the target."""
    model = models.resolve_model(config.model, target.backend)
    models.check_backend(model, target.backend, target.num_chips)
    return model


def make_state(config: Config, mesh: Mesh) -> TrainState:
    """Shapes and shardings of the training state; `config.model` must be resolved."""
    optimizer = make_optimizer(config.optimizer, config.total_steps)
    return abstract_state(config.model, optimizer, mesh, config.mesh.shard_optimizer)


def compile_phase(config: Config, phase: Phase, mesh: Mesh, memory: int | None) -> Program:
    """Compiles the step that `bertjax.train` would run in the phase.

    Args:
      config: with `model` resolved.
      phase: to compile.
      mesh: of the devices that the program is for.
      memory: bytes available to a program on one device; None = ask the device.

    Raises:
      DoesNotFitError: no allowed number of microbatches fits.
    """
    started = time.monotonic()
    objective = make_objective(config.model)
    with jax.set_mesh(mesh):
        compiled, num_microbatches = compile_train_step(
            config,
            phase,
            objective,
            make_optimizer(config.optimizer, config.total_steps),
            make_state(config, mesh),
            abstract_batch(objective, phase, mesh),
            mesh,
            memory,
        )
    return read_program(compiled, config, phase, mesh, num_microbatches, time.monotonic() - started)


def read_program(
    compiled: Any,
    config: Config,
    phase: Phase,
    mesh: Mesh,
    num_microbatches: int,
    compile_seconds: float,
) -> Program:
    """Reads memory, arithmetic, traffic and collectives from a compiled step, and checks it."""
    module = hlo.parse(compiled.as_text())
    slices = [getattr(device, "slice_index", 0) or 0 for device in mesh.devices.flat]
    found = collectives.read_collectives(module, dict(mesh.shape), slices)
    state = make_state(config, mesh)
    shapes = {x.shape for x in jax.tree.leaves(state.params)}
    # None, which is not a leaf, for unused arguments: Adafactor has placeholder arrays.
    read = jax.tree.leaves(compiled.input_shardings[0][0])
    rows = phase.global_batch_size // num_microbatches
    return Program(
        memory=program_bytes(compiled),
        flops=work.matmul_flops(module),
        hbm_bytes=work.memory_bytes(module),
        collectives=found,
        checks=check_program(
            module, found, mesh, len(read), len(set(slices)), config.mesh.shard_optimizer
        )
        | check_activations(module, mesh, rows, phase, config.model, shapes),
        num_microbatches=num_microbatches,
        compile_seconds=compile_seconds,
    )


def check_program(
    module: hlo.Module,
    found: list[collectives.Collective],
    mesh: Mesh,
    num_state_arrays: int,
    num_slices: int = 1,
    shard_optimizer: bool = False,
) -> dict[str, bool | str]:
    """Checks of a step's state and collectives: see docs/design/plan.md.

    Args:
      module: the compiled program of one device.
      found: its collectives.
      mesh: that it was compiled for.
      num_state_arrays: number of the first arguments, which the step may overwrite.
      num_slices: with several, an all-reduce has three stages: scatter inside each slice, reduce
        between slices, gather again.
      shard_optimizer: whether the update is split over `data`.

    Returns:
      Name -> True, or what was found instead.
    """
    kinds = {collective.kind for collective in found}
    missing = num_state_arrays - len(module.donated & set(range(num_state_arrays)))
    checks: dict[str, bool | str] = {
        "donated buffers are reused": not missing or f"{missing} of {num_state_arrays} are not",
        "no all-to-all": "all-to-all" not in kinds or "found one",
        "every loop's length is known": not module.loops_of_unknown_length
        or f"unknown: {', '.join(module.loops_of_unknown_length)}",
        "every kernel says its arithmetic": not (silent := work.uncounted_kernels(module))
        or f"not counted: {', '.join(silent)}",
    }
    if mesh.shape["fsdp"] > 1:
        absent = {"all-gather", "reduce-scatter"} - kinds
        if mesh.devices.flat[0].platform == "cpu":
            absent -= {"reduce-scatter"}  # XLA's CPU compiler uses all-reduce and a slice
        # The step requests both (parallel/partition.py). Over 16 chips of a v5e, libtpu 0.0.42
        # replaces the reduce-scatters by all-reduces.
        checks["fsdp gathers parameters and scatters gradients"] = (
            not absent or f"the compiler left no {' and no '.join(sorted(absent))}"
        )
    elif mesh.shape["tensor"] == 1 and not (shard_optimizer and mesh.shape["data"] > 1):
        others = kinds - {"all-reduce"}
        if num_slices > 1:
            others -= {"reduce-scatter", "all-gather"}
        checks["data parallelism only reduces"] = not others or f"found {', '.join(sorted(others))}"
    return checks


def check_activations(
    module: hlo.Module,
    mesh: Mesh,
    rows: int,
    phase: Phase,
    model: ModelConfig,
    parameter_shapes: set[tuple[int, ...]],
) -> dict[str, bool | str]:
    """Checks that no device has activations of all rows, with hidden columns of each token.

    Ids, labels, keys and weights of rows may be whole, because they are small. An activation has
    the number of rows as its first dimension (or second, after that of a scan), followed by the
    length or the number of predictions, or it has their product.

    Args:
      module: the compiled program of one device.
      mesh: that it was compiled for.
      rows: of one microbatch, over all devices.
      phase: has the length and the number of predictions.
      model: has the hidden size.
      parameter_shapes: shapes of parameters, which may look like activations.

    Returns:
      Name -> True, or shapes that were found; empty if rows are not split.
    """
    if mesh.shape["data"] * mesh.shape["fsdp"] == 1:
        return {}
    places = (phase.max_length, phase.max_predictions)
    columns = model.hidden_size // mesh.shape["tensor"]
    found = set()
    for array in (a for _, x in module.executed() for a in x.arrays):
        dims = tuple(size for size in array.dims if size != 1)
        if array.dtype not in ("f32", "bf16", "f16") or dims in parameter_shapes:
            continue
        for (i, size), place in itertools.product(enumerate(dims[:2]), places):
            split = size == rows and place in dims[i + 1 :]
            is_large = math.prod(dims[i:]) >= rows * place * columns
            if (split or size == rows * place) and is_large:
                found.add(f"{array.dtype}[{','.join(map(str, dims))}]")
    name = "no activation of the whole batch on a chip"
    return {name: not found or f"found {', '.join(sorted(found)[:4])}"}
