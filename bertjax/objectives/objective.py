"""The interface of an objective: the loss that a run minimizes, with its arrays and metrics.

Losses are sums, divided by weights of the whole global batch. A mean of microbatch means is not the
mean of the batch, because rows have different numbers of masked tokens. So a microbatch yields
sums, and the denominators come from the global batch before any model runs. Then the gradients of
the microbatches add up to that of the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, cast

import jax
import numpy as np
from jax.sharding import Mesh

from bertjax.config import ConfigError, ModelConfig, Phase
from bertjax.flops import flops_per_row
from bertjax.heads import HEADS, heads_trained_on, resolve
from bertjax.models import Packing
from bertjax.parallel.sharding import row_sharding

Batch = Mapping[str, jax.Array]
Sums = dict[str, jax.Array]
Fields = dict[str, tuple[tuple[int, ...], Any]]  # name of an array -> its shape and dtype


class Metric(NamedTuple):
    """Where and how one number of a run is reported; an empty field = not reported there.

    Attributes:
      name: in metrics.jsonl; with `heldout_` in evals.jsonl.
      progress: its format in the line of a step.
      title: of its panel in curves.png.
      unit: of its panel.
      baseline: the name of its baseline in `Objective.baselines`, a dashed line.
      baseline_label: label of the dashed line.
      summary: format of (held-out value, baseline) in the line at the end of a run.
    """

    name: str
    progress: str = ""
    title: str = ""
    unit: str = ""
    baseline: str = ""
    baseline_label: str = ""
    summary: str = ""


def no_baselines(
    batches: Iterable[Mapping[str, np.ndarray]], unigrams: np.ndarray
) -> dict[str, float]:
    """The `baselines` of an objective without any."""
    return {}


class Objective(NamedTuple):
    """What a run minimizes, with the model that it trains.

    Attributes:
      model: the Flax module.
      fields: phase -> the arrays of one global batch.
      sums: (params, batch or part of one, dropout_keys, sampling_keys) -> float32 scalars that add
        up over the parts of a batch. The keys are typed PRNG keys [b], one per row. Those of
        dropout are None in an evaluation. The others are for random draws of the objective
        itself, and are the same in each evaluation.
      denominators: batch -> float32 scalars of the whole global batch.
      loss: (sums, denominators) -> the loss; linear in the sums.
      metrics: sums of whole batches -> the logged numbers, by the names in `reported`.
      reported: a `Metric` for each, in the order of metrics.jsonl; one that `metrics` leaves out is
        null there.
      row_flops: phase -> floating-point operations to train on one row.
      baselines: (held-out batches on the host, count of each id in the training tokens [v]) ->
        scores of trivial predictors on the same targets, by name.
      loss_unit: of the loss.
      predicted: the sum that counts the tokens whose prediction is learned, by name: masked tokens,
        or next ones; "" = the objective predicts no tokens.
    """

    model: Any
    fields: Callable[[Phase], Fields]
    sums: Callable[[Any, Batch, jax.Array | None, jax.Array | None], Sums]
    denominators: Callable[[Batch], Sums]
    loss: Callable[[Mapping[str, jax.Array], Mapping[str, jax.Array]], jax.Array]
    metrics: Callable[[Mapping[str, jax.Array]], dict[str, jax.Array]]
    reported: tuple[Metric, ...]
    row_flops: Callable[[Phase], float]
    baselines: Callable[[Iterable[Mapping[str, np.ndarray]], np.ndarray], dict[str, float]] = (
        no_baselines
    )
    loss_unit: str = "nats"
    predicted: str = ""


def make_objective(config: ModelConfig) -> Objective:
    """The objective that trains the head of a model; to call it, `config.dtype` must be resolved.

    Raises:
      ConfigError: nothing trains the head.
    """
    head = HEADS[config.head]
    if not head.objective:
        known = ", ".join(heads_trained_on("store") + heads_trained_on("task"))
        raise ConfigError(
            f"config.model.head = {config.head!r}: has no objective; expected one of {known}"
        )
    return cast(Objective, resolve(head.objective)(config))


def abstract_batch(
    objective: Objective, phase: Phase, mesh: Mesh
) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes, dtypes and shardings of one global batch."""
    rows = row_sharding(mesh)
    return {
        name: jax.ShapeDtypeStruct(shape, dtype, sharding=rows)
        for name, (shape, dtype) in objective.fields(phase).items()
    }


def row_flops(model: ModelConfig, phase: Phase) -> float:
    """The `row_flops` of an objective that runs the model once on each row."""
    return flops_per_row(model, phase.max_length, phase.max_predictions, phase.packing_depth)


def is_packed(batch: Mapping[str, Any]) -> bool:
    """Whether rows hold several pairs, by the names of the arrays, when the step is traced."""
    return "segment_ids" in batch


def packing_of(batch: Batch) -> Packing | None:
    """The places of the segments of packed rows; None for rows of one pair each."""
    return Packing(*(batch[name] for name in Packing._fields)) if is_packed(batch) else None
