"""The GLUE tasks (Wang et al. 2019) by name, and a task for any table for each head of texts.

The official files are tables separated by tabs in which quotation marks are text. Columns are
found by their names. CoLA's training and development files have no header, and neither have those
of the STS benchmark itself. Labels are those of the files.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bertjax.heads import HEADS
from bertjax.tasks.task import check_options
from bertjax.tasks.text_task import Columns, TextTask


def _classification(
    name: str, columns: Columns, labels: str, metrics: str, **more: Any
) -> TextTask:
    names = tuple(metrics.split())
    return TextTask(name, "classification", columns, names, names[0], tuple(labels.split()), **more)


_SENTENCE = Columns("sentence")
_SENTENCES = Columns("sentence1", "sentence2")
_COLA = Columns("sentence", headerless=("source", "label", "note", "sentence"), most=4)
_STSB = Columns(
    "sentence1",
    "sentence2",
    label="score",
    headerless=("genre", "file", "year", "index", "score", "sentence1", "sentence2"),
    most=9,  # some lines name the sources of the sentences
)
_MRPC = Columns("#1 String", "#2 String", label="Quality")
# A few of QQP's training lines are cut short; TFDS leaves them out as well.
_QQP = Columns("question1", "question2", label="is_duplicate", drop_short=True)
_MNLI = Columns("sentence1", "sentence2", label="gold_label")

# The first metric is the main one: that of Devlin et al. 2019, table 1.
GLUE: dict[str, TextTask] = {
    task.name: task
    for task in (
        _classification(
            "cola",
            _COLA,
            "0 1",
            "matthews accuracy",
            tfds_columns=_SENTENCE,
            tfds_labels={"unacceptable": "0", "acceptable": "1"},
        ),
        _classification(
            "sst2", _SENTENCE, "0 1", "accuracy", tfds_labels={"negative": "0", "positive": "1"}
        ),
        # Pang and Lee's sentences of film reviews, in SST-2's columns. Not a GLUE task.
        _classification("polarity", _SENTENCE, "0 1", "accuracy"),
        _classification(
            "mrpc",
            _MRPC,
            "0 1",
            "f1 accuracy",
            tfds_columns=_SENTENCES,
            tfds_labels={"not_equivalent": "0", "equivalent": "1"},
        ),
        TextTask(
            "stsb",
            "regression",
            _STSB,
            ("spearman", "pearson"),
            "spearman",
            tfds_columns=_SENTENCES,
            label_range=(0.0, 5.0),  # TFDS has -1 where the label is kept secret
        ),
        _classification(
            "qqp",
            _QQP,
            "0 1",
            "f1 accuracy",
            tfds_columns=Columns("question1", "question2"),
            tfds_labels={"not_duplicate": "0", "duplicate": "1"},
        ),
        _classification(
            "mnli",
            _MNLI,
            "contradiction entailment neutral",
            "accuracy",
            tfds_columns=Columns("premise", "hypothesis"),
            groups={"mismatched": "_mismatched", "matched": "_matched"},
        ),
        _classification(
            "qnli", Columns("question", "sentence"), "entailment not_entailment", "accuracy"
        ),
        _classification("rte", _SENTENCES, "entailment not_entailment", "accuracy"),
        _classification(
            "wnli",
            _SENTENCES,
            "0 1",
            "accuracy",
            tfds_labels={"not_entailment": "0", "entailment": "1"},
        ),
    )
}


def glue_task(name: str, options: Mapping[str, Any]) -> TextTask:
    """Returns one of `GLUE`; it has no options."""
    check_options(name, options, {})
    return GLUE[name]


# Compared by name, because importing the other tasks would be circular.
_TEXT_TASK = f"{TextTask.__module__}:{TextTask.__name__}"
TEXT_TASKS = tuple(  # of the same names as their heads
    name for name in HEADS if name in HEADS.built_in and HEADS[name].task == _TEXT_TASK
)
_COLUMNS: dict[str, type] = {"text_column": str, "text_pair_column": str, "label_column": str}


def text_options(name: str) -> dict[str, type]:
    """The options of `text_task` for a head, with their types."""
    return _COLUMNS | ({"label_names": list} if HEADS[name].labels_have_names else {})


def text_task(name: str, options: Mapping[str, Any]) -> TextTask:
    """Makes the task of a head, such as `classification`, for files with any column names.

    Files: .csv with the usual quoting, .tsv and .txt separated by tabs without quoting, .jsonl;
    a table begins with the names of its columns.

    Args:
        name: of the head, and of the task.
        options: `text_column` ("text"), `text_pair_column` ("" = one text), `label_column`
            ("label") and, where labels are names, `label_names` (those of the training file,
            sorted).

    Raises:
        TaskError: an option does not exist or has another type.
    """
    check_options(name, options, text_options(name))
    labels = tuple(options.get("label_names", ()))
    columns = Columns(
        options.get("text_column", "text"),
        options.get("text_pair_column", ""),
        options.get("label_column", "label"),
    )
    head = HEADS[name]
    metrics = ("accuracy", "f1_macro") if head.labels_have_names else ("spearman", "pearson")
    return TextTask(name, head.name, columns, metrics, metrics[0], labels, options=options)
