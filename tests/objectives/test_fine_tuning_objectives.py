"""The losses of fine-tuning against their formulas, and rows that weigh nothing."""

from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bertjax.config import MeshConfig, ModelConfig, Phase
from bertjax.data.stream.example_rows import ExampleRows, batches_by_length, take_rows
from bertjax.heads import heads_trained_on
from bertjax.models import init_params, make_model
from bertjax.objectives.fine_tuning import fine_tuning_sums, run_model
from bertjax.objectives.objective import abstract_batch, make_objective
from bertjax.parallel.sharding import make_mesh

ROWS, LENGTH, LABELS = 6, 9, 4


def model(head):
    return ModelConfig(
        vocab_size=50,
        hidden_size=8,
        num_layers=1,
        num_heads=2,
        intermediate_size=8,
        max_positions=16,
        dtype="float32",
        head=head,
        num_labels=LABELS if head in ("classification", "tagging") else 1,
    )


def make_batch(head, rng):
    def ids(limit, *shape):
        return rng.integers(0, limit, shape).astype(np.int32)

    mask = (np.arange(LENGTH) < rng.integers(3, LENGTH, (ROWS, 1))).astype(np.int32)
    batch = {
        "input_ids": ids(50, ROWS, LENGTH),
        "token_type_ids": ids(2, ROWS, LENGTH),
        "attention_mask": mask,
        "row_weights": np.array([1, 1, 0, 1, 1, 0], np.float32),
    }
    answers = {
        "classification": {"labels": ids(LABELS, ROWS)},
        "regression": {"targets": rng.normal(size=ROWS).astype(np.float32)},
        "span": {"start_positions": ids(LENGTH, ROWS), "end_positions": ids(LENGTH, ROWS)},
        "tagging": {
            "tag_ids": ids(LABELS, ROWS, LENGTH),
            "tag_weights": (mask * ids(2, ROWS, LENGTH)).astype(np.float32),
        },
    }
    return batch | answers[head]


def make_outputs(head, rng):
    shapes = {
        "classification": (ROWS, LABELS),
        "regression": (ROWS,),
        "span": (ROWS, LENGTH),
        "tagging": (ROWS, LENGTH, LABELS),
    }
    names = {"regression": ["values"], "span": ["start_logits", "end_logits"]}
    return {
        name: rng.normal(size=shapes[head]).astype(np.float32)
        for name in names.get(head, ["logits"])
    }


def nats(logits, label):
    """-log softmax(logits)[label] in float64."""
    logits = logits.astype(np.float64)
    return np.log(np.exp(logits).sum()) - logits[label]


def expected_loss(head, outputs, batch):
    """Straight from the table in the module, one row after the other."""
    losses = []
    for row in np.flatnonzero(batch["row_weights"]):
        if head == "classification":
            losses.append(nats(outputs["logits"][row], batch["labels"][row]))
        elif head == "regression":
            losses.append((outputs["values"][row] - batch["targets"][row]) ** 2)
        elif head == "span":
            start = nats(outputs["start_logits"][row], batch["start_positions"][row])
            end = nats(outputs["end_logits"][row], batch["end_positions"][row])
            losses.append((start + end) / 2)
        else:
            for column in np.flatnonzero(batch["tag_weights"][row]):
                logits = outputs["logits"][row, column]
                losses.append(nats(logits, batch["tag_ids"][row, column]))
    return np.mean(losses)


@pytest.mark.parametrize("head", heads_trained_on("task"))
def test_the_loss_is_the_mean_over_rows_or_tags_that_count(head):
    rng = np.random.default_rng(1)
    batch, outputs = make_batch(head, rng), make_outputs(head, rng)
    objective = make_objective(model(head))
    sums = fine_tuning_sums(model(head), outputs, batch)
    loss = objective.loss(sums, objective.denominators(batch))
    assert float(loss) == pytest.approx(expected_loss(head, outputs, batch), rel=1e-5)
    # In an evaluation the sums are their own denominators.
    assert float(objective.loss(sums, sums)) == pytest.approx(float(loss), rel=1e-6)


def test_accuracy_counts_what_is_wholly_right():
    rng = np.random.default_rng(2)
    batch = make_batch("span", rng)
    outputs = {}
    for name, positions in (("start", "start_positions"), ("end", "end_positions")):
        outputs[f"{name}_logits"] = np.eye(LENGTH, dtype=np.float32)[batch[positions]]
    outputs["end_logits"][0] = np.roll(outputs["end_logits"][0], 1)  # of four rows that count
    objective = make_objective(model("span"))
    sums = fine_tuning_sums(model("span"), outputs, batch)
    assert float(objective.metrics(sums)["accuracy"]) == pytest.approx(0.75)
    regression = make_objective(model("regression"))
    outputs = make_outputs("regression", rng)
    sums = fine_tuning_sums(model("regression"), outputs, make_batch("regression", rng))
    assert regression.metrics(sums) == {}


@pytest.mark.slow
@pytest.mark.parametrize("head", heads_trained_on("task"))
def test_gradients_of_parts_add_up_to_those_of_the_batch(head):
    config = model(head)
    objective = make_objective(config)
    params = jax.tree.map(lambda x: 8 * x, init_params(config, 0))
    batch = make_batch(head, np.random.default_rng(3))
    denominators = objective.denominators(batch)

    def loss(params, part):
        return objective.loss(objective.sums(params, part, None, None), denominators)

    @jax.jit
    def gradient(part):
        return jax.grad(loss)(params, part)

    parts = [{name: x[rows] for name, x in batch.items()} for rows in (slice(2), slice(2, 6))]
    added = jax.tree.map(lambda x, y: x + y, *map(gradient, parts))
    for one, other in zip(*map(jax.tree.leaves, (gradient(batch), added)), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)
    assert any(jnp.any(x != 0) for x in jax.tree.leaves(added))


@pytest.mark.parametrize("head", heads_trained_on("task"))
def test_a_batch_has_the_shapes_that_are_compiled_for(head):
    config = model(head)
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    shapes = abstract_batch(make_objective(config), Phase(1, LENGTH, ROWS), mesh)
    batch = make_batch(head, np.random.default_rng(4))
    assert {k: (x.shape, x.dtype) for k, x in batch.items()} == {
        k: (x.shape, np.dtype(x.dtype)) for k, x in shapes.items()
    }
    outputs = run_model(make_model(config), config, init_params(config, 0), batch)
    expected = make_outputs(head, np.random.default_rng(5))
    assert {k: x.shape for k, x in outputs.items()} == {k: x.shape for k, x in expected.items()}


# Rows


ARRAYS = {
    "input_ids": np.arange(21, dtype=np.int32).reshape(7, 3),
    "row_weights": np.ones(7, np.float32),
}


def test_every_row_comes_once_an_epoch_in_another_order():
    rows = ExampleRows(ARRAYS, seed=0)
    epochs = [rows.rows(np.arange(7) + 7 * epoch) for epoch in range(3)]
    for epoch in epochs:
        assert sorted(epoch["row_ids"]) == list(range(7))
        np.testing.assert_array_equal(epoch["input_ids"], ARRAYS["input_ids"][epoch["row_ids"]])
    assert len({tuple(epoch["row_ids"]) for epoch in epochs}) == 3
    other = ExampleRows(ARRAYS, seed=1).rows(np.arange(7))
    assert tuple(other["row_ids"]) != tuple(epochs[0]["row_ids"])


def test_a_row_depends_on_its_position_alone():
    rows = ExampleRows(ARRAYS, seed=0)
    whole = rows.rows(np.arange(30))["row_ids"]
    parts = [rows.rows(np.arange(i, i + 3))["row_ids"] for i in range(0, 30, 3)]
    np.testing.assert_array_equal(whole, np.concatenate(parts))


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize(
    ("num_lengths", "longest", "share"), [(4, 64, 0.35), (8, 64, 0.3), (4, 20, 1.0), (4, 5, 1.0)]
)
def test_batches_by_length_hold_each_row_once_and_little_padding(
    shards, num_lengths, longest, share
):
    lengths = np.random.default_rng(0).geometric(0.1, 2_000).clip(3, longest)
    batches = batches_by_length(
        lengths, longest, num_lengths=num_lengths, shards=shards, tokens_per_shard=256
    )
    rows = np.concatenate([batch.positions[batch.positions >= 0] for batch in batches])
    assert sorted(rows) == list(range(2_000))
    for positions, length in batches:
        assert lengths[positions[positions >= 0]].max() <= length <= longest
        rows_a_shard, rest = divmod(len(positions), shards)
        assert rest == 0
        assert rows_a_shard == 1 or rows_a_shard * length <= 256
    shapes = Counter((len(b.positions), b.length) for b in batches)
    assert len(shapes) <= num_lengths
    assert all(n >= 4 for (_, length), n in shapes.items() if length < longest)
    assert sum((batch.positions < 0).any() for batch in batches) <= 1
    if longest == 64:
        tokens = sum(len(batch.positions) * batch.length for batch in batches)
        assert lengths.sum() < tokens < share * 2_000 * longest


def test_few_rows_are_one_batch():
    (batch,) = batches_by_length(
        np.array([3, 30, 4]), 40, num_lengths=4, shards=1, tokens_per_shard=8_192
    )
    assert (batch.length, sorted(batch.positions)) == (40, [0, 1, 2])
    (batch,) = batches_by_length(
        np.array([3, 30, 4]), 40, num_lengths=4, shards=8, tokens_per_shard=8_192
    )
    assert sorted(batch.positions) == [-1] * 5 + [0, 1, 2]


def test_taken_rows_are_cut_and_none_weighs_nothing():
    arrays = {**ARRAYS, "labels": np.arange(7)}
    batch = take_rows(arrays, np.array([5, -1, 2]), 2)
    np.testing.assert_array_equal(batch["input_ids"][::2], ARRAYS["input_ids"][[5, 2], :2])
    assert batch["row_weights"].tolist() == [1, 0, 1]
    assert batch["labels"][::2].tolist() == [5, 2]


def test_answers_of_rows_stay_whole_where_they_are_as_many_as_tokens():
    length = ARRAYS["input_ids"].shape[1]
    arrays = {**ARRAYS, "labels": np.ones((7, length)), "tag_ids": np.ones((7, length))}
    batch = take_rows(arrays, np.array([5, 2]), 2)
    assert batch["labels"].shape == (2, length)
    assert batch["tag_ids"].shape == batch["input_ids"].shape == (2, 2)
