"""The left-to-right model: the encoder with the head that predicts the next token."""

from __future__ import annotations

import jax
from flax import linen as nn

from bertjax.config import ModelConfig
from bertjax.models.bert import BertEncoder, Packing
from bertjax.models.mlm_head import MaskedLanguageModelHead


class BertForCausalLM(nn.Module):
    """The encoder with one head; its parameters are those of the head for masked tokens.

    The same as transformers' BertLMHeadModel with `is_decoder`.
    """

    config: ModelConfig

    def setup(self) -> None:
        """Declares encoder and head; the encoder's parameters are at the root."""
        self.bert = BertEncoder(self.config)
        nn.share_scope(self, self.bert)
        self.mlm_head = MaskedLanguageModelHead(self.config)

    def __call__(
        self,
        input_ids: jax.Array,
        token_type_ids: jax.Array,
        attention_mask: jax.Array | None,
        positions: jax.Array | None,
        row_keys: jax.Array | None = None,
        packing: Packing | None = None,
    ) -> jax.Array:
        """Predicts the token after each of the positions.

        Args:
          input_ids: [b, t]; it and the next two as in `BertEncoder`.
          token_type_ids: [b, t].
          attention_mask: [b, t], or None with `packing`.
          positions: [b, m], each in [0, t); None = all t, whose logits take much memory.
          row_keys: typed PRNG keys [b] for dropout, or None = deterministic.
          packing: as in `BertEncoder`.

        Returns:
          Float32 logits [b, m, v].

        Raises:
          ValueError: as in `BertEncoder`.
        """
        hidden_states, _ = self.bert(input_ids, token_type_ids, attention_mask, row_keys, packing)
        return self.mlm_head(hidden_states, positions, self.bert.word_table())
