"""SentencePiece models behind the tokenizer interface."""

import io

import pytest
import sentencepiece
from english import SPECIAL, TEXT

from bertjax.data.texts import encode_masked
from bertjax.data.tokenizers.sentence_piece_model import read_model
from bertjax.data.tokenizers.tokenizer import (
    SentencePieceTokenizer,
    TokenizerError,
    from_argument,
    train_sentencepiece,
)


def train_model(**options):
    """A model as other people train it: <unk>, <s>, </s> and no BERT pieces unless asked for."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT[:500]),
        model_writer=model,
        **{"vocab_size": 200, "minloglevel": 2} | options,
    )
    return model.getvalue()


def test_a_learned_sentencepiece_model(sentence_piece):
    assert sentence_piece.pieces[:5] == tuple(SPECIAL)
    assert sentence_piece.special_ids == (0, 2, 3, 4)
    assert sentence_piece.unk_id == 1
    assert sentence_piece.vocab_size == 1000
    text = "The function returns it's 3rd (attribute)."
    ids = sentence_piece.encode(text)
    assert sentence_piece.decode(ids) == text
    starts = [p.startswith("▁") for p in map(sentence_piece.id_to_piece, ids)]
    assert sentence_piece.word_starts[ids].tolist() == starts
    assert 6 <= sum(starts) < len(starts)
    assert sentence_piece.word_starts[:5].all()
    assert sentence_piece.decode([2, *ids, 4, 3]) == f"[CLS] {text} [MASK] [SEP]"


def test_where_text_has_no_spaces_each_piece_is_a_word():
    """Else whole-word masking would find sentences too long to mask."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["今天下雨我们不去了 the cat", "วันนี้ฝนตก cats"] * 50),
        model_writer=model,
        vocab_size=29,
        minloglevel=2,
    )
    tokenizer = SentencePieceTokenizer(model.getvalue())
    for text in ("今天下雨我们不去了", "วันนี้ฝนตก"):
        ids = tokenizer.encode(text)
        assert len(ids) > 3
        assert tokenizer.word_starts[ids].all()
    letters = [id for id, piece in enumerate(tokenizer.pieces) if piece in "acehst"]
    assert letters
    assert not tokenizer.word_starts[letters].any()


def test_what_follows_a_mask_without_a_space_begins_no_word(sentence_piece):
    mask = sentence_piece.mask_id
    for text in ("The function.", "(The function) is", "a function, or two", "functions"):
        word = "The" if text.startswith("(") else "function"
        masked = encode_masked(sentence_piece, text.replace(word, "[MASK]"))
        whole = sentence_piece.encode(text)
        if text == "functions":  # no piece of the vocabulary joins the two
            whole = sentence_piece.encode("function") + sentence_piece.encode_within("s")
            assert sentence_piece.id_to_piece(whole[-1]) == "s"
        place, end = masked.index(mask), len(masked) - masked.index(mask) - 1
        assert whole[:place] == masked[:place]
        assert whole[len(whole) - end :] == masked[place + 1 :], text
    assert encode_masked(sentence_piece, "a [MASK] name") == [
        *sentence_piece.encode("a"), mask, *sentence_piece.encode("name")
    ]  # fmt: skip


def test_a_model_without_special_pieces_gets_them_after_its_own():
    tokenizer = SentencePieceTokenizer(train_model(), vocab_size=210)
    assert tokenizer.pieces[:3] == ("<unk>", "<s>", "</s>")
    assert tokenizer.pieces[200:] == ("[PAD]", "[CLS]", "[SEP]", "[MASK]", *tokenizer.pieces[204:])
    assert tokenizer.pieces[-1] == "[unused5]"
    assert tokenizer.special_ids == (200, 201, 202, 203)
    assert tokenizer.unk_id == 0
    assert tokenizer.word_starts[200:].all()
    assert tokenizer.decode([201, *tokenizer.encode("a name"), 209]) == "[CLS] a name [unused5]"
    with pytest.raises(TokenizerError, match="has 204 pieces"):
        SentencePieceTokenizer(train_model(), vocab_size=203)


def test_a_model_with_special_pieces_keeps_their_ids():
    """Also where text could spell them: [MASK] as text is then unknown, never the mask."""
    model = train_model(
        pad_id=3, pad_piece="<pad>", control_symbols="[CLS],[SEP]", user_defined_symbols="[MASK]"
    )
    tokenizer = SentencePieceTokenizer(model)
    assert tokenizer.vocab_size == 200
    assert [tokenizer.pieces[id] for id in tokenizer.special_ids] == [
        "<pad>",
        "[CLS]",
        "[SEP]",
        "[MASK]",
    ]
    ids = tokenizer.encode("a [MASK] b [CLS] <pad>")
    assert not set(ids) & set(tokenizer.special_ids)
    assert tokenizer.unk_id in ids


def test_case_follows_the_model():
    folded = train_sentencepiece(TEXT[:300], 400, lower_case=True)
    assert folded.lower_case is True
    assert folded.encode("THE Name") == folded.encode("the name")
    assert SentencePieceTokenizer(train_model()).lower_case is False


def test_the_shared_model(shared_data):
    tokenizer = from_argument(str(shared_data / "vocab" / "sentencepiece_test_model.model"))
    assert tokenizer.vocab_size == 1004
    assert tokenizer.pieces[1000:] == ("[PAD]", "[CLS]", "[SEP]", "[MASK]")
    assert tokenizer.decode(tokenizer.encode("I saw a girl")) == "I saw a girl"


@pytest.mark.parametrize(
    ("options", "model_type"),
    [
        ({"byte_fallback": True, "vocab_size": 400}, 1),
        ({"add_dummy_prefix": False, "remove_extra_whitespaces": False}, 1),
        ({"model_type": "bpe", "user_defined_symbols": ["[CLS]"]}, 2),
    ],
)
def test_a_model_file_says_what_its_library_says(options, model_type):
    content = train_model(**options)
    processor = sentencepiece.SentencePieceProcessor(model_proto=content)
    model = read_model(content)
    assert len(model.pieces) == processor.vocab_size()
    kinds = {"NORMAL": 1, "UNKNOWN": 2, "CONTROL": 3, "USER_DEFINED": 4, "BYTE": 6}
    for id, piece in enumerate(model.pieces):
        assert piece.piece == processor.id_to_piece(id)
        assert piece.score == processor.get_score(id)
        assert processor.is_unknown(id) == (piece.type == kinds["UNKNOWN"])
        assert processor.is_control(id) == (piece.type == kinds["CONTROL"])
        assert processor.is_byte(id) == (piece.type == kinds["BYTE"])
    assert any(p.type == kinds["BYTE"] for p in model.pieces) == ("byte_fallback" in options)
    assert any(p.type == kinds["USER_DEFINED"] for p in model.pieces) == (model_type == 2)
    assert model.trainer_spec.model_type == model_type
    assert model.trainer_spec.byte_fallback == options.get("byte_fallback", False)
    assert model.normalizer_spec.add_dummy_prefix == options.get("add_dummy_prefix", True)
    whitespace = options.get("remove_extra_whitespaces", True)
    assert model.normalizer_spec.remove_extra_whitespaces == whitespace
    assert model.normalizer_spec.precompiled_charsmap  # of nmt_nfkc, the default
