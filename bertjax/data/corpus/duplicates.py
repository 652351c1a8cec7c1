"""Exact and near duplicates among the documents of a corpus."""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import json
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from bertjax.data.corpus.blocks import Source
from bertjax.data.corpus.corpus import Document, read_blocks, read_documents
from bertjax.data.corpus.fingerprints import Fingerprints
from bertjax.storage.atomic_files import write_file

NEAR = 0.5  # share of a document's runs of five words that are in the other
DUPLICATES = "duplicates.jsonl"


@dataclasses.dataclass(frozen=True)
class Entry:
    """The place of a document in the corpus."""

    source: str
    line: int
    name: str  # the "id" of its record, if it has one

    @property
    def where(self) -> str:
        """Source, line and name."""
        return f"{self.source}:{self.line}" + (f" ({self.name})" if self.name else "")

    @property
    def work(self) -> str:
        """The work of which it is a part: the id up to its last slash, else the source."""
        return self.name.rpartition("/")[0] or self.source


@dataclasses.dataclass(frozen=True)
class Duplicate:
    """Two documents with the same text; shares are of the runs of five words."""

    first: Entry
    second: Entry
    exact: bool
    first_share: float  # of the first that is in the second
    second_share: float  # of the second that is in the first


class DuplicateFinder:
    """Takes documents in the order of the corpus; `found` compares them."""

    def __init__(self) -> None:
        self.fingerprints = Fingerprints()
        self.totals: collections.Counter[tuple[str, str]] = collections.Counter()  # of each work
        self._entries: list[Entry] = []  # of the documents with fingerprints
        self._by_hash: dict[bytes, int] = {}
        self._exact: list[Duplicate] = []

    def add(self, document: Document) -> None:
        """Adds a document; if it equals an earlier one, only the fact is recorded."""
        text = "\n".join(document.paragraphs)
        entry = Entry(document.source, document.line, document.name)
        if self._is_new(entry, text.encode()):
            self.fingerprints.add(text)

    def add_ids(self, source: str, line: int, ids: np.ndarray, values: np.ndarray) -> None:
        """Adds a document of token ids [n]; `values` uint64 [n] are well-mixed numbers of them."""
        if self._is_new(Entry(source, line, ""), ids.tobytes()):
            self.fingerprints.add_values(values)

    def _is_new(self, entry: Entry, content: bytes) -> bool:
        self.totals[entry.source, entry.work] += 1
        digest = hashlib.blake2b(content, digest_size=12).digest()
        number = self._by_hash.setdefault(digest, len(self._entries))
        if number < len(self._entries):
            self._exact.append(Duplicate(self._entries[number], entry, True, 1.0, 1.0))
            return False
        self._entries.append(entry)
        return True

    def found(self) -> list[Duplicate]:
        """Exact duplicates, then near ones, each in the order of the corpus."""
        sizes = self.fingerprints.sizes()
        near = []
        for a, b, shared in zip(*self.fingerprints.pairs(), strict=True):
            shares = shared / sizes[a], shared / sizes[b]
            if max(shares) >= NEAR:
                near.append(
                    Duplicate(
                        self._entries[a],
                        self._entries[b],
                        False,
                        float(shares[0]),
                        float(shares[1]),
                    )
                )
        return self._exact + near


def duplicates_to_drop(duplicates: Iterable[Duplicate]) -> list[Duplicate]:
    """Which documents to drop: most of their text is in an earlier one that is kept.

    A later document that is much longer than the part it repeats is kept.
    """
    dropped: dict[tuple[str, int], Duplicate] = {}
    for duplicate in sorted(
        duplicates, key=lambda d: not d.exact
    ):  # exact copies refer to documents that near ones may drop
        first, second = duplicate.first, duplicate.second
        gone = not duplicate.exact and (first.source, first.line) in dropped
        if duplicate.second_share >= NEAR and not gone:
            dropped.setdefault((second.source, second.line), duplicate)
    return list(dropped.values())


def write_duplicates(path: Path, sources: list[Source]) -> None:
    """Writes which documents to drop, one JSON object per line, unless the file exists."""
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
    """Source and line of the documents to drop; none if there is no such file."""
    if not path.exists():
        return frozenset()
    with path.open(encoding="utf-8") as lines:
        records = map(json.loads, lines)
        return frozenset((sys.intern(record["source"]), record["line"]) for record in records)
