"""Learned vocabularies: what is in them, limits, determinism."""

import os
import subprocess
import sys

import pytest
from english import SPECIAL, TEXT
from folders import REPOSITORY

from bertjax.data.tokenizers import train_tokenizer
from bertjax.data.tokenizers.tokenizer import (
    TokenizerError,
    load_tokenizer,
    train_sentencepiece,
    train_wordpiece,
)


def test_a_learned_wordpiece_vocabulary(wordpiece):
    assert wordpiece.pieces[:5] == tuple(SPECIAL)
    assert wordpiece.vocab_size == len(set(wordpiece.pieces)) == 1000
    assert {"the", "function", "##ing"} < set(wordpiece.pieces)
    assert not any(piece != piece.lower() for piece in wordpiece.pieces[5:])
    # All of ASCII is spelled, seen or not.
    printable = "".join(map(chr, range(32, 127)))
    assert wordpiece.unk_id not in wordpiece.encode(f"{printable} q7z")
    text = "the function returns the attribute"
    assert wordpiece.decode(wordpiece.encode(text)) == text
    ids, _ = wordpiece.encode_sentences(TEXT[:2000])
    assert (ids == wordpiece.unk_id).mean() < 0.001
    # The merges follow the frequencies: far fewer pieces than characters.
    assert len(ids) < sum(map(len, TEXT[:2000])) / 3


def test_a_learned_cased_wordpiece_vocabulary_keeps_capitals():
    tokenizer = train_wordpiece(TEXT[:2000], 1000, lower_case=False)
    assert {"The", "A", "Z"} < set(tokenizer.pieces)
    assert tokenizer.decode(tokenizer.encode("The Name")) == "The Name"


def test_a_short_text_gives_a_vocabulary_filled_up():
    for train in (train_wordpiece, train_sentencepiece):
        tokenizer = train(["a short text, a shorter text"], 400)
        assert tokenizer.vocab_size == 400
        assert tokenizer.pieces[-1].startswith("[unused")
        assert tokenizer.pieces.count("[unused0]") == 1
        assert tokenizer.word_starts[-1]
        assert "".join(tokenizer.decode(tokenizer.encode("a text")).split()) == "atext"


@pytest.mark.parametrize("train", [train_wordpiece, train_sentencepiece])
def test_what_cannot_be_learned_is_refused(train):
    with pytest.raises(TokenizerError, match="no text"):
        train(["", "  "], 1000)
    with pytest.raises(TokenizerError, match="50"):
        train(TEXT[:100], 50)


def test_an_alphabet_leaves_room_for_words():
    """5,000 different ideographs, in words with kana, and a vocabulary of 1,000."""
    lines = [chr(0x4E00 + n % 5000) + "かな" for n in range(10_000)]
    tokenizer = train_wordpiece(lines, 1000)
    alphabet = [p for p in tokenizer.pieces if len(p.removeprefix("##")) == 1]
    assert len(alphabet) == 750
    assert "かな" in tokenizer.pieces


def test_broken_surrogates_are_not_learned():
    lines = ["word \ud800 \ud800a a\udfff"] * 10
    assert not any("\ud800" <= p[-1] <= "\udfff" for p in train_wordpiece(lines, 300).pieces)
    tokenizer = train_sentencepiece(lines, 300)
    assert tokenizer.encode("\ud800word") == tokenizer.encode("?word")


def test_many_distinct_words_take_bounded_memory(monkeypatch):
    """The rarest words are forgotten, the frequent ones keep their counts."""
    monkeypatch.setattr(train_tokenizer, "MAX_DISTINCT", 100)
    lines = [f"often word{n} often" for n in range(1000)]
    words = train_tokenizer.count_words(lines, lower_case=True)
    assert len(words) <= 100
    assert words["often"] == 2000
    assert train_tokenizer.count_words(lines[:40], lower_case=True).total() == 120


def test_sentencepiece_learns_from_every_2_to_the_k_th_line(monkeypatch):
    lines = [f"{n:09d}" for n in range(1000)] + ["x" * 2500]
    cut = [line.encode() for line in [*lines[:-1], "x" * 1000, "x" * 1000, "x" * 500]]
    assert train_tokenizer._sample(lines) == cut
    monkeypatch.setattr(train_tokenizer, "SENTENCEPIECE_BYTES", 2_700)
    assert train_tokenizer._sample(lines[:1000]) == cut[:1000:4]


@pytest.mark.parametrize("train", ["train_wordpiece", "train_sentencepiece"])
def test_training_gives_the_same_bytes_in_any_process(train, tmp_path):
    """Whatever the hash seed of Python and the threads of the library."""
    script = (
        "import sys; from pydoc_data.topics import topics;"
        f"from bertjax.data.tokenizers.tokenizer import {train};"
        "lines = [line for t in sorted(topics) for line in topics[t].split('\\n')][:3000];"
        # Frequent alone, too rare inside of a word to be in the alphabet there.
        "lines += ['α β γ δ ε ζ η θ'] * 300 + ['aαa aβa aγa aδa aεa aζa aηa aθa'] * 2;"
        f"{train}(lines, 2000).save(sys.argv[1])"
    )
    for seed, threads in (("1", "1"), ("2", "4"), ("3", "2")):
        environment = {
            **os.environ,
            "PYTHONHASHSEED": seed,
            "RAYON_NUM_THREADS": threads,
            "TOKENIZERS_PARALLELISM": "false" if seed == "1" else "true",
        }
        folder = str(tmp_path / seed)
        subprocess.run(
            [sys.executable, "-c", script, folder], env=environment, cwd=REPOSITORY, check=True
        )
    files = ["bertjax_tokenizer.json", load_tokenizer(tmp_path / "1").content_file]
    for name in files:
        contents = {(tmp_path / seed / name).read_bytes() for seed in "123"}
        assert len(contents) == 1, name
