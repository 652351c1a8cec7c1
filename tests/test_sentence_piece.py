"""SentencePiece models behind the tokenizer interface."""

import io

import pytest
import sentencepiece
from english import SPECIAL, TEXT

from bertjax.data.tokenizer import (
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
        vocab_size=200,
        minloglevel=2,
        **options,
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
