"""Tokenizer folders, vocabulary files and the --tokenizer argument."""

import json
import pickle
import subprocess
import sys

import numpy as np
import pytest
from english import SPECIAL, TEXT
from folders import REPOSITORY

from bertjax.data.tokenizers.tokenizer import (
    TokenizerError,
    WordPieceTokenizer,
    from_argument,
    load_tokenizer,
)
from bertjax.data.tokenizers.vocabulary import with_filler

SAMPLE = "The quick brown fox isn't over 1,234 lazy dogs; naïve caf\u00e9!"


def write_vocabulary(folder, pieces, name="vocab.txt"):
    path = folder / name
    path.write_bytes("".join(f"{piece}\n" for piece in pieces).encode())
    return path


# Folders


@pytest.mark.parametrize("name", ["wordpiece", "sentence_piece"])
def test_saved_and_loaded_it_is_the_same(name, request, tmp_path):
    tokenizer = request.getfixturevalue(name)
    tokenizer.save(tmp_path / "tokenizer")
    for copy in (load_tokenizer(tmp_path / "tokenizer"), pickle.loads(pickle.dumps(tokenizer))):
        assert type(copy) is type(tokenizer)
        assert copy.hash == tokenizer.hash
        assert copy.pieces == tokenizer.pieces
        assert copy.special_ids == tokenizer.special_ids
        assert copy.lower_case is tokenizer.lower_case
        assert copy.encode(SAMPLE) == tokenizer.encode(SAMPLE)
        np.testing.assert_array_equal(copy.word_starts, tokenizer.word_starts)


@pytest.mark.parametrize("name", ["wordpiece", "sentence_piece"])
def test_a_changed_vocabulary_is_refused(name, request, tmp_path):
    tokenizer = request.getfixturevalue(name)
    tokenizer.save(tmp_path)
    path = tmp_path / tokenizer.content_file
    content = path.read_bytes()
    assert content.count(b"method") > 0
    path.write_bytes(content.replace(b"method", b"mothed", 1))
    with pytest.raises(TokenizerError, match=f"{path}: .* hash .* {tokenizer.hash}"):
        load_tokenizer(tmp_path)
    path.unlink()
    with pytest.raises(TokenizerError, match=f"{path}: cannot be read"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lower_case": False}, "hash"),
        ({"vocab_size": 1001}, "hash"),
        ({"format_version": 2}, "format_version 2, expected 1"),
        ({"kind": "bpe"}, "kind 'bpe' is not known; choose from sentencepiece, wordpiece"),
        ({"hash": None}, "hash"),
    ],
)
def test_a_changed_description_is_refused(change, message, sentence_piece, wordpiece, tmp_path):
    tokenizer = sentence_piece if "vocab_size" in change else wordpiece
    tokenizer.save(tmp_path)
    path = tmp_path / "bertjax_tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(TokenizerError, match=message):
        load_tokenizer(tmp_path)


def test_a_broken_description_is_refused(tmp_path):
    with pytest.raises(TokenizerError, match=r"bertjax_tokenizer.json: cannot be read"):
        load_tokenizer(tmp_path)
    (tmp_path / "bertjax_tokenizer.json").write_text('{"kind": "wordpiece"}')
    with pytest.raises(TokenizerError, match=r"not a tokenizer's description.*format_version"):
        load_tokenizer(tmp_path)
    (tmp_path / "bertjax_tokenizer.json").write_text("{")
    with pytest.raises(TokenizerError, match="not a tokenizer's description"):
        load_tokenizer(tmp_path)


def test_the_hash_covers_all_that_decides_ids():
    pieces = [*SPECIAL, "a", "##b"]
    tokenizers = [
        WordPieceTokenizer(pieces, lower_case=True),
        WordPieceTokenizer(pieces, lower_case=False),
        WordPieceTokenizer([*pieces, "c"], lower_case=True),
        WordPieceTokenizer([*SPECIAL, "##b", "a"], lower_case=True),
    ]
    assert len({tokenizer.hash for tokenizer in tokenizers}) == 4
    assert WordPieceTokenizer(pieces, lower_case=True).hash == tokenizers[0].hash


def test_sentences_encoded_together_or_alone_are_the_same(sentence_piece, wordpiece):
    sentences = [*TEXT[:200], "", " ", "一", "[MASK]"]
    for tokenizer in (sentence_piece, wordpiece):
        ids, lengths = tokenizer.encode_sentences(sentences)
        assert ids.dtype == np.uint16
        assert lengths.dtype == np.int64
        assert lengths[200:202].tolist() == [0, 0]
        parts = np.split(ids, np.cumsum(lengths)[:-1])
        assert [part.tolist() for part in parts] == [tokenizer.encode(s) for s in sentences]
        ids, lengths = tokenizer.encode_sentences([])
        assert (ids.dtype, len(ids), len(lengths)) == (np.uint16, 0, 0)


# Vocabulary files


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[PAD]\n[UNK]\n[CLS]\n[MASK]\na\n", r"no \[SEP\] among its 5 lines"),
        (b"[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\nb\na\n", "line 8: 'a' stands on line 6 too"),
        (b"[PAD]\n[UNK]\n\n[CLS]\n[SEP]\n[MASK]\na\n", "line 3: empty"),
        (b"[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\n\n", "line 7: empty"),
        (b"[PAD]\n[UNK]\ncaf\xe9\n", "line 3: not UTF-8"),
        (b"[PAD]\n[U\0NK]\n", "line 2: holds a NUL byte.*sentencepiece:PATH"),
        (b"", "line 1: empty"),
    ],
)
def test_a_bad_vocabulary_is_refused_by_file_and_line(content, message, tmp_path):
    path = tmp_path / "vocab.txt"
    path.write_bytes(content)
    with pytest.raises(TokenizerError, match=message) as caught:
        from_argument(f"wordpiece:{path}")
    assert str(path) in str(caught.value)


def test_line_ends_and_a_missing_last_one_do_not_matter(tmp_path):
    path = tmp_path / "vocab.txt"
    pieces = [*SPECIAL, "a", "\u2028", "##\u00e9"]
    want = WordPieceTokenizer(pieces, lower_case=True)
    for content in ("\n".join(pieces), "\r\n".join(pieces) + "\r\n", "\n".join(pieces) + "\n"):
        path.write_bytes(content.encode())
        assert from_argument(str(path)).hash == want.hash


def test_one_kind_of_file_given_for_the_other_is_refused(sentence_piece, tmp_path):
    sentence_piece.save(tmp_path)
    model = tmp_path / "spm.model"
    with pytest.raises(TokenizerError, match="sentencepiece:PATH"):
        from_argument(f"wordpiece:{model}")
    vocabulary = write_vocabulary(tmp_path, [*SPECIAL, "a"])
    with pytest.raises(TokenizerError, match="wordpiece:PATH"):
        from_argument(f"sentencepiece:{vocabulary}")
    vocabulary.write_bytes(b"")
    with pytest.raises(TokenizerError, match="not a SentencePiece model"):
        from_argument(f"sentencepiece:{vocabulary}")


# The --tokenizer argument


def test_forms_of_the_argument(sentence_piece, tmp_path):
    vocabulary = write_vocabulary(tmp_path, [*SPECIAL, "a"])
    sentence_piece.save(tmp_path)
    model = tmp_path / "spm.model"
    untouched = iter(["text"])
    for argument in (f"wordpiece:{vocabulary}", str(vocabulary)):
        tokenizer = from_argument(argument, lines=untouched)
        assert (tokenizer.kind, tokenizer.lower_case) == ("wordpiece", True)
    for argument in (f"sentencepiece:{model}", str(model)):
        assert from_argument(argument, lines=untouched).pieces[:900] == sentence_piece.pieces[:900]
    assert list(untouched) == ["text"]
    trained = from_argument("train:wordpiece", vocab_size=500, lower_case=False, lines=TEXT[:50])
    assert (trained.kind, trained.vocab_size, trained.lower_case) == ("wordpiece", 500, False)
    trained = from_argument("train:sentencepiece", vocab_size=500, lower_case=True, lines=TEXT[:50])
    assert (trained.kind, trained.vocab_size, trained.lower_case) == ("sentencepiece", 500, True)


@pytest.mark.parametrize(
    "argument", ["", "vocab", "train:", "train:bpe", "wordpiece:", "bpe:a.txt"]
)
def test_another_argument_is_refused(argument):
    with pytest.raises(TokenizerError, match=f"--tokenizer={argument}: expected wordpiece:PATH"):
        from_argument(argument)


def test_a_casing_that_the_vocabulary_contradicts_is_refused(sentence_piece, tmp_path):
    small = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    uncased = write_vocabulary(tmp_path, [*SPECIAL, "<S>", *small], "uncased.txt")
    cased = write_vocabulary(tmp_path, [*SPECIAL, *small, *map(str.upper, small)], "cased.txt")
    chinese = write_vocabulary(tmp_path, [*SPECIAL, "中", "国"], "chinese.txt")
    assert from_argument(str(uncased), lower_case=True).encode("A") == [6]
    assert from_argument(str(cased), lower_case=False).encode("A") == [31]
    from_argument(str(chinese), lower_case=True)
    from_argument(str(chinese), lower_case=False)
    with pytest.raises(TokenizerError, match=r"26 of the capitals.*--lower_case=false"):
        from_argument(str(cased))
    with pytest.raises(TokenizerError, match=r"none of the capitals.*--lower_case=true"):
        from_argument(str(uncased), lower_case=False)
    sentence_piece.save(tmp_path)
    with pytest.raises(TokenizerError, match=r"keeps the case.*--lower_case=true"):
        from_argument(str(tmp_path / "spm.model"), lower_case=True)


def test_a_given_vocabulary_is_filled_up_but_never_cut(tmp_path):
    path = write_vocabulary(tmp_path, [*SPECIAL, "[unused0]", "[unused2]", "a"])
    tokenizer = from_argument(str(path), vocab_size=11)
    assert tokenizer.pieces[-4:] == ("a", "[unused1]", "[unused3]", "[unused4]")
    with pytest.raises(TokenizerError, match="has 8 pieces, more than the vocabulary size of 7"):
        from_argument(str(path), vocab_size=7)
    assert with_filler(["x"], None, "") == ["x"]


def test_the_folder_of_a_saved_tokenizer_is_an_argument(sentence_piece, tmp_path):
    sentence_piece.save(tmp_path)
    assert from_argument(str(tmp_path)).hash == sentence_piece.hash
    same = from_argument(str(tmp_path), vocab_size=1000, lower_case=False)
    assert same.hash == sentence_piece.hash
    with pytest.raises(TokenizerError, match=r"has 1000 pieces.*--vocab_size=2000"):
        from_argument(str(tmp_path), vocab_size=2000)
    with pytest.raises(TokenizerError, match=r"keeps the case.*--lower_case=true"):
        from_argument(str(tmp_path), lower_case=True)


@pytest.mark.parametrize(
    ("name", "size"), [("bert-base-uncased-vocab.txt", 30_522), ("bert-chinese-vocab.txt", 21_128)]
)
def test_the_shared_vocabularies(name, size, shared_data):
    tokenizer = from_argument(str(shared_data / "vocab" / name))
    assert tokenizer.vocab_size == size
    assert tokenizer.pieces[100:104] == ("[UNK]", "[CLS]", "[SEP]", "[MASK]")
    with pytest.raises(TokenizerError, match="uncased vocabulary"):
        from_argument(str(shared_data / "vocab" / name), lower_case=False)


def test_importing_needs_neither_library():
    script = (
        "import sys, bertjax.data.tokenizers.tokenizer;"
        "print({'jax', 'tensorflow', 'sentencepiece', 'tokenizers'} & sys.modules.keys())"
    )
    result = subprocess.run(
        [sys.executable, "-c", script], cwd=REPOSITORY, check=True, capture_output=True, text=True
    )
    assert result.stdout.strip() == "set()"
