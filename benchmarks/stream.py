"""Measures the stream: rows per second of the reader alone and through tf.data.

    python -m benchmarks.stream --store=STORE

Each number is the best of several short stretches, by the processor time of all threads (so that
another program on the machine does not count) and by the clock. Writes
benchmarks/results/stream.json.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import itertools
import json
import os
import platform
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.hardware import cpu_name
from bertjax.data.reader import Batch, RowReader
from bertjax.data.rows import RowSpec, build_row_index
from bertjax.data.store import open_store
from bertjax.data.stream import BatchStream

RESULT = Path(__file__).parent / "results" / "stream.json"
FAR = 10**7  # position to start from


def main() -> None:
    """Runs the measurements and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each stretch")
    arguments = parser.parse_args()
    store = open_store(arguments.store)
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
                speed = measure(
                    (reader.rows(begin + np.arange(batch_size)) for begin in begins),
                    arguments.seconds,
                )
                report(what="reader, a call a batch", **common, **speed)
                with BatchStream(reader, global_batch_size=batch_size, position=FAR) as stream:
                    speed = measure(stream, arguments.seconds)
                report(what="tf.data", **common, **speed)
            begin = time.perf_counter()
            with BatchStream(reader, global_batch_size=256, position=FAR) as stream:
                next(stream)
                report(
                    what="first batch at position 10^7",
                    **common,
                    seconds=round(time.perf_counter() - begin, 3),
                )
    result = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "load_average": [round(load, 1) for load in os.getloadavg()],
        "versions": {
            "python": platform.python_version(),
            "numpy": np.__version__,
            "tensorflow": importlib.metadata.version("tensorflow-cpu"),
        },
        "runs": runs,
    }
    RESULT.write_text(json.dumps(result, indent=1) + "\n")


def measure(batches: Iterator[Batch], seconds: float, stretches: int = 3) -> dict[str, float]:
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


if __name__ == "__main__":
    main()
