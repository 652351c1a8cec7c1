"""What all benchmarks share: arguments, what a result says of its circumstances, files of results.

A benchmark is a module with a `BENCHMARK`: the function that measures, its options and its file.

    def measure(args: argparse.Namespace) -> dict[str, Any]:
        return {"seconds": ...}

    BENCHMARK = Benchmark(measure, "name.json", options)

    if __name__ == "__main__":
        BENCHMARK.main()

`python -m benchmarks NAME` and `python -m benchmarks.NAME` start it. Every benchmark has `--output`
and `--load`. A record is what was measured and the fields of `FIELDS`. Imports neither jax nor
TensorFlow, so that a benchmark can set the environment of both first.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import fcntl
import functools
import importlib
import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from bertjax.cores import num_cores
from bertjax.storage.atomic_files import write_file

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).parent / "results"
# The test corpora, where --data does not say otherwise.
DATA = Path(os.environ.get("BERTJAX_TEST_DATA", ROOT.parent / "shared" / "data"))
SCHEMA_VERSION = 1
FIELDS = {
    "schema_version": "of these fields; older results have none",
    "benchmark": "its name",
    "command": "that measured",
    "date": "when the measurement began, UTC",
    "commit": "of the code; null where there is no git checkout",
    "tree_is_clean": "whether the code was that of the commit; results and pages do not count",
    "load": "what else the machine was doing, as --load said",
    "load_average": "over 1, 5 and 15 minutes, when the measurement began",
    "machine": "CPU, usable cores, memory in bytes, operating system",
    "device": "what JAX computed on, or the CPU",
    "versions": "of Python and of those packages of PACKAGES that are installed",
}
PACKAGES = (
    "bertjax",
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "numpy",
    "tensorflow",
    "tensorflow-cpu",
    "tokenizers",
    "sentencepiece",
    "sentencex",
    "protobuf",
    "apache-beam",
    "torch",
    "transformers",
    "libtpu",
    "jax-cuda12-plugin",
    "jax-cuda12-pjrt",
    "nvidia-cuda-nvcc-cu12",
)
NOT_RECORDED = "not recorded"
Contents = Any  # of a file of results: one record, or several in lists and mappings
Record = dict[str, Any]


class UsageError(Exception):
    """The arguments do not go together; the command ends with its usage and exit code 2."""


def newest(old: Contents, record: Record) -> Contents:
    """Keeps one record: the file is the newest."""
    return record


def rows(*fields: str) -> Callable[[Contents, Record], Contents]:
    """Keeps a list; a record takes the place of those whose `fields` are the same."""

    def keep(old: Contents, record: Record) -> Contents:
        others = [x for x in old or [] if any(x.get(name) != record[name] for name in fields)]
        return [*others, record]

    return keep


def nested(*fields: str) -> Callable[[Contents, Record], Contents]:
    """Keeps records by the value of the first of `fields`, then of the second, and so on."""

    def keep(old: Contents, record: Record) -> Contents:
        contents = place = old or {}
        *outer, last = (record[name] for name in fields)
        for value in outer:
            place = place.setdefault(value, {})
        place[last] = record
        return contents

    return keep


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """What a module of benchmarks/ declares.

    Attributes:
      measure: takes the arguments and returns what was measured, which is printed, too; or yields
        measurements, each of which is written before it goes on, and prints what it likes. To end
        with an error, raise after that.
      file: of the results: a name in benchmarks/results, a function of the arguments, or "" where
        --output must be given. `measure` finds the path as `args.output`.
      options: adds options of this benchmark; they replace --output and --load.
      device: where JAX computes: in this process, in others that it starts, or nowhere. A
        measurement may name its own `device`.
      keep: what becomes of the contents of the file (None: there is none) with a new record.
    """

    measure: Callable[[argparse.Namespace], Mapping[str, Any] | Iterable[Mapping[str, Any]]]
    file: str | Callable[[argparse.Namespace], Path] = ""
    options: Callable[[argparse.ArgumentParser], object] = lambda parser: None
    device: Literal["here", "elsewhere", "none"] = "here"
    keep: Callable[[Contents, Record], Contents] = newest

    def main(self, argv: list[str] | None = None) -> None:
        """Measures and writes the result."""
        argv = sys.argv[1:] if argv is None else argv
        module = sys.modules[self.measure.__module__]
        assert module.__spec__ is not None
        name = module.__spec__.name.removeprefix("benchmarks.")
        parser = argparse.ArgumentParser(
            prog=f"python -m benchmarks.{name}",
            description=module.__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            conflict_handler="resolve",
        )
        parser.add_argument("--output", type=Path, help="file of the result")
        parser.add_argument("--load", default="", help="what else the machine is doing")
        self.options(parser)
        args = parser.parse_args(argv)
        try:
            args.output = self._target(args)
            command = shlex.join(["python", "-m", f"benchmarks.{name}", *argv])
            self._run(args, {"benchmark": name, "command": command})
        except UsageError as error:
            parser.error(str(error))

    def _target(self, args: argparse.Namespace) -> Path:
        if callable(self.file):
            return self.file(args)
        if not self.file and not args.output:
            raise UsageError("name the file of the result: --output=FILE")
        return args.output or RESULTS / self.file

    def _run(self, args: argparse.Namespace, what: dict[str, str]) -> None:
        code, begun = commit(), beginning(getattr(args, "load", ""))
        found = self.measure(args)
        single = isinstance(found, Mapping)
        for measured in [found] if isinstance(found, Mapping) else found:
            record = {
                "schema_version": SCHEMA_VERSION,
                **what,
                **code,
                **begun,
                "machine": machine(),
                "device": measured["device"] if "device" in measured else self._device(),
                "versions": versions(),
            }
            measured = {name: x for name, x in measured.items() if name != "device"}
            if twice := record.keys() & measured.keys():
                raise ValueError(f"{', '.join(sorted(twice))}: set by the harness and measured")
            write_record(args.output, record | measured, self.keep)
            if single:
                print(json.dumps(measured, indent=1, ensure_ascii=False))
            if self.keep is not newest:  # of several records each has its own beginning
                begun = beginning(getattr(args, "load", ""))

    def _device(self) -> str:
        if self.device == "none":
            return cpu()
        return device_name() if self.device == "here" else device_elsewhere()[0]


def write_record(
    path: Path, record: Record, keep: Callable[[Contents, Record], Contents] = newest
) -> None:
    """Puts a record into a file of results, whole or not at all; others may write to it, too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if keep is newest:
        write_json(path, record)
        return
    with locked(path):
        write_json(path, keep(read_contents(path), record))


def read_contents(path: Path) -> Contents:
    """What a file of results holds; None where there is none."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def write_json(path: Path, contents: Contents) -> None:
    """Replaces a file of results."""
    write_file(path, (json.dumps(contents, indent=1, ensure_ascii=False) + "\n").encode())


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds a file of results against other processes that take a lock, too."""
    with open(path.with_suffix(".lock"), "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def beginning(load: str) -> dict[str, Any]:
    """When a measurement begins, and how busy the machine is."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "load": load,
        "load_average": [round(x, 2) for x in os.getloadavg()],
    }


def commit() -> dict[str, Any]:
    """The commit of the code, and whether the files are those of the commit."""
    unknown = {"commit": None, "tree_is_clean": None}
    try:
        if Path(_git("rev-parse", "--show-toplevel")).resolve() != ROOT:
            return unknown
        results = (":!benchmarks/results", ":!docs/**/*.md", ":!docs/**/*.png")
        changed = _git("status", "--porcelain", "--", ".", *results)
        return {"commit": _git("rev-parse", "HEAD"), "tree_is_clean": not changed}
    except (OSError, subprocess.CalledProcessError):
        return unknown


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(ROOT), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@functools.cache
def cpu_name() -> str:
    """Model name from /proc/cpuinfo, where there is one."""
    if Path("/proc/cpuinfo").exists():
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor()


def cpu() -> str:
    """Usable cores and their kind."""
    return f"{num_cores()} x {cpu_name()}"


def machine() -> dict[str, Any]:
    """The computer that this process runs on."""
    return {
        "cpu": cpu_name(),
        "cores": num_cores(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": f"{platform.system()} {platform.machine()}",
    }


def device_name() -> str:
    """What JAX computes on in this process: the kind of accelerator, or the CPU."""
    import jax

    device = jax.devices()[0]
    return cpu() if device.platform == "cpu" else device.device_kind


@functools.cache
def device_elsewhere() -> tuple[str, str]:
    """Name and platform of the device, from a process that ends: an open GPU has no memory left."""
    ask = "import jax; d = jax.devices()[0]; print(d.device_kind); print(d.platform)"
    command = [sys.executable, "-c", ask]
    answer = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    name, kind = answer.strip().split("\n")[-2:]
    return cpu() if kind == "cpu" else name, kind


def versions() -> dict[str, str]:
    """Of Python and of the packages that measurements may depend on."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def comma_list(text: str) -> list[str]:
    """The type of an option that takes several values."""
    return [part for part in text.split(",") if part]


def in_process(function: str, *arguments: Any, module: str) -> Any:
    """Calls a function in a process of its own.

    Args:
      function: its name.
      arguments: that JSON can carry.
      module: which has it, in benchmarks/.

    Returns:
      What it returns, carried by JSON, too.
    """
    code = f"from benchmarks import harness; harness.answer({module!r}, {function!r})"
    output = subprocess.run(
        [sys.executable, "-c", code],
        input=json.dumps(arguments),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        cwd=ROOT,
    ).stdout
    return json.loads(output.splitlines()[-1])


def answer(module: str, function: str) -> None:
    """The other end of `in_process`: arguments from stdin, what is returned to stdout."""
    call = getattr(importlib.import_module(f"benchmarks.{module}"), function)
    print(json.dumps(call(*json.load(sys.stdin))), flush=True)


def records(contents: Contents) -> Iterator[Record]:
    """The records of a file of results, of any age: what has a date is one."""
    if isinstance(contents, dict) and "date" in contents:
        yield contents
    elif isinstance(contents, dict | list):
        for part in contents.values() if isinstance(contents, dict) else contents:
            yield from records(part)


def circumstances(record: Record) -> dict[str, str]:
    """Date, device, versions, commit and load of a record in words, of any age.

    Before there was a schema, names differed from benchmark to benchmark. What a record does not
    have is "not recorded".
    """
    device = next(
        (record[name] for name in ("device", "hardware", "compiled_on", "cpu") if name in record),
        NOT_RECORDED,
    )
    if device == "cpu" and "cpu" in record:  # JAX's name of it; the record has its own
        device = record["cpu"]
    if device == record.get("cpu") and "cores" in record:
        device = f"{record['cores']} x {device}"
    found = {"python": record["python"]} if "python" in record else {}
    found |= record.get("versions", {})
    names = ("load", "machine")  # what else it was doing; `machine` was words once
    load = next((record[x] for x in names if record.get(x) and isinstance(record[x], str)), "")
    average = next(
        (
            record[x]
            for x in ("load_average", "load_average_before", "load_average_at_the_end")
            if x in record
        ),
        None,
    )
    if average is not None:
        first = average[0] if isinstance(average, list) else average
        load = f"{load}, load average {first:g}".removeprefix(", ")
    changed = "" if record.get("tree_is_clean", True) else ", changed"
    return {
        "date": record["date"][:10],
        "device": device,
        "versions": ", ".join(f"{name} {x}" for name, x in found.items()) or NOT_RECORDED,
        "commit": record["commit"][:9] + changed if record.get("commit") else NOT_RECORDED,
        "load": load or NOT_RECORDED,
    }
