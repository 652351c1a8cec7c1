"""Runs all checks of files or of a store, and reports their result."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from bertjax.data.corpus.blocks import Problem
from bertjax.data.corpus.corpus import find_sources, read_blocks, read_documents
from bertjax.data.corpus.duplicates import DuplicateFinder
from bertjax.data.counter_rng import mix64
from bertjax.data.store.store import MANIFEST, Split, Store, open_store, verify_store
from bertjax.data.tokenizers.tokenizer import from_argument
from bertjax.data.tokenizers.vocabulary import Tokenizer
from bertjax.inspect.findings import Finding
from bertjax.inspect.lengths import Lengths, row_lengths
from bertjax.inspect.stores import store_findings, unknown_share
from bertjax.inspect.texts import TextChecks
from bertjax.inspect.training_rows import Piece, training_rows
from bertjax.inspect.works import WorkPair, duplicate_findings, work_pairs

LENGTHS = (128, 512)
_MASKED, _PLAIN = "\x1b[7m", "\x1b[0m"  # reversed colours


@dataclasses.dataclass
class Report:
    """What was checked and what was found."""

    name: str
    findings: list[Finding] = dataclasses.field(default_factory=list)
    works: list[WorkPair] = dataclasses.field(default_factory=list)
    shares: dict[str, dict[str, float]] = dataclasses.field(default_factory=dict)  # by source
    scripts: dict[str, dict[str, int]] = dataclasses.field(default_factory=dict)  # letters sampled
    languages: dict[str, dict[str, int]] = dataclasses.field(default_factory=dict)  # of a sample
    lengths: list[Lengths] = dataclasses.field(default_factory=list)
    rows: list[list[Piece]] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """Everything as JSON-able values."""
        return dataclasses.asdict(self)

    def text(self, colours: bool) -> str:
        """Everything as text; masked tokens are reversed with colours, else in brackets."""
        lines = [self.name]
        lines += [f"  letters of {source}: {_mix(found)}" for source, found in self.scripts.items()]
        lines += [
            f"  languages of {source}: {_mix(found)} of {sum(found.values()):,} paragraphs"
            for source, found in self.languages.items()
        ]
        lines += [f"  {entry.text()}" for entry in self.lengths]
        lines += [f"  {note}" for note in self.notes]
        lines += [
            f"  row: {' '.join(_marked(piece, colours) for piece in row)}" for row in self.rows
        ]
        lines += [f"  {pair.text()}" for pair in self.works]
        for finding in self.findings:
            lines += finding.lines()
        lines.append(f"{len(self.findings)} findings")
        return "\n".join(lines)


def _mix(counts: dict[str, int]) -> str:
    total = max(1, sum(counts.values()))
    return ", ".join(f"{name} {n / total:.1%}" for name, n in list(counts.items())[:4])


def _marked(piece: Piece, colours: bool) -> str:
    if not piece.original:
        return piece.text
    text = f"{piece.original}>{piece.text}"
    return f"{_MASKED}{text}{_PLAIN}" if colours else f"<{text}>"


def inspect_data(
    source: str,
    language: str = "en",
    data_dir: str | None = None,
    tokenizer: str | None = None,
    lower_case: bool | None = None,
) -> Report:
    """Looks for what would waste or spoil a run in a corpus or a token store.

    Args:
      source: folder of a store, or texts as `bertjax.build_store` takes them.
      language: of the texts, ISO 639.
      data_dir: of TFDS.
      tokenizer: that the texts are to be prepared with, whose [UNK] are counted.
      lower_case: whether that tokenizer lowers the text.

    Raises:
      StoreError: the store is damaged.
      CorpusError: an input cannot be read.
      TokenizerError: the tokenizer cannot be loaded.
    """
    if (Path(source) / MANIFEST).exists():
        verify_store(source)
        return inspect_store(open_store(source))
    chosen = from_argument(tokenizer, lower_case=lower_case) if tokenizer else None
    return inspect_texts(source, language, data_dir, chosen)


def inspect_texts(
    patterns: str,
    language: str = "en",
    data_dir: str | None = None,
    tokenizer: Tokenizer | None = None,
) -> Report:
    """Checks files or other sources, named as for `prepare --input`.

    Args:
        patterns: as `prepare --input`.
        language: of the sentence splitter.
        data_dir: of TFDS data sets.
        tokenizer: for these texts; None = casing and [UNK] are not compared.

    Raises:
        CorpusError: an input cannot be read.
    """
    report = Report(patterns)
    finder = DuplicateFinder()
    num_documents = 0
    for source in find_sources(patterns, data_dir):
        checks = TextChecks(source.name, language, tokenizer)
        for block in read_blocks(source):
            problems: list[Problem] = list(block.problems)
            for document in read_documents(block, problems):
                checks.add(document)
                finder.add(document)
            for problem in problems:
                checks.add_problem(problem)
        num_documents += checks.num_documents
        report.findings += checks.findings()
        report.shares[source.name] = checks.shares()
        report.scripts[source.name] = dict(checks.scripts.most_common())
        if (languages := checks.languages()) is not None:
            report.languages[source.name] = languages
        report.notes.append(
            f"{source.name}: {checks.num_documents:,} documents, {checks.num_lines:,} lines"
        )
    if not report.languages:
        report.notes.append("languages are not told apart: pip install 'bertjax[inspect]'")
    duplicates = finder.found()
    report.works = work_pairs(duplicates, finder.totals)
    report.findings += duplicate_findings(duplicates, num_documents)
    kept = finder.fingerprints.share
    report.notes.append(
        f"near duplicates: from {kept:.2%} of all runs of five words, so in documents of about "
        f"{round(10 / kept):,} words or more"
    )
    return report


def inspect_store(store: Store) -> Report:
    """Checks a store."""
    report = Report(str(store.path))
    report.findings += store_findings(store)
    unk_id = store.tokenizer().unk_id
    for split in (store.train, store.heldout):
        report.shares[str(split.folder)] = {"unknown": unknown_share(split, unk_id)}
        report.notes.append(
            f"{split.name}: {split.num_documents:,} documents, {split.num_tokens:,} tokens, "
            f"{unknown_share(split, unk_id):.3%} [UNK]"
        )
    finder = DuplicateFinder()
    for split in (store.train, store.heldout):
        _add_documents(finder, split, store.vocab_size)
    total = store.train.num_documents + store.heldout.num_documents
    report.findings += duplicate_findings(finder.found(), total)
    if store.train.num_tokens and not any(f.kind == "id_out_of_range" for f in report.findings):
        report.lengths = [row_lengths(store.train, length) for length in LENGTHS]
        report.rows = training_rows(store)
    return report


def _add_documents(finder: DuplicateFinder, split: Split, vocab_size: int) -> None:
    values = mix64(np.arange(1, vocab_size + 1, dtype=np.uint64))
    starts = split.sentence_offsets[split.document_offsets].view(np.int64)
    shards = np.searchsorted(split.shard_starts, starts[:-1], side="right") - 1
    for number, shard in enumerate(shards):
        begin, end = starts[number : number + 2] - split.shard_starts[shard]
        ids = split.token_shards[shard][begin:end]
        finder.add_ids(str(split.folder), number + 1, ids, values[np.minimum(ids, vocab_size - 1)])
