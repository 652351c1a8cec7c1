"""Says where the time of a training step goes, part by part, from a trace of it.

    python -m benchmarks.step_profile --case=base:128:8

On a GPU with XLA_FLAGS=--xla_gpu_enable_command_buffer= , or what runs in a command buffer has no name. Compiles the
step of a case (benchmarks/step_case.py), traces a few of them with JAX's profiler, and adds up the time of every
operation under the part of the model that its name stems from. An operation that runs others counts without them;
where several run at once the sum is more than the time that passed. A fusion counts where its name says, though it may
hold more. Writes benchmarks/results/step_profile.json and prints the table. Does not import TensorFlow.
"""  # noqa: E501

from __future__ import annotations

import argparse
import collections
import dataclasses
import gzip
import os
import re
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
from jax.profiler import ProfileData

from benchmarks.harness import Benchmark, device_name, rows
from benchmarks.step_case import Runner, step_config

WARM_UP_STEPS = 3
# The first that is found in an operation's name; `optimizer` has no gradient around it.
PARTS = (
    ("MLM head and its loss", r"mlm_head"),
    ("pooler and NSP head", r"pooler|nsp_head"),
    ("embeddings", r"embeddings"),
    ("layers: projections", r"attention/(query|key|value|output)"),
    ("layers: attention", r"attention/"),
    ("layers: feed-forward products", r"mlp/(intermediate|output)"),
    ("layers: GELU", r"mlp/"),
    ("layers: LayerNorm", r"layer_norm"),
    ("layers: residuals and dropout", r"EncoderLayer"),
    ("layers: scan", r"encoder"),
    ("loss", r"jvp"),
)
OPTIMIZER = "optimiser, clipping, metrics, dropout keys"


def options(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    parser.add_argument("--case", default="base:128:8", help="recipe:length:rows")
    parser.add_argument("--attention", default="xla", choices=["xla", "pallas"])
    parser.add_argument("--scan_layers", action="store_true", help="as recipes do not")
    parser.add_argument("--set", action="append", default=[], help="NAME=VALUE of the model")
    parser.add_argument("--steps", type=int, default=5, help="that are traced")
    parser.add_argument("--trace", type=Path, help="where to keep the trace, gzipped")


def measure(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Traces a case and prints the table."""
    layers = [f"attention={args.attention}", f"scan_layers={str(args.scan_layers).lower()}"]
    config = step_config(args.case, [*layers, *args.set])
    contender = Runner(config)
    contender.run(WARM_UP_STEPS)
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            started = time.perf_counter()
            contender.run(args.steps)
            seconds = (time.perf_counter() - started) / args.steps
        (path,) = Path(folder).glob("**/*.xplane.pb")
        times = operation_seconds(ProfileData.from_file(str(path)))
        if args.trace:
            args.trace.write_bytes(gzip.compress(path.read_bytes()))
    if not times:
        raise SystemExit(
            "the trace names no operation of the program: on a GPU set "
            "XLA_FLAGS=--xla_gpu_enable_command_buffer= , since a command buffer runs as one"
        )
    names = dict(
        re.findall(r'%?([\w.-]+) = .*?op_name="([^"]*)"', contender.program.as_text() or "")
    )
    parts = sum_parts({name: t / args.steps for name, t in times.items()}, names)
    result = {
        "case": args.case,
        "attention": args.attention,
        "scan_layers": args.scan_layers,
        "fields": args.set,
        "flags": os.environ.get("XLA_FLAGS", ""),
        "seconds_a_step": seconds,
        "seconds_of_operations": sum(sum(part.values()) for part in parts.values()),
        "parts": parts,
        "model": dataclasses.asdict(config.model),
    }
    yield result
    print(table(result | {"device": device_name()}))


def operation_seconds(trace: ProfileData) -> dict[str, float]:
    """The time that each operation took itself, without those that it ran, by its name in HLO."""
    seconds: dict[str, float] = collections.defaultdict(float)
    planes = list(trace.planes)
    # A GPU's kernels have a plane of their own; the host's says when it asked for them.
    for plane in [x for x in planes if x.name.startswith("/device:GPU")] or planes:
        for line in plane.lines:
            for name, nanoseconds in own_times(operations(line)):
                seconds[name] += nanoseconds / 1e9
    return seconds


def operations(line: Any) -> list[tuple[float, float, str]]:
    """(start, end, name) of the operations of a line, outer before inner."""
    found = []
    for event in line.events:
        name = dict(event.stats).get("hlo_op")
        if name is not None and not event.name.startswith("end: "):
            found.append((event.start_ns, event.start_ns + event.duration_ns, str(name)))
    return sorted(found, key=lambda x: (x[0], -x[1]))


def own_times(events: list[tuple[float, float, str]]) -> Iterator[tuple[str, float]]:
    """(name, duration without the events inside), of events that are nested or apart."""
    for i, (start, end, name) in enumerate(events):
        own, covered = end - start, start
        for inner_start, inner_end, _ in events[i + 1 :]:
            if inner_start >= end:
                break
            own -= max(0.0, min(inner_end, end) - max(inner_start, covered))
            covered = max(covered, inner_end)
        yield name, own


def sum_parts(times: dict[str, float], names: dict[str, str]) -> dict[str, dict[str, float]]:
    """Seconds by part and direction.

    Args:
      times: seconds by name of operation.
      names: what each operation stems from, as JAX names it.
    """
    parts: dict[str, dict[str, float]] = {}
    for operation, seconds in times.items():
        origin = names.get(operation, "")
        part = part_of(origin)
        if not origin:
            part = f"unnamed: {re.sub(r'[.0-9]+$', '', operation)}"
        direction = "forward" if part == OPTIMIZER else direction_of(origin)
        sums = parts.setdefault(part, {"forward": 0.0, "backward": 0.0})
        sums[direction] += seconds
    return dict(sorted(parts.items(), key=lambda item: -sum(item[1].values())))


def part_of(origin: str) -> str:
    """The part of the step that an operation stems from."""
    return next((part for part, pattern in PARTS if re.search(pattern, origin)), OPTIMIZER)


def direction_of(origin: str) -> str:
    """Whether an operation belongs to the backward pass, what it computes again included."""
    return "backward" if "transpose(" in origin else "forward"


def table(result: dict[str, Any]) -> str:
    """For the terminal."""
    total = result["seconds_of_operations"]
    lines = [
        f"{result['case']} on {result['device']}, attention {result['attention']}"
        f"{', layers scanned' * result['scan_layers']}: "
        f"{result['seconds_a_step'] * 1e3:,.1f} ms a step, {total * 1e3:,.1f} ms of operations",
        f"{'':44}{'forward':>10}{'backward':>10}{'share':>8}",
    ]
    for part, sums in result["parts"].items():
        share = sum(sums.values()) / total
        milliseconds = "".join(f"{sums[x] * 1e3:>10,.1f}" for x in ("forward", "backward"))
        lines.append(f"{part:44}{milliseconds}{share:>8.1%}")
    return "\n".join(lines)


BENCHMARK = Benchmark(
    measure,
    "step_profile.json",
    options,
    keep=rows("case", "attention", "scan_layers", "fields", "flags", "device"),
)

if __name__ == "__main__":
    BENCHMARK.main()
