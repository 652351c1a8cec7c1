"""The model: parameters, initialisation, masks, dtypes, dropout, scan and remat.

Its numbers are compared with transformers in test_model_goldens.py. The parameter files in goldens/
are a public format: they change only with a new checkpoint format.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from folders import GOLDENS
from jax.extend.core import jaxprs_in_params

from bertjax.config import ModelConfig
from bertjax.models import (
    BertEncoder,
    BertForPreTraining,
    Packing,
    abstract_params,
    compute_dtype,
    dropout,
    init_params,
    split_row_keys,
)
from bertjax.models.attention import dot_product_attention
from bertjax.models.bert import Embeddings, EncoderLayer, cast_layer
from bertjax.models.inspection import inspect_layers
from bertjax.models.layer_norm import LayerNorm, normalise
from bertjax.models.layers import dense, wide_product
from bertjax.models.layers import gelu as activation
from bertjax.models.visibility import Visibility
from bertjax.parallel.partition import AXES

BASE = ModelConfig()
LARGE = ModelConfig(hidden_size=1024, num_layers=24, num_heads=16, intermediate_size=4096)
SMALL = ModelConfig(
    vocab_size=211,
    hidden_size=16,
    num_layers=2,
    num_heads=2,
    intermediate_size=24,
    max_positions=16,
    dtype="float32",
)
ROWS, LENGTH = 8, 12


def flatten(tree):
    return {
        "/".join(key.key for key in path): leaf for path, leaf in jax.tree.leaves_with_path(tree)
    }


def make_inputs(config=SMALL, rows=ROWS, length=LENGTH):
    """input_ids, token_type_ids, attention_mask and masked_positions, with padding."""
    rng = np.random.default_rng(0)
    mask = np.arange(length) < rng.integers(length // 2, length, (rows, 1))
    ids = rng.integers(0, config.vocab_size, (rows, length)) * mask
    types = (np.arange(length) >= 4) & mask
    positions = np.sort(rng.integers(1, length // 2, (rows, 3)))
    return [jnp.asarray(x, jnp.int32) for x in (ids, types, mask, positions)]


def make_row_keys(rows=ROWS):
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(jax.random.key(7), jnp.arange(rows))


@pytest.fixture(scope="module")
def params():
    """Parameters with kernels large enough for every path to matter."""
    return jax.tree.map(lambda x: x * 8, init_params(SMALL, 0))


# Parameters


@pytest.mark.parametrize(
    ("config", "name", "total"), [(BASE, "base", 110_106_428), (LARGE, "large", 336_226_108)]
)
def test_paths_and_shapes_are_the_published_format(config, name, total):
    shapes = abstract_params(config)
    lines = [f"{path}\t{leaf.shape}" for path, leaf in sorted(flatten(shapes).items())]
    assert lines == (GOLDENS / f"parameters_{name}.txt").read_text().splitlines()
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == total
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype(jnp.float32)}


@pytest.mark.parametrize("change", [{}, {"scan_layers": True}, {"next_sentence": False}])
def test_abstract_params_describe_the_real_ones(change):
    config = dataclasses.replace(SMALL, **change)
    real = init_params(config, 0)
    expected = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), real)
    assert abstract_params(config) == expected
    assert ("nsp_head" in real) == config.next_sentence
    assert type(real) is type(real["encoder"]["layer_0"]) is dict


@pytest.mark.slow
def test_encoder_alone_reads_the_same_tree(params):
    ids, types, mask, positions = make_inputs()
    hidden_states, pooled = BertEncoder(SMALL).apply({"params": params}, ids, types, mask)
    assert hidden_states.shape == (ROWS, LENGTH, SMALL.hidden_size)
    assert pooled.shape == (ROWS, SMALL.hidden_size)
    _, nsp_logits = BertForPreTraining(SMALL).apply({"params": params}, ids, types, mask, positions)
    head = params["nsp_head"]
    np.testing.assert_allclose(pooled @ head["kernel"] + head["bias"], nsp_logits, atol=1e-6)


# Initialisation


@pytest.mark.slow
def test_initial_values_follow_the_reference():
    config = dataclasses.replace(SMALL, vocab_size=2_003, hidden_size=64, intermediate_size=256)
    for path, leaf in flatten(init_params(config, 3)).items():
        x = np.asarray(leaf, np.float64)
        if path.endswith("bias"):
            assert not x.any(), path
        elif path.endswith("scale"):
            assert (x == 1).all(), path
        else:
            # The normal distribution cut at two standard deviations has 0.8796 of its deviation.
            assert np.abs(x).max() <= 0.04, path
            error = x.std() / (0.02 * 0.87962566) - 1
            assert abs(error) < 5 / np.sqrt(2 * x.size), path
            assert abs(x.mean()) < 5 * 0.0176 / np.sqrt(x.size), path


@pytest.mark.slow
def test_initial_values_depend_on_seed_and_path_alone():
    reference = flatten(init_params(SMALL, 5))
    changed = dataclasses.replace(
        SMALL, num_layers=1, next_sentence=False, scan_layers=True, remat="layer", dtype="bfloat16"
    )
    fewer = flatten(init_params(changed, 5))
    assert set(fewer) < set(reference)
    traced = flatten(jax.jit(lambda seed: init_params(changed, seed))(5))
    for path, leaf in fewer.items():
        np.testing.assert_array_equal(leaf, reference[path], err_msg=path)
        # As one program, XLA may fuse the last products: the same draws to the last bit or so.
        np.testing.assert_allclose(leaf, traced[path], rtol=1e-6, err_msg=path)
    drawn = {path for path in reference if not path.endswith(("bias", "scale"))}
    other = flatten(init_params(SMALL, 6))
    for path, leaf in reference.items():
        assert (path in drawn) == bool((np.asarray(leaf) != other[path]).all()), path
    assert len({np.asarray(reference[path]).flat[0] for path in drawn}) == len(drawn)


# Forward pass


def test_padding_reaches_no_real_token(params):
    ids, types, mask, _ = make_inputs()
    other_ids = jnp.where(mask == 1, ids, 100)
    assert (other_ids != ids).any()
    outputs = [
        BertEncoder(SMALL).apply({"params": params}, x, types, mask)[0] for x in (ids, other_ids)
    ]
    real = np.asarray(mask, bool)
    np.testing.assert_array_equal(outputs[0][real], outputs[1][real])
    assert (np.asarray(outputs[0])[~real] != np.asarray(outputs[1])[~real]).any()


@pytest.mark.parametrize("direction", ["bidirectional", "left_to_right"])
def test_the_pooled_token_is_the_first_or_the_last_of_a_row_or_segment(params, direction):
    config = dataclasses.replace(SMALL, direction=direction)
    encoder = BertEncoder(config)
    ids, types, mask, _ = make_inputs()
    lengths = np.asarray(mask).sum(axis=1)
    assert len(set(lengths.tolist())) > 1

    def pool(vectors):
        return jnp.tanh(vectors @ params["pooler"]["kernel"] + params["pooler"]["bias"])

    hidden, pooled = encoder.apply({"params": params}, ids, types, mask)
    places = lengths - 1 if direction == "left_to_right" else 0 * lengths
    expected = pool(np.asarray(hidden)[np.arange(ROWS), places])
    np.testing.assert_allclose(pooled, expected, rtol=0, atol=1e-6)
    segments = np.array([[1] * 3 + [2] * 5 + [0] * 4, [1] * 12])
    first = np.array([[0, 3], [0, 0]])
    packing = Packing(jnp.asarray(segments), jnp.zeros((2, LENGTH), int), jnp.asarray(first))
    hidden, pooled = encoder.apply({"params": params}, ids[:2], types[:2], None, None, packing)
    last = np.array([[2, 7], [11, 0]])
    places = last if direction == "left_to_right" else first
    expected = pool(np.take_along_axis(np.asarray(hidden), places[:, :, None], axis=1))
    used = segments.max(axis=1)[:, None] > np.arange(2)  # the second row has one segment
    np.testing.assert_allclose(pooled[used], expected[used], rtol=0, atol=1e-6)


@pytest.mark.parametrize("direction", ["bidirectional", "left_to_right"])
def test_what_is_looked_at_inside_has_the_direction(params, direction):
    config = dataclasses.replace(SMALL, direction=direction)
    ids, types, mask, _ = make_inputs()
    _, attentions = inspect_layers(BertEncoder(config), params, ids, types, mask)
    later = np.triu(np.ones((LENGTH, LENGTH), bool), 1)
    assert (np.asarray(attentions)[..., later] == 0).all() == (direction == "left_to_right")
    np.testing.assert_allclose(attentions.sum(axis=-1), 1, rtol=0, atol=1e-5)


def test_a_row_of_padding_alone_stays_finite(params):
    ids, types, mask, positions = make_inputs()
    logits = BertForPreTraining(SMALL).apply(
        {"params": params}, ids, types, mask.at[2].set(0), positions
    )
    assert all(np.isfinite(x).all() for x in logits)


def equations(jaxpr, name=None):
    """Every use of a primitive, or of all, in a program, those in its loops and kernels too."""
    for equation in jaxpr.eqns:
        if name in (None, equation.primitive.name):
            yield equation
        for inner in jaxprs_in_params(equation.params):
            yield from equations(inner, name)


def test_wide_operations_are_float32_in_bfloat16(params):
    config = dataclasses.replace(SMALL, dtype="bfloat16", gelu="erf")
    inputs = [*make_inputs(), make_row_keys()]
    jaxpr = jax.make_jaxpr(BertForPreTraining(config).apply)({"params": params}, *inputs)
    dtypes: dict = {}
    for equation in equations(jaxpr.jaxpr):
        dtypes.setdefault(equation.primitive.name, set()).update(
            str(variable.aval.dtype) for variable in equation.outvars
        )
    assert dtypes["exp"] == {"float32"}  # softmax
    assert dtypes["rsqrt"] == {"float32"}  # LayerNorm
    assert "bfloat16" in dtypes["dot_general"]
    assert {str(variable.aval.dtype) for variable in jaxpr.jaxpr.outvars} == {"float32"}
    encoded = jax.eval_shape(BertEncoder(config).apply, {"params": params}, *inputs[:3])
    assert {x.dtype for x in encoded} == {jnp.dtype(jnp.bfloat16)}


@pytest.mark.parametrize("fsdp", [1, 2])
def test_a_scan_keeps_no_second_copy_of_the_kernels(params, fsdp):
    """Backwards they are read, under fsdp gathered, where they lie."""
    config = dataclasses.replace(SMALL, scan_layers=True)
    inputs = make_inputs()[:3]

    def loss(params):
        return BertEncoder(config).apply({"params": params}, *inputs)[0].sum()

    with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((1, fsdp, 1), AXES)):
        jaxpr = jax.make_jaxpr(jax.grad(loss))(params)
    forward = next(x for x in jaxpr.jaxpr.eqns if x.primitive.name == "scan")
    kept = {variable.aval.shape for variable in forward.outvars}
    assert (2, ROWS, LENGTH, 24) in kept  # an activation
    assert not kept & {(2, 16, 16), (2, 16, 24), (2, 24, 16)}


def test_layer_norm_keeps_its_epsilon_in_bfloat16():
    config = dataclasses.replace(SMALL, dtype="bfloat16")
    x = jnp.asarray(np.random.default_rng(0).normal(300, 2, (5, 16)), jnp.bfloat16)
    layer = {"scale": np.linspace(0.5, 1.5, 16), "bias": np.linspace(-1, 1, 16)}
    ours = LayerNorm(config).apply({"params": layer}, x)
    wide = np.asarray(x, np.float64)
    centred = wide - wide.mean(-1, keepdims=True)
    expected = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-12)
    expected = expected * layer["scale"] + layer["bias"]
    assert ours.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(ours, np.float64), expected, rtol=2**-8, atol=1e-5)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-12), ("bfloat16", 2e-2)])
def test_gradients_of_layer_norm_are_those_of_its_formula(dtype, tolerance):
    """In 16 bits they are written by hand, in other dtypes left to JAX."""
    rng = np.random.default_rng(0)
    x, gradient = rng.normal(3, 2, (2, 4, 7, 16))
    scale, bias = np.linspace(0.5, 1.5, 16), np.linspace(-1, 1, 16)
    with jax.enable_x64(True):
        arrays = (jnp.asarray(x, dtype), jnp.asarray(scale), jnp.asarray(bias))

        def formula(x, scale, bias):
            centred = x - x.mean(-1, keepdims=True)
            variance = (centred**2).mean(-1, keepdims=True)
            return centred / jnp.sqrt(variance + 1e-12) * scale + bias

        wide = [jnp.asarray(array, "float64") for array in arrays]
        expected = jax.vjp(formula, *wide)[1](jnp.asarray(gradient, "float64"))
        run = functools.partial(normalise, 1e-12, dtype)
        found = jax.jit(lambda *x: jax.vjp(run, *x)[1](jnp.asarray(gradient, dtype)))(*arrays)
    for ours, theirs in zip(found, expected, strict=True):
        limit = tolerance * np.abs(theirs).max()
        np.testing.assert_allclose(np.float64(ours), theirs, rtol=0, atol=limit)


def test_products_of_16_bits_have_16_bits_in_the_backward_pass():
    """Where the result is float32, as logits are, JAX alone would multiply in float32."""
    x, y = jnp.ones((2, 3, 8), jnp.bfloat16), jnp.ones((5, 8), jnp.bfloat16)

    def run(x, y):
        return jnp.square(wide_product("bmd,vd->bmv", x, y)).sum()

    jaxpr = jax.make_jaxpr(jax.grad(run, argnums=(0, 1)))(x, y)
    products = [
        {str(variable.aval.dtype) for variable in equation.invars}
        for equation in equations(jaxpr.jaxpr, "dot_general")
    ]
    assert products == [{"bfloat16"}] * 3


def test_attention_scores_are_not_rounded_to_bfloat16():
    """Near 60 they would be off by up to 0.25 each, and the probabilities by a quarter."""
    rng = np.random.default_rng(0)
    shape = (2, 9, 3, 16)
    # Keys that differ little: large scores, none of which wins alone.
    arrays = [
        rng.normal(0, 8, shape),
        rng.normal(0, 8, (2, 1, 3, 16)) + rng.normal(0, 0.2, shape),
        rng.normal(0, 1, shape),
    ]
    query, key, value = (jnp.asarray(x, jnp.bfloat16) for x in arrays)
    mask = np.arange(9) < np.array([[9], [5]])
    ours = dot_product_attention(query, key, value, Visibility(mask), None, 0.1)
    q, k, v = (np.asarray(x, np.float64) for x in (query, key, value))
    scores = np.einsum("bqhk,bshk->bhqs", q, k) / 4
    scores = np.where(mask[:, None, None, :], scores, -np.inf)
    assert np.median(np.abs(scores[0])) > 30
    probabilities = np.exp(scores - scores.max(-1, keepdims=True))
    probabilities /= probabilities.sum(-1, keepdims=True)
    expected = np.einsum("bhqs,bshk->bqhk", probabilities, v)
    assert ours.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(ours, np.float64), expected, rtol=0, atol=2**-6)


@pytest.mark.parametrize("gelu", ["tanh", "erf"])
def test_both_forms_of_gelu(gelu):
    x = np.linspace(-5, 5, 101)
    if gelu == "tanh":
        expected = 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
    else:
        expected = 0.5 * x * (1 + np.asarray(jax.scipy.special.erf(x / np.sqrt(2)), np.float64))
    ours = activation(dataclasses.replace(SMALL, gelu=gelu), jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(ours, expected, atol=2e-6)


@pytest.mark.parametrize("gelu", ["tanh", "erf"])
def test_gelu_of_bfloat16_is_that_of_float64_rounded_once(gelu):
    config = dataclasses.replace(SMALL, gelu=gelu, dtype="bfloat16")

    def ours(x):
        return activation(config, x)

    def exact(x):
        return jax.nn.gelu(x, approximate=gelu == "tanh")

    with jax.enable_x64(True):
        x = jnp.asarray(np.random.default_rng(0).normal(0, 2, 100_000), jnp.bfloat16)
        wide = x.astype(jnp.float64)
        for found, expected in (
            (ours(x), exact(wide)),
            (jax.grad(lambda x: ours(x).sum())(x), jax.grad(lambda x: exact(x).sum())(wide)),
        ):
            assert found.dtype == jnp.bfloat16
            rounded = np.asarray(expected.astype(jnp.bfloat16), np.float64)
            error = np.linalg.norm(np.asarray(found, np.float64) - rounded)
            assert error < 1e-3 * np.linalg.norm(rounded)


def test_rows_longer_than_the_positions_are_refused():
    ids = jnp.zeros((1, SMALL.max_positions + 1), jnp.int32)
    with pytest.raises(ValueError, match=r"rows of 17 tokens, the model has 16 positions"):
        jax.eval_shape(BertEncoder(SMALL).apply, {"params": abstract_params(SMALL)}, ids, ids, ids)


def test_dtype_is_resolved_by_the_caller():
    config = dataclasses.replace(SMALL, dtype="auto")
    assert compute_dtype(config, "cpu") == "float32"
    assert compute_dtype(config, "gpu") == compute_dtype(config, "tpu") == "bfloat16"
    assert compute_dtype(dataclasses.replace(config, dtype="bfloat16"), "cpu") == "bfloat16"
    ids = jnp.zeros((1, 4), jnp.int32)
    with pytest.raises(ValueError, match=r"dtype is 'auto'.*resolve_model"):
        jax.eval_shape(
            BertEncoder(config).apply, {"params": abstract_params(config)}, ids, ids, ids
        )


# Looking inside


@pytest.mark.slow
@pytest.mark.parametrize("change", [{}, {"scan_layers": True, "remat": "layer"}], ids=str)
def test_what_is_seen_inside_is_what_is_computed(params, change):
    """With dropout and a head: the outputs to the bit, and probabilities before dropout."""
    model = BertForPreTraining(dataclasses.replace(SMALL, **change))
    ids, types, mask, positions = make_inputs()
    keys = make_row_keys()

    def run(**settings):
        apply = jax.jit(functools.partial(model.apply, **settings))
        return apply({"params": params}, ids, types, mask, positions, keys)

    outputs, left = run(mutable="intermediates")
    for found, expected in zip(outputs, run(), strict=True):
        np.testing.assert_array_equal(found, expected)
    seen = left["intermediates"]["encoder"]["layers"][0]["intermediates"]
    (layer_inputs,), (attentions,) = seen["input"], seen["attention"]["probabilities"]
    embedding_keys, *layer_keys = split_row_keys(keys, 1 + SMALL.num_layers)
    embedded = Embeddings(SMALL).apply({"params": params["embeddings"]}, ids, types, embedding_keys)
    np.testing.assert_allclose(layer_inputs[0], embedded, atol=1e-5)
    apply_layer = jax.jit(EncoderLayer(SMALL).apply)
    tree = {"params": params["encoder"]["layer_0"]}
    x = apply_layer(tree, layer_inputs[0], Visibility(mask), layer_keys[0])
    np.testing.assert_allclose(layer_inputs[1], x, atol=1e-4)
    assert attentions.shape == (SMALL.num_layers, ROWS, SMALL.num_heads, LENGTH, LENGTH)
    np.testing.assert_allclose(attentions.sum(axis=-1), 1, atol=1e-5)
    assert not attentions.max(axis=(0, 2, 3))[np.asarray(mask) == 0].any()


@pytest.mark.parametrize("attention", ["xla", "pallas", "rows"])
def test_where_nobody_looks_nothing_is_kept(params, attention):
    model = BertEncoder(dataclasses.replace(SMALL, attention=attention))

    def program(**settings):
        apply = functools.partial(model.apply, **settings)
        return jax.make_jaxpr(apply)({"params": params}, *make_inputs()[:3])

    plain, looked_at = program(), program(mutable="intermediates")
    assert len(plain.out_avals) == 2
    assert len(looked_at.out_avals) == 4
    exponentials = [len(list(equations(x.jaxpr, "exp"))) for x in (plain, looked_at)]
    assert exponentials[1] - exponentials[0] == SMALL.num_layers
    if attention == "xla":
        assert exponentials[0] == SMALL.num_layers


def test_a_batch_has_a_mask_or_a_packing(params):
    ids, types, mask, _ = make_inputs()
    packing = Packing(segment_ids=mask, position_ids=types, cls_positions=types[:, :1])
    for found, inputs in (("neither", (None,)), ("both", (mask, None, packing))):
        with pytest.raises(ValueError, match=f"an attention_mask, or a packing.*found {found}"):
            BertEncoder(SMALL).apply({"params": params}, ids, types, *inputs)


# Dropout


def test_dropout_zeroes_the_share_it_should_and_keeps_the_mean():
    x = jnp.ones((ROWS, 50, 1000))
    y = np.asarray(dropout(x, 0.1, make_row_keys()), np.float64)
    zeros = y == 0
    np.testing.assert_allclose(y[~zeros], 1 / 0.9, rtol=1e-6)
    # Five standard deviations of a binomial share.
    assert abs(zeros.mean() - 0.1) < 5 * np.sqrt(0.09 / x.size)
    assert (np.abs(zeros.mean((1, 2)) - 0.1) < 5 * np.sqrt(0.09 / 50_000)).all()
    assert (np.abs(zeros.mean((0, 1)) - 0.1) < 6 * np.sqrt(0.09 / 400)).all()
    # Rows are independent of one another: both zero in a share of 0.01.
    both = (zeros[:-1] & zeros[1:]).mean()
    assert abs(both - 0.01) < 5 * np.sqrt(0.01 / zeros[1:].size)


def test_dropout_is_exact_in_bfloat16():
    y = dropout(jnp.full((ROWS, 999), 9, jnp.bfloat16), 0.1, make_row_keys())
    assert y.dtype == jnp.bfloat16
    assert set(np.asarray(y, np.float32).ravel().tolist()) == {0.0, 10.0}


def test_dropout_is_off_without_keys_or_rate():
    x = jnp.ones((ROWS, 5))
    assert dropout(x, 0.1, None) is x
    assert dropout(x, 0.0, make_row_keys()) is x
    assert split_row_keys(None, 3) == [None] * 3


def test_dropout_refuses_keys_that_do_not_match_the_rows():
    for keys in (make_row_keys(1), jax.random.key(0)):
        with pytest.raises(ValueError, match=r"one typed key per row, shape \(8,\)"):
            dropout(jnp.ones((ROWS, 5)), 0.1, keys)


@pytest.mark.slow
def test_masks_are_the_same_to_the_bit_in_slices_scan_remat_and_jit():
    keys = make_row_keys()
    shape = (2, 12, 12)

    def mask(site_keys):
        return dropout(jnp.ones((len(site_keys), *shape)), 0.1, site_keys)

    def site_keys(keys):
        return [site for layer in split_row_keys(keys, 2) for site in split_row_keys(layer, 2)]

    def unrolled(keys):
        return jnp.stack([mask(site) for site in site_keys(keys)])

    def scanned(keys):
        return jax.lax.scan(lambda _, site: (0, mask(site)), 0, jnp.stack(site_keys(keys)))[1]

    unrolled, scanned = (jax.jit(f) for f in (unrolled, scanned))
    whole = np.asarray(unrolled(keys))
    # No two sites and no two rows share a mask.
    assert len({row.tobytes() for row in whole.reshape(-1, *shape)}) == 4 * ROWS
    np.testing.assert_array_equal(scanned(keys), whole)
    one_by_one = [scanned(keys[row : row + 1]) for row in range(ROWS)]
    np.testing.assert_array_equal(np.concatenate(one_by_one, axis=1), whole)

    def loss(x):
        layer = jax.checkpoint(lambda x: mask(site_keys(keys)[2]) * jnp.square(x) / 2)
        return jnp.sum(layer(x))

    # At x = 1 the gradient is the mask as it was drawn again in the backward pass.
    np.testing.assert_array_equal(jax.grad(loss)(jnp.ones((ROWS, *shape))), whole[2])


@pytest.mark.slow
def test_both_rates_act_and_masks_are_keyed_by_row(params):
    inputs = make_inputs()
    keys = make_row_keys()

    def outputs(rates, row_keys, rows=slice(None)):
        config = dataclasses.replace(
            SMALL, num_layers=1, dropout_rate=rates[0], attention_dropout_rate=rates[1]
        )
        apply = jax.jit(BertForPreTraining(config).apply)
        mlm, nsp = apply({"params": params}, *(x[rows] for x in inputs), row_keys)
        return np.concatenate([mlm.reshape(len(mlm), -1), nsp], axis=1)

    plain = outputs((0.1, 0.1), None)
    np.testing.assert_array_equal(plain, outputs((0.0, 0.0), keys))
    hidden, attention = outputs((0.1, 0.0), keys), outputs((0.0, 0.1), keys)
    both = outputs((0.1, 0.1), keys)
    for a, b in ((plain, hidden), (plain, attention), (hidden, both), (attention, both)):
        assert (np.abs(a - b).max(1) > 1e-2).all()
    # A row alone, and rows in another order.
    np.testing.assert_allclose(outputs((0.1, 0.1), keys[5:6], slice(5, 6)), both[5:6], atol=1e-5)
    np.testing.assert_allclose(
        outputs((0.1, 0.1), keys[::-1], slice(None, None, -1)), both[::-1], atol=1e-5
    )


def test_embeddings_are_dropped(params):
    ids, types, _, _ = make_inputs()
    tree = {"params": params["embeddings"]}
    plain = Embeddings(SMALL).apply(tree, ids, types, None)
    expected = dropout(plain, 0.1, make_row_keys())
    assert (expected != plain).any()
    np.testing.assert_array_equal(
        Embeddings(SMALL).apply(tree, ids, types, make_row_keys()), expected
    )


@pytest.mark.parametrize("sublayer", ["attention", "mlp"])
def test_the_output_of_each_sublayer_is_dropped(params, sublayer):
    """A layer whose only non-zero value is that sublayer's bias."""
    tree = jax.tree.map(jnp.zeros_like, params["encoder"]["layer_0"])
    for name in ("attention_layer_norm", "mlp_layer_norm"):
        tree[name]["scale"] += 1
    tree[sublayer]["output"]["bias"] += jnp.arange(1.0, 1 + SMALL.hidden_size)
    x = jnp.zeros((ROWS, LENGTH, SMALL.hidden_size))
    apply = jax.jit(EncoderLayer(SMALL).apply)
    seen = Visibility(jnp.ones((ROWS, LENGTH), jnp.int32))
    plain, dropped = (apply({"params": tree}, x, seen, keys) for keys in (None, make_row_keys()))
    assert (plain == plain[0, 0]).all()
    # A token escapes with a probability of 0.9^16, a fifth.
    changed = (jnp.abs(dropped - plain).max(-1) > 1e-2).mean(1)
    assert ((changed > 0.3) & (changed < 1.01)).all()


# Scan and remat


def test_copies_are_small_and_layer_norm_and_biases_stay_float32(params):
    config = dataclasses.replace(SMALL, dtype="bfloat16")
    layer = flatten(params["encoder"]["layer_0"])
    for path, leaf in flatten(cast_layer(params["encoder"]["layer_0"], config)).items():
        wide = "layer_norm" in path or path.endswith("bias")
        assert leaf.dtype == (jnp.float32 if wide else jnp.bfloat16), path
        np.testing.assert_array_equal(leaf, layer[path].astype(leaf.dtype), err_msg=path)


def loss_function(config, inputs, row_keys):
    def loss(params):
        mlm, nsp = BertForPreTraining(config).apply({"params": params}, *inputs, row_keys)
        return jnp.mean(jnp.square(mlm)) + jnp.mean(jnp.square(nsp))

    return loss


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"gelu": "erf", "scan_layers": True},
        {"attention": "pallas", "layer_norm": "pallas"},
    ],
    ids=str,
)
def test_gradients_in_16_bits_are_those_of_float64_within_rounding(params, change):
    """With dropout. The logits' products of the backward pass have factors of 16 bits."""
    inputs, keys = make_inputs(), make_row_keys()
    inputs[2] = jnp.ones_like(inputs[2])  # what padding attends to differs with the kernels
    params = jax.tree.map(lambda x: x / 4, params)  # large kernels make large errors of each factor
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), params)
        exact = dataclasses.replace(SMALL, dtype="float64", gelu=change.get("gelu", SMALL.gelu))
        expected = jax.device_get(jax.jit(jax.grad(loss_function(exact, inputs, keys)))(wide))
    config = dataclasses.replace(SMALL, dtype="bfloat16", **change)
    gradient = jax.grad(loss_function(config, inputs, keys))
    ours = jax.device_get(jax.jit(gradient)(params))
    whole = np.sqrt(sum(np.square(x).sum() for x in jax.tree.leaves(expected)))
    for (path, found), theirs in zip(
        jax.tree.leaves_with_path(ours), jax.tree.leaves(expected), strict=True
    ):
        error, size = np.linalg.norm(found - theirs), np.linalg.norm(theirs)
        assert error < 0.05 * size + 1e-3 * whole, jax.tree_util.keystr(path)
    logits = SMALL.vocab_size + -SMALL.vocab_size % 128
    of_logits = [
        {variable.aval.dtype.name for variable in equation.invars}
        for equation in equations(jax.make_jaxpr(gradient)(params).jaxpr, "dot_general")
        if any(logits in v.aval.shape for v in (*equation.invars, *equation.outvars))
    ]
    assert of_logits == [{"bfloat16"}] * 3


@pytest.mark.slow
def test_scan_and_remat_change_no_number(params):
    """In float64, where another mask bit would show and another order of sums does not."""
    with jax.enable_x64(True):
        inputs = make_inputs(rows=4)
        keys = make_row_keys(4)
        wide = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), params)

        def loss_and_gradients(**change):
            config = dataclasses.replace(SMALL, dtype="float64", **change)
            loss = loss_function(config, inputs, keys)
            return jax.jit(jax.value_and_grad(loss))(wide)

        reference, gradients = loss_and_gradients()
        for change in (
            {"remat": "layer"},
            {"scan_layers": True, "remat": "attention"},
            {"attention": "rows"},
        ):
            loss, others = loss_and_gradients(**change)
            np.testing.assert_allclose(loss, reference, rtol=1e-12, err_msg=str(change))
            for path, gradient in flatten(gradients).items():
                atol = 1e-12 * max(1.0, float(jnp.abs(gradient).max()))
                np.testing.assert_allclose(
                    flatten(others)[path], gradient, rtol=0, atol=atol, err_msg=f"{change} {path}"
                )


@pytest.mark.slow
def test_scan_makes_the_program_independent_of_depth():
    def program_size(num_layers, scan_layers):
        config = dataclasses.replace(SMALL, num_layers=num_layers, scan_layers=scan_layers)
        loss = loss_function(config, make_inputs(), make_row_keys())
        lowered = jax.jit(jax.grad(loss)).lower(abstract_params(config))
        text = lowered.as_text()
        return sum(text.count(f"stablehlo.{op}") for op in ("dot_general", "exponential"))

    # Each layer brings 8 products forward and 16 backward, and one softmax.
    assert program_size(6, True) == program_size(2, True) < program_size(2, False)
    assert program_size(6, False) > 2 * program_size(2, False)


@pytest.mark.slow
@pytest.mark.parametrize("scan_layers", [False, True])
def test_remat_keeps_less_for_the_backward_pass(scan_layers):
    """What autodiff keeps between the passes, in bytes, whatever the backend makes of it."""
    inputs = make_inputs(rows=4, length=16)

    def kept(remat):
        config = dataclasses.replace(SMALL, num_layers=4, remat=remat, scan_layers=scan_layers)
        loss = loss_function(config, inputs, make_row_keys(4))
        params = abstract_params(config)
        _, backward = jax.eval_shape(lambda p: jax.vjp(loss, p), params)
        return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(backward))

    none, attention, layer = kept("none"), kept("attention"), kept("layer")
    probabilities = 4 * 4 * SMALL.num_heads * 16 * 16 * 4  # layers, rows, heads, t, t, bytes
    assert none - attention > probabilities
    assert layer < attention - probabilities


@pytest.mark.parametrize("scan_layers", [False, True])
@pytest.mark.parametrize("attention", ["xla", "pallas", "rows"])
def test_nothing_is_summed_in_bfloat16(attention, scan_layers):
    """Neither in the forward pass nor backwards, where the gradient of a bias is a sum."""
    config = dataclasses.replace(
        SMALL, attention=attention, scan_layers=scan_layers, dtype="bfloat16"
    )
    loss = loss_function(config, make_inputs(), make_row_keys())
    program = jax.make_jaxpr(jax.grad(loss))(init_params(config, 0))
    sums = [
        equation.outvars[0].aval.dtype
        for equation in equations(program.jaxpr, "reduce_sum")
        if equation.invars[0].aval.size > equation.outvars[0].aval.size
    ]
    assert len(sums) > 20
    assert jnp.dtype("bfloat16") not in sums


def test_the_gradient_of_a_bias_in_bfloat16_is_that_of_float64():
    config = dataclasses.replace(SMALL, dtype="bfloat16")
    rng = np.random.default_rng(0)
    x, gradient = (jnp.asarray(rng.normal(1, 1, (512, 128, 16)), jnp.bfloat16) for _ in range(2))
    layer = dense(config, 16)
    params = layer.init(jax.random.key(0), x)

    @jax.jit
    def bias_gradient(params):
        return jax.vjp(lambda p: layer.apply(p, x), params)[1](gradient)[0]["params"]["bias"]

    exact = np.asarray(gradient, np.float64).sum(axis=(0, 1))
    error = np.linalg.norm(bias_gradient(params) - exact) / np.linalg.norm(exact)
    assert error < 1e-3
    in_bfloat16 = np.asarray(jnp.sum(gradient, axis=(0, 1), dtype=jnp.bfloat16), np.float64)
    assert np.linalg.norm(in_bfloat16 - exact) > 1e-3 * np.linalg.norm(exact)


@pytest.mark.slow
def test_a_pinned_layout_is_said_at_every_layer_and_changes_no_number(params):
    inputs, keys = make_inputs(), make_row_keys()
    programs = {}
    for layout in ("compiler", "row_major"):
        loss = loss_function(dataclasses.replace(SMALL, activation_layout=layout), inputs, keys)
        programs[layout] = jax.make_jaxpr(jax.grad(loss))(params), jax.jit(jax.grad(loss))(params)
    assert not list(equations(programs["compiler"][0].jaxpr, "layout_constraint"))
    pinned = list(equations(programs["row_major"][0].jaxpr, "layout_constraint"))
    # Embeddings, two layers and what the head gathers, forward and backward.
    assert len(pinned) == 2 * (1 + SMALL.num_layers + 1)
    assert {x.params["layout"].major_to_minor for x in pinned} == {(0, 1, 2)}
    for name, leaf in flatten(programs["compiler"][1]).items():
        np.testing.assert_allclose(
            flatten(programs["row_major"][1])[name], leaf, rtol=1e-5, atol=1e-5, err_msg=name
        )


@pytest.mark.parametrize("attention", ["xla", "pallas", "rows"])
def test_float32_is_multiplied_as_float32_and_bfloat16_as_it_is(attention):
    # By default a GPU would round the factors of float32 to TF32, a TPU to bfloat16.
    highest = (jax.lax.Precision.HIGHEST,) * 2
    for dtype in ("float32", "bfloat16"):
        config = dataclasses.replace(SMALL, attention=attention, dtype=dtype)
        model = BertForPreTraining(config)

        def loss(params, model=model):
            outputs = model.apply({"params": params}, *make_inputs())
            return sum(jnp.sum(x) for x in jax.tree.leaves(outputs))

        program = jax.make_jaxpr(jax.grad(loss))(init_params(config, 0))
        found = list(equations(program.jaxpr, "dot_general"))
        assert len(found) > 30
        for equation in found:
            is_float32 = all(x.aval.dtype == jnp.float32 for x in equation.invars)
            assert equation.params["precision"] == (highest if is_float32 else None), equation
        assert any(x.invars[0].aval.dtype == jnp.dtype(dtype) for x in found)
