"""What fine-tuning minimises, by head; losses as sums, as in `objectives`.

| head | loss of a row | reference |
|---|---|---|
| classification | cross-entropy | google-research/bert, run_classifier.py |
| regression | squared error | transformers, BertForSequenceClassification with one label |
| span | mean of the cross-entropies of start and end, over all positions | run_squad.py |
| tagging | sum of the cross-entropies of the tokens with a tag | Devlin et al. 2019, section 5.3 |

The loss of a batch is the mean over rows, for tagging over tags. Rows that only fill up the batch
have `row_weights` 0.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from bertjax.config import ModelConfig, Phase
from bertjax.models import apply_model, name_outputs
from bertjax.objectives.pretraining import Batch, Objective, Sums, weighted_sums
from bertjax.parallel.sharding import row_sharding

_INPUTS = ("input_ids", "token_type_ids", "attention_mask")
# Beside the inputs and row_weights: name -> (dtype, True = one a token, False = one a row).
ANSWERS: dict[str, dict[str, tuple[Any, bool]]] = {
    "classification": {"labels": (np.int32, False)},
    "regression": {"targets": (np.float32, False)},
    "span": {"start_positions": (np.int32, False), "end_positions": (np.int32, False)},
    "tagging": {"tag_ids": (np.int32, True), "tag_weights": (np.float32, True)},
}


def fine_tuning_objective(model: Any, config: ModelConfig) -> Objective:
    """The objective of `config.head`; its metrics are `accuracy`, but none for a regression."""
    return Objective(
        sums=lambda params, batch, row_keys: fine_tuning_sums(
            config, run_model(model, config, params, batch, row_keys), batch
        ),
        denominators=functools.partial(_denominators, config),
        loss=lambda sums, denominators: sums["loss_sum"] / jnp.maximum(denominators["weight"], 1.0),
        metrics=_metrics,
    )


def run_model(
    model: Any,
    config: ModelConfig,
    params: Any,
    batch: Batch,
    row_keys: jax.Array | None = None,
) -> dict[str, jax.Array]:
    """Runs the model; returns its `name_outputs`.

    Args:
      batch: input_ids, token_type_ids, attention_mask int32 [b, t].
      row_keys: typed PRNG keys [b] for dropout, or None = deterministic.
    """
    outputs = apply_model(model, params, *(batch[name] for name in _INPUTS), row_keys)
    return name_outputs(config.head, outputs)


def fine_tuning_sums(config: ModelConfig, outputs: Mapping[str, jax.Array], batch: Batch) -> Sums:
    """Sums what the loss and the metrics are made of.

    Args:
      outputs: of `run_model`.
      batch: the arrays of ANSWERS[config.head], and row_weights float32 [b].

    Returns:
      Float32 scalars loss_sum, weight (rows, or tags) and, but for a regression, correct.
    """
    weights = batch["row_weights"]
    match config.head:
        case "classification":
            sums = weighted_sums(outputs["logits"], batch["labels"], weights)
        case "regression":
            squares = jnp.square(outputs["values"] - batch["targets"])
            return {"loss_sum": jnp.sum(squares * weights), "weight": jnp.sum(weights)}
        case "span":
            starts, ends = outputs["start_logits"], outputs["end_logits"]
            start = weighted_sums(starts, batch["start_positions"], weights)
            end = weighted_sums(ends, batch["end_positions"], weights)
            both = (jnp.argmax(starts, axis=-1) == batch["start_positions"]) & (
                jnp.argmax(ends, axis=-1) == batch["end_positions"]
            )
            sums = [(start[0] + end[0]) / 2, start[1], jnp.sum(both * weights)]
        case "tagging":
            tag_weights = batch["tag_weights"] * weights[:, None]
            sums = weighted_sums(outputs["logits"], batch["tag_ids"], tag_weights)
    return dict(zip(("loss_sum", "weight", "correct"), sums, strict=True))


def fine_tuning_batch(
    config: ModelConfig, phase: Phase, mesh: Mesh
) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of one global batch: b rows of t tokens."""
    b, t = phase.global_batch_size, phase.max_length
    rows = row_sharding(mesh)
    shapes: dict[str, tuple[tuple[int, ...], Any]] = {
        **{name: ((b, t), np.int32) for name in _INPUTS},
        "row_weights": ((b,), np.float32),
    }
    for name, (dtype, each_token) in ANSWERS[config.head].items():
        shapes[name] = (b, t) if each_token else (b,), dtype
    return {k: jax.ShapeDtypeStruct(s, d, sharding=rows) for k, (s, d) in shapes.items()}


def _denominators(config: ModelConfig, batch: Batch) -> Sums:
    weights = batch["row_weights"]
    if config.head == "tagging":
        return {"weight": jnp.sum(batch["tag_weights"] * weights[:, None])}
    return {"weight": jnp.sum(weights)}


def _metrics(sums: Mapping[str, jax.Array]) -> Sums:
    if "correct" not in sums:
        return {}
    return {"accuracy": sums["correct"] / jnp.maximum(sums["weight"], 1.0)}
