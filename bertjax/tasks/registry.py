"""Tasks by name."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from bertjax.registry import Registry
from bertjax.tasks.glue import GLUE, TEXT_TASKS, glue_task, text_options, text_task
from bertjax.tasks.ner.ner import NER_OPTIONS, ner_task
from bertjax.tasks.squad.squad import SQUAD_OPTIONS, squad_task
from bertjax.tasks.task import Task, TaskError


class TaskMaker(NamedTuple):
    """How a task is made.

    Attributes:
        make: options -> the task.
        options: the type of each option, for command lines.
    """

    make: Callable[[dict[str, Any]], Task[Any]]
    options: Mapping[str, type]


TASKS = Registry(
    "task",
    "register_task",
    {
        **{name: TaskMaker(functools.partial(glue_task, name), {}) for name in GLUE},
        **{
            name: TaskMaker(functools.partial(text_task, name), text_options(name))
            for name in TEXT_TASKS
        },
        "squad": TaskMaker(squad_task, SQUAD_OPTIONS),
        "ner": TaskMaker(ner_task, NER_OPTIONS),
    },
)


def register_task(
    name: str,
    make: Callable[[dict[str, Any]], Task[Any]],
    options: Mapping[str, type] | None = None,
    *,
    replace: bool = False,
) -> None:
    """Adds a task, which `fine_tune` and `make_task` then know by its name.

    Args:
        name: what `Task.settings` of the task gives as "name", so that a saved run finds it again.
        make: options -> the task; refuses options that it does not have (`check_options`).
        options: the type of each option.
        replace: whether it may replace another task that you have registered under its name.

    Raises:
        ConfigError: the name is taken.
    """
    TASKS.add(name, TaskMaker(make, options or {}), replace=replace)


def make_task(name: str, options: Mapping[str, Any] | None = None) -> Task[Any]:
    """Make a task.

    Args:
        name: one of `TASKS`.
        options: what the task's function documents; {} for the GLUE tasks, which need none.

    Raises:
        TaskError: no task has that name, or it has no such option.
    """
    if name not in TASKS:
        raise TaskError(f"no task {name!r}; {TASKS.advice(name)}")
    return TASKS[name].make(dict(options or {}))


def parse_option(task: str, option: str, text: str) -> Any:
    """Return the value of an option of the command line: a text, or else parsed as JSON.

    Text that is not JSON stays text, which `make_task` refuses with the option's name and type.
    """
    if task in TASKS and TASKS[task].options.get(option) is str:
        return text
    try:
        return json.loads(text)
    except ValueError:
        return text
