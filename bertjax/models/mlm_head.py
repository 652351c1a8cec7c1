"""The pre-training heads: masked tokens and next sentence (Devlin et al. 2019, section 3.1)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn

from bertjax.config import ModelConfig
from bertjax.models.layer_norm import LayerNorm
from bertjax.models.layers import dense_gelu, hidden_rows, product_precision, wide_product
from bertjax.models.rounded_product import rounded_product
from bertjax.parallel.partition import RULES, constrain, is_split, split_rows


class TiedDecoder(nn.Module):
    """Projects onto the vocabulary with the word table; its only parameter is the bias [v]."""

    config: ModelConfig

    @nn.compact
    def __call__(self, hidden_states: jax.Array, word_table: jax.Array) -> jax.Array:
        """Maps hidden_states [b, m, d] and word_table [v, d] to float32 logits [b, m, v]."""
        bias = self.param(
            "bias", nn.initializers.zeros_init(), (self.config.vocab_size,), jnp.float32
        )
        # Split over the vocabulary even if the table is stored whole.
        table = constrain(word_table.astype(hidden_states.dtype), RULES["vocab"], None)
        size = self.config.vocab_size
        # GPUs read and write lines of a multiple of 128 logits faster than 30,522. The table is
        # filled up where it is copied into 16 bits; the compiler fills up a split vocabulary.
        is_copied = hidden_states.dtype != word_table.dtype
        more = -size % 128 if is_copied and not is_split(RULES["vocab"]) else 0
        table = jnp.pad(table, ((0, more), (0, 0)))
        if self.config.factors == "bfloat16":
            precision = product_precision(hidden_states.dtype)
            logits = rounded_product(hidden_states, table, (((2,), (1,)), ((), ())), precision)
        else:
            logits = wide_product("bmd,vd->bmv", hidden_states, table)
        logits += jnp.pad(bias, (0, more))
        return split_rows(logits[..., :size], None, RULES["vocab"])


class MaskedLanguageModelHead(nn.Module):
    """Dense, GELU, LayerNorm, tied decoder; on some positions, such as the masked ones."""

    config: ModelConfig

    @nn.compact
    def __call__(
        self, hidden_states: jax.Array, positions: jax.Array | None, word_table: jax.Array
    ) -> jax.Array:
        """Predicts tokens: those at the positions, or after them if the model is left-to-right.

        Args:
          hidden_states: [b, t, d] of the encoder.
          positions: [b, m], each in [0, t); None = all t of them.
          word_table: [v, d].

        Returns:
          Float32 logits [b, m, v].
        """
        x = hidden_states
        if positions is not None:
            # Before the dense layer, for about seven times less work than on all positions.
            x = jnp.take_along_axis(x, positions[:, :, None], axis=1)
        x = hidden_rows(self.config, x)
        x = dense_gelu(self.config, self.config.hidden_size, name="dense")(x)
        x = LayerNorm(self.config, name="layer_norm")(x)
        return TiedDecoder(self.config, name="output")(x, word_table)
