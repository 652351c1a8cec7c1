"""Tagging: named entities of CoNLL files, scored by entity."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bertjax.data.tokenizers.vocabulary import Tokenizer
from bertjax.tasks.ner.data import Sentence, read_conll, split_words
from bertjax.tasks.ner.rows import tagged_rows
from bertjax.tasks.task import (
    Arrays,
    Task,
    TaskError,
    check_options,
    check_same_number,
    source_parts,
    take_output,
)


@dataclasses.dataclass(frozen=True)
class NerTask(Task[Sentence]):
    """Named entities. Tags are BIO: O, then B- and I- of each type.

    Attributes:
        word_column, tag_column: of the file, from 0, or from the end: -1 is the last.
        separator: of the columns, "whitespace" or "tab".
    """

    word_column: int = 0
    tag_column: int = -1
    separator: str = "whitespace"
    label_names: tuple[str, ...] = ()
    name: str = "ner"
    main_metric: str = "f1"
    head: str = "tagging"

    @classmethod
    def for_texts(
        cls, head: str, label_names: tuple[str, ...], paired: bool, max_length: int
    ) -> NerTask:
        """See `Task.for_texts`."""
        return cls(head=head, label_names=label_names)

    def settings(self) -> dict[str, Any]:
        """See `Task.settings`."""
        options = {name: getattr(self, name) for name in NER_OPTIONS if name != "entity_types"}
        if self.label_names:
            options["entity_types"] = self.entity_types
        return {"name": self.name, "options": options}

    @property
    def entity_types(self) -> list[str]:
        """The types, in the order of their tags."""
        return [name[2:] for name in self.label_names if name.startswith("B-")]

    def with_labels(self, examples: Sequence[Sentence]) -> NerTask:
        """See `Task.with_labels`: the types of the examples, sorted, if the task has none."""
        if self.label_names:
            return self
        types = sorted({tag[2:] for example in examples for tag in example.tags if tag != "O"})
        if not types:
            raise TaskError("task ner: the examples have no entity; is tag_column the right one?")
        return dataclasses.replace(self, label_names=_tags(types))

    def read(self, source: str, needs_labels: bool) -> list[Sentence]:
        """See `Task.read`: CoNLL files; tags of any scheme become BIO."""
        sentences = []
        for part in source_parts(self.name, source):
            if part.startswith("tfds:"):
                raise TaskError(f"{part}: task ner reads CoNLL files only")
            sentences += read_conll(
                part,
                needs_labels,
                word_column=self.word_column,
                tag_column=self.tag_column,
                separator=self.separator,
            )
        if self.label_names:
            self._check_tags(sentences)
        return sentences

    def _check_tags(self, sentences: Sequence[Sentence]) -> None:
        for sentence in sentences:
            for place, tag in enumerate(sentence.tags):
                if tag not in self.label_names:
                    types = [*self.entity_types, tag[2:]]
                    raise TaskError(
                        f"{sentence.source}:{sentence.line + place}: unknown entity type "
                        f"{tag[2:]!r}; the types are {', '.join(self.entity_types)}; correct the "
                        f"tag, or --option='entity_types={json.dumps(types, ensure_ascii=False)}'"
                    )

    def example(self, text: str, pair: str | None, number: int) -> Sentence:
        """See `Task.example`: words have blanks or tabs between them."""
        return Sentence(tuple(split_words(text)), (), "", "input", number)

    def inputs(self, example: Sentence) -> dict[str, str]:
        """See `Task.inputs`: the words."""
        return {"text": " ".join(example.words)}

    def features(
        self, examples: Sequence[Sentence], tokenizer: Tokenizer, max_length: int
    ) -> Arrays:
        """See `tagged_rows`."""
        return tagged_rows(examples, tokenizer, max_length, self.label_names)

    def predictions(
        self, examples: Sequence[Sentence], arrays: Arrays, outputs: Mapping[str, np.ndarray]
    ) -> list[dict[str, Any]]:
        """Records `{"words", "tags"}`: the best tag of each word."""
        shape = (*arrays["word_index"].shape, self.num_labels)
        best = take_output(outputs, "logits", shape).argmax(-1)
        tags = [["O"] * len(example.words) for example in examples]
        for row, column in zip(*np.nonzero(arrays["word_index"] >= 0), strict=True):
            word = arrays["word_index"][row, column]
            tags[arrays["example_index"][row]][word] = self.label_names[best[row, column]]
        return [
            {"words": list(example.words), "tags": found}
            for example, found in zip(examples, tags, strict=True)
        ]

    def scores(
        self, examples: Sequence[Sentence], predictions: Sequence[Mapping[str, Any]]
    ) -> dict[str, float]:
        """See `entity_scores`."""
        check_same_number(examples, predictions)
        for example, prediction in zip(examples, predictions, strict=True):
            if len(example.tags) != len(prediction["tags"]):
                raise TaskError(
                    f"{example.source}:{example.line}: {len(prediction['tags'])} tags predicted, "
                    f"{len(example.tags)} are there; expected one per word, read with labels"
                )
        return entity_scores(
            [list(example.tags) for example in examples],
            [list(prediction["tags"]) for prediction in predictions],
            self.entity_types,
        )

    def line(self, record: Mapping[str, Any]) -> str:
        """See `Task.line`: the words, those of entities with their tags."""
        words = zip(record["words"], record["tags"], strict=True)
        return " ".join(word if tag == "O" else f"{word}/{tag}" for word, tag in words)


def entity_scores(
    truth: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]], types: Sequence[str]
) -> dict[str, float]:
    """Precision, recall and F1 of entities; an entity is right if its type and borders are.

    An entity begins at a B-, and at an I- after O or another type, as in conlleval. An
    undefined score (nothing predicted, or no entity) is 0.

    Returns:
        `precision`, `recall`, `f1` over all entities and `TYPE/precision` and so on for each type.
    """
    from nervaluate import Evaluator

    found = Evaluator(
        [list(tags) for tags in truth],
        [list(tags) for tags in predicted],
        tags=list(types),
        loader="list",
    ).evaluate()
    results = {"": found["overall"]["strict"]}
    for type_name in types:
        by_strategy = found["entities"].get(type_name)  # none: it is in neither
        results[f"{type_name}/"] = by_strategy["strict"] if by_strategy else None
    return {
        prefix + metric: float(getattr(result, metric)) if result else 0.0
        for prefix, result in results.items()
        for metric in ("precision", "recall", "f1")
    }


def _tags(types: Sequence[str]) -> tuple[str, ...]:
    return ("O", *(f"{prefix}-{name}" for name in types for prefix in "BI"))


NER_OPTIONS: dict[str, type] = {
    "word_column": int,
    "tag_column": int,
    "separator": str,
    "entity_types": list,
}


def ner_task(options: Mapping[str, Any]) -> NerTask:
    """Makes the task.

    Args:
        options: `word_column` (0), `tag_column` (-1), `separator` ("whitespace" or "tab") and
            `entity_types` (those of the training file, sorted).

    Raises:
        TaskError: an option does not exist, or its value cannot be.
    """
    check_options("ner", options, NER_OPTIONS)
    values = dict(options)
    types = values.pop("entity_types", [])
    task = NerTask(**values, label_names=_tags(types) if types else ())
    if task.separator not in ("whitespace", "tab"):
        raise TaskError(
            f"option 'separator' of task ner is {task.separator!r}, expected 'whitespace' or 'tab'"
        )
    return task
