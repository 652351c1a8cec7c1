"""Measures the stream: rows per second, beside transformers, and on stores larger than memory.

    python -m benchmarks.stream --store=STORE --peer=transformers --scale=FOLDER

Each number is the best of several short stretches, by the processor time of all threads (so that
another program on the machine does not count) and by the clock. --peer takes turns with
transformers' collator under a torch DataLoader on the same rows (`stream_peer`); --scale simulates
a store of 300 GB in a new FOLDER, where it needs 18 GB for some minutes (`stream_at_scale`). Writes
benchmarks/results/stream.json; what is not measured keeps its last result and date.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness import Benchmark, UsageError, in_process, nested
from bertjax.data.store.store import Store, open_store
from bertjax.data.stream.reader import Batch, RowReader
from bertjax.data.stream.rows import RowSpec, build_row_index
from bertjax.data.stream.tf_data import BatchStream

FAR = 10**7  # position to start from


def options(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each stretch")
    parser.add_argument("--peer", choices=["transformers"], help="beside whom")
    parser.add_argument("--skip_table", action="store_true", help="keep the last table of speeds")
    parser.add_argument("--scale", type=Path, help="folder to make large stores in")


def measure(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Measures what is asked for."""
    if arguments.peer and not all(map(importlib.util.find_spec, ("torch", "transformers"))):
        raise UsageError(
            "--peer=transformers needs PyTorch and transformers: pip install '.[peer]'"
        )
    store = open_store(arguments.store)
    if arguments.peer:
        yield {"part": "beside", **beside(store, arguments.seconds)}
    if arguments.scale:
        folder = str(arguments.scale)
        yield {
            "part": "at_scale",
            "simulated": in_process("simulated", folder, 300, module="stream_at_scale"),
            "reads": in_process("reads", folder, 4, module="stream_at_scale"),
        }
    if not arguments.skip_table:
        yield {"part": "table", "runs": table(store, arguments.seconds)}


def table(store: Store, seconds: float) -> list[dict[str, Any]]:
    """Speeds of the reader and of the stream for every masking, two lengths and two batches."""
    tokens = store.tokenizer()
    runs: list[dict[str, Any]] = []

    def report(**run: Any) -> None:
        runs.append(run)
        print(json.dumps(run))

    begin = time.process_time()
    starts = build_row_index(store.train, 125)
    report(
        what="row index",
        max_length=128,
        rows=len(starts) - 1,
        sentences_per_cpu_second=round(
            store.train.num_sentences / (time.process_time() - begin), -5
        ),
    )
    for masking in ("token", "whole_word", "span"):
        for max_length, max_predictions in ((128, 20), (512, 80)):
            spec = RowSpec(max_length=max_length, max_predictions=max_predictions, masking=masking)
            reader = RowReader(store.train, tokens, spec, seed=0, stream_id=0)
            for batch_size in (32, 256):
                common = {
                    "batch_size": batch_size,
                    "max_length": max_length,
                    "masking": masking,
                }
                begins = itertools.count(FAR, batch_size)
                speed = rates(
                    (reader.rows(begin + np.arange(batch_size)) for begin in begins),
                    seconds,
                )
                report(what="reader, a call a batch", **common, **speed)
                with BatchStream(reader, global_batch_size=batch_size, position=FAR) as stream:
                    speed = rates(stream, seconds)
                report(what="tf.data", **common, **speed)
            begin = time.perf_counter()
            with BatchStream(reader, global_batch_size=256, position=FAR) as stream:
                next(stream)
                report(
                    what="first batch at position 10^7",
                    **common,
                    seconds=round(time.perf_counter() - begin, 3),
                )
    return runs


def beside(store: Store, seconds: float, rounds: int = 3) -> dict[str, Any]:
    """Batches of 256 rows of 128 tokens that reach a consumer, in turns with transformers.

    Ours choose sentence pairs from the store and mask them. The peer gets the same pairs ready,
    and masks them; of its forms the fastest counts as it.
    """
    reader = RowReader(store.train, store.tokenizer(), RowSpec(), seed=0, stream_id=0)
    ours: list[dict[str, float]] = []
    peers: dict[str, list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        rows = Path(folder) / "rows.npz"
        fields: Any = unmasked_rows(reader)
        np.savez(rows, **fields)
        vocabulary = str(store.path / "tokenizer" / "vocab.txt")
        for _ in range(rounds):
            with BatchStream(reader, global_batch_size=256, position=FAR) as stream:
                ours.append(rates(stream, seconds))
            theirs = in_process(
                "measure_forms", str(rows), vocabulary, seconds, module="stream_peer"
            )
            for run in theirs:
                names = ("examples", "return_tensors", "num_workers")
                peers.setdefault(", ".join(f"{name} {run[name]}" for name in names), []).append(run)
            print(json.dumps({"bertjax": ours[-1], "transformers": theirs}))
    speeds = ("rows_per_cpu_second", "rows_per_second")
    best = {name: {s: max(run[s] for run in runs) for s in speeds} for name, runs in peers.items()}
    mine = {s: max(run[s] for run in ours) for s in speeds}
    fastest = max(run["rows_per_cpu_second"] for run in best.values())
    return {
        "what": "batches of 256 rows of 128, dynamic masks; ours with pairs drawn from the store, "
        "theirs from pairs of the same store ready in memory; 'examples ids' has no token types, "
        "no attention mask and no next-sentence label",
        "rounds": rounds,
        "bertjax": mine,
        "transformers": best,
        "times_as_fast_as_the_fastest": round(mine["rows_per_cpu_second"] / fastest, 1),
    }


def unmasked_rows(reader: RowReader, count: int = 8192) -> dict[str, np.ndarray]:
    """The first rows of the stream as they are before masking."""
    batch = reader.rows(np.arange(count))
    used = batch["masked_weights"] > 0
    batch["input_ids"][np.nonzero(used)[0], batch["masked_positions"][used]] = batch["masked_ids"][
        used
    ]
    names = ("input_ids", "token_type_ids", "attention_mask", "next_sentence_labels")
    tokens = reader.tokens
    special = np.array([tokens.pad_id, tokens.cls_id, tokens.sep_id])
    return {"special_ids": special, **{name: batch[name] for name in names}}


def rates(batches: Iterator[Batch], seconds: float, stretches: int = 3) -> dict[str, float]:
    """Rows per second, by processor time and by the clock."""
    by_cpu, by_clock = [], []
    for _ in range(stretches):
        cpu, clock, rows = time.process_time(), time.perf_counter(), 0
        while time.perf_counter() - clock < seconds:
            rows += len(next(batches)["input_ids"])
        by_cpu.append(rows / (time.process_time() - cpu))
        by_clock.append(rows / (time.perf_counter() - clock))
    return {
        "rows_per_cpu_second": round(max(by_cpu), -2),
        "rows_per_second": round(max(by_clock), -2),
    }


BENCHMARK = Benchmark(measure, "stream.json", options, device="none", keep=nested("part"))

if __name__ == "__main__":
    BENCHMARK.main()
