"""Question answering on SQuAD v1.1: the answer is a span of the paragraph."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from bertjax.data.tokenizers.vocabulary import Tokenizer
from bertjax.tasks.squad.answers import search_answers
from bertjax.tasks.squad.data import Question, read_squad
from bertjax.tasks.squad.metrics import score_answers
from bertjax.tasks.squad.windows import squad_rows
from bertjax.tasks.task import (
    Arrays,
    Task,
    TaskError,
    check_options,
    check_same_number,
    on_a_line,
    source_parts,
)


@dataclasses.dataclass(frozen=True)
class SquadTask(Task[Question]):
    """SQuAD v1.1.

    Attributes:
        doc_stride: pieces from the start of a window to that of the next.
        max_query_length: largest number of pieces of a question.
        n_best: number of starts and ends that are paired, and of answers that are kept.
        max_answer_length: largest number of pieces of an answer.
    """

    default_max_length: ClassVar[int] = 384
    default_epochs: ClassVar[float] = 2.0
    length_of_texts: ClassVar[int] = 384

    doc_stride: int = 128
    max_query_length: int = 64
    n_best: int = 20
    max_answer_length: int = 30
    name: str = "squad"
    main_metric: str = "f1"
    head: str = "span"

    @property
    def takes_pairs(self) -> bool:
        """See `Task.takes_pairs`: a question and its paragraph."""
        return True

    @classmethod
    def for_texts(
        cls, head: str, label_names: tuple[str, ...], paired: bool, max_length: int
    ) -> SquadTask:
        """See `Task.for_texts`; a question takes at most half of a row."""
        return cls(head=head, max_query_length=min(cls.max_query_length, max_length // 2))

    def settings(self) -> dict[str, Any]:
        """See `Task.settings`."""
        return {"name": self.name, "options": {name: getattr(self, name) for name in SQUAD_OPTIONS}}

    def read(self, source: str, needs_labels: bool) -> list[Question]:
        """See `Task.read`: SQuAD v1.1 JSON files, or `tfds:squad:SPLIT`."""
        questions: dict[str, tuple[Question, str]] = {}  # with their file, by id
        for part in source_parts(self.name, source):
            for question in read_squad(part, needs_labels):
                if question.id in questions:
                    raise TaskError(
                        f"{part}, question {question.id}: this id stands in "
                        f"{questions[question.id][1]} too; expected each question once"
                    )
                questions[question.id] = question, part
        return [question for question, _ in questions.values()]

    def example(self, text: str, pair: str | None, number: int) -> Question:
        """See `Task.example`."""
        return Question(str(number), text, pair or "", ())

    def inputs(self, example: Question) -> dict[str, str]:
        """See `Task.inputs`."""
        return {"id": example.id, "text": example.question, "text_pair": example.context}

    def features(
        self, examples: Sequence[Question], tokenizer: Tokenizer, max_length: int
    ) -> Arrays:
        """See `squad_rows`."""
        return squad_rows(
            examples,
            tokenizer,
            max_length,
            doc_stride=self.doc_stride,
            max_query_length=self.max_query_length,
        )

    def predictions(
        self, examples: Sequence[Question], arrays: Arrays, outputs: Mapping[str, np.ndarray]
    ) -> list[dict[str, Any]]:
        """See `search_answers`."""
        return search_answers(
            examples,
            arrays,
            outputs,
            n_best=self.n_best,
            max_answer_length=self.max_answer_length,
        )

    def scores(
        self, examples: Sequence[Question], predictions: Sequence[Mapping[str, Any]]
    ) -> dict[str, float]:
        """Returns `exact_match` and `f1` in percent, by the rules of evaluate-v1.1.py."""
        check_same_number(examples, predictions)
        truths = {}
        for example in examples:
            if not example.answers:
                raise TaskError(
                    f"question {example.id}: no answer to score against; read the examples with "
                    "their labels"
                )
            truths[example.id] = [answer.text for answer in example.answers]
        return score_answers(truths, {record["id"]: record["text"] for record in predictions})

    def answer(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """See `Task.answer`: `answer` and `nbest`."""
        return {"answer": record["text"], "nbest": record["nbest"]}

    def line(self, record: Mapping[str, Any]) -> str:
        """See `Task.line`."""
        return f"{on_a_line(record['answer'])}\t{on_a_line(record['text'])}"

    def files(self, predictions: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """The files of the reference: id → text, and id → list of answers."""
        return {
            "predictions.json": {record["id"]: record["text"] for record in predictions},
            "nbest_predictions.json": {record["id"]: record["nbest"] for record in predictions},
        }


SQUAD_OPTIONS: dict[str, type] = {
    name: int for name in ("doc_stride", "max_query_length", "n_best", "max_answer_length")
}


def squad_task(options: Mapping[str, Any]) -> SquadTask:
    """Makes the task; options are the fields `doc_stride` to `max_answer_length`.

    Raises:
        TaskError: an option does not exist or is not a number above 0.
    """
    check_options("squad", options, SQUAD_OPTIONS)
    for option, value in options.items():
        if value < 1:
            raise TaskError(f"option {option!r} of task squad is {value}, expected at least 1")
    return SquadTask(**options)
