"""Blocks of text to token ids, in several processes, always in the order of the input."""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import itertools
import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Generator, Iterable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np

from bertjax.data.corpus.blocks import Block, Problem
from bertjax.data.corpus.corpus import Document, read_documents, split_sentences
from bertjax.data.corpus.duplicates import DUPLICATES, read_dropped
from bertjax.data.store.store import SPLITS
from bertjax.data.tokenizers.tokenizer import (
    TOKENIZERS,
    Tokenizer,
    load_tokenizer,
    register_tokenizer,
)
from bertjax.prepare.spawn import without_main

_LOG = logging.getLogger(__name__)
STARTS = 4  # of the worker processes, before `prepare` gives up


@dataclasses.dataclass(frozen=True)
class EncodedSplit:
    """Documents of one block and one split, as `StoreWriter.append` takes them."""

    tokens: np.ndarray
    sentence_lengths: np.ndarray
    document_lengths: np.ndarray


@dataclasses.dataclass(frozen=True)
class EncodedBlock:
    """The result of a block."""

    splits: dict[str, EncodedSplit]
    problems: list[Problem]
    text_bytes: int  # UTF-8 bytes of the documents


@dataclasses.dataclass(frozen=True)
class Encoder:
    """Turns documents into ids."""

    tokenizer: Tokenizer
    language: str
    heldout_share: float
    dropped: frozenset[tuple[str, int]]  # source and line of documents to leave out

    def __call__(self, block: Block) -> EncodedBlock:
        """Decodes, splits and encodes one block."""
        problems: list[Problem] = []
        documents: dict[str, list[Document]] = {split: [] for split in SPLITS}
        text_bytes = 0
        for document in read_documents(block, problems):
            if (document.source, document.line) in self.dropped:
                continue
            text = "\n".join(document.paragraphs).encode()
            text_bytes += len(text)
            documents[SPLITS[is_held_out(text, self.heldout_share)]].append(document)
        splits = {split: self._encode(documents[split], problems) for split in SPLITS}
        problems.sort(key=lambda problem: problem.line)
        return EncodedBlock(splits, problems, text_bytes)

    def _encode(self, documents: list[Document], problems: list[Problem]) -> EncodedSplit:
        sentences: list[str] = []
        counts = []  # sentences of each document
        for document in documents:
            before = len(sentences)
            for paragraph in document.paragraphs:
                sentences += split_sentences(self.language, paragraph)
            counts.append(len(sentences) - before)
        tokens, lengths = self.tokenizer.encode_sentences(sentences)
        # A sentence of control characters has no token; a document of such sentences has none.
        owners = np.repeat(np.arange(len(documents)), counts)
        document_lengths = np.bincount(owners[lengths > 0], minlength=len(documents))
        for kind, length in (("empty_document", 0), ("one_sentence", 1)):
            found = (documents[index] for index in np.flatnonzero(document_lengths == length))
            problems += [Problem(kind, document.source, document.line) for document in found]
        return EncodedSplit(
            tokens,
            lengths[lengths > 0].astype(np.uint32),
            document_lengths[document_lengths > 0].astype(np.uint32),
        )


def make_encoder(folder: Path, language: str, heldout_share: float) -> Encoder:
    """The encoder of a process, with the tokenizer saved in `folder`, STORE/tokenizer."""
    tokenizer = load_tokenizer(folder)
    dropped = read_dropped(folder.parent / DUPLICATES)
    return Encoder(tokenizer, language, heldout_share, dropped)


def is_held_out(text: bytes, share: float) -> bool:
    """Whether a document is held out. Only its text decides, so this never changes.

    Args:
        text: the document's paragraphs, stripped, joined by newlines, in UTF-8.
        share: of the documents, 0 to 1.
    """
    digest = hashlib.blake2b(text, digest_size=8).digest()
    return int.from_bytes(digest, "big") < share * 2**64


def encode_blocks(
    blocks: Iterable[Block], folder: Path, language: str, heldout_share: float, num_workers: int
) -> Generator[tuple[Block, EncodedBlock], None, None]:
    """Encodes blocks in `num_workers` processes; yields them in order.

    Each worker has at most two blocks in progress, so memory does not grow with the input. One
    worker means this process. If a worker dies, all are started again, up to `STARTS` times.

    Args:
        blocks: the input.
        folder: where the tokenizer was saved.
        language: of the sentence splitter.
        heldout_share: share of the documents to hold out.
        num_workers: processes.

    Raises:
        concurrent.futures.process.BrokenProcessPool: workers died too often.
    """
    kind = type(load_tokenizer(folder))
    own = None if kind.kind in TOKENIZERS.built_in else kind
    if own and own.__module__ == "__main__" and num_workers > 1:
        _LOG.info(
            "the tokenizer %s is a class of the script, which other processes do not import: one "
            "process encodes; move it into a module to use several",
            own.__name__,
        )
        num_workers = 1
    if num_workers == 1:
        encoder = make_encoder(folder, language, heldout_share)
        for block in blocks:
            yield block, encoder(block)
        return
    # Spawned, not forked: a fork would inherit the threads and locks of TensorFlow or jax.
    context = multiprocessing.get_context("spawn")
    settings = folder, language, heldout_share, own
    num_starts = 1
    pool = ProcessPoolExecutor(num_workers, context, _start_worker, settings)
    try:
        under_way: collections.deque[tuple[Block, Future[EncodedBlock]]] = collections.deque()
        iterator = iter(blocks)
        while True:
            for block in itertools.islice(iterator, 2 * num_workers - len(under_way)):
                under_way.append((block, _submit(pool, block)))
            if not under_way:
                break
            block, future = under_way[0]
            try:
                encoded = future.result()
            except BrokenProcessPool:
                pool.shutdown(wait=True, cancel_futures=True)
                if num_starts == STARTS:
                    raise
                _LOG.warning("a worker process died: continuing with new ones")
                num_starts += 1
                pool = ProcessPoolExecutor(num_workers, context, _start_worker, settings)
                under_way = collections.deque(
                    (block, _submit(pool, block) if _is_lost(future) else future)
                    for block, future in under_way
                )
                continue
            under_way.popleft()
            yield dataclasses.replace(block, data=b""), encoded
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _submit(pool: ProcessPoolExecutor, block: Block) -> Future[EncodedBlock]:
    """A future; it raises BrokenProcessPool if the pool is broken already."""
    try:
        with without_main():
            return pool.submit(_encode_in_worker, block)
    except BrokenProcessPool as error:
        future: Future[EncodedBlock] = Future()
        future.set_exception(error)
        return future


def _is_lost(future: Future[EncodedBlock]) -> bool:
    return future.cancelled() or isinstance(future.exception(), BrokenProcessPool)


_encoder: Encoder  # of this worker process


def _start_worker(
    folder: Path, language: str, heldout_share: float, own: type[Tokenizer] | None
) -> None:
    """Prepares a worker; unpickling `own`, a tokenizer of the user's, has imported its module."""
    global _encoder
    if own is not None:
        register_tokenizer(own, replace=True)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process handles Ctrl-C
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _encoder = make_encoder(folder, language, heldout_share)


def _end_with_parent() -> None:
    """Ends this worker if the main process was killed, since the queue would never close."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _encode_in_worker(block: Block) -> EncodedBlock:
    return _encoder(block)
