"""Offsets of pieces: the tokenizer's own ids, and the characters that they stand for."""

import sys

import pytest
from english import SPECIAL, TEXT

from bertjax.data.tokenizers.offsets import OffsetEncoder
from bertjax.data.tokenizers.tokenizer import WordPieceTokenizer, from_argument

LETTERS = [chr(code) for code in range(ord("a"), ord("z") + 1)]
HANGUL = ["ᄒ", "##ᅡ", "##ᆫ"]  # the parts of one syllable, taken apart
MARKS = ["##\u302e", "##\U0001d165"]  # kept, and put in order of their class: the second first
PIECES = [
    *SPECIAL,
    *LETTERS,
    *MARKS,
    *(f"##{x}" for x in LETTERS),
    "##ve",
    "σ",
    "##ς",
    "中",
    "'",
    *HANGUL,
]
TEXTS = [
    *TEXT[:300],
    "",
    " \t\u2003 ",
    "The na\u00efve caf\u00e9, the nai\u0308ve cafe\u0301!",
    "ＡＢ ﬁne İstanbul ΟΔΥΣΣΕΥΣ Σ. ΑΣ中Σ",
    "中文ABC中文\u3000한국어 日本語カタカナ",
    "a\u200bb c\x0bd e\x85f\u2028g \ufffd\0h x\u0323\u0301y q\u0301\u0323",
    "\ud800 half a pair \udc00",
    "x\u302e\U0001d165y x\u302e\U0001d165",
    "emoji 🙂👩\u200d👩 and \U00020000",
    "W" * 201 + " end",
]


def surfaces(tokenizer, text):
    """(piece, what it stands for) of a text."""
    encoding = OffsetEncoder(tokenizer).encode(text)
    return [
        (tokenizer.pieces[id], text[start:end])
        for id, start, end in zip(*map(list, encoding), strict=True)
    ]


@pytest.fixture(params=["uncased", "cased", "learned", "sentence_piece"])
def tokenizer(request):
    if request.param == "learned":
        return request.getfixturevalue("wordpiece")
    if request.param == "sentence_piece":
        return request.getfixturevalue("sentence_piece")
    return WordPieceTokenizer(PIECES, lower_case=request.param == "uncased")


def test_ids_are_those_of_the_tokenizer_and_places_are_in_the_text(tokenizer):
    encoder = OffsetEncoder(tokenizer)
    for text in TEXTS:
        ids, starts, ends = encoder.encode(text)
        assert ids.tolist() == tokenizer.encode(text), text
        assert (starts <= ends).all()
        assert (starts >= 0).all()
        for start, end in zip(starts, ends, strict=True):
            assert end <= len(text)
            assert text[start:end] == text[start:end].strip()


@pytest.mark.parametrize("lower_case", [True, False])
def test_ids_hold_for_code_points_next_to_letters(lower_case):
    tokenizer = WordPieceTokenizer(PIECES, lower_case=lower_case)
    encoder = OffsetEncoder(tokenizer)
    codes = [*range(0x1200), *range(0x1200, sys.maxunicode + 1, 997)]
    different = [
        hex(code)
        for code in codes
        if encoder.encode(text := f"x{chr(code)}y s{chr(code)}").ids.tolist()
        != tokenizer.encode(text)
    ]
    assert not different


def test_places_survive_lowering_accents_and_ideographs():
    tokenizer = WordPieceTokenizer(PIECES, lower_case=True)
    assert surfaces(tokenizer, "Na\u00efVE") == [
        ("n", "N"),
        ("##a", "a"),
        ("##i", "\u00ef"),
        ("##ve", "VE"),
    ]
    # An accent that stands alone belongs to the letter before it.
    assert surfaces(tokenizer, "i\u0308ve") == [("i", "i\u0308"), ("##ve", "ve")]
    assert surfaces(tokenizer, "İa") == [("i", "İ"), ("##a", "a")]
    assert surfaces(tokenizer, "a中B") == [("a", "a"), ("中", "中"), ("b", "B")]
    assert surfaces(tokenizer, "it'S") == [("i", "i"), ("##t", "t"), ("'", "'"), ("s", "S")]
    assert surfaces(tokenizer, "ΣΣ") == [("σ", "Σ"), ("##ς", "Σ")]
    assert surfaces(tokenizer, "a\u200bb") == [("a", "a"), ("##b", "b")]
    # Three parts of one character; an unknown word is one piece.
    assert surfaces(tokenizer, "한") == [("ᄒ", "한"), ("##ᅡ", "한"), ("##ᆫ", "한")]
    assert surfaces(tokenizer, " Ünbek€nnt ") == [("[UNK]", "Ünbek€nnt")]


def test_sentence_pieces_leave_the_white_space_before_them(sentence_piece):
    text = "  The  function\treturns \u00a0it "
    found = surfaces(sentence_piece, text)
    assert "".join(surface for _, surface in found) == "".join(text.split())
    assert found[0][0].startswith("▁")


def test_more_chunks_than_are_remembered_change_nothing(monkeypatch):
    monkeypatch.setattr(OffsetEncoder, "MAX_CHUNKS", 3)
    tokenizer = WordPieceTokenizer(PIECES, lower_case=True)
    encoder = OffsetEncoder(tokenizer)
    text = "one two three four five one two three"
    assert encoder.encode(text).ids.tolist() == tokenizer.encode(text)
    assert encoder.encode(text).starts[0] == 0


def test_real_text_in_several_scripts(shared_data):
    import gzip
    import json

    for name, vocabulary in (
        ("zh_wiki", "bert-chinese-vocab.txt"),
        ("ja_novel", "bert-chinese-vocab.txt"),
        ("wiki_heldout", "bert-base-uncased-vocab.txt"),
        ("wiki_heldout", "sentencepiece_test_model.model"),
    ):
        tokenizer = from_argument(str(shared_data / "vocab" / vocabulary))
        encoder = OffsetEncoder(tokenizer)
        with gzip.open(shared_data / "corpus" / f"{name}.jsonl.gz", "rt", encoding="utf-8") as file:
            lines = json.loads(file.readline())["text"].split("\n")[:40]
        assert lines
        for line in lines:
            ids, starts, ends = encoder.encode(line)
            assert ids.tolist() == tokenizer.encode(line)
            if vocabulary.endswith(".txt"):  # what no piece stands for is white space
                covered = set()
                for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
                    covered |= set(range(start, end))
                left = {character for i, character in enumerate(line) if i not in covered}
                assert not [c for c in left if not c.isspace()]
