"""WordPiece ids against the oracle: adversarial Unicode and real text."""

import gzip
import itertools
import json
import pickle
import random
import sys
import unicodedata

import numpy as np
import pytest
from wordpiece_oracle import basic_tokenize as oracle_words
from wordpiece_oracle import encode as oracle_encode

from bertjax.data.tokenizers.basic_tokenizer import SENTENCE_END, basic_tokenize, fine_chunks
from bertjax.data.tokenizers.tokenizer import WordPieceTokenizer
from bertjax.data.tokenizers.wordpiece import load_wordpiece

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
CASINGS = pytest.mark.parametrize("lower_case", [True, False])
VOCABULARIES = ["bert-base-uncased-vocab.txt", "bert-chinese-vocab.txt"]

CJK_BLOCKS = [
    (0x4E00, 0x9FFF),
    (0x3400, 0x4DBF),
    (0x20000, 0x2A6DF),
    (0x2A700, 0x2B73F),
    (0x2B740, 0x2B81F),
    (0x2B820, 0x2CEAF),
    (0xF900, 0xFAFF),
    (0x2F800, 0x2FA1F),
]
# What trips tokenizers up: white space of every sort and controls that Python splits at, accents
# in both forms, letters that change length in lower case, sigmas, private use, lone surrogates.
HANDPICKED = [
    "",
    " \t\r\n",
    "Hello, world! It's 3.14 [MASK] ##ing $5^2 `a`~b|c",
    "a\x0bb a\x0cb a\x1cb a\x1db a\x1eb a\x1fb a\x85b a\x00b a\x7fb a\x9fb",
    "a\x0b b \x0c \x1f c\x85",
    "a\u00a0b a\u1680b a\u2002b a\u200ab a\u2028b a\u2029b a\u202fb a\u205fb a\u3000b",
    "a\u200bb a\u200cb a\u200db a\u2060b a\ufeffb a\u00adb a\u180eb a\u061cb \ufffda\ufffd",
    "ΑΣ ΣΑΣ Σ ΑΣ. ΑΣ.Α ΑΣ'Α ΑΣ\u00adΑ ΑΣ\u0301 Α\u0301Σ ΑΣ中Α 中Σ ΑΣ\x1cΑ Σίσυφος",
    "İstanbul I\u0307 ıI DŽ ǅ ß ẞ ŉ ﬁ ﬃ K Å Ω",
    "café cafe\u0301 Ǟ A\u0308\u0304 Å naïve ḍ̇ q\u0307\u0323 \u0301a \u0301",
    "ñ Ñ ç 한국어 각 がぎぐ ガ ﾊﾞ か\u3099 ไทยภาษา हिन्दी עִבְרִית العَرَبِيَّة",
    "中文字符 mixed中文mixed 漢、字。「引用」 Ａｂｃ１２３！？",
    "\U00020000\U0002a6df\U0002a700\U0002b73f\U0002b740\U0002b81f\U0002b820\U0002ceaf\U0002ceb0",
    "x\u2b820y 豈\ufaff\U0002f800\U0002fa1f\U0002fa20 々〆〇〻〡",
    "\ue000a\uf8ff \U000f0000b\U0010fffd \ud800 a\udfffb \uffff \U0010ffff \ufdd0",
    "€ ¢ £ ¥ § © ® ° ± × ÷ ¿ ¡ « » — – … ‘ ’ “ ” • ‽ ⁂ 〃 ︰ ﹏ ＿ ～ ￥",
    "😀😎👩\u200d👩\u200d👧 🇩🇪 ❤\ufe0f 1\ufe0f\u20e3 a\U000e0041b \U000e0100",
    "٣٫١٤ ½ Ⅷ ⅷ ①② ² ₂ ⓐⒶ 𝔘𝔫𝔦 𐐀𐐨 ꙋꙊ ᏣᏰ ꭰ ᲐᲑ აბ",
]


def category_boundaries():
    """The first and last code point of every run of one category, and the edges of the blocks."""
    codes = set()
    previous = ""
    for code in range(sys.maxunicode + 1):
        category = unicodedata.category(chr(code))
        if category != previous:
            codes.update((code, max(code - 1, 0)))
            previous = category
    for first, last in CJK_BLOCKS:
        codes.update((first - 1, first, last, last + 1))
    for first, last in [(32, 48), (57, 65), (90, 97), (122, 127)]:
        codes.update(range(first, last + 1))
    codes.update(range(0x300))
    return sorted(codes)


def boundary_texts():
    """Each code point alone, inside of a word, beside capitals, an accent and an ideograph."""
    templates = [
        "{0}",
        "a{0}b",
        "Ab{0}",
        "{0}Ba",
        "{0}\u0301",
        "中{0}中",
        "Σ{0}",
        "Α{0}Σ",
        "{0}.{0}",
    ]
    lines = []
    for code in category_boundaries():
        lines.append(" ".join(template.format(chr(code)) for template in templates))
    return lines


def random_texts(seed, number):
    """Strings in which characters meet that the rules treat differently."""
    generator = random.Random(seed)
    white = " \t\n\r\x00\x0b\x0c\x1c\x1f\x85\xa0\u2028\u2029\u200b\ufeff\ufffd"
    hard = white + "\u0301\u0307\u0345ΣσςİIıß中豈\U0002b820'.-_ "
    boundaries = [chr(code) for code in category_boundaries()]
    pools = [hard, "abcdefgABCDEFG", "αβγΑΒΓΣ", "かなカナ한글中文", boundaries]
    for _ in range(number):
        yield "".join(
            generator.choice(generator.choice(pools)) for _ in range(generator.randrange(1, 60))
        )


def vocabulary_for(texts, lower_case, seed=0):
    """A small vocabulary that spells most of the texts, so that [UNK] hides no difference."""
    generator = random.Random(seed)
    words = sorted({word for text in texts for word in oracle_words(text, lower_case)})
    words = [word.encode("utf-8", "ignore").decode() or "x" for word in words]  # no surrogates
    characters = sorted({character for word in words for character in word})
    pieces = dict.fromkeys(SPECIAL)
    for number, character in enumerate(characters):
        if number % 17 != 5:  # some words must be [UNK] for want of a part
            pieces[character] = None
            pieces["##" + character] = None
    for word in words:
        start = generator.randrange(len(word))
        end = generator.randrange(start, len(word)) + 1
        pieces[("##" if start else "") + word[start:end]] = None
    return list(pieces)


def assert_equal_to_oracle(tokenizer, texts):
    vocabulary = {piece: id for id, piece in enumerate(tokenizer.pieces)}
    lower_case = tokenizer.lower_case
    expected = [oracle_encode(text, vocabulary, lower_case) for text in texts]
    ids, lengths = tokenizer.encode_sentences(texts)
    assert ids.dtype == tokenizer.dtype
    assert lengths.sum() == len(ids)
    ends = np.cumsum(lengths)
    for text, want, length, end in zip(texts, expected, lengths, ends, strict=True):
        got = ids[end - length : end].tolist()
        assert got == want, f"{text!r}: {got} instead of {want}"
        assert tokenizer.encode(text) == want, f"{text!r}: encode and encode_sentences differ"


@CASINGS
@pytest.mark.parametrize(
    "texts",
    [HANDPICKED, boundary_texts(), list(random_texts(0, 4000))],
    ids=["picked", "edges", "random"],
)
def test_ids_equal_the_oracle(texts, lower_case):
    for text in texts:
        assert basic_tokenize(text, lower_case) == oracle_words(text, lower_case), repr(text)
    pieces = vocabulary_for(texts, lower_case)
    assert_equal_to_oracle(WordPieceTokenizer(pieces, lower_case=lower_case), texts)


def words_of_chunks(texts, lower_case):
    """The words of each text by way of `fine_chunks`, all texts cut at once."""
    words = [[]]
    for chunk in fine_chunks(texts, lower_case):
        if chunk == SENTENCE_END:
            words.append([])
        else:
            words[-1] += basic_tokenize(chunk.decode("utf-8", "surrogatepass"), lower_case)
    assert words.pop() == []
    return words


@CASINGS
def test_chunks_have_the_words_of_the_oracle(lower_case):
    """Alone, and together with others that need cleaning when they do not."""
    codes = [
        *range(0x300),
        *range(0x2000, 0x2070),
        *(code for block in CJK_BLOCKS for code in block),
    ]
    texts = [f"x{chr(code)}y" for code in codes]  # so that each has one cause only
    texts += ["x \0 y", "\0", *HANDPICKED, *boundary_texts()[::7], *random_texts(3, 2000)]
    want = [oracle_words(text, lower_case) for text in texts]
    for start in range(0, len(texts), 5):
        piece = slice(start, start + 5)
        assert words_of_chunks(texts[piece], lower_case) == want[piece], texts[piece]
    for text, words in zip(texts, want, strict=True):
        assert words_of_chunks([text], lower_case) == [words], repr(text)
    assert fine_chunks([], lower_case) == []
    for ideograph in map(chr, itertools.chain(*CJK_BLOCKS)):  # a chunk each: a line never repeats
        chunks = [b"x", ideograph.encode(), b"y", SENTENCE_END]
        assert fine_chunks([f"x{ideograph}y"], lower_case) == chunks
    marks = " ".join(map(chr, range(0x2010, 0x2028)))
    assert fine_chunks(["(a-b),“c”", marks], lower_case)[:-1] == (
        [b"(", b"a", b"-", b"b", b")", b",", "“".encode(), b"c", "”".encode(), SENTENCE_END]
        + [mark.encode() for mark in marks.split()]
    )


def test_lowering_twice_is_lowering_once():
    """What `fine_chunks` rests on: it lowers some text that the rules then lower again."""
    characters = map(chr, range(sys.maxunicode + 1))
    assert [c for c in characters if c.lower().lower() != c.lower() or "Σ" in c.lower()] == []


@CASINGS
def test_every_assigned_character_equals_the_oracle(lower_case):
    """All but the insides of the ideograph, hangul and private-use blocks, between two letters."""
    characters = [
        chr(code)
        for code in range(sys.maxunicode + 1)
        if unicodedata.category(chr(code)) not in ("Cn", "Co", "Cs")
        and not any(first < code < last for first, last in [*CJK_BLOCKS, (0xAC00, 0xD7A3)])
    ]
    assert len(characters) > 30_000
    for start in range(0, len(characters), 50):
        text = " ".join(f"x{character}y" for character in characters[start : start + 50])
        want = oracle_words(text, lower_case)
        assert basic_tokenize(text, lower_case) == want, repr(text)
        assert words_of_chunks([text], lower_case) == [want], repr(text)


@CASINGS
@pytest.mark.parametrize("length", [1, 99, 100, 101, 199, 200, 201, 300])
def test_words_of_more_than_200_characters_are_unknown(length, lower_case):
    tokenizer = WordPieceTokenizer(
        [*SPECIAL, "a", "##a", "!", "b" * 200, "c" * 201], lower_case=lower_case
    )
    assert tokenizer.encode("a" * length) == ([5] + [6] * (length - 1) if length <= 200 else [1])
    # An accent counts before it is dropped only where it is not dropped.
    accented = "a" * length + "\u0301"
    assert_equal_to_oracle(
        tokenizer,
        [accented, "a" * length + "!" + "a" * 3, "b" * 200, "b" * 201, "c" * 201, "!" * 300],
    )


def test_a_cache_that_overflows_changes_nothing():
    texts = list(random_texts(1, 500))
    tokenizer = WordPieceTokenizer(vocabulary_for(texts, True), lower_case=True)
    want = [tokenizer.encode(text) for text in texts]
    assert len(tokenizer._cache) > 100
    tokenizer.cache_bytes = 2_000
    for _ in range(2):
        assert [tokenizer.encode(text) for text in texts] == want
        assert tokenizer._cache.num_bytes <= 2_000
        assert len(tokenizer._cache) < 20
    tokenizer.encode("x" * 1_000_000)  # a chunk that is not worth keeping
    assert max(map(len, tokenizer._cache)) <= 100


def test_a_vocabulary_above_65536_pieces_uses_uint32():
    pieces = [*SPECIAL, *(f"[unused{n}]" for n in range(65_536 - 6)), "last"]
    tokenizer = WordPieceTokenizer(pieces, lower_case=True)
    assert tokenizer.dtype == np.uint16
    ids, lengths = tokenizer.encode_sentences(["last last", "", "last"])
    assert ids.dtype == np.uint16
    assert (ids.tolist(), lengths.tolist()) == ([65_535] * 3, [2, 0, 1])
    tokenizer = WordPieceTokenizer([*pieces, "more"], lower_case=True)
    assert tokenizer.dtype == np.uint32
    ids, lengths = tokenizer.encode_sentences(["last more", "", "more"])
    assert ids.dtype == np.uint32
    assert (ids.tolist(), lengths.tolist()) == ([65_535, 65_536, 65_536], [2, 0, 1])


def test_special_pieces_never_come_from_text():
    tokenizer = WordPieceTokenizer([*SPECIAL, "[", "]", "mask", "cls"], lower_case=True)
    assert tokenizer.encode("[MASK][CLS]") == [5, 7, 6, 5, 8, 6]


def test_attributes_and_decode():
    tokenizer = WordPieceTokenizer(
        ["[UNK]", "[MASK]", "[SEP]", "[CLS]", "[PAD]", "un", "##aff", "##able", "!"],
        lower_case=True,
    )
    assert (tokenizer.kind, tokenizer.vocab_size, tokenizer.lower_case) == ("wordpiece", 9, True)
    ids = (
        tokenizer.unk_id,
        tokenizer.mask_id,
        tokenizer.sep_id,
        tokenizer.cls_id,
        tokenizer.pad_id,
    )
    assert ids == (0, 1, 2, 3, 4)
    # An unknown word may be masked, as in the reference.
    assert sorted(tokenizer.special_ids) == [1, 2, 3, 4]
    assert tokenizer.word_starts.tolist() == [True] * 6 + [False, False, True]
    assert tokenizer.encode("Unaffable!") == [5, 6, 7, 8]
    assert tokenizer.decode([3, 5, 6, 7, 8, 1, 2]) == "[CLS] unaffable ! [MASK] [SEP]"
    assert tokenizer.id_to_piece(6) == "##aff"
    with pytest.raises(IndexError):
        tokenizer.id_to_piece(-1)


def test_pickled_for_a_worker_process_it_is_the_same():
    tokenizer = WordPieceTokenizer([*SPECIAL, "a", "##b"], lower_case=False)
    tokenizer.cache_bytes = 12_345
    copy = pickle.loads(pickle.dumps(tokenizer))
    assert copy.hash == tokenizer.hash
    assert copy.cache_bytes == 12_345
    assert copy.encode("ab A") == tokenizer.encode("ab A") == [5, 6, 1]


def sample_lines(path, max_bytes):
    """About `max_bytes` of a corpus, from every n-th paragraph."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        lines = [line for document in file for line in json.loads(document)["text"].split("\n")]
    size = sum(len(line.encode()) for line in lines)
    return lines[:: max(1, size // max_bytes)]


@pytest.mark.slow
@pytest.mark.parametrize("vocabulary", VOCABULARIES)
def test_ids_equal_the_oracle_on_real_text(vocabulary, shared_data):
    corpora = sorted((shared_data / "corpus").glob("*.jsonl.gz"))
    assert corpora
    tokenizer = load_wordpiece(shared_data / "vocab" / vocabulary, lower_case=True)
    for corpus in corpora:
        assert_equal_to_oracle(tokenizer, sample_lines(corpus, 100_000))


@pytest.mark.slow
@CASINGS
@pytest.mark.parametrize("vocabulary", VOCABULARIES)
def test_ids_of_a_real_vocabulary_equal_the_oracle_on_hard_text(
    vocabulary, lower_case, shared_data
):
    tokenizer = load_wordpiece(shared_data / "vocab" / vocabulary, lower_case=lower_case)
    assert_equal_to_oracle(tokenizer, [*HANDPICKED, *boundary_texts(), *random_texts(2, 2000)])
