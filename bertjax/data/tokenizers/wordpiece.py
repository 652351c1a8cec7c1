"""WordPiece as published: the ids of google-research/bert, tokenization.py, exactly.

The rules in short: drop U+0000, U+FFFD, control (Cc) and format (Cf) characters; put spaces around
CJK ideographs; split on white space; for an uncased vocabulary lower() and drop accents (NFD
without Mn); split at punctuation; then take the longest known piece from the left, again and again.
A word with an unknown part, or with more than 200 characters, is one [UNK].

The speed comes from a cache: words repeat, so sentences are encoded by looking up their
`fine_chunks` in a dict from chunk to id bytes.
"""

from __future__ import annotations

import string
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np

from bertjax.data.tokenizers.basic_tokenizer import SENTENCE_END, basic_tokenize, fine_chunks
from bertjax.data.tokenizers.vocabulary import (
    SPECIAL_PIECES,
    Tokenizer,
    TokenizerError,
    with_filler,
)

MAX_WORD_CHARACTERS = 200
# About 160,000 chunks; 130 MB of novels have 99,000. With half of this, the cache was emptied twice
# in 160 MB, and `prepare` took 9 % longer.
DEFAULT_CACHE_BYTES = 32 << 20
_BATCH = 2_000  # sentences cut and looked up at once: some MB of intermediate data


class _ChunkCache(dict[bytes, bytes]):
    """`fine_chunks` → bytes of their ids; computed when missing, emptied when full."""

    # Bytes of an entry beside its characters and ids: two object headers, a share of the table.
    ENTRY_BYTES = 200
    # A longer chunk is hardly ever seen twice.
    MAX_CHUNK_BYTES = 100

    def __init__(self, pieces: Sequence[str], unk_id: int, lower_case: bool):
        super().__init__()
        self.lower_case = lower_case
        self.max_bytes = DEFAULT_CACHE_BYTES
        # One more than the ids: the largest value means SENTENCE_END.
        self.dtype = np.dtype(np.uint16 if len(pieces) < 1 << 16 else np.uint32)
        self.sentence_end = 2 ** (8 * self.dtype.itemsize) - 1
        stored = {piece: self._to_bytes(id) for id, piece in enumerate(pieces)}
        # A longer word is [UNK] even if the vocabulary has it.
        self.initial = {p: ids for p, ids in stored.items() if len(p) <= MAX_WORD_CHARACTERS}
        self.continuing = {p[2:]: ids for p, ids in stored.items() if p.startswith("##")}
        self.longest = max(map(len, stored))
        self.unknown = self._to_bytes(unk_id)
        self.empty()

    def __missing__(self, chunk: bytes) -> bytes:
        text = chunk.decode("utf-8", "surrogatepass")
        # ASCII letters and digits, lowered already if they are to be, are one word.
        words = [text] if chunk.isalnum() else basic_tokenize(text, self.lower_case)
        ids = b"".join([self.initial.get(word) or self.split_word(word) for word in words])
        if len(chunk) <= self.MAX_CHUNK_BYTES:
            size = self.ENTRY_BYTES + len(chunk) + len(ids)
            if self.num_bytes + size > self.max_bytes:
                self.empty()
            self.num_bytes += size
            self[chunk] = ids
        return ids

    def empty(self) -> None:
        self.clear()
        self[SENTENCE_END] = self._to_bytes(self.sentence_end)
        self.num_bytes = 0

    def _to_bytes(self, id: int) -> bytes:
        return id.to_bytes(self.dtype.itemsize, sys.byteorder)

    def split_word(self, word: str) -> bytes:
        """Greedy longest match first."""
        if len(word) > MAX_WORD_CHARACTERS:
            return self.unknown
        pieces = []
        table = self.initial
        start = 0
        while start < len(word):
            end = min(len(word), start + self.longest)
            while (piece := table.get(word[start:end])) is None:
                end -= 1
                if end == start:
                    return self.unknown
            pieces.append(piece)
            table = self.continuing
            start = end
        return b"".join(pieces)


class WordPieceTokenizer(Tokenizer):
    """WordPiece with a given vocabulary.

    Args:
        pieces: the vocabulary in the order of the ids; continuing pieces begin with "##".
        lower_case: lower the text and strip its accents.
        source: what to call the vocabulary in errors.

    Raises:
        TokenizerError: a special piece is missing, a piece comes twice or is empty.
    """

    kind = "wordpiece"
    content_file = "vocab.txt"

    def __init__(self, pieces: Sequence[str], *, lower_case: bool, source: str = "vocabulary"):
        ids: dict[str, int] = {}
        for id, piece in enumerate(pieces):
            if not piece.strip(" \t\r\n"):
                raise TokenizerError(f"{source}, line {id + 1}: empty; each line must be a piece")
            if piece in ids:
                raise TokenizerError(
                    f"{source}, line {id + 1}: {piece!r} stands on line {ids[piece] + 1} too; "
                    "each piece must come once"
                )
            ids[piece] = id
        if missing := [piece for piece in SPECIAL_PIECES if piece not in ids]:
            raise TokenizerError(
                f"{source}: no {', '.join(missing)} among its {len(ids)} lines; a WordPiece "
                f"vocabulary has one piece a line and must hold {', '.join(SPECIAL_PIECES)}"
            )
        super().__init__(
            pieces,
            special_ids=ids,
            word_starts=np.array([not piece.startswith("##") for piece in pieces]),
            lower_case=lower_case,
            content="".join(f"{piece}\n" for piece in pieces).encode(),
        )
        self._cache = _ChunkCache(self.pieces, self.unk_id, lower_case)

    @classmethod
    def from_file(cls, path: Path, *, lower_case: bool, vocab_size: int) -> WordPieceTokenizer:
        """See `Tokenizer.from_file`; the file has all pieces."""
        del vocab_size
        return load_wordpiece(path, lower_case=lower_case)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle without the cache, which is faster to fill than to send."""
        return _wordpiece_from_pickle, (self.pieces, self.lower_case, self.cache_bytes)

    @property
    def cache_bytes(self) -> int:
        """Memory that the cache may take, about; when full it is emptied. Never changes ids."""
        return self._cache.max_bytes

    @cache_bytes.setter
    def cache_bytes(self, max_bytes: int) -> None:
        self._cache.max_bytes = max_bytes
        self._cache.empty()

    def word_ids(self, word: str) -> list[int]:
        """Return the ids of one word of `basic_tokenize`."""
        ids = self._cache.initial.get(word) or self._cache.split_word(word)
        return cast(list[int], np.frombuffer(ids, self._cache.dtype).tolist())

    def encode(self, text: str) -> list[int]:
        """Return the ids of `text`."""
        return cast(list[int], self._encode_batch([text])[0].tolist())

    def encode_sentences(self, sentences: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """See `Tokenizer.encode_sentences`."""
        batches = [
            self._encode_batch(sentences[start : start + _BATCH])
            for start in range(0, max(1, len(sentences)), _BATCH)
        ]
        tokens, lengths = (np.concatenate(arrays) for arrays in zip(*batches, strict=True))
        return tokens, lengths

    def _encode_batch(self, sentences: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        chunks = fine_chunks(sentences, self.lower_case)
        ids = np.frombuffer(b"".join(map(self._cache.__getitem__, chunks)), self._cache.dtype)
        is_end = ids == self._cache.sentence_end
        lengths = np.diff(np.flatnonzero(is_end), prepend=-1) - 1
        return ids[~is_end].astype(self.dtype, copy=False), lengths

    def decode(self, ids: Iterable[int]) -> str:
        """Join the pieces: a space before each word, none before a "##" piece."""
        text = " ".join(self.id_to_piece(int(id)) for id in ids)
        return text.replace(" ##", "")


def _wordpiece_from_pickle(
    pieces: Sequence[str], lower_case: bool, cache_bytes: int
) -> WordPieceTokenizer:
    tokenizer = WordPieceTokenizer(pieces, lower_case=lower_case)
    tokenizer.cache_bytes = cache_bytes
    return tokenizer


def read_vocabulary(path: str | Path) -> list[str]:
    """Read a vocab.txt: UTF-8, one piece per line, the id is the line number from 0.

    White space around a piece is not part of it, as in the reference.

    Raises:
        TokenizerError: the file cannot be read or is not UTF-8 text.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise TokenizerError(f"{path}: cannot be read: {error.strerror}") from error
    advice = (
        "a WordPiece vocabulary is UTF-8 text; give a SentencePiece model as sentencepiece:PATH"
    )
    if b"\0" in data:
        line = data.count(b"\n", 0, data.index(b"\0")) + 1
        raise TokenizerError(f"{path}, line {line}: holds a NUL byte; {advice}")
    try:
        lines = data.decode("utf-8").removesuffix("\n").split("\n")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise TokenizerError(
            f"{path}, line {line}: not UTF-8 ({error.reason}); {advice}"
        ) from error
    # A piece that is itself a separator (U+2028 in some vocabularies) keeps its line.
    return [line.strip() or line.rstrip("\r") for line in lines]


def guess_casing(pieces: Iterable[str]) -> bool | None:
    """True = an uncased vocabulary, False = a cased one, None = its letters do not say.

    A cased vocabulary has the capitals A to Z as pieces, an uncased one does not (stray capitals
    as in Chinese BERT's `<S>` are no such pieces). One without Latin letters does not say.
    """
    known = set(pieces)
    capitals = len(known.intersection(string.ascii_uppercase))
    if capitals > 13:
        return False
    small = len(known.intersection(string.ascii_lowercase))
    return True if small > 13 and capitals == 0 else None


def load_wordpiece(
    path: str | Path, *, lower_case: bool, vocab_size: int | None = None
) -> WordPieceTokenizer:
    """Load a vocab.txt, filled up to `vocab_size` if that is given.

    Raises:
        TokenizerError: the file is not a WordPiece vocabulary, or larger than `vocab_size`.
    """
    pieces = with_filler(read_vocabulary(path), vocab_size, str(path))
    return WordPieceTokenizer(pieces, lower_case=lower_case, source=str(path))
