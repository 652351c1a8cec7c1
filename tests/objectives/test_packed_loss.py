"""Packed rows through model, loss and step: what the same pairs give in rows of their own."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from stream_store import make_reader

from bertjax.config import MeshConfig, ModelConfig, OptimizerConfig, Phase
from bertjax.data.store.store_writer import write_store
from bertjax.data.stream.packed_rows import PackedRows
from bertjax.models import BertForPreTraining, Packing, init_params
from bertjax.models.attention import dot_product_attention
from bertjax.models.visibility import Visibility
from bertjax.objectives.objective import abstract_batch, make_objective
from bertjax.parallel.sharding import make_mesh
from bertjax.testing import make_documents, make_tokenizer
from bertjax.training.optimizer import make_optimizer
from bertjax.training.step import TrainState, train_step

LENGTH, SLOTS, DEPTH, ROWS = 64, 12, 3, 8
CONFIG = ModelConfig(
    vocab_size=1_000,
    hidden_size=16,
    num_layers=2,
    num_heads=2,
    intermediate_size=24,
    max_positions=LENGTH,
    dtype="float32",
)


@pytest.fixture(scope="module")
def batches(tmp_path_factory):
    """Rows that hold up to three pairs, and the same pairs in rows of their own."""
    documents = make_documents(500, seed=7, mean_sentences=2, mean_tokens=10)
    store = write_store(tmp_path_factory.mktemp("packed") / "s", make_tokenizer(), documents)
    pairs = make_reader(store, max_length=LENGTH, max_predictions=SLOTS)
    packed = PackedRows(pairs, DEPTH)
    table = packed.pair_positions(np.arange(ROWS))
    assert set((table >= 0).sum(axis=1)) == {1, 2, 3}
    packed_batch, padded = packed.rows(np.arange(ROWS)), pairs.rows(table[table >= 0])
    for batch in (packed_batch, padded):
        del batch["row_ids"]
    return packed_batch, padded


@pytest.fixture(scope="module")
def params():
    return jax.tree.map(lambda x: x * 8, init_params(CONFIG, 0))


LEFT_TO_RIGHT = {"head": "causal", "direction": "left_to_right", "next_sentence": False}


def loss(config, params, batch, keys=None):
    """The loss of the config's objective, and the sums."""
    objective = make_objective(config)
    sums = objective.sums(params, batch, keys, None)
    return objective.loss(sums, objective.denominators(batch)), sums


def without(params, change):
    """The parameters of a model with this change."""
    if change.get("next_sentence", True):
        return params
    return {name: tree for name, tree in params.items() if name != "nsp_head"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "tolerance", "change"),
    [
        ("float32", 1e-5, {}),
        ("float64", 1e-10, {}),
        ("float64", 1e-10, {"scan_layers": True, "remat": "layer"}),
        ("float64", 1e-10, {"remat": "attention"}),
        ("float64", 1e-10, {"next_sentence": False}),
        ("float32", 1e-5, LEFT_TO_RIGHT),
        ("float64", 1e-10, LEFT_TO_RIGHT),
    ],
)
def test_loss_and_gradients_are_those_of_the_same_pairs_padded(
    params, batches, dtype, tolerance, change
):
    with jax.enable_x64(dtype == "float64"):
        params = jax.tree.map(lambda x: jnp.asarray(x, dtype), params)
        params = without(params, change)
        config = dataclasses.replace(CONFIG, dtype=dtype, **change)
        step = jax.jit(jax.value_and_grad(functools.partial(loss, config), has_aux=True))
        (packed, packed_sums), packed_grads = step(params, batches[0])
        (padded, padded_sums), padded_grads = step(params, batches[1])
        assert abs(packed - padded) < tolerance
        for name, total in padded_sums.items():
            np.testing.assert_allclose(packed_sums[name], total, rtol=tolerance, err_msg=name)
        leaves = jax.tree_util.tree_leaves_with_path(padded_grads)
        for (path, one), other in zip(leaves, jax.tree.leaves(packed_grads), strict=True):
            np.testing.assert_allclose(other, one, rtol=0, atol=tolerance, err_msg=str(path))
        assert max(float(jnp.abs(leaf).max()) for _, leaf in leaves) > 0.1


def test_a_pair_does_not_see_its_neighbours(params, batches):
    packed = batches[0]
    others = np.where(packed["segment_ids"] == 1, packed["input_ids"], 7)
    run = jax.jit(BertForPreTraining(CONFIG).apply)

    def logits(input_ids):
        packing = Packing(*(packed[name] for name in Packing._fields))
        inputs = (packed["token_type_ids"], None, packed["masked_positions"], None, packing)
        return run({"params": params}, input_ids, *inputs)

    mlm, nsp = logits(packed["input_ids"])
    mlm_changed, nsp_changed = logits(others)
    assert np.array_equal(nsp[:, 0], nsp_changed[:, 0])
    second = packed["pair_weights"][:, 1] > 0
    assert not np.isclose(nsp[second, 1], nsp_changed[second, 1]).any()
    segment = np.take_along_axis(packed["segment_ids"], packed["masked_positions"], axis=1)
    assert np.array_equal(mlm[segment == 1], mlm_changed[segment == 1])
    assert not np.isclose(mlm[segment == 2], mlm_changed[segment == 2]).all(axis=-1).any()


def test_a_mask_is_the_segment_ids_of_one_segment():
    query, key, value = jax.random.normal(jax.random.key(0), (3, 2, 9, 2, 4))
    mask = jnp.asarray([[1] * 9, [1] * 5 + [0] * 4])
    one, same = (
        dot_product_attention(query, key, value, Visibility(mask, packed), None, 0.0)
        for packed in (False, True)
    )
    real = np.asarray(mask) > 0  # what padding attends to differs, and reaches no loss
    assert np.array_equal(one[real], same[real])
    assert np.isfinite(same).all()


@pytest.mark.slow
@pytest.mark.parametrize("direction", [{}, LEFT_TO_RIGHT], ids=["bidirectional", "left_to_right"])
def test_microbatches_of_packed_rows_add_up(params, batches, direction):
    """With dropout; rows hold one to three pairs, so that means of means would be wrong."""
    with jax.enable_x64(True):
        params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), without(params, direction))
        optimizer = make_optimizer(OptimizerConfig(learning_rate=1e-2, warmup_steps=0), 10)
        state = TrainState(jnp.int32(0), params, optimizer.transformation.init(params))

        def step(num_microbatches, **change):
            config = dataclasses.replace(CONFIG, dtype="float64", **direction, **change)
            objective = make_objective(config)
            step = functools.partial(train_step, objective, optimizer, num_microbatches)
            return jax.jit(step)(state, batches[0], jax.random.key(1))

        (one, metrics), (four, others) = step(1), step(4)
        for (path, value), other in zip(
            jax.tree.leaves_with_path(metrics), jax.tree.leaves(others), strict=True
        ):
            np.testing.assert_allclose(other, value, rtol=1e-10, err_msg=str(path))
        for leaf, other in zip(jax.tree.leaves(one), jax.tree.leaves(four), strict=True):
            np.testing.assert_allclose(other, leaf, rtol=0, atol=1e-10)
        assert metrics["pairs"] == len(batches[1]["input_ids"])
        assert metrics["real_tokens"] == (batches[0]["segment_ids"] > 0).sum()
        _, plain = step(1, dropout_rate=0.0, attention_dropout_rate=0.0)
        assert abs(plain["loss"] - metrics["loss"]) > 1e-3


def test_a_plan_knows_the_shapes_of_packed_batches(batches):
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    for batch, rows, depth in (
        (batches[0], ROWS, DEPTH),
        (batches[1], len(batches[1]["input_ids"]), 1),
    ):
        phase = Phase(1, LENGTH, rows, SLOTS, depth)
        shapes = abstract_batch(make_objective(CONFIG), phase, mesh)
        expected = {name: (array.shape, array.dtype) for name, array in batch.items()}
        assert {name: (x.shape, x.dtype) for name, x in shapes.items()} == expected


@pytest.mark.slow
@pytest.mark.parametrize("direction", [{}, LEFT_TO_RIGHT], ids=["bidirectional", "left_to_right"])
def test_other_attentions_see_the_same_pairs_and_masks(params, batches, direction):
    """With dropout: in float64, where another bit of a mask would show."""
    with jax.enable_x64(True):
        params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), without(params, direction))
        keys = jax.random.split(jax.random.key(1), ROWS)

        def run(attention):
            change = {"dtype": "float64", "attention": attention, **direction}
            config = dataclasses.replace(CONFIG, **change)
            step = jax.value_and_grad(functools.partial(loss, config), has_aux=True)
            return jax.jit(step)(params, batches[0], keys)

        (expected, _), expected_grads = run("xla")
        for attention in ("pallas", "rows"):
            (found, _), grads = run(attention)
            assert abs(found - expected) < 1e-10
            for a, b in zip(jax.tree.leaves(grads), jax.tree.leaves(expected_grads), strict=True):
                np.testing.assert_allclose(a, b, rtol=0, atol=1e-10)
