"""Whether `prepare` may write to its output folder, or continue there."""

from __future__ import annotations

import collections
import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bertjax.data.corpus.blocks import Source
from bertjax.data.corpus.corpus import read_blocks
from bertjax.data.corpus.duplicates import DUPLICATES
from bertjax.data.store.store import MANIFEST, read_manifest
from bertjax.data.store.store_writer import UNFINISHED
from bertjax.prepare.options import OF_THE_RUN, PrepareError, PrepareStoppedError
from bertjax.prepare.staged_blocks import BLOCKS, SUFFIX
from bertjax.storage.atomic_files import write_file
from bertjax.storage.bucket import BucketPath, in_parallel, is_bucket_path

COMMAND = "command.json"  # in the work folder: settings and input of the store


@contextlib.contextmanager
def locked(output: Path) -> Iterator[None]:
    """Makes the folder and keeps other runs out of it; the lock ends with the process.

    Raises:
        PrepareError: it cannot be made, another run holds it, or it contains something else.
    """
    if (output / MANIFEST).exists():  # finished: nothing will be written
        yield
        return
    work = output / UNFINISHED
    if output.is_dir() and not work.exists() and (others := sorted(os.listdir(output))):
        raise PrepareError(
            f"--output={output}: is neither empty nor a store, it holds {', '.join(others[:3])}; "
            "choose another folder"
        )
    try:
        work.mkdir(parents=True, exist_ok=True)
        lock = open(work / "lock", "w")  # noqa: SIM115 (closed below)
    except OSError as error:
        raise PrepareError(f"--output={output}: {error.strerror}: {error.filename}") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise PrepareError(f"--output={output}: another run is preparing it") from None
        yield


@contextlib.contextmanager
def explained(output: Path) -> Iterator[None]:
    """Turns an OSError of writing into an error that says what to do."""
    try:
        yield
    except OSError as error:
        raise PrepareStoppedError(
            f"{error.filename or output}: cannot be written: {error.strerror}; the finished "
            "shards stay: put it right and run the same command again"
        ) from error


def check_finished(output: Path, settings: dict[str, Any], sources: list[Source]) -> None:
    """Refuses a finished store unless the same settings made it from the same input.

    Raises:
        PrepareError: names the first difference.
    """
    manifest = read_manifest(output)
    made_with = {name: manifest.get(name) for name in settings}
    difference = _difference(_of_content(made_with), settings)
    made_from = {source["name"]: source["sha256"] for source in manifest.get("sources", [])}
    for source in sources:
        if not difference and _content_sha256(source) != made_from.get(source.name):
            difference = f"{source.name} is new or has changed"
    if not difference and len(made_from) > len(sources):
        difference = f"it had {len(made_from)} inputs, now there are {len(sources)}"
    if difference:
        raise PrepareError(
            f"{output}: holds a finished store, but {difference}; choose another --output or "
            "delete this one"
        )
    shutil.rmtree(output / UNFINISHED, ignore_errors=True)  # left by a kill at the end


def check_unfinished(output: Path, settings: dict[str, Any], sources: list[Source]) -> None:
    """Refuses to continue a store with other settings; records those of a new store.

    Raises:
        PrepareError: names the first difference.
    """
    work = output / UNFINISHED
    note = work / COMMAND
    command = settings | {"sources": source_states(sources)}
    if note.exists():
        difference = _difference(_of_content(json.loads(note.read_bytes())), command)
        if not difference:
            return
        if any(work.glob("part-*.json")) or any(work.glob(f"{BLOCKS}/*{SUFFIX}")):
            raise PrepareError(
                f"{output}: holds an unfinished store that was begun otherwise: {difference}; "
                "run that command again to finish it, or delete the folder to start over"
            )
        shutil.rmtree(output / "tokenizer", ignore_errors=True)  # may come from other text
        (output / DUPLICATES).unlink(missing_ok=True)
    write_file(note, json.dumps(command).encode())


def check_unchanged(before: dict[str, list[int]], sources: list[Source]) -> None:
    """Refuses an input that changed while it was read.

    Args:
        before: `source_states` from before the first byte was read.
        sources: what was read.
    """
    if difference := _difference(before, source_states(sources)):
        raise PrepareError(
            f"the input changed while it was read (size and time of {difference}): delete the "
            "output folder and run the command again when nothing writes to the input"
        )


def source_states(sources: list[Source]) -> dict[str, list[int]]:
    """Size and time of the last change (nanoseconds) of each source, by name.

    The time is 0 where the source is not a file; in a bucket it is the generation.
    """

    def state(source: Source) -> list[int]:
        if is_bucket_path(source.name):
            return [source.num_bytes, BucketPath(source.name).generation() or 0]
        try:
            status = os.stat(source.name)
        except FileNotFoundError:
            return [source.num_bytes, 0]
        return [status.st_size, status.st_mtime_ns]

    states = in_parallel(state, sources)
    return {source.name: found for source, found in zip(sources, states, strict=True)}


def _content_sha256(source: Source) -> str:
    return collections.deque(read_blocks(source), maxlen=1)[0].sha256


def _of_content(settings: dict[str, Any]) -> dict[str, Any]:
    """Drops options that earlier versions recorded and that do not decide the content."""
    options = settings.get("options") or {}
    return settings | {"options": {k: v for k, v in options.items() if k not in OF_THE_RUN}}


def _difference(then: dict[str, Any], now: dict[str, Any]) -> str:
    """The first entry that differs, nested ones included, in words; "" if none does."""
    for name in [*now, *(then.keys() - now.keys())]:
        old, new = then.get(name), now.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            if difference := _difference(old, new):
                return difference
        elif old != new:
            return f"{name} was {old} and is {new} now"
    return ""
