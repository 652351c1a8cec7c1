"""The lower bound of a step's time: the slowest of arithmetic, memory and links.

Each runs at its published peak and as if the others were hidden behind it (Williams et al. 2009,
"Roofline"), so no run is faster than the bound.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from bertjax.config import Config, Phase
from bertjax.flops import peak_flops
from bertjax.plan.chips import Chip
from bertjax.plan.collectives import Collective

_DAY = 24 * 3600.0


@dataclasses.dataclass(frozen=True)
class Roofline:
    """The least seconds of one step.

    Attributes:
      seconds: "compute", "memory", "links" (inside a slice or machine) and "network" (between
        them) -> seconds.
      limit: the largest of them.
      step_seconds: its seconds.
      sequences_per_second: rows of the global batch in that time.
    """

    seconds: dict[str, float]
    limit: str
    step_seconds: float
    sequences_per_second: float


def bound(
    chip: Chip,
    phase: Phase,
    flops: float,
    hbm_bytes: float,
    collectives: Sequence[Collective],
    num_slices: int = 1,
) -> Roofline:
    """The bound of one phase's step.

    Args:
      chip: with its peak rates.
      phase: has the rows of a step.
      flops: floating-point operations of one chip and step.
      hbm_bytes: bytes that one chip reads and writes in a step.
      collectives: of one chip and step.
      num_slices: slices or machines.
    """
    sent = [split_bytes(collective, num_slices) for collective in collectives]
    seconds = {
        "compute": flops / (peak_flops(chip.device_kind) or float("inf")),
        "memory": hbm_bytes / chip.hbm_bytes_per_second,
        "links": sum(inside for inside, _ in sent) / chip.link_bytes_per_second,
    }
    if num_slices > 1 and chip.network_bytes_per_second:
        seconds["network"] = sum(out for _, out in sent) / chip.network_bytes_per_second
    limit = max(seconds, key=lambda name: seconds[name])
    step = seconds[limit]
    return Roofline(seconds, limit, step, phase.global_batch_size / step)


def split_bytes(collective: Collective, num_slices: int) -> tuple[float, float]:
    """Bytes that one chip sends in a step to chips of its slice, and to other slices.

    A collective across slices has two stages: within each slice, and then between slices by every
    chip for its share of the array.
    """
    if not collective.across_slices:
        return collective.sent_bytes, 0.0
    in_slice = max(1, collective.group_size // num_slices)
    between = dataclasses.replace(
        collective, group_size=num_slices, bytes_each=collective.bytes_each / in_slice
    )
    inside = dataclasses.replace(collective, group_size=in_slice)
    return inside.sent_bytes, between.sent_bytes


def schedule_days(config: Config, step_seconds: Sequence[float]) -> float:
    """Days of the recipe's steps, from the seconds per step of each phase."""
    seconds, left = 0.0, config.last_step
    for phase, each in zip(config.resolved_phases(), step_seconds, strict=True):
        steps = min(left, phase.num_steps)
        seconds += steps * each
        left -= steps
    return seconds / _DAY
