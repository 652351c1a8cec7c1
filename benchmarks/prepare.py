"""Measures `bertjax.prepare` beside `tokenizers` and the original's published algorithm.

    python -m benchmarks.prepare --data=../shared/data

Makes English inputs of 80 and 160 MB (JSON lines, gzip) from the corpora in DATA. Each round runs,
one after the other: `prepare` on either input in a process of its own, from start to end of the
process; `tokenizers` with the same vocabulary and all cores on the sentences of the larger input,
which only tokenises text that is in memory already; and on one of a hundred of these sentences the
published rules, one character at a time (tests/helpers/wordpiece_oracle.py), in one thread,
tokenising alone as well.

A core's speed is text over the time of the clock times the cores, whether they had other work or
not; text over processor time stands beside it. PSS counts a page that n processes share as 1/n of
it in each; its sum over `prepare` and its workers, sampled from /proc, is what the machine really
gives. Writes benchmarks/results/prepare.json.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import tokenizers

from benchmarks.harness import DATA, ROOT, Benchmark
from bertjax.cores import num_cores
from bertjax.data.corpus.corpus import find_sources, read_blocks, read_documents, split_sentences

sys.path.append(str(ROOT / "tests" / "helpers"))

import wordpiece_oracle

CORPORA = ("novels", "novels_eltec", "wiki_train", "speeches", "wiki_heldout", "wikitext2_heldout")
PEER_BATCH = 10_000  # sentences given to `tokenizers` at once
ORIGINAL_SHARE = 100  # the published rules get every so-many-th sentence
SAMPLE_SECONDS = 0.25  # between two looks at the memory


def options(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--megabytes", type=int, nargs="+", default=[80, 160])
    parser.add_argument("--rounds", type=int, default=3)


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Runs the measurements."""
    vocabulary = arguments.data / "vocab" / "bert-base-uncased-vocab.txt"
    runs = []
    with tempfile.TemporaryDirectory() as folder:
        files = {}
        for megabytes in sorted(arguments.megabytes):
            files[megabytes] = Path(folder) / f"{megabytes}mb.jsonl.gz"
            write_input(arguments.data / "corpus", files[megabytes], megabytes * 10**6)
        sentences = list(sentences_of(files[max(files)]))
        peer = tokenizers.BertWordPieceTokenizer(str(vocabulary), lowercase=True)
        ids = {piece: id for id, piece in enumerate(vocabulary.read_text("utf-8").split("\n"))}
        for number in range(arguments.rounds):
            for megabytes, file in files.items():
                store = Path(folder) / f"store-{megabytes}-{number}"
                runs.append(measure_prepare(file, store, vocabulary))
                print(json.dumps(runs[-1]))
            runs.append(measure_here("tokenizers", sentences, num_cores(), peer_tokens(peer)))
            print(json.dumps(runs[-1]))
            share = sentences[number % ORIGINAL_SHARE :: ORIGINAL_SHARE]
            runs.append(measure_here("original", share, 1, original_tokens(ids)))
            print(json.dumps(runs[-1]))
    largest = max(run["text_megabytes"] for run in runs if run["what"] == "prepare")
    speeds = {
        rate: {
            what: median(runs, what, rate, largest if what == "prepare" else None)
            for what in ("prepare", "tokenizers", "original")
        }
        for rate in ("megabytes_per_second_and_core", "megabytes_per_cpu_second")
    }
    return {
        "prepare": f"python -m bertjax.prepare --input=FILE --tokenizer={vocabulary.name} "
        f"--num_workers={num_cores()}: read, split, tokenise, write; processes' start in",
        "tokenizers": "BertWordPieceTokenizer.encode_batch, all cores: tokenises, nothing else",
        "original": "google-research/bert, tokenization.py, as tests/helpers/wordpiece_oracle.py:"
        f" tokenises, nothing else, one thread, on one sentence of {ORIGINAL_SHARE}",
        "megabytes": "of text, 10^6 bytes of UTF-8",
        "medians_over_rounds": speeds,
        "prepare_over": {
            what: {rate: round(found["prepare"] / found[what], 2) for rate, found in speeds.items()}
            for what in ("tokenizers", "original")
        },
        "peak_pss_bytes": peaks(runs),
        "peak_pss_growth": growth(runs, "peak_pss_bytes"),
        "peak_rss_growth": growth(runs, "peak_rss_bytes"),
        "runs": runs,
    }


def median(runs: list[dict], what: str, rate: str, megabytes: float | None) -> float:
    """Median of a rate over the rounds, of one size of input if that is given."""
    return statistics.median(
        run[rate]
        for run in runs
        if run["what"] == what and megabytes in (None, run["text_megabytes"])
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


def sentences_of(file: Path) -> Iterator[str]:
    """The sentences that `prepare` makes of a file."""
    for source in find_sources(str(file)):
        for block in read_blocks(source):
            for document in read_documents(block, []):
                for paragraph in document.paragraphs:
                    yield from split_sentences("en", paragraph)


def peer_tokens(peer: tokenizers.BertWordPieceTokenizer) -> Callable[[list[str]], int]:
    """A function that tokenises with `tokenizers` and counts."""

    def count(sentences: list[str]) -> int:
        tokens = 0
        for start in range(0, len(sentences), PEER_BATCH):
            batch = sentences[start : start + PEER_BATCH]
            tokens += sum(map(len, peer.encode_batch(batch, add_special_tokens=False)))
        return tokens

    return count


def original_tokens(ids: dict[str, int]) -> Callable[[list[str]], int]:
    """A function that tokenises by the published rules and counts."""
    return lambda sentences: sum(
        len(wordpiece_oracle.encode(sentence, ids, True)) for sentence in sentences
    )


def measure_here(
    what: str, sentences: list[str], cores: int, count: Callable[[list[str]], int]
) -> dict:
    """Tokenises in this process, which may use `cores`; returns the figures."""
    num_bytes = sum(len(sentence.encode()) for sentence in sentences)
    load, cpu, begin = os.getloadavg()[0], time.process_time(), time.monotonic()
    tokens = count(sentences)
    seconds, cpu_seconds = time.monotonic() - begin, time.process_time() - cpu
    return {"what": what} | rates(num_bytes, tokens, cores, seconds, cpu_seconds, load)


def rates(
    num_bytes: int, tokens: int, cores: int, seconds: float, cpu_seconds: float, load: float
) -> dict:
    """The figures that all runs have."""
    megabytes = num_bytes / 1e6
    return {
        "text_megabytes": round(megabytes, 1),
        "tokens": tokens,
        "cores": cores,
        "seconds": round(seconds, 2),
        "cpu_seconds": round(cpu_seconds, 2),
        "megabytes_per_second_and_core": round(megabytes / seconds / cores, 2),
        "megabytes_per_cpu_second": round(megabytes / cpu_seconds, 2),
        "load_average_before": round(load, 2),
    }


def measure_prepare(file: Path, store: Path, vocabulary: Path) -> dict:
    """Prepares one input in a new process; returns its figures."""
    command = [sys.executable, "-m", "bertjax.prepare", f"--input={file}", f"--output={store}"]
    command += [f"--tokenizer={vocabulary}", f"--num_workers={num_cores()}"]
    load, before = os.getloadavg()[0], resource.getrusage(resource.RUSAGE_CHILDREN)
    begin = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    peaks = {"Pss": 0, "Rss": 0}
    while True:
        tree = process_tree(process.pid)
        for kind in peaks:
            peaks[kind] = max(peaks[kind], sum(memory(pid, kind) for pid in tree))
        try:
            process.wait(SAMPLE_SECONDS)
            break
        except subprocess.TimeoutExpired:
            continue
    seconds = time.monotonic() - begin
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    manifest = json.loads((store / "manifest.json").read_text())
    tokens = sum(split["num_tokens"] for split in manifest["splits"].values())
    return {
        "what": "prepare",
        **rates(manifest["text_bytes"], tokens, num_cores(), seconds, cpu_seconds, load),
        "input_bytes": file.stat().st_size,
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


def growth(runs: list[dict], peak: str) -> float:
    """Highest peak with the largest input over that with the smallest."""
    sizes = sorted({run["text_megabytes"] for run in runs if run["what"] == "prepare"})
    smallest, largest = (
        max(run[peak] for run in runs if run["what"] == "prepare" and run["text_megabytes"] == size)
        for size in (sizes[0], sizes[-1])
    )
    return round(largest / smallest, 3)


def peaks(runs: list[dict]) -> int:
    """Highest PSS of all runs of `prepare`."""
    return max(run["peak_pss_bytes"] for run in runs if run["what"] == "prepare")


BENCHMARK = Benchmark(measure, "prepare.json", options, device="none")

if __name__ == "__main__":
    BENCHMARK.main()
