"""Exact and near duplicates among the documents of a corpus."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

from bertjax.data.atomic_files import write_file
from bertjax.data.blocks import Source
from bertjax.data.corpus import Document, read_blocks, read_documents
from bertjax.data.fingerprints import Fingerprints

NEAR = 0.5  # share of a document's runs of five words that stand in the other
DUPLICATES = "duplicates.jsonl"


@dataclasses.dataclass(frozen=True)
class Entry:
    """Where a document stands."""

    source: str
    line: int
    name: str  # the "id" of its record, if it has one
    num_words: int

    @property
    def where(self) -> str:
        """Source, line and name."""
        return f"{self.source}:{self.line}" + (f" ({self.name})" if self.name else "")

    @property
    def work(self) -> str:
        """What the document is a part of: the id up to its last slash, else the source."""
        return self.name.rpartition("/")[0] or self.source


@dataclasses.dataclass(frozen=True)
class Duplicate:
    """Two documents with the same text; shares are of the runs of five words."""

    first: Entry
    second: Entry
    exact: bool
    first_share: float  # of the first that stands in the second
    second_share: float  # of the second that stands in the first


class DuplicateFinder:
    """Takes documents in the order of the corpus; `found` compares them."""

    def __init__(self) -> None:
        self.fingerprints = Fingerprints()
        self._entries: list[Entry] = []  # of the documents with fingerprints
        self._by_hash: dict[bytes, int] = {}
        self._exact: list[Duplicate] = []

    def add(self, document: Document) -> None:
        """Adds a document; the second of two that are equal is only noted."""
        text = "\n".join(document.paragraphs)
        digest = hashlib.blake2b(text.encode(), digest_size=12).digest()
        if digest in self._by_hash:
            first = self._entries[self._by_hash[digest]]
            entry = Entry(document.source, document.line, document.name, first.num_words)
            self._exact.append(Duplicate(first, entry, True, 1.0, 1.0))
            return
        self._by_hash[digest] = len(self._entries)
        num_words = self.fingerprints.add(text)
        self._entries.append(Entry(document.source, document.line, document.name, num_words))

    def found(self) -> list[Duplicate]:
        """Exact duplicates, then near ones, each in the order of the corpus."""
        sizes = self.fingerprints.sizes()
        near = []
        for a, b, shared in zip(*self.fingerprints.pairs(), strict=True):
            shares = shared / sizes[a], shared / sizes[b]
            if max(shares) >= NEAR:
                near.append(
                    Duplicate(
                        self._entries[a], self._entries[b], False, float(shares[0]), float(shares[1])
                    )
                )
        return self._exact + near


def duplicates_to_drop(duplicates: Iterable[Duplicate]) -> list[Duplicate]:
    """Which second documents to drop: most of their text stands in an earlier one that is kept.

    A later document that is much longer than what it repeats is kept: it has text of its own.
    """
    dropped: dict[tuple[str, int], Duplicate] = {}
    exact, near = [], []
    for duplicate in duplicates:
        (exact if duplicate.exact else near).append(duplicate)
    for duplicate in exact + near:  # exact copies refer to documents that near ones may drop
        first, second = duplicate.first, duplicate.second
        gone = not duplicate.exact and (first.source, first.line) in dropped
        if duplicate.second_share >= NEAR and not gone:
            dropped.setdefault((second.source, second.line), duplicate)
    return list(dropped.values())


def write_duplicates(path: Path, sources: list[Source]) -> None:
    """Reads the corpus and writes which documents to drop, one JSON object a line, if not there."""
    if path.exists():
        return
    finder = DuplicateFinder()
    for source in sources:
        for block in read_blocks(source):
            for document in read_documents(block, []):
                finder.add(document)
    lines = [
        json.dumps(
            {
                "source": d.second.source,
                "line": d.second.line,
                "id": d.second.name,
                "kind": "exact" if d.exact else "near",
                "share": round(d.second_share, 3),
                "kept": d.first.where,
            }
        )
        for d in duplicates_to_drop(finder.found())
    ]
    write_file(path, "".join(line + "\n" for line in lines).encode())


def read_dropped(path: Path) -> frozenset[tuple[str, int]]:
    """Source and line of the documents to drop; none where there is no such file."""
    if not path.exists():
        return frozenset()
    records = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    return frozenset((record["source"], record["line"]) for record in records)
