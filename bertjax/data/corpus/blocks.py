"""Blocks, about 1 MiB of undecoded text of whole documents each, and the problems of an input.

Cutting a file into blocks only looks for line ends. So one process can feed many others, and its
memory is bounded for any content of the file.
"""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import io
import zlib
from collections.abc import Iterator
from typing import Any

from bertjax.errors import BertjaxError
from bertjax.storage.bucket import BucketPath, as_path

BLOCK_BYTES = 2**20  # text in a block, unless one document is longer
MAX_LINE_BYTES = 10 * 2**20  # a longer line is left out
MAX_DOCUMENT_BYTES = 10 * 2**20  # a longer plain-text document is cut at a line end

# First bytes of files that are neither text nor gzip.
_FORMATS = {
    b"BZh": "bzip2",
    b"\xfd7zXZ\x00": "xz",
    b"\x28\xb5\x2f\xfd": "Zstandard",
    b"PK\x03\x04": "zip",
    b"PAR1": "Parquet",
}
FORMAT_BYTES = max(map(len, _FORMATS))

# Possible problems of the input, and what is done about each.
PROBLEMS = {
    "empty_file": "nothing to read in the file",
    "bad_gzip": "the rest of the file cannot be decompressed",
    "not_utf8": "line left out",
    "long_line": f"line of more than {MAX_LINE_BYTES >> 20} MiB left out",
    "long_document": f"document of more than {MAX_DOCUMENT_BYTES >> 20} MiB cut in two",
    "invalid_json": "line left out",
    "no_text": 'line without a string "text" left out',
    "nul": "NUL characters removed",
    "surrogate": "lone surrogates, which no encoding can hold, removed",
    "empty_document": "document without a token left out",
    "one_sentence": "document of one sentence kept; it makes no pair by itself",
}


class CorpusError(BertjaxError, ValueError):
    """An input that cannot be read at all; the message names it."""


@dataclasses.dataclass(frozen=True)
class Problem:
    """One finding about the input."""

    kind: str  # a key of PROBLEMS
    source: str  # file name, or the name of another source
    line: int  # counted from 1; the example or document where there are no lines
    detail: str = ""

    @property
    def where(self) -> str:
        """File, line and detail."""
        return f"{self.source}:{self.line}" + (f": {self.detail}" if self.detail else "")


@dataclasses.dataclass(frozen=True)
class Source:
    """One thing to read."""

    name: str  # the path as the pattern gave it, or "tfds:..." or "embedded:..."
    num_bytes: int  # on disk (compressed, if the file is); for the share of work that is done
    data_dir: str | None = None  # of a TFDS data set


@dataclasses.dataclass(frozen=True)
class Block:
    """Whole documents of one source, undecoded."""

    source: str
    first_line: int
    json_lines: bool
    data: bytes
    position: int  # bytes of the source read so far, in units of Source.num_bytes
    problems: tuple[Problem, ...] = ()  # those found on the way here
    sha256: str = ""  # of the source's content; in its last block only


class _HashedFile(io.RawIOBase):
    """A file or object that counts and hashes what is read from it."""

    def __init__(self, name: str):
        path = as_path(name)
        self._file: io.RawIOBase
        try:
            if isinstance(path, BucketPath):
                self._file = path.open()
            else:
                self._file = open(path, "rb", buffering=0)  # noqa: SIM115 (closed by close)
        except OSError as error:
            raise CorpusError(f"{path}: cannot be opened: {error.strerror}") from error
        self.position = 0
        self.sha256 = hashlib.sha256()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = self._file.readinto(buffer) or 0
        self.sha256.update(memoryview(buffer)[:count])
        self.position += count
        return count

    def close(self) -> None:
        self._file.close()
        super().close()


def check_format(name: str, first: bytes) -> None:
    """Refuses a file that is neither text nor gzip, by its first `FORMAT_BYTES`.

    Raises:
        CorpusError: the file has another compressed or packed format.
    """
    for begin, kind in _FORMATS.items():
        if first.startswith(begin):
            raise CorpusError(
                f"{name}: is {kind}; expected plain text or JSON lines, as they are or with gzip: "
                "unpack it first"
            )


def read_file_blocks(source: Source) -> Iterator[Block]:
    """Cuts a file into blocks: plain text or JSON lines, by its name, with or without gzip."""
    name = source.name
    json_lines = name.lower().removesuffix(".gz").endswith((".jsonl", ".json", ".ndjson"))
    with _HashedFile(name) as raw, io.BufferedReader(raw, 2**18) as buffered:
        try:
            first = buffered.peek(FORMAT_BYTES)[:FORMAT_BYTES]
        except OSError as error:
            raise CorpusError(f"{name}: cannot be read: {error}") from error
        check_format(name, first)
        compressed = name.lower().endswith(".gz") or first.startswith(b"\x1f\x8b")
        stream: io.BufferedIOBase = gzip.GzipFile(fileobj=buffered) if compressed else buffered
        problems: list[Problem] = []
        buffer = b""
        searched = 0  # bytes of the buffer that are known to have no blank line
        line = 1  # where the buffer begins
        for lines in _whole_lines(stream, name, problems):
            buffer += lines
            if len(buffer) < BLOCK_BYTES:
                continue
            cut = len(buffer) if json_lines else _last_blank_line(buffer, searched)
            searched = len(buffer)
            if cut == 0 and len(buffer) > MAX_DOCUMENT_BYTES:
                cut = len(buffer)
                problems.append(Problem("long_document", name, line + buffer.count(b"\n")))
            if cut:
                data, buffer, searched = buffer[:cut], buffer[cut:], 0
                yield Block(name, line, json_lines, data, raw.position, tuple(problems))
                problems.clear()
                line += data.count(b"\n")
        if line == 1 and not buffer.strip() and not problems:
            problems.append(Problem("empty_file", name, 1))
        while buffered.read(2**18):  # the rest of a broken gzip file
            pass
        end = raw.position, tuple(problems), raw.sha256.hexdigest()
        yield Block(name, line, json_lines, buffer, *end)


def _whole_lines(stream: io.BufferedIOBase, name: str, problems: list[Problem]) -> Iterator[bytes]:
    """The content in pieces of whole lines; a line that is too long becomes an empty one."""
    line = 1  # of the tail
    tail = b""  # begun, not ended
    dropped = 0  # bytes of a line that is already too long
    while True:
        try:
            piece, damage = _read_piece(stream)
        except OSError as error:
            raise CorpusError(f"{name}: cannot be read on at line {line}: {error}") from error
        if damage:  # lines before it that are complete are intact
            last = piece.rfind(b"\n") + 1
            if last and not dropped:
                yield tail + piece[:last]
                line += piece.count(b"\n")
            problems.append(Problem("bad_gzip", name, line, str(damage)))
            return
        if not piece:
            break
        end = piece.find(b"\n")
        if end < 0:
            tail += piece
            if dropped or len(tail) > MAX_LINE_BYTES:
                dropped += len(tail)
                tail = b""
            continue
        if dropped or len(tail) + end > MAX_LINE_BYTES:
            size = dropped + len(tail) + end
            problems.append(Problem("long_line", name, line, f"{size} bytes"))
            tail, dropped, piece = b"", 0, piece[end:]
        last = piece.rfind(b"\n") + 1
        yield tail + piece[:last]
        line += piece.count(b"\n")
        tail = piece[last:]
    if dropped:
        problems.append(Problem("long_line", name, line, f"{dropped + len(tail)} bytes"))
    elif tail:
        yield tail + b"\n"


def _read_piece(stream: io.BufferedIOBase) -> tuple[bytes, Exception | None]:
    """The next BLOCK_BYTES (fewer at the end), and the damage of a gzip file after them."""
    parts: list[bytes] = []
    missing = BLOCK_BYTES
    while missing:
        try:
            part = stream.read1(missing)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            return b"".join(parts), error
        if not part:
            break
        parts.append(part)
        missing -= len(part)
    return b"".join(parts), None


def _last_blank_line(lines: bytes, start: int) -> int:
    """Position after the last blank line at or after `start`, a line's beginning; 0 if none."""
    end = len(lines)
    while end > start:
        begin = lines.rfind(b"\n", start, end - 1) + 1 or start
        if not lines[begin:end].strip():
            return end
        end = begin
    return 0
