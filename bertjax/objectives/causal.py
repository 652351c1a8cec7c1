"""The left-to-right objective: each token predicts the next one (Radford et al. 2018, section 3.1).

Rows are those of the masked objective, without masks. Every token after [CLS] is a target, the last
[SEP] included. The layers of the head are those of masked tokens, so a run may start from the
parameters of the other objective.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bertjax.config import ModelConfig, Phase, max_predictions
from bertjax.models import BertEncoder, BertForCausalLM, MaskedLanguageModelHead
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
from bertjax.objectives.pretraining import pretraining_fields, unigram_log_probabilities
from bertjax.parallel.partition import gather_params, sum_over_rows

_LM_LOSS = Metric(
    "lm_loss",
    progress="lm {:.3f}",
    title="LM loss",
    unit="nats per token",
    baseline="unigram_entropy",
    baseline_label="unigrams",
    summary="LM loss {:.3f} nats (training unigrams: {:.3f})",
)
_LM_ACCURACY = Metric("lm_accuracy", title="LM accuracy", unit="share of tokens")
_NAMES = ("lm_loss_sum", "lm_weight", "lm_correct")
# Logits exist for as many positions at a time as a masked run predicts with this rate.
_CHUNK_RATE = 0.15


def causal_objective(config: ModelConfig) -> Objective:
    """The objective of the next token; `config.direction` must be "left_to_right"."""
    return Objective(
        model=BertForCausalLM(config),
        fields=causal_fields,
        sums=lambda params, batch, dropout_keys, _: causal_sums(
            config, params, batch, dropout_keys
        ),
        denominators=lambda batch: {"lm_weight": jnp.sum(next_tokens(batch)[1])},
        loss=_loss,
        metrics=lambda sums: {
            "lm_loss": _loss(sums, sums),
            "lm_accuracy": sums["lm_correct"] / jnp.maximum(sums["lm_weight"], 1.0),
        },
        reported=(_LM_LOSS, _LM_ACCURACY),
        row_flops=functools.partial(row_flops, config),
        baselines=_baselines,
        predicted="lm_weight",
    )


def causal_sums(
    config: ModelConfig, params: Any, batch: Batch, row_keys: jax.Array | None
) -> dict[str, jax.Array]:
    """Runs the model on a batch or microbatch and computes the sums for loss and metrics.

    No array of all logits [b, t, v] exists. The logits of some positions are computed, compared
    with the targets and dropped.

    Args:
      config: of the model, resolved.
      params: of the model.
      batch: the arrays of `causal_fields`.
      row_keys: typed PRNG keys [b] for dropout, or None = deterministic.

    Returns:
      Float32 scalars lm_loss_sum in nats, lm_weight and lm_correct in tokens.
    """
    params = gather_params(params)
    inputs = (batch["input_ids"], batch["token_type_ids"], batch.get("attention_mask"))
    encoder = BertEncoder(config)
    hidden_states, _ = encoder.apply({"params": params}, *inputs, row_keys, packing_of(batch))
    table = encoder.apply({"params": params}, method="word_table")
    chunks = jax.tree.map(position_chunks, (hidden_states, *next_tokens(batch)))
    sums = sum_over_rows(functools.partial(_head_sums, config))((params["mlm_head"], table), chunks)
    return dict(zip(_NAMES, sums, strict=True))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _head_sums(config: ModelConfig, params: Any, chunks: Any) -> list[jax.Array]:
    """The sums of the head over all chunks, one after the other.

    The loss is linear in `lm_loss_sum`, so its gradients are computed with the logits and scaled
    later. To compute the logits again in the backward pass would be a third more products.

    Args:
      config: of the model.
      params: of the head, and the word table [v, d].
      chunks: hidden states [n, b, c, d], targets and weights [n, b, c].
    """
    of_chunks = jax.lax.map(lambda chunk: _chunk_sums(config, params, *chunk), chunks)
    return [jnp.sum(sums) for sums in of_chunks]


def _chunk_sums(
    config: ModelConfig, params: Any, x: jax.Array, targets: jax.Array, weights: jax.Array
) -> list[jax.Array]:
    own, table = params
    logits: Any = MaskedLanguageModelHead(config).apply({"params": own}, x, None, table)
    return weighted_sums(logits, targets, weights, is_narrow(config))


def _head_sums_forward(config: ModelConfig, params: Any, chunks: Any) -> Any:
    def loss_and_sums(params: Any, x: jax.Array, *rest: jax.Array) -> tuple[jax.Array, Any]:
        sums = _chunk_sums(config, params, x, *rest)
        return sums[0], sums

    gradient = jax.grad(loss_and_sums, argnums=(0, 1), has_aux=True)

    def add(totals: Any, chunk: Any) -> tuple[Any, Any]:
        (of_params, of_x), sums = gradient(params, *chunk)
        return jax.tree.map(jnp.add, totals, of_params), (of_x, sums)

    of_params, (of_x, sums) = jax.lax.scan(add, jax.tree.map(jnp.zeros_like, params), chunks)
    return [jnp.sum(x) for x in sums], (of_params, of_x)


def _head_sums_backward(config: ModelConfig, gradients: Any, cotangents: Any) -> Any:
    scaled = jax.tree.map(lambda x: (x * cotangents[0]).astype(x.dtype), gradients)
    return scaled[0], (scaled[1], None, None)


_head_sums.defvjp(_head_sums_forward, _head_sums_backward)


def next_tokens(batch: Mapping[str, Any]) -> tuple[jax.Array, jax.Array]:
    """The target of each token, int32 [b, t], and its weight, float32 [b, t].

    The weight is 1 where a token of the same segment follows, else 0; padding is no segment.
    """
    segments = jnp.asarray(batch["segment_ids" if is_packed(batch) else "attention_mask"])
    following = jnp.pad(segments[:, 1:], ((0, 0), (0, 1)))
    weights = ((segments > 0) & (following == segments)).astype(jnp.float32)
    if not is_packed(batch):
        weights *= batch["row_weights"][:, None]
    return jnp.roll(batch["input_ids"], -1, axis=1), weights


def causal_fields(phase: Phase) -> Fields:
    """One global batch: that of pre-training, without the arrays of masks."""
    return {
        name: field for name, field in pretraining_fields(phase).items() if "masked" not in name
    }


def position_chunks(x: jax.Array) -> jax.Array:
    """[b, t, ...] -> [n, b, c, ...]: c positions at a time, filled up with zeros at the end."""
    length = x.shape[1]
    most = min(max_predictions(_CHUNK_RATE, length), length)
    size = next((c for c in range(most, most // 2, -1) if length % c == 0), most)
    x = jnp.pad(x, ((0, 0), (0, -length % size), *[(0, 0)] * (x.ndim - 2)))
    return jnp.moveaxis(x.reshape(x.shape[0], -1, size, *x.shape[2:]), 1, 0)


def _loss(sums: Mapping[str, jax.Array], denominators: Mapping[str, jax.Array]) -> jax.Array:
    return sums["lm_loss_sum"] / jnp.maximum(denominators["lm_weight"], 1.0)


def _baselines(
    batches: Iterable[Mapping[str, np.ndarray]], unigrams: np.ndarray
) -> dict[str, float]:
    """The cross-entropy of the targets under the training unigrams, in nats."""
    log_probability = unigram_log_probabilities(unigrams)
    nats = tokens = 0.0
    for batch in batches:
        targets, weights = map(np.asarray, next_tokens(batch))
        nats -= float((log_probability[targets] * weights).sum())
        tokens += float(weights.sum())
    return {"unigram_entropy": nats / tokens}
