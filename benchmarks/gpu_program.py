"""What XLA makes of the training step for an H100, without owning one: bytes, kernels, memory.

    python -m benchmarks.gpu_program --figures
    python -m benchmarks.gpu_program --case=base:128:512 --set=attention=pallas --by_part
    XLA_FLAGS=--xla_gpu_enable_triton_gemm=false python -m benchmarks.gpu_program --case=...

Needs the environment that benchmarks/h100.py describes (Python 3.12, jax 0.11.2 and its CUDA
compiler; no GPU). Compiles the whole step of a case (benchmarks/step_case.py), forward, backward
and optimiser, in the dtype of GPUs with dropout 0.1, and counts from the optimised program
(benchmarks/program_account.py): no figure is a time. `--figures` compiles those of
docs/design/speed.md, each in a process of its own, about a minute each on two cores. A row goes
into benchmarks/results/gpu_program.json in the place of an earlier one of the same case, fields,
flags and note.
"""

from __future__ import annotations

import argparse
import gzip
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.harness import RESULTS, Benchmark, UsageError, read_contents, rows

RESULT = RESULTS / "gpu_program.json"
CASES = (
    ("base:128:512", "pallas"),
    ("large:128:256", "pallas"),
    ("large:512:64", "pallas"),
    ("large:512:64:packed", "pallas"),
    ("novels:128:512", "pallas"),
    ("minilm:384:32:span", "pallas"),
    ("minilm:384:32:span", "xla"),
)
NO_TRITON_GEMM = "--xla_gpu_enable_triton_gemm=false"
VARIANTS: tuple[tuple[tuple[str, ...], str], ...] = (  # fields of the model, flags of XLA
    (("activation_layout=compiler",), ""),
    (("activation_layout=row_major",), ""),
    (("activation_layout=row_major", "layer_norm=pallas"), NO_TRITON_GEMM),
)


def options(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    parser.add_argument("--case", help="model:length:rows[:packed|:span]")
    parser.add_argument("--set", action="append", default=[], help="NAME=VALUE of the model")
    parser.add_argument("--figures", action="store_true", help="all of docs/design/speed.md")
    parser.add_argument("--by_part", action="store_true", help="by part of the model, too")
    parser.add_argument("--text", type=Path, help="where to write the program, gzipped")
    parser.add_argument("--note", default="", help="what else there is to say of the program")


def measure(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Compiles, prints the account and returns it."""
    if not args.figures and not args.case:
        raise UsageError("name a --case, or --figures")
    if args.case:
        yield compile_case(args)
    if args.figures:
        for case, attention in CASES:
            for others, flags in VARIANTS:
                fields = [f"--set={x}" for x in (f"attention={attention}", *others)]
                command = [sys.executable, "-m", "benchmarks.gpu_program", f"--case={case}"]
                subprocess.run(
                    [*command, *fields, f"--output={args.output}"],
                    check=True,
                    env=os.environ | {"XLA_FLAGS": flags},
                )
        print(table(read_contents(args.output)))


def compile_case(args: argparse.Namespace) -> dict[str, Any]:
    """Compiles one case in this process, which becomes one that computes on the CPU alone."""
    from benchmarks import h100

    flags = os.environ.get("XLA_FLAGS", "")  # of the case, beside those of compiling at all
    h100.prepare()
    import jax

    from benchmarks import program_account, step_case
    from bertjax.parallel.sharding import make_mesh
    from bertjax.training.compilation import program_bytes

    jax.config.update("jax_enable_compilation_cache", False)  # its programs have no text
    config = step_case.step_config(args.case, args.set, backend="gpu")
    started = time.monotonic()
    compiled = step_case.compile_step(config, make_mesh(config.mesh, [h100.device()]))
    seconds = time.monotonic() - started
    text = compiled.as_text()
    if args.text:
        args.text.write_bytes(gzip.compress(text.encode()))
    kernels = program_account.account(text, *step_case.activation_size(config))
    kinds = program_account.grouped(kernels, program_account.by_kind)
    memory = program_bytes(compiled)
    row = {
        "case": args.case,
        "fields": args.set,
        "flags": flags,
        "note": args.note,
        **program_account.totals(kernels),
        "temporary_gigabytes": round(memory["temporary"] / 1e9, 2),
        "peak_gigabytes": round(sum(memory.values()) / 1e9, 2),
        "kinds": kinds,
        "compile_seconds": round(seconds, 1),
        "compiled_for": "H100",
    }
    print(program_account.table(kinds))
    if args.by_part:
        print(program_account.table(program_account.grouped(kernels, program_account.by_part)))
    print(table([row]), flush=True)
    return row


HEADER = f"{'':74}{'GB':>8}{'kernels':>9}{'transposes':>12}{'temporary':>11}{'peak, GB':>10}"


def table(rows: list[dict[str, Any]]) -> str:
    """For the terminal."""
    lines = [HEADER]
    for row in rows:
        name = " ".join(filter(None, (row["case"], *row["fields"], row["flags"], row["note"])))
        lines.append(
            f"{name:74}{row['gigabytes']:>8.1f}{row['kernels']:>9,}"
            f"{row['activation_transposes']:>12}{row['temporary_gigabytes']:>11.2f}"
            f"{row['peak_gigabytes']:>10.2f}"
        )
    return "\n".join(lines)


BENCHMARK = Benchmark(
    measure,
    RESULT.name,
    options,
    device="none",
    keep=rows("case", "fields", "flags", "note"),
)

if __name__ == "__main__":
    BENCHMARK.main()
