"""`Encoder.score`: log-likelihoods of texts, token by token."""

import dataclasses
import math
import random

import jax.numpy as jnp
import numpy as np
import pytest
import scoring_reference
from english import SPECIAL

from bertjax.config import ConfigError, ModelConfig
from bertjax.data.texts import TextError
from bertjax.data.tokenizers.tokenizer import WordPieceTokenizer, train_sentencepiece
from bertjax.encoder import Encoder, HeadError
from bertjax.models import init_params

MODEL = ModelConfig(
    vocab_size=1_000,
    hidden_size=16,
    num_layers=1,
    num_heads=2,
    intermediate_size=32,
    max_positions=64,
    initializer_range=0.5,
    dtype="float32",
)
CAUSAL = {"head": "causal", "direction": "left_to_right", "next_sentence": False}
TEXTS = [
    "The value of an object is returned.",
    "a",
    "",
    "Unbelievably extraordinary metamorphoses overwhelmed nonspecialists, 1234567.",
    ("Is it a list?", "It is an uncharacteristically overcomplicated mapping."),
    ("", "An empty text comes before."),
    ("Nothing comes after.", ""),
]
CHINESE = "道可道,非常道。名可名,非常名。無名天地之始;有名萬物之母。"
JAPANESE = "吾輩は猫である名前はまだ無いどこで生れたかとんと見当がつかぬ"


def drawn(tokenizer, **changes):
    config = dataclasses.replace(MODEL, vocab_size=tokenizer.vocab_size, **changes)
    return Encoder(config, init_params(config, 3), tokenizer)


def assert_close(found, expected):
    np.testing.assert_allclose(found, expected, atol=1e-5, rtol=1e-5)


@pytest.fixture(scope="module")
def bert(wordpiece):
    return drawn(wordpiece)


@pytest.mark.parametrize(
    ("kind", "next_sentence", "mask_rest_of_word"),
    [
        ("wordpiece", True, True),
        ("wordpiece", False, False),
        ("sentence_piece", True, False),
        ("sentence_piece", False, True),
    ],
)
def test_scores_are_those_of_a_plain_program(request, kind, next_sentence, mask_rest_of_word):
    bert = drawn(request.getfixturevalue(kind), next_sentence=next_sentence)
    scores = bert.score(TEXTS, mask_rest_of_word)
    assert len(scores) == len(TEXTS)
    for text, score in zip(TEXTS, scores, strict=True):
        expected = scoring_reference.masked_scores(bert, text, mask_rest_of_word)
        assert_close(score.log_probabilities, expected)
        assert score.log_likelihood == pytest.approx(sum(expected), abs=1e-4)
        assert score.num_tokens == len(score.pieces) == len(expected)
        scored = text if isinstance(text, str) else text[1]
        assert score.pieces == [bert.tokenizer.pieces[i] for i in bert.tokenizer.encode(scored)]


def test_the_rest_of_a_word_is_hidden_from_its_first_pieces(bert):
    """And only there: words of one piece and the last pieces of words score the same."""
    text = TEXTS[3]
    hidden, seen = bert.score(text), bert.score(text, mask_rest_of_word=False)
    assert hidden == bert.score(text, mask_rest_of_word=True)
    starts = [not piece.startswith("##") for piece in hidden.pieces]
    last_of_word = np.array([*starts[1:], True])
    assert 5 < last_of_word.sum() < len(last_of_word) - 5
    differs = np.abs(np.subtract(hidden.log_probabilities, seen.log_probabilities)) > 1e-4
    assert differs.tolist() == (~last_of_word).tolist()


def test_one_text_has_one_score_and_a_list_has_a_list(bert):
    one = bert.score("a value")
    assert bert.score(["a value"]) == [one]
    assert bert.score([]) == []
    assert one.per_token == pytest.approx(sum(one.log_probabilities) / one.num_tokens)
    pair = bert.score(("a value", "a name"))
    assert pair.num_tokens == 2
    assert pair.log_likelihood != pytest.approx(bert.score("a name").log_likelihood)


def test_other_texts_change_a_score_by_rounding_only(bert, monkeypatch):
    monkeypatch.setattr("bertjax.scoring._CHUNK", 32)  # several, and the last one not full
    words = ["the", "value", "of", "an", "object", "returned", "by", "another", "method"]
    draw = random.Random(0)
    texts = [" ".join(draw.choices(words, k=draw.randrange(20))) for _ in range(75)]
    together = bert.score(texts)
    order = draw.sample(range(len(texts)), len(texts))
    shuffled = bert.score([texts[i] for i in order])
    for place, i in enumerate(order):
        assert_close(together[i].log_probabilities, shuffled[place].log_probabilities)
    for i in (0, 31, 32, 74):
        alone = bert.score(texts[i])
        assert alone.pieces == together[i].pieces
        assert_close(together[i].log_probabilities, alone.log_probabilities)


def test_bfloat16_changes_a_score_by_its_rounding(bert):
    config = dataclasses.replace(bert.config, dtype="bfloat16")
    coarse = Encoder(config, bert.params, bert.tokenizer).score(TEXTS[3])
    exact = bert.score(TEXTS[3])
    assert coarse.log_probabilities != exact.log_probabilities
    np.testing.assert_allclose(coarse.log_probabilities, exact.log_probabilities, atol=0.3)
    # The log-softmax is computed in float32: the values have more digits than bfloat16.
    values = np.float32(coarse.log_probabilities)
    assert (np.asarray(values, jnp.bfloat16).astype(np.float32) != values).mean() > 0.9


def test_a_text_without_tokens_has_no_mean(bert):
    score = bert.score("")
    assert (score.log_likelihood, score.num_tokens, score.pieces) == (0.0, 0, [])
    assert math.isnan(score.per_token)


def test_unknown_characters_are_scored_as_the_unknown_token(bert):
    score = bert.score("a 猫 value")
    assert score.pieces == ["a", "[UNK]", "value"]
    expected = scoring_reference.masked_scores(bert, "a 猫 value")
    assert score.log_likelihood == pytest.approx(sum(expected), abs=1e-4)


def test_a_mask_in_a_text_is_text(bert):
    assert "[MASK]" not in bert.score("a [MASK] value").pieces


def test_where_words_have_no_spaces_each_piece_is_a_word():
    characters = WordPieceTokenizer([*SPECIAL, *dict.fromkeys(CHINESE), "##b"], lower_case=False)
    japanese = train_sentencepiece([JAPANESE] * 20, 140)
    for tokenizer, text in ((characters, CHINESE), (japanese, JAPANESE)):
        bert = drawn(tokenizer)
        score = bert.score(text)
        assert score.num_tokens > 15
        assert "[UNK]" not in score.pieces
        assert score == bert.score(text, mask_rest_of_word=False)


def test_a_text_that_is_too_long_is_refused_before_any_is_scored(bert, monkeypatch):
    monkeypatch.setattr("bertjax.scoring.Scorer.scores", None)
    message = r"text 1: has 65 tokens with the special ones, .* the 64 positions of this model"
    with pytest.raises(TextError, match=message):
        bert.score(["a", "a " * 63])


def test_a_text_that_fills_all_positions_is_scored(bert):
    assert bert.score("a " * 62).num_tokens == 62


def test_what_cannot_be_scored_is_an_error(bert, wordpiece):
    with pytest.raises(TypeError, match="found 3"):
        bert.score(["a", 3])
    config = dataclasses.replace(MODEL, head="classification", num_labels=2)
    classifier = Encoder(config, init_params(config, 0), wordpiece)
    with pytest.raises(HeadError, match=r"predicts tokens \(their head is 'classification'\)"):
        classifier.score("a")
    config = dataclasses.replace(MODEL, num_token_types=1)
    one_type = Encoder(config, init_params(config, 0), wordpiece)
    assert one_type.score("a").num_tokens == 1
    with pytest.raises(HeadError, match="one token type"):
        one_type.score(("a", "b"))


def test_few_shapes_are_compiled(bert):
    other = Encoder(bert.config, bert.params, bert.tokenizer)
    shapes = []
    run = other._scorer._of_masked

    def count(params, *inputs):
        shapes.append(inputs[0].shape)
        return run(params, *inputs)

    other._scorer._of_masked = count
    other.score(["a value " * (1 + i % 30) for i in range(120)])
    assert len(set(shapes)) <= 10 < len(shapes)
    assert max(rows * length for rows, length in shapes) <= 4_096


@pytest.fixture(scope="module")
def causal(wordpiece):
    return drawn(wordpiece, **CAUSAL)


def test_a_left_to_right_score_is_the_sum_over_the_next_tokens(causal):
    """By the model's own logits."""
    scores = causal.score(TEXTS)
    with_end = causal.score(TEXTS, score_end=True)
    assert len(scores) == len(with_end) == len(TEXTS)
    for text, score, longer in zip(TEXTS, scores, with_end, strict=True):
        expected = scoring_reference.next_scores(causal, text)
        assert_close(score.log_probabilities, expected[:-1])
        assert_close(longer.log_probabilities, expected)
        assert score.log_likelihood == pytest.approx(sum(expected[:-1]), abs=1e-4)
        scored = text if isinstance(text, str) else text[1]
        pieces = [causal.tokenizer.pieces[i] for i in causal.tokenizer.encode(scored)]
        assert score.pieces == pieces
        assert longer.pieces == [*pieces, "[SEP]"]


def test_left_to_right_scores_of_a_text_and_what_follows_it_add_up(causal):
    first, second = "The value of an object", "is returned by another method."
    both = causal.score(f"{first} {second}")
    parts = causal.score(first), causal.score((first, second))
    assert both.pieces == parts[0].pieces + parts[1].pieces
    assert_close(both.log_probabilities, parts[0].log_probabilities + parts[1].log_probabilities)


def test_a_left_to_right_model_scores_by_default(causal):
    assert causal.can == ("score", "embed")
    assert causal.predict("a value") == causal.score("a value")


def test_arguments_are_of_one_kind_of_model(bert, causal):
    for given in (True, False):
        with pytest.raises(ConfigError, match=f"--mask_rest_of_word={given}: is for masked"):
            causal.score("a", mask_rest_of_word=given)
    with pytest.raises(ConfigError, match="--score_end=True: is for left-to-right models"):
        bert.score("a", score_end=True)
