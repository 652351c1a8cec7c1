"""From start and end logits to answers: `write_predictions` of google-research/bert, run_squad.py.

The text of an answer is copied from the paragraph, from the first character of its first piece to
the last character of its last piece. The reference reconstructs it from pieces (`get_final_text`).
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bertjax.tasks.squad.data import Question
from bertjax.tasks.task import Arrays, take_output


def search_answers(
    questions: Sequence[Question],
    arrays: Arrays,
    outputs: Mapping[str, np.ndarray],
    *,
    n_best: int,
    max_answer_length: int,
) -> list[dict[str, Any]]:
    """Finds the best answers of each question.

    In each window the `n_best` best starts and ends are paired. A pair counts if both are pieces of
    the paragraph, the start has most context in this window, and the answer has 1 to
    `max_answer_length` pieces. If several answers have the same text, the best stays.

    Returns:
        `{"id", "text", "nbest"}` for each question; nbest has up to `n_best` of `{"text",
        "probability", "start_logit", "end_logit"}`, best first; these probabilities sum to 1. If
        no pair counts, the only answer is the empty text.
    """
    shape = arrays["answer_starts"].shape
    start_logits = take_output(outputs, "start_logits", shape)
    end_logits = take_output(outputs, "end_logits", shape)
    borders = np.searchsorted(arrays["example_index"], np.arange(len(questions) + 1))
    records = []
    for number, question in enumerate(questions):
        found: list[tuple[float, float, str]] = []  # start logit, end logit, text
        for row in range(borders[number], borders[number + 1]):
            found += _of_window(
                question.context,
                arrays["answer_starts"][row],
                arrays["answer_ends"][row],
                start_logits[row],
                end_logits[row],
                n_best,
                max_answer_length,
            )
        found.sort(key=lambda answer: -(answer[0] + answer[1]))  # stable: the first window wins
        best: dict[str, tuple[float, float]] = {}
        for start, end, text in found:
            best.setdefault(text, (start, end))
        best = dict(itertools.islice(best.items(), n_best))
        best = best or {"": (0.0, 0.0)}
        total = np.array([start + end for start, end in best.values()])
        shares = np.exp(total - total.max())
        shares /= shares.sum()
        nbest = [
            {"text": text, "probability": share, "start_logit": start, "end_logit": end}
            for (text, (start, end)), share in zip(best.items(), shares.tolist(), strict=True)
        ]
        records.append({"id": question.id, "text": nbest[0]["text"], "nbest": nbest})
    return records


def _of_window(
    context: str,
    answer_starts: np.ndarray,
    answer_ends: np.ndarray,
    start_logits: np.ndarray,
    end_logits: np.ndarray,
    n_best: int,
    max_answer_length: int,
) -> list[tuple[float, float, str]]:
    """The answers of one window, best first."""
    # The best are taken before any is dropped, and the first of equal ones, as in the reference.
    starts = np.argsort(-start_logits, kind="stable")[:n_best]
    ends = np.argsort(-end_logits, kind="stable")[:n_best]
    starts, ends = starts[answer_starts[starts] >= 0], ends[answer_ends[ends] >= 0]
    length = ends[None] - starts[:, None] + 1
    i, j = np.nonzero((length >= 1) & (length <= max_answer_length))
    order = np.argsort(-(start_logits[starts[i]] + end_logits[ends[j]]), kind="stable")
    first, last = starts[i[order]], ends[j[order]]
    rows = zip(
        start_logits[first].tolist(),
        end_logits[last].tolist(),
        answer_starts[first].tolist(),
        answer_ends[last].tolist(),
        strict=True,
    )
    answers = [(start, end, context[begin:stop].strip()) for start, end, begin, stop in rows]
    return [answer for answer in answers if answer[2]]  # SentencePiece has pieces of white space
