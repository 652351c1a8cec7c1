"""Trains vocabularies: the same lines give the same vocabulary, byte for byte.

Memory is bounded for any number of lines. WordPiece counts words and forgets the rarest if there
are too many; SentencePiece keeps every 2^k-th line.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterable, Iterator

from bertjax.data.tokenizers.basic_tokenizer import basic_tokenize, split_chunks
from bertjax.data.tokenizers.sentence_piece import SentencePieceTokenizer
from bertjax.data.tokenizers.vocabulary import SPECIAL_PIECES, TokenizerError, with_filler
from bertjax.data.tokenizers.wordpiece import WordPieceTokenizer

CHARACTER_COVERAGE = 0.9995  # share of the text that the alphabet must spell, as in SentencePiece
MAX_DISTINCT = 200_000  # words, and chunks, counted at a time
MAX_LEARNED_CHARACTERS = 50  # a longer word is noise
MAX_FED_WORDS = 5_000_000  # larger counts are scaled down to this sum
SENTENCEPIECE_BYTES = 32 << 20  # of text; what the library holds in memory, many times over
SENTENCEPIECE_LINE = 1_000  # characters; the library skips lines of more than 4,192 bytes
SENTENCEPIECE_THREADS = 16  # the sums of its EM steps depend on this number; so it is fixed


def train_wordpiece(
    lines: Iterable[str], vocab_size: int, lower_case: bool = True
) -> WordPieceTokenizer:
    """Learn a WordPiece vocabulary: special pieces, the alphabet, then merges by frequency.

    The words are those of `basic_tokenize`. The alphabet is printable ASCII and the most frequent
    characters up to 99.95 % of the text, but at most three quarters of the vocabulary. Words with
    other characters are left out, because they are [UNK]. If the text is too short for
    `vocab_size`, the vocabulary is filled up with `[unusedN]`.

    Raises:
        TokenizerError: there is no text, or `vocab_size` has no room for the ASCII pieces.
    """
    import tokenizers

    words = count_words(lines, lower_case)
    if not words:
        raise TokenizerError("no text to learn a WordPiece vocabulary from")
    alphabet = _choose_alphabet(words, vocab_size, lower_case)
    initial = {piece for piece in alphabet if len(piece) == 1}
    continuing = {piece[2:] for piece in alphabet if len(piece) == 3}
    words = Counter(
        {
            word: number
            for word, number in words.items()
            if word[0] in initial and continuing.issuperset(word[1:])
        }
    )

    # The library numbers "##x" characters in the order of a hash table with a random seed and
    # breaks ties by number. Given as special tokens they have their numbers from the start.
    trainer = tokenizers.trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        show_progress=False,
        special_tokens=[*SPECIAL_PIECES, *alphabet],
        continuing_subword_prefix="##",
    )
    model = tokenizers.Tokenizer(tokenizers.models.WordPiece(unk_token="[UNK]"))
    model.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    model.train_from_iterator(_repeat_words(words), trainer)
    ids = model.get_vocab(with_added_tokens=True)
    pieces = sorted(ids, key=ids.__getitem__)
    pieces = with_filler(pieces, vocab_size, "trained vocabulary")
    return WordPieceTokenizer(pieces, lower_case=lower_case, source="trained vocabulary")


def count_words(lines: Iterable[str], lower_case: bool) -> Counter[str]:
    """Count the words of `basic_tokenize`; when more than 200,000 differ, drop the rarest."""
    words: Counter[str] = Counter()
    chunks: Counter[str] = Counter()

    def count_chunks() -> None:
        for chunk, number in chunks.items():
            for word in basic_tokenize(chunk, lower_case):
                if len(word) <= MAX_LEARNED_CHARACTERS:
                    words[word] += number
        chunks.clear()
        rare = 0
        while len(words) > MAX_DISTINCT:
            rare += 1
            for word in [word for word, number in words.items() if number <= rare]:
                del words[word]

    for line in lines:
        chunks.update(split_chunks(line))
        if len(chunks) > MAX_DISTINCT:
            count_chunks()
    count_chunks()
    return words


def _ascii_characters(lower_case: bool) -> list[str]:
    """Printable ASCII, which every trained vocabulary can spell."""
    return [c for c in map(chr, range(33, 127)) if not (lower_case and c.isupper())]


def _choose_alphabet(words: Counter[str], vocab_size: int, lower_case: bool) -> list[str]:
    """Return the one-character pieces, "x" and "##x", in code point order."""
    counts: Counter[str] = Counter()
    for word, number in words.items():
        counts[word[0]] += number
        for character in word[1:]:
            counts["##" + character] += number
    ascii_characters = _ascii_characters(lower_case)
    alphabet = set(ascii_characters) | {"##" + c for c in ascii_characters if c.isalnum()}
    if len(alphabet) + len(SPECIAL_PIECES) > vocab_size:
        raise TokenizerError(
            f"a vocabulary of {vocab_size} has no room for the {len(SPECIAL_PIECES)} special and "
            f"{len(alphabet)} ASCII pieces; ask for a larger one"
        )
    missing = counts.total() * (1 - CHARACTER_COVERAGE)
    left = counts.total()
    for piece in [piece for piece in counts if "\ud800" <= piece[-1] <= "\udfff"]:
        del counts[piece]  # half of a surrogate pair: broken text that no file can hold
    for piece, number in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        if left <= missing or len(alphabet) >= vocab_size * 3 // 4:
            break
        alphabet |= {piece, piece.removeprefix("##")}  # the library adds "x" where "##x" is
        left -= number
    return sorted(alphabet, key=lambda piece: (len(piece), piece))


def _repeat_words(words: Counter[str]) -> Iterator[str]:
    """Yield lines that contain each word as often as it was counted, or in proportion."""
    scale = max(1.0, words.total() / MAX_FED_WORDS)
    for word, number in words.items():
        if times := round(number / scale):
            yield f"{word} " * times


def train_sentencepiece(
    lines: Iterable[str], vocab_size: int, lower_case: bool = False
) -> SentencePieceTokenizer:
    """Learn a SentencePiece unigram model (Kudo 2018) whose ids 0 to 4 are the special pieces.

    Learns from all lines up to 32 MB of text, and from every 2nd, 4th, 8th, ... line of a larger
    text, so that at most 32 MB are kept. A model that stays smaller than `vocab_size` is filled up
    with `[unusedN]`. `lower_case` folds case in the model's normalizer (NFKC either way).

    Raises:
        TokenizerError: there is no text, or `vocab_size` has no room for its characters.
    """
    import sentencepiece

    text = _sample(lines)
    if not text:
        raise TokenizerError("no text to learn a SentencePiece model from")
    model = io.BytesIO()
    pad, unk, cls, sep, mask = SPECIAL_PIECES
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(text),
            model_writer=model,
            model_type="unigram",
            vocab_size=vocab_size,
            hard_vocab_limit=False,
            character_coverage=CHARACTER_COVERAGE,
            required_chars="".join(_ascii_characters(lower_case)),
            normalization_rule_name="nmt_nfkc_cf" if lower_case else "nmt_nfkc",
            num_threads=SENTENCEPIECE_THREADS,
            pad_id=0,
            pad_piece=pad,
            unk_id=1,
            unk_piece=unk,
            bos_id=2,
            bos_piece=cls,
            eos_id=3,
            eos_piece=sep,
            control_symbols=[mask],
            minloglevel=2,
        )
    except RuntimeError as error:
        raise TokenizerError(
            f"SentencePiece could not learn {vocab_size} pieces from {len(text)} lines: {error}"
        ) from error
    return SentencePieceTokenizer(model.getvalue(), vocab_size=vocab_size)


def _sample(lines: Iterable[str]) -> list[bytes]:
    """Return the lines in UTF-8, cut at 1,000 characters; every 2^k-th if they are too many."""
    kept: list[bytes] = []
    stride, num_bytes, number = 1, 0, 0
    for line in lines:
        for start in range(0, len(line), SENTENCEPIECE_LINE):
            part = line[start : start + SENTENCEPIECE_LINE].replace("\0", " ").strip()
            if not part:
                continue
            if number % stride == 0:
                kept.append(part.encode("utf-8", "replace"))
                num_bytes += len(kept[-1])
                if num_bytes > SENTENCEPIECE_BYTES:
                    stride *= 2
                    kept = kept[::2]
                    num_bytes = sum(map(len, kept))
            number += 1
    return kept
