"""The models of fine-tuning: one small layer on the encoder, and nothing else that changes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bertjax.config import ModelConfig
from bertjax.heads import HEADS
from bertjax.models import BertEncoder, dropout, init_params, make_model, split_row_keys

SMALL = ModelConfig(
    vocab_size=101,
    hidden_size=16,
    num_layers=2,
    num_heads=2,
    intermediate_size=24,
    max_positions=16,
    dtype="float32",
    num_labels=5,
)
OWN = {  # the parameters beside the encoder's, by head
    "encoder": {},
    "classification": {"classification_head": 5},
    "regression": {"classification_head": 5},
    "span": {"span_head": 2},
    "tagging": {"tagging_head": 5},
}


def with_head(head, **changes):
    return dataclasses.replace(SMALL, head=head, **changes)


@pytest.fixture(scope="module")
def inputs():
    rng = np.random.default_rng(0)
    mask = (np.arange(12) < rng.integers(4, 12, (6, 1))).astype(np.int32)
    ids = rng.integers(0, SMALL.vocab_size, (6, 12)).astype(np.int32)
    return jnp.asarray(ids), jnp.asarray(mask * (np.arange(12) > 3)), jnp.asarray(mask)


def test_every_head_is_here():
    assert set(HEADS) == {"pretraining", "causal", *OWN}


def test_the_head_of_next_tokens_has_the_parameters_of_the_one_of_masked_tokens():
    masked = init_params(with_head("pretraining", next_sentence=False), 3)
    causal = init_params(with_head("causal"), 3)  # whatever next_sentence says
    assert jax.tree.structure(causal) == jax.tree.structure(masked)
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, causal, masked)))


@pytest.mark.parametrize("head", OWN)
def test_a_head_adds_its_own_layer_to_the_same_encoder(head):
    encoder = {"embeddings", "encoder", "pooler"}
    pretrained = init_params(with_head("pretraining"), 3)
    params = init_params(with_head(head), 3)
    assert set(params) == encoder | set(OWN[head])
    for name in encoder:
        same = jax.tree.map(np.array_equal, params[name], pretrained[name])
        assert all(jax.tree.leaves(same)), name
    for name, labels in OWN[head].items():
        assert params[name]["kernel"].shape == (16, labels)
        assert not params[name]["bias"].any()


@pytest.mark.parametrize("head", ["span", "tagging", "encoder"])
def test_a_model_without_pooler_has_no_parameters_for_it(head, inputs):
    config = with_head(head, pooler=False)
    params = init_params(config, 0)
    assert "pooler" not in params
    outputs = make_model(config).apply({"params": params}, *inputs)
    if head == "encoder":
        assert outputs[1] is None


def test_classification_is_a_dense_layer_on_the_pooled_output(inputs):
    config = with_head("classification")
    params = jax.tree.map(lambda x: 8 * x, init_params(config, 0))
    logits = make_model(config).apply({"params": params}, *inputs)
    _, pooled = BertEncoder(config).apply({"params": params}, *inputs)
    head = params["classification_head"]
    np.testing.assert_allclose(logits, pooled @ head["kernel"] + head["bias"], atol=1e-6)


def test_tags_and_spans_are_dense_layers_on_every_token(inputs):
    for head in ("tagging", "span"):
        config = with_head(head)
        params = jax.tree.map(lambda x: 8 * x, init_params(config, 0))
        hidden_states, _ = BertEncoder(config).apply({"params": params}, *inputs)
        layer = params[f"{head}_head"]
        expected = hidden_states @ layer["kernel"] + layer["bias"]
        logits = make_model(config).apply({"params": params}, *inputs)
        if head == "span":
            assert [x.shape for x in logits] == [(6, 12), (6, 12)]
            logits = jnp.stack(logits, axis=-1)
        np.testing.assert_allclose(logits, expected, atol=1e-6)


@pytest.mark.parametrize("head", ["classification", "tagging", "span"])
def test_dropout_before_the_head_has_keys_of_its_own(head, inputs):
    config = with_head(head)
    params = jax.tree.map(lambda x: 8 * x, init_params(config, 0))
    row_keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(1), jnp.arange(6))
    hidden_states, pooled = BertEncoder(config).apply({"params": params}, *inputs, row_keys)
    x = pooled if head == "classification" else hidden_states
    if head != "span":  # google-research/bert, run_squad.py has none there
        x = dropout(x, 0.1, split_row_keys(row_keys, 4)[3])
    layer = params[f"{head}_head"]
    logits = make_model(config).apply({"params": params}, *inputs, row_keys)
    logits = jnp.stack(logits, axis=-1) if head == "span" else logits
    np.testing.assert_allclose(logits, x @ layer["kernel"] + layer["bias"], atol=1e-5)


def test_logits_are_float32_whatever_the_compute_dtype(inputs):
    for head in ("classification", "tagging", "span"):
        config = with_head(head, dtype="bfloat16")
        logits = make_model(config).apply({"params": init_params(config, 0)}, *inputs)
        assert {x.dtype for x in jax.tree.leaves(logits)} == {jnp.dtype("float32")}
        for x in jax.tree.leaves(logits):  # nor rounded to it before
            assert (x.astype(jnp.bfloat16).astype(jnp.float32) != x).any(), head
