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
import importlib.metadata
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.hardware import cpu_name
from benchmarks.prepare import write_input
from bertjax.prepare.build_store import num_cores

RESULT = Path(__file__).parent / "results" / "engines.json"
NUM_WORKERS = 4
SHARD_TOKENS = 2**21  # some ten shards of 100 MB
ENGINES = {  # flags, what shows the progress in the work folder, what names a worker in /proc
    "local": ([], "part-*.json", b"multiprocessing.spawn"),
    "beam": (["--runner=DirectRunner"], "blocks/*.npz", b"sdk_worker_main"),
}


def main() -> None:
    """Runs all six and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--megabytes", type=int, default=100)
    parser.add_argument("--load", default="", help="what else the machine does, for the record")
    arguments = parser.parse_args()
    vocabulary = arguments.data / "vocab" / "bert-base-uncased-vocab.txt"
    load_average = os.getloadavg()
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
    result = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": cpu_name(),
        "cores": num_cores(),
        "load": arguments.load,
        "load_average_before": [round(load, 2) for load in load_average],
        "versions": {
            "python": platform.python_version(),
            **{
                name: importlib.metadata.version(name)
                for name in ("apache-beam", "numpy", "protobuf", "sentencex")
            },
        },
        "command": f"python -m bertjax.prepare --input=FILE --tokenizer={vocabulary.name} "
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
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    print(f"{RESULT}: {'the same' if same else 'DIFFERENT'} bytes")
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


if __name__ == "__main__":
    main()
