"""One fine-tuning run from start to scores: train, take the best checkpoint, predict, write."""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from bertjax.checkpoints.checkpoint import Checkpoint, CheckpointError, resolve
from bertjax.checkpoints.checkpoint_directory import CheckpointDirectory
from bertjax.checkpoints.loadable_workdir import SCORES
from bertjax.config import Config, FineTuningConfig
from bertjax.data.tokenizers.tokenizer import Tokenizer
from bertjax.fine_tuning.job import Examples, FineTuning, Scored, Scorer, source_of
from bertjax.models import abstract_params
from bertjax.parallel.sharding import make_mesh
from bertjax.reports.tracker import EVALS, SUMMARY, read_lines
from bertjax.storage.atomic_files import write_file
from bertjax.training import loop
from bertjax.training.result import TrainingResult
from bertjax.training.start import check_same_run, with_shardings
from bertjax.training.workdir import Workdir

PREDICTIONS = "predictions.jsonl"
FINISHED = "finished.json"  # what the last checkpoint said, where those are removed
_LOG = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class FineTuningResult(TrainingResult):
    """The result of a fine-tuning run.

    Attributes:
      scores: of the best checkpoint on the evaluation examples, the task's official metrics and
        the loss; empty where the run was preempted.
      best_step: the step of that checkpoint.
    """

    scores: Mapping[str, float] = dataclasses.field(default_factory=dict)
    best_step: int = 0


def train_and_score(
    config: FineTuningConfig,
    workdir: Path,
    training: Examples,
    evaluation: Examples,
    tokenizer: Tokenizer,
    initial_hash: str = "",
) -> FineTuningResult:
    """Trains or resumes a run, then scores its best checkpoint on the evaluation examples.

    Leaves in `workdir` what every run leaves, and tokenizer/, labels.json, predictions.jsonl (one
    record an example), scores.json and the task's own files.

    Args:
      config: with the task's head, labels and phase.
      workdir: folder of the run.
      training: examples with labels to train on.
      evaluation: examples with labels to score on.
      tokenizer: that made the rows of both.
      initial_hash: see `FineTuning`.

    Raises:
      TaskError: the examples do not fit the task.
      Exception: as `loop.run`.
    """
    folder = workdir / "checkpoints"
    jobs: list[FineTuning] = []

    def open_job(config: Config, workdir: Workdir, mesh: Mesh) -> FineTuning:
        jobs.append(
            FineTuning(training, evaluation, tokenizer, config, workdir, mesh, initial_hash)
        )
        return jobs[-1]

    trained = loop.run(config, workdir, open_job, shares_programs=True)
    fields = {field.name: getattr(trained, field.name) for field in dataclasses.fields(trained)}
    if trained.preempted:
        return FineTuningResult(**fields)
    best = best_evaluation(workdir, f"heldout_{training.task.main_metric}")
    scored = jobs[-1].best
    # A run that was resumed may have been best before.
    if scored is None or any(best[f"heldout_{k}"] != v for k, v in scored.scores.items()):
        scored = _score_step(config, folder, best["step"], evaluation)
    predictions, scores = scored
    summary = json.loads((workdir / SUMMARY).read_text("utf-8"))
    _write_lines(workdir / PREDICTIONS, predictions)
    for name, content in training.task.files(predictions).items():
        _write_json(workdir / name, content)
    result = {
        "task": config.task.name,
        "main_metric": training.task.main_metric,
        "scores": scores,
        "best_step": best["step"],
        "steps": summary["steps"],
        "learning_rate": config.optimizer.learning_rate,
        "batch_size": config.task.batch_size,
        "num_epochs": config.task.num_epochs,
        "seed": config.seed,
        "init_from": config.init_from,
        "train": config.task.train,
        "eval": config.task.eval,
        "seconds": summary["seconds"],
        "hardware": summary["hardware"],
    }
    _write_json(workdir / SCORES, result)
    _LOG.info(
        "best at step %s of %s: %s; %s and %s: %s",
        f"{best['step']:,}",
        f"{summary['steps']:,}",
        ", ".join(f"{name} {value:.4g}" for name, value in scores.items()),
        PREDICTIONS,
        SCORES,
        workdir,
    )
    return FineTuningResult(**fields, scores=scores, best_step=best["step"])


def finished_scores(
    config: FineTuningConfig,
    workdir: Path,
    training: Examples,
    evaluation: Examples,
    tokenizer: Tokenizer,
    initial_hash: str = "",
) -> dict[str, Any] | None:
    """What scores.json says of a run that is finished; None if something is left to do.

    Arguments are those of `train_and_score`.

    Raises:
      ConfigError: the workdir has a run with other settings, examples or initial weights.
    """
    finished = workdir / FINISHED
    try:
        if finished.is_file():
            checkpoint = Checkpoint(finished, **json.loads(finished.read_text("utf-8")))
        else:
            checkpoint = resolve(workdir)
    except CheckpointError:  # none yet, or one that the run itself reports
        return None
    check_same_run(checkpoint, config, source_of(training, evaluation, tokenizer, initial_hash))
    scores = workdir / SCORES
    if checkpoint.step < config.last_step or not scores.is_file():
        return None
    try:
        content: dict[str, Any] = json.loads(scores.read_text("utf-8"))
    except ValueError:
        return None  # written anew
    return content


def remove_checkpoints(workdir: Path) -> None:
    """Removes the checkpoints of a finished run, which stays known as finished."""
    if not (workdir / FINISHED).is_file():
        last = resolve(workdir)
        record = {"step": last.step, "progress": last.progress, "config": last.config}
        _write_json(workdir / FINISHED, record)
    shutil.rmtree(workdir / "checkpoints", ignore_errors=True)


def _score_step(config: FineTuningConfig, folder: Path, step: int, evaluation: Examples) -> Scored:
    """Scores the checkpoint of a step."""
    mesh = make_mesh(config.mesh)
    with jax.set_mesh(mesh):
        model = loop.with_resolved_model(config).model
        checkpoint = resolve(CheckpointDirectory(folder).step_path(step))
        params = checkpoint.restore_params(with_shardings(abstract_params(model), mesh))
        return Scorer(evaluation, model, mesh).run(params)


def best_evaluation(workdir: Path, metric: str) -> dict[str, Any]:
    """The first line of evals.jsonl with the highest value of the metric."""
    return max(read_lines(workdir / EVALS), key=lambda line: line[metric])


def _write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    _write(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def _write_lines(path: Path, records: list[dict[str, Any]]) -> None:
    lines = [json.dumps(record, ensure_ascii=False) + "\n" for record in records]
    _write(path, "".join(lines))


def _write(path: Path, text: str) -> None:
    """Writes JSON; half of a surrogate pair, which UTF-8 does not have, becomes JSON's escape."""
    write_file(path, text.encode("utf-8", "backslashreplace"))
