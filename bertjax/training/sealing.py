"""The completeness mark of a checkpoint: a list of its files with checksums, written last.

Orbax restores a flipped bit without a word, takes a half-copied directory for a checkpoint, and has
named a step that failed for lack of space. So a directory counts as a checkpoint only with a
`SEAL.json` in it that names every file, its size and its sha256. The format is described in
docs/design/checkpoint.md. No jax and no orbax here.
"""

from __future__ import annotations

import concurrent.futures
import hashlib
import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

SEAL_NAME = "SEAL.json"
FORMAT_VERSION = 1
_HASHING_THREADS = min(8, os.cpu_count() or 1)  # hashlib releases the interpreter lock


class CheckpointError(RuntimeError):
    """A checkpoint that could not be written, read or trusted; the message says what to do."""


def write_seal(directory: Path, step: int) -> None:
    """Makes every file of `directory` durable, then writes the seal that lists them.

    Raises:
        OSError: a file could not be read or written (no space, no permission).
    """
    names = _list_files(directory)
    digests = _in_threads(lambda name: _sha256(directory / name, sync=True), names)
    files = {
        name: {"size": (directory / name).stat().st_size, "sha256": digest}
        for name, digest in zip(names, digests, strict=True)
    }
    for folder, _, _ in os.walk(directory):
        sync_directory(Path(folder))
    body = {"format_version": FORMAT_VERSION, "step": step, "files": files}
    write_durably(directory / SEAL_NAME, _render(body))


def read_seal(directory: Path) -> dict[str, Any]:
    """The body of a seal: `format_version`, `step` and `files` ({path: {size, sha256}}).

    Raises:
        ValueError: the seal is missing or damaged; the message names it and says how.
        CheckpointError: the seal is whole, but of a format this version does not know.
    """
    try:
        content = (directory / SEAL_NAME).read_bytes()
    except FileNotFoundError:
        raise ValueError(f"{SEAL_NAME}: missing, so the checkpoint is not complete") from None
    try:
        body = json.loads(content)
        del body["sha256"]
        # Compared byte for byte with what this body is written as, so that no flipped bit passes.
        intact = _render(body) == content
    except (ValueError, TypeError, KeyError):
        intact = False
    if not intact:
        raise ValueError(f"{SEAL_NAME}: damaged, its own checksum does not match")
    if body["format_version"] != FORMAT_VERSION:
        raise CheckpointError(
            f"{directory}: checkpoint format {body['format_version']} found, this version of "
            f"bertjax reads format {FORMAT_VERSION}; use the version that wrote it"
        )
    return body


def find_faults(directory: Path) -> list[str]:
    """What is wrong with a checkpoint directory, one line a file; empty if it is sound.

    Every file must be there with the size and the sha256 that the seal names, and no other.

    Raises:
        CheckpointError: the files may not be read, or the format is unknown: no damage, but no
            answer either.
    """
    if not directory.is_dir():
        return [f"{directory.name}: not a directory"]
    try:
        body = read_seal(directory)
        found = set(_list_files(directory)) - {SEAL_NAME}
        faults = [
            f"{name}: not listed in {SEAL_NAME}" for name in sorted(found - set(body["files"]))
        ]
        checks = _in_threads(lambda entry: _fault_of_file(directory, *entry), body["files"].items())
        return faults + [fault for fault in checks if fault]
    except ValueError as error:
        return [str(error)]
    except PermissionError as error:
        raise CheckpointError(
            f"{error.filename}: no permission to read; checkpoint {directory} can be neither "
            "trusted nor set aside. Give this user access to it"
        ) from error
    except OSError as error:
        return [f"{error.filename}: cannot be read ({error.strerror})"]


def write_durably(path: Path, content: bytes) -> None:
    """Writes a file whole or not at all, and on disk when this returns."""
    partial = path.with_name(f".{path.name}.partial")
    with open(partial, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    sync_directory(path.parent)


def sync_directory(directory: Path) -> None:
    """Makes the names in a directory durable (the files have their own fsync)."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _render(body: dict[str, Any]) -> bytes:
    """The bytes of a seal: its body as indented JSON, then the sha256 of the body alone."""
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
    if size != sealed["size"]:
        return f"{name}: {size} bytes found, {sealed['size']} expected"
    digest = _sha256(path)
    if digest != sealed["sha256"]:
        return f"{name}: sha256 {digest} found, {sealed['sha256']} expected"
    return None


def _sha256(path: Path, sync: bool = False) -> str:
    with open(path, "rb") as file:
        if sync:
            os.fsync(file.fileno())
        return hashlib.file_digest(file, "sha256").hexdigest()


def _in_threads(function: Callable[[Any], Any], items: Iterable[Any]) -> list[Any]:
    with concurrent.futures.ThreadPoolExecutor(_HASHING_THREADS) as pool:
        return list(pool.map(function, items))
