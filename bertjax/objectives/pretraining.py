"""BERT's objective: masked tokens and next sentence (Devlin et al. 2019, section 3.1)."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bertjax.config import ModelConfig, Phase
from bertjax.models import BertForPreTraining, apply_model
from bertjax.models.layers import is_narrow
from bertjax.objectives.cross_entropy import weighted_sums
from bertjax.objectives.objective import (
    Batch,
    Fields,
    Metric,
    Objective,
    is_packed,
    packing_of,
    row_flops,
)

_MLM_LOSS = Metric(
    "mlm_loss",
    progress="mlm {:.3f}",
    title="MLM loss",
    unit="nats per masked token",
    baseline="unigram_entropy",
    baseline_label="unigrams",
    summary="MLM loss {:.3f} nats (training unigrams: {:.3f})",
)
_MLM_ACCURACY = Metric("mlm_accuracy", title="MLM accuracy", unit="share of masked tokens")
_NSP_ACCURACY = Metric(
    "nsp_accuracy",
    title="Next-sentence accuracy",
    unit="share of pairs",
    baseline="nsp_majority",
    baseline_label="majority",
    summary="NSP accuracy {:.3f} (majority: {:.3f})",
)


def pretraining_objective(config: ModelConfig) -> Objective:
    """The objective of masked tokens and, with `config.next_sentence`, next sentence."""
    model, next_sentence = BertForPreTraining(config), config.next_sentence
    return Objective(
        model=model,
        fields=pretraining_fields,
        sums=lambda params, batch, dropout_keys, _: pretraining_sums(
            model, params, batch, dropout_keys
        ),
        denominators=pretraining_denominators,
        loss=pretraining_loss,
        metrics=functools.partial(pretraining_metrics, next_sentence=next_sentence),
        reported=(
            _MLM_LOSS,
            Metric("nsp_loss", progress="nsp {:.3f}"),
            _MLM_ACCURACY,
            _NSP_ACCURACY if next_sentence else Metric(_NSP_ACCURACY.name),
        ),
        row_flops=functools.partial(row_flops, config),
        baselines=functools.partial(frequency_baselines, next_sentence=next_sentence),
        predicted="mlm_weight",
    )


def pretraining_sums(
    model: BertForPreTraining, params: Any, batch: Batch, row_keys: jax.Array | None
) -> dict[str, jax.Array]:
    """Runs the model on a batch or microbatch and computes the sums for loss and metrics.

    Args:
      model: resolved.
      params: the tree of `init_params`.
      batch: input_ids, token_type_ids, attention_mask [b, t]; masked_positions, masked_ids,
        masked_weights [b, m]; next_sentence_labels, row_weights [b]. Rows that only pad the batch
        have zeros for weights. Packed rows have segment_ids and position_ids [b, t] in place of
        attention_mask, and cls_positions, next_sentence_labels and pair_weights [b, p].
      row_keys: typed PRNG keys [b] for dropout, or None = deterministic.

    Returns:
      Float32 scalars mlm_loss_sum, mlm_weight, mlm_correct, nsp_loss_sum, nsp_weight,
      nsp_correct: losses in nats, weights and correct in labels. The NSP sums are 0 if the model
      has no NSP head.
    """
    mlm_logits, nsp_logits = apply_model(
        model,
        params,
        batch["input_ids"],
        batch["token_type_ids"],
        batch.get("attention_mask"),
        batch["masked_positions"],
        row_keys,
        packing_of(batch),
    )
    mlm = weighted_sums(
        mlm_logits, batch["masked_ids"], batch["masked_weights"], is_narrow(model.config)
    )
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
    # 0 / 1 without any row or NSP head. Otherwise there is at least one row of weight 1.
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


def frequency_baselines(
    batches: Iterable[Mapping[str, np.ndarray]], unigrams: np.ndarray, *, next_sentence: bool
) -> dict[str, float]:
    """The baselines: scores of a model that knows only frequencies.

    Args:
      batches: held-out rows, one pair each.
      unigrams: count of each id in the training tokens [v].
      next_sentence: whether the rows have next-sentence labels.

    Returns:
      unigram_entropy, the cross-entropy of the masked tokens under the training unigrams with one
      added to each count, in nats; and, with `next_sentence`, nsp_majority, the share of the more
      frequent next-sentence label.
    """
    log_probability = unigram_log_probabilities(unigrams)
    nats = masked = random_pairs = pairs = 0.0
    for batch in batches:
        weights = batch["masked_weights"]
        nats -= float((log_probability[batch["masked_ids"]] * weights).sum())
        masked += float(weights.sum())
        random_pairs += float((batch["next_sentence_labels"] * batch["row_weights"]).sum())
        pairs += float(batch["row_weights"].sum())
    baselines = {"unigram_entropy": nats / masked}
    if next_sentence:
        baselines["nsp_majority"] = max(random_pairs, pairs - random_pairs) / pairs
    return baselines


def unigram_log_probabilities(unigrams: np.ndarray) -> np.ndarray:
    """Log-probability of each id [v], in nats, by its count [v] and one more."""
    return np.asarray(np.log((unigrams + 1) / (unigrams.sum() + len(unigrams))))


def pretraining_fields(phase: Phase) -> Fields:
    """One global batch: b rows of t tokens, at most m of them masked, at most p pairs."""
    b, t, m = phase.global_batch_size, phase.max_length, phase.max_predictions
    fields: Fields = {
        "input_ids": ((b, t), jnp.int32),
        "token_type_ids": ((b, t), jnp.int32),
        "masked_positions": ((b, m), jnp.int32),
        "masked_ids": ((b, m), jnp.int32),
        "masked_weights": ((b, m), jnp.float32),
    }
    if (p := phase.packing_depth) > 1:
        return fields | {
            "segment_ids": ((b, t), jnp.int32),
            "position_ids": ((b, t), jnp.int32),
            "cls_positions": ((b, p), jnp.int32),
            "next_sentence_labels": ((b, p), jnp.int32),
            "pair_weights": ((b, p), jnp.float32),
        }
    return fields | {
        "attention_mask": ((b, t), jnp.int32),
        "next_sentence_labels": ((b,), jnp.int32),
        "row_weights": ((b,), jnp.float32),
    }
