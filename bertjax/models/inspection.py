"""Every hidden state and attention probability of an encoder, for looking inside."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from bertjax.config import ConfigError
from bertjax.models.attention import PROBABILITIES
from bertjax.models.bert import LAYER_INPUT, LAYERS, BertEncoder
from bertjax.models.build import apply_model


def inspect_layers(
    model: BertEncoder, params: Mapping[str, Any], *inputs: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Runs the model without dropout and returns the values of its layers. Pure; may be compiled.

    Args:
      model: resolved.
      params: of any model, with `embeddings` and `encoder`.
      *inputs: input_ids, token_type_ids and attention_mask, each [b, t].

    Returns:
      hidden_states [1 + layers, b, t, d], of the embeddings and of each layer, and attentions
      [layers, b, h, t, t], by query and key; both in float32.

    Raises:
      ConfigError: the layers, which are the user's own, do not sow these.
    """
    (last, _), sown = apply_model(model, params, *inputs, mutable=["intermediates"])
    of_layers = sown["intermediates"]["encoder"][LAYERS][0].get("intermediates", {})
    if LAYER_INPUT not in of_layers or PROBABILITIES not in of_layers.get("attention", {}):
        raise ConfigError(
            f"config.model.encoder = {model.config.encoder!r}: its layers do not show what is "
            f"inside them: sow {LAYER_INPUT!r} in the layer, as bertjax.models.bert.EncoderLayer "
            "does, and name its SelfAttention 'attention'"
        )
    hidden_states = jnp.concatenate([*of_layers[LAYER_INPUT], last[None]])
    (attentions,) = of_layers["attention"][PROBABILITIES]
    return hidden_states.astype(jnp.float32), attentions.astype(jnp.float32)
