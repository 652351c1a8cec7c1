"""The interface of a task: from files to feature arrays, from model outputs to scores.

task = make_task("sst2")                            # bertjax.tasks.registry
train = task.read("train.tsv.gz", needs_labels=True)
task = task.with_labels(train)                      # fixes the label names
arrays = task.features(train, tokenizer, max_length=128)
records = task.predictions(examples, arrays, outputs)
scores = task.scores(examples, records)             # scores[task.main_metric]: higher is better

The first dimension of all arrays is the rows of the model's input, so a batch is
`{name: array[rows] for ...}`. All tasks have int32 [n, t] `input_ids`, `token_type_ids`,
`attention_mask` and float32 [n] `row_weights`. Other arrays depend on the head:

| head | arrays | outputs of the model, float32 |
|---|---|---|
| classification | `labels` int32 [n] | `logits` [n, c] |
| regression | `targets` float32 [n] | `values` [n] |
| span | `start_positions`, `end_positions` int32 [n] | `start_logits`, `end_logits` [n, t] |
| tagging | `tag_ids` int32 [n, t], `tag_weights` float32 [n, t] | `logits` [n, t, c] |

Arrays of answers are missing if the examples have none (`needs_labels=False`). Further arrays
belong to the task: `predictions` needs them, and a model does not.
"""

from __future__ import annotations

import abc
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Generic, Self, TypeVar

import numpy as np

from bertjax.config import closest
from bertjax.data.tokenizers.vocabulary import Tokenizer
from bertjax.errors import BertjaxError
from bertjax.heads import HEADS

Arrays = dict[str, np.ndarray]
Example = TypeVar("Example")


class TaskError(BertjaxError, ValueError):
    """Unusable data, options or outputs; says where, what was found and what was expected."""


class Task(abc.ABC, Generic[Example]):
    """One kind of fine-tuning data; immutable.

    Attributes:
        name: what `make_task` calls it.
        head: of the model, see `bertjax.heads`.
        label_names: of classes or tags, in the order of their ids; () until they are known, and
            for heads without labels.
        main_metric: the key of `scores` that selects the best checkpoint; higher is better.
        default_max_length: default number of tokens per row.
        default_epochs: default number of passes over the examples.
        length_of_texts: tokens per row of texts for a model whose fine-tuning is not known; 0 = all
            its positions.
    """

    default_max_length: ClassVar[int] = 128
    default_epochs: ClassVar[float] = 3.0
    length_of_texts: ClassVar[int] = 0
    head: str
    name: str
    main_metric: str
    label_names: tuple[str, ...] = ()

    @property
    def num_labels(self) -> int:
        """Width of the model's output: c classes or tags, 1 for regression, 2 for spans."""
        return HEADS[self.head].num_labels or len(self.label_names)

    @property
    def takes_pairs(self) -> bool:
        """Whether a text for prediction is a pair."""
        return False

    @classmethod
    @abc.abstractmethod
    def for_texts(
        cls, head: str, label_names: tuple[str, ...], paired: bool, max_length: int
    ) -> Self:
        """Make the task of a model whose fine-tuning is not known.

        Args:
            head: of the model.
            label_names: of the model's labels.
            paired: whether the texts for prediction are pairs, if the task has both.
            max_length: tokens per row.
        """

    @abc.abstractmethod
    def settings(self) -> dict[str, Any]:
        """Return `{"name", "options"}`, JSON-able: `make_task(**settings)` makes this task again.

        They include the label names, so a checkpoint can be used without its training file.
        """

    def with_labels(self, examples: Sequence[Example]) -> Task[Example]:
        """Return a task with label names: given ones, else those of the examples."""
        return self

    @abc.abstractmethod
    def read(self, source: str, needs_labels: bool) -> list[Example]:
        """Read examples.

        Args:
            source: a file (gzip or not), several separated by commas, or `tfds:NAME:SPLIT`.
            needs_labels: False = no labels are read or needed.

        Raises:
            TaskError: naming file and line, what was found, and what was expected.
        """

    @abc.abstractmethod
    def example(self, text: str, pair: str | None, number: int) -> Example:
        """Make an example without labels from a text for prediction, with its number."""

    @abc.abstractmethod
    def inputs(self, example: Example) -> dict[str, str]:
        """Return the input of a prediction: `text`, `text_pair` for a pair, and `id` if any."""

    @abc.abstractmethod
    def features(
        self, examples: Sequence[Example], tokenizer: Tokenizer, max_length: int
    ) -> Arrays:
        """Make the arrays of the rows; in the order of the examples, one row each or several.

        Raises:
            TaskError: `max_length` is too small, or a label is not among `label_names`.
        """

    @abc.abstractmethod
    def predictions(
        self, examples: Sequence[Example], arrays: Arrays, outputs: Mapping[str, np.ndarray]
    ) -> list[dict[str, Any]]:
        """Make JSON-able records, one per example.

        Args:
            examples: those of `arrays`.
            arrays: of `features`, all rows.
            outputs: of the model for these rows, padding rows removed.

        Raises:
            TaskError: an output is missing, has another shape or is not finite.
        """

    @abc.abstractmethod
    def scores(
        self, examples: Sequence[Example], predictions: Sequence[Mapping[str, Any]]
    ) -> dict[str, float]:
        """Score records of `predictions` with the official metrics.

        Raises:
            TaskError: the examples have no labels, or their number differs.
        """

    def answer(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """Return the answer in a record of `predictions`, to be written beside `inputs`."""
        return {name: value for name, value in record.items() if name != "index"}

    @abc.abstractmethod
    def line(self, record: Mapping[str, Any]) -> str:
        """Return `inputs` and `answer` as a line of text."""

    def files(self, predictions: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Return further files to write: file name → JSON-able content."""
        return {}


def join_outputs(
    head: str, parts: Iterable[tuple[Any, np.ndarray]], attention_mask: np.ndarray
) -> np.ndarray:
    """Join one output of batches of rows in the order of the rows.

    Args:
        head: of the output.
        parts: integer [b], which rows, and float32 [b, ...], their output. For a head on tokens
            it is [b, s, ...], where the rows of the batch may have been cut to s tokens.
        attention_mask: [n, t] of all rows, 1 = a real token.

    Returns:
        Float32 [n, ...], for a head on tokens [n, t, ...]. Padding has 0, or the lowest number for
        spans, so no answer begins or ends there, and padding changes no answer. (In the reference
        padding may be among the best starts and ends.)
    """
    record = HEADS[head]
    num_rows, length = attention_mask.shape
    whole = np.zeros(0, np.float32)
    for rows, part in parts:
        if not whole.size:
            shape = (length, *part.shape[2:]) if record.per_token else part.shape[1:]
            whole = np.zeros((num_rows, *shape), np.float32)
        whole[(rows, *(slice(size) for size in part.shape[1:]))] = part
    if not record.per_token:
        return whole
    mask = attention_mask.reshape(*attention_mask.shape, *(1,) * (whole.ndim - 2))
    padding = np.finfo(np.float32).min if record.lowest_at_padding else np.float32(0)
    return np.where(mask, whole, padding)


def on_a_line(text: str) -> str:
    """Return a text in a form that fits between tabs on a line."""
    return text.replace("\t", "\\t").replace("\r", "\\r").replace("\n", "\\n")


def take_output(outputs: Mapping[str, np.ndarray], name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Return one finite output of the model as float64.

    Raises:
        TaskError: the output is missing, has another shape or contains NaN or infinity.
    """
    if name not in outputs:
        raise TaskError(f"the model's outputs have no {name!r}, only {', '.join(sorted(outputs))}")
    output = np.asarray(outputs[name], np.float64)
    if output.shape != shape:
        raise TaskError(f"the model's output {name!r} has shape {output.shape}, expected {shape}")
    if not np.isfinite(output).all():
        rows = np.unique(np.nonzero(~np.isfinite(output))[0])
        raise TaskError(
            f"the model's output {name!r} is not finite in {len(rows)} of {len(output)} rows, "
            f"first in row {rows[0]}: training has diverged; lower the learning rate"
        )
    return output


def check_same_number(examples: Sequence[Any], predictions: Sequence[Any]) -> None:
    """Refuses predictions of other examples.

    Raises:
        TaskError: there are none, or their number is not that of the examples.
    """
    if not examples or len(examples) != len(predictions):
        raise TaskError(
            f"{len(predictions)} predictions for {len(examples)} examples; expected one for each, "
            "and at least one"
        )


def check_options(task: str, options: Mapping[str, Any], known: Mapping[str, type]) -> None:
    """Refuses options that a task does not have, or of another type; lists must be of names.

    Raises:
        TaskError: naming the option, with the closest one or the type.
    """
    for option, value in options.items():
        if option not in known:
            advice = closest(option, known) if known else "it has none"
            raise TaskError(f"task {task} has no option {option!r}; {advice}")
        right = isinstance(value, known[option]) and (
            known[option] is bool or not isinstance(value, bool)
        )
        if not right:
            raise TaskError(
                f"option {option!r} of task {task} is {value!r}, expected {known[option].__name__}"
            )
        if known[option] is list and not _are_names(value):
            raise TaskError(
                f"option {option!r} of task {task} is {value}, expected names, once each"
            )


def _are_names(values: Sequence[Any]) -> bool:
    return all(isinstance(value, str) for value in values) and len(set(values)) == len(values)


def source_parts(task: str, source: str) -> list[str]:
    """The files, or data sets of TFDS, in a list with commas.

    Raises:
        TaskError: there is none.
    """
    parts = [part.strip() for part in source.split(",") if part.strip()]
    if not parts:
        raise TaskError(f"task {task}: no file to read is given ({source!r})")
    return parts
