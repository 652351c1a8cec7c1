"""Plans BASE and LARGE for slices of every TPU generation, and tabulates what came out.

    python -m benchmarks.plan_table [--rows=N] [--before=DATE] [--only=TEXT]

Each row is a compile of the real training step in a process of its own, minutes on two free cores,
most useful first. A result is written to benchmarks/results/plan.json as it arrives, and rows that
are there are skipped (unless they are older than --before), so the command can be stopped and run
again; docs/results/plan.md is written anew each time. Needs pip install 'bertjax[plan]'.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.hardware import cpu_name

RESULTS = Path(__file__).parent / "results" / "plan.json"
BEFORE = RESULTS.with_name("plan_before.json")  # of earlier steps, with the commit of each
TABLE = Path(__file__).parent.parent / "docs" / "results" / "plan.md"
UNROLLED = "2026-11-24 11:47"  # commit b006613
FSDP = "--config.mesh.data=1 --config.mesh.fsdp=16"
# recipe, phase (0 = length 128, 1 = length 512), topology, slices, other flags
ROWS: list[tuple[str, int, str, int, str]] = [
    ("base", 0, "v5e:4x4", 1, ""),
    ("base", 1, "v5e:4x4", 1, ""),
    ("large", 1, "v5e:4x4", 1, ""),
    ("base", 0, "v6e:4x4", 1, ""),
    ("base", 0, "v5p:2x2x4", 1, ""),
    ("large", 0, "v5e:4x4", 1, ""),
    ("base", 0, "v5e:4x4", 2, ""),
    ("large", 0, "v5e:4x4", 1, FSDP),
    ("large", 0, "v5p:2x2x4", 1, ""),
    ("large", 0, "v6e:4x4", 1, ""),
    ("base", 0, "v4:2x2x2", 1, ""),
    ("large", 0, "v5e:16x16", 1, ""),
    ("large", 0, "v5e:4x4", 1, "--config.mesh.data=4 --config.mesh.fsdp=4"),
    ("large", 1, "v5e:4x4", 1, "--config.num_microbatches=1"),
    ("base", 0, "v5e:16x16", 1, ""),
    ("large", 1, "v5e:16x16", 1, ""),
    ("large", 0, "v4:2x2x2", 1, ""),
    ("large", 0, "v5e:4x4", 2, ""),
    ("large", 1, "v6e:4x4", 1, ""),
    ("large", 1, "v5p:2x2x4", 1, ""),
    ("base", 1, "v5e:16x16", 1, ""),
    ("base", 1, "v6e:4x4", 1, ""),
    ("base", 1, "v5p:2x2x4", 1, ""),
    ("base", 1, "v4:2x2x2", 1, ""),
    ("base", 1, "v5e:4x4", 2, ""),
    ("large", 1, "v4:2x2x2", 1, ""),
    ("large", 1, "v5e:4x4", 2, ""),
    ("large", 1, "v5e:4x4", 1, FSDP),
    ("base", 0, "v5e:4x4", 1, FSDP),
    ("base", 1, "v5e:4x4", 1, FSDP),
]


def main() -> None:
    """Plans what is missing, at most `--rows` of it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=len(ROWS), help="compile at most so many")
    parser.add_argument(
        "--before", default="", help="compile rows again that are older: 2026-11-24"
    )
    parser.add_argument("--only", default="", help="compile rows alone whose command has this text")
    args = parser.parse_args()
    limit = args.rows
    results: list[dict[str, Any]] = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    done = {result["command"] for result in results if result["date"] >= args.before}
    commands = [command_of(*row) for row in ROWS]
    results.sort(key=lambda result: commands.index(result["command"]))
    for command in commands:
        if command in done or args.only not in command:
            continue
        if limit == 0:
            break
        limit -= 1
        print(command, flush=True)
        result = plan(command)
        results = [r for r in results if r["command"] != command] + [result]
        results.sort(key=lambda result: commands.index(result["command"]))
        write(RESULTS, json.dumps(results, indent=2) + "\n")
        write(TABLE, table(results))
    write(TABLE, table(results))


def command_of(recipe: str, phase: int, topology: str, slices: int, flags: str) -> str:
    """The command that plans one row."""
    several = f" --num_slices={slices}" if slices > 1 else ""
    return (
        f"python -m bertjax.plan --config={recipe} --topology={topology}{several} --phase={phase} "
        f"--json {flags}"
    ).strip()


def plan(command: str) -> dict[str, Any]:
    """Runs a command; an answer is both "it fits" (exit code 0) and "it does not" (1)."""
    result = subprocess.run(
        [sys.executable, *command.split()[1:]], stdout=subprocess.PIPE, text=True, check=False
    )
    if result.returncode not in (0, 1) or not result.stdout.startswith("{"):
        raise SystemExit(f"exit code {result.returncode} of {command}")
    return {
        "command": command,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "compiled_on": f"{os.cpu_count()} x {cpu_name()}",
        "python": platform.python_version(),
        **json.loads(result.stdout),
    }


def write(path: Path, text: str) -> None:
    """Replaces a file at once, so that a kill leaves the old one or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".new")
    temporary.write_text(text)
    temporary.replace(path)


HEADER = [
    "| recipe | length | topology | chips | data x fsdp x tensor | microbatches | GB a chip | fits "
    "| TFLOP a chip | MB sent a chip, by kind | bound, sequences/s | bound, hours of the phase | "
    "checks | compiled in, s | on |",
    "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|",
]


def table(results: list[dict[str, Any]]) -> str:
    """The page docs/results/plan.md."""
    since = UNROLLED.replace(" ", "T")
    present = [row(result) for result in results if result["date"] >= since]
    earlier = [row(result) for result in results if result["date"] < since]
    lines = [
        "# Plans for slices, from real compiles",
        "",
        "Written by `python -m benchmarks.plan_table` from `benchmarks/results/plan.json`, which "
        "has command, date, versions and every figure of each row; how they are counted and what "
        "they cannot know is in [../design/plan.md](../design/plan.md). Nothing ran on a TPU: "
        "sequences/s and hours are bounds that no run can pass, not measurements.",
        "",
        *HEADER,
        *present,
    ]
    if earlier:
        lines += [
            "",
            "## Of an earlier step",
            "",
            f"Compiled before {UNROLLED}, when recipes scanned their layers and each microbatch "
            "summed its gradients over all chips. Where a row was compiled again its bound rose, "
            "by 24 to 45 %: [below](#the-step-before-and-after).",
            "",
            *HEADER,
            *earlier,
        ]
    return "\n".join([*lines, *changes(results)]) + "\n"


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
        " x ".join(str(size) for size in phase["mesh"].values()),
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


def changes(results: list[dict[str, Any]]) -> list[str]:
    """What the step came to before and after it was made faster, for rows compiled both times."""
    now = {r["command"]: r for r in results if r["date"] >= UNROLLED.replace(" ", "T")}
    earlier = [r for r in json.loads(BEFORE.read_text()) if r["command"] in now]
    lines = [
        "",
        "## The step before and after",
        "",
        "The same commands with the steps of earlier commits, as "
        "`benchmarks/results/plan_before.json` has them. What changed: "
        "[../design/speed.md](../design/speed.md).",
        "",
        "| recipe | length | topology | step | microbatches | temporary, GB | traffic, GB | "
        "collectives | MB sent | bound, sequences/s |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for command in [command_of(*row) for row in ROWS]:
        versions = [r for r in earlier if r["command"] == command]
        for result in [*versions, now[command]] if versions else []:
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
    return lines


if __name__ == "__main__":
    main()
