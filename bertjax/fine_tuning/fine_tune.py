"""Fine-tuning from Python: one run, or one for each combination of several numbers."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bertjax.fine_tuning.run import FineTuningResult, train_and_score
from bertjax.fine_tuning.runs import Runs, check_workdir, folder_name, open_runs
from bertjax.fine_tuning.table import summarize
from bertjax.training.loop import TrainingDivergedError

_LOG = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class GridResult:
    """The result of a grid of runs.

    Attributes:
      workdir: of the runs, each in a folder of its own, and of table.json.
      runs: folder name -> result, for runs that were started and have not diverged. Their `state`
        is None, because the states of a whole grid would fill the memory.
      diverged: folder name -> reason, for runs that diverged.
      table: the means and deviations over the seeds, best first, as text; "" if preempted.
      preempted: whether the grid was asked to stop; the same call resumes it.
    """

    workdir: Path
    runs: Mapping[str, FineTuningResult]
    diverged: Mapping[str, str]
    table: str
    preempted: bool


def fine_tune(
    task: str,
    init_from: str | Path,
    workdir: str | Path,
    train: str | Path,
    eval: str | Path,
    *,
    options: Mapping[str, Any] | None = None,
    learning_rate: float = 3e-5,
    batch_size: int = 32,
    epochs: float | None = None,
    seed: int = 0,
    max_length: int | None = None,
    warmup_share: float = 0.1,
    overrides: Mapping[str, Any] | None = None,
) -> FineTuningResult:
    """Fine-tunes a model on a task and scores it, or resumes the run in `workdir`.

    Args:
      task: "sst2", "mrpc", ..., "classification", "regression", "squad" or "ner".
      init_from: a workdir or a checkpoint of bertjax, or hf:FOLDER of a Hugging Face model.
      workdir: folder of the run.
      train: training examples: files, separated by commas, or tfds:NAME:SPLIT.
      eval: examples to score on, likewise.
      options: of the task, as {"text_column": "review"}; see `bertjax.tasks.registry.make_task`.
      learning_rate: peak learning rate.
      batch_size: rows per step, over all devices.
      epochs: times each example is seen; None = 3, 2 for squad.
      seed: of the new layer, the order and dropout.
      max_length: tokens per row; None = 128, 384 for squad.
      warmup_share: share of the steps in which the learning rate rises to its peak.
      overrides: other fields of `FineTuningConfig` by dotted name, {"optimizer.name": "lion"}.

    Returns:
      The scores of the best checkpoint, and what else a run returns.

    Raises:
      ConfigError: an argument or the model does not fit, or contradicts the run in `workdir`.
      TaskError: the task, its options or its files are not as expected.
      BertjaxError: others of `bertjax.training.loop.run`.
    """
    folder = check_workdir(workdir)
    runs = open_runs(
        task,
        init_from,
        train,
        eval,
        options=options,
        learning_rate=[learning_rate],
        batch_size=[batch_size],
        epochs=[] if epochs is None else [epochs],
        seed=[seed],
        max_length=max_length,
        warmup_share=warmup_share,
        overrides=overrides,
    )
    return run_one(runs, folder)


def fine_tune_grid(
    task: str,
    init_from: str | Path,
    workdir: str | Path,
    train: str | Path,
    eval: str | Path,
    *,
    options: Mapping[str, Any] | None = None,
    learning_rate: Sequence[float] = (3e-5,),
    batch_size: Sequence[int] = (32,),
    epochs: Sequence[float] = (),
    seed: Sequence[int] = (0,),
    max_length: int | None = None,
    warmup_share: float = 0.1,
    overrides: Mapping[str, Any] | None = None,
) -> GridResult:
    """Fine-tunes once for each combination of the numbers, each in a folder of `workdir`.

    A run that diverges does not stop the others. Arguments and errors are those of `fine_tune`,
    with lists of numbers in place of numbers.
    """
    folder = check_workdir(workdir)
    runs = open_runs(
        task,
        init_from,
        train,
        eval,
        options=options,
        learning_rate=learning_rate,
        batch_size=batch_size,
        epochs=epochs,
        seed=seed,
        max_length=max_length,
        warmup_share=warmup_share,
        overrides=overrides,
    )
    return run_grid(runs, folder)


def run_one(runs: Runs, workdir: Path) -> FineTuningResult:
    """Trains and scores the first of the runs; see `fine_tune`."""
    _announce(runs)
    return _run(runs, 0, workdir)


def run_grid(runs: Runs, workdir: Path) -> GridResult:
    """Trains and scores each run and makes the table; see `fine_tune_grid`."""
    _announce(runs)
    results: dict[str, FineTuningResult] = {}
    diverged: dict[str, str] = {}
    names = list(map(folder_name, runs.configs))
    for number, name in enumerate(names):
        _LOG.info("run %d of %d: %s", number + 1, len(names), workdir / name)
        try:
            results[name] = dataclasses.replace(_run(runs, number, workdir / name), state=None)
        except TrainingDivergedError as error:
            _LOG.error("%s", error)  # the others of the list are worth having
            diverged[name] = str(error)  # the error itself would keep the run's state
        else:
            if results[name].preempted:
                return GridResult(workdir, results, diverged, "", preempted=True)
    return GridResult(workdir, results, diverged, summarize(workdir, names, diverged), False)


def _announce(runs: Runs) -> None:
    """Logs the task and the number of examples."""
    training = runs.training
    _LOG.info(
        "task %s: %s training examples in %s rows of %d tokens, %s to evaluate on",
        training.task.name,
        f"{len(training.examples):,}",
        f"{len(training.arrays['row_weights']):,}",
        training.max_length,
        f"{len(runs.evaluation.examples):,}",
    )


def _run(runs: Runs, number: int, folder: Path) -> FineTuningResult:
    return train_and_score(
        runs.configs[number],
        folder,
        runs.training,
        runs.evaluation,
        runs.tokenizer,
        runs.initial_hash,
    )
