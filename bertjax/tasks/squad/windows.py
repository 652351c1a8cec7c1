"""Rows of questions: [CLS] question [SEP] window of the paragraph [SEP].

Windows, their stride and the window of a piece are those of google-research/bert, run_squad.py.
Places of answers are characters here: a piece's text is copied from the paragraph.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bertjax.data.tokenizers.offsets import Encoding, OffsetEncoder
from bertjax.data.tokenizers.vocabulary import Tokenizer
from bertjax.tasks.squad.data import Question
from bertjax.tasks.task import Arrays, TaskError
from bertjax.tasks.text_rows import empty_rows


def squad_rows(
    questions: Sequence[Question],
    tokenizer: Tokenizer,
    max_length: int,
    *,
    doc_stride: int,
    max_query_length: int,
) -> Arrays:
    """Makes the rows of questions: one for each window, in order.

    Beside the arrays of every task and `start_positions`, `end_positions` (of the first answer; 0
    where the window lacks it; missing where a question has no answer):

    - `example_index` int32 [n]: the row's question.
    - `answer_starts` int32 [n, t]: the character where an answer begins that begins with this
      piece; -1 outside the paragraph and where another window gives the piece more context.
    - `answer_ends` int32 [n, t]: the character after an answer that ends with it; -1 outside.

    Raises:
        TaskError: `max_length` has no room for a question of `max_query_length` and a piece.
    """
    if max_length <= max_query_length + 3:
        raise TaskError(
            f"max_length = {max_length} has no room for a question of max_query_length = "
            f"{max_query_length} pieces and a paragraph; give at least {max_query_length + 4} or "
            "lower the option max_query_length"
        )
    flat, lengths = tokenizer.encode_sentences([question.question for question in questions])
    queries = [ids[:max_query_length] for ids in np.split(flat, np.cumsum(lengths)[:-1])]
    encoder = OffsetEncoder(tokenizer)
    paragraphs: dict[str, Encoding] = {}
    for question in questions:
        if question.context not in paragraphs:
            paragraphs[question.context] = encoder.encode(question.context)
    windows = [
        windows_of(len(paragraphs[question.context].ids), max_length - len(query) - 3, doc_stride)
        for question, query in zip(questions, queries, strict=True)
    ]
    rows = empty_rows(sum(map(len, windows)), max_length, tokenizer)
    rows["example_index"] = np.repeat(
        np.arange(len(questions), dtype=np.int32), [len(w) for w in windows]
    )
    for name in ("answer_starts", "answer_ends"):
        rows[name] = np.full_like(rows["input_ids"], -1)
    has_answers = all(question.answers for question in questions)
    if has_answers:
        for name in ("start_positions", "end_positions"):
            rows[name] = np.zeros(len(rows["input_ids"]), np.int32)
    row = 0
    for question, query, spans in zip(questions, queries, windows, strict=True):
        paragraph = paragraphs[question.context]
        span = answer_pieces(paragraph, question) if has_answers else None
        owner = window_of_most_context(spans)
        for number, (start, length) in enumerate(spans):
            first = len(query) + 2  # of the paragraph's pieces in the row
            end = first + length
            part = slice(start, start + length)
            ids = rows["input_ids"][row]
            ids[0] = tokenizer.cls_id
            ids[1 : first - 1] = query
            ids[first - 1] = ids[end] = tokenizer.sep_id
            ids[first:end] = paragraph.ids[part]
            rows["token_type_ids"][row, first : end + 1] = 1
            rows["attention_mask"][row, : end + 1] = 1
            rows["answer_starts"][row, first:end] = np.where(
                owner[part] == number, paragraph.starts[part], -1
            )
            rows["answer_ends"][row, first:end] = paragraph.ends[part]
            if span and start <= span[0] and span[1] < start + length:
                rows["start_positions"][row] = span[0] - start + first
                rows["end_positions"][row] = span[1] - start + first
            row += 1
    return rows


def windows_of(num_pieces: int, room: int, stride: int) -> list[tuple[int, int]]:
    """The (start, length) of the windows of a paragraph: `room` pieces every `stride`."""
    windows = []
    start = 0
    while True:
        length = min(num_pieces - start, room)
        windows.append((start, length))
        if start + length == num_pieces:
            return windows
        start += min(length, stride)


def window_of_most_context(windows: Sequence[tuple[int, int]]) -> np.ndarray:
    """For each piece of a paragraph, the window in which it has the most context.

    Context is the smaller of the numbers of pieces to its left and right, plus a hundredth of the
    window's length. The first of equal windows counts (`_check_is_max_context`).
    """
    num_pieces = windows[-1][0] + windows[-1][1]
    most, owner = np.full(num_pieces, -1.0), np.zeros(num_pieces, np.int64)
    for number, (start, length) in enumerate(windows):
        place = np.arange(length)
        context = np.minimum(place, length - 1 - place) + 0.01 * length
        part = slice(start, start + length)
        better = context > most[part]
        most[part][better], owner[part][better] = context[better], number
    return owner


def answer_pieces(paragraph: Encoding, question: Question) -> tuple[int, int] | None:
    """The first and last piece of the first answer; None if no piece holds any of it.

    The reference takes the words between white space that hold it, and searches them for pieces
    that spell the answer (`_improve_answer_span`). Characters identify the pieces directly.
    """
    answer = question.answers[0]
    begin, end = answer.start, answer.start + len(answer.text)
    inside = (paragraph.ends > begin) & (paragraph.starts < end)
    inside &= paragraph.ends > paragraph.starts
    held = np.flatnonzero(inside)
    return (int(held[0]), int(held[-1])) if len(held) else None
