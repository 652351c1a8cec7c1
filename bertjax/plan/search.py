"""Compares layouts (mesh, remat, microbatches) by arithmetic first, and compiles a few."""

from __future__ import annotations

import dataclasses
import itertools
import logging
import math
from collections.abc import Iterator, Sequence
from typing import Any

from bertjax.config import REMATS, Config, ConfigError, MeshConfig
from bertjax.plan.phase_plan import PhasePlan, estimate_phase, plan_phase
from bertjax.plan.report import bound_days, phase_json, versions
from bertjax.plan.topology import Target

_LOG = logging.getLogger(__name__)
_SHOWN = 12  # layouts in the table
_MAX_TENSOR = 8  # more splits of an encoder's layers leave each chip too little work


@dataclasses.dataclass(frozen=True)
class Layout:
    """One way to run the recipe.

    Attributes:
      config: the recipe with mesh and remat of the layout; the memory decides the microbatches.
      plans: of the phases, by arithmetic or compiled.
    """

    config: Config
    plans: tuple[PhasePlan, ...]

    @property
    def fits(self) -> bool:
        """Whether all phases fit."""
        return all(plan.fits for plan in self.plans)

    @property
    def seconds(self) -> float:
        """Seconds of all steps of the phases at their bounds."""
        return sum(
            plan.phase.num_steps * plan.roofline.step_seconds if plan.roofline else math.inf
            for plan in self.plans
        )

    @property
    def flags(self) -> str:
        """The flags to add to the training command."""
        mesh = self.config.mesh
        return (
            f"--config.mesh.data={mesh.data} --config.mesh.fsdp={mesh.fsdp} "
            f"--config.mesh.tensor={mesh.tensor} --config.model.remat={self.config.model.remat}"
            f" --config.mesh.shard_optimizer={str(mesh.shard_optimizer).lower()}"
        )


@dataclasses.dataclass(frozen=True)
class SearchResult:
    """All possible layouts, the best first; compiled ones before those by arithmetic."""

    target: Target
    layouts: tuple[Layout, ...]
    refused: int  # layouts that do not divide heads, widths or batch

    @property
    def best(self) -> Layout | None:
        """The recommended layout; None if nothing fits."""
        return next((layout for layout in self.layouts if layout.fits), None)

    @property
    def fits(self) -> bool:
        """Whether any layout does."""
        return self.best is not None

    def to_json(self, recipe: str = "") -> dict[str, Any]:
        """The comparison, and under `recommended` the flags and the plan of each phase."""
        best = self.best
        return {
            "recipe": recipe,
            "topology": self.target.name,
            "num_slices": self.target.num_slices,
            "chips": self.target.num_chips,
            "recommended": best
            and {
                "flags": best.flags,
                "why": self._why(best),
                "bound_days": bound_days(best.config, best.plans),
                "phases": [phase_json(plan, []) for plan in best.plans],
            },
            "layouts": [
                {
                    "flags": layout.flags,
                    "source": layout.plans[0].source,
                    "fits": layout.fits,
                    "peak_bytes_per_chip": max(plan.peak_bytes for plan in layout.plans),
                    "num_microbatches": [plan.num_microbatches for plan in layout.plans],
                    "seconds": layout.seconds if math.isfinite(layout.seconds) else None,
                }
                for layout in self.layouts
            ],
            "refused": self.refused,
            "versions": versions(),
        }

    def to_text(self, recipe: str = "the recipe") -> str:
        """A table of the best layouts and the recommendation."""
        slices = f", {self.target.num_slices} slices" if self.target.num_slices > 1 else ""
        lines = [
            f"{recipe} on {self.target.name}{slices}: {self.target.num_chips} x "
            f"{self.target.device_kind}; {len(self.layouts)} layouts, {self.refused} more do not "
            "divide",
            f"{'data x fsdp x tensor':<22}{'optimizer':<11}{'remat':<11}{'microbatches':<14}"
            f"{'GB/chip':<11}{'bound, h':<10}{'limit':<10}source",
        ]
        for layout in self.layouts[:_SHOWN]:
            sizes = " x ".join(str(size) for size in layout.plans[0].mesh.values())
            optimizer = "split" if layout.config.mesh.shard_optimizer else "whole"
            parts = ", ".join(str(plan.num_microbatches) for plan in layout.plans)
            peak = max(plan.peak_bytes for plan in layout.plans) / 1e9
            limits = {plan.roofline.limit for plan in layout.plans if plan.roofline}
            hours = f"{layout.seconds / 3600:.2f}" if math.isfinite(layout.seconds) else "-"
            lines.append(
                f"{sizes:<22}{optimizer:<11}{layout.config.model.remat:<11}{parts:<14}"
                f"{peak:<11.2f}{hours if layout.fits else 'no fit':<10}"
                f"{', '.join(sorted(limits)):<10}{layout.plans[0].source}"
            )
        best = self.best
        if best is None:
            lines += ["", "nothing fits: take more chips, shorter rows or a smaller batch"]
        else:
            lines += ["", f"recommended: {best.flags}", self._why(best)]
        return "\n".join(lines)

    __str__ = to_text

    def _why(self, best: Layout) -> str:
        plan = max(best.plans, key=lambda plan: plan.phase.num_steps)
        assert plan.roofline is not None
        reasons = [
            f"{plan.source}: {plan.peak_bytes / 1e9:.2f} of {plan.hbm_bytes / 1e9:.2f} GB per "
            f"chip, bound by {plan.roofline.limit} at {plan.roofline.sequences_per_second:,.0f} "
            "sequences/s"
        ]
        others = [x for x in self.layouts if x is not best and x.fits]
        if others:
            gain = others[0].seconds / best.seconds - 1
            reasons.append(
                f"the next layout ({others[0].flags}) is bound {gain:.1%} slower"
                if gain > 0.005
                else f"the next layout ({others[0].flags}) has the same bound and is no simpler"
            )
        return "; ".join(reasons)


def search(
    config: Config, phases: Sequence[int], target: Target, num_compiles: int
) -> SearchResult:
    """Tries every layout by arithmetic and compiles the first of them.

    Args:
      config: from `phase_plan.resolve`.
      phases: to plan for.
      target: with a chip in the table.
      num_compiles: number of layouts to compile, if there is a compiler for the target.

    Raises:
      ConfigError: the figures of the target are not known.
    """
    if target.chip is None:
        raise ConfigError(
            f"--search compares by published figures, and {target.device_kind!r} has none here: "
            "name a topology"
        )
    layouts, refused = [], 0
    for candidate in _candidates(config, target):
        try:
            plans = tuple(estimate_phase(candidate, index, target) for index in phases)
        except ConfigError:
            refused += 1
            continue
        layouts.append(Layout(candidate, plans))
    layouts.sort(key=_rank)
    compiled: list[Layout] = []
    if target.devices:
        for layout in [x for x in layouts if x.fits][:num_compiles]:
            _LOG.info("compiling %s", layout.flags)
            plans = tuple(plan_phase(layout.config, index, target) for index in phases)
            compiled.append(Layout(layout.config, plans))
            layouts.remove(layout)
    compiled.sort(key=_rank)
    return SearchResult(target, (*compiled, *layouts), refused)


def _candidates(config: Config, target: Target) -> Iterator[Config]:
    in_slice = target.num_chips // target.num_slices
    for tensor in range(1, min(_MAX_TENSOR, in_slice) + 1):
        for fsdp in range(1, in_slice // tensor + 1):
            if in_slice % (fsdp * tensor):
                continue
            data = in_slice // (fsdp * tensor) * target.num_slices
            for remat, split in itertools.product(REMATS, (False, True) if data > 1 else (False,)):
                yield dataclasses.replace(
                    config,
                    mesh=MeshConfig(data, fsdp, tensor, split),
                    num_microbatches=0,
                    model=dataclasses.replace(config.model, remat=remat),
                )


def _rank(layout: Layout) -> tuple[float, ...]:
    """Fitting first, then the lowest bound (to 1 %), then the simplest."""
    seconds = layout.seconds
    rounded = round(math.log(seconds) / math.log(1.01)) if math.isfinite(seconds) else math.inf
    mesh = layout.config.mesh
    return (
        not layout.fits,
        rounded,
        mesh.tensor,
        REMATS.index(layout.config.model.remat),
        max(plan.num_microbatches for plan in layout.plans),
        mesh.fsdp,
        mesh.shard_optimizer,
    )
