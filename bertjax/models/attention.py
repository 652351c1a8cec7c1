"""Multi-head self-attention (Vaswani et al. 2017, section 3.2), as in BERT."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from bertjax.config import ModelConfig
from bertjax.models.dropout import dropout
from bertjax.models.layers import dense, joint_dense, product_precision, wide_product
from bertjax.models.visibility import Visibility

PROBABILITIES = "probabilities"  # in the collection "intermediates": see bert.py


def attention_probabilities(query: jax.Array, key: jax.Array, visibility: Visibility) -> jax.Array:
    """Attention probabilities, query by key, [b, h, t, t]; see `dot_product_attention`."""
    scores = wide_product("bqhk,bshk->bhqs", query, key)
    scores = scores / query.shape[-1] ** 0.5
    # The lowest finite number and not -inf: so a row of padding alone has no NaN.
    scores = jnp.where(visibility.mask(), scores, jnp.finfo(scores.dtype).min)
    return jax.nn.softmax(scores, axis=-1).astype(query.dtype)


def dot_product_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    visibility: Visibility,
    row_keys: jax.Array | None,
    dropout_rate: float,
) -> jax.Array:
    """Attends to the keys that are visible; softmax in float32, dropout on the probabilities.

    Args:
      query: [b, t, h, k], in the compute dtype; so are `key` and `value`.
      key: [b, t, h, k].
      value: [b, t, h, k].
      visibility: of b rows of t tokens.
      row_keys: typed PRNG keys [b], or None = no dropout.
      dropout_rate: of the probabilities.

    Returns:
      [b, t, h, k], in the compute dtype.
    """
    probabilities = attention_probabilities(query, key, visibility)
    probabilities = dropout(probabilities, dropout_rate, row_keys)
    precision = product_precision(value.dtype)
    return jnp.einsum("bhqs,bshk->bqhk", probabilities, value, precision=precision)


def by_rows(attend: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """Applies `attend` to one row after the other: [h, t, t] stays in the caches of a CPU.

    The backward pass computes the probabilities again, so they never reach main memory.
    """

    def attend_row(row: tuple[Any, ...]) -> jax.Array:
        return attend(*jax.tree.map(lambda x: x[None], row))[0]

    recomputed = jax.checkpoint(attend_row, prevent_cse=False)
    return lambda *rows: jax.lax.map(recomputed, rows)


class SelfAttention(nn.Module):
    """Projections of query, key, value and output, all with bias."""

    config: ModelConfig

    @nn.compact
    def __call__(
        self,
        hidden_states: jax.Array,
        visibility: Visibility,
        row_keys: jax.Array | None = None,
    ) -> jax.Array:
        """Maps hidden_states [b, t, d] to [b, t, d]."""
        config = self.config
        b, t, d = hidden_states.shape
        names, axes = ("query", "key", "value"), ("embed", "heads")
        rate = config.attention_dropout_rate

        def by_head(x: jax.Array) -> jax.Array:
            return x.reshape(*x.shape[:-1], config.num_heads, -1)

        if config.attention == "pallas" and not self.is_initializing():
            # Pallas takes 0.2 s to import.
            from bertjax.models.kernels.fused_attention import fused_attention

            # The kernels read and write the three as parts of one array.
            qkv = by_head(joint_dense(config, hidden_states, d, names, axes))
            query, key = qkv[:, :, 0], qkv[:, :, 1]
            context = fused_attention(qkv, visibility, row_keys, rate)
        else:
            query, key, value = (
                by_head(dense(config, d, name, axes)(hidden_states)) for name in names
            )
            attend: Callable[..., jax.Array] = functools.partial(
                dot_product_attention, dropout_rate=rate
            )
            if config.attention == "rows":
                attend = by_rows(attend)
            elif config.remat == "attention":  # keeps no [b, h, t, t] array for the backward pass
                attend = jax.checkpoint(attend, prevent_cse=not config.scan_layers)
            context = attend(query, key, value, visibility, row_keys)
        if self.is_mutable_collection("intermediates"):  # the caller inspects the model
            probabilities = attention_probabilities(query, key, visibility)
            self.sow("intermediates", PROBABILITIES, probabilities)
        return dense(config, d, "output", ("heads", "embed"))(context.reshape(b, t, d))
