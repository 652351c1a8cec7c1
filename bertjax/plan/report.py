"""A plan as JSON and as text."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from bertjax.config import Config
from bertjax.plan.collectives import KINDS, Collective
from bertjax.plan.phase_plan import ARITHMETIC, PhasePlan
from bertjax.plan.roofline import schedule_days
from bertjax.plan.topology import Target


def collectives_table(collectives: Sequence[Collective]) -> list[dict[str, Any]]:
    """Sums by kind and mesh axes: executions, bytes of whole arrays, bytes sent by a chip."""
    rows: dict[tuple[str, str, bool], dict[str, Any]] = {}
    for c in sorted(collectives, key=lambda c: (KINDS.index(c.kind), c.axes)):
        axes = " x ".join(c.axes)
        row = rows.setdefault(
            (c.kind, axes, c.across_slices),
            {
                "kind": c.kind,
                "axes": axes,
                "group_size": c.group_size,
                "across_slices": c.across_slices,
                "count": 0,
                "bytes": 0,
                "sent_bytes": 0,
            },
        )
        row["count"] += c.count
        row["bytes"] += round(c.count * c.bytes_each)
        row["sent_bytes"] += round(c.sent_bytes)
    return list(rows.values())


def phase_json(plan: PhasePlan, advice: Sequence[str]) -> dict[str, Any]:
    """One phase, with the keys of the JSON output."""
    roofline = plan.roofline
    return {
        "phase": plan.index,
        "source": plan.source,
        "max_length": plan.phase.max_length,
        "global_batch_size": plan.phase.global_batch_size,
        "num_steps": plan.phase.num_steps,
        "mesh": plan.mesh,
        "remat": plan.remat,
        "num_microbatches": plan.num_microbatches,
        "fits": plan.fits,
        "peak_bytes_per_chip": plan.peak_bytes,
        "hbm_bytes_per_chip": plan.hbm_bytes,
        "memory": plan.memory,
        "would_fit": list(advice),
        "flops_per_chip": plan.flops,
        "model_flops_per_chip": plan.useful_flops,
        "bytes_per_chip": plan.traffic_bytes,
        "collectives": collectives_table(plan.collectives),
        "checks": plan.checks,
        "bound_seconds": roofline.seconds if roofline else None,
        "bound_by": roofline.limit if roofline else None,
        "bound_sequences_per_second": roofline.sequences_per_second if roofline else None,
        "compile_seconds": round(plan.compile_seconds, 1),
    }


def plan_json(
    config: Config, recipe: str, target: Target, plans: Sequence[PhasePlan], advice: Sequence[Any]
) -> dict[str, Any]:
    """The whole plan.

    `fits` and `peak_bytes_per_chip` are those of the worst phase. Figures of a step are in `phases`
    for each phase, and at the top level for the phase that takes most of the bound's time.
    """
    phases = [phase_json(plan, tips) for plan, tips in zip(plans, advice, strict=True)]

    def seconds(i: int) -> float:
        roofline = plans[i].roofline
        return plans[i].phase.num_steps * roofline.step_seconds if roofline else 0.0

    longest = phases[max(range(len(plans)), key=seconds)]
    worst = max(plans, key=lambda plan: (not plan.fits, plan.peak_bytes))
    return {
        "recipe": recipe,
        "topology": target.name,
        "num_slices": target.num_slices,
        "chips": target.num_chips,
        "device_kind": target.device_kind,
        "source": plans[0].source,
        "mesh": longest["mesh"],
        "dtype": config.model.dtype,
        "fits": all(plan.fits for plan in plans),
        "peak_bytes_per_chip": worst.peak_bytes,
        "hbm_bytes_per_chip": worst.hbm_bytes,
        "flops_per_chip": longest["flops_per_chip"],
        "bytes_per_chip": longest["bytes_per_chip"],
        "collectives": longest["collectives"],
        "bound_sequences_per_second": longest["bound_sequences_per_second"],
        "bound_days": bound_days(config, plans),
        "phases": phases,
        "versions": versions(),
    }


def bound_days(config: Config, plans: Sequence[PhasePlan]) -> float | None:
    """Days of the schedule at the bound; None unless every phase has a bound."""
    seconds = [plan.roofline.step_seconds for plan in plans if plan.roofline]
    if len(seconds) != len(config.resolved_phases()):
        return None
    return schedule_days(config, seconds)


def versions() -> dict[str, str]:
    """Versions of everything that decides a plan."""
    found = {}
    for name in ("jax", "jaxlib", "libtpu"):
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def plan_text(
    config: Config, recipe: str, target: Target, plans: Sequence[PhasePlan], advice: Sequence[Any]
) -> str:
    """The whole plan as text, one table per phase."""
    slices = f", {target.num_slices} slices" if target.num_slices > 1 else ""
    lines = [f"{recipe} on {target.name}{slices}: {target.num_chips} x {target.device_kind}"]
    if plans[0].source == ARITHMETIC:
        lines.append("by arithmetic: no compiler for this chip here")
    for plan, tips in zip(plans, advice, strict=True):
        lines += ["", *_phase_lines(plan, tips)]
    days = bound_days(config, plans)
    if days is not None and all(plan.fits for plan in plans):
        lines += ["", f"{config.last_step:,} steps take at least {_duration(days)}"]
    return "\n".join(lines)


def _phase_lines(plan: PhasePlan, advice: Sequence[str]) -> list[str]:
    phase = plan.phase
    mesh = " x ".join(f"{axis} {size}" for axis, size in plan.mesh.items())
    parts = f"{plan.num_microbatches} microbatch{'es' * (plan.num_microbatches > 1)}"
    lines = [
        f"phase {plan.index}: {phase.num_steps:,} steps of {phase.global_batch_size:,} rows x "
        f"{phase.max_length} tokens",
        _row("mesh", f"{mesh}, {parts}, remat {plan.remat}"),
    ]
    kinds = ", ".join(f"{kind} {size / 1e9:.2f}" for kind, size in plan.memory.items())
    limit = f" of {plan.hbm_bytes / 1e9:.2f} GB" if plan.hbm_bytes else ""
    lines.append(_row("memory per chip", f"{plan.peak_bytes / 1e9:.2f} GB{limit} ({kinds})"))
    if plan.fits:
        lines.append(_row("fits", "yes"))
    else:
        missing = (plan.peak_bytes - plan.hbm_bytes) / 1e9
        lines.append(_row("fits", f"NO: {missing:.2f} GB too much" if missing > 0 else "NO"))
        lines += [_row("would fit" if i == 0 else "", tip) for i, tip in enumerate(advice)]
    if not plan.flops:
        return lines
    lines.append(
        _row(
            "arithmetic per chip",
            f"{plan.flops / 1e12:.3f} TFLOP a step, {plan.useful_flops / plan.flops:.1%} of it the "
            "model's own",
        )
    )
    lines.append(_row("memory traffic", f"{plan.traffic_bytes / 1e9:.2f} GB per chip and step"))
    for row in collectives_table(plan.collectives):
        where = f"over {row['axes']}" + (", across slices" if row["across_slices"] else "")
        lines.append(
            _row(
                row["kind"],
                f"{row['count']:,} {where}: {row['bytes'] / 1e6:,.1f} MB, "
                f"{row['sent_bytes'] / 1e6:,.1f} MB sent",
            )
        )
    for name, found in plan.checks.items():
        lines.append(_row("check", name if found is True else f"FAILED: {name}: {found}"))
    if plan.roofline:
        times = ", ".join(f"{n} {s * 1e3:.2f}" for n, s in plan.roofline.seconds.items())
        lines.append(_row("at least, ms a step", times))
        lines.append(
            _row(
                "bound",
                f"{plan.roofline.sequences_per_second:,.0f} sequences/s, by {plan.roofline.limit}",
            )
        )
    return lines


def _row(name: str, value: str) -> str:
    return f"  {name:<20} {value}"


def _duration(days: float) -> str:
    return f"{days:.1f} days" if days >= 2 else f"{days * 24:.1f} hours"
