"""Fingerprints of documents, to find documents with the same text in another edition.

A document becomes the set of hashes of its runs of five words. Hashes below a limit are kept
(FracMinHash: Irber et al. 2022, doi:10.1101/2022.01.11.475838), which estimates containment.
Sketches of a fixed size estimate the Jaccard similarity, which is small if a chapter is half of
another's text. The limit is halved whenever there are too many hashes, so memory is bounded, and
the result depends on the documents only.
"""

from __future__ import annotations

import hashlib
import re

import numpy as np

from bertjax.data.counter_rng import mix64

RUN = 5  # words
MAX_HASHES = 2**22  # over all documents; about four million words have fewer
MIN_SHARED = 4  # hashes; fewer can be chance if few hashes of a document are kept
_NEIGHBOURS = 8  # documents with the same hash that are compared with each other, in their order
_MAX_WORDS = 2**20  # remembered with their hashes
_CHARACTER = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"  # scripts without spaces: one word each
_WORD = re.compile(f"[{_CHARACTER}]|[^\\W_{_CHARACTER}]+")
_POWERS = [np.uint64(pow(0x9E3779B97F4A7C15, k + 1, 2**64)) for k in range(RUN)]


class Fingerprints:
    """Collects documents, numbered from 0 in order, and finds pairs that share text."""

    def __init__(self, max_hashes: int = MAX_HASHES):
        self.limit = 2**64 - 1  # hashes up to it are kept
        self._max_hashes = max_hashes
        self._words: dict[str, int] = {}
        self._hashes: list[np.ndarray] = []
        self._num_hashes = 0

    @property
    def share(self) -> float:
        """Share of all hashes that is kept."""
        return self.limit / 2**64

    def add(self, text: str) -> None:
        """Adds a document."""
        words = _WORD.findall(text.lower())
        if len(self._words) > _MAX_WORDS:
            self._words.clear()
        known = self._words
        for word in set(words).difference(known):
            digest = hashlib.blake2b(word.encode("utf-8", "replace"), digest_size=8).digest()
            known[word] = int.from_bytes(digest, "little")
        self.add_values(np.array([known[word] for word in words], np.uint64))

    def add_values(self, values: np.ndarray) -> None:
        """Adds a document given as uint64 [n], one well-mixed number per word."""
        count = max(0, len(values) - RUN + 1)
        hashes = np.zeros(count, np.uint64)
        for k, power in enumerate(_POWERS):
            hashes += values[k : k + count] * power
        hashes = np.unique(mix64(hashes))
        hashes = hashes[hashes <= np.uint64(self.limit)]
        self._hashes.append(hashes)
        self._num_hashes += len(hashes)
        while self._num_hashes > self._max_hashes:
            self.limit //= 2
            self._hashes = [kept[kept <= np.uint64(self.limit)].copy() for kept in self._hashes]
            self._num_hashes = sum(map(len, self._hashes))

    def sizes(self) -> np.ndarray:
        """Hashes kept of each document, int64 [num_documents]."""
        return np.array([len(hashes) for hashes in self._hashes], np.int64)

    def pairs(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Pairs of documents that share MIN_SHARED hashes or more.

        If many documents share a hash, each is compared with the first and with the next few.

        Returns:
            first, second, shared: int64 [num_pairs], first < second, sorted.
        """
        num_documents = len(self._hashes)
        if not self._num_hashes:
            return (np.zeros(0, np.int64),) * 3
        documents = np.repeat(np.arange(num_documents), self.sizes())
        hashes = np.concatenate(self._hashes)
        order = np.argsort(hashes, kind="stable")
        hashes, documents = hashes[order], documents[order]
        begins = np.flatnonzero(np.r_[True, hashes[1:] != hashes[:-1]])
        starts = np.repeat(begins, np.diff(np.r_[begins, len(hashes)]))
        keys, counts = [], []
        for distance in range(1, _NEIGHBOURS + 1):
            same = np.flatnonzero(hashes[distance:] == hashes[:-distance])
            key, count = np.unique(
                documents[same] * num_documents + documents[same + distance], return_counts=True
            )
            keys.append(key)
            counts.append(count)
        far = np.flatnonzero(np.arange(len(hashes)) - starts > _NEIGHBOURS)
        key, count = np.unique(
            documents[starts[far]] * num_documents + documents[far], return_counts=True
        )
        all_keys, places = np.unique(np.concatenate([*keys, key]), return_inverse=True)
        shared = np.bincount(places, np.concatenate([*counts, count]), len(all_keys))
        kept = shared >= MIN_SHARED
        first, second = np.divmod(all_keys[kept], num_documents)
        return first, second, shared[kept].astype(np.int64)
