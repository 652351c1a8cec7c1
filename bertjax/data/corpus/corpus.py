"""Readers of raw text: plain text, JSON lines, gzip of either, TFDS, the embedded corpus.

Reading has two parts, so that one process can feed many: `read_blocks` cuts a source into blocks
(see `blocks`), and `read_documents` decodes the documents of one block in any process.

Nothing is dropped silently: text that cannot be used becomes a `Problem` with the file, the line
and the reason.
"""

from __future__ import annotations

import dataclasses
import functools
import glob
import hashlib
import itertools
import json
import logging
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import sentencex

from bertjax.data.corpus.blocks import (
    BLOCK_BYTES,
    FORMAT_BYTES,
    Block,
    CorpusError,
    Problem,
    Source,
    check_format,
    read_file_blocks,
)
from bertjax.data.corpus.tfds_records import open_tfds
from bertjax.data.corpus.wiki40b import wiki40b_text
from bertjax.storage.bucket import find_objects, is_bucket_path

_LOG = logging.getLogger(__name__)
_WINDOW = 20_000  # characters given to the sentence splitter at once
# sentencex 1.0 takes such a capital for the initial of a name and cuts inside the bytes of the
# space, which is a panic in Rust ("vitamin A\u00a0.").
_INITIAL = re.compile(r"(?<!\S)[A-Z]\s*[^\S\x00-\x7f]\.(?!\.)")
_SPACES = {c: " " for c in range(0x80, 0x3001) if chr(c).isspace()}


@dataclasses.dataclass(frozen=True)
class Document:
    """A document: non-empty paragraphs, none with a line end in it."""

    source: str
    line: int  # where it begins
    paragraphs: list[str]
    name: str = ""  # the "id" of its record, if that is a string


def find_sources(patterns: str, data_dir: str | None = None) -> list[Source]:
    """Resolves a comma-separated list of inputs.

    Files come in the order of the patterns and sorted within one; a file matched twice is read
    once.

    Args:
        patterns: globs, also of gs://; `tfds:NAME/CONFIG:SPLIT`; `embedded:python`.
        data_dir: where tensorflow-datasets looks; None = its default.

    Raises:
        CorpusError: a pattern matches nothing, or a match is not a readable file.
    """
    sources: dict[str, Source] = {}
    for pattern in filter(None, (part.strip() for part in patterns.split(","))):
        if pattern.startswith("tfds:"):
            size = int(_open_tfds(pattern, data_dir)[1].num_bytes)
            sources.setdefault(pattern, Source(pattern, size, data_dir))
            continue
        if pattern == "embedded:python":
            size = sum(len(text.encode()) for text in _embedded_texts())
            sources.setdefault(pattern, Source(pattern, size))
            continue
        if is_bucket_path(pattern):
            sources |= {name: Source(name, size) for name, size in _find_objects(pattern).items()}
            continue
        path = os.path.expanduser(pattern)
        if os.path.exists(path):  # also one whose name has brackets
            names = [path]
        else:
            names = sorted(filter(os.path.isfile, glob.glob(path, recursive=True)))
        if not names:
            raise CorpusError(
                f"--input={pattern} matches no file (working directory: {Path.cwd()}); "
                "quote the pattern if the shell changes it"
            )
        for name in names:
            if not os.path.isfile(name):
                raise CorpusError(
                    f"{name}: is no regular file; name files, for example {name}/*.txt"
                )
            if not os.access(name, os.R_OK):
                raise CorpusError(f"{name}: may not be read (permission denied)")
            with open(name, "rb") as file:
                check_format(name, file.read(FORMAT_BYTES))
            sources.setdefault(os.path.realpath(name), Source(name, os.path.getsize(name)))
    if not sources:
        raise CorpusError("--input names nothing to read")
    return list(sources.values())


def _find_objects(pattern: str) -> dict[str, int]:
    try:
        found = find_objects(pattern)
    except OSError as error:
        raise CorpusError(f"--input={pattern}: cannot be listed: {error}") from error
    if not found:
        raise CorpusError(f"--input={pattern} matches no object")
    return found


def read_blocks(source: Source) -> Iterator[Block]:
    """Cuts a source into blocks; at least one, and only the last has `sha256`."""
    if source.name.startswith("tfds:"):
        return _record_blocks(source, _tfds_texts(source))
    if source.name == "embedded:python":
        return _record_blocks(source, _embedded_texts())
    return read_file_blocks(source)


def read_documents(block: Block, problems: list[Problem]) -> Iterator[Document]:
    """Decodes the documents of a block, in order; appends problems to `problems`."""
    parse = _parse_json_lines if block.json_lines else _parse_text
    for line, text, name in parse(block, problems):
        paragraphs = list(filter(None, map(str.strip, text.split("\n"))))
        if paragraphs:
            yield Document(block.source, line, paragraphs, name)
        else:
            problems.append(Problem("empty_document", block.source, line))


def split_sentences(language: str, text: str) -> list[str]:
    """Splits a paragraph into sentences with `sentencex`.

    The splitter's time can grow with the square of the length (many open quotation marks), so a
    long paragraph is given to it in windows; the last sentence of a window begins the next one.

    Args:
        language: ISO 639 code; English rules where sentencex has none for it.
        text: one paragraph.
    """
    if len(text) <= _WINDOW:
        found = _segment(language, text)
    else:
        found = []
        start = 0
        while start < len(text):
            window = text[start : start + _WINDOW]
            pieces = _segment(language, window)
            if start + _WINDOW < len(text):
                if len(pieces) > 1:
                    pieces.pop()
                else:  # one sentence fills the window: cut it between two words if it has any
                    space = window.rfind(" ")
                    pieces = [window[:space] if space > 0 else window]
            found += pieces
            start += sum(map(len, pieces))
    return list(filter(None, map(str.strip, found)))


def _segment(language: str, text: str) -> list[str]:
    """Sentences whose concatenation is the text."""
    given = _INITIAL.sub(lambda match: match[0].translate(_SPACES), text)
    try:
        pieces: list[str] = sentencex.segment(language, given)
    except BaseException as error:  # a panic of Rust is not an Exception
        if type(error).__name__ != "PanicException":
            raise
        _LOG.warning("the sentence splitter failed on %r: kept as one sentence", text[:60])
        return [text]
    if given is text:
        return pieces
    ends = list(itertools.accumulate(map(len, pieces)))
    return [text[end - len(piece) : end] for piece, end in zip(pieces, ends, strict=True)]


# --- text


def _decode(line: bytes, number: int, block: Block, problems: list[Problem]) -> str | None:
    if number == 1:
        line = line.removeprefix(b"\xef\xbb\xbf")  # a byte order mark
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        detail = f"byte 0x{line[error.start]:02x} at {error.start}"
        if number == 1 and line[:2] in (b"\xff\xfe", b"\xfe\xff"):
            detail = "the file looks like UTF-16: convert it to UTF-8"
        problems.append(Problem("not_utf8", block.source, number, detail))
        return None


def _parse_text(block: Block, problems: list[Problem]) -> Iterator[tuple[int, str, str]]:
    begin, paragraphs = 0, list[str]()
    lines = block.data.split(b"\n")
    for number, line in enumerate([*lines, b""], block.first_line):
        text = _decode(line, number, block, problems)
        if text is None:
            continue
        text = _without_nul(text, number, block, problems)
        if text.strip():
            if not paragraphs:
                begin = number
            paragraphs.append(text)
        elif paragraphs:
            yield begin, "\n".join(paragraphs), ""
            paragraphs = []


def _parse_json_lines(block: Block, problems: list[Problem]) -> Iterator[tuple[int, str, str]]:
    for number, line in enumerate(block.data.split(b"\n"), block.first_line):
        decoded = _decode(line, number, block, problems)
        if decoded is None or not decoded.strip():
            continue
        try:
            record = json.loads(decoded)
        except (ValueError, RecursionError) as error:
            problems.append(Problem("invalid_json", block.source, number, str(error)))
            continue
        text = record.get("text") if isinstance(record, dict) else None
        if not isinstance(text, str):
            found = sorted(record) if isinstance(record, dict) else type(record).__name__
            problems.append(Problem("no_text", block.source, number, f"found {str(found)[:100]}"))
            continue
        if not text.isascii():
            # JSON can escape half a surrogate pair, which no later step could encode.
            encodable = text.encode("utf-8", "ignore").decode()
            if encodable != text:
                problems.append(Problem("surrogate", block.source, number))
                text = encodable
        name = record.get("id")
        text = _without_nul(text, number, block, problems)
        yield number, text, name if isinstance(name, str) else ""


def _without_nul(text: str, number: int, block: Block, problems: list[Problem]) -> str:
    if "\0" not in text:
        return text
    problems.append(Problem("nul", block.source, number, f"{text.count(chr(0))} of them"))
    return text.replace("\0", "")


# --- sources of records ------------------------------------------------------------------------


def _record_blocks(source: Source, texts: Iterable[str]) -> Iterator[Block]:
    """Blocks of JSON lines made from texts, one line per record."""
    sha256 = hashlib.sha256()
    first, number, size, position = 1, 0, 0, 0
    lines: list[bytes] = []
    for number, text in enumerate(texts, 1):
        line = json.dumps({"text": text}).encode() + b"\n"
        sha256.update(line)
        lines.append(line)
        size += len(line)
        position += len(text.encode(errors="ignore"))
        if size >= BLOCK_BYTES:
            yield Block(source.name, first, True, b"".join(lines), position)
            first, size, lines = number + 1, 0, []
    problems = () if number else (Problem("empty_file", source.name, 1),)
    data = b"".join(lines)
    yield Block(source.name, first, True, data, source.num_bytes, problems, sha256.hexdigest())


def _open_tfds(name: str, data_dir: str | None) -> tuple[Any, Any]:
    """The builder of a TFDS data set of texts and the information about its split."""
    import tensorflow_datasets as tfds

    builder, information = open_tfds(name, data_dir)
    features = builder.info.features
    if not isinstance(features, tfds.features.FeaturesDict) or "text" not in features:
        raise CorpusError(f'{name}: has no feature "text", only {features}')
    return builder, information


def _tfds_texts(source: Source) -> Iterator[str]:
    import tensorflow_datasets as tfds

    builder, _ = _open_tfds(source.name, source.data_dir)
    split = source.name.rpartition(":")[2]
    config = tfds.ReadConfig(interleave_cycle_length=1)  # one file after the other
    examples = builder.as_dataset(split, shuffle_files=False, read_config=config)
    for example in tfds.as_numpy(examples):
        # A bad byte becomes a lone surrogate, which the parser reports.
        text = example["text"].decode(errors="surrogateescape")
        yield wiki40b_text(text) if builder.name == "wiki40b" else text


@functools.cache  # 2 MB that take seconds to collect and are read several times
def _embedded_texts() -> list[str]:
    from bertjax.data.corpus.embedded import embedded_documents

    return list(embedded_documents())
