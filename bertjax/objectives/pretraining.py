"""What pre-training minimises: losses as sums, divided by weights of the whole global batch.

A mean of microbatch means is not the mean of the batch, because rows have different numbers of
masked tokens. So a microbatch yields sums, the denominators come from the global batch before any
model runs, and the gradient of `pretraining_loss` adds up over microbatches to that of the batch.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from bertjax.config import Phase
from bertjax.models import BertForPreTraining, Packing, apply_model
from bertjax.parallel.sharding import row_sharding

Batch = Mapping[str, jax.Array]
Sums = dict[str, jax.Array]


class Objective(NamedTuple):
    """What a run minimises: the only difference between pre-training and fine-tuning.

    Attributes:
      sums: (params, batch, row_keys) -> float32 scalars that add up over the parts of a batch.
      denominators: batch -> float32 scalars of the whole global batch.
      loss: (sums, denominators) -> the loss; linear in the sums.
      metrics: sums of whole batches -> what is logged.
    """

    sums: Callable[[Any, Batch, jax.Array | None], Sums]
    denominators: Callable[[Batch], Sums]
    loss: Callable[[Mapping[str, jax.Array], Mapping[str, jax.Array]], jax.Array]
    metrics: Callable[[Mapping[str, jax.Array]], dict[str, jax.Array]]


def pretraining_objective(model: BertForPreTraining) -> Objective:
    """Masked tokens and, unless the model goes without, next sentence (section 3.1)."""
    return Objective(
        sums=functools.partial(pretraining_sums, model),
        denominators=pretraining_denominators,
        loss=pretraining_loss,
        metrics=functools.partial(pretraining_metrics, next_sentence=model.config.next_sentence),
    )


def weighted_sums(logits: jax.Array, labels: jax.Array, weights: jax.Array) -> list[jax.Array]:
    """The sums over all labels of weight * cross-entropy, of weight, and of weight * correct.

    Cross-entropy is -log softmax(logits)[label], in nats, formed without a copy of the logits; a
    label is correct if no logit is larger than its own.

    Args:
      logits: float32 [..., classes].
      labels: int32 [...].
      weights: float32 [...].

    Returns:
      Three float32 scalars.
    """
    # Sums and maxima fuse. An index would be a gather, whose gradient scatters into a second array
    # of the logits' size, and an argmax a slow reduction of pairs.
    chosen = jnp.arange(logits.shape[-1]) == labels[..., None]
    label_logits = jnp.sum(jnp.where(chosen, logits, 0), axis=-1)
    loss = jax.nn.logsumexp(logits, axis=-1) - label_logits
    correct = (label_logits >= jnp.max(logits, axis=-1)).astype(weights.dtype)
    return [jnp.sum(loss * weights), jnp.sum(weights), jnp.sum(correct * weights)]


def pretraining_sums(
    model: BertForPreTraining, params: Any, batch: Batch, row_keys: jax.Array | None
) -> dict[str, jax.Array]:
    """Runs the model on a batch or a microbatch and sums what the loss and the metrics are made of.

    Args:
      model: with `config.dtype` resolved.
      params: the tree of `init_params`.
      batch: input_ids, token_type_ids, attention_mask [b, t]; masked_positions, masked_ids,
        masked_weights [b, m]; next_sentence_labels, row_weights [b]. Rows that only pad the batch
        have zeros for weights. Packed rows have segment_ids and position_ids [b, t] in place of
        attention_mask, and cls_positions, next_sentence_labels and pair_weights [b, p].
      row_keys: typed PRNG keys [b] for dropout, or None = deterministic.

    Returns:
      Float32 scalars mlm_loss_sum, mlm_weight, mlm_correct, nsp_loss_sum, nsp_weight,
      nsp_correct: losses in nats, weights and correct in labels. The NSP ones are 0 where the
      model has no NSP head.
    """
    packing = None
    if is_packed(batch):
        packing = Packing(*(batch[name] for name in Packing._fields))
    mlm_logits, nsp_logits = apply_model(
        model,
        params,
        batch["input_ids"],
        batch["token_type_ids"],
        batch.get("attention_mask"),
        batch["masked_positions"],
        row_keys,
        packing,
    )
    mlm = weighted_sums(mlm_logits, batch["masked_ids"], batch["masked_weights"])
    if nsp_logits is None:
        nsp = [jnp.zeros_like(total) for total in mlm]
    else:
        nsp = weighted_sums(nsp_logits, batch["next_sentence_labels"], _pair_weights(batch))
    names = ("loss_sum", "weight", "correct")
    return {
        **{f"mlm_{name}": total for name, total in zip(names, mlm, strict=True)},
        **{f"nsp_{name}": total for name, total in zip(names, nsp, strict=True)},
    }


def pretraining_denominators(batch: Batch) -> dict[str, jax.Array]:
    """The weights that the loss of the global batch is divided by: mlm_weight and nsp_weight."""
    return {
        "mlm_weight": jnp.sum(batch["masked_weights"]),
        "nsp_weight": jnp.sum(_pair_weights(batch)),
    }


def is_packed(batch: Mapping[str, Any]) -> bool:
    """Whether rows hold several pairs: known by the names of the arrays, as the step is traced."""
    return "segment_ids" in batch


def _pair_weights(batch: Batch) -> jax.Array:
    return batch["pair_weights" if is_packed(batch) else "row_weights"]


def pretraining_loss(
    sums: Mapping[str, jax.Array], denominators: Mapping[str, jax.Array]
) -> jax.Array:
    """MLM loss + NSP loss (google-research/bert, run_pretraining.py), in nats.

    mlm_loss_sum / (mlm_weight + 1e-5) + nsp_loss_sum / nsp_weight. Linear in the sums: with the
    denominators of the global batch, the losses and gradients of its microbatches add up to those
    of the batch.

    Args:
      sums: of a microbatch or of the batch, from `pretraining_sums`.
      denominators: of the global batch, from `pretraining_denominators`, or the summed `sums`
        themselves in an evaluation.
    """
    mlm_loss = sums["mlm_loss_sum"] / (denominators["mlm_weight"] + 1e-5)
    # No row at all, or no NSP head: 0 / 1. Otherwise there is at least one row of weight 1.
    nsp_loss = sums["nsp_loss_sum"] / jnp.maximum(denominators["nsp_weight"], 1.0)
    return mlm_loss + nsp_loss


def pretraining_metrics(
    sums: Mapping[str, jax.Array], *, next_sentence: bool
) -> dict[str, jax.Array]:
    """Means over the masked tokens and over the pairs.

    Returns:
      mlm_loss (nats), mlm_accuracy and, with `next_sentence`, nsp_loss (nats), nsp_accuracy.
    """
    mlm_weight = jnp.maximum(sums["mlm_weight"], 1.0)
    metrics = {
        "mlm_loss": sums["mlm_loss_sum"] / mlm_weight,
        "mlm_accuracy": sums["mlm_correct"] / mlm_weight,
    }
    if next_sentence:
        nsp_weight = jnp.maximum(sums["nsp_weight"], 1.0)
        metrics["nsp_loss"] = sums["nsp_loss_sum"] / nsp_weight
        metrics["nsp_accuracy"] = sums["nsp_correct"] / nsp_weight
    return metrics


def pretraining_batch(phase: Phase, mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of one global batch: b rows of t tokens, m of them masked, in p pairs at most."""
    b, t, m = phase.global_batch_size, phase.max_length, phase.max_predictions
    shapes: dict[str, tuple[tuple[int, ...], Any]] = {
        "input_ids": ((b, t), jnp.int32),
        "token_type_ids": ((b, t), jnp.int32),
        "masked_positions": ((b, m), jnp.int32),
        "masked_ids": ((b, m), jnp.int32),
        "masked_weights": ((b, m), jnp.float32),
    }
    if (p := phase.packing_depth) > 1:
        shapes |= {
            "segment_ids": ((b, t), jnp.int32),
            "position_ids": ((b, t), jnp.int32),
            "cls_positions": ((b, p), jnp.int32),
            "next_sentence_labels": ((b, p), jnp.int32),
            "pair_weights": ((b, p), jnp.float32),
        }
    else:
        shapes |= {
            "attention_mask": ((b, t), jnp.int32),
            "next_sentence_labels": ((b,), jnp.int32),
            "row_weights": ((b,), jnp.float32),
        }
    rows = row_sharding(mesh)
    return {k: jax.ShapeDtypeStruct(s, d, sharding=rows) for k, (s, d) in shapes.items()}
