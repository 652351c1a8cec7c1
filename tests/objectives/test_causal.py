"""The left-to-right objective: every next token is a target, and the logits come in chunks."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

from bertjax.config import ModelConfig, Phase
from bertjax.models import BertForCausalLM, Packing, init_params
from bertjax.objectives.causal import causal_objective, causal_sums, next_tokens

LENGTH, ROWS = 21, 6  # three chunks of 8, the last one filled up

CONFIG = ModelConfig(
    vocab_size=53,
    hidden_size=16,
    num_layers=2,
    num_heads=2,
    intermediate_size=24,
    max_positions=64,
    dtype="float32",
    head="causal",
    direction="left_to_right",
    next_sentence=False,
    pooler=False,
)
SEGMENTS = np.array([[1] * 5 + [2] * 9 + [3] * 4 + [0] * 3, [1] * 21, [1, 2, 3] + [0] * 18])


def make_batch(packed):
    rng = np.random.default_rng(0)
    batch = {
        "input_ids": rng.integers(0, CONFIG.vocab_size, (ROWS, LENGTH)),
        "token_type_ids": rng.integers(0, 2, (ROWS, LENGTH)),
    }
    if packed:
        segments = np.tile(SEGMENTS, (2, 1))
        starts = [[0, *(np.flatnonzero(np.diff(row)) + 1)][:3] for row in segments]
        cls = np.array([[*row, 0, 0][:3] for row in starts])
        places = np.arange(LENGTH) - [
            [cls[i, max(s - 1, 0)] for s in row] for i, row in enumerate(segments)
        ]
        batch |= {"segment_ids": segments, "position_ids": places, "cls_positions": cls}
    else:
        lengths = np.array([21, 20, 9, 2, 1, 13])
        batch["attention_mask"] = np.arange(LENGTH) < lengths[:, None]
        batch["row_weights"] = np.array([1, 1, 1, 1, 1, 0.0], np.float32)
    return {
        name: jnp.asarray(x, jnp.float32 if name == "row_weights" else jnp.int32)
        for name, x in batch.items()
    }


@pytest.fixture(scope="module")
def params():
    return jax.tree.map(lambda x: x * 8, init_params(CONFIG, 0))


def plain_targets(batch):
    """(row, place, id of the next token) of each target, as a sentence says it."""
    segments = np.asarray(batch.get("segment_ids", batch.get("attention_mask")))
    weights = np.asarray(batch.get("row_weights", np.ones(ROWS)))
    ids = np.asarray(batch["input_ids"])
    return [
        (row, place, ids[row, place + 1])
        for row in range(ROWS)
        for place in range(LENGTH - 1)
        if weights[row]
        and segments[row, place]
        and segments[row, place] == segments[row, place + 1]
    ]


def all_logits(params, batch, config=CONFIG):
    packing = None
    if "segment_ids" in batch:
        packing = Packing(*(batch[name] for name in Packing._fields))
    inputs = (batch["input_ids"], batch["token_type_ids"], batch.get("attention_mask"), None, None)
    return BertForCausalLM(config).apply({"params": params}, *inputs, packing)


@pytest.mark.parametrize("packed", [False, True])
def test_sums_are_over_every_next_token(params, batch_of, packed):
    batch = batch_of(packed)
    sums = jax.jit(functools.partial(causal_sums, CONFIG))(params, batch, None)
    logits = np.asarray(jax.jit(all_logits)(params, batch), np.float64)
    nats = correct = 0.0
    targets = plain_targets(batch)
    for row, place, token in targets:
        x = logits[row, place]
        nats += np.log(np.exp(x - x.max()).sum()) + x.max() - x[token]
        correct += x[token] == x.max()
    assert len(targets) == (2 * (4 + 8 + 3 + 20) if packed else 20 + 19 + 8 + 1)
    assert {name: x.shape for name, x in sums.items()} == dict.fromkeys(sums, ())
    np.testing.assert_allclose(sums["lm_loss_sum"], nats, rtol=1e-6)
    assert (sums["lm_weight"], sums["lm_correct"]) == (len(targets), correct)


@pytest.fixture(scope="module")
def batch_of():
    return functools.cache(make_batch)


@pytest.mark.parametrize("packed", [False, True])
def test_gradients_are_those_of_all_logits_at_once(params, batch_of, packed):
    batch = batch_of(packed)

    def plain(params):
        targets, weights = next_tokens(batch)
        log_p = jax.nn.log_softmax(all_logits(params, batch))
        chosen = jnp.take_along_axis(log_p, targets[..., None], axis=-1)[..., 0]
        return -jnp.sum(chosen * weights)

    def chunked(params):
        return causal_sums(CONFIG, params, batch, None)["lm_loss_sum"]

    found, expected = (jax.jit(jax.grad(f))(params) for f in (chunked, plain))
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=2e-5 * max(1.0, float(abs(b).max())))


@pytest.mark.parametrize("attention", ["xla", "rows", "pallas"])
@pytest.mark.parametrize("packed", [False, True])
def test_no_token_sees_a_later_one(params, batch_of, packed, attention):
    batch = batch_of(packed)
    config = dataclasses.replace(CONFIG, attention=attention)
    run = jax.jit(functools.partial(all_logits, config=config))
    before = run(params, batch)
    # What stands at padding reaches no loss, and differs between the paths.
    is_token = np.asarray(batch["segment_ids" if packed else "attention_mask"]) > 0
    for place in (4, 13):
        other = batch["input_ids"].at[:, place:].add(1) % CONFIG.vocab_size
        after = run(params, {**batch, "input_ids": other})
        earlier = is_token & (np.arange(LENGTH) < place)
        np.testing.assert_array_equal(before[earlier], after[earlier])
        assert float(abs(before[0, place] - after[0, place]).max()) > 1e-3


def test_packed_rows_give_what_their_segments_give_alone(params, batch_of):
    batch = batch_of(True)
    run = jax.jit(all_logits)
    logits = np.asarray(run(params, batch))
    for row, segments in enumerate(np.asarray(batch["segment_ids"])[:3]):
        for number in range(1, segments.max() + 1):
            places = np.flatnonzero(segments == number)
            one = {
                "input_ids": batch["input_ids"][row : row + 1, places],
                "token_type_ids": batch["token_type_ids"][row : row + 1, places],
                "attention_mask": jnp.ones((1, len(places)), jnp.int32),
            }
            np.testing.assert_allclose(run(params, one)[0], logits[row, places], rtol=0, atol=1e-4)


@pytest.mark.parametrize("length", [32, 128, 127])
def test_logits_of_all_positions_never_exist_at_once(length):
    """The largest array with a column per id has as many rows as a masked run's."""
    config = dataclasses.replace(CONFIG, vocab_size=509, max_positions=128)
    phase = Phase(1, length, 2, 0, 1)
    objective = causal_objective(config)
    batch = {
        name: jax.ShapeDtypeStruct(shape, dtype)
        for name, (shape, dtype) in objective.fields(phase).items()
    }
    abstract = jax.eval_shape(lambda: init_params(config, 0))

    def loss(params, batch):
        return objective.sums(params, batch, None, None)["lm_loss_sum"]

    text = jax.jit(jax.grad(loss)).lower(abstract, batch).compile().as_text()
    shapes = {tuple(map(int, found.split(","))) for found in re.findall(r"f32\[([\d,]+)\]", text)}
    with_ids = [shape for shape in shapes if 509 in shape and 16 not in shape]
    places = max(np.prod(shape) // 509 for shape in with_ids)
    assert places <= 2 * 4 * -(-0.15 * length // 4), with_ids


def test_logits_are_not_computed_again_for_the_gradients():
    """The vocabulary is in three products: the logits, and the gradients of both of its factors."""
    batch, abstract = make_batch(False), jax.eval_shape(lambda: init_params(CONFIG, 0))

    def loss(params):
        return causal_sums(CONFIG, params, batch, None)["lm_loss_sum"]

    def products(jaxpr):
        for equation in jaxpr.eqns:
            if equation.primitive.name == "dot_general":
                yield {n for x in (*equation.invars, *equation.outvars) for n in x.aval.shape}
            for inner in jaxprs_in_params(equation.params):
                yield from products(inner)

    found = list(products(jax.make_jaxpr(jax.grad(loss))(abstract).jaxpr))
    assert sum(CONFIG.vocab_size in sizes for sizes in found) == 3


def test_the_objective_asks_for_rows_without_masks():
    fields = causal_objective(CONFIG).fields(Phase(1, 16, 4, 4, 1))
    assert set(fields) == {
        "input_ids", "token_type_ids", "attention_mask", "next_sentence_labels", "row_weights"
    }  # fmt: skip
    assert "cls_positions" in causal_objective(CONFIG).fields(Phase(1, 16, 4, 4, 3))


def test_microbatches_add_up_to_the_batch(params, batch_of):
    batch = batch_of(False)
    objective = causal_objective(CONFIG)
    denominators = objective.denominators(batch)

    @jax.jit
    @jax.value_and_grad
    def run(params, part):
        return objective.loss(objective.sums(params, part, None, None), denominators)

    whole = run(params, batch)
    parts = [{name: x[i : i + 2] for name, x in batch.items()} for i in range(0, ROWS, 2)]
    summed = jax.tree.map(lambda *x: sum(x), *(run(params, part) for part in parts))
    for a, b in zip(jax.tree.leaves(summed), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5)
