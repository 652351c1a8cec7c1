"""Files and folders that appear complete or not at all: temporary name, fsync, rename."""

from __future__ import annotations

import contextlib
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

import numpy as np

_TEMPORARY = ".tmp"


class ArrayFile:
    """A 1-D .npy file that grows by appending and appears under its name when closed."""

    def __init__(self, path: Path, dtype: np.dtype):
        self.path = path
        self.dtype = dtype
        self.length = 0
        self._file = open(f"{path}{_TEMPORARY}", "wb")  # noqa: SIM115 (closed by close)
        self._file.write(self._header())

    def append(self, values: np.ndarray) -> None:
        """Appends a 1-D array of the file's dtype."""
        self._file.write(np.ascontiguousarray(values, self.dtype).data)
        self.length += len(values)

    def close(self) -> None:
        """Completes the header, forces the data to disk and gives the file its name."""
        self._file.seek(0)
        self._file.write(self._header())
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        os.replace(self._file.name, self.path)

    def discard(self) -> None:
        """Discards the file."""
        with contextlib.suppress(OSError):  # a full disk may have no space for the buffer
            self._file.close()
        Path(self._file.name).unlink(missing_ok=True)

    def _header(self) -> bytes:
        """NumPy's version 1.0 header, always padded to 128 bytes."""
        descr = np.lib.format.dtype_to_descr(self.dtype.newbyteorder("<"))
        text = f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': ({self.length},), }}"
        return b"\x93NUMPY\x01\x00" + (118).to_bytes(2, "little") + text.ljust(117).encode() + b"\n"


@contextlib.contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Yields an empty folder beside `path`, which becomes `path` if the block ends well.

    Raises:
        FileExistsError: `path` exists and is not an empty folder, or is the current folder, which
            cannot be replaced.
    """
    path = path.resolve()
    if path.exists() and path.samefile("."):
        raise FileExistsError(f"{path}: is the folder that the command runs in; name a new folder")
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise FileExistsError(f"{path}: exists already; name a new folder")
    temporary = path.with_name(f".{path.name}{_TEMPORARY}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        for folder, _, names in os.walk(temporary):
            for name in names:
                sync(Path(folder) / name)
            sync(Path(folder))
        os.replace(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    sync(path.parent)


def write_file(path: Path, content: bytes | memoryview) -> None:
    """Writes a file completely or not at all, and forces it and its name to disk.

    Until then it has a unique hidden name, so several processes may write the same file.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}{_TEMPORARY}")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)  # a full disk has no space for it
    sync(path.parent)


def sync(path: Path) -> None:
    """Forces a file, or the names in a folder, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
