"""What a row looks like, and the index that says where each row of a split begins.

The anchors are fixed: walking a document from its first sentence, a row closes when its tokens fill
the room of a row or the document ends. So rows partition the sentences: row i is the sentences
[starts[i], starts[i + 1]), and the number of rows is known. The index depends only on the store and
the room, so it is built once and kept in STORE/rows/.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import logging
import os
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import cast

import numpy as np

from bertjax.config import MASKINGS
from bertjax.data.store.store import MANIFEST, Split
from bertjax.storage.atomic_files import ArrayFile

_LOG = logging.getLogger(__name__)
_BLOCK = 2**20  # sentences at a time
_REPORT_SECONDS = 30.0


@dataclasses.dataclass(frozen=True)
class RowSpec:
    """What a row looks like; lengths in tokens."""

    max_length: int = 128  # special tokens included
    max_predictions: int = 20  # masked positions at most; 0 = rows without masks
    mask_rate: float = 0.15  # share of the tokens, special tokens included, to predict
    masking: str = "token"  # "token", "whole_word" or "span"
    short_row_rate: float = 0.1  # share of rows cut to a random length
    next_sentence: bool = True  # False: one segment of consecutive sentences, as RoBERTa

    def __post_init__(self) -> None:
        for name, value, low, high in (
            ("max_length", self.max_length, 8, 2**16),
            ("max_predictions", self.max_predictions, 0, self.max_length),
            ("mask_rate", self.mask_rate, 0.0, 1.0),
            ("short_row_rate", self.short_row_rate, 0.0, 1.0),
        ):
            if not low <= value <= high:
                raise ValueError(f"{name} is {value}, expected {low} to {high}")
        if self.masking not in MASKINGS:
            raise ValueError(f'masking is "{self.masking}", expected one of {", ".join(MASKINGS)}')

    @property
    def room(self) -> int:
        """Tokens of text in a full row: what [CLS] and one or two [SEP] leave."""
        return self.max_length - (3 if self.next_sentence else 2)


def row_index(split: Split, room: int, cache: Path | None = None) -> np.ndarray:
    """Where each row begins; read from STORE/rows/, or built and stored there.

    Args:
        split: the documents.
        room: tokens that fill a row.
        cache: folder to use if the store is read-only; None = build in memory then.

    Returns:
        int64 [num_rows + 1], memory-mapped if it is on disk: the first sentence of each row,
        then num_sentences.
    """
    # The manifest names every file's checksum, so a changed store changes the name.
    manifest = hashlib.sha256((split.folder.parent / MANIFEST).read_bytes()).hexdigest()
    name = f"{split.name}-{room}-{manifest[:16]}.npy"
    own = split.folder.parent / "rows"
    folders = [own, *([cache] if cache else [])]
    for folder in folders:
        starts = _read(folder / name, split)
        if starts is not None:
            return starts
    for folder in folders:
        try:
            _write(folder / name, row_blocks(split, room))
        except OSError as error:
            _LOG.info("%s: cannot keep the row index here: %s", folder, error)
            continue
        if folder == own:  # a cache may hold the indexes of other stores
            _remove_stale(own, name, f"{split.name}-{room}-*.npy")
        return cast(np.ndarray, np.load(folder / name, mmap_mode="r"))
    return build_row_index(split, room)


def build_row_index(split: Split, room: int) -> np.ndarray:
    """The index in memory: int64 [num_rows + 1], see `row_index`."""
    return np.concatenate([*row_blocks(split, room)])


def row_blocks(split: Split, room: int) -> Iterator[np.ndarray]:
    """Walks the documents; a hundred million sentences take about ten seconds.

    For each sentence NumPy computes, block by block, where the next row begins if one begins there.
    Following these is then one step per row. The memory is that of a block.

    Yields:
        int64, parts of the index, see `row_index`; the last is num_sentences.
    """
    offsets = split.sentence_offsets.view(np.int64)
    documents = split.document_offsets.view(np.int64)
    at = 0  # first sentence of the next row
    began = reported = time.monotonic()
    for block in range(0, split.num_sentences, _BLOCK):
        stop = min(block + _BLOCK, split.num_sentences)
        # A sentence has at least one token, so `room` sentences beyond the block are enough.
        window = offsets[block : min(stop + room, split.num_sentences) + 1]
        full = block + np.searchsorted(window, window[: stop - block] + room)
        first, last = np.searchsorted(documents, (block, stop - 1), side="right")
        ends = documents[first : last + 1]
        lengths = np.diff(np.minimum(ends, stop), prepend=block)
        following = np.minimum(full, np.repeat(ends, lengths)).tolist()
        rows = []
        while at < stop:
            rows.append(at)
            at = following[at - block]
        yield np.array(rows, np.int64)
        if (now := time.monotonic()) - reported > _REPORT_SECONDS:
            reported = now
            left = (now - began) * (split.num_sentences - stop) / stop
            _LOG.info(
                "%s: row index, once for this store and length: %.0f %%, %.0f s left",
                split.folder,
                100 * stop / split.num_sentences,
                left,
            )
    yield np.array([split.num_sentences])


def _read(path: Path, split: Split) -> np.ndarray | None:
    try:
        starts = np.load(path, mmap_mode="r")
    except (OSError, ValueError, EOFError):  # no index, or one that a crash cut short
        return None
    whole = starts.dtype == np.int64 and starts.ndim == 1 and len(starts) > 1
    return starts if whole and starts[0] == 0 and starts[-1] == split.num_sentences else None


def _write(path: Path, blocks: Iterable[np.ndarray]) -> None:
    """Complete or not at all: two processes may build the same index at the same time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(".tmp", path.name, path.parent) as folder:
        file = ArrayFile(Path(folder) / path.name, np.dtype(np.int64))
        try:
            for block in blocks:
                file.append(block)
            file.close()
        except BaseException:
            file.discard()
            raise
        os.replace(file.path, path)


def _remove_stale(folder: Path, name: str, pattern: str) -> None:
    """Removes what was built before the store changed."""
    for other in folder.glob(pattern):
        if other.name != name:
            with contextlib.suppress(OSError):
                other.unlink()
