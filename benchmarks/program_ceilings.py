"""Whether the compiled step still is as small as it was: ceilings for bytes, kernels, transposes.

    python -m benchmarks.program_ceilings             # for an H100; see benchmarks/h100.py
    python -m benchmarks.program_ceilings --topology=v5e:1x1      # for a TPU; needs libtpu
    python -m benchmarks.program_ceilings --update    # takes the present counts

Compiles two layers of BASE with benchmarks.gpu_program or bertjax.plan, and compares the counts
with benchmarks/results/program_ceilings.json. The command ends with 1 if a count is more than 3 %
above its ceiling. To raise a ceiling takes a commit of its own that says why. A count more than 3 %
below is reported, so that the ceiling can be lowered. Counts depend on the version of jax, which
the file names.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.gpu_program import NO_TRITON_GEMM
from benchmarks.harness import Benchmark, UsageError, nested, read_contents

ROOM = 0.03
CASES, LAYERS = {"h100": "base:128:512", "tpu": "base:128:16"}, 2
H100_CASES: dict[str, tuple[tuple[str, ...], str]] = {  # fields of the model, flags of XLA
    "attention kernels": (("attention=pallas", "activation_layout=row_major"), ""),
    "all kernels": (
        ("attention=pallas", "activation_layout=row_major", "layer_norm=pallas"),
        NO_TRITON_GEMM,
    ),
    "XLA's attention": (("activation_layout=row_major",), ""),
}
TPU_CASES: dict[str, tuple[str, ...]] = {
    "XLA's attention": (),
    "all kernels": ("attention=pallas", "layer_norm=pallas"),
}


def compiled_for_h100(fields: Sequence[str], flags: str) -> dict[str, float]:
    """Counts of a program of two layers, compiled in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "program.json"
        command = [sys.executable, "-m", "benchmarks.gpu_program", f"--case={CASES['h100']}"]
        command += [f"--set={x}" for x in (*fields, f"num_layers={LAYERS}")]
        environment = os.environ | {"XLA_FLAGS": flags, "JAX_ENABLE_COMPILATION_CACHE": "0"}
        subprocess.run([*command, f"--output={result}"], check=True, env=environment)
        (row,) = json.loads(result.read_text())
    names = ("gigabytes", "kernels", "activation_transposes", "temporary_gigabytes")
    return {name: row[name] for name in names}


def compiled_for_tpu(topology: str, fields: Sequence[str]) -> dict[str, float]:
    """Counts of a program of two layers and 16 rows, by bertjax.plan."""
    command = [sys.executable, "-m", "bertjax.plan", "--config=base", f"--topology={topology}"]
    settings = (*fields, f"num_layers={LAYERS}")
    rows = CASES["tpu"].split(":")[2]
    command += ["--phase=0", "--json", f"--config.data.global_batch_size={rows}"]
    command += [f"--config.model.{x}" for x in settings]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    plan = json.loads(done.stdout)
    return {
        "gigabytes": round(plan["bytes_per_chip"] / 1e9, 3),
        "peak_gigabytes": round(plan["peak_bytes_per_chip"] / 1e9, 3),
    }


def compare(
    name: str, found: Mapping[str, float], ceilings: Mapping[str, float]
) -> tuple[list[str], list[str]]:
    """What is above its ceiling, and what is far below it, in words."""
    above, below = [], []
    for count, ceiling in ceilings.items():
        said = f"{name}: {count} {found[count]:,g}, ceiling {ceiling:,g}"
        if found[count] > ceiling * (1 + ROOM):
            above.append(said)
        elif found[count] < ceiling * (1 - ROOM):
            below.append(said)
    return above, below


def options(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    parser.add_argument("--topology", default="", help="of TPUs, such as v5e:1x1; else one H100")
    parser.add_argument("--update", action="store_true", help="take the present counts")


def measure(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Compiles and compares; with --update it yields the counts as ceilings."""
    chip = args.topology or "h100"
    stored = read_contents(args.output) or {}
    if not args.update and chip not in stored:
        raise UsageError(f"{args.output} has no ceilings for {chip}; --update takes the counts")
    if args.topology:
        found = {name: compiled_for_tpu(chip, fields) for name, fields in TPU_CASES.items()}
    else:
        found = {name: compiled_for_h100(*case) for name, case in H100_CASES.items()}
    for name, counts in found.items():
        print(f"{name}: {', '.join(f'{count} {x:,g}' for count, x in counts.items())}")
    if args.update:
        case = CASES.get(chip, CASES["tpu"])
        yield {"chip": chip, "case": case, "layers": LAYERS, "ceilings": found}
        return
    then, now = stored[chip]["versions"]["jax"], version("jax")
    if then != now:
        print(f"the ceilings are of jax {then}, this is jax {now}")
    failed = False
    for name, counts in found.items():
        above, below = compare(name, counts, stored[chip]["ceilings"][name])
        for said in above:
            print(f"ABOVE ITS CEILING by more than {ROOM:.0%}: {said}")
        for said in below:
            print(f"below: {said}; --update lowers it")
        failed = failed or bool(above)
    if failed:
        raise SystemExit("the program is larger than it was; see above")


BENCHMARK = Benchmark(measure, "program_ceilings.json", options, device="none", keep=nested("chip"))

if __name__ == "__main__":
    BENCHMARK.main()
