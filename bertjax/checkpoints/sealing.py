"""The completeness mark of a checkpoint: a list of its files with checksums, written last.

Orbax restores a flipped bit silently, accepts a half-copied directory as a checkpoint, and keeps
the name of a step that failed for lack of space. So a directory counts as a checkpoint only if it
has a `SEAL.json` that names every file with its size and sha256. In a bucket the seal has the md5,
which listings report for every object. docs/design/checkpoint.md describes the format. No jax and
no orbax here.
"""

from __future__ import annotations

import concurrent.futures
import errno
import functools
import hashlib
import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from bertjax.cores import num_cores
from bertjax.errors import EXIT_FAILED, BertjaxError
from bertjax.storage.atomic_files import sync, write_file
from bertjax.storage.bucket import BucketPath, Stored, in_parallel

SEAL_NAME = "SEAL.json"
FORMAT_VERSION = 1  # sha256 of each file
BUCKET_FORMAT_VERSION = 2  # md5 of each file
# Errors that mean a missing or broken file; others may be temporary.
_DAMAGE = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EIO, errno.EBADMSG)
_HASHING_THREADS = min(8, num_cores())  # hashlib releases the interpreter lock


class CheckpointError(BertjaxError, RuntimeError):
    """A checkpoint that could not be written, read or trusted; the message says what to do."""

    exit_code = EXIT_FAILED


def write_seal(directory: Path | BucketPath, step: int) -> None:
    """Makes every file of `directory` durable, then writes the seal that lists them.

    Raises:
        OSError: a file could not be read or written (no space, no permission).
    """
    if isinstance(directory, BucketPath):  # durable already, and hashed by the bucket
        stored = directory.files()

        def md5(name: str) -> str:
            return stored[name].md5 or (directory / name).digest("md5")

        sums = in_parallel(md5, stored)
        entries = {
            name: {"size": stored[name].size, "md5": digest}
            for name, digest in zip(stored, sums, strict=True)
        }
        body = {"format_version": BUCKET_FORMAT_VERSION, "step": step, "files": entries}
        (directory / SEAL_NAME).write_bytes(_render(body))
        return
    names = _list_files(directory)
    digests = _in_threads(lambda name: _digest(directory / name, "sha256", sync=True), names)
    files = {
        name: {"size": (directory / name).stat().st_size, "sha256": digest}
        for name, digest in zip(names, digests, strict=True)
    }
    for folder, _, _ in os.walk(directory):
        sync(Path(folder))
    body = {"format_version": FORMAT_VERSION, "step": step, "files": files}
    write_file(directory / SEAL_NAME, _render(body))


def read_seal(directory: Path | BucketPath) -> dict[str, Any]:
    """The body of a seal: `format_version`, `step`, `files` ({path: {size, sha256 or md5}}).

    Raises:
        ValueError: the seal is missing or corrupt; the message names it and the fault.
        CheckpointError: the seal is intact, but of a format that this version does not know.
    """
    try:
        content = (directory / SEAL_NAME).read_bytes()
    except FileNotFoundError:
        raise ValueError(f"{SEAL_NAME}: missing, so the checkpoint is not complete") from None
    try:
        body: dict[str, Any] = json.loads(content)
        del body["sha256"]
        # Compared byte for byte with the written form of this body, which finds any flipped bit.
        intact = _render(body) == content
    except (ValueError, TypeError, KeyError):
        intact = False
    if not intact:
        raise ValueError(f"{SEAL_NAME}: damaged, its own checksum does not match")
    known = (FORMAT_VERSION, BUCKET_FORMAT_VERSION)
    if body["format_version"] not in known:
        raise CheckpointError(
            f"{directory}: checkpoint format {body['format_version']} found, this version of "
            f"bertjax reads format {' and '.join(map(str, known))}; use the version that wrote it"
        )
    return body


def find_faults(directory: Path | BucketPath) -> list[str]:
    """The faults of a checkpoint directory, one line per file; empty if it is intact.

    Every file of the seal must exist with its size and checksum, and no other file. In a bucket the
    size and md5 of the listing are trusted; files that are sealed with a sha256 are read.

    Raises:
        CheckpointError: the files may not be read, or the format is unknown. This does not mean
            that the checkpoint is corrupt.
    """
    if not directory.is_dir():
        return [f"{directory.name}: not a directory"]
    try:
        body = read_seal(directory)
        if isinstance(directory, BucketPath):
            stored = directory.files()
            found, fault_of = set(stored), functools.partial(_fault_of_object, directory, stored)
        else:
            found, fault_of = (
                set(_list_files(directory)),
                functools.partial(_fault_of_file, directory),
            )
        faults = [
            f"{name}: not listed in {SEAL_NAME}"
            for name in sorted(found - set(body["files"]) - {SEAL_NAME})
        ]
        checks = _in_threads(lambda entry: fault_of(*entry), body["files"].items())
        return faults + [fault for fault in checks if fault]
    except ValueError as error:
        return [str(error)]
    except PermissionError as error:
        raise CheckpointError(
            f"{error.filename}: no permission to read; checkpoint {directory} can be neither "
            "trusted nor set aside. Give this user access to it"
        ) from error
    except OSError as error:
        if isinstance(directory, BucketPath) and not isinstance(error, FileNotFoundError):
            raise CheckpointError(
                f"{error.filename}: the bucket does not answer ({error.strerror}), which says "
                "nothing about the checkpoint. Run the same command again"
            ) from error
        if error.errno not in _DAMAGE:  # such as a file server that does not answer
            raise CheckpointError(
                f"{error.filename}: cannot be read now ({error.strerror}), which says nothing "
                f"about the checkpoint {directory}. Run the same command again"
            ) from error
        return [f"{error.filename}: cannot be read ({error.strerror})"]


def _render(body: dict[str, Any]) -> bytes:
    """The bytes of a seal: its body as indented JSON, with the sha256 of the body."""
    checksum = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    return (json.dumps({**body, "sha256": checksum}, indent=1) + "\n").encode()


def _list_files(directory: Path) -> list[str]:
    """Paths of all files below `directory`, relative, with "/", sorted."""
    return sorted(
        (Path(folder) / name).relative_to(directory).as_posix()
        for folder, _, names in os.walk(directory, onerror=_raise)
        for name in names
    )


def _raise(error: OSError) -> None:
    raise error


def _fault_of_file(directory: Path, name: str, sealed: dict[str, Any]) -> str | None:
    path = directory / name
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        return f"{name}: missing ({sealed['size']} bytes expected)"
    return _difference(name, size, sealed, lambda algorithm: _digest(path, algorithm))


def _fault_of_object(
    directory: BucketPath, stored: dict[str, Stored], name: str, sealed: dict[str, Any]
) -> str | None:
    if name not in stored:
        return f"{name}: missing ({sealed['size']} bytes expected)"

    def digest(algorithm: str) -> str:
        listed = stored[name].md5 if algorithm == "md5" else None
        return listed or (directory / name).digest(algorithm)

    return _difference(name, stored[name].size, sealed, digest)


def _difference(
    name: str, size: int, sealed: dict[str, Any], digest: Callable[[str], str]
) -> str | None:
    if size != sealed["size"]:
        return f"{name}: {size} bytes found, {sealed['size']} expected"
    algorithm = "sha256" if "sha256" in sealed else "md5"
    found = digest(algorithm)
    if found != sealed[algorithm]:
        return f"{name}: {algorithm} {found} found, {sealed[algorithm]} expected"
    return None


def _digest(path: Path, algorithm: str, sync: bool = False) -> str:
    with open(path, "rb") as file:
        if sync:
            os.fsync(file.fileno())
        return hashlib.file_digest(file, algorithm).hexdigest()


def _in_threads(function: Callable[[Any], Any], items: Iterable[Any]) -> list[Any]:
    with concurrent.futures.ThreadPoolExecutor(_HASHING_THREADS) as pool:
        return list(pool.map(function, items))
