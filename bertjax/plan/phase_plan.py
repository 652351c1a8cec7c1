"""The plan of one phase: compiled if there is a compiler for the target, else by arithmetic."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from bertjax.config import REMATS, Config, ConfigError, Phase
from bertjax.objectives.objective import make_objective
from bertjax.parallel.sharding import check_fits_mesh, make_mesh
from bertjax.plan.arithmetic import estimate, mesh_sizes
from bertjax.plan.collectives import Collective
from bertjax.plan.program import compile_phase, resolve_model
from bertjax.plan.roofline import Roofline, bound
from bertjax.plan.topology import Target
from bertjax.training.compilation import (
    USABLE,
    DoesNotFitError,
    device_memory_bytes,
    estimate_step_seconds,
)

COMPILED, ARITHMETIC = "compiled", "arithmetic"


@dataclasses.dataclass(frozen=True)
class PhasePlan:
    """The plan of one phase on the target.

    Attributes:
      index: of the phase in the recipe.
      phase: its steps, rows and length.
      source: COMPILED or ARITHMETIC.
      mesh: axis -> size.
      remat: as planned.
      num_microbatches: parts of the batch.
      memory: kind -> bytes of one chip; if a program does not fit, one kind, "needed".
      hbm_bytes: available to a program on one chip; 0 if not known.
      fits: whether the memory is enough.
      flops: of matrix products of one chip and step.
      useful_flops: those that the objective counts: without remat and one-hot products.
      traffic_bytes: to and from main memory of one chip and step.
      collectives: of one chip and step.
      checks: name -> True, or what was found instead; empty by arithmetic.
      roofline: the bound; None if the peaks of the device are not known, or nothing compiled.
      compile_seconds: 0 by arithmetic.
    """

    index: int
    phase: Phase
    source: str
    mesh: dict[str, int]
    remat: str
    num_microbatches: int
    memory: dict[str, int]
    hbm_bytes: int
    fits: bool
    flops: float
    useful_flops: float
    traffic_bytes: float
    collectives: Sequence[Collective]
    checks: dict[str, bool | str]
    roofline: Roofline | None
    compile_seconds: float

    @property
    def peak_bytes(self) -> int:
        """Bytes of one chip that the step takes."""
        return sum(self.memory.values())


def resolve(config: Config, target: Target) -> Config:
    """The recipe with the dtype of the target's computation."""
    return dataclasses.replace(config, model=resolve_model(config, target))


def plan_phase(config: Config, index: int, target: Target) -> PhasePlan:
    """Plans one phase, with the mesh, remat and number of microbatches of the recipe.

    Args:
      config: from `resolve`.
      index: of the phase.
      target: what the phase is planned for.

    Raises:
      ConfigError: the recipe does not divide over the mesh.
    """
    if not target.devices:
        return estimate_phase(config, index, target)
    phase = config.resolved_phases()[index]
    mesh = make_mesh(config.mesh, target.devices)
    check_fits_mesh(config, mesh)
    sizes = dict(mesh.shape)
    if target.chip and not target.owned:
        memory = target.chip.hbm_bytes
    else:
        memory = device_memory_bytes(mesh)
    useful = _useful_flops(config, phase, target)
    try:
        program = compile_phase(config, phase, mesh, memory)
    except DoesNotFitError as error:
        return PhasePlan(
            index, phase, COMPILED, sizes, config.model.remat, error.num_microbatches,
            {"needed": error.needed_bytes}, memory, False, 0.0, useful, 0.0, [], {}, None, 0.0,
        )  # fmt: skip
    roofline = None
    if target.chip:
        roofline = bound(
            target.chip,
            phase,
            program.flops,
            program.hbm_bytes,
            program.collectives,
            target.num_slices,
        )
    elif target.owned:
        seconds, _ = estimate_step_seconds(config, phase, mesh)
        roofline = Roofline(
            {"compute": seconds}, "compute", seconds, phase.global_batch_size / seconds
        )
    return PhasePlan(
        index=index,
        phase=phase,
        source=COMPILED,
        mesh=sizes,
        remat=config.model.remat,
        num_microbatches=program.num_microbatches,
        memory=program.memory,
        hbm_bytes=memory,
        fits=not memory or sum(program.memory.values()) <= memory,
        flops=program.flops,
        useful_flops=useful,
        traffic_bytes=program.hbm_bytes,
        collectives=program.collectives,
        checks=program.checks,
        roofline=roofline,
        compile_seconds=program.compile_seconds,
    )


def estimate_phase(config: Config, index: int, target: Target) -> PhasePlan:
    """Plans one phase by arithmetic; the target must be in the table of chips.

    Raises:
      ConfigError: the recipe does not divide over the mesh.
    """
    assert target.chip is not None
    phase = config.resolved_phases()[index]
    sizes = mesh_sizes(config.mesh, target.num_chips, target.num_slices)
    found = estimate(config, phase, sizes, target.chip.hbm_bytes, target.num_slices)
    return PhasePlan(
        index=index,
        phase=phase,
        source=ARITHMETIC,
        mesh=sizes,
        remat=config.model.remat,
        num_microbatches=found.num_microbatches,
        memory=found.memory,
        hbm_bytes=target.chip.hbm_bytes,
        # If the memory decides, training leaves the same share free.
        fits=sum(found.memory.values())
        <= (1.0 if config.num_microbatches else USABLE) * target.chip.hbm_bytes,
        flops=found.flops,
        useful_flops=_useful_flops(config, phase, target),
        traffic_bytes=found.hbm_bytes,
        collectives=found.collectives,
        checks={},
        roofline=bound(
            target.chip, phase, found.flops, found.hbm_bytes, found.collectives, target.num_slices
        ),
        compile_seconds=0.0,
    )


def advise(config: Config, plan: PhasePlan, target: Target) -> list[str]:
    """Flags, each of which makes a phase fit, by arithmetic.

    The least change of each kind: more microbatches, then remat, then fsdp. For the last two the
    memory decides the number of microbatches.
    """
    if target.chip is None:
        return []
    model, auto = config.model, dataclasses.replace(config, num_microbatches=0)
    shards = plan.mesh["data"] * plan.mesh["fsdp"]
    rows = plan.phase.global_batch_size // shards
    microbatches = {
        f"--config.num_microbatches={n}": dataclasses.replace(config, num_microbatches=n)
        for n in range(plan.num_microbatches + 1, rows + 1)
        if rows % n == 0
    }
    remat = {
        f"--config.model.remat={name}": dataclasses.replace(
            auto, model=dataclasses.replace(model, remat=name)
        )
        for name in REMATS[REMATS.index(model.remat) + 1 :]
    }
    fsdp = {
        f"--config.mesh.data=-1 --config.mesh.fsdp={n}": dataclasses.replace(
            auto, mesh=dataclasses.replace(config.mesh, data=-1, fsdp=n)
        )
        for n in range(2 * plan.mesh["fsdp"], shards + 1)
        if shards % n == 0
    }
    advice = []
    for kind in (microbatches, remat, fsdp):
        for flags, changed in kind.items():
            try:
                found = estimate_phase(changed, plan.index, target)
            except ConfigError:
                continue
            if found.peak_bytes <= USABLE * found.hbm_bytes:
                advice.append(f"{flags} ({found.peak_bytes / 1e9:.1f} GB)")
                break
    return advice


def _useful_flops(config: Config, phase: Phase, target: Target) -> float:
    row = make_objective(config.model).row_flops(phase)
    return phase.global_batch_size * row / target.num_chips
