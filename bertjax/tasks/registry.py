"""Tasks by name."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from typing import Any

from bertjax.config import closest
from bertjax.tasks.glue import GLUE, TEXT_OPTIONS, glue_task, text_task
from bertjax.tasks.ner.ner import NER_OPTIONS, ner_task
from bertjax.tasks.squad.squad import SQUAD_OPTIONS, squad_task
from bertjax.tasks.task import Task, TaskError

_OTHERS: dict[str, Callable[[dict[str, Any]], Task[Any]]] = {
    **{name: functools.partial(text_task, name) for name in TEXT_OPTIONS},
    "squad": squad_task,
    "ner": ner_task,
}
_OPTION_TYPES = {**TEXT_OPTIONS, "squad": SQUAD_OPTIONS, "ner": NER_OPTIONS}
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


def parse_option(task: str, option: str, text: str) -> Any:
    """Return the value of an option of the command line: a text, or else parsed as JSON.

    Text that is not JSON stays text, which `make_task` refuses with the option's name and type.
    """
    if _OPTION_TYPES.get(task, {}).get(option) is str:
        return text
    try:
        return json.loads(text)
    except ValueError:
        return text
