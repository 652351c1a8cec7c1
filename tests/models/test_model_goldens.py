"""Loss and gradients of one batch equal transformers' with the same weights.

Of BertForPreTraining, and of BertLMHeadModel with is_decoder for the left-to-right model. The files
are written by goldens/make_transformers_goldens.py, in float64.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from folders import GOLDENS

from bertjax.config import ModelConfig
from bertjax.heads import INPUTS
from bertjax.models import BertForPreTraining, abstract_params
from bertjax.objectives.objective import make_objective
from bertjax.objectives.pretraining import (
    pretraining_denominators,
    pretraining_loss,
    pretraining_sums,
)
from bertjax.weights.hugging_face import parameter_names, to_bertjax


def read_golden(kind):
    """A file as {"size": {...}, "batch": {...}, "weight": ..., "gradient": ..., "loss": ...}."""
    groups: dict = {}
    with np.load(GOLDENS / f"transformers_{kind}.npz") as arrays:
        for name in arrays.files:
            group, member = name.split("/", 1)
            groups.setdefault(group, {})[member] = arrays[name]
    return groups


@pytest.fixture(scope="module")
def golden():
    return read_golden("pretraining")


def flatten(tree):
    return {
        "/".join(key.key for key in path): np.asarray(leaf)
        for path, leaf in jax.tree.leaves_with_path(tree)
    }


def assert_same_loss_and_gradients(
    sizes, batch, weights, losses, gradients, *, dtype, tolerance, **settings
):
    """Compares ours in `dtype` with theirs; `tolerance` is relative to each tensor's largest."""
    config = ModelConfig(
        **{name: int(size) for name, size in sizes.items()}, gelu="erf", dtype=dtype, **settings
    )
    model = BertForPreTraining(config)
    with jax.enable_x64(dtype == "float64"):
        params = jax.tree.map(lambda x: jnp.asarray(x, dtype), to_bertjax(weights, config))
        # The weights too: in float32 the 1e-5 of the denominator is rounded.
        batch = {
            name: jnp.asarray(array, dtype if array.dtype == np.float32 else None)
            for name, array in batch.items()
        }

        def loss_and_sums(params):
            sums = pretraining_sums(model, params, batch, None)
            return pretraining_loss(sums, pretraining_denominators(batch)), sums

        (loss, sums), grads = jax.jit(jax.value_and_grad(loss_and_sums, has_aux=True))(params)
        ours = flatten(grads)
        sums = flatten(sums)
    assert loss.dtype == dtype
    np.testing.assert_allclose(loss, losses["loss"], rtol=tolerance)
    mlm_loss = sums["mlm_loss_sum"] / (sums["mlm_weight"] + 1e-5)
    np.testing.assert_allclose(mlm_loss, losses["mlm_loss"], rtol=tolerance)
    nsp_loss = sums["nsp_loss_sum"] / sums["nsp_weight"]
    np.testing.assert_allclose(nsp_loss, losses["nsp_loss"], rtol=tolerance)
    assert_same_gradients(ours, gradients, config, dtype, tolerance)


def assert_same_gradients(ours, gradients, config, dtype, tolerance):
    theirs = flatten(to_bertjax(gradients, config))
    assert ours.keys() == theirs.keys()
    for path, gradient in theirs.items():
        assert ours[path].dtype == dtype
        # A key's bias moves all scores of a query alike, so its gradient is 0 but for rounding:
        # that of the terms that cancel, which are those of the kernel's gradient.
        scale = np.abs(theirs[path.replace("attention/key/bias", "attention/key/kernel")]).max()
        np.testing.assert_allclose(
            ours[path], gradient, rtol=0, atol=tolerance * scale, err_msg=path
        )


def assert_same_causal_loss_and_gradients(
    sizes, batch, weights, losses, gradients, *, dtype, tolerance, **settings
):
    """The same for the left-to-right model, and its logits at real tokens."""
    config = ModelConfig(
        **{name: int(size) for name, size in sizes.items()},
        gelu="erf",
        dtype=dtype,
        head="causal",
        direction="left_to_right",
        next_sentence=False,
        pooler=False,
        **settings,
    )
    objective = make_objective(config)
    with jax.enable_x64(dtype == "float64"):
        params = jax.tree.map(lambda x: jnp.asarray(x, dtype), to_bertjax(weights, config))
        batch = {name: jnp.asarray(array) for name, array in batch.items()}

        def loss(params):
            return objective.loss(
                objective.sums(params, batch, None, None), objective.denominators(batch)
            )

        found, grads = jax.jit(jax.value_and_grad(loss))(params)
        inputs = [batch[name] for name in INPUTS]
        logits = jax.jit(objective.model.apply)({"params": params}, *inputs, None)
        ours = flatten(grads)
    assert (found.dtype, logits.dtype) == (dtype, dtype)
    np.testing.assert_allclose(found, losses["loss"], rtol=tolerance)
    is_token = np.asarray(batch["attention_mask"]) > 0
    expected = losses["logits"][is_token]
    atol = tolerance * np.abs(expected).max()
    np.testing.assert_allclose(logits[is_token], expected, rtol=0, atol=atol)
    assert_same_gradients(ours, gradients, config, dtype, tolerance)


def test_golden_batch_has_what_it_should(golden):
    batch = golden["batch"]
    assert set(np.unique(batch["token_type_ids"])) == {0, 1}
    assert 0 < batch["attention_mask"].sum() < batch["attention_mask"].size
    assert 0 < batch["masked_weights"].sum() < batch["masked_weights"].size
    assert set(batch["next_sentence_labels"]) == {0, 1}
    assert min(np.abs(array).max() for array in golden["weight"].values()) > 0.1


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("float64", 1e-10)])
def test_loss_and_gradients_equal_transformers(golden, dtype, tolerance):
    assert_same_loss_and_gradients(
        golden["size"],
        golden["batch"],
        golden["weight"],
        golden["loss"],
        golden["gradient"],
        dtype=dtype,
        tolerance=tolerance,
    )


@pytest.mark.parametrize(
    ("dtype", "tolerance", "settings"),
    [
        ("float32", 1e-5, {}),
        ("float64", 1e-10, {}),
        ("float32", 1e-5, {"attention": "pallas"}),
        ("float64", 1e-10, {"attention": "rows", "scan_layers": True, "remat": "layer"}),
    ],
)
def test_a_left_to_right_model_equals_transformers(dtype, tolerance, settings):
    golden = read_golden("causal")
    groups = (golden[name] for name in ("size", "batch", "weight", "loss", "gradient"))
    assert_same_causal_loss_and_gradients(*groups, dtype=dtype, tolerance=tolerance, **settings)


@pytest.mark.slow
def test_scan_and_remat_equal_transformers_too(golden):
    assert_same_loss_and_gradients(
        golden["size"],
        golden["batch"],
        golden["weight"],
        golden["loss"],
        golden["gradient"],
        dtype="float64",
        tolerance=1e-10,
        scan_layers=True,
        remat="layer",
    )


def test_name_table_covers_our_parameters_and_theirs(golden):
    config = ModelConfig(**{name: int(size) for name, size in golden["size"].items()})
    theirs = [name.text for name in parameter_names(config).values()]
    expected = jax.tree.map(lambda leaf: leaf.shape, abstract_params(config))
    converted = jax.tree.map(np.shape, to_bertjax(golden["weight"], config))
    assert converted == expected
    assert sorted(theirs) == sorted(golden["weight"])


@pytest.mark.parametrize("num_layers", [1, 3])
def test_wrong_number_of_layers_is_refused(golden, num_layers):
    sizes = {name: int(size) for name, size in golden["size"].items()}
    config = ModelConfig(**sizes | {"num_layers": num_layers})
    with pytest.raises(ValueError, match=rf"(?s)with {num_layers} layers.*encoder\.layer"):
        to_bertjax(golden["weight"], config)
