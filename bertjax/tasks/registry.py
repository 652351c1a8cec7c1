"""Tasks by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from bertjax.config import closest
from bertjax.tasks.glue import GLUE, glue_task, text_task
from bertjax.tasks.ner import ner_task
from bertjax.tasks.squad import squad_task
from bertjax.tasks.task import Task, TaskError

_OTHERS: dict[str, Callable[[dict[str, Any]], Task[Any]]] = {
    "classification": lambda options: text_task("classification", options),
    "regression": lambda options: text_task("regression", options),
    "squad": squad_task,
    "ner": ner_task,
}
TASK_NAMES = (*GLUE, *_OTHERS)


def make_task(name: str, options: Mapping[str, Any] | None = None) -> Task[Any]:
    """Make a task.

    Args:
        name: one of `TASK_NAMES`.
        options: what the task's function documents; {} for the GLUE tasks, which need none.

    Raises:
        TaskError: no task has that name, or it has no such option.
    """
    options = dict(options or {})
    if name in GLUE:
        return glue_task(name, options)
    if name not in _OTHERS:
        raise TaskError(f"no task {name!r}; {closest(name, TASK_NAMES)}")
    return _OTHERS[name](options)
