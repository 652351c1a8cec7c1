"""Measures `bertjax.prepare`: speed per core, and whether memory grows with the input.

    python -m benchmarks.prepare --data=../shared/data

Makes English inputs of 20 and 160 MB (JSON lines, gzip) from the corpora in DATA, prepares each in
a process of its own, and samples the memory of that process and its workers from /proc. PSS counts
a page that n processes share as 1/n of it in each; its sum is what the machine really gives. Writes
benchmarks/results/prepare.json.
"""

from __future__ import annotations

import argparse
import gzip
import importlib.metadata
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.hardware import cpu_name

CORPORA = ("novels", "novels_eltec", "wiki_train", "speeches", "wiki_heldout", "wikitext2_heldout")
RESULT = Path(__file__).parent / "results" / "prepare.json"


def main() -> None:
    """Runs the measurements and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--megabytes", type=int, nargs="+", default=[20, 160])
    parser.add_argument("--num_workers", type=int, nargs="+", default=[1, 2])
    arguments = parser.parse_args()
    vocabulary = arguments.data / "vocab" / "bert-base-uncased-vocab.txt"
    runs = []
    with tempfile.TemporaryDirectory() as folder:
        for megabytes in arguments.megabytes:
            file = Path(folder) / f"{megabytes}mb.jsonl.gz"
            write_input(arguments.data / "corpus", file, megabytes * 10**6)
            for num_workers in arguments.num_workers:
                store = Path(folder) / f"store-{megabytes}-{num_workers}"
                runs.append(measure(file, store, vocabulary, num_workers))
                print(json.dumps(runs[-1]))
    result = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "versions": {
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in ("numpy", "sentencex")},
        },
        "command": f"python -m bertjax.prepare --input=FILE --tokenizer={vocabulary.name} "
        "--num_workers=N",
        "megabytes": "of text, 10^6 bytes of UTF-8; start of the processes included",
        "runs": runs,
        "peak_pss_growth": growth(runs, "peak_pss_bytes"),
        "peak_rss_growth": growth(runs, "peak_rss_bytes"),
    }
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    print(
        f"{RESULT}: peak memory of the largest input over the smallest, by workers: "
        f"{result['peak_pss_growth']}"
    )


def write_input(corpus: Path, target: Path, num_bytes: int) -> None:
    """Writes documents spread evenly over the corpora until their text has `num_bytes`."""
    total = sum(length for length, _ in documents(corpus))
    share = min(1.0, num_bytes / total)
    seen = written = 0
    with gzip.open(target, "wt", encoding="utf-8", compresslevel=6) as file:
        for length, line in documents(corpus):
            seen += length
            if written < share * seen:
                file.write(line)
                written += length


def documents(corpus: Path) -> Iterator[tuple[int, str]]:
    """Length of the text in bytes, and the JSON line, of each document."""
    for name in CORPORA:
        with gzip.open(corpus / f"{name}.jsonl.gz", "rt", encoding="utf-8") as lines:
            for line in lines:
                yield len(json.loads(line)["text"].encode()), line


def measure(file: Path, store: Path, vocabulary: Path, num_workers: int) -> dict:
    """Prepares one input in a new process; returns its figures."""
    command = [sys.executable, "-m", "bertjax.prepare", f"--input={file}", f"--output={store}"]
    command += [f"--tokenizer={vocabulary}", f"--num_workers={num_workers}"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    begin = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    peaks = {"Pss": 0, "Rss": 0}
    while process.poll() is None:
        tree = process_tree(process.pid)
        for kind in peaks:
            peaks[kind] = max(peaks[kind], sum(memory(pid, kind) for pid in tree))
        time.sleep(0.1)
    seconds = time.monotonic() - begin
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    manifest = json.loads((store / "manifest.json").read_text())
    megabytes = manifest["text_bytes"] / 1e6
    return {
        "text_megabytes": round(megabytes, 1),
        "input_bytes": file.stat().st_size,
        "num_workers": num_workers,
        "tokens": sum(split["num_tokens"] for split in manifest["splits"].values()),
        "seconds": round(seconds, 1),
        "cpu_seconds": round(cpu_seconds, 1),
        "megabytes_per_second": round(megabytes / seconds, 2),
        "megabytes_per_cpu_second": round(megabytes / cpu_seconds, 2),
        "peak_pss_bytes": peaks["Pss"],
        "peak_rss_bytes": peaks["Rss"],
    }


def process_tree(pid: int) -> list[int]:
    """The process and all its descendants."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except FileNotFoundError:
        return []
    return [pid, *(found for child in children for found in process_tree(int(child)))]


def memory(pid: int, kind: str) -> int:
    """Bytes of "Pss" or "Rss" of a process; 0 once it has ended."""
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith(f"{kind}:"):
                return int(line.split()[1]) * 1024
    except (FileNotFoundError, ProcessLookupError):
        pass
    return 0


def growth(runs: list[dict], peak: str) -> dict[str, float]:
    """Peak of the largest input over that of the smallest, for each number of workers."""
    found = {}
    for workers in sorted({run["num_workers"] for run in runs}):
        alike = [run for run in runs if run["num_workers"] == workers]
        alike.sort(key=lambda run: run["text_megabytes"])
        found[str(workers)] = round(alike[-1][peak] / alike[0][peak], 3)
    return found


if __name__ == "__main__":
    main()
