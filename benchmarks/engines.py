"""Prepares the same corpus with both engines, in peace and with kills, and compares the stores.

    python -m benchmarks.engines --data=../shared/data

Makes an English input (JSON lines, gzip) from the corpora in DATA and prepares it with four workers
on the local engine and on Beam's direct runner: in peace; with a worker killed (SIGKILL) when half
of the work is done; with the launching process killed then, and the same command run again. All
six stores must be the same byte for byte. Writes benchmarks/results/engines.json; exits 1 if one
differs.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.harness import DATA, Benchmark
from benchmarks.prepare import write_input

NUM_WORKERS = 4
SHARD_TOKENS = 2**21  # some ten shards of 100 MB
ENGINES = {  # flags, what shows the progress in the work folder, what names a worker in /proc
    "local": ([], "part-*.json", b"multiprocessing.spawn"),
    "beam": (["--runner=DirectRunner"], "blocks/*.npz", b"sdk_worker_main"),
}


def options(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--megabytes", type=int, default=100)


def measure(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Runs all six; an error if a store differs."""
    vocabulary = arguments.data / "vocab" / "bert-base-uncased-vocab.txt"
    runs, stores = [], []
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "input.jsonl.gz"
        write_input(arguments.data / "corpus", file, arguments.megabytes * 10**6)
        for engine, (flags, progress, worker) in ENGINES.items():
            command = [sys.executable, "-m", "bertjax.prepare", f"--input={file}", *flags]
            command += [f"--tokenizer={vocabulary}", f"--num_workers={NUM_WORKERS}"]
            command += [f"--shard_tokens={SHARD_TOKENS}"]
            half = 0
            for victim in ("nobody", "worker", "launcher"):
                store = Path(folder) / f"{engine}-{victim}"
                run = prepare(
                    [*command, f"--output={store}"], store, progress, worker, victim, half
                )
                half = half or run["progress"] // 2
                runs.append({"engine": engine, "killed": victim, **run})
                print(json.dumps(runs[-1]))
                stores.append(contents(store))
        manifest = json.loads((store / "manifest.json").read_text())
    same = all(store == stores[0] for store in stores)
    yield {
        "prepare": f"python -m bertjax.prepare --input=FILE --tokenizer={vocabulary.name} "
        f"--num_workers={NUM_WORKERS} --shard_tokens={SHARD_TOKENS} [--runner=DirectRunner]",
        "text_megabytes": round(manifest["text_bytes"] / 1e6, 1),
        "shards": len(manifest["splits"]["train"]["shards"]),
        "files_of_a_store": stores[0],
        "all_stores_are_the_same_byte_for_byte": same,
        "seconds": "of all starts of the command together, processes' start in",
        "progress": "finished shards (local) or encoded blocks (Beam) when the kill came; without "
        "a kill at the end",
        "runs": runs,
    }
    print(f"{arguments.output}: {'the same' if same else 'DIFFERENT'} bytes")
    sys.exit(not same)


def prepare(
    command: list[str], store: Path, progress: str, worker: bytes, victim: str, half: int
) -> dict:
    """Prepares one store, with a kill at `half` of the progress; returns seconds and progress."""
    begin = time.monotonic()
    process = start(command)
    most = 0
    while process.poll() is None:
        most = max(most, len(list((store / "unfinished").glob(progress))))
        if victim != "nobody" and most >= half:
            break
        time.sleep(0.02)
    if victim == "worker":
        os.kill(next(pid for pid in descendants(process.pid) if names(pid, worker)), signal.SIGKILL)
    elif victim == "launcher":
        process.kill()
        process.wait()
        process = start(command)
    output = process.communicate()[0]
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}: {output}")
    if (victim == "worker") != ("a worker process died" in output):
        raise SystemExit(f"{victim} was killed, but the run says: {output}")
    return {"seconds": round(time.monotonic() - begin, 1), "progress": most}


def start(command: list[str]) -> subprocess.Popen[str]:
    """The command with its output in a pipe."""
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def descendants(pid: int) -> list[int]:
    """Processes that a process, by any of its threads, and its descendants have started."""
    found = []
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, children.read_text().split()):
            found += [child, *descendants(child)]
    return found


def names(pid: int, worker: bytes) -> bool:
    """Whether a Python process's command line has this in it."""
    arguments = Path(f"/proc/{pid}/cmdline").read_bytes()
    return worker in arguments and not arguments.startswith(b"/bin/sh")


def contents(store: Path) -> dict[str, str]:
    """SHA-256 of every file of a store."""
    return {
        str(file.relative_to(store)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(store.rglob("*"))
        if file.is_file()
    }


BENCHMARK = Benchmark(measure, "engines.json", options, device="none")

if __name__ == "__main__":
    BENCHMARK.main()
