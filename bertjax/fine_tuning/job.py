"""Fine-tuning as a job of the loop: the rows of a task, scored with the task's own metrics."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from bertjax.config import Config, ConfigError, FineTuningConfig, ModelConfig
from bertjax.data.stream.example_rows import (
    ExampleRows,
    batches_by_length,
    cut_tokens,
    rounded_length,
    take_rows,
)
from bertjax.data.tokenizers.tokenizer import Tokenizer
from bertjax.heads import HEADS, INPUTS
from bertjax.models import without_gradients
from bertjax.objectives.fine_tuning import fine_tuning_sums, run_model
from bertjax.objectives.objective import Metric, make_objective
from bertjax.parallel.compile_once import compile_once
from bertjax.parallel.sharding import local_rows, replicated
from bertjax.reports.curves import plot_curves
from bertjax.tasks.task import Task, join_outputs
from bertjax.training.input import device_batch
from bertjax.training.job import Source
from bertjax.training.step import Tree
from bertjax.training.workdir import Workdir

# Of the batches of an evaluation: tokens a device, and how many lengths rows may have. A CPU has
# caches to stay in, and compiles another shape in the time of a few batches.
_TOKENS, _LENGTHS = 8_192, 4
_TOKENS_CPU, _LENGTHS_CPU = 2_048, 8


class Examples:
    """Examples of a task and their rows.

    Attributes:
      arrays: of `Task.features`, [n, ...] each.
      max_length: tokens of a row: of the longest example, rounded up, not more than was asked for.
      has_answers: whether the examples have labels.
    """

    def __init__(
        self, task: Task[Any], examples: Sequence[Any], tokenizer: Tokenizer, max_length: int
    ):
        """Makes the rows.

        Args:
          task: that the examples belong to; knows its labels.
          examples: of `Task.read`.
          tokenizer: of the model.
          max_length: longer examples are cut, or make several rows, as the task has it.

        Raises:
          TaskError: an example does not fit the task, the labels or the rows.
        """
        self.task, self.examples = task, examples
        arrays = task.features(examples, tokenizer, max_length)
        longest = int(arrays["attention_mask"].sum(axis=1).max())
        self.max_length = rounded_length(longest, max_length)
        # Columns that are padding in every row cost time and do nothing.
        self.arrays = cut_tokens(arrays, self.max_length)
        self._answers = HEADS[task.head].answers
        self.has_answers = all(name in self.arrays for name in self._answers)

    def model_arrays(self) -> dict[str, np.ndarray]:
        """The arrays that the model and its objective read."""
        names = [*INPUTS, "row_weights", *(self._answers if self.has_answers else ())]
        return {name: self.arrays[name] for name in names}

    def sha256(self) -> str:
        """Of the arrays that the model reads, and of the names of the labels."""
        digest = hashlib.sha256(json.dumps(self.task.label_names).encode())
        for name, array in sorted(self.model_arrays().items()):
            digest.update(f"\n{name} {array.dtype.str} {array.shape}\n".encode())
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()


class Scored(NamedTuple):
    """What a model makes of examples.

    Attributes:
      predictions: `Task.predictions`.
      scores: `Task.scores` with the `loss` beside them; none where the examples have no labels.
    """

    predictions: list[dict[str, Any]]
    scores: dict[str, float]


class Scorer:
    """Runs the model over examples and scores it."""

    def __init__(self, examples: Examples, model: ModelConfig, mesh: Mesh):
        """Prepares; compiles at the first call.

        Args:
          examples: to score.
          model: resolved.
          mesh: of the devices that compute.
        """
        self._examples, self._mesh = examples, mesh
        platform = mesh.devices.flat[0].platform
        on_cpu = platform == "cpu"
        self._batches = batches_by_length(
            examples.arrays["attention_mask"].sum(axis=1),
            examples.max_length,
            num_lengths=_LENGTHS_CPU if on_cpu else _LENGTHS,
            shards=mesh.shape["data"] * mesh.shape["fsdp"],
            tokens_per_shard=_TOKENS_CPU if on_cpu else _TOKENS,
        )
        model = without_gradients(model, platform, mesh.size)
        self._objective = make_objective(model)
        module = self._objective.model
        has_answers = examples.has_answers

        def step(params: Tree, batch: dict[str, jax.Array]) -> Any:
            outputs = run_model(module, model, params, batch)
            sums = fine_tuning_sums(model, outputs, batch) if has_answers else {}
            return outputs, sums

        self._step = jax.jit(step, out_shardings=replicated(mesh))
        self._programs: dict[tuple[int, ...], jax.stages.Compiled] = {}

    def run(self, params: Tree) -> Scored:
        """Predicts and scores, rows of like lengths together.

        Raises:
          TaskError: an output is not finite.
        """
        arrays, results = self._examples.model_arrays(), []
        for positions, length in self._batches:
            mine = positions[local_rows(self._mesh, len(positions))]
            batch = device_batch(take_rows(arrays, mine, length), self._mesh, len(positions))
            results.append(self._program(params, batch)(params, batch))
        # Kept on the devices while the next batches are made, fetched once.
        parts, sums = zip(*jax.device_get(results), strict=True)
        task, examples = self._examples.task, self._examples.examples
        outputs = jax.tree.map(lambda *x: self._in_order(x), *parts)
        predictions = task.predictions(examples, self._examples.arrays, outputs)
        if not self._examples.has_answers:
            return Scored(predictions, {})
        totals = jax.tree.map(lambda *x: np.float32(np.sum(x, dtype=np.float64)), *sums)
        loss = float(self._objective.loss(totals, totals))
        return Scored(predictions, {"loss": loss, **task.scores(examples, predictions)})

    def _program(self, params: Tree, batch: dict[str, jax.Array]) -> jax.stages.Compiled:
        """The program for batches of this shape."""
        shape = batch["input_ids"].shape
        if shape not in self._programs:
            lowered = self._step.lower(params, batch)
            self._programs[shape] = compile_once(lowered, self._mesh)
        return self._programs[shape]

    def _in_order(self, parts: Sequence[np.ndarray]) -> np.ndarray:
        """One output of the batches, in the order of the rows."""
        mask = self._examples.arrays["attention_mask"]
        real = [batch.positions >= 0 for batch in self._batches]
        rows = [batch.positions[keep] for batch, keep in zip(self._batches, real, strict=True)]
        outputs = [part[keep] for part, keep in zip(parts, real, strict=True)]
        return join_outputs(self._examples.task.head, zip(rows, outputs, strict=True), mask)


def source_of(
    training: Examples, evaluation: Examples, tokenizer: Tokenizer, initial_hash: str
) -> Source:
    """What must be the same when a run is resumed; for the arguments see `FineTuning`."""
    return Source(
        tokenizer,
        training.sha256(),
        evaluation.sha256(),
        initial_hash,
        tuple(training.task.label_names),
    )


class FineTuning:
    """See `bertjax.training.job.Job`."""

    def __init__(
        self,
        training: Examples,
        evaluation: Examples,
        tokenizer: Tokenizer,
        config: Config,
        workdir: Workdir,
        mesh: Mesh,
        initial_hash: str = "",
    ):
        """Opens the job.

        Args:
          training: with labels.
          evaluation: with labels.
          tokenizer: that made both.
          config: a `FineTuningConfig` with `model` resolved.
          workdir: of the run.
          mesh: of the devices that compute.
          initial_hash: `params_sha256` of the model that `config.init_from` names; "" = a run is
            resumed whatever it names.

        Raises:
          ConfigError: the model's head is not the task's.
        """
        del workdir  # nothing is kept there but what the loop keeps
        assert isinstance(config, FineTuningConfig)
        self._task = training.task
        if config.model.head != self._task.head:
            raise ConfigError(
                f"config.model.head = {config.model.head!r}: the task {self._task.name} needs "
                f"{self._task.head!r}; set it, or take a task of that head"
            )
        self._rows = ExampleRows(training.model_arrays(), seed=config.seed)
        self._scorer = Scorer(evaluation, config.model, mesh)
        self.objective = make_objective(config.model)
        self.source = source_of(training, evaluation, tokenizer, initial_hash)
        self.fingerprints: Mapping[str, str] = {
            "training examples (config.task.train)": self.source.data_hash,
            "evaluation examples (config.task.eval)": self.source.evaluation_hash,
            "initial weights (config.init_from)": self.source.initial_hash,
        }
        self.main_metric: str | None = f"heldout_{self._task.main_metric}"
        self.best: Scored | None = None  # the first of the best evaluations of this process

    def training_rows(self, phase_index: int) -> ExampleRows:
        """The rows of the training examples, shuffled anew each epoch."""
        del phase_index  # fine-tuning has one phase
        return self._rows

    def evaluate(self, phase_index: int, params: Tree) -> dict[str, float]:
        """The task's official metrics on the evaluation examples, and the loss."""
        del phase_index
        scored, metric = self._scorer.run(params), self._task.main_metric
        if self.best is None or scored.scores[metric] > self.best.scores[metric]:
            self.best = scored
        return {f"heldout_{name}": value for name, value in scored.scores.items()}

    def describe(self, scores: Mapping[str, Any]) -> str:
        """The scores in one line."""
        return ", ".join(
            f"{name.removeprefix('heldout_').replace('_', ' ')} {value:.4g}"
            for name, value in scores.items()
        )

    def plot(self, workdir: Path) -> Path:
        """Draws curves.png: the losses and the main metric."""
        metric = self._task.main_metric
        title = metric.replace("_", " ").capitalize()
        drawn = (
            Metric("loss", title="Loss", unit=self.objective.loss_unit),
            Metric(metric, title=title, unit="score"),
        )
        return plot_curves(workdir, drawn)
