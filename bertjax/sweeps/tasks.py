"""The tasks of a sweep: a JSON file, or a dict of Python."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bertjax.config import ConfigError
from bertjax.errors import closest

_NUMBER = (int, float)
_TYPES: dict[str, tuple[type | tuple[type, ...], str]] = {  # setting -> its types, in words
    "task": (str, "a text"),
    "train": (str, "a text"),
    "eval": (str, "a text"),
    "options": (dict, "an object of options"),
    "learning_rate": (_NUMBER, "a number"),
    "batch_size": (int, "a whole number"),
    "epochs": (_NUMBER, "a number"),
    "max_length": (int, "a whole number"),
    "warmup_share": (_NUMBER, "a number"),
}


@dataclasses.dataclass(frozen=True)
class SweepTask:
    """One task of a sweep; the settings are those of `fine_tune`.

    Attributes:
      name: of its folder and its panels.
      train: training examples: files, separated by commas, or tfds:NAME:SPLIT.
      eval: examples to score on, likewise.
      task: a key of `bertjax.tasks.registry.TASKS`; "" = the name.
      options: of the task.
      learning_rate: peak learning rate.
      batch_size: rows per step, over all devices.
      epochs: times each example is seen; None = as the task has it.
      max_length: tokens per row; None = as the task has it.
      warmup_share: share of the steps in which the learning rate rises to its peak.
    """

    name: str
    train: str
    eval: str
    task: str = ""
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    learning_rate: float = 3e-5
    batch_size: int = 32
    epochs: float | None = None
    max_length: int | None = None
    warmup_share: float = 0.1


def read_tasks(tasks: str | Path | Mapping[str, Mapping[str, Any]]) -> list[SweepTask]:
    """Reads the tasks of a sweep.

    Args:
      tasks: a JSON file with an object {name: {setting: value}}, or that object. The settings are
        the fields of `SweepTask`; train and eval are needed. Paths are relative to the folder in
        which the command runs, as those of flags.

    Raises:
      ConfigError: the file is missing or broken, or a setting is unknown, missing or of another
        type; names the file, the task and the setting.
    """
    if isinstance(tasks, Mapping):
        where, content = "tasks", tasks
    else:
        where, content = f"--tasks={tasks}", _read(Path(tasks))
    if not isinstance(content, Mapping) or not content:
        raise ConfigError(
            f'{where}: expected an object of tasks, {{"cola": {{"train": ..., "eval": ...}}}}'
        )
    return [_task(f"{where}: {name}", name, settings) for name, settings in content.items()]


def _task(where: str, name: str, settings: Any) -> SweepTask:
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise ConfigError(f"{where}: a name is of letters, digits, _, - and ., as a folder has it")
    if not isinstance(settings, Mapping):
        raise ConfigError(f'{where}: expected an object of settings, {{"train": ..., "eval": ...}}')
    for key, value in settings.items():
        if key not in _TYPES:
            raise ConfigError(f"{where}.{key}: no such setting; {closest(key, _TYPES)}")
        types, words = _TYPES[key]
        if not isinstance(value, types) or isinstance(value, bool):
            raise ConfigError(f"{where}.{key} = {value!r}: expected {words}")
    for key in ("train", "eval"):
        if not settings.get(key):
            raise ConfigError(f"{where}.{key} is missing: the files with the examples")
    return SweepTask(**{"name": name, "task": name, **settings})


def _read(path: Path) -> Any:
    """The content of a JSON file in which no key is there twice."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise ConfigError(f"--tasks={path}: {twice!r} is there twice in one object")
        return found

    try:
        return json.loads(path.read_text("utf-8"), object_pairs_hook=unique)
    except FileNotFoundError as error:
        raise ConfigError(f"--tasks={path}: no such file") from error
    except OSError as error:
        raise ConfigError(f"--tasks={path}: cannot be read: {error.strerror}") from error
    except ConfigError:
        raise
    except ValueError as error:  # UnicodeDecodeError and JSONDecodeError
        raise ConfigError(f"--tasks={path}: cannot be read as JSON: {error}") from error
