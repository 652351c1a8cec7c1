"""Stores of any size whose tokens take no room: files with holes, read as zeros.

Sentences and documents have the same length throughout. Their offsets, and the row index that a
reader builds, are real: for 300 GB of tokens 15 GB are written.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from bertjax.data.store.store import FORMAT, FORMAT_VERSION, MANIFEST
from bertjax.data.tokenizers.tokenizer import WordPieceTokenizer
from bertjax.storage.atomic_files import ArrayFile

VOCAB_SIZE = 70_000  # so that a token has four bytes
SENTENCE_TOKENS = 63  # two fill a row of 128
DOCUMENT_SENTENCES = 20
_SHARD_DOCUMENTS = 2**26 // (SENTENCE_TOKENS * DOCUMENT_SENTENCES)
_PIECE = 2**22  # elements written at a time


def make_store(folder: Path, token_bytes: int, *, holes: bool) -> None:
    """Writes a store of about so many bytes of tokens; `holes` = False writes them all.

    Raises:
      OSError: the disk has no room for what is written.
    """
    documents = token_bytes // 4 // (SENTENCE_TOKENS * DOCUMENT_SENTENCES)
    sentences = documents * DOCUMENT_SENTENCES
    written = sentences * (8 + 4) + (0 if holes else token_bytes)  # a row has two sentences
    free = shutil.disk_usage(folder.parent).free
    if free < 1.2 * written:
        raise OSError(f"{folder}: {written / 1e9:.0f} GB are written, {free / 1e9:.0f} are free")
    pieces = [f"##p{i}" if i % 4 == 0 else f"p{i}" for i in range(5, VOCAB_SIZE)]
    tokenizer = WordPieceTokenizer(
        ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *pieces], lower_case=True
    )
    tokenizer.save(folder / "tokenizer")
    shards = []
    for split, count in (("train", documents), ("heldout", 0)):
        (folder / split).mkdir()
        write_multiples(folder / split / "documents.npy", count + 1, DOCUMENT_SENTENCES)
        write_multiples(
            folder / split / "sentences.npy", count * DOCUMENT_SENTENCES + 1, SENTENCE_TOKENS
        )
        unigrams = ArrayFile(folder / split / "unigrams.npy", np.dtype(np.int64))
        unigrams.append(np.zeros(VOCAB_SIZE))
        unigrams.close()
    for number, first in enumerate(range(0, documents, _SHARD_DOCUMENTS)):
        tokens = min(_SHARD_DOCUMENTS, documents - first) * DOCUMENT_SENTENCES * SENTENCE_TOKENS
        path = folder / "train" / f"tokens-{number:05d}.npy"
        write_tokens(path, tokens, holes=holes)
        shards.append({"file": path.name, "num_tokens": tokens})
    counts = {"num_tokens": sentences * SENTENCE_TOKENS, "num_sentences": sentences}
    none = dict.fromkeys(counts, 0)
    manifest: dict[str, Any] = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "tokenizer": {
            "kind": tokenizer.kind,
            "hash": tokenizer.hash,
            "vocab_size": VOCAB_SIZE,
            "lower_case": True,
        },
        "splits": {
            "train": {**counts, "num_documents": documents, "shards": shards},
            "heldout": {**none, "num_documents": 0, "shards": []},
        },
        "files": {
            str(path.relative_to(folder)): {"bytes": path.stat().st_size, "sha256": ""}
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        },
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")


def write_multiples(path: Path, count: int, step: int) -> None:
    """0, step, 2 * step and so on, `count` numbers."""
    file = ArrayFile(path, np.dtype(np.uint64))
    for first in range(0, count, _PIECE):
        file.append(np.arange(first, min(first + _PIECE, count), dtype=np.uint64) * np.uint64(step))
    file.close()


def write_tokens(path: Path, count: int, *, holes: bool) -> None:
    """`count` tokens: a header and a hole, or numbers below the vocabulary's size."""
    header = f"{{'descr': '<u4', 'fortran_order': False, 'shape': ({count},), }}"
    with open(path, "wb") as file:
        file.write(b"\x93NUMPY\x01\x00" + (118).to_bytes(2, "little"))
        file.write(header.ljust(117).encode() + b"\n")
        if holes:
            file.truncate(128 + 4 * count)
        else:
            for first in range(0, count, _PIECE):
                ids = np.arange(first, min(first + _PIECE, count), dtype=np.uint32)
                file.write((5 + ids % (VOCAB_SIZE - 5)).data)
            file.flush()
            os.fsync(file.fileno())
