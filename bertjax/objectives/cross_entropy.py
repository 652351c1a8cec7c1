"""Sums of cross-entropies over many labels, which read the logits as seldom as they can.

For BERT's masked tokens the logits are by far the largest array of a step: [rows * masked, v].
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

_Three = tuple[jax.Array, jax.Array, jax.Array]


def weighted_sums(
    logits: jax.Array, labels: jax.Array, weights: jax.Array, at_once: bool = False
) -> list[jax.Array]:
    """The sums over all labels of weight * cross-entropy, of weight, and of weight * correct.

    Cross-entropy is -log softmax(logits)[label], in nats, computed without a copy of the logits. A
    label is correct if no logit is larger than its own.

    Args:
      logits: float32 [..., classes], finite.
      labels: int32 [...].
      weights: float32 [...].
      at_once: whether to read the logits once, in both passes: for GPUs and TPUs. A CPU takes three
        times as long so.

    Returns:
      Three float32 scalars.
    """
    log_sum_exp, label_logits, highest = (_at_once if at_once else _one_by_one)(logits, labels)
    loss = log_sum_exp - label_logits
    correct = (label_logits >= highest).astype(weights.dtype)
    return [jnp.sum(loss * weights), jnp.sum(weights), jnp.sum(correct * weights)]


def _one_by_one(logits: jax.Array, labels: jax.Array) -> _Three:
    """Log-sum-exp, the label's logit and the largest logit, [...] each."""
    # A sum. A gather's gradient would scatter into a second array of the logits' size, and an
    # argmax is a slow reduction of pairs.
    label_logits = jnp.sum(jnp.where(_is_label(logits, labels), logits, 0), axis=-1)
    return jax.nn.logsumexp(logits, axis=-1), label_logits, jnp.max(logits, axis=-1)


@jax.custom_vjp
def _at_once(logits: jax.Array, labels: jax.Array) -> _Three:
    """The same by one reduction (Milakov and Gimelshein 2018); the last one has no gradient."""

    def combine(x: _Three, y: _Three) -> _Three:
        highest = jnp.maximum(x[2], y[2])
        total = x[0] * jnp.exp(x[2] - highest) + y[0] * jnp.exp(y[2] - highest)
        return total, x[1] + y[1], highest

    label_logits = jnp.where(_is_label(logits, labels), logits, 0)
    zero, lowest = np.zeros((), logits.dtype), np.asarray(jnp.finfo(logits.dtype).min)
    total, label_logit, highest = jax.lax.reduce(
        (jnp.ones_like(logits), label_logits, logits),
        (zero, zero, lowest),
        combine,
        (logits.ndim - 1,),
    )
    return highest + jnp.log(total), label_logit, highest


def _forward(logits: jax.Array, labels: jax.Array) -> tuple[_Three, tuple[jax.Array, ...]]:
    results = _at_once(logits, labels)
    return results, (logits, labels, results[0])


def _backward(residuals: tuple[jax.Array, ...], gradients: _Three) -> tuple[jax.Array, None]:
    logits, labels, log_sum_exp = residuals
    of_log_sum, of_label, _ = (gradient[..., None] for gradient in gradients)
    probabilities = jnp.exp(logits - log_sum_exp[..., None])
    return probabilities * of_log_sum + jnp.where(_is_label(logits, labels), of_label, 0), None


_at_once.defvjp(_forward, _backward)


def _is_label(logits: jax.Array, labels: jax.Array) -> jax.Array:
    return jnp.arange(logits.shape[-1]) == labels[..., None]
