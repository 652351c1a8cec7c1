"""A sweep: checkpoints x tasks x seeds, each fine-tuned in a folder of its own."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import json
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bertjax.checkpoints.loadable_workdir import SCORES
from bertjax.config import ConfigError, FineTuningConfig
from bertjax.errors import BertjaxError
from bertjax.fine_tuning.run import finished_scores, remove_checkpoints, train_and_score
from bertjax.fine_tuning.runs import (
    Runs,
    check_list,
    check_numbers,
    check_overrides,
    check_workdir,
    make_runs,
    open_initial,
    read_data,
    row_length,
)
from bertjax.objectives.objective import row_flops
from bertjax.storage.workdir_lock import lock_workdir
from bertjax.sweeps.models import SweepModel, find_models
from bertjax.sweeps.plot import PLOT, plot_sweep
from bertjax.sweeps.report import SWEEP, summarize, table, write_report
from bertjax.sweeps.tasks import SweepTask, read_tasks
from bertjax.tasks.registry import make_task
from bertjax.training.loop import TrainingDivergedError
from bertjax.training.preemption import Preempted, PreemptionGuard
from bertjax.version import __version__

_LOG = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class SweepResult:
    """The result of a sweep.

    Attributes:
      workdir: of sweep.json, sweep.png and the runs, each in a folder of its own.
      content: that of sweep.json.
      table: means and 95 % intervals over the seeds, as text.
      diverged: folder -> reason, of runs that diverged.
      preempted: whether the sweep was asked to stop; the same call goes on.
    """

    workdir: Path
    content: Mapping[str, Any]
    table: str
    diverged: Mapping[str, str]
    preempted: bool


@dataclasses.dataclass(frozen=True)
class Sweep:
    """A sweep that was checked: `open_sweep`."""

    tasks: list[SweepTask]
    models: list[SweepModel]
    runs: list[SweepRun]


@dataclasses.dataclass(frozen=True)
class SweepRun:
    """One run of a sweep.

    Attributes:
      folder: in the workdir of the sweep.
      task: its name in the sweep.
      model: that it starts from.
      runs: of the task and the model, with the rows.
      config: the one of them.
    """

    folder: str
    task: str
    model: SweepModel
    runs: Runs
    config: FineTuningConfig

    def arguments(self, workdir: Path) -> tuple[Any, ...]:
        """Those of `train_and_score` and `finished_scores`."""
        runs = self.runs
        folder = workdir / self.folder
        data = (runs.training, runs.evaluation, runs.tokenizer, runs.initial_hash)
        return (self.config, folder, *data)

    def flops(self) -> float:
        """Of the training, as `bertjax.flops` counts them."""
        (phase,) = self.config.resolved_phases()
        per_row = row_flops(self.config.model, phase)
        return self.config.last_step * phase.global_batch_size * per_row


def fine_tune_sweep(
    models: Sequence[str | Path],
    tasks: str | Path | Mapping[str, Mapping[str, Any]],
    workdir: str | Path,
    *,
    seeds: Sequence[int] = (0,),
    overrides: Mapping[str, Any] | None = None,
    keep_checkpoints: bool = True,
) -> SweepResult:
    """Fine-tunes each model on each task with each seed, or goes on where it was stopped.

    Everything is checked before the first step. Finished runs are not run again. A run that
    diverges does not stop the others. Programs of the same shapes are compiled once, whatever
    their seeds, learning rates and numbers of steps.

    Args:
      models: WORKDIR for every checkpoint that a pre-training has kept, WORKDIR@STEP or
        WORKDIR@newest, the folder of a checkpoint, or hf:FOLDER; each also as NAME=.... Those of
        one name are one line in the plot.
      tasks: a JSON file or a dict, {name: {"train": ..., "eval": ...}}; see `SweepTask` for the
        other settings.
      workdir: of the sweep; a run is in WORKDIR/TASK/RUN/STEP/SEED.
      seeds: of the new layer, the order and dropout; a run for each.
      overrides: other fields of `FineTuningConfig`, as in `fine_tune`; for all runs.
      keep_checkpoints: False removes those of each finished run: its best and its last one.

    Raises:
      ConfigError: a model, task, seed or field cannot work, or a folder has another run.
      TaskError: a task's options or files are not as expected.
      BertjaxError: others of `bertjax.training.loop.run`.
    """
    folder = check_workdir(workdir)
    return run_sweep(open_sweep(models, tasks, seeds, overrides), folder, keep_checkpoints)


def open_sweep(
    models: Sequence[str | Path],
    tasks: str | Path | Mapping[str, Mapping[str, Any]],
    seeds: Sequence[int],
    overrides: Mapping[str, Any] | None,
) -> Sweep:
    """Reads all models and examples and makes the runs; see `fine_tune_sweep`."""
    check_overrides(overrides)
    check_list("seeds", seeds, may_be_zero=True)
    found_tasks = read_tasks(tasks)
    read = []
    for task in found_tasks:
        with _named(f"task {task.name}"):
            numbers = check_numbers(
                [task.learning_rate],
                [task.batch_size],
                [] if task.epochs is None else [task.epochs],
                seeds,
                task.max_length,
                task.warmup_share,
            )
            data = read_data(make_task(task.task, task.options), task.train, task.eval)
        read.append((task, numbers, data))
    found = find_models(models)
    initials = [(model, open_initial(model.init_from, "models")) for model in found]
    runs = []
    for task, numbers, data in read:
        rows: dict[tuple[str, int], Any] = {}  # alike for all checkpoints of a run
        of_models = []
        for model, initial in initials:
            with _named(f"task {task.name}, model {model.init_from}"):
                length = row_length(data.task, initial, task.max_length)
                key = initial.tokenizer.hash, length
                if key not in rows:
                    rows[key] = data.rows(initial.tokenizer, length)
                made = make_runs(
                    initial,
                    data,
                    *rows[key],
                    numbers=numbers,
                    max_length=length,
                    warmup_share=task.warmup_share,
                    overrides=overrides,
                )
            of_models.append((model, made))
        # All models with one seed, then with the next: the curves are there early.
        for number, seed in enumerate(numbers.seeds):
            for model, made in of_models:
                step = "" if model.step is None else f"/step_{model.step:08d}"
                folder = f"{task.name}/{model.folder}{step}/seed_{seed}"
                runs.append(SweepRun(folder, task.name, model, made, made.configs[number]))
    return Sweep(found_tasks, found, runs)


def run_sweep(sweep: Sweep, workdir: Path, keep_checkpoints: bool) -> SweepResult:
    """Runs what is not finished, and writes sweep.json after each run; see `fine_tune_sweep`."""
    _LOG.info(
        "%d models x %d tasks, %d runs in %s",
        len(sweep.models),
        len(sweep.tasks),
        len(sweep.runs),
        workdir,
    )
    for model in sweep.models:
        _LOG.info("model %s: %s", model.group, model.init_from)
    scores: dict[str, dict[str, Any]] = {}
    diverged: dict[str, str] = {}
    preempted = False
    with lock_workdir(workdir):
        try:
            with PreemptionGuard():  # between the runs, which have their own
                preempted = not _run_all(sweep, workdir, keep_checkpoints, scores, diverged)
        except Preempted as signal:
            _LOG.warning("%s between two steps: run again to go on", signal)
            preempted = True
        content = _report(sweep, workdir, scores, diverged)
        if content["points"]:
            plot_sweep(workdir, content)
            _LOG.info("%s and %s: %s", SWEEP, PLOT, workdir)
    return SweepResult(workdir, content, table(content), diverged, preempted)


def _run_all(
    sweep: Sweep,
    workdir: Path,
    keep_checkpoints: bool,
    scores: dict[str, dict[str, Any]],
    diverged: dict[str, str],
) -> bool:
    """Runs what is not finished; fills `scores` and `diverged`. False = asked to stop."""
    for run in sweep.runs:  # also refuses folders of other runs, before any work
        with _named(f"{workdir / run.folder}"):
            found = finished_scores(*run.arguments(workdir))
        if found is not None:
            scores[run.folder] = found
            if not keep_checkpoints:
                remove_checkpoints(workdir / run.folder)
    waiting = [run for run in sweep.runs if run.folder not in scores]
    if scores:
        _LOG.info("%d of %d runs are finished already", len(scores), len(sweep.runs))
    started, done = time.monotonic(), 0.0
    work = sum(run.flops() for run in waiting)
    for number, run in enumerate(waiting):
        left = ""
        if done:
            seconds = time.monotonic() - started
            rest = datetime.timedelta(seconds=round(seconds / done * (work - done)))
            left = f"; {3600 * number / seconds:,.1f} runs per hour, {rest} left"
        _LOG.info("run %d of %d: %s%s", number + 1, len(waiting), run.folder, left)
        try:
            result = train_and_score(*run.arguments(workdir))
        except TrainingDivergedError as error:
            _LOG.error("%s", error)  # the others are worth having
            diverged[run.folder] = str(error)  # the error itself would keep the run's state
        else:
            if result.preempted:
                return False
            scores[run.folder] = json.loads((workdir / run.folder / SCORES).read_text("utf-8"))
            if not keep_checkpoints:
                remove_checkpoints(workdir / run.folder)
            del result  # with the state of the run
        done += run.flops()
        _report(sweep, workdir, scores, diverged)
    return True


def _report(
    sweep: Sweep,
    workdir: Path,
    scores: Mapping[str, Mapping[str, Any]],
    diverged: Mapping[str, str],
) -> dict[str, Any]:
    """Writes sweep.json and returns what is in it."""
    records = []
    for run in sweep.runs:
        model, found = run.model, scores.get(run.folder, {})
        metric = run.runs.training.task.main_metric
        status = "finished" if found else "diverged" if run.folder in diverged else "waiting"
        records.append(
            {
                "folder": run.folder,
                "status": status,
                "task": run.task,
                "group": model.group,
                "run": model.run,
                "model": model.init_from,
                "step": model.step,
                "predicted_tokens": model.predicted_tokens,
                "seconds": model.seconds,
                "seed": run.config.seed,
                "main_metric": metric,
                "score": found["scores"][metric] if found else None,
                "scores": found.get("scores"),
                "fine_tuning_steps": found.get("steps"),
                "fine_tuning_seconds": found.get("seconds"),
                "hardware": found.get("hardware"),
                "reason": diverged.get(run.folder, ""),
            }
        )
    content = {
        "bertjax": __version__,
        "finished": not any(record["status"] == "waiting" for record in records),
        "tasks": [dataclasses.asdict(task) for task in sweep.tasks],
        **summarize(records),
        "runs": records,
    }
    write_report(workdir, content)
    return content


@contextlib.contextmanager
def _named(what: str) -> Iterator[None]:
    """Foreseen errors of the block say first what they are about."""
    try:
        yield
    except BertjaxError as error:
        raise ConfigError(f"{what}: {error}") from error
