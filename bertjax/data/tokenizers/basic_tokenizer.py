"""Text to words and punctuation marks, as in tokenization.py of google-research/bert.

`basic_tokenize` applies the rules to one text. `split_chunks` and `fine_chunks` cut text at places
where the rules cut it too, and are far faster: chunks repeat, so a cache of chunks hardly ever
needs the rules.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

# CJK Unified Ideographs and their extensions; kana and hangul are written with other rules.
CJK_RANGES = (
    (0x4E00, 0x9FFF),
    (0x3400, 0x4DBF),
    (0x20000, 0x2A6DF),
    (0x2A700, 0x2B73F),
    (0x2B740, 0x2B81F),
    (0x2B820, 0x2CEAF),
    (0xF900, 0xFAFF),
    (0x2F800, 0x2FA1F),
)

# In these texts str.split() does not give the reference's chunks: control characters that Python
# treats as white space and the reference drops, and ideographs, each a chunk of its own. Also NUL,
# which ends sentences below.
_NEEDS_CLEANING = re.compile(
    "[\0\x0b\x0c\x1c-\x1f\x85" + "".join(f"{chr(a)}-{chr(b)}" for a, b in CJK_RANGES) + "]"
)


class _CleanTable(dict[int, "int | str | None"]):
    """str.translate table of the first pass: drop controls, white space to a space, space CJK."""

    def __missing__(self, code: int) -> int | str | None:
        character = chr(code)
        value: int | str | None = code
        if character in "\t\n\r":
            value = " "
        elif code in (0, 0xFFFD) or unicodedata.category(character) in ("Cc", "Cf"):
            value = None
        elif unicodedata.category(character) == "Zs":
            value = " "
        elif any(first <= code <= last for first, last in CJK_RANGES):
            value = f" {character} "
        self[code] = value
        return value


class _SplitTable(dict[int, "int | str | None"]):
    """str.translate table of the second pass: space punctuation and, if asked, drop accents."""

    def __init__(self, strip_accents: bool):
        super().__init__()
        self.strip_accents = strip_accents

    def __missing__(self, code: int) -> int | str | None:
        character = chr(code)
        category = unicodedata.category(character)
        value: int | str | None = code
        # The reference's ASCII ranges 33-47, 58-64, 91-96 and 123-126.
        if (33 <= code <= 126 and not character.isalnum()) or category.startswith("P"):
            value = f" {character} "
        elif category == "Mn" and self.strip_accents:
            value = None
        self[code] = value
        return value


CLEAN = _CleanTable()
SPLIT_CASED = _SplitTable(strip_accents=False)
SPLIT_UNCASED = _SplitTable(strip_accents=True)


def basic_tokenize(text: str, lower_case: bool) -> list[str]:
    """Split text into words and punctuation marks, before any vocabulary is looked at."""
    words: list[str] = []
    for token in text.translate(CLEAN).split():
        # Word by word, because lower() of a sigma depends on its neighbours.
        if lower_case:
            token = unicodedata.normalize("NFD", token.lower()).translate(SPLIT_UNCASED)
        else:
            token = token.translate(SPLIT_CASED)
        words += token.split()
    return words


def split_chunks(text: str) -> list[str]:
    """Split text at white space; the words of the chunks, joined, are the words of the text."""
    if _NEEDS_CLEANING.search(text):
        text = text.translate(CLEAN)
    return text.split()


# Between sentences; no text has it once it is cleaned.
SENTENCE_END = b"\0"
_SEPARATOR = f" {SENTENCE_END.decode()} "
# ASCII punctuation, each a chunk. It is not changed by translation, and no accent joins it.
_ASCII_MARKS = [
    (mark.encode(), f" {mark} ".encode()) for mark in map(chr, range(33, 127)) if not mark.isalnum()
]
# U+2010 to U+2027: dashes, quotation marks and the ellipsis, all of them punctuation.
_GENERAL_PUNCTUATION = re.compile(rb"(\xe2\x80[\x90-\xa7])")
# Everything that `_plain` changes, except NUL, contains one of these bytes: U+000B, U+000C, and the
# first bytes of ideographs (and of kana and emoji, which is harmless).
_SUSPICIOUS = bytes([0x0B, 0x0C, *range(0xE3, 0xEA), *range(0xEF, 0x100)])
_CAPITAL_SIGMA = "\u03a3"


def fine_chunks(sentences: Sequence[str], lower_case: bool) -> list[bytes]:
    """Cut sentences into pieces of UTF-8 that are mostly one word or one punctuation mark.

    The words of the chunks, joined, are the words of the sentences. The number of different chunks
    is small enough for a cache. The rules too cut at white space, ASCII punctuation and common
    quotation marks. For an uncased vocabulary the letters A to Z are lowered first, which is safe
    because lower() is idempotent. Only a capital sigma depends on its neighbours, so text with one
    is lowered before it is cut.

    Args:
        sentences: any text.
        lower_case: whether the words are lowered.

    Returns:
        UTF-8 (half a surrogate pair included), with SENTENCE_END after each sentence.
    """
    data = _joined(sentences)
    if (
        data.count(SENTENCE_END) != len(sentences)
        or len(data.translate(None, _SUSPICIOUS)) != len(data)
        or (lower_case and _CAPITAL_SIGMA.encode() in data)
    ):
        data = _joined([_plain(sentence, lower_case) for sentence in sentences])
    if lower_case:
        data = data.lower()  # on bytes, only A to Z
    for mark, apart in _ASCII_MARKS:
        data = data.replace(mark, apart)
    if not data.isascii():
        data = b" ".join(_GENERAL_PUNCTUATION.split(data))
    # Python splits bytes at ASCII white space only. The reference splits there too, except at
    # U+000B and U+000C.
    return data.split()


def _joined(sentences: Sequence[str]) -> bytes:
    return _SEPARATOR.join([*sentences, ""]).encode("utf-8", "surrogatepass")


def _plain(sentence: str, lower_case: bool) -> str:
    """A sentence with the same words that can be cut at any white space or punctuation."""
    if lower_case and _CAPITAL_SIGMA in sentence:
        return " ".join([chunk.lower() for chunk in sentence.translate(CLEAN).split()])
    if _NEEDS_CLEANING.search(sentence):
        return sentence.translate(CLEAN)
    return sentence
