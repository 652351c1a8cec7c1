"""The tables of docs/results/plan.md."""

from __future__ import annotations

from typing import Any

from benchmarks.harness import read_contents
from benchmarks.plan_table import COMMANDS, RESULT, SPLIT, command

BEFORE = RESULT.with_name("plan_before.json")  # of earlier steps, with the commit of each
UNROLLED = "2026-11-24T11:47"  # commit b006613
HEADER = [
    "| recipe | length | topology | chips | data x fsdp x tensor | microbatches | GB a chip | fits "
    "| TFLOP a chip | MB sent a chip, by kind | bound, sequences/s | bound, hours of the phase | "
    "checks | compiled in, s | on |",
    "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|",
]


def present() -> str:
    """Plans of the step with unrolled layers."""
    return "\n".join([*HEADER, *(row(x) for x in read_contents(RESULT) if x["date"] >= UNROLLED)])


def earlier() -> str:
    """Plans of the step with scanned layers that were not compiled again."""
    return "\n".join([*HEADER, *(row(x) for x in read_contents(RESULT) if x["date"] < UNROLLED)])


def row(result: dict[str, Any]) -> str:
    """One line of the table."""
    (phase,) = result["phases"]
    slices = f" x {result['num_slices']}" if result["num_slices"] > 1 else ""
    sent: dict[str, float] = {}
    for item in phase["collectives"]:
        where = " between slices" if item["across_slices"] else ""
        name = f"{item['kind']} ({item['axes']}){where}"
        sent[name] = sent.get(name, 0) + item["sent_bytes"] / 1e6
    bound = phase["bound_sequences_per_second"]
    hours = bound and phase["num_steps"] * phase["global_batch_size"] / bound / 3600
    failed = [name for name, found in phase["checks"].items() if found is not True]
    missing = (phase["peak_bytes_per_chip"] - phase["hbm_bytes_per_chip"]) / 1e9
    would = "; ".join(phase["would_fit"][:3]).replace("--config.", "")
    cells = (
        result["recipe"],
        str(phase["max_length"]),
        result["topology"] + slices,
        str(result["chips"]),
        " x ".join(str(size) for size in phase["mesh"].values())
        + ", optimizer split" * (SPLIT in command(result)),
        str(phase["num_microbatches"]),
        f"{phase['peak_bytes_per_chip'] / 1e9:.2f} of {phase['hbm_bytes_per_chip'] / 1e9:.2f}",
        "yes" if phase["fits"] else f"no, {missing:.2f} GB too much; would: {would}",
        f"{phase['flops_per_chip'] / 1e12:.2f}" if phase["fits"] else "",
        ", ".join(f"{name} {size:,.0f}" for name, size in sent.items()),
        f"{bound:,.0f} ({phase['bound_by']})" if bound else "",
        f"{hours:,.1f}" if hours else "",
        ("failed: " + ", ".join(failed)) if failed else "all hold" * phase["fits"],
        f"{phase['compile_seconds']:.0f}" if phase["fits"] else "",
        result["date"][:16].replace("T", " "),
    )
    return "| " + " | ".join(cells) + " |"


def pairs() -> list[tuple[list[dict[str, Any]], dict[str, Any]]]:
    """The rows that were compiled before and after: all earlier records, and the present one."""
    now = {command(x): x for x in read_contents(RESULT) if x["date"] >= UNROLLED}
    before = [x for x in read_contents(BEFORE) if command(x) in now]
    found = [([x for x in before if command(x) == text], now.get(text)) for text in COMMANDS]
    return [(old, new) for old, new in found if old and new is not None]


def rise() -> str:
    """By how much the bounds of these rows rose, over the last of the earlier records."""
    bound = "bound_sequences_per_second"
    rises = [new[bound] / old[-1][bound] - 1 for old, new in pairs()]
    return f"{100 * min(rises):.0f} to {100 * max(rises):.0f} %"


def changes() -> str:
    """What the step came to before and after."""
    lines = [
        "| recipe | length | topology | step | microbatches | temporary, GB | traffic, GB | "
        "collectives | MB sent | bound, sequences/s |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for old, new in pairs():
        for result in [*old, new]:
            (phase,) = result["phases"]
            cells = (
                result["recipe"],
                str(phase["max_length"]),
                result["topology"],
                result.get("version", f"present, {result['date'][:10]}"),
                str(phase["num_microbatches"]),
                f"{phase['memory']['temporary'] / 1e9:.2f}",
                f"{phase['bytes_per_chip'] / 1e9:.2f}",
                ", ".join(f"{c['count']} {c['kind']}" for c in phase["collectives"]),
                f"{sum(c['sent_bytes'] for c in phase['collectives']) / 1e6:,.0f}",
                f"{phase['bound_sequences_per_second']:,.0f} ({phase['bound_by']})",
            )
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)
