"""What the layers of an encoder make of its input: every hidden state and attention probability."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from bertjax.config import ModelConfig
from bertjax.models.attention import PROBABILITIES
from bertjax.models.bert import Embeddings, EncoderLayer, cast_layer
from bertjax.models.visibility import Visibility


def inspect_layers(
    config: ModelConfig,
    params: Mapping[str, Any],
    input_ids: jax.Array,
    token_type_ids: jax.Array,
    attention_mask: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Runs the layers one by one, without dropout. Pure; may be compiled.

    Args:
      config: its dtype resolved.
      params: of any model, with `embeddings` and `encoder`.
      input_ids: [b, t].
      token_type_ids: [b, t].
      attention_mask: [b, t].

    Returns:
      hidden_states [1 + layers, b, t, d], of the embeddings and of each layer, and attentions
      [layers, b, h, t, t]: what each query (the axis before the last) takes from each key (the
      last); both in float32.
    """
    x: Any = Embeddings(config).apply(
        {"params": params["embeddings"]}, input_ids, token_type_ids, None
    )
    hidden_states, attentions = [x], []
    for index in range(config.num_layers):
        layer = cast_layer(params["encoder"][f"layer_{index}"], config)
        seen: Any
        x, seen = EncoderLayer(config).apply(
            {"params": layer}, x, Visibility(attention_mask), mutable="intermediates"
        )
        hidden_states.append(x)
        attentions.append(seen["intermediates"]["attention"][PROBABILITIES][0])
    return (
        jnp.stack(hidden_states).astype(jnp.float32),
        jnp.stack(attentions).astype(jnp.float32),
    )
