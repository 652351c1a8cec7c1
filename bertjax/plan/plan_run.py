"""Planning from Python: does a recipe fit, how fast can it be, and which layout is best."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from bertjax.cli.recipes import open_recipe
from bertjax.config import Config, ConfigError
from bertjax.config.checks import validate
from bertjax.plan import report
from bertjax.plan.phase_plan import PhasePlan, advise, plan_phase, resolve
from bertjax.plan.search import SearchResult, search
from bertjax.plan.topology import Target, open_target


@dataclasses.dataclass(frozen=True)
class RunPlan:
    """Memory, arithmetic and speed of a recipe on a topology.

    Attributes:
      config: the recipe, its model resolved.
      target: the topology.
      phases: memory, arithmetic, collectives and bound of each phase.
      advice: for each phase that does not fit, settings that would.
    """

    config: Config
    target: Target
    phases: tuple[PhasePlan, ...]
    advice: tuple[list[str], ...]

    @property
    def fits(self) -> bool:
        """Whether all phases fit the memory of a chip."""
        return all(phase.fits for phase in self.phases)

    def to_json(self, recipe: str = "") -> dict[str, Any]:
        """The whole plan, as `bertjax.plan --json` prints it.

        Args:
          recipe: what to call the recipe.
        """
        return report.plan_json(self.config, recipe, self.target, self.phases, self.advice)

    def to_text(self, recipe: str = "the recipe") -> str:
        """The whole plan, as `bertjax.plan` prints it; `recipe` as in `to_json`."""
        return report.plan_text(self.config, recipe, self.target, self.phases, self.advice)

    __str__ = to_text


def plan_run(
    config: Config | str,
    topology: str = "",
    *,
    num_slices: int = 1,
    phase: int | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> RunPlan:
    """Says whether a recipe fits a topology and how fast it can be at best; trains nothing.

    Compiles the training step for a TPU slice that need not be there (pip install 'bertjax[plan]')
    or for the devices of this machine; for GPUs it is arithmetic alone. A named topology sets JAX
    to the CPU for the rest of this process: plan before, or beside, anything that trains.

    Args:
      config: the recipe, by name, as the path of a .py file, or as an object.
      topology: CHIP:SHAPE such as "v5e:16x16" or "h100:8"; "" = the devices of this machine.
      num_slices: equal slices (TPU) or machines (GPU).
      phase: plan this phase only, from 0; None = all.
      overrides: fields of the recipe by dotted name, {"mesh.fsdp": 8}.

    Raises:
      ConfigError: a setting cannot work; there is no such phase.
      TopologyError: the topology is not known, or libtpu is missing, locked or refuses the shape.
    """
    config, phases = _open(config, phase, overrides)
    target = open_target(topology, num_slices)
    config = resolve(config, target)
    plans = tuple(plan_phase(config, index, target) for index in phases)
    advice = tuple([] if plan.fits else advise(config, plan, target) for plan in plans)
    return RunPlan(config, target, plans, advice)


def search_layouts(
    config: Config | str,
    topology: str = "",
    *,
    num_slices: int = 1,
    phase: int | None = None,
    num_compiles: int = 3,
    overrides: Mapping[str, Any] | None = None,
) -> SearchResult:
    """Compares meshes, remat and microbatches, and recommends a layout.

    Args:
      config: as in `plan_run`, like the others.
      topology: where it is to run.
      num_slices: of the topology.
      phase: compare for this phase only.
      num_compiles: layouts that are compiled; 0 = arithmetic alone.
      overrides: fields of the recipe.

    Raises:
      ConfigError: as `plan_run`.
      TopologyError: as `plan_run`.
    """
    config, phases = _open(config, phase, overrides)
    target = open_target(topology, num_slices, compiles=num_compiles > 0)
    return search(resolve(config, target), phases, target, num_compiles)


def _open(
    config: Config | str, phase: int | None, overrides: Mapping[str, Any] | None
) -> tuple[Config, list[int]]:
    """The recipe, checked, and the phases to plan for."""
    config = open_recipe(config, overrides)
    validate(config)
    num_phases = len(config.resolved_phases())
    if phase is not None and not 0 <= phase < num_phases:
        raise ConfigError(f"--phase={phase}: the recipe has phases 0 to {num_phases - 1}")
    return config, list(range(num_phases)) if phase is None else [phase]
