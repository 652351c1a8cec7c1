"""The official scores of SQuAD v1.1: the rules of evaluate-v1.1.py (Rajpurkar et al. 2016)."""

from __future__ import annotations

import collections
import logging
import re
import string
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

_LOG = logging.getLogger(__name__)
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalize(text: str) -> str:
    """Lowers the text, drops ASCII punctuation, the words a, an, the, and extra white space."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_WITHOUT_PUNCTUATION)).split())


def exact_match(prediction: str, truth: str) -> float:
    """1 if both are the same after normalization, else 0."""
    return float(normalize(prediction) == normalize(truth))


def f1(prediction: str, truth: str) -> float:
    """F1 of the words, counted with repetition; 0 if they share none."""
    predicted, true = normalize(prediction).split(), normalize(truth).split()
    same = sum((collections.Counter(predicted) & collections.Counter(true)).values())
    if same == 0:
        return 0.0
    precision, recall = same / len(predicted), same / len(true)
    return 2 * precision * recall / (precision + recall)


def evaluate(
    dataset: Iterable[Mapping[str, Any]], predictions: Mapping[str, str]
) -> dict[str, float]:
    """Scores predictions for the articles of a SQuAD v1.1 file.

    Args:
        dataset: the file's "data": articles with paragraphs with questions ("qas").
        predictions: question id → text. An id that the data set lacks is ignored.

    Returns:
        `exact_match` and `f1` in percent.
    """
    truths = {
        qa["id"]: [answer["text"] for answer in qa["answers"]]
        for article in dataset
        for paragraph in article["paragraphs"]
        for qa in paragraph["qas"]
    }
    return score_answers(truths, predictions)


def score_answers(
    truths: Mapping[str, Sequence[str]], predictions: Mapping[str, str]
) -> dict[str, float]:
    """The same for question id → texts of its answers; the best of them counts.

    A question without a prediction counts 0, with a warning.
    """
    missing = [id for id in truths if id not in predictions]
    if missing:
        _LOG.warning(
            "%d of %d questions have no prediction and count 0, the first is %s",
            len(missing),
            len(truths),
            missing[0],
        )

    def total(score: Callable[[str, str], float]) -> float:
        return sum(
            max(score(predictions[id], text) for text in texts)
            for id, texts in truths.items()
            if id in predictions
        )

    number = max(len(truths), 1)
    return {"exact_match": 100.0 * total(exact_match) / number, "f1": 100.0 * total(f1) / number}
