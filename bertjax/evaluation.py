"""`bertjax.evaluate`: a model scored on examples of its task, or on held-out text of a store."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax

from bertjax.config import Config, DataConfig, OptimizerConfig
from bertjax.config.checks import validate
from bertjax.config.overrides import with_overrides
from bertjax.encoder import Encoder, HeadError, load
from bertjax.heads import HEADS
from bertjax.objectives.objective import make_objective
from bertjax.parallel.sharding import make_mesh, parameter_shardings
from bertjax.pretraining.evaluation import Evaluation as HeldoutEvaluation
from bertjax.pretraining.stores import open_data
from bertjax.training.workdir import open_workdir


class Evaluation(NamedTuple):
    """Scores of a model, and its predictions.

    Attributes:
      scores: by name; of a task its official metrics, of a store `heldout_...` as in evals.jsonl.
      predictions: of a task, one record for each example; of a store none.
    """

    scores: dict[str, float]
    predictions: list[dict[str, Any]]


def evaluate(
    model: Encoder | str | Path,
    source: str | Path,
    *,
    max_length: int | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> Evaluation:
    """Scores a model.

    Args:
      model: loaded, or what `bertjax.load` takes.
      source: for a fine-tuned model examples with labels of its task: files, separated by commas,
        or tfds:NAME:SPLIT. For a pre-trained one the folder of a store, whose held-out documents
        are read with the same masks every time.
      max_length: tokens per row; None = as in the fine-tuning, 128 for a store.
      overrides: for a store, fields of `Config` by dotted name, {"eval.max_rows": 0} for all rows.

    Raises:
      HeadError: the weights have no head that can be scored, or do not say what their task is.
      TaskError: the examples do not fit the task.
      ConfigError: the store has another vocabulary, or a field cannot work.
      StoreError: the store is missing or damaged.
    """
    encoder = model if isinstance(model, Encoder) else load(model)
    head = HEADS[encoder.config.head]
    if head.trained_on == "store":
        chosen = {} if max_length is None else {"eval.max_length": max_length}
        return Evaluation(_on_store(encoder, str(source), {**chosen, **(overrides or {})}), [])
    if not encoder.task:
        raise HeadError(
            f"these weights (head {encoder.config.head!r}) do not say what their task's files look "
            "like, as a workdir of bertjax.finetune does"
        )
    task, length = encoder.open_task(max_length=max_length)
    examples = task.read(str(source), needs_labels=True)
    arrays = task.features(examples, encoder.tokenizer, length)
    predictions = task.predictions(examples, arrays, encoder.outputs(arrays))
    return Evaluation(task.scores(examples, predictions), predictions)


def _on_store(encoder: Encoder, store: str, overrides: Mapping[str, Any]) -> dict[str, float]:
    optimizer = OptimizerConfig(warmup_steps=0)  # nothing is trained
    base = Config(
        num_steps=1, model=encoder.config, data=DataConfig(store=store), optimizer=optimizer
    )
    config = with_overrides(base, overrides)
    length = config.eval.max_length or min(config.data.max_length, config.model.max_positions)
    config.data.max_length = length
    validate(config)
    mesh = make_mesh(config.mesh)
    with tempfile.TemporaryDirectory(prefix="bertjax-evaluation-") as folder, jax.set_mesh(mesh):
        data = open_data(config, open_workdir(folder))
        evaluation = HeldoutEvaluation(
            make_objective(config.model),
            data.evaluation_rows(config, length),
            data.unigrams(),
            config.eval.max_rows,
            mesh,
        )
        params = jax.device_put(encoder.params, parameter_shardings(encoder.params, mesh))
        return evaluation.run(params)
