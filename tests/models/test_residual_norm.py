"""The kernels of dropout, residual sum and LayerNorm, interpreted, against NumPy in float64."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from residual_norm_reference import reference

from bertjax.config import ConfigError, ModelConfig
from bertjax.models import check_backend, without_gradients
from bertjax.models.dropout import drop_threshold, plane_words, random_bits
from bertjax.models.kernels import residual_norm as kernel
from bertjax.models.layer_norm import ResidualNorm

TILINGS = {"tpu": kernel.tpu_tiling, "gpu": kernel.gpu_tiling}
EPSILON = 1e-12
EPS32 = float(np.finfo(np.float32).eps)


def make_inputs(length, size, rows=3):
    rng = np.random.default_rng(0)
    x, y, gradient = rng.normal(0.5, 2, (3, rows, length, size)).astype(np.float32)
    scale, bias = np.linspace(0.5, 1.5, size), np.linspace(-1, 1, size)
    return x, y, np.float32(scale), np.float32(bias), gradient


def interpreted(tiling, rate, x, y, scale, bias, gradient, keys):
    words = jnp.stack(plane_words(keys, 1), axis=-1)
    call = {"tiling": TILINGS[tiling](*x.shape[1:]), "dropout_rate": rate, "interpret": True}
    output, *kept = kernel._forward(x, y, words, scale, bias, epsilon=EPSILON, **call)
    of_x, of_y, sums = kernel._backward(gradient, words, scale, *kept, **call)
    return output, of_x, of_y, *sums.sum(0)


@pytest.mark.parametrize("tiling", TILINGS)
@pytest.mark.parametrize("rate", [0.0, 0.1])
@pytest.mark.parametrize(("length", "size"), [(16, 64), (48, 192), (128, 128)])
def test_output_and_gradients_are_the_reference_within_rounding(length, size, rate, tiling):
    arrays = make_inputs(length, size)
    keys = jax.random.split(jax.random.key(1), 3)
    keep = np.asarray(random_bits(keys, (length, size)) >= drop_threshold(rate))
    expected = reference(*arrays, keep, rate, EPSILON)
    found = jax.jit(functools.partial(interpreted, tiling, rate))(*arrays, keys)
    for name, a, b in zip(("output", "x", "y", "scale", "bias"), found, expected, strict=True):
        atol = 16 * EPS32 * max(1.0, np.abs(b).max())
        np.testing.assert_allclose(a, b, rtol=0, atol=atol, err_msg=name)
    assert ((np.asarray(found[2]) == 0) == ~keep).all()


@pytest.mark.parametrize("length", [1, 7, 40])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_module_gives_the_same_with_the_kernel(length, dtype):
    """For rows of any length, with the mask of plain dropout."""
    x, y, scale, bias, gradient = make_inputs(length, 64)
    params = {"params": {"scale": scale, "bias": bias}}
    keys = jax.random.split(jax.random.key(1), 3)
    found = {}
    for name in ("xla", "pallas"):
        config = ModelConfig(hidden_size=64, dtype=dtype, layer_norm=name)

        def run(params, x, y, config=config):
            return ResidualNorm(config).apply(params, x, y, keys)

        output, backward = jax.vjp(run, params, *(jnp.asarray(a, dtype) for a in (x, y)))
        found[name] = (output, *jax.tree.leaves(backward(jnp.asarray(gradient, dtype))))
    for plain, ours in zip(found["xla"], found["pallas"], strict=True):
        assert plain.dtype == ours.dtype
        limit = (16 * EPS32 if dtype == "float32" else 2**-6) * max(1.0, float(abs(plain).max()))
        np.testing.assert_allclose(
            np.float32(ours), np.float32(plain), rtol=0, atol=limit, err_msg=dtype
        )


def test_bfloat16_is_as_close_to_float64_as_the_plain_path():
    arrays = make_inputs(64, 256)
    x, y, gradient = (np.asarray(jnp.asarray(arrays[i], "bfloat16"), np.float64) for i in (0, 1, 4))
    scale, bias = arrays[2:4]
    keys = jax.random.split(jax.random.key(1), 3)
    keep = np.asarray(random_bits(keys, (64, 256)) >= drop_threshold(0.1))
    expected = reference(x, y, scale, bias, gradient, keep, 0.1, EPSILON)
    errors = {}
    for name in ("xla", "pallas"):
        config = ModelConfig(hidden_size=256, dtype="bfloat16", layer_norm=name)

        def run(x, y, scale, bias, config=config):
            params = {"params": {"scale": scale, "bias": bias}}
            return ResidualNorm(config).apply(params, x, y, keys)

        narrow = (jnp.asarray(a, "bfloat16") for a in (x, y))
        output, backward = jax.vjp(run, *narrow, jnp.asarray(scale), jnp.asarray(bias))
        found = (output, *backward(jnp.asarray(gradient, "bfloat16")))
        errors[name] = [
            np.linalg.norm(np.float64(a) - b) / np.linalg.norm(b)
            for a, b in zip(found, expected, strict=True)
        ]
    for ours, theirs in zip(errors["pallas"], errors["xla"], strict=True):
        assert ours < 2**-7
        assert ours <= 1.05 * theirs


@pytest.mark.parametrize(
    ("change", "backend", "message"),
    [
        ({"hidden_size": 312}, "gpu", "multiple of 64, config.model.hidden_size is 312"),
        ({}, "metal", "config.model.layer_norm = 'pallas' has kernels for TPU and CUDA GPUs"),
    ],
)
def test_what_has_no_kernel_is_refused_by_name(change, backend, message):
    config = dataclasses.replace(ModelConfig(), layer_norm="pallas", **change)
    with pytest.raises(ConfigError, match=message) as refused:
        check_backend(config, backend, 1)
    assert "set config.model.layer_norm=xla" in str(refused.value)
    check_backend(dataclasses.replace(config, layer_norm="xla"), backend, 1)


def test_without_gradients_a_cpu_takes_the_plain_path():
    config = ModelConfig(layer_norm="pallas")
    assert without_gradients(config, "cpu", 1).layer_norm == "xla"
    assert without_gradients(config, "gpu", 1).layer_norm == "pallas"
