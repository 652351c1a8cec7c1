"""What is to be measured when a GPU can be had for 15 minutes, as two commands that end in time.

    python -m benchmarks.gpu_variants --lease=1 --output=FOLDER [--seconds=590]
    python -m benchmarks.gpu_variants --lease=2 --output=FOLDER [--seconds=590]
    python -m benchmarks.gpu_variants --lease=1 --compile     # for an H100, without owning one

Lease 1 asks which switches help: kernels checked, rates of the device, BASE as it is and with
each switch, a profile, exactness, LARGE. Lease 2 times the best of them on every
shape, beside transformers, and kills and resumes a run. The best is the fastest of BASE in
benchmarks/results/gpu_variants_lease1.json, or without that file all switches that are predicted
to help. Each part is a process of its own, so that each has the memory to itself; steps that are
compared share the tilings that XLA finds by timing. The parts that matter most come first; what
cannot end in time is left out, and the result says so (`--only=NAME,...` runs it another time).
After every part FOLDER/lease1.json (or lease2) is written anew; beside it come the table (.txt,
printed last), the optimised program of BASE and the trace of the profile. Predictions stand beside
what came out.

Needs jax, flax, optax and orbax, no TensorFlow and no network; a part whose packages are missing
is left out: beside transformers it takes torch and `pip install --no-deps -e .`, for the command
that is killed ml_collections. On a CPU the same parts run
at a tiny size, to try the script: its times say nothing of a GPU.

`--compile` compiles the steps of the same list for an H100 (see benchmarks/h100.py) by
benchmarks.gpu_program, in the place of running them; a profile is the step of its case again.
Neither transformers nor the rates of the device nor the command that is killed can be compiled so.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from benchmarks.gpu_program import NO_TRITON_GEMM
from benchmarks.gpu_program import RESULT as PROGRAMS
from benchmarks.harness import RESULTS, Benchmark, UsageError, device_elsewhere

NO_COMMAND_BUFFERS = "--xla_gpu_enable_command_buffer="
DETERMINISTIC = "--xla_gpu_deterministic_ops=true"
KERNELS, PINNED = "--set=attention=pallas", "--set=activation_layout=row_major"
NORM = "--set=layer_norm=pallas"
SORTED = "--set=lookup_gradient=sorted"


@dataclasses.dataclass(frozen=True)
class Part:
    """One thing to measure.

    Attributes:
      name: in the result.
      module: of benchmarks/, which takes --output=FILE.
      case: as in benchmarks/step_case.py; "" = the module has none.
      arguments: other flags of the module.
      flags: for XLA_FLAGS.
      seconds: that it is expected to take on a GPU, start and compiles included.
      memory: share of the GPU's memory that JAX takes.
      prediction: of the outcome.
      against: name of the part whose time it is compared with.
      tilings: takes those that earlier parts found by timing; without, a process times its own.
      best: takes the fields and flags of the fastest variant of BASE, besides.
      files: flag of the module -> name of a file to keep in the folder.
      needs: packages without which it cannot run.
    """

    name: str
    module: str
    case: str = ""
    arguments: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()
    seconds: int = 40
    memory: float = 0.92
    prediction: str = ""
    against: str = ""
    tilings: bool = False
    best: bool = False
    files: dict[str, str] = dataclasses.field(default_factory=dict)
    needs: tuple[str, ...] = ()


def variant(name: str, case: str, *arguments: str, **others: Any) -> Part:
    """A part that times a training step."""
    return Part(name, "step_variant", case, arguments, tilings=True, **others)


def leases() -> dict[int, tuple[Part, ...]]:
    """The parts of each lease, in their order. Times are predicted for an H200."""
    base = "base:128:512"
    check = Part("kernels_checked", "attention_kernel", arguments=("--check",))
    norm = Part("norm_checked", "residual_norm_kernel", arguments=("--check",), seconds=25)
    profile = Part(
        "profile_of_best",
        "step_profile",
        base,
        ("--attention=pallas",),
        (NO_COMMAND_BUFFERS,),
        45,
        tilings=True,
        best=True,
        prediction="products 53 ms, attention 8, the rest 44 as BASE was first measured",
        files={"--trace": "base_trace.xplane.pb.gz"},
    )
    peer = ("--peer=transformers", "--attention=pallas", "--rounds=4", "--seconds=1.5")
    torch = ("torch", "transformers", "bertjax")  # whose versions are kept
    first = (
        check,
        norm,
        Part("rates", "device_rates", seconds=20, prediction="700 to 800 TFLOP/s, 3 to 4.3 TB/s"),
        variant(
            "base",
            base,
            KERNELS,
            "--repeat",
            seconds=55,
            prediction="106.6 ms measured before; not the same to the bit",
            files={"--program": "base_program.hlo.gz"},
        ),
        variant(
            "base_no_triton_gemm",
            base,
            KERNELS,
            flags=(NO_TRITON_GEMM,),
            prediction="1 to 3 ms less",
            against="base",
        ),
        variant(
            "base_row_major",
            base,
            KERNELS,
            PINNED,
            prediction="8 to 12 ms less",
            against="base",
            files={"--program": "base_row_major_program.hlo.gz"},
        ),
        variant(
            "base_both",
            base,
            KERNELS,
            PINNED,
            flags=(NO_TRITON_GEMM,),
            prediction="9 to 15 ms less",
            against="base",
        ),
        variant(
            "base_layer_norm",
            base,
            KERNELS,
            PINNED,
            NORM,
            flags=(NO_TRITON_GEMM,),
            prediction="2 to 4 ms less: 144.7 GB instead of 153.9, 240 kernels fewer",
            against="base_both",
        ),
        profile,
        Part(
            "lookup_checked",
            "lookup_gradient",
            seconds=25,
            prediction="sorted: the same to the bit, off by 3e-7; 0.3 to 0.8 ms more",
        ),
        # Without flags: the same program takes the same kernels, which earlier parts have chosen.
        variant(
            "base_sorted_lookup",
            base,
            KERNELS,
            SORTED,
            "--repeat",
            seconds=50,
            prediction="0.3 to 0.8 ms more; the same to the bit without a flag",
            against="base",
        ),
        variant(
            "large_128", "large:128:256", KERNELS, best=True, seconds=55, prediction="148 to 152 ms"
        ),
        variant(
            "large_512", "large:512:64", KERNELS, best=True, seconds=55, prediction="181 to 185 ms"
        ),
        variant("large_512_packed", "large:512:64:packed", KERNELS, best=True, seconds=60),
    )
    second = (
        check,
        norm,
        variant("base_best", base, KERNELS, best=True, files={"--program": "base_program.hlo.gz"}),
        profile,
        # Beside torch JAX has less memory; its own step has been timed alone.
        Part(
            "base_128_transformers",
            "train_step",
            base,
            peer,
            seconds=150,
            memory=0.40,
            prediction="4,263 rows/s measured before, all positions; masked ones up to 1.2 times",
            needs=torch,
        ),
        variant("large_512", "large:512:64", KERNELS, best=True, seconds=55),
        variant("large_128", "large:128:256", KERNELS, best=True, seconds=55),
        variant("large_512_packed", "large:512:64:packed", KERNELS, best=True, seconds=60),
        variant("six_layers", "novels:128:512", KERNELS, best=True, seconds=25),
        variant("fine_tuning", "minilm:384:32:span", KERNELS, best=True, seconds=25),
        Part(
            "large_512_transformers",
            "train_step",
            "large:512:64",
            peer,
            seconds=240,
            memory=0.25,
            needs=torch,
        ),
        Part(
            "kill_and_resume",
            "kill_and_resume",
            arguments=("--num_steps=600", "--kills=4"),
            seconds=110,
            prediction="585 of 600 steps differed by rounding before",
            needs=("ml_collections",),
        ),
        Part("attention_time", "attention_kernel", arguments=("--time",), seconds=60),
        variant("base_512", "base:512:128", KERNELS, best=True),
        # Pinned and without Triton it needs 80.9 GB, as compiled for an H100; so 64.0.
        variant("large_512_xla", "large:512:64", seconds=60, against="large_512"),
        variant(
            "fine_tuning_xla",
            "minilm:384:32:span",
            best=True,
            seconds=25,
            prediction="slower than the kernels",
            against="fine_tuning",
        ),
        variant(
            "base_deterministic",
            base,
            KERNELS,
            "--repeat",
            flags=(DETERMINISTIC,),
            best=True,
            seconds=50,
            prediction="tens of ms more; the same to the bit",
            against="base_best",
        ),
        variant(
            "base_xla",
            base,
            prediction="117.8 ms measured before",
            against="base_best",
        ),
    )
    return {1: first, 2: second}


SMALL = {  # what a CPU runs in the place of a case
    "base:128:512": "tiny:32:4",
    "base:512:128": "tiny:64:2",
    "large:128:256": "tiny:32:8",
    "large:512:64": "tiny:64:4",
    "large:512:64:packed": "tiny:64:4:packed",
    "novels:128:512": "tiny:32:4",
    "minilm:384:32:span": "tiny:32:4:span",
}
SMALLER = {
    KERNELS: "--set=attention=xla",  # the kernels are interpreted there, and checked only
    NORM: "--set=layer_norm=xla",
    "--rounds=4": "--rounds=1",
    "--seconds=1.5": "--seconds=0.2",
    "--attention=pallas": "--attention=xla",
    "--num_steps=600": "--num_steps=90",
    "--kills=4": "--kills=1",
}


def small(part: Part) -> Part:
    """The part at the size of a CPU."""
    arguments = tuple(SMALLER.get(x, x) for x in part.arguments)
    steps = ("--steps=2",) if part.module in ("step_variant", "step_profile") else ()
    return dataclasses.replace(
        part,
        case=SMALL.get(part.case, part.case),
        arguments=(*arguments, *steps),
        seconds=100 + 2 * part.seconds,
        prediction="",
    )


def options(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    parser.add_argument("--lease", type=int, choices=[1, 2], required=True)
    parser.add_argument("--output", type=Path, help="folder of the results")
    parser.add_argument("--only", default="", help="names of parts, such as those left out before")
    parser.add_argument("--seconds", type=float, default=590.0, help="all in all")
    parser.add_argument("--compile", action="store_true", help="for an H100, instead of running")


def target(args: argparse.Namespace) -> Path:
    """The file of the results in the folder that --output names."""
    if not args.output and not args.compile:
        raise UsageError("name the folder of the results: --output=FOLDER")
    return (args.output or RESULTS) / f"lease{args.lease}.json"


def measure(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Measures what the time allows, or compiles, and prints what came out."""
    ends = time.monotonic() + args.seconds
    parts = leases()[args.lease]
    if unknown := {*filter(None, args.only.split(","))} - {part.name for part in parts}:
        known = ", ".join(part.name for part in parts)
        raise UsageError(
            f"--only={args.only}: no part {', '.join(sorted(unknown))}; there are {known}"
        )
    if args.only:
        parts = tuple(part for part in parts if part.name in args.only.split(","))
    if args.compile:
        compile_all(parts)
        return
    folder = args.output.parent
    folder.mkdir(parents=True, exist_ok=True)
    device, platform = device_elsewhere()
    if platform == "cpu":
        parts = tuple(map(small, parts))
    outcome: dict[str, Any] = {
        "lease": args.lease,
        "device": device,
        "best": None,
        "parts": [],
    }
    begun = datetime.now(UTC).isoformat(timespec="seconds")
    with tempfile.TemporaryDirectory() as tilings:
        shared = [f"--xla_gpu_per_fusion_autotune_cache_dir={tilings}"]
        for part in parts:
            best = best_of(outcome["parts"])
            done = {"name": part.name, "prediction": part.prediction, "against": part.against}
            with_tilings = shared if part.tilings else []
            done |= run(part, best, folder, ends, with_tilings)
            outcome["parts"].append(done)
            outcome["best"] = best_of(outcome["parts"])
            yield outcome
    text = table(outcome | {"date": begun})
    args.output.with_suffix(".txt").write_text(text + "\n")
    print(text)


def best_of(done: list[dict[str, Any]]) -> dict[str, Any]:
    """Fields of the model and flags of the fastest variant of BASE with the kernels.

    Of the parts that are done, else of the first lease's result, else as predicted.
    """
    first = RESULTS / "gpu_variants_lease1.json"
    stored = json.loads(first.read_text())["parts"] if first.exists() else []
    names = ("base", "base_no_triton_gemm", "base_row_major", "base_both", "base_layer_norm")
    for parts in (done, stored):
        timed = [x for x in parts if x["name"] in names and x.get("result")]
        if timed:
            part = min(timed, key=lambda x: x["result"]["milliseconds"])
            fields = [f"--set={x}" for x in part["result"]["fields"] if "attention" not in x]
            return {"from": part["name"], "fields": fields, "flags": part["flags"]}
    return {"from": "prediction", "fields": [PINNED, NORM], "flags": [NO_TRITON_GEMM]}


def settings(part: Part, best: dict[str, Any]) -> tuple[list[str], list[str]]:
    """The arguments of the part's module and its flags of XLA."""
    arguments = [f"--case={part.case}"] if part.case else []
    arguments += part.arguments
    flags = list(part.flags)
    if part.best:
        arguments += best["fields"]
        flags = [*best["flags"], *flags]
    return arguments, flags


def run(
    part: Part, best: dict[str, Any], folder: Path, ends: float, shared: list[str]
) -> dict[str, Any]:
    """Runs a part if it can end in time; returns what became of it.

    Args:
      part: of the lease.
      best: see `best_of`.
      folder: for the files that are kept.
      ends: when, by the monotonic clock.
      shared: flags of XLA that are no matter of the part.
    """
    arguments, flags = settings(part, best)
    told: dict[str, Any] = {"command": " ".join((part.module, *arguments)), "flags": flags}
    left = ends - time.monotonic()
    if missing := [name for name in part.needs if not installed(name)]:
        return told | {"said": f"left out: {', '.join(missing)} not installed"}
    if left < part.seconds:
        return told | {"said": f"left out: {left:.0f} s were left, it takes about {part.seconds}"}
    print(f"== {part.name}: {told['command']} {' '.join(flags)}", flush=True)
    environment = os.environ | {
        "XLA_FLAGS": " ".join(filter(None, (os.environ.get("XLA_FLAGS", ""), *shared, *flags))),
        "XLA_PYTHON_CLIENT_MEM_FRACTION": str(part.memory),
    }
    with tempfile.TemporaryDirectory() as scratch:
        result, log = Path(scratch, "result.json"), Path(scratch, "log")
        command = [sys.executable, "-m", f"benchmarks.{part.module}", *arguments]
        command += [f"--output={result}"]
        command += [f"{flag}={folder / name}" for flag, name in part.files.items()]
        started = time.monotonic()
        limit = min(left, 2.5 * part.seconds) if "nothing" not in best else left
        with log.open("wb") as out:
            try:
                code: int | str = subprocess.run(
                    command,
                    env=environment,
                    stdout=out,
                    stderr=subprocess.STDOUT,
                    timeout=limit,
                    check=False,
                ).returncode
            except subprocess.TimeoutExpired:
                code = "none: it was stopped"
        took = time.monotonic() - started
        print(end(log), flush=True)
        told |= {"seconds": round(took, 1), "said": "done"}
        if code != 0:
            told |= {"said": f"failed: exit code {code}", "log": end(log, 4_000)}
        # A check that fails has a result, too.
        return told | ({"result": json.loads(result.read_text())} if result.exists() else {})


def installed(package: str) -> bool:
    """Whether a package is there."""
    try:
        return bool(version(package))
    except PackageNotFoundError:
        return False


def end(log: Path, characters: int = 1_500) -> str:
    """The end of what a part printed."""
    return log.read_text(errors="replace")[-characters:].strip()


def compile_all(parts: tuple[Part, ...]) -> None:
    """Compiles every step of the list for an H100; ends with 1 where one does not compile.

    What takes the best variant is compiled as predicted: pinned, without Triton's products.
    """
    failed = []
    seen = set()
    for part in parts:
        if not part.case:
            print(f"{part.name}: no step of its own to compile")
            continue
        arguments, flags = settings(part, best_of([]))
        fields = [x for x in arguments if x.startswith("--set=")]
        if "--attention=pallas" in arguments:
            fields = [KERNELS, *fields]
        flags = [x for x in flags if x != NO_COMMAND_BUFFERS]  # of running, not of the program
        key = (part.case, tuple(fields), tuple(flags))
        if key in seen:
            print(f"{part.name}: the same step as one above")
            continue
        seen.add(key)
        command = [sys.executable, "-m", "benchmarks.gpu_program", f"--case={part.case}", *fields]
        print(f"== {part.name}: {part.case} {' '.join(fields)} {' '.join(flags)}", flush=True)
        environment = os.environ | {"XLA_FLAGS": " ".join(flags)}
        if subprocess.run(command, env=environment, check=False).returncode:
            failed.append(part.name)
    if failed:
        raise SystemExit(f"not compiled: {', '.join(failed)}; see above")
    print(f"all compiled: see {PROGRAMS}")


def table(outcome: dict[str, Any]) -> str:
    """What became of each part, beside what was predicted."""
    rows: list[tuple[str, ...]] = [
        (
            "part",
            "ms",
            "less",
            "predicted",
            "rows/s",
            "of peak",
            "peak GB",
            "GB",
            "kernels",
            "transposes",
        )
    ]
    notes = [f"lease {outcome['lease']} on {outcome['device']}, {outcome['date']}"]
    if "H200" not in outcome["device"]:
        notes.append("times were predicted for an H200, by the bytes that it reads a second")
    times = {
        part["name"]: part["result"]["milliseconds"]
        for part in outcome["parts"]
        if "milliseconds" in (part.get("result") or {})
    }
    for part in outcome["parts"]:
        name, result = part["name"], part.get("result")
        if name not in times:
            notes += [
                f"{name}: {x}" for x in (part["said"], *in_words(name, result)) if x != "done"
            ]
            if part["prediction"]:
                notes.append(f"{name}: predicted {part['prediction']}")
            continue
        assert result is not None
        other = times.get(part["against"])
        share, memory = result["mfu_of_peak"], result["peak_gigabytes"]
        rows.append(
            (
                name,
                f"{times[name]:,.2f}",
                f"{other - times[name]:+,.2f}" if other else "",
                part["prediction"],
                f"{result['rows_per_second']:,.4g}",
                f"{share:.1%}" if share else "",
                f"{memory:.1f}" if memory else "",
                f"{result['gigabytes']:,.1f}",
                f"{result['kernels']:,}",
                f"{result['activation_transposes']}",
            )
        )
        if result["same_to_the_bit"] is not None:
            same = "the same" if result["same_to_the_bit"] else "not the same"
            notes.append(f"{name}: twice from one state: {same} to the bit")
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    return "\n".join((*lines, "", *notes))


def in_words(name: str, result: Any) -> list[str]:
    """What a part without a row of its own measured."""
    if not result:
        return []
    if name == "rates":
        return [
            f"{result['product_flops'] / 1e12:,.4g} TFLOP/s of a large product, "
            f"{result['copy_bytes_per_second'] / 1e9:,.4g} GB/s of a copy"
        ]
    if name == "kill_and_resume":
        differ = len(result["steps_that_differ"])
        return [
            f"{differ} of {result['steps_compared']} steps differ, {len(result['kills'])} kills"
        ]
    if name == "lookup_checked":
        return [
            f"{path}: {1e3 * x['seconds']:.3f} ms, off by {x['largest_error']:.1e}, "
            f"{'the same' if x['same_to_the_bit'] else 'not the same'} to the bit"
            for path, x in result["paths"].items()
        ]
    if isinstance(result, dict):  # of attention_kernel, by chip
        return [
            f"{sum(row['passes'] for row in rows['rows'])} of {len(rows['rows'])} checks pass"
            for rows in result.get("checked", {}).values()
        ] + [
            f"{row['shape']}, {row['path']}: {1e3 * row['seconds']:.3f} ms"
            for rows in result.get("timed", {}).values()
            for row in rows["rows"]
        ]
    # Lists of results that have tables of their own: the modules import jax, but take no GPU.
    if name.startswith("profile"):
        from benchmarks.step_profile import table as profile

        return [*map(profile, result)]
    from benchmarks.train_step import table as steps

    return ["\n" + steps(result)]


BENCHMARK = Benchmark(measure, target, options, device="elsewhere")

if __name__ == "__main__":
    BENCHMARK.main()
