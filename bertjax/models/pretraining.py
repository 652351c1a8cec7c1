"""The model that pre-training trains: the encoder with both heads."""

from __future__ import annotations

import jax
from flax import linen as nn

from bertjax.config import ModelConfig
from bertjax.models.bert import BertEncoder, Packing
from bertjax.models.layers import output_layer
from bertjax.models.mlm_head import MaskedLanguageModelHead


class BertForPreTraining(nn.Module):
    """The encoder with the heads for masked tokens and, unless switched off, next sentence."""

    config: ModelConfig

    def setup(self) -> None:
        """Declares encoder and heads; the encoder's parameters are at the root."""
        self.bert = BertEncoder(self.config)
        nn.share_scope(self, self.bert)
        self.mlm_head = MaskedLanguageModelHead(self.config)
        if self.config.next_sentence:
            self.nsp_head = output_layer(self.config, 2)

    def __call__(
        self,
        input_ids: jax.Array,
        token_type_ids: jax.Array,
        attention_mask: jax.Array | None,
        masked_positions: jax.Array,
        row_keys: jax.Array | None = None,
        packing: Packing | None = None,
    ) -> tuple[jax.Array, jax.Array | None]:
        """Predicts masked tokens and whether B follows A.

        Args:
          input_ids: [b, t]; it and the next two as in `BertEncoder`.
          token_type_ids: [b, t].
          attention_mask: [b, t], or None with `packing`.
          masked_positions: [b, m], each in [0, t); unused entries are arbitrary.
          row_keys: typed PRNG keys [b] for dropout, or None = deterministic.
          packing: as in `BertEncoder`.

        Returns:
          Float32 MLM logits [b, m, v], and float32 NSP logits [b, 2] (0 = B is the real next,
          1 = random), [b, p, 2] with `packing`, or None if `config.next_sentence` is off.

        Raises:
          ValueError: as in `BertEncoder`.
        """
        hidden_states, pooled = self.bert(
            input_ids, token_type_ids, attention_mask, row_keys, packing
        )
        mlm_logits = self.mlm_head(hidden_states, masked_positions, self.bert.word_table())
        if not self.config.next_sentence:
            return mlm_logits, None
        assert pooled is not None  # validate() refuses next sentence without a pooler
        return mlm_logits, self.nsp_head(pooled)
