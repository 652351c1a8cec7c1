"""CoNLL files: one word per line with its tag in a column, a blank line after each sentence."""

from __future__ import annotations

import dataclasses
import itertools
import logging
import re
from collections.abc import Sequence

from bertjax.tasks.tables import ragged, read_lines
from bertjax.tasks.task import TaskError

_LOG = logging.getLogger(__name__)
DOCUMENT_START = "-DOCSTART-"
_SPACES = " \t"  # others, such as the no-break space of "1 000", are part of a word
_RUN = re.compile(f"[{_SPACES}]+")


@dataclasses.dataclass(frozen=True)
class Sentence:
    """Words, and their BIO tags if these were read."""

    words: tuple[str, ...]
    tags: tuple[str, ...]  # empty if they were not read
    scheme: str  # of the file: "IO", "IOB1" or "BIO"; "" if tags were not read
    source: str
    line: int  # of the first word


def split_words(line: str) -> list[str]:
    """Splits text at blanks and tabs."""
    line = line.strip(_SPACES)
    return _RUN.split(line) if line else []


def read_conll(
    path: str, needs_labels: bool, *, word_column: int, tag_column: int, separator: str
) -> list[Sentence]:
    """Reads a file, gzip or not. Lines that begin with -DOCSTART- are skipped.

    Args:
        path: the file.
        needs_labels: False reads no tags, and needs no column of them.
        word_column: of the words, counted from 0, or from the end: -1 is the last.
        tag_column: of the tags, counted in the same way.
        separator: "whitespace" (any number of blanks and tabs) or "tab".

    Raises:
        TaskError: a line has another number of columns than the first one, a column is not
            there, or a tag is none of O, B-TYPE and I-TYPE.
    """
    sentences: list[tuple[int, list[str], list[str]]] = []
    expected = 0
    inside = False
    for number, line in enumerate(read_lines(path), 1):
        if not line.strip(_SPACES) or line.startswith(DOCUMENT_START):
            inside = False
            continue
        columns = line.split("\t") if separator == "tab" else split_words(line)
        expected = expected or len(columns)
        if len(columns) != expected:
            raise ragged(path, number, len(columns), str(expected))
        if not inside:
            sentences.append((number, [], []))
            inside = True
        sentences[-1][1].append(_column(path, number, columns, word_column, "word_column"))
        if needs_labels:
            tag = _column(path, number, columns, tag_column, "tag_column")
            if tag != "O" and (tag[:2] not in ("B-", "I-") or len(tag) < 3):
                raise TaskError(
                    f"{path}:{number}: tag {tag!r}, expected O, B-TYPE or I-TYPE; is tag_column = "
                    f"{tag_column} the right one of {len(columns)} columns?"
                )
            sentences[-1][2].append(tag)
    if not sentences:
        raise TaskError(f"{path}: has no sentences")
    scheme = scheme_of([tags for _, _, tags in sentences]) if needs_labels else ""
    _LOG.info("%s: %d sentences, tags: %s", path, len(sentences), scheme or "not read")
    return [
        Sentence(tuple(words), tuple(to_bio(tags)), scheme, path, line)
        for line, words, tags in sentences
    ]


def _column(path: str, number: int, columns: list[str], index: int, option: str) -> str:
    if not -len(columns) <= index < len(columns):
        raise TaskError(
            f"{path}:{number}: no column {index} ({option}); there are {len(columns)}, counted "
            f"from 0: {columns}"
        )
    return columns[index]


def scheme_of(sentences: Sequence[Sequence[str]]) -> str:
    """Recognises the scheme of all tags of a file.

    IO has no B-. IOB1 has B- only if an entity directly follows another of its type. In BIO every
    entity begins with B-; a few that begin with I- are errors of the file.
    """
    begins = [
        (previous, tag)
        for tags in sentences
        for previous, tag in itertools.pairwise(["O", *tags])
        if tag.startswith("B-")
    ]
    if not begins:
        return "IO"
    return "BIO" if any(previous[2:] != tag[2:] for previous, tag in begins) else "IOB1"


def to_bio(tags: Sequence[str]) -> list[str]:
    """Tags of any of the schemes as BIO, by conlleval's rule.

    An entity begins at a B-, and at an I- after O or after another type.
    """
    return [
        f"B-{tag[2:]}" if tag.startswith("I-") and previous[2:] != tag[2:] else tag
        for previous, tag in itertools.pairwise(["O", *tags])
    ]
