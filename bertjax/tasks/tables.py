"""Tables and text from files, gzip or not; every error names the file and the line."""

from __future__ import annotations

import csv
import gzip
import io
import json
import logging
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bertjax.config import closest
from bertjax.data.corpus.blocks import CorpusError
from bertjax.data.corpus.tfds_records import read_tfds_records
from bertjax.tasks.task import TaskError

_LOG = logging.getLogger(__name__)

FORMATS = (".tsv", ".csv", ".jsonl", ".json", ".txt")


def read_text(path: str) -> str:
    """Read a UTF-8 file. The first bytes identify gzip; a byte order mark is dropped.

    Raises:
        TaskError: the file cannot be read, is truncated, is not UTF-8 or is empty.
    """
    try:
        data = Path(path).expanduser().read_bytes()
    except IsADirectoryError as error:
        raise TaskError(
            f"{path}: cannot be read: Is a directory; name the files in it, separated by commas"
        ) from error
    except OSError as error:
        raise TaskError(
            f"{path}: cannot be read: {error.strerror} (working directory: {Path.cwd()})"
        ) from error
    if data[:2] == b"\x1f\x8b":
        try:
            data = gzip.decompress(data)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise TaskError(
                f"{path}: the gzip file is broken or cut short ({error}); fetch it again"
            ) from error
    if not data.removeprefix(b"\xef\xbb\xbf").strip():
        raise TaskError(f"{path}: is empty; fetch it again or name another file")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise TaskError(
            f"{path}:{line}: not UTF-8 (byte 0x{data[error.start]:02x}); convert the file to UTF-8"
        ) from error


def read_lines(path: str) -> Iterator[str]:
    """Lines without their ends. Only a line feed ends a line, as text may hold other separators.

    If a file was cut within its last column, the only trace is a last line without a line feed. It
    causes a warning and no error, because complete files may end like this too.
    """
    lines = [line.removesuffix("\r") for line in read_text(path).split("\n")]
    ended = not lines[-1]
    if ended:
        lines.pop()
    yield from lines
    if not ended:  # warned after all lines were found correct
        _LOG.warning(
            "%s:%d: the last line has no line end; if the file was cut short, fetch it again",
            path,
            len(lines),
        )


def read_rows(path: str) -> Iterator[tuple[int, list[str]]]:
    """The (line number, columns) of a table: usual quoting in .csv, none in other files."""
    if _suffix(path) != ".csv":
        for number, line in enumerate(read_lines(path), 1):
            if line:  # an empty line, as at the end, is not a row
                yield number, line.split("\t")
        return
    reader = csv.reader(io.StringIO(read_text(path), newline=""), strict=True)
    csv.field_size_limit(1 << 30)
    while True:
        number = reader.line_num + 1
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise TaskError(f"{path}:{number}: not CSV: {error}") from error
        if row:
            yield number, row


def read_records(path: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """The (line number, record) of a table with a header or of JSON lines.

    Raises:
        TaskError: a line has more or fewer columns than the header, or is not a JSON object.
    """
    if is_json(path):
        yield from _json_records(path)
        return
    rows = read_rows(path)
    _, header = next(rows)
    if len(set(header)) < len(header):
        raise TaskError(f"{path}:1: a column comes twice: {', '.join(header)}")
    for number, row in rows:
        if len(row) != len(header):
            raise ragged(path, number, len(row), str(len(header)))
        yield number, dict(zip(header, row, strict=True))


def read_tfds(source: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """The records of `tfds:NAME/CONFIG:SPLIT`, numbered from 1.

    Raises:
        TaskError: TFDS cannot open it.
    """
    try:
        yield from enumerate(read_tfds_records(source), 1)
    except CorpusError as error:
        raise TaskError(str(error)) from error


def is_json(path: str) -> bool:
    """Whether a file has JSON lines, by its name."""
    return _suffix(path) in (".jsonl", ".json")


def _json_records(path: str) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(read_lines(path), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise TaskError(
                f"{path}:{number}: not JSON ({error}); expected one object a line"
            ) from error
        if not isinstance(record, dict):
            raise TaskError(
                f"{path}:{number}: found {type(record).__name__}, expected a JSON object a line"
            )
        yield number, record


def ragged(path: str, number: int, found: int, expected: str) -> TaskError:
    """The error of a line with too many or too few columns."""
    return TaskError(
        f"{path}:{number}: {found} columns found, {expected} expected; the line is cut short, "
        "joined with another or separated otherwise"
    )


def take_column(path: str, number: int, record: Mapping[str, Any], column: str) -> Any:
    """Return one column of a record.

    Raises:
        TaskError: there is no such column; names the closest one and all columns.
    """
    if column not in record:
        advice = closest(column, record)
        there = "" if advice.startswith("choose") else f" (there are {', '.join(record)})"
        raise TaskError(f"{path}:{number}: no column {column!r}; {advice}{there}")
    return record[column]


def _suffix(path: str) -> str:
    """The format of a file by its name, ignoring ".gz".

    Raises:
        TaskError: the name has no known ending.
    """
    suffix = Path(path.removesuffix(".gz")).suffix.lower()
    if suffix not in FORMATS:
        raise TaskError(
            f"{path}: expected a name that ends in {', '.join(FORMATS)} (or these with .gz); "
            ".tsv and .txt are separated by tabs and quote nothing"
        )
    return suffix
