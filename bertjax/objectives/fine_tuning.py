"""What fine-tuning minimizes, by head; losses are sums, as in `objective`.

| head | loss of a row | reference |
|---|---|---|
| classification | cross-entropy | google-research/bert, run_classifier.py |
| regression | squared error | transformers, BertForSequenceClassification with one label |
| span | mean of the cross-entropies of start and end, over all positions | run_squad.py |
| tagging | sum of the cross-entropies of the tokens with a tag | Devlin et al. 2019, section 5.3 |

The loss of a batch is the mean over rows, or over tags for tagging. Rows that fill up the batch
have `row_weights` 0.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bertjax.config import ModelConfig, Phase
from bertjax.heads import HEADS, INPUTS
from bertjax.models import apply_model, make_model, name_outputs
from bertjax.objectives.cross_entropy import weighted_sums
from bertjax.objectives.objective import (
    Batch,
    Fields,
    Metric,
    Objective,
    Sums,
    row_flops,
)


class Loss(NamedTuple):
    """How the outputs of a head are compared with its answers.

    Attributes:
      sums: (outputs, the answer of each, weights of the answers) -> loss_sum, weight and, where
        `has_accuracy`, correct.
      unit: of the loss.
      has_accuracy: whether an answer is right or wrong.
    """

    sums: Callable[[Sequence[jax.Array], Sequence[jax.Array], jax.Array], Sequence[jax.Array]]
    unit: str
    has_accuracy: bool


def _cross_entropy(
    outputs: Sequence[jax.Array], answers: Sequence[jax.Array], weights: jax.Array
) -> Sequence[jax.Array]:
    """The mean of the cross-entropies of all outputs; correct if all of them are."""
    parts = [weighted_sums(*pair, weights) for pair in zip(outputs, answers, strict=True)]
    if len(parts) == 1:
        return parts[0]
    right = [jnp.argmax(x, axis=-1) == y for x, y in zip(outputs, answers, strict=True)]
    loss_sum = functools.reduce(jnp.add, [part[0] for part in parts]) / len(parts)
    correct = jnp.sum(functools.reduce(jnp.logical_and, right) * weights)
    return loss_sum, parts[0][1], correct


def _squared_error(
    outputs: Sequence[jax.Array], answers: Sequence[jax.Array], weights: jax.Array
) -> Sequence[jax.Array]:
    (values,), (targets,) = outputs, answers
    return jnp.sum(jnp.square(values - targets) * weights), jnp.sum(weights)


LOSSES = {  # by `Head.loss`
    "cross_entropy": Loss(_cross_entropy, "nats", has_accuracy=True),
    "squared_error": Loss(_squared_error, "squared error", has_accuracy=False),
}


def fine_tuning_objective(config: ModelConfig) -> Objective:
    """The objective of `config.head`; its metric is `accuracy`, if its loss has one."""
    model, loss = make_model(config), _loss(config)
    return Objective(
        model=model,
        fields=functools.partial(fine_tuning_fields, config),
        sums=lambda params, batch, dropout_keys, _: fine_tuning_sums(
            config, run_model(model, config, params, batch, dropout_keys), batch
        ),
        denominators=lambda batch: {"weight": jnp.sum(_weights(config, batch))},
        loss=lambda sums, denominators: sums["loss_sum"] / jnp.maximum(denominators["weight"], 1.0),
        metrics=_metrics,
        reported=(Metric("accuracy", progress="accuracy {:.3f}"),) if loss.has_accuracy else (),
        row_flops=functools.partial(row_flops, config),
        loss_unit=loss.unit,
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
      model: the Flax module of the head.
      config: of the model.
      params: of the model.
      batch: input_ids, token_type_ids, attention_mask int32 [b, t].
      row_keys: typed PRNG keys [b] for dropout, or None = deterministic.
    """
    outputs = apply_model(model, params, *(batch[name] for name in INPUTS), row_keys)
    return name_outputs(config.head, outputs)


def fine_tuning_sums(config: ModelConfig, outputs: Mapping[str, jax.Array], batch: Batch) -> Sums:
    """Computes the sums for the loss and the metrics.

    Args:
      config: of the model; its head says which loss.
      outputs: of `run_model`.
      batch: the answers of the head, and row_weights float32 [b].

    Returns:
      Float32 scalars loss_sum, weight (rows, or tags) and, if the loss has it, correct.
    """
    head = HEADS[config.head]
    sums = _loss(config).sums(
        [outputs[name] for name in head.outputs],
        [batch[name] for name in head.outputs.values()],
        _weights(config, batch),
    )
    return dict(zip(("loss_sum", "weight", "correct"), sums, strict=False))


def fine_tuning_fields(config: ModelConfig, phase: Phase) -> Fields:
    """One global batch: b rows of t tokens."""
    b, t = phase.global_batch_size, phase.max_length
    return {
        **{name: ((b, t), np.int32) for name in INPUTS},
        "row_weights": ((b,), np.float32),
        **{
            name: ((b, t) if answer.per_token else (b,), np.dtype(answer.dtype))
            for name, answer in HEADS[config.head].answers.items()
        },
    }


def _loss(config: ModelConfig) -> Loss:
    """The loss of the model's head."""
    loss = HEADS[config.head].loss
    return loss if isinstance(loss, Loss) else LOSSES[loss]


def _weights(config: ModelConfig, batch: Batch) -> jax.Array:
    """The weight of each answer: [b], or [b, t] if the head weighs its answers."""
    name = HEADS[config.head].answer_weights
    rows = batch["row_weights"]
    return batch[name] * rows[:, None] if name else rows


def _metrics(sums: Mapping[str, jax.Array]) -> Sums:
    if "correct" not in sums:
        return {}
    return {"accuracy": sums["correct"] / jnp.maximum(sums["weight"], 1.0)}
