"""The lookup's gradient in sorted order: against sums in float64, and its program."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

from bertjax.config import ModelConfig
from bertjax.models import lookup
from bertjax.models.bert import Embeddings
from bertjax.models.lookup import add_rows_by_id, look_up

WIDTH = 4
SORTED = ModelConfig(
    vocab_size=211, hidden_size=WIDTH, num_heads=1, dtype="float32", lookup_gradient="sorted"
)
SCATTER = dataclasses.replace(SORTED, lookup_gradient="scatter")
RNG = np.random.default_rng(0)
IDS = {
    "one token": np.array([[7]]),
    "one block": RNG.integers(0, 211, (4, 32)),
    "no multiple of a block": RNG.integers(0, 211, (7, 43)),
    "all equal": np.full((16, 128), 5),
    "the first and the last": RNG.choice([0, 210], (9, 100)),
    # Runs of whole blocks and more on three levels, as padding makes them.
    "runs of many blocks": np.sort(RNG.geometric(0.05, 9_000) % 211).reshape(90, 100),
    "each once": RNG.permutation(211)[None],
}


@pytest.mark.parametrize("ids", IDS.values(), ids=IDS.keys())
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-15), ("float32", 1e-6)])
def test_gradients_are_the_sums_of_each_ids_rows(ids, dtype, tolerance):
    rows = RNG.normal(size=(*ids.shape, WIDTH)).astype(dtype)
    expected = np.zeros((211, WIDTH), np.longdouble)
    np.add.at(expected, ids, rows)
    largest = np.abs(expected).max()
    with jax.enable_x64(dtype == "float64"):
        table, rows = jnp.ones((211, WIDTH), dtype), jnp.asarray(rows)
        found, scattered = (
            np.asarray(jax.jit(jax.grad(lambda x, c=c: (look_up(c, x, ids) * rows).sum()))(table))
            for c in (SORTED, SCATTER)
        )
    assert found.dtype == scattered.dtype == dtype
    assert np.abs(found - expected).max() <= tolerance * largest
    # One by one, rows that are all of one id are rounded more.
    assert np.abs(found - scattered).max() <= 10 * tolerance * largest


def test_long_sums_in_float32_are_rounded_less_than_one_by_one():
    ids = np.zeros(16_384, np.int32)
    rows = RNG.normal(1, 1, (ids.size, 3)).astype(np.float32)
    expected = rows.sum(axis=0, dtype=np.float64)
    found = jax.jit(functools.partial(add_rows_by_id, 1))(ids, rows)[0]
    one_by_one = np.cumsum(rows, axis=0, dtype=np.float32)[-1]
    assert np.abs(found - expected).max() < 0.5 * np.abs(one_by_one - expected).max()


def test_rows_of_no_id_are_not_added():
    ids = np.array([3, -1, 211, 3, 500])
    found = add_rows_by_id(211, ids, jnp.ones((5, 2)))
    expected = np.zeros((211, 2))
    expected[3] = 2
    np.testing.assert_array_equal(found, expected)


def test_values_are_those_of_take():
    table, ids = RNG.normal(size=(211, WIDTH)).astype(np.float32), IDS["one block"]
    np.testing.assert_array_equal(look_up(SORTED, table, ids), table[ids])


def scatters(jaxpr):
    for equation in jaxpr.eqns:
        if equation.primitive.name.startswith("scatter"):
            yield equation
        for inner in jaxprs_in_params(equation.params):
            yield from scatters(inner)


@pytest.mark.parametrize(("config", "exact"), [(SORTED, True), (SCATTER, False)])
def test_what_is_scattered_has_indices_of_its_own(config, exact):
    """Both tables: words, and positions of packed rows."""
    ids = jnp.zeros((4, 100), jnp.int32)
    embeddings = Embeddings(config)
    params = jax.eval_shape(embeddings.init, jax.random.key(0), ids, ids, None)["params"]

    def loss(params):
        return embeddings.apply({"params": params}, ids, ids, None, ids).sum()

    found = list(scatters(jax.make_jaxpr(jax.grad(loss))(params).jaxpr))
    assert len(found) >= 2
    assert {x.params["unique_indices"] for x in found} == {exact}
    assert {x.primitive.name for x in found} == {"scatter" if exact else "scatter-add"}


def test_indices_that_are_promised_to_be_unique_are():
    """XLA may do anything if they are not."""
    for name, ids in IDS.items():
        add = jax.jit(functools.partial(lookup._add_runs, 211))
        pairs = add(jnp.sort(ids.ravel()), jnp.ones((ids.size, 1)))
        own = np.concatenate([x for x, _ in pairs])
        own = own[own < 211]
        assert len(set(own)) == len(own), name
        assert set(own) == set(ids.ravel()), name
