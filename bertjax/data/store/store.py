"""The token store: what `bertjax.prepare` writes once and every run reads.

    STORE/manifest.json           written last: a folder without it is no store
    STORE/tokenizer/...           the tokenizer that made the ids
    STORE/train/tokens-00000.npy  1-D token ids, uint16 (uint32 above 65,536 entries), none special
    STORE/train/sentences.npy     uint64 [num_sentences + 1], token where each sentence begins
    STORE/train/documents.npy     uint64 [num_documents + 1], sentence where each document begins
    STORE/train/unigrams.npy      int64 [vocab_size], how often each id occurs
    STORE/heldout/...             the same for the documents held out for evaluation

Offsets count over all shards of a split; a document lies in one shard. Every sentence has at least
one token and every document at least one sentence. docs/design/store.md has the format in full;
`bertjax.data.store.store_writer` writes it.
"""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import os
import resource
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bertjax.data.tokenizers.vocabulary import token_dtype
from bertjax.errors import BertjaxError
from bertjax.storage.bucket import BucketPath

if TYPE_CHECKING:
    from bertjax.data.tokenizers.tokenizer import Tokenizer

FORMAT = "bertjax-store"
FORMAT_VERSION = 1
MANIFEST = "manifest.json"
SPLITS = ("train", "heldout")
_OTHER_FILES = 256  # files that a process may open besides those of the store


class StoreError(BertjaxError, ValueError):
    """A store that is missing, unfinished, damaged or not the expected one; names the file."""


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
    """The training or the held-out documents of a store. Arrays are memory-mapped, read-only."""

    name: str  # "train" or "heldout"; of the first documents, see `first_documents`
    folder: Path
    token_shards: tuple[np.ndarray, ...]  # 1-D, uint16 or uint32
    shard_starts: np.ndarray  # int64 [num_shards + 1], first token of each shard
    sentence_offsets: np.ndarray  # uint64 [num_sentences + 1], in tokens
    document_offsets: np.ndarray  # uint64 [num_documents + 1], in sentences
    unigrams: np.ndarray  # int64 [vocab_size]
    num_tokens: int
    num_sentences: int
    num_documents: int

    def first_documents(self, share: float) -> Split:
        """The first documents in the order of the input: this share of them, at least one.

        `unigrams` are still those of all documents.
        """
        num_documents = max(1, round(share * self.num_documents))
        if num_documents >= self.num_documents:
            return self
        num_sentences = int(self.document_offsets[num_documents])
        return dataclasses.replace(
            self,
            name=f"{self.name}_first_{num_documents}",
            sentence_offsets=self.sentence_offsets[: num_sentences + 1],
            document_offsets=self.document_offsets[: num_documents + 1],
            num_tokens=int(self.sentence_offsets[num_sentences]),
            num_sentences=num_sentences,
            num_documents=num_documents,
        )

    def gather(self, starts: np.ndarray, lengths: np.ndarray, width: int) -> np.ndarray:
        """Copies n ranges of tokens into the rows of one array.

        Args:
            starts: integer [n], first token of each range, counted over the split.
            lengths: integer [n], tokens of each range, 0 to `width`; a range lies in one shard.
            width: columns of the result.

        Returns:
            int32 [n, width]; row i is tokens[starts[i] : starts[i] + lengths[i]], then zeros.

        Raises:
            IndexError: a range lies outside the split or runs over the end of its shard.
            ValueError: a length is negative or greater than `width`.
        """
        starts = np.asarray(starts, np.int64)
        lengths = np.asarray(lengths, np.int64)
        if starts.shape != lengths.shape or starts.ndim != 1:
            raise ValueError(
                f"starts and lengths must be 1-D and alike, not {starts.shape} and {lengths.shape}"
            )
        rows = np.zeros((len(starts), width), np.int32)
        used = np.flatnonzero(lengths)
        if not len(used):
            return rows
        if lengths.min() < 0 or lengths.max() > width:
            raise ValueError(
                f"lengths run from {lengths.min()} to {lengths.max()}, expected 0 to {width}"
            )
        begins = starts[used]
        shards = np.searchsorted(self.shard_starts, begins, side="right") - 1
        if shards.min() < 0 or shards.max() >= len(self.token_shards):
            raise IndexError(
                f"{self.folder}: ranges start at token {begins.min()} to {begins.max()}, outside "
                f"the {self.num_tokens} of the split"
            )
        shard_ends = self.shard_starts[shards + 1]
        over = np.flatnonzero(begins + lengths[used] > shard_ends)
        if len(over):
            raise IndexError(
                f"{self.folder}: {lengths[used][over[0]]} tokens from {begins[over[0]]} on run "
                f"over the end, {shard_ends[over[0]]}, of a shard"
            )
        # Whole windows are copied row by row, which is several times faster than single elements.
        # Few rows have a window that would pass the end of the shard.
        places = begins - self.shard_starts[shards]
        whole = begins + width <= shard_ends
        sorted_rows = np.flatnonzero(whole)
        sorted_rows = sorted_rows[np.argsort(shards[sorted_rows], kind="stable")]
        numbers, firsts = np.unique(shards[sorted_rows], return_index=True)
        for number, which in zip(numbers, np.split(sorted_rows, firsts)[1:], strict=True):
            rows[used[which]] = _windows(self.token_shards[number], width)[places[which]]
        rows *= np.arange(width) < lengths[:, None]
        for i in np.flatnonzero(~whole):
            row, at = used[i], places[i]
            rows[row, : lengths[row]] = self.token_shards[shards[i]][at : at + lengths[row]]
        return rows


def _windows(tokens: np.ndarray, width: int) -> np.ndarray:
    """Views of `width` tokens from each start; cheap, as a batch may use hundreds of shards."""
    step = tokens.itemsize
    shape = (len(tokens) - width + 1, width)
    return np.ndarray(shape, tokens.dtype, buffer=tokens, strides=(step, step))


@dataclasses.dataclass(frozen=True, eq=False)
class Store:
    """An opened store."""

    path: Path
    manifest: dict[str, Any]
    tokenizer_hash: str
    vocab_size: int
    train: Split
    heldout: Split

    def tokenizer(self) -> Tokenizer:
        """Loads the tokenizer that made the ids.

        Raises:
            StoreError: the tokenizer in the folder is not the one that the manifest names.
        """
        from bertjax.data.tokenizers.tokenizer import load_tokenizer

        tokenizer = load_tokenizer(self.path / "tokenizer")
        if tokenizer.hash != self.tokenizer_hash:
            raise StoreError(
                f"{self.path / 'tokenizer'}: its hash is {tokenizer.hash}, but {MANIFEST} says "
                f"that {self.tokenizer_hash} made the tokens; prepare the store again"
            )
        return tokenizer


def open_store(path: str | os.PathLike[str]) -> Store:
    """Opens a store after checking its format, and the size and shape of each file.

    Raises:
        StoreError: the folder is not a finished store, or a file is missing or of the wrong size.
    """
    path = Path(path)
    manifest = read_manifest(path)
    _check_sizes(path, manifest)
    _allow_open_files(len(manifest["files"]))
    tokenizer = manifest["tokenizer"]
    vocab_size = tokenizer["vocab_size"]
    train, heldout = (
        _open_split(path / name, name, manifest["splits"][name], vocab_size) for name in SPLITS
    )
    return Store(path, manifest, tokenizer["hash"], vocab_size, train, heldout)


def verify_store(path: str | os.PathLike[str]) -> None:
    """Reads every file of the store and compares its SHA-256 with the manifest's.

    Raises:
        StoreError: names the first file that differs.
    """
    path = Path(path)
    manifest = read_manifest(path)
    _check_sizes(path, manifest)
    for name, expected in manifest["files"].items():
        found = file_sha256(path / name)
        if found != expected["sha256"]:
            raise StoreError(
                f"{path / name}: its SHA-256 is {found}, but {MANIFEST} says {expected['sha256']}; "
                "the file is damaged: copy the store again or prepare it again"
            )


def read_manifest(path: Path | BucketPath) -> dict[str, Any]:
    """Reads and checks STORE/manifest.json.

    Raises:
        StoreError: there is none, it is not JSON, or it is of another format or version.
    """
    file = path / MANIFEST
    try:
        manifest = json.loads(file.read_bytes())
    except FileNotFoundError:
        what = "no such folder" if not path.is_dir() else "there is no such file"
        raise StoreError(
            f"{file}: {what}, so this is no store, or bertjax.prepare has not finished it "
            "(the same command run again continues where it stopped)"
        ) from None
    except (OSError, ValueError) as error:
        raise StoreError(f"{file}: cannot be read as JSON: {error}") from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise StoreError(f'{file}: expected the manifest of a store ("format": "{FORMAT}")')
    if manifest.get("format_version") != FORMAT_VERSION:
        raise StoreError(
            f"{file}: format_version is {manifest.get('format_version')!r}, this bertjax reads "
            f"{FORMAT_VERSION}; prepare the store again, or use the bertjax that wrote it"
        )
    return manifest


def file_sha256(path: Path) -> str:
    """SHA-256 of a file in hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_sizes(path: Path, manifest: dict[str, Any]) -> None:
    for name, expected in manifest["files"].items():
        try:
            size = os.stat(path / name).st_size
        except FileNotFoundError:
            raise StoreError(f"{path / name}: is missing, but {MANIFEST} lists it") from None
        if size != expected["bytes"]:
            raise StoreError(
                f"{path / name}: has {size} bytes, but {MANIFEST} says {expected['bytes']}; "
                "the copy is not complete"
            )


def _open_split(folder: Path, name: str, entry: dict[str, Any], vocab_size: int) -> Split:
    num_tokens, num_sentences, num_documents = (
        entry[key] for key in ("num_tokens", "num_sentences", "num_documents")
    )
    dtype = token_dtype(vocab_size)
    shards = tuple(
        _load(folder / shard["file"], dtype, shard["num_tokens"]) for shard in entry["shards"]
    )
    sizes = [len(shard) for shard in shards]
    if sum(sizes) != num_tokens:
        raise StoreError(f"{folder}: {sum(sizes)} tokens in its shards, expected {num_tokens}")
    sentences = _load(folder / "sentences.npy", np.dtype(np.uint64), num_sentences + 1)
    documents = _load(folder / "documents.npy", np.dtype(np.uint64), num_documents + 1)
    for file, offsets, last in (
        ("sentences.npy", sentences, num_tokens),
        ("documents.npy", documents, num_sentences),
    ):
        if offsets[0] != 0 or offsets[-1] != last:
            raise StoreError(
                f"{folder / file}: runs from {offsets[0]} to {offsets[-1]}, expected 0 to {last}"
            )
    return Split(
        name=name,
        folder=folder,
        token_shards=shards,
        shard_starts=np.cumsum([0, *sizes], dtype=np.int64),
        sentence_offsets=sentences,
        document_offsets=documents,
        unigrams=_load(folder / "unigrams.npy", np.dtype(np.int64), vocab_size),
        num_tokens=num_tokens,
        num_sentences=num_sentences,
        num_documents=num_documents,
    )


def _allow_open_files(count: int) -> None:
    """Raises the limit of open files, often 1,024: Python keeps a descriptor for each map."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = len(os.listdir("/dev/fd")) + count + _OTHER_FILES
    if soft < needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(needed, hard), hard))


def _load(path: Path, dtype: np.dtype, length: int) -> np.ndarray:
    try:
        array = np.load(path, mmap_mode="r")
    except (OSError, ValueError) as error:
        advice = ""
        if isinstance(error, OSError) and error.errno == errno.EMFILE:
            advice = "; the store needs a descriptor a shard: ask for a higher `ulimit -Hn`"
        raise StoreError(f"{path}: cannot be read as a NumPy array: {error}{advice}") from None
    if array.dtype != dtype or array.shape != (length,):
        raise StoreError(
            f"{path}: is {array.dtype} {list(array.shape)}, expected {dtype} [{length}]"
        )
    return np.asarray(array)  # the plain view indexes faster than the memmap subclass
