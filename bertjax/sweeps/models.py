"""Which models a sweep starts from: the checkpoints of pre-training runs, or other models."""

from __future__ import annotations

import collections
import dataclasses
import os
import re
from collections.abc import Sequence
from pathlib import Path

from bertjax.checkpoints.checkpoint import Checkpoint, resolve
from bertjax.checkpoints.checkpoint_bucket import open_directory
from bertjax.checkpoints.checkpoint_directory import step_of
from bertjax.config import ConfigError
from bertjax.errors import BertjaxError
from bertjax.fine_tuning.runs import refuse_other_formats
from bertjax.storage.bucket import BucketPath, as_path
from bertjax.weights.initial_params import HUGGING_FACE_PREFIX

_NAMED = re.compile(r"([\w.-]+)=(.+)")
_OF_A_STEP = re.compile(r"(.+)@(\d+|newest)")


@dataclasses.dataclass(frozen=True)
class SweepModel:
    """A model that a sweep starts from.

    Attributes:
      init_from: as `fine_tune` takes it; one checkpoint, also if the run goes on.
      group: of the line in the plot: a name that was given, or that of the workdir.
      folder: of its runs in the folder of a task.
      run: the workdir or folder that it is from, as it was given.
      step: of the pre-training; None if the model does not say (hf:FOLDER, or a converted one).
      predicted_tokens: whose prediction the pre-training had learned from; None if not known.
      seconds: that the pre-training had taken; None if not known.
    """

    init_from: str
    group: str
    folder: str
    run: str
    step: int | None = None
    predicted_tokens: int | None = None
    seconds: float | None = None


def find_models(given: Sequence[str | Path]) -> list[SweepModel]:
    """The models that a list names, each once, those of a run by their steps.

    Args:
      given: WORKDIR for every checkpoint that the run has kept, WORKDIR@STEP or WORKDIR@newest for
        one, the folder of one checkpoint, or hf:FOLDER; each also as NAME=.... Those of one name
        are one line in the plot: pre-trainings that differ in the seed.

    Raises:
      ConfigError: one is not there, has no such step, or is unsound, or two share a name.
    """
    if not given:
        raise ConfigError("--models is empty: name a workdir of bertjax.train, or several")
    found: dict[str, tuple[str, str, Checkpoint | None]] = {}  # by what they are read from
    for text in map(str, given):
        name, where = _name_of(text)
        if where.startswith(HUGGING_FACE_PREFIX):
            _add(found, where, (name, where, None))
            continue
        try:
            run, paths = _checkpoints(where)
            for path in paths:
                checkpoint = resolve(path)
                _add(found, str(checkpoint.path), (name, run, checkpoint))
        except BertjaxError as error:
            raise ConfigError(f"--models={text}: {error}") from error
    runs = {(name, run): run for name, run, _ in found.values()}
    alike = collections.Counter(_last(run) for name, run in runs if not name)
    models = []
    for init_from, (name, run, source) in found.items():
        group = name or (_last(run) if alike[_last(run)] == 1 else run)
        folder = re.sub(r"[^\w.-]+", "_", run).strip("_.") or Path(run).resolve().name
        models.append(_model(init_from, group, folder, run, source))
    _check_names(models)
    order = [(model.group, model.run) for model in models]
    return sorted(models, key=lambda m: (order.index((m.group, m.run)), m.step or 0))


def _add(
    found: dict[str, tuple[str, str, Checkpoint | None]],
    place: str,
    model: tuple[str, str, Checkpoint | None],
) -> None:
    """Adds a model, unless it is there already.

    Raises:
      ConfigError: it is there under another name.
    """
    name, *_ = found.setdefault(place, model)
    if name != model[0]:
        raise ConfigError(
            f"--models: {place} has two names, {name or 'none'!r} and {model[0] or 'none'!r}: "
            "name it once"
        )


def _model(
    init_from: str, group: str, folder: str, run: str, checkpoint: Checkpoint | None
) -> SweepModel:
    progress = checkpoint.progress if checkpoint else {}
    if checkpoint is None or "converted_from" in progress:
        return SweepModel(init_from, group, folder, run)
    return SweepModel(
        init_from,
        group,
        folder,
        run,
        checkpoint.step,
        progress.get("predicted_tokens"),
        progress.get("seconds"),
    )


def _name_of(text: str) -> tuple[str, str]:
    """The name before a =, "" if there is none, and the rest."""
    named = _NAMED.fullmatch(text)
    return (named[1], named[2]) if named and not Path(text).exists() else ("", text)


def _checkpoints(where: str) -> tuple[str, Sequence[Path | BucketPath]]:
    """The run that WORKDIR, WORKDIR@STEP or the folder of a checkpoint names, and its checkpoints.

    The run is a path as it was given: names of folders come of it.
    """
    path, wanted = as_path(where), ""
    at = _OF_A_STEP.fullmatch(where)
    if at and not path.is_dir():
        where, wanted = at[1], at[2]
        path = as_path(where)
    refuse_other_formats(where, "models")
    run = where.rstrip("/") if isinstance(path, BucketPath) else os.path.normpath(where)
    if step_of(path.name) is not None:  # RUN/checkpoints/step_...
        return run.rpartition("/")[0].removesuffix("checkpoints").rstrip("/") or ".", [path]
    if wanted == "newest" or not (path / "checkpoints").is_dir():
        return run, [path]  # `resolve` finds it, or says what is wrong
    directory = open_directory(path / "checkpoints")
    steps = directory.finished_steps()
    if wanted and int(wanted) not in steps:
        kept = ", ".join(map(str, steps)) or "none"
        raise ConfigError(
            f"{path} has no checkpoint of step {wanted}; it has kept {kept} "
            "(config.checkpoint.keep=0 keeps all)"
        )
    if wanted:
        return run, [directory.step_path(int(wanted))]
    return run, [directory.step_path(step) for step in steps] or [path]


def _last(run: str) -> str:
    """The last folder of a path."""
    return run.removeprefix(HUGGING_FACE_PREFIX).rstrip("/").rpartition("/")[2]


def _check_names(models: Sequence[SweepModel]) -> None:
    """Refuses two runs whose folders would be the same."""
    runs: dict[str, str] = {}
    for model in models:
        other = runs.setdefault(model.folder, model.run)
        if other != model.run:
            raise ConfigError(
                f"--models: {other} and {model.run} would both have the folder {model.folder}: "
                "rename one of them"
            )
