"""Writes a token store part by part, so that a killed writer loses at most one part.

While it is written, STORE/unfinished/ holds, for each part, the lengths of its sentences and
documents and, written last, part-00000.json with checksums and the caller's state. A part without
that file does not count. `finish` streams the lengths into offsets, writes the manifest and removes
STORE/unfinished/. Every file appears complete or not at all: temporary name, fsync, rename.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bertjax.data.store.store import (
    FORMAT,
    FORMAT_VERSION,
    MANIFEST,
    SPLITS,
    Store,
    StoreError,
    file_sha256,
    open_store,
)
from bertjax.data.tokenizers.vocabulary import token_dtype
from bertjax.storage.atomic_files import ArrayFile, sync, write_file

if TYPE_CHECKING:
    from bertjax.data.tokenizers.tokenizer import Tokenizer

_LOG = logging.getLogger(__name__)
UNFINISHED = "unfinished"
SHARD_TOKENS = 2**26  # a part is closed when a split has this many: 128 MiB of uint16
_CHUNK = 2**20  # elements at a time when files are joined or counted


class StoreWriter:
    """Appends documents to a store; continues after the last whole part of an unfinished one."""

    def __init__(self, path: str | os.PathLike[str], vocab_size: int):
        """Opens the folder, removes what a killed writer left behind and checks its parts.

        Raises:
            OSError: the folder cannot be written.
            StoreError: there is a finished store in it already.
        """
        self.path = Path(path)
        if (self.path / MANIFEST).exists():
            raise StoreError(f"{self.path / MANIFEST}: a finished store is there already")
        self.dtype = token_dtype(vocab_size)
        self.vocab_size = vocab_size
        self.work = self.path / UNFINISHED
        for folder in (self.work, *(self.path / name for name in SPLITS)):
            folder.mkdir(parents=True, exist_ok=True)
        self.parts: list[dict[str, Any]] = []
        while (part := self._read_part(len(self.parts))) is not None:
            self.parts.append(part)
        self._remove_leftovers()
        self._open: dict[tuple[str, str], ArrayFile] = {}

    @property
    def state(self) -> dict[str, Any]:
        """What the caller passed to the last `commit`; {} before the first."""
        return self.parts[-1]["state"] if self.parts else {}

    @property
    def part_tokens(self) -> int:
        """Tokens in the open part, of the split that has more."""
        return max(
            (file.length for (_, kind), file in self._open.items() if kind == "tokens"), default=0
        )

    def num_documents(self, split: str) -> int:
        """Documents of a split so far, the open part included."""
        lengths: list[int] = [
            entry["length"]
            for part in self.parts
            for entry in part["files"].values()
            if entry["split"] == split and entry["kind"] == "documents"
        ]
        file = self._open.get((split, "documents"))
        return sum(lengths) + (file.length if file else 0)

    def append(
        self,
        split: str,
        tokens: np.ndarray,
        sentence_lengths: np.ndarray,
        document_lengths: np.ndarray,
    ) -> None:
        """Appends whole documents to the open part.

        Args:
            split: "train" or "heldout".
            tokens: ids of all of them, one after the other.
            sentence_lengths: tokens of each sentence, each at least 1.
            document_lengths: sentences of each document, each at least 1.

        Raises:
            ValueError: the lengths do not add up, one is 0, or an id is not in the vocabulary.
        """
        if len(document_lengths) == 0 and len(sentence_lengths) == 0 and len(tokens) == 0:
            return
        for what, lengths, total in (
            ("sentences", sentence_lengths, len(tokens)),
            ("documents", document_lengths, len(sentence_lengths)),
        ):
            if int(np.sum(lengths, dtype=np.int64)) != total or np.min(lengths, initial=1) < 1:
                raise ValueError(
                    f"lengths of {what} must be at least 1 and add up to {total}, "
                    f"not {np.sum(lengths)}"
                )
        if int(np.max(tokens)) >= self.vocab_size or int(np.min(tokens)) < 0:
            raise ValueError(
                f"ids run from {np.min(tokens)} to {np.max(tokens)}, expected 0 to "
                f"{self.vocab_size - 1}"
            )
        self._array(split, "tokens", self.dtype).append(tokens)
        self._array(split, "sentences", np.dtype(np.uint32)).append(sentence_lengths)
        self._array(split, "documents", np.dtype(np.uint32)).append(document_lengths)

    def commit(self, state: dict[str, Any]) -> None:
        """Closes the open part. From now on it survives a kill, with `state` (JSON)."""
        number = len(self.parts)
        part: dict[str, Any] = {"state": state, "files": {}}
        for split in SPLITS:
            for kind in ("tokens", "sentences", "documents"):
                file = self._open.pop((split, kind), None)
                if file is None:
                    continue
                file.close()
                part["files"][str(file.path.relative_to(self.path))] = {
                    "split": split,
                    "kind": kind,
                    "length": file.length,
                    "bytes": file.path.stat().st_size,
                    "sha256": file_sha256(file.path),
                }
        for split in SPLITS:
            sync(self.path / split)
        write_file(self.work / f"part-{number:05d}.json", json.dumps(part).encode())
        self.parts.append(part)

    def close(self) -> None:
        """Discards the open part, if there is one."""
        for file in self._open.values():
            file.discard()
        self._open.clear()

    def finish(self, tokenizer: Tokenizer, details: dict[str, Any]) -> None:
        """Joins the parts, writes the manifest and removes the files for a restart.

        Args:
            tokenizer: already saved in STORE/tokenizer.
            details: further entries of the manifest.
        """
        assert not self._open, "commit the last part first"
        files: dict[str, dict[str, Any]] = {}
        splits = {split: self._finish_split(split, files) for split in SPLITS}
        for file in sorted((self.path / "tokenizer").rglob("*")):
            if file.is_file():
                sync(file)
                files[str(file.relative_to(self.path))] = _size_and_sum(file)
        manifest = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "tokenizer": {
                "kind": tokenizer.kind,
                "hash": tokenizer.hash,
                "vocab_size": tokenizer.vocab_size,
                "lower_case": tokenizer.lower_case,
            },
            "splits": splits,
            **details,
            "files": dict(sorted(files.items())),
        }
        text = json.dumps(manifest, indent=1, ensure_ascii=False)
        write_file(self.path / MANIFEST, text.encode() + b"\n")
        shutil.rmtree(self.work, ignore_errors=True)  # on NFS the open lock stays until it closes

    def _array(self, split: str, kind: str, dtype: np.dtype) -> ArrayFile:
        if (split, kind) not in self._open:
            path = self._part_path(split, kind, len(self.parts))
            self._open[split, kind] = ArrayFile(path, dtype)
        return self._open[split, kind]

    def _part_path(self, split: str, kind: str, part: int) -> Path:
        if kind == "tokens":
            return self.path / split / f"tokens-{part:05d}.npy"
        return self.work / f"{split}-{kind}-{part:05d}.npy"

    def _read_part(self, number: int) -> dict[str, Any] | None:
        """A committed part, or None if it was not committed."""
        try:
            part: dict[str, Any] = json.loads((self.work / f"part-{number:05d}.json").read_bytes())
            for name, expected in part["files"].items():
                if file_sha256(self.path / name) != expected["sha256"]:
                    _LOG.warning("%s: differs from its checksum; written again", self.path / name)
                    return None
        except FileNotFoundError:
            return None
        return part

    def _remove_leftovers(self) -> None:
        kept = {self.path / name for part in self.parts for name in part["files"]}
        kept |= {self.work / f"part-{number:05d}.json" for number in range(len(self.parts))}
        for folder in (self.work, *(self.path / name for name in SPLITS)):
            for pattern in ("*.npy*", "part-*"):
                for file in set(folder.glob(pattern)) - kept:
                    file.unlink()

    def _finish_split(self, split: str, files: dict[str, dict[str, Any]]) -> dict[str, Any]:
        folder = self.path / split
        names: dict[str, list[str]] = {"tokens": [], "sentences": [], "documents": []}
        shards = []
        for part in self.parts:
            for name, entry in part["files"].items():
                if entry["split"] == split:
                    names[entry["kind"]].append(name)
                    if entry["kind"] == "tokens":
                        files[name] = {"bytes": entry["bytes"], "sha256": entry["sha256"]}
                        shards.append({"file": Path(name).name, "num_tokens": entry["length"]})
        counts = {}
        for kind in ("sentences", "documents"):
            offsets = ArrayFile(folder / f"{kind}.npy", np.dtype(np.uint64))
            offsets.append(np.zeros(1, np.uint64))
            last = np.uint64(0)
            for lengths in self._chunks(names[kind]):
                chunk = np.cumsum(lengths, dtype=np.uint64) + last
                offsets.append(chunk)
                last = chunk[-1]
            offsets.close()
            counts[kind] = offsets.length - 1
        unigrams = np.zeros(self.vocab_size, np.int64)
        for tokens in self._chunks(names["tokens"]):
            unigrams += np.bincount(tokens, minlength=self.vocab_size)
        file = ArrayFile(folder / "unigrams.npy", np.dtype(np.int64))
        file.append(unigrams)
        file.close()
        sync(folder)
        for kind in ("sentences", "documents", "unigrams"):
            files[f"{split}/{kind}.npy"] = _size_and_sum(folder / f"{kind}.npy")
        return {
            "num_tokens": int(unigrams.sum()),
            "num_sentences": counts["sentences"],
            "num_documents": counts["documents"],
            "shards": shards,
        }

    def _chunks(self, names: list[str]) -> Iterator[np.ndarray]:
        """The elements of several files, read (not mapped) in bounded pieces."""
        for name in names:
            with open(self.path / name, "rb") as file:
                version = np.lib.format.read_magic(file)
                assert version == (1, 0)
                _, _, dtype = np.lib.format.read_array_header_1_0(file)
                while piece := file.read(_CHUNK * dtype.itemsize):
                    yield np.frombuffer(piece, dtype)


def _size_and_sum(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": file_sha256(path)}


def write_store(
    path: str | os.PathLike[str],
    tokenizer: Tokenizer,
    train: Iterable[Sequence[Sequence[int]]],
    heldout: Iterable[Sequence[Sequence[int]]] = (),
    *,
    shard_tokens: int = SHARD_TOKENS,
) -> Store:
    """Writes a store from documents already turned into ids: documents of sentences of ids.

    Args:
        path: folder of the new store.
        tokenizer: the tokenizer of the ids; saved with them.
        train: training documents; may be an iterator.
        heldout: documents held out for evaluation.
        shard_tokens: a shard is closed once it has this many tokens.
    """
    writer = StoreWriter(path, tokenizer.vocab_size)
    tokenizer.save(writer.path / "tokenizer")
    try:
        for split, documents in (("train", train), ("heldout", heldout)):
            for document in documents:
                ids = [token for sentence in document for token in sentence]
                lengths = [len(sentence) for sentence in document]
                writer.append(split, *map(np.asarray, (ids, lengths, [len(document)])))
                if writer.part_tokens >= shard_tokens:
                    writer.commit({})
        writer.commit({})
        writer.finish(tokenizer, {})
    finally:
        writer.close()
    return open_store(path)
