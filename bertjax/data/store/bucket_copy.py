"""Token stores in a bucket: downloaded to this machine's disk before training, or uploaded.

A run maps its store into memory, so it needs the files themselves. The first process of a machine
fetches them, once, into a folder named after the manifest's checksum. So a store that has changed
is another folder, and two runs with the same store share one.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import os
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from tqdm import tqdm

from bertjax.data.store.store import MANIFEST, StoreError, read_manifest
from bertjax.storage.atomic_files import write_file
from bertjax.storage.bucket import BucketPath, as_path, in_parallel
from bertjax.storage.cache import cache_folder

_LOG = logging.getLogger(__name__)
_REPORT_SECONDS = 30.0  # between lines of a log that is not a terminal


def local_store(path: str) -> Path:
    """The folder of a store; for gs://, the local folder to which it fetches the files.

    Raises:
        StoreError: as `fetch_store`.
    """
    store = as_path(path)
    return fetch_store(store) if isinstance(store, BucketPath) else store


def fetch_store(source: BucketPath) -> Path:
    """Fetches a store to this machine's cache, unless it is already there.

    Each file gets its name when its SHA-256 equals the manifest's, so a file that was complete
    before an interruption is not fetched again. Other processes of the machine wait for the first.

    Raises:
        StoreError: there is no store, a file is missing or damaged, or the disk has no room.
    """
    manifest = read_manifest(source)
    content = (source / MANIFEST).read_bytes()
    folder = cache_folder() / "stores" / f"{source.name}-{hashlib.sha256(content).hexdigest()[:16]}"
    for name in manifest["files"]:
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise StoreError(f"{source / MANIFEST}: lists {name}, which is outside of the store")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _alone(folder, source):
            missing = {
                name: entry
                for name, entry in manifest["files"].items()
                if not _has(folder / name, entry["bytes"])
            }
            if missing:
                _check_room(folder, source, sum(entry["bytes"] for entry in missing.values()))
                _fetch(source, folder, missing)
            if not (folder / MANIFEST).exists():
                write_file(folder / MANIFEST, content)
    except OSError as error:
        raise StoreError(
            f"{source}: cannot be fetched to {folder}: {error}. Run the same command again to go "
            "on; the environment variable BERTJAX_CACHE names another folder"
        ) from error
    return folder


def upload_store(folder: Path, target: BucketPath) -> None:
    """Uploads a finished store to a bucket, the manifest last; skips files that are there.

    Raises:
        StoreError: another store is there, or the bucket cannot be written.
    """
    manifest = read_manifest(folder)
    content = (folder / MANIFEST).read_bytes()
    try:
        stored = target.files()
        if MANIFEST in stored and (target / MANIFEST).read_bytes() != content:
            raise StoreError(f"{target}: another store is there; choose another folder")

        def send(name: str) -> None:
            with open(folder / name, "rb") as file:
                md5 = hashlib.file_digest(file, "md5").hexdigest()
            if name not in stored or stored[name].md5 != md5:
                (target / name).upload(folder / name)

        in_parallel(send, manifest["files"])
        (target / MANIFEST).write_bytes(content)
    except OSError as error:
        raise StoreError(
            f"{target}: the store in {folder} cannot be uploaded: {error}; run the same command "
            "again to continue"
        ) from error


@contextlib.contextmanager
def _alone(folder: Path, source: BucketPath) -> Iterator[None]:
    """One process of this machine at a time."""
    with open(folder / ".lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _LOG.info("%s: another process of this machine is fetching it; waiting", source)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _has(path: Path, size: int) -> bool:
    return path.exists() and path.stat().st_size == size


def _check_room(folder: Path, source: BucketPath, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise StoreError(
            f"{folder}: {needed / 1e9:.2f} GB of {source} are still to come, and {free / 1e9:.2f} "
            "GB are free. Make room, or name a folder on a larger disk in the environment variable "
            "BERTJAX_CACHE"
        )


def _fetch(source: BucketPath, folder: Path, missing: dict[str, dict[str, Any]]) -> None:
    stopped = threading.Event()
    with _Progress(source, sum(entry["bytes"] for entry in missing.values())) as progress:

        def fetch(name: str) -> None:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            partial = folder / f"{name}.part"
            with open(partial, "wb") as file:

                def told(chunk: bytes) -> None:
                    if stopped.is_set():
                        raise InterruptedError("stopped")
                    file.write(chunk)
                    progress.add(len(chunk))

                try:
                    found = (source / name).digest("sha256", told)
                except FileNotFoundError:
                    raise StoreError(
                        f"{source / name}: is missing, but {MANIFEST} lists it"
                    ) from None
                file.flush()
                os.fsync(file.fileno())
            if found != missing[name]["sha256"]:
                partial.unlink()
                raise StoreError(
                    f"{source / name}: its SHA-256 is {found}, but {MANIFEST} says "
                    f"{missing[name]['sha256']}; the object is damaged: upload the store again"
                )
            partial.replace(folder / name)

        in_parallel(fetch, missing, at_error=stopped.set)  # the others need not finish


class _Progress(contextlib.AbstractContextManager["_Progress"]):
    """Progress of the fetch, with rate and time left: a bar, or a line now and then."""

    def __init__(self, source: BucketPath, total: int):
        self._bar = tqdm(
            desc=f"fetching {source}",
            total=total,
            unit="B",
            unit_scale=True,
            disable=not sys.stderr.isatty(),
        )
        self._source, self._total, self._done = source, total, 0
        self._began = self._reported = time.monotonic()
        self._lock = threading.Lock()

    def add(self, num_bytes: int) -> None:
        """Counts bytes that were received."""
        with self._lock:
            self._bar.update(num_bytes)
            self._done += num_bytes
            if self._bar.disable and time.monotonic() - self._reported > _REPORT_SECONDS:
                self._report()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._bar.close()
        if kind is None:
            self._report()

    def _report(self) -> None:
        self._reported = time.monotonic()
        meter = tqdm.format_meter(
            self._done,
            self._total,
            self._reported - self._began,
            unit="B",
            unit_scale=True,
            bar_format="{percentage:.0f} % of {total_fmt}, {rate_fmt}, {remaining} left",
        )
        _LOG.info("fetching %s: %s", self._source, meter)
