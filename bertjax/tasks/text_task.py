"""Classification and regression of one text or a pair, from tables, JSON lines and TFDS."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from bertjax.data.tokenizers.vocabulary import Tokenizer
from bertjax.heads import HEADS
from bertjax.tasks.metrics import METRICS
from bertjax.tasks.tables import is_json, ragged, read_records, read_rows, read_tfds, take_column
from bertjax.tasks.task import (
    Arrays,
    Task,
    TaskError,
    check_same_number,
    on_a_line,
    source_parts,
    take_output,
)
from bertjax.tasks.text_rows import text_rows

_LOG = logging.getLogger(__name__)
_SHOWN_LABELS = 20


@dataclasses.dataclass(frozen=True)
class TextExample:
    """A text or a pair; the label is a name, a number for regression, or None."""

    text: str
    text_pair: str | None
    label: str | float | None
    source: str
    line: int


@dataclasses.dataclass(frozen=True)
class Columns:
    """The columns of an example's fields.

    Attributes:
        text, text_pair, label: names of columns; text_pair "" = one text.
        headerless: the columns of a file whose first line does not name `text`.
        most: largest number of columns of a headerless line (the last ones are not read).
        drop_short: a line with too few columns is left out, with a warning, instead of an error.
    """

    text: str
    text_pair: str = ""
    label: str = "label"
    headerless: tuple[str, ...] = ()
    most: int = 0
    drop_short: bool = False


@dataclasses.dataclass(frozen=True)
class TextTask(Task[TextExample]):
    """Classification or regression.

    Attributes:
        columns: in files; `tfds_columns` in TFDS, if they have other names there.
        tfds_labels: label name in TFDS → label name here, if they differ.
        metrics: keys of `METRICS`.
        label_range: the smallest and the largest label of a regression, if known.
        groups: a part of the source's name → suffix of the scores of only those examples.
        options: with which `make_task` makes this task.
    """

    name: str
    head: str
    columns: Columns
    metrics: tuple[str, ...]
    main_metric: str
    label_names: tuple[str, ...] = ()
    tfds_columns: Columns | None = None
    tfds_labels: Mapping[str, str] = dataclasses.field(default_factory=dict)
    label_range: tuple[float, float] | None = None
    groups: Mapping[str, str] = dataclasses.field(default_factory=dict)
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def takes_pairs(self) -> bool:
        """See `Task.takes_pairs`."""
        return bool(self.columns.text_pair)

    @property
    def _has_names(self) -> bool:
        """Whether labels are names, not numbers."""
        return HEADS[self.head].labels_have_names

    @classmethod
    def for_texts(
        cls, head: str, label_names: tuple[str, ...], paired: bool, max_length: int
    ) -> TextTask:
        """See `Task.for_texts`."""
        columns = Columns("text", "text_pair" if paired else "")
        return cls("input", head, columns, (), "", label_names)

    def settings(self) -> dict[str, Any]:
        """See `Task.settings`."""
        return {"name": self.name, "options": dict(self.options)}

    def with_labels(self, examples: Sequence[TextExample]) -> TextTask:
        """See `Task.with_labels`: sorted, if the task has none yet."""
        if self.label_names or not self._has_names:
            return self
        names = sorted({str(example.label) for example in examples if example.label is not None})
        if len(names) < 2:
            raise TaskError(
                f"task {self.name}: the examples have {len(names)} different labels "
                f"({', '.join(names)}); expected at least two: is label_column = "
                f"{self.columns.label!r} the right one?"
            )
        options = {**self.options, "label_names": names}
        return dataclasses.replace(self, label_names=tuple(names), options=options)

    def read(self, source: str, needs_labels: bool) -> list[TextExample]:
        """See `Task.read`."""
        examples: list[TextExample] = []
        for part in source_parts(self.name, source):
            from_tfds = part.startswith("tfds:")
            columns = (self.tfds_columns if from_tfds else None) or self.columns
            records = read_tfds(part) if from_tfds else _records(part, columns)
            before = len(examples)
            for line, record in records:
                examples.append(self._example(part, line, record, columns, needs_labels))
            if len(examples) == before:
                raise TaskError(f"{part}: has no examples, only its header")
        return examples

    def _example(
        self, source: str, line: int, record: dict[str, Any], columns: Columns, needs_labels: bool
    ) -> TextExample:
        fields = [columns.text] + ([columns.text_pair] if columns.text_pair else [])
        texts = [take_column(source, line, record, field) for field in fields]
        for field, text in zip(fields, texts, strict=True):
            if not isinstance(text, str):
                raise TaskError(f"{source}:{line}: column {field!r} is {text!r}, expected a text")
        label = None
        if needs_labels:
            label = self._label(source, line, take_column(source, line, record, columns.label))
        return TextExample(texts[0], texts[1] if columns.text_pair else None, label, source, line)

    def _label(self, source: str, line: int, label: Any) -> str | float:
        where = f"{source}:{line}"
        if label is None or label != label or not str(label).strip():  # NaN too
            raise TaskError(
                f"{where}: has no label (a test set?); expected one on each line; bertjax.predict "
                "--examples needs none"
            )
        if not self._has_names:
            try:
                number = float(label)
            except (TypeError, ValueError, OverflowError):
                number = math.nan
            if not math.isfinite(number):
                raise TaskError(
                    f"{where}: label {label!r}, expected a number; correct the line or leave it out"
                )
            least, most = self.label_range or (number, number)
            if not least <= number <= most:
                raise TaskError(
                    f"{where}: label {label!r}, expected a number from {least:g} to {most:g} (is "
                    "this a test set, which has none?); correct the line or leave it out"
                )
            return number
        name = str(label).lower() if isinstance(label, bool) else str(label)
        if source.startswith("tfds:"):
            name = self.tfds_labels.get(name, name)
        if self.label_names and name not in self.label_names:
            known = ", ".join(self.label_names[:_SHOWN_LABELS])
            # Those of the training file, unless they are given: it may lack a rare one.
            names = json.dumps([*self.label_names, name], ensure_ascii=False)
            option = shlex.quote(f"label_names={names}")
            advice = f", or --option={option}" if "label_names" in self.options else ""
            raise TaskError(
                f"{where}: unknown label {name!r}; the labels are {known}; correct the line{advice}"
            )
        return name

    def example(self, text: str, pair: str | None, number: int) -> TextExample:
        """See `Task.example`."""
        return TextExample(text, pair, None, "input", number)

    def inputs(self, example: TextExample) -> dict[str, str]:
        """See `Task.inputs`."""
        pair = example.text_pair
        return {"text": example.text} | ({} if pair is None else {"text_pair": pair})

    def features(
        self, examples: Sequence[TextExample], tokenizer: Tokenizer, max_length: int
    ) -> Arrays:
        """See `Task.features`."""
        pairs = None
        if self.columns.text_pair:
            pairs = [example.text_pair or "" for example in examples]
        arrays = text_rows(tokenizer, [example.text for example in examples], pairs, max_length)
        if any(example.label is None for example in examples):
            return arrays
        ((name, answer),) = HEADS[self.head].answers.items()
        if not self._has_names:
            targets = [float(example.label or 0.0) for example in examples]
            arrays[name] = np.array(targets, answer.dtype)
            return arrays
        ids = {label: id for id, label in enumerate(self.label_names)}
        for example in examples:
            if example.label not in ids:
                known = ", ".join(self.label_names[:_SHOWN_LABELS])
                raise TaskError(
                    f"{example.source}:{example.line}: unknown label {example.label!r}; the "
                    f"labels are {known or 'not set: call with_labels(training examples) first'}"
                )
        arrays[name] = np.array([ids[str(example.label)] for example in examples], answer.dtype)
        return arrays

    def predictions(
        self,
        examples: Sequence[TextExample],
        arrays: Arrays,
        outputs: Mapping[str, np.ndarray],
    ) -> list[dict[str, Any]]:
        """Records `{"index", "label", "probabilities"}`, or `{"index", "value"}`."""
        (name,) = HEADS[self.head].outputs
        if not self._has_names:
            values = take_output(outputs, name, (len(examples),))
            return [{"index": i, "value": value} for i, value in enumerate(values.tolist())]
        logits = take_output(outputs, name, (len(examples), self.num_labels))
        shares = np.exp(logits - logits.max(-1, keepdims=True))
        shares /= shares.sum(-1, keepdims=True)
        return [
            {
                "index": i,
                "label": self.label_names[best],
                "probabilities": dict(zip(self.label_names, row, strict=True)),
            }
            for i, (best, row) in enumerate(
                zip(logits.argmax(-1).tolist(), shares.tolist(), strict=True)
            )
        ]

    def scores(
        self, examples: Sequence[TextExample], predictions: Sequence[Mapping[str, Any]]
    ) -> dict[str, float]:
        """See `Task.scores`; also for each group, if the examples are of several."""
        check_same_number(examples, predictions)
        key = "label" if self._has_names else "value"
        groups: dict[str, list[int]] = {"": list(range(len(examples)))}
        for i, example in enumerate(examples):
            if example.label is None:
                raise TaskError(
                    f"{example.source}:{example.line}: no label to score against; read the "
                    "examples with their labels"
                )
            for part, suffix in self.groups.items():
                if part in example.source.rpartition("/")[2]:
                    groups.setdefault(suffix, []).append(i)
                    break
        if len(groups) == 2:  # a single group equals the whole
            groups = {"": groups[""]}
        return {
            metric + suffix: METRICS[metric](
                [examples[i].label for i in members], [predictions[i][key] for i in members]
            )
            for suffix, members in groups.items()
            for metric in self.metrics
        }

    def line(self, record: Mapping[str, Any]) -> str:
        """See `Task.line`: the value, or the label and its probability, before the text."""
        if not self._has_names:
            return f"{record['value']:.4f}\t{on_a_line(record['text'])}"
        probability = record["probabilities"][record["label"]]
        return f"{record['label']}\t{probability:.3f}\t{on_a_line(record['text'])}"


def _records(path: str, columns: Columns) -> Iterator[tuple[int, dict[str, Any]]]:
    """The records of a file that may lack a header or have broken lines."""
    if is_json(path) or not (columns.headerless or columns.drop_short):
        yield from read_records(path)
        return
    rows = read_rows(path)
    first = next(rows)
    names: Sequence[str] = first[1]
    most = len(names)
    if columns.headerless and columns.text not in names:
        names, most = columns.headerless, columns.most
        yield from _named(path, [first], names, most)
    if not columns.drop_short:
        yield from _named(path, rows, names, most)
        return
    dropped: list[int] = []
    for number, row in rows:
        if len(row) < len(names):
            dropped.append(number)
        else:
            yield from _named(path, [(number, row)], names, most)
    if dropped:
        _LOG.warning(
            "%s: left out %d lines that are cut short, the first is line %d",
            path,
            len(dropped),
            dropped[0],
        )


def _named(
    path: str, rows: Any, names: Sequence[str], most: int
) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, row in rows:
        if not len(names) <= len(row) <= most:
            expected = f"{len(names)} to {most}" if most > len(names) else str(len(names))
            raise ragged(path, number, len(row), expected)
        yield number, dict(zip(names, row, strict=False))
