"""The place of each piece in its text: ids as in `Tokenizer.encode`, with character offsets.

WordPiece drops, lowers, decomposes and reorders characters before it splits. Here every character
carries its original place through the same steps. So the text of a span of pieces is read from the
original, and not guessed from the pieces (`get_final_text` of google-research/bert, run_squad.py).
SentencePiece reports its offsets itself.
"""

from __future__ import annotations

import itertools
import re
import unicodedata
from typing import NamedTuple

import numpy as np

from bertjax.data.tokenizers.basic_tokenizer import CJK_RANGES, CLEAN, SPLIT_CASED, SPLIT_UNCASED
from bertjax.data.tokenizers.vocabulary import Tokenizer
from bertjax.data.tokenizers.wordpiece import WordPieceTokenizer

# White space as the reference has it (Cc is dropped instead), and the two that str.split() adds.
_SPACES = "\t\n\r \u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
_CJK = "".join(f"{chr(first)}-{chr(last)}" for first, last in CJK_RANGES)
_CHUNK = re.compile(f"[{_CJK}]|[^{_CJK}{_SPACES}]+")


class Encoding(NamedTuple):
    """n pieces of a text; piece i is text[starts[i]:ends[i]], without surrounding space.

    Pieces overlap if one character became several pieces (a decomposed Hangul syllable, a
    ligature). A piece of white space only is empty.
    """

    ids: np.ndarray  # int32 [n]
    starts: np.ndarray  # int32 [n]
    ends: np.ndarray  # int32 [n]


class OffsetEncoder:
    """Encodes texts with offsets, with a cache of chunks, since they repeat.

    Args:
        tokenizer: WordPiece, or one that has `encode_with_offsets`.
    """

    MAX_CHUNKS = 1 << 16  # in the cache, which is then emptied

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._chunks: dict[str, list[tuple[int, int, int]]] = {}

    def encode(self, text: str) -> Encoding:
        """Return the ids of `tokenizer.encode(text)` and the place of each in `text`."""
        if not isinstance(self._tokenizer, WordPieceTokenizer):
            return _sentence_pieces(self._tokenizer, text)
        pieces: list[tuple[int, int, int]] = []
        for match in _CHUNK.finditer(text):
            chunk, at = match.group(), match.start()
            found = self._chunks.get(chunk)
            if found is None:
                found = _word_pieces(self._tokenizer, chunk)
                if len(self._chunks) >= self.MAX_CHUNKS:
                    self._chunks.clear()
                self._chunks[chunk] = found
            pieces += [(id, start + at, end + at) for id, start, end in found]
        table = np.array(pieces, np.int32).reshape(-1, 3)
        return Encoding(*np.ascontiguousarray(table.T))


def _word_pieces(tokenizer: WordPieceTokenizer, chunk: str) -> list[tuple[int, int, int]]:
    """(id, start, end) of the pieces of a text without white space."""
    pieces = []
    for word in _words(chunk, tokenizer.lower_case):
        text = "".join(character for character, _, _ in word)
        ids = tokenizer.word_ids(text)
        if ids == [tokenizer.unk_id]:
            pieces.append((ids[0], word[0][1], word[-1][2]))
            continue
        first = 0
        for id in ids:
            last = first + len(tokenizer.pieces[id]) - (2 if first else 0)
            pieces.append((id, word[first][1], word[last - 1][2]))
            first = last
    return pieces


def _words(chunk: str, lower_case: bool) -> list[list[tuple[str, int, int]]]:
    """The words of `basic_tokenize(chunk)`, each character with its original place."""
    kept = [(c, i) for i, c in enumerate(chunk) if CLEAN[ord(c)] is not None]
    table = SPLIT_CASED
    if lower_case:
        table = SPLIT_UNCASED
        # All at once, since a sigma depends on its neighbours; one character may become several.
        lowered = "".join(c for c, _ in kept).lower()
        sources = [i for c, i in kept for _ in c.lower()]
        kept = _decomposed(list(zip(lowered, sources, strict=True)))
    words: list[list[tuple[str, int, int]]] = [[]]
    for character, at in kept:
        split = table[ord(character)]
        if split is None:  # an accent: it belongs to the letter before it
            if words[-1]:
                letter, start, end = words[-1][-1]
                words[-1][-1] = (letter, start, max(end, at + 1))
        elif character.isspace():
            words.append([])
        elif isinstance(split, str):  # a punctuation mark
            words += [[(character, at, at + 1)], []]
        else:
            words[-1].append((character, at, at + 1))
    return [word for word in words if word]


def _decomposed(characters: list[tuple[str, int]]) -> list[tuple[str, int]]:
    """NFD of (character, place): decomposed, then marks in order of class, as Unicode 3.11 D109."""
    if all(c.isascii() for c, _ in characters):
        return characters
    parts = [(part, at) for c, at in characters for part in unicodedata.normalize("NFD", c)]

    def rank(part: tuple[str, int]) -> int:  # 0 for what is no mark
        return unicodedata.combining(part[0])

    runs = itertools.groupby(parts, lambda part: rank(part) > 0)
    return [part for _, run in runs for part in sorted(run, key=rank)]


def _sentence_pieces(tokenizer: Tokenizer, text: str) -> Encoding:
    ids, starts, ends = tokenizer.encode_with_offsets(text)
    # A piece includes the white space before it; a span must not begin with it.
    for i, (start, end) in enumerate(zip(starts.tolist(), ends.tolist(), strict=True)):
        surface = text[start:end]
        starts[i] = end - len(surface.lstrip())
        ends[i] = max(starts[i], start + len(surface.rstrip()))
    return Encoding(ids.astype(np.int32), starts, ends)
