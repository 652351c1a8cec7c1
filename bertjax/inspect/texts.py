"""Checks of documents and their lines, and of their tokens in a vocabulary."""

from __future__ import annotations

import collections
import itertools
import re
import unicodedata
from collections.abc import Iterator

import numpy as np

from bertjax.data.corpus.blocks import Problem
from bertjax.data.corpus.corpus import Document, split_sentences
from bertjax.data.tokenizers.vocabulary import Tokenizer
from bertjax.inspect.findings import Finding, Limit

_EXAMPLES = 3
_LETTERS = 10_000  # per source whose script is looked up, about; the lookup is slow
_TOKENS = 100_000  # per source from the first documents, then from one in a hundred
_TEXTS, _TEXT_CHARACTERS = 500, 100  # per source whose language is detected
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufffd\ufdd0-\ufdef\ufffe\uffff]")

# Clean corpora have much smaller shares.
UNKNOWN = Limit(
    0.01,
    "of the tokens are [UNK]",
    "the vocabulary is of another language, alphabet or casing: train one on the text",
)
LIMITS = {
    "one_sentence": Limit(
        0.2,
        "documents of one sentence",
        "such a document makes no sentence pair: join what belongs together into documents",
    ),
    "no_sentence": Limit(
        0.2,
        "lines that are no sentences (fewer than half of their characters are letters)",
        "remove tables, code and markup",
    ),
    "repeated_line": Limit(
        0.2,
        "lines that came before in the same document",
        "write every line once; headers and menus are best removed",
    ),
    "upper_case": Limit(
        0.2, "lines all in capitals", "restore the casing of the text, or train on the original"
    ),
    "no_capital": Limit(
        0.8,
        "lines of a cased alphabet without a capital",
        "take the text as it was before lowering",
    ),
    "control": Limit(
        0.01,
        "lines with control or replacement characters",
        "the text was decoded wrongly or is binary: read it with its own encoding",
    ),
    "unreadable": Limit(
        0.01,
        "lines that cannot be read (not UTF-8, no JSON, NUL)",
        "convert the file to UTF-8, a JSON record with a text a line",
    ),
}
_CASING = ("upper_case", "no_capital")


class TextChecks:
    """Counts over the documents of one source."""

    def __init__(self, source: str, language: str, tokenizer: Tokenizer | None = None):
        """Starts with all counts 0.

        Args:
            source: name of the source.
            language: of the sentence splitter.
            tokenizer: for counting [UNK]; an uncased one accepts any casing.
        """
        self.source = source
        self._tokenizer = tokenizer
        self._num_tokens = self._num_unknown = 0
        self._language = language
        self.num_documents = 0
        self.num_lines = 0
        self.counts: collections.Counter[str] = collections.Counter()
        self.scripts: collections.Counter[str] = collections.Counter()
        self._sample: list[str] = []  # texts whose language is detected
        self._examples: dict[str, list[str]] = collections.defaultdict(list)

    def add(self, document: Document) -> None:
        """Counts one document."""
        self.num_documents += 1
        seen: set[int] = set()
        for number, line in enumerate(document.paragraphs, 1):
            self.num_lines += 1
            for kind in _faults(line):
                self._count_line(kind, document, number, line)
            if hash(line) in seen:
                self._count_line("repeated_line", document, number, line)
            seen.add(hash(line))
        if len(document.paragraphs) == 1:
            text = document.paragraphs[0]
            if len(split_sentences(self._language, text)) == 1:
                self._count_line("one_sentence", document, 1, text)
        if self._tokenizer and (self._num_tokens < _TOKENS or self.num_documents % 100 == 0):
            ids = self._tokenizer.encode(document.paragraphs[0])
            self._num_tokens += len(ids)
            self._num_unknown += int((np.asarray(ids) == self._tokenizer.unk_id).sum())
        if len(self._sample) < _TEXTS:
            long = (text for text in document.paragraphs if len(text) >= _TEXT_CHARACTERS)
            self._sample += [text[:1_000] for text in itertools.islice(long, 1)]
        if self.scripts.total() < _LETTERS or self.num_documents % 100 == 0:
            self.scripts.update(map(_script, filter(_has_script, document.paragraphs[0][:200])))

    def languages(self) -> dict[str, int] | None:
        """Texts by language (ISO 639-1), the most frequent first; None without py3langid."""
        try:
            import py3langid
        except ImportError:
            return None
        found = collections.Counter(py3langid.classify(text)[0] for text in self._sample)
        return dict(found.most_common())

    def add_problem(self, problem: Problem) -> None:
        """Counts problems of reading."""
        if problem.kind in ("not_utf8", "invalid_json", "nul", "surrogate", "no_text"):
            self.num_lines += 1
            self._count("unreadable", problem.where)

    def _count_line(self, kind: str, document: Document, number: int, line: str) -> None:
        where = f"{document.source}:{document.line}, line {number} of the document"
        self._count(kind, f"{where}: {line[:80]!r}")

    def _count(self, kind: str, example: str) -> None:
        self.counts[kind] += 1
        if len(self._examples[kind]) < _EXAMPLES:
            self._examples[kind].append(example)

    def shares(self) -> dict[str, float]:
        """Share of the lines; of documents for `one_sentence`, of tokens for `unknown`."""
        shares = {
            kind: self.counts[kind]
            / max(1, self.num_documents if kind == "one_sentence" else self.num_lines)
            for kind in LIMITS
        }
        if self._tokenizer:
            shares["unknown"] = self._num_unknown / max(1, self._num_tokens)
        return shares

    def findings(self) -> Iterator[Finding]:
        """The findings: shares above their limits."""
        lowers = self._tokenizer is not None and self._tokenizer.lower_case
        for kind, share in self.shares().items():
            limit = LIMITS.get(kind, UNKNOWN)
            if lowers and kind in _CASING:
                continue
            if share > limit.share:
                yield Finding(
                    kind,
                    self.source,
                    f"{share:.1%} {limit.what}",
                    f"at most {limit.share:.0%}",
                    limit.advice,
                    tuple(self._examples[kind]),
                )


def _faults(line: str) -> Iterator[str]:
    if _CONTROL.search(line):
        yield "control"
    letters = sum(map(str.isalpha, line[:1000]))
    if letters < 0.5 * len(line[:1000]):
        yield "no_sentence"
    upper, lower = line.upper(), line.lower()
    if letters >= 20 and upper != lower:
        if line == upper:
            yield "upper_case"
        elif line == lower:
            yield "no_capital"


def _has_script(character: str) -> bool:
    return character.isalpha() and unicodedata.category(character) != "Lm"  # modifiers


def _script(letter: str) -> str:
    """First word of the character's Unicode name, which names the script of a letter."""
    return unicodedata.name(letter, "UNNAMED").split(" ")[0].split("-")[0]
