"""Measures the linter on two editions of the same novels: time, memory, precision and recall.

    python -m benchmarks.linter --data=../shared/data

The truth is made without fingerprints: every eighth run of eight words of a chapter, as a string,
is looked up among all runs of eight words of the other corpus; a chapter stands in the work that
has 30 % or more of them. Writes benchmarks/results/linter.json.
"""

from __future__ import annotations

import argparse
import collections
import gzip
import json
import re
import resource
import time
from pathlib import Path
from typing import Any

from benchmarks.harness import DATA, Benchmark
from bertjax.inspect.report import inspect_texts

NAMES = ("novels", "novels_eltec")
LENGTH = 8  # words of a run of the truth
FOUND = 0.3


def options(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    parser.add_argument("--data", type=Path, default=DATA)


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Inspects both editions, and compares with the truth."""
    folder = args.data / "corpus"
    files = [folder / f"{name}.jsonl.gz" for name in NAMES]
    begin, cpu = time.monotonic(), time.process_time()
    report = inspect_texts(",".join(map(str, files)))
    seconds, cpu = time.monotonic() - begin, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    found = {(pair.first[1], pair.second[1]): pair for pair in report.works}
    standing = [truth(*files), truth(*reversed(files))]
    pairs = set(standing[0]) | {pair[::-1] for pair in standing[1]}
    works: list[dict[str, Any]] = [
        {
            "novels": first,
            "novels_eltec": second,
            "chapters_found": [found[first, second].first_found, found[first, second].second_found]
            if (first, second) in found
            else [0, 0],
            "chapters_true": [
                standing[0].get((first, second), 0),
                standing[1].get((second, first), 0),
            ],
        }
        for first, second in sorted(pairs)
    ]
    recall = [
        sum(min(w["chapters_found"][side], w["chapters_true"][side]) for w in works)
        / max(1, sum(w["chapters_true"][side] for w in works))
        for side in (0, 1)
    ]
    return {
        "seconds": round(seconds, 1),
        "cpu_seconds": round(cpu, 1),
        "peak_rss_bytes": peak,
        "works": works,
        "recall_of_chapters": recall,
        "pairs_that_are_none": sorted(set(found) - pairs),
        "findings": [finding.kind for finding in report.findings],
    }


def truth(part: Path, whole: Path) -> dict[tuple[str, str], int]:
    """Chapters of each work of `part` that stand in a work of `whole`."""
    samples: dict[str, set[int]] = collections.defaultdict(set)
    names, sizes = [], []
    for number, (name, words) in enumerate(chapters(part)):
        names.append(name)
        runs = {" ".join(words[i : i + LENGTH]) for i in range(0, len(words) - LENGTH, LENGTH)}
        sizes.append(len(runs))
        for run in runs:
            samples[run].add(number)
    hits: dict[tuple[int, str], set[str]] = collections.defaultdict(set)
    for name, words in chapters(whole):
        for i in range(len(words) - LENGTH + 1):
            run = " ".join(words[i : i + LENGTH])
            for number in samples.get(run, ()):
                hits[number, name].add(run)
    result: collections.Counter[tuple[str, str]] = collections.Counter()
    for (number, name), runs in hits.items():
        if len(runs) >= FOUND * sizes[number]:
            result[names[number], name] += 1
    return dict(result)


def chapters(path: Path):
    """Work and words of each chapter."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        for line in file:
            record = json.loads(line)
            yield record["id"].rpartition("/")[0], re.findall("[a-z]+", record["text"].lower())


BENCHMARK = Benchmark(measure, "linter.json", options, device="none")

if __name__ == "__main__":
    BENCHMARK.main()
