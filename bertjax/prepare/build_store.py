"""Corpus to token store: the work behind `python -m bertjax.prepare`.

One process reads blocks of text, others encode them (or workers of Apache Beam, `beam_engine`), the
first appends the ids in the order of the input and commits a part whenever it has enough tokens. So
the store has the same bytes for any number of workers and any number of restarts.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import logging
import os
import shutil
import sys
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm

from bertjax.cores import num_cores
from bertjax.data.corpus.blocks import BLOCK_BYTES, PROBLEMS, Block, Problem, Source
from bertjax.data.corpus.corpus import find_sources, read_blocks, read_documents, split_sentences
from bertjax.data.corpus.duplicates import DUPLICATES, read_dropped, write_duplicates
from bertjax.data.store.bucket_copy import upload_store
from bertjax.data.store.store import (
    MANIFEST,
    SPLITS,
    Store,
    StoreError,
    open_store,
    read_manifest,
)
from bertjax.data.store.store_writer import UNFINISHED, StoreWriter
from bertjax.data.tokenizers.tokenizer import Tokenizer, from_argument, load_tokenizer
from bertjax.errors import closest
from bertjax.inspect.stores import store_findings
from bertjax.prepare.encode_blocks import STARTS, EncodedBlock, encode_blocks, is_held_out
from bertjax.prepare.options import (
    PrepareError,
    PrepareOptions,
    PrepareStoppedError,
    check_options,
    content_settings,
)
from bertjax.prepare.resume import (
    check_finished,
    check_unchanged,
    check_unfinished,
    explained,
    locked,
    source_states,
)
from bertjax.prepare.staged_blocks import StagedBlocks
from bertjax.storage.bucket import BucketPath, as_path, require_client
from bertjax.storage.cache import cache_folder

_LOG = logging.getLogger(__name__)

TRAINING_SAMPLE_BYTES = 256 * 2**20  # text that a vocabulary is trained on, about
_GZIP_RATIO = 3  # of English text
_EXAMPLES = 3  # problems of a kind that are kept in full
_T = TypeVar("_T")


def build_store(
    input: str | Path | Sequence[str | Path], output: str | Path, tokenizer: str, **options: Any
) -> Store:
    """Makes a token store from a corpus, resumes one that is unfinished, or opens a finished one.

    Args:
      input: texts: paths and globs, gs:// too, tfds:NAME/CONFIG:SPLIT or embedded:python, in a list
        or separated by commas.
      output: folder of the store: a path, or gs://BUCKET/FOLDER, which is prepared in this
        machine's cache and then uploaded, the manifest last.
      tokenizer: "train:wordpiece", "train:sentencepiece", a vocab.txt, a .model of SentencePiece,
        hf:FOLDER, or the folder of a saved tokenizer.
      **options: other fields of `PrepareOptions`, such as vocab_size=8_000 or language="hi".

    Returns:
      The store, on this machine's disk.

    Raises:
      PrepareError: an option, the output folder or the corpus does not do; there is no such option.
      CorpusError: an input cannot be read.
      TokenizerError: the tokenizer cannot be loaded or trained.
      ConfigError: the output is in a bucket, which cannot be used here.
    """
    parts = [input] if isinstance(input, (str, Path)) else input
    known = [field.name for field in dataclasses.fields(PrepareOptions)]
    for name in options:
        if name not in known:
            raise PrepareError(f"{name}: no such option of a store; {closest(name, known)}")
    target = as_path(output)
    chosen = PrepareOptions(
        input=",".join(map(str, parts)), output=str(output), tokenizer=str(tokenizer), **options
    )
    if isinstance(target, BucketPath):
        require_client()  # before hours of work
        number = hashlib.sha256(str(target).encode()).hexdigest()[:12]
        chosen = dataclasses.replace(
            chosen,
            output=str(cache_folder() / "prepared" / number / target.name),
            staging=str(target / UNFINISHED) if chosen.runner != "local" else "",
        )
    store = prepare(chosen)
    for finding in store_findings(store):
        _LOG.info("\n".join(finding.lines()))
    if isinstance(target, BucketPath):
        try:
            upload_store(Path(chosen.output), target)
        except StoreError as error:
            raise PrepareStoppedError(str(error)) from error
        (target / UNFINISHED).remove_tree()
        _LOG.info("%s: uploaded from %s, which may be deleted", target, chosen.output)
    return store


def prepare(options: PrepareOptions) -> Store:
    """Makes a store, goes on with an unfinished one, or opens it if it is the one asked for.

    Raises:
        PrepareError: an option, the output folder or the corpus does not do.
        CorpusError: an input cannot be read.
        TokenizerError: the tokenizer cannot be loaded or trained.
    """
    begin = time.monotonic()
    check_options(options)
    if options.runner != "local":
        from bertjax.prepare.beam_engine import pipeline_options

        pipeline_options(options)  # raises before any work
    sources = find_sources(options.input, options.data_dir)
    states = source_states(sources)
    settings = content_settings(options)
    if not options.tokenizer.startswith("train:"):
        settings["tokenizer_hash"] = _make_tokenizer(options).hash
    output = Path(options.output)
    with locked(output):
        if (output / MANIFEST).exists():
            check_finished(output, settings, sources)
            if options.strict:
                _Tally(problems=read_manifest(output)["problems"]).refuse()
            _LOG.info("%s: already prepared", output)
            return open_store(output)
        with explained(output):
            check_unfinished(output, settings, sources)
            if options.drop_duplicates:
                write_duplicates(output / DUPLICATES, sources)
                _LOG.info(
                    "%d duplicate documents are left out: %s",
                    len(read_dropped(output / DUPLICATES)),
                    output / DUPLICATES,
                )
            tokenizer = _saved_tokenizer(output, options, sources)
            writer = StoreWriter(output, tokenizer.vocab_size)
        try:
            details = settings | _write_documents(writer, options, sources)
            check_unchanged(states, sources)
            with explained(output):
                writer.finish(tokenizer, details)
        except BrokenProcessPool:
            raise PrepareStoppedError(
                f"worker processes died {STARTS} times, most often for want of memory; the "
                "finished shards stay: run the same command again, with fewer --num_workers if "
                "there is little memory"
            ) from None
        finally:
            writer.close()
    store = open_store(output)
    for split in (store.train, store.heldout):
        _LOG.info(
            "%s: %s documents, %s sentences, %s tokens",
            split.name,
            f"{split.num_documents:,}",
            f"{split.num_sentences:,}",
            f"{split.num_tokens:,}",
        )
    _LOG.info(
        "%s: prepared from %.1f MB of text in %.0f s",
        output,
        details["text_bytes"] / 1e6,
        time.monotonic() - begin,
    )
    return store


# --- the tokenizer -----------------------------------------------------------------------------


def _make_tokenizer(options: PrepareOptions, sentences: Iterable[str] = ()) -> Tokenizer:
    return from_argument(
        options.tokenizer,
        lower_case=options.lower_case,
        vocab_size=options.vocab_size,
        lines=sentences,
    )


def _saved_tokenizer(output: Path, options: PrepareOptions, sources: list[Source]) -> Tokenizer:
    """The tokenizer in the store; if there is none yet, loads or trains it and saves it there."""
    folder = output / "tokenizer"
    if not folder.exists():
        if options.tokenizer.startswith("train:"):
            _LOG.info("training a vocabulary (%s) on the training documents", options.tokenizer)
        tokenizer = _make_tokenizer(options, _training_sentences(options, sources))
        temporary = output / UNFINISHED / "tokenizer"
        shutil.rmtree(temporary, ignore_errors=True)
        tokenizer.save(temporary)
        os.replace(temporary, folder)
    return load_tokenizer(folder)


def _training_sentences(options: PrepareOptions, sources: list[Source]) -> Iterator[str]:
    """Sentences of the training documents; of a large corpus, of blocks spread evenly over it.

    With s = TRAINING_SAMPLE_BYTES / size of the input (gzip counted three times), block i is
    taken if floor((i + 1) s) > floor(i s), and every block if s >= 1.
    """
    size = sum(s.num_bytes * (_GZIP_RATIO if s.name.endswith(".gz") else 1) for s in sources)
    share = min(1.0, TRAINING_SAMPLE_BYTES / max(1, size))
    if share < 1:
        _LOG.info(
            "  %.1f%% of the input, in blocks of %d MiB spread evenly",
            100 * share,
            BLOCK_BYTES >> 20,
        )
    dropped = read_dropped(Path(options.output) / DUPLICATES)
    blocks = (block for source in sources for block in read_blocks(source))
    for index, block in enumerate(blocks):
        if int((index + 1) * share) == int(index * share):
            continue
        for document in read_documents(block, []):
            if (document.source, document.line) in dropped:
                continue
            text = "\n".join(document.paragraphs).encode()
            if not is_held_out(text, options.heldout_share):
                for paragraph in document.paragraphs:
                    yield from split_sentences(options.language, paragraph)


# --- the documents -----------------------------------------------------------------------------


@dataclasses.dataclass
class _Tally:
    """What was read so far; a restart takes it from the last part."""

    num_blocks: int = 0
    text_bytes: int = 0  # UTF-8 of the documents
    problems: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)

    def add(self, problem: Problem) -> None:
        entry = self.problems.setdefault(
            problem.kind, {"count": 0, "done": PROBLEMS[problem.kind], "examples": []}
        )
        entry["count"] += 1
        if len(entry["examples"]) < _EXAMPLES:
            entry["examples"].append(problem.where)

    def refuse(self) -> None:
        """Raises PrepareError for a problem, if there is one."""
        for kind, entry in self.problems.items():
            raise PrepareError(f"--strict: {entry['examples'][0]} ({kind})")


class _Input:
    """The blocks of all sources after the first `skip`; positions count over all sources."""

    def __init__(self, sources: list[Source], skip: int):
        self.sources = sources
        self.skip = skip
        self.skipped_bytes = 0
        self.hashes: dict[str, str] = {}

    def __iter__(self) -> Iterator[Block]:
        """The blocks with their text, for the local engine."""
        nothing = ((block, None) for source in self.sources for block in read_blocks(source))
        return (block for block, _ in self._after_skipped(nothing))

    def staged(self, blocks: StagedBlocks) -> Generator[tuple[Block, EncodedBlock], None, None]:
        """The blocks without their text and what became of them."""
        return self._after_skipped(blocks.read(len(self.sources)))

    def _after_skipped(
        self, blocks: Iterable[tuple[Block, _T]]
    ) -> Generator[tuple[Block, _T], None, None]:
        starts = itertools.accumulate((s.num_bytes for s in self.sources), initial=0)
        sources = zip(self.sources, starts, strict=False)
        source, start = next(sources)
        for number, (block, result) in enumerate(blocks, 1):
            position = start + block.position
            if block.sha256:  # the last one of its source
                self.hashes[source.name] = block.sha256
                source, start = next(sources, (source, start))
            if number <= self.skip:
                self.skipped_bytes = position
            else:
                yield dataclasses.replace(block, position=position), result


def _write_documents(
    writer: StoreWriter, options: PrepareOptions, sources: list[Source]
) -> dict[str, Any]:
    """Encodes and appends the blocks that no part covers yet; returns the manifest's details."""
    tally = _Tally(**writer.state)
    if options.strict:
        tally.refuse()  # the finished shards may be of a run that was not strict
    blocks = _Input(sources, tally.num_blocks)
    if writer.parts:
        _LOG.info(
            "%s: %d finished shards are kept, going on after them", writer.path, len(writer.parts)
        )
    encoded_blocks: Generator[tuple[Block, EncodedBlock], None, None]
    if options.runner == "local":
        encoded_blocks = encode_blocks(
            blocks,
            writer.path / "tokenizer",
            options.language,
            options.heldout_share,
            options.num_workers or num_cores(),
        )
    else:
        from bertjax.prepare.beam_engine import stage_blocks

        encoded_blocks = blocks.staged(stage_blocks(sources, writer.path, writer.work, options))
    text_before = tally.text_bytes
    with (
        contextlib.closing(encoded_blocks),
        tqdm(
            desc="prepare",
            total=sum(source.num_bytes for source in sources),
            unit="B",
            unit_scale=True,
            mininterval=0.5 if sys.stderr.isatty() else 30,
        ) as progress,
    ):
        for block, encoded in encoded_blocks:
            for problem in (*block.problems, *encoded.problems):
                tally.add(problem)
                if options.strict:
                    tally.refuse()
            tally.num_blocks += 1
            tally.text_bytes += encoded.text_bytes
            with explained(writer.path):
                for split, part in encoded.splits.items():
                    writer.append(split, part.tokens, part.sentence_lengths, part.document_lengths)
                if writer.part_tokens >= options.shard_tokens:
                    writer.commit(dataclasses.asdict(tally))
            if progress.n == 0 and blocks.skipped_bytes:
                progress.initial = progress.n = blocks.skipped_bytes  # not part of the rate
            elapsed = max(1e-9, progress.format_dict["elapsed"])
            rate = (tally.text_bytes - text_before) / 1e6 / elapsed
            progress.set_postfix_str(f"{rate:.1f} MB of text/s", refresh=False)
            progress.update(block.position - progress.n)
    _check_result(writer, options, tally)
    with explained(writer.path):
        writer.commit(dataclasses.asdict(tally))
    return {
        "sources": [
            {"name": s.name, "bytes": s.num_bytes, "sha256": blocks.hashes[s.name]} for s in sources
        ],
        "text_bytes": tally.text_bytes,
        "problems": dict(sorted(tally.problems.items())),
    }


def _check_result(writer: StoreWriter, options: PrepareOptions, tally: _Tally) -> None:
    for kind, entry in sorted(tally.problems.items()):
        _LOG.info("%s: %d x %s:", kind, entry["count"], entry["done"])
        for example in entry["examples"]:
            _LOG.info("    %s", example)
        if entry["count"] > len(entry["examples"]):
            _LOG.info("    ...")
    train, heldout = (writer.num_documents(split) for split in SPLITS)
    if train + heldout == 0:
        raise PrepareError(
            f"--input={options.input}: there is no document with text in it"
            + ("; see the findings above" if tally.problems else "")
        )
    if train == 0:
        raise PrepareError(
            f"--input={options.input}: all {heldout} documents were held out by "
            f"--heldout_share={options.heldout_share}; give more documents or a smaller share"
        )
    if heldout == 0 and options.heldout_share > 0:
        _LOG.info(
            "no document of %d was held out (--heldout_share=%s): evaluate on another store, or "
            "give a larger share",
            train,
            options.heldout_share,
        )
