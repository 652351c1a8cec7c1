"""SQuAD v1.1 (Rajpurkar et al. 2016): questions of its JSON files, checked as they are read."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from typing import Any

from bertjax.tasks.tables import read_text, read_tfds
from bertjax.tasks.task import TaskError


@dataclasses.dataclass(frozen=True)
class Answer:
    """An answer, which is `context[start : start + len(text)]`."""

    text: str
    start: int  # characters


@dataclasses.dataclass(frozen=True)
class Question:
    """A question about a paragraph; questions of one paragraph share its string."""

    id: str
    question: str
    context: str
    answers: tuple[Answer, ...]  # empty if they were not read


def read_squad(path: str, needs_labels: bool) -> list[Question]:
    """Reads a SQuAD v1.1 file, gzip or not, or `tfds:squad:SPLIT`.

    Raises:
        TaskError: the JSON has another form, an id occurs twice, a question has no answer, or the
            text of an answer is not at its offset.
    """
    questions: list[Question] = []
    seen: set[str] = set()
    for where, qa, context in _entries(path):
        id, question = (_text(where, qa, key) for key in ("id", "question"))
        where = f"{path}, question {id}"
        if id in seen:
            raise TaskError(f"{where}: this id comes twice")
        seen.add(id)
        if not context.strip():
            raise TaskError(f"{where}: its paragraph is empty")
        answers = tuple(_answers(where, qa, context)) if needs_labels else ()
        questions.append(Question(id, question, context, answers))
    if not questions:
        raise TaskError(f"{path}: has no questions")
    return questions


def _entries(path: str) -> Iterator[tuple[str, dict[str, Any], str]]:
    """The (place, question, paragraph) entries of a source."""
    if path.startswith("tfds:"):
        for number, record in read_tfds(path):
            found = record.get("answers", {})
            if not isinstance(found, dict):
                found = {}
            starts_and_texts = zip(
                found.get("answer_start", ()), found.get("text", ()), strict=True
            )
            answers = [{"answer_start": s, "text": text} for s, text in starts_and_texts]
            where = f"{path}:{number}"
            yield where, record | {"answers": answers}, _text(where, record, "context")
        return
    text = read_text(path)
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise TaskError(
            f"{path}: not JSON ({error}); expected a SQuAD v1.1 file; if this one was cut short, "
            "fetch it again"
        ) from error
    for a, article in enumerate(_list(path, document, "data")):
        where = f"{path}: data[{a}]"
        for p, paragraph in enumerate(_list(where, article, "paragraphs")):
            where = f"{path}: data[{a}].paragraphs[{p}]"
            context = _text(where, paragraph, "context")
            for q, qa in enumerate(_list(where, paragraph, "qas")):
                yield f"{where}.qas[{q}]", qa, context


def _answers(where: str, qa: dict[str, Any], context: str) -> Iterator[Answer]:
    if qa.get("is_impossible"):
        raise TaskError(f"{where}: has no answer (SQuAD 2.0); expected SQuAD v1.1")
    answers = _list(where, qa, "answers")
    if not answers:
        raise TaskError(
            f"{where}: has no answers (a test set?); expected SQuAD v1.1 with answers, as in its "
            "train and dev files; bertjax.predict --examples needs none"
        )
    for answer in answers:
        text = _text(where, answer, "text")
        start = answer.get("answer_start")
        if not isinstance(start, int) or not text:
            raise TaskError(f"{where}: answer {answer!r}, expected a text and its answer_start")
        found = context[start : start + len(text)] if start >= 0 else ""
        if found != text:
            raise TaskError(
                f"{where}: found {found!r} at character {start} of its paragraph, expected the "
                f"answer {text!r}"
            )
        yield Answer(text, start)


def _list(where: str, record: Any, key: str) -> list[Any]:
    value = record.get(key) if isinstance(record, dict) else None
    if not isinstance(value, list):
        raise TaskError(f"{where}: has no list {key!r}; expected the structure of SQuAD v1.1")
    return value


def _text(where: str, record: Any, key: str) -> str:
    value = record.get(key) if isinstance(record, dict) else None
    if not isinstance(value, str):
        raise TaskError(f"{where}: has no text {key!r}; expected the structure of SQuAD v1.1")
    return value
