"""The stream on stores larger than memory: how it starts, what it keeps and what it reads.

`simulated` makes a store with holes for tokens and opens it at position 10^9. `reads` makes a real
one, takes it out of the page cache and counts what the disk is asked for. `benchmarks.stream` calls
both, each in a process of its own, as the parts of each are; the folder is removed again.
"""

from __future__ import annotations

import os
import resource
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness import in_process
from benchmarks.simulated_store import make_store
from bertjax.data.store.store import open_store
from bertjax.data.stream.reader import RowReader
from bertjax.data.stream.row_order import shuffle_window
from bertjax.data.stream.rows import RowSpec
from bertjax.data.stream.tf_data import BatchStream

FAR = 10**9  # position
BATCH_SIZE = 256
STARTS = 8
READ_WINDOW = 2**18  # rows, what is chosen for large stores
READ_SECONDS = 30.0  # at the start


def simulated(folder: str, gigabytes: float) -> dict[str, Any]:
    """A store with holes, opened twice: the second start finds pages that the first has to make."""
    return with_store(
        Path(folder),
        gigabytes,
        "simulated",
        lambda: [in_process("start", folder, module="stream_at_scale") for _ in range(2)],
    )


def reads(folder: str, gigabytes: float) -> dict[str, Any]:
    """A real store, read without a window and with one."""
    return with_store(
        Path(folder),
        gigabytes,
        "reads",
        lambda: [
            in_process("read_cold", folder, window, module="stream_at_scale")
            for window in (0, READ_WINDOW)
        ],
    )


def with_store(
    folder: Path, gigabytes: float, what: str, measure: Callable[[], list[dict[str, Any]]]
) -> dict[str, Any]:
    """Makes a store and its row index, measures and removes it."""
    try:
        began = time.perf_counter()
        make_store(folder, int(gigabytes * 1e9), holes=what == "simulated")
        made = round(time.perf_counter() - began)
        index = build_index(folder)
        return {
            "store": describe(folder),
            "seconds_to_make": made,
            "row_index": index,
            what: measure(),
        }
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def describe(folder: Path) -> dict[str, Any]:
    """How large the store is, and what of it takes room on the disk."""
    files = [path.stat() for path in folder.rglob("*") if path.is_file()]
    store = open_store(folder)
    return {
        "gigabytes": round(sum(file.st_size for file in files) / 1e9, 1),
        "gigabytes_on_disk": round(sum(file.st_blocks * 512 for file in files) / 1e9, 1),
        "token_shards": len(store.train.token_shards),
        "sentences": store.train.num_sentences,
        "shuffle_window": shuffle_window(-1, store.train),
    }


def build_index(folder: Path) -> dict[str, Any]:
    """The row index, made at first use."""
    before, cpu = memory()["anonymous_megabytes"], time.process_time()
    reader = open_reader(folder, 0)
    return {
        "rows": reader.num_rows,
        "cpu_seconds": round(time.process_time() - cpu),
        "more_memory_megabytes": round(memory()["anonymous_megabytes"] - before, 1),
    }


def open_reader(folder: Path, window: int) -> RowReader:
    """The training rows of 128 tokens with dynamic masks and next-sentence prediction."""
    store = open_store(folder)
    return RowReader(
        store.train,
        store.tokenizer(),
        RowSpec(),
        seed=0,
        stream_id=0,
        shuffle_window=shuffle_window(window, store.train),
    )


def start(path: str) -> dict[str, Any]:
    """Opens the store at position 10^9 as training does, and reads on for a while.

    Packages are imported before.
    """
    import tensorflow  # noqa: F401

    folder = Path(path)
    first = [first_batch(folder, FAR + i * 10**7) for i in range(STARTS)]
    reader = open_reader(folder, -1)
    began = time.perf_counter()
    with BatchStream(reader, global_batch_size=BATCH_SIZE, position=FAR) as stream:
        rows, cpu, notes = 0, time.process_time(), [memory()]
        for part in range(3):
            while time.perf_counter() - began < (part + 1) * READ_SECONDS / 3:
                rows += len(next(stream)["input_ids"])
            notes.append({"rows": rows, **memory()})
        speed = round(rows / (time.process_time() - cpu), -2)
    return {
        "position": FAR,
        "shuffle_window": reader.order.window,
        "first_batches_at_places_far_apart": first,
        "load_average": round(os.getloadavg()[0], 1),
        "memory": notes,
        "rows_per_cpu_second": speed,
    }


def first_batch(folder: Path, position: int) -> dict[str, float]:
    """Opens everything anew: from the path of the store to the first batch."""
    began, cpu = time.perf_counter(), time.process_time()
    reader = open_reader(folder, -1)
    with BatchStream(reader, global_batch_size=BATCH_SIZE, position=position) as stream:
        next(stream)
        return {
            "seconds": round(time.perf_counter() - began, 3),
            "cpu_seconds": round(time.process_time() - cpu, 3),
        }


def memory() -> dict[str, float]:
    """Of this process: its own, and pages of files that it maps, which the system may drop."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {
        name: round(int(fields[field].split()[0]) / 1024, 1)
        for name, field in (("anonymous_megabytes", "RssAnon"), ("mapped_megabytes", "RssFile"))
    }


def read_cold(path: str, window: int) -> dict[str, Any]:
    """Reads from a disk whose pages are not in memory: requests and bytes a 1,000 rows."""
    folder = Path(path)
    reader = open_reader(folder, window)
    # A window is read as a whole; more rows from everywhere would only read the whole store.
    num_rows = window or 256
    for array in folder.rglob("*.npy"):
        with open(array, "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    before, began, cpu = disk(folder), time.perf_counter(), time.process_time()
    first_rows = 0.0
    tokens = 0
    for first in range(0, num_rows, 2048):
        positions = np.arange(first, min(first + 2048, num_rows))
        tokens += int(reader.rows(positions)["attention_mask"].sum())
        first_rows = first_rows or time.perf_counter() - began
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    used = {name: value - before[name] for name, value in disk(folder).items()}
    thousands = num_rows / 1000
    return {
        "shuffle_window": window,
        "system_reads_ahead_kilobytes": read_ahead(folder),
        "rows": num_rows,
        "megabytes_of_tokens_per_1000_rows": round(4 * tokens / thousands / 1e6, 3),
        "megabytes_read_per_1000_rows": round(used["bytes"] / thousands / 1e6, 3),
        "read_requests_per_1000_rows": round(used["requests"] / thousands, 2),
        "kilobytes_a_request": round(used["device_bytes"] / max(1, used["requests"]) / 1e3),
        "waits_for_a_page_per_1000_rows": round(used["major_faults"] / thousands, 2),
        "seconds_to_the_first_call": round(first_rows, 2),
        "seconds": round(seconds, 1),
        "cpu_seconds": round(cpu, 1),
    }


def block_device(folder: Path) -> Path:
    """What Linux tells of the disk that a folder is on."""
    number = os.stat(folder).st_dev
    return Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}")


def read_ahead(folder: Path) -> int:
    """Kilobytes that the system reads round a page that is missing."""
    return int((block_device(folder) / "queue" / "read_ahead_kb").read_text())


def disk(folder: Path) -> dict[str, int]:
    """What this process has read, and what the disk was asked for by all of them."""
    io = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    block = (block_device(folder) / "stat").read_text().split()
    return {
        "bytes": int(io["read_bytes"]),
        "requests": int(block[0]),
        "device_bytes": 512 * int(block[2]),
        "major_faults": resource.getrusage(resource.RUSAGE_SELF).ru_majflt,
    }
