"""An encoder of your own: layers with a gated feed-forward (GeGLU, Shazeer 2020).

It trains for 60 steps on a text; see own_encoder.md.

    python examples/own_encoder.py embedded:python runs/own_encoder
"""

import sys

from flax import linen as nn

import bertjax
from bertjax.config import ModelConfig
from bertjax.encoders import EncoderVariant
from bertjax.models.attention import SelfAttention
from bertjax.models.bert import LAYER_INPUT
from bertjax.models.dropout import split_row_keys
from bertjax.models.layer_norm import ResidualNorm
from bertjax.models.layers import dense, gelu
from bertjax.parameters import dense_parameters


class GatedFeedForward(nn.Module):
    config: ModelConfig

    @nn.compact
    def __call__(self, x):
        config, inner = self.config, self.config.intermediate_size
        values = gelu(config, dense(config, inner, "intermediate", ("embed", "mlp"))(x))
        gates = dense(config, inner, "gate", ("embed", "mlp"))(x)
        return dense(config, config.hidden_size, "output", ("mlp", "embed"))(values * gates)


class GatedLayer(nn.Module):
    """Called like `bertjax.models.bert.EncoderLayer`."""

    config: ModelConfig

    @nn.compact
    def __call__(self, hidden_states, visibility, row_keys=None):
        probability_keys, attention_keys, mlp_keys = split_row_keys(row_keys, 3)
        self.sow("intermediates", LAYER_INPUT, hidden_states)  # for `Encoder.inspect`
        attention = SelfAttention(self.config, name="attention")
        y = attention(hidden_states, visibility, probability_keys)
        x = ResidualNorm(self.config, name="attention_layer_norm")(hidden_states, y, attention_keys)
        y = GatedFeedForward(self.config, name="mlp")(x)
        return ResidualNorm(self.config, name="mlp_layer_norm")(x, y, mlp_keys)


# What BERT does not have: how it is split over a mesh, and how often it is multiplied with.
GATE = dense_parameters(
    "encoder/layer_*/mlp/gate", ("hidden_size", "intermediate_size"), ("embed", "mlp"), "tokens"
)
bertjax.register_encoder(EncoderVariant("geglu", layer=GatedLayer), GATE)

if __name__ == "__main__":
    text, folder = sys.argv[1:]
    store = bertjax.build_store(text, f"{folder}/store", "train:wordpiece", vocab_size=2_000)
    base = {"data.store": store.path, "model.vocab_size": 2_000, "optimizer.warmup_steps": 10}
    own = {"model.encoder": "geglu", "model.intermediate_size": 344}  # two thirds, for the gate
    run = bertjax.pretrain("tiny", f"{folder}/run", {**base, **own, "phases[0].num_steps": 60})
    bert = bertjax.load(run.workdir)
    gate = bert.params["encoder"]["layer_0"]["mlp"]["gate"]["kernel"]
    attentions = bert.inspect("Return a list of values.").attentions
    print(run.metrics["heldout_mlm_loss"], gate.shape, attentions.shape)
    print([prediction.piece for prediction in bert.fill_mask("return the [MASK] of x .")[0]])
