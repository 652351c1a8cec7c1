"""The pre-training objective: sums, denominators, and microbatches that add up to the batch."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bertjax.config import ModelConfig, Phase
from bertjax.heads import HEADS, heads_trained_on
from bertjax.models import BertForPreTraining, init_params
from bertjax.objectives.cross_entropy import weighted_sums
from bertjax.objectives.objective import make_objective
from bertjax.objectives.pretraining import (
    pretraining_denominators,
    pretraining_loss,
    pretraining_metrics,
    pretraining_sums,
)

CONFIG = ModelConfig(
    vocab_size=53,
    hidden_size=16,
    num_layers=1,
    num_heads=2,
    intermediate_size=24,
    max_positions=10,
    dtype="float32",
)
ROWS, LENGTH, SLOTS = 8, 10, 4


@pytest.fixture(scope="module")
def params():
    return jax.tree.map(lambda x: x * 8, init_params(CONFIG, 0))


@pytest.fixture(scope="module")
def batch():
    """Rows with one to four masked tokens, so that means of means would be wrong."""
    rng = np.random.default_rng(0)
    slots = np.arange(SLOTS) < np.resize([1, 4, 2, 4], ROWS)[:, None]
    arrays = {
        "input_ids": rng.integers(0, CONFIG.vocab_size, (ROWS, LENGTH)),
        "token_type_ids": rng.integers(0, 2, (ROWS, LENGTH)),
        "attention_mask": np.arange(LENGTH) < rng.integers(6, LENGTH, (ROWS, 1)),
        "masked_positions": np.sort(rng.integers(1, 6, (ROWS, SLOTS))) * slots,
        "masked_ids": rng.integers(0, CONFIG.vocab_size, (ROWS, SLOTS)) * slots,
        "next_sentence_labels": np.arange(ROWS) // 2 % 2,
    }
    batch = {name: jnp.asarray(array, jnp.int32) for name, array in arrays.items()}
    batch["masked_weights"] = jnp.asarray(slots, jnp.float32)
    batch["row_weights"] = jnp.ones(ROWS)
    return batch


def row_keys(rows):
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(jax.random.key(7), jnp.arange(rows))


def jitted_sums(config=CONFIG):
    sums = functools.partial(pretraining_sums, BertForPreTraining(config))
    return jax.jit(sums)


def test_sums_are_those_of_the_formula(params, batch):
    inputs = ("input_ids", "token_type_ids", "attention_mask", "masked_positions")
    apply = jax.jit(BertForPreTraining(CONFIG).apply)
    logits = apply({"params": params}, *(batch[name] for name in inputs))
    predicted = jnp.argmax(logits[0], axis=-1)
    odd_rows = jnp.arange(ROWS)[:, None] % 2 == 1  # these are predicted correctly
    batch = {**batch, "masked_ids": jnp.where(odd_rows, predicted, batch["masked_ids"])}
    sums = jitted_sums()(params, batch, None)
    expected = {}
    for task, task_logits, labels, weights in (
        ("mlm", logits[0], batch["masked_ids"], batch["masked_weights"]),
        ("nsp", logits[1], batch["next_sentence_labels"], batch["row_weights"]),
    ):
        x = np.asarray(task_logits, np.float64)
        probabilities = np.exp(x) / np.exp(x).sum(-1, keepdims=True)
        one_hot = np.eye(x.shape[-1])[np.asarray(labels)]
        loss = -np.log((probabilities * one_hot).sum(-1))
        correct = x.argmax(-1) == labels
        expected[f"{task}_loss_sum"] = (loss * weights).sum()
        expected[f"{task}_weight"] = weights.sum()
        expected[f"{task}_correct"] = (correct * weights).sum()
    assert sums.keys() == expected.keys()
    for name, total in sums.items():
        assert (total.shape, total.dtype) == ((), jnp.float32), name
        np.testing.assert_allclose(total, expected[name], rtol=1e-5, err_msg=name)
    assert 0 < sums["nsp_correct"] < ROWS
    assert 16 <= sums["mlm_correct"] < 22
    denominators = pretraining_denominators(batch)
    assert denominators == {name: sums[name] for name in ("mlm_weight", "nsp_weight")}
    np.testing.assert_allclose(
        pretraining_loss(sums, denominators),
        expected["mlm_loss_sum"] / (22 + 1e-5) + expected["nsp_loss_sum"] / ROWS,
        rtol=1e-6,
    )


AT_ONCE = pytest.mark.parametrize("at_once", [False, True])


@AT_ONCE
def test_cross_entropy_is_stable_for_large_logits(at_once):
    logits = jnp.asarray([[100.0, -100.0, 0.0], [-100.0, -100.0, -100.0]])  # exp overflows
    weights = jnp.asarray([1.0, 10.0])
    loss, weight, correct = weighted_sums(logits, jnp.asarray([1, 2]), weights, at_once)
    np.testing.assert_allclose(loss, 200 + 10 * np.log(3), rtol=1e-5)
    assert (weight, correct) == (11, 10)  # of equal logits each counts as the largest


@AT_ONCE
@pytest.mark.parametrize("classes", [2, 130, 1_000])
def test_gradients_of_the_logits_are_probabilities_less_the_label(classes, at_once):
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 20, (3, 5, classes)).astype(np.float32)
    labels = rng.integers(0, classes, (3, 5))
    weights = rng.integers(0, 2, (3, 5)).astype(np.float32)

    def loss(logits):
        return weighted_sums(logits, labels, jnp.asarray(weights), at_once)[0]

    gradient = jax.jit(jax.grad(loss))(logits)
    x = np.asarray(logits, np.float64)
    probabilities = np.exp(x - x.max(-1, keepdims=True))
    probabilities /= probabilities.sum(-1, keepdims=True)
    expected = (probabilities - np.eye(classes)[labels]) * weights[..., None]
    np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_losses_and_gradients_of_microbatches_add_up_to_those_of_the_batch(params, batch):
    """With dropout; in float64, where only the order of the sums may differ."""
    with jax.enable_x64(True):
        params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), params)
        model = BertForPreTraining(dataclasses.replace(CONFIG, dtype="float64"))
        denominators = pretraining_denominators(batch)

        def loss(params, part, keys):
            return pretraining_loss(pretraining_sums(model, params, part, keys), denominators)

        loss_and_gradients = jax.jit(jax.value_and_grad(loss))
        keys = row_keys(ROWS)
        whole = loss_and_gradients(params, batch, keys)
        parts = [
            loss_and_gradients(
                params,
                {name: array[row : row + 1] for name, array in batch.items()},
                keys[row : row + 1],
            )
            for row in range(ROWS)
        ]
        total = jax.tree.map(lambda *leaves: sum(leaves), *parts)
        for ours, expected in zip(jax.tree.leaves(total), jax.tree.leaves(whole), strict=True):
            np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-12)
        assert max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(whole[1])) > 0.1


def test_rows_that_pad_a_batch_count_for_nothing(params, batch):
    sums_of = jitted_sums()
    padded = {name: array.at[5:].set(0) for name, array in batch.items()}
    real = {name: array[:5] for name, array in batch.items()}
    sums, expected = (sums_of(params, rows, None) for rows in (padded, real))
    for name, total in sums.items():
        np.testing.assert_allclose(total, expected[name], rtol=1e-6, err_msg=name)
    nothing = {name: jnp.zeros_like(array) for name, array in batch.items()}
    sums = sums_of(params, nothing, None)
    assert pretraining_loss(sums, pretraining_denominators(nothing)) == 0
    assert {float(mean) for mean in pretraining_metrics(sums, next_sentence=True).values()} == {0.0}


def test_without_next_sentence_its_sums_are_zero(params, batch):
    config = dataclasses.replace(CONFIG, next_sentence=False)
    without = {name: tree for name, tree in params.items() if name != "nsp_head"}
    sums = jitted_sums(config)(without, batch, None)
    assert sums["nsp_loss_sum"] == sums["nsp_weight"] == sums["nsp_correct"] == 0
    both = jitted_sums()(params, batch, None)
    for name in ("mlm_loss_sum", "mlm_weight", "mlm_correct"):
        np.testing.assert_allclose(sums[name], both[name], rtol=1e-6)
    loss = pretraining_loss(sums, pretraining_denominators(batch))
    np.testing.assert_allclose(loss, sums["mlm_loss_sum"] / (22 + 1e-5), rtol=1e-6)
    metrics = pretraining_metrics(sums, next_sentence=False)
    assert metrics.keys() == {"mlm_loss", "mlm_accuracy"}


@pytest.mark.parametrize("name", heads_trained_on("store"))
def test_the_sum_that_counts_predicted_tokens_is_one_that_the_objective_has(name):
    changes = {"direction": "left_to_right", "next_sentence": False}
    changes = changes if HEADS[name].predicts_next else {}
    objective = make_objective(dataclasses.replace(CONFIG, head=name, **changes))
    batch = {
        field: jax.ShapeDtypeStruct(shape, dtype)
        for field, (shape, dtype) in objective.fields(Phase(1, LENGTH, ROWS)).items()
    }
    assert objective.predicted in jax.eval_shape(objective.denominators, batch)
