"""The BERT encoder (Devlin et al. 2019; google-research/bert at eedf571, modeling.py).

Parameters are one subtree per layer with 2-D kernels [in, out], in memory as on disk. Their paths
and shapes are a public format. See docs/design/model.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from bertjax.config import ModelConfig
from bertjax.encoders import ENCODERS
from bertjax.heads import resolve
from bertjax.models.attention import SelfAttention
from bertjax.models.dropout import dropout, split_row_keys
from bertjax.models.layer_norm import LayerNorm, ResidualNorm
from bertjax.models.layers import dense, dense_gelu, hidden_rows, truncated_normal
from bertjax.models.lookup import look_up
from bertjax.models.visibility import Visibility
from bertjax.parallel.partition import path_name
from bertjax.parameters import line_of

LAYERS, LAYER_INPUT = "layers", "input"  # in the collection "intermediates": see `LayerStack`


class Packing(NamedTuple):
    """The places of the pairs in packed rows; it replaces the attention mask."""

    segment_ids: jax.Array  # int [b, t], 1 for the first pair, 2 for the second, 0 = padding
    position_ids: jax.Array  # int [b, t], 0 at the first token of each pair
    cls_positions: jax.Array  # int [b, p], each in [0, t); unused entries are arbitrary


class Embeddings(nn.Module):
    """Sum of the word, position and token type tables, then LayerNorm and dropout."""

    config: ModelConfig

    def setup(self) -> None:
        """Declares the tables [v, d], [positions, d] and [types, d]."""
        config = self.config

        def table(size: int) -> nn.Embed:
            return nn.Embed(size, config.hidden_size, embedding_init=truncated_normal(config))

        self.word = table(config.vocab_size)
        self.position = table(config.max_positions)
        self.token_type = table(config.num_token_types)
        self.layer_norm = LayerNorm(config)

    def __call__(
        self,
        input_ids: jax.Array,
        token_type_ids: jax.Array,
        row_keys: jax.Array | None,
        position_ids: jax.Array | None = None,
    ) -> jax.Array:
        """Maps ids [b, t] to hidden states [b, t, d] in the compute dtype."""
        length = input_ids.shape[1]
        if length > self.config.max_positions:
            raise ValueError(
                f"input_ids has rows of {length} tokens, the model has {self.config.max_positions} "
                "positions (model.max_positions): use shorter rows or a model with more positions"
            )
        # The lookups stay in float32, so that gradients of a frequent token's row add up in float32
        # with any compute dtype.
        x = look_up(self.config, self.word.embedding, input_ids)
        if position_ids is None:
            x += self.position.embedding[:length]
        else:
            x += look_up(self.config, self.position.embedding, position_ids)
        # A product with a one-hot matrix: with a gather, the gradient of two table rows would be a
        # scatter of all tokens onto two rows. HIGHEST keeps the product exact.
        types = jax.nn.one_hot(token_type_ids, self.config.num_token_types, dtype=x.dtype)
        x += jnp.matmul(types, self.token_type.embedding, precision=jax.lax.Precision.HIGHEST)
        x = self.layer_norm(hidden_rows(self.config, x))
        return dropout(x, self.config.dropout_rate, row_keys)


class FeedForward(nn.Module):
    """Two dense layers with GELU between them."""

    config: ModelConfig

    @nn.compact
    def __call__(self, hidden_states: jax.Array) -> jax.Array:
        """Maps [b, t, d] through [b, t, f] to [b, t, d]."""
        config = self.config
        x = dense_gelu(config, config.intermediate_size, "intermediate", ("embed", "mlp"))(
            hidden_states
        )
        return dense(config, config.hidden_size, "output", ("mlp", "embed"))(x)


class EncoderLayer(nn.Module):
    """One post-LN Transformer layer: x = LN(x + dropout(sublayer(x))), twice."""

    config: ModelConfig

    @nn.compact
    def __call__(
        self,
        hidden_states: jax.Array,
        visibility: Visibility,
        row_keys: jax.Array | None = None,
    ) -> jax.Array:
        """Maps hidden_states [b, t, d] to [b, t, d]; `row_keys` are this layer's."""
        config = self.config
        probability_keys, attention_keys, mlp_keys = split_row_keys(row_keys, 3)
        x = hidden_states
        self.sow("intermediates", LAYER_INPUT, x)
        y = SelfAttention(config, name="attention")(x, visibility, probability_keys)
        x = ResidualNorm(config, name="attention_layer_norm")(x, y, attention_keys)
        y = FeedForward(config, name="mlp")(x)
        return ResidualNorm(config, name="mlp_layer_norm")(x, y, mlp_keys)


class LayerStack(nn.Module):
    """The layers one after the other: unrolled, or one compiled layer in a `jax.lax.scan`.

    The parameters are `layer_0`, `layer_1`, ... in both cases. Layers run as pure functions of
    their subtree, so scan and remat are plain JAX around the same function and change no number.
    """

    config: ModelConfig

    @nn.compact
    def __call__(
        self, hidden_states: jax.Array, visibility: Visibility, layer_keys: list[Any]
    ) -> jax.Array:
        """Maps hidden_states [b, t, d] to [b, t, d]; `layer_keys` has one item per layer.

        If the collection "intermediates" is mutable, the values that the layers sow there are
        stacked and sown as `layers`, scanned or not: `input` [layers, b, t, d] and
        `attention/probabilities` [layers, b, h, t, t].
        """
        config = self.config
        layer_class = resolve(ENCODERS[config.encoder].layer)
        if self.is_initializing():
            for index in range(config.num_layers):
                layer = layer_class(config, name=f"layer_{index}")
                hidden_states = layer(hidden_states, visibility)
            return hidden_states
        collections = ["intermediates"] if self.is_mutable_collection("intermediates") else []

        def apply_layer(params: Any, x: jax.Array, keys: jax.Array | None) -> tuple[jax.Array, Any]:
            layer = layer_class(config, parent=None)
            output: Any
            output, sown = layer.apply({"params": params}, x, visibility, keys, mutable=collections)
            return hidden_rows(config, output), sown

        if config.remat == "layer":
            apply_layer = jax.checkpoint(apply_layer, prevent_cse=not config.scan_layers)

        params = self.variables["params"]
        layers = [
            cast_layer(params[f"layer_{index}"], config) for index in range(config.num_layers)
        ]
        if config.scan_layers:
            stacked_keys = _stack(layer_keys)
            hidden_states, sown = jax.lax.scan(
                lambda x, layer: apply_layer(layer[0], x, layer[1]),
                hidden_states,
                (_stack(layers), stacked_keys),
            )
        else:
            of_layers = []
            for layer_params, keys in zip(layers, layer_keys, strict=True):
                hidden_states, of_layer = apply_layer(layer_params, hidden_states, keys)
                of_layers.append(of_layer)
            sown = _stack(of_layers)
        self.sow("intermediates", LAYERS, sown)
        return hidden_states


def last_tokens(segment_ids: jax.Array, count: int) -> jax.Array:
    """Where each of the segments 1 to `count` ends, int32 [b, count]; 0 for one without tokens.

    Args:
      segment_ids: int [b, t], 0 = padding.
      count: of the segments.
    """
    places = jnp.arange(segment_ids.shape[1], dtype=jnp.int32)
    is_own = segment_ids[:, None, :] == jnp.arange(1, count + 1)[:, None]
    return jnp.max(jnp.where(is_own, places, 0), axis=2)


def _stack(trees: list[Any]) -> Any:
    """Stacks trees into one, whose leaves have a new first axis."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def cast_layer(params: Mapping[str, Any], config: ModelConfig) -> Any:
    """A layer's kernels in the compute dtype, to which its modules would cast them anyway.

    So the copies that a scan stacks and that fsdp gathers are small. Other parameters stay float32:
    LayerNorm uses its parameters so, and gradients of biases are summed so.
    """

    def cast(path: Any, leaf: jax.Array) -> jax.Array:
        is_factor = line_of(f"encoder/layer_0/{path_name(path)}").factor
        return leaf.astype(config.dtype) if is_factor else leaf

    return jax.tree.map_with_path(cast, params)


class BertEncoder(nn.Module):
    """Embeddings, layers and pooler: the part of the model that fine-tuning takes over.

    `config` must be resolved (see `resolve_model`).
    """

    config: ModelConfig

    def setup(self) -> None:
        """Declares the parts; the attribute names are the first parts of the parameter paths."""
        for name in ("dtype", "attention"):
            if getattr(self.config, name) == "auto":
                raise ValueError(
                    f"model.{name} is 'auto', which depends on the backend: resolve it with "
                    "resolve_model(config, backend)"
                )
        self.embeddings = resolve(ENCODERS[self.config.encoder].embeddings)(self.config)
        self.encoder = LayerStack(self.config)
        if self.config.pooler:
            self.pooler = dense(self.config, self.config.hidden_size)

    def __call__(
        self,
        input_ids: jax.Array,
        token_type_ids: jax.Array,
        attention_mask: jax.Array | None,
        row_keys: jax.Array | None = None,
        packing: Packing | None = None,
    ) -> tuple[jax.Array, jax.Array | None]:
        """Encodes rows of tokens; see `LayerStack` for intermediate values.

        Args:
          input_ids: [b, t], each in [0, v).
          token_type_ids: [b, t], 0 = sentence A, 1 = sentence B.
          attention_mask: [b, t], 1 = a real token, 0 = padding; None with `packing`.
          row_keys: typed PRNG keys [b] for dropout, or None = deterministic. A row's masks depend
            only on its key.
          packing: for rows with several pairs, which attend to themselves; None = one pair each.

        Returns:
          hidden_states [b, t, d], and pooled [b, d] (tanh of a dense layer on token 0), [b, p, d]
          with `packing` (on the first token of each pair), or None if `config.pooler` is off;
          both in the compute dtype. A left-to-right model pools the last token in place of the
          first, which sees no other.

        Raises:
          ValueError: rows longer than `max_positions`, `config` not resolved, a number of keys that
            is not b, or both or neither of attention_mask and packing.
        """
        if (attention_mask is None) == (packing is None):
            raise ValueError(
                "a batch has an attention_mask, or a packing whose segment_ids say what is "
                f"padding: found {'neither' if packing is None else 'both'}"
            )
        segment_ids: Any = attention_mask if packing is None else packing.segment_ids
        is_causal = self.config.direction == "left_to_right"
        visibility = Visibility(segment_ids.astype(jnp.int32), packing is not None, is_causal)
        embedding_keys, *layer_keys = split_row_keys(row_keys, 1 + self.config.num_layers)
        position_ids = None if packing is None else packing.position_ids
        x = self.embeddings(input_ids, token_type_ids, embedding_keys, position_ids)
        x = self.encoder(x, visibility, layer_keys)
        if not self.config.pooler:
            return x, None
        if packing is None and not is_causal:
            return x, jnp.tanh(self.pooler(x[:, 0]))
        if packing is None:
            places = last_tokens(visibility.segment_ids, 1)
        elif is_causal:
            places = last_tokens(packing.segment_ids, packing.cls_positions.shape[1])
        else:
            places = packing.cls_positions
        pooled = jnp.take_along_axis(x, places[:, :, None], axis=1)
        pooled = jnp.tanh(self.pooler(hidden_rows(self.config, pooled)))
        return x, pooled[:, 0] if packing is None else pooled

    def word_table(self) -> jax.Array:
        """The word table [v, d], which the decoder of masked tokens shares."""
        table: jax.Array = self.embeddings.word.embedding
        return table
