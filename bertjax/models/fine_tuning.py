"""Fine-tuning: the encoder and one small layer (Devlin et al. 2019, section 4 and figure 4).

The parameters of the new layers are named by the task: `classification_head`, `span_head`,
`tagging_head`. Logits are float32.
"""

from __future__ import annotations

from typing import Any

import jax
from flax import linen as nn

from bertjax.config import ModelConfig
from bertjax.heads import HEADS
from bertjax.models.bert import BertEncoder
from bertjax.models.dropout import dropout, split_row_keys
from bertjax.models.layers import output_layer


class BertForClassification(nn.Module):
    """Classifies a sentence or a pair; with one label and a squared loss, a regression.

    google-research/bert, run_classifier.py: dropout on the pooled output, then a dense layer.
    """

    config: ModelConfig

    def setup(self) -> None:
        """Declares encoder and head; the encoder's parameters are at the root."""
        self.bert = BertEncoder(self.config)
        nn.share_scope(self, self.bert)
        self.classification_head = output_layer(self.config, self.config.num_labels)

    def __call__(
        self,
        input_ids: jax.Array,
        token_type_ids: jax.Array,
        attention_mask: jax.Array,
        row_keys: jax.Array | None = None,
    ) -> jax.Array:
        """Maps rows of tokens [b, t], as in `BertEncoder`, to logits [b, num_labels]."""
        pooled: Any
        _, pooled = self.bert(input_ids, token_type_ids, attention_mask, row_keys)
        pooled = dropout(pooled, self.config.dropout_rate, _head_keys(self.config, row_keys))
        return self.classification_head(pooled)


class BertForTagging(nn.Module):
    """Gives every token a label (section 5.3): dropout on the hidden states, then a dense layer."""

    config: ModelConfig

    def setup(self) -> None:
        """Declares encoder and head; the encoder's parameters are at the root."""
        self.bert = BertEncoder(self.config)
        nn.share_scope(self, self.bert)
        self.tagging_head = output_layer(self.config, self.config.num_labels)

    def __call__(
        self,
        input_ids: jax.Array,
        token_type_ids: jax.Array,
        attention_mask: jax.Array,
        row_keys: jax.Array | None = None,
    ) -> jax.Array:
        """Maps rows of tokens [b, t], as in `BertEncoder`, to logits [b, t, num_labels]."""
        x, _ = self.bert(input_ids, token_type_ids, attention_mask, row_keys)
        x = dropout(x, self.config.dropout_rate, _head_keys(self.config, row_keys))
        return self.tagging_head(x)


class BertForSpans(nn.Module):
    """Finds the start and the end of an answer (section 4.2): one dense layer, no dropout.

    The two columns of the kernel [d, 2] are the paper's start vector and end vector.
    """

    config: ModelConfig

    def setup(self) -> None:
        """Declares encoder and head; the encoder's parameters are at the root."""
        self.bert = BertEncoder(self.config)
        nn.share_scope(self, self.bert)
        self.span_head = output_layer(self.config, 2)

    def __call__(
        self,
        input_ids: jax.Array,
        token_type_ids: jax.Array,
        attention_mask: jax.Array,
        row_keys: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array]:
        """Maps rows of tokens [b, t], as in `BertEncoder`, to start and end logits, each [b, t]."""
        x, _ = self.bert(input_ids, token_type_ids, attention_mask, row_keys)
        logits = self.span_head(x)
        return logits[..., 0], logits[..., 1]


def name_outputs(head: str, outputs: Any) -> dict[str, jax.Array]:
    """The outputs of a head's model, by name.

    Returns:
      Float32 arrays: classification `logits` [b, c]; regression `values` [b]; span `start_logits`
      and `end_logits` [b, t]; tagging `logits` [b, t, c].
    """
    record = HEADS[head]
    arrays = outputs if isinstance(outputs, tuple) else (outputs,)
    if record.num_labels == 1:
        arrays = tuple(x[..., 0] for x in arrays)
    return dict(zip(record.outputs, arrays, strict=True))


def _head_keys(config: ModelConfig, row_keys: jax.Array | None) -> jax.Array | None:
    """The key set after those of the encoder, which are the first 1 + num_layers."""
    return split_row_keys(row_keys, 2 + config.num_layers)[-1]
