"""Factors rounded to bfloat16 (`model.factors`) and what "auto" and the CPU's warnings say."""

import dataclasses
import json
import logging
import subprocess
import sys
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from folders import REPOSITORY
from jax.extend.core import jaxprs_in_params

from bertjax.config import ConfigError, ModelConfig
from bertjax.models import (
    BertEncoder,
    BertForPreTraining,
    abstract_params,
    build,
    check_backend,
    init_params,
    resolve_model,
    without_gradients,
)
from bertjax.models.rounded_product import (
    bfloat16_instructions,
    rounded_product,
    speed_of_rounding,
)

MODEL = ModelConfig(
    vocab_size=61,
    hidden_size=32,
    num_layers=1,
    num_heads=2,
    intermediate_size=64,
    max_positions=8,
    dropout_rate=0.0,
    attention_dropout_rate=0.0,
    dtype="float32",
)
ROUNDED = dataclasses.replace(MODEL, factors="bfloat16")


def rounded(x):
    return np.asarray(jnp.asarray(x, jnp.bfloat16), np.float64)


@pytest.mark.parametrize("axis", [0, 1])
def test_only_factors_are_rounded_and_not_those_of_the_kernels_gradient(axis):
    rng = np.random.default_rng(0)
    x, gradient = (rng.normal(size=(5, 7, n)).astype(np.float32) for n in (48, 24))
    kernel = rng.normal(size=(48, 24)).astype(np.float32)
    stored = kernel if axis == 0 else kernel.T
    dimensions = (((2,), (axis,)), ((), ()))
    y, vjp = jax.vjp(lambda *factors: rounded_product(*factors, dimensions), x, stored)
    dx, dkernel = vjp(jnp.asarray(gradient))
    dkernel = dkernel if axis == 0 else dkernel.T
    for found, expected in (
        (y, rounded(x) @ rounded(kernel)),
        (dx, rounded(gradient) @ rounded(kernel).T),
        (dkernel, np.float64(x).reshape(-1, 48).T @ np.float64(gradient).reshape(-1, 24)),
    ):
        assert found.dtype == jnp.float32
        # Sums in bfloat16 would be 1e-2 off.
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * abs(expected).max())


def make_loss(config):
    """A loss of MLM and NSP logits."""
    rng = np.random.default_rng(0)
    ids = jnp.asarray(rng.integers(0, config.vocab_size, (4, 8)), jnp.int32)
    mask = jnp.asarray(np.arange(8) < rng.integers(4, 9, (4, 1)), jnp.int32)
    positions = jnp.asarray(rng.integers(0, 4, (4, 2)), jnp.int32)
    model = BertForPreTraining(config)

    def loss(params):
        mlm, nsp = model.apply({"params": params}, ids, ids % 2, mask, positions)
        return jnp.mean(jax.nn.log_softmax(mlm)[..., 7]) + jnp.mean(nsp[:, 0] ** 2)

    return loss


@pytest.fixture(scope="module")
def params():
    return jax.jit(lambda: jax.tree.map(lambda x: x * 3, init_params(MODEL, 0)))()


@pytest.fixture(scope="module")
def exact(params):
    """Loss and gradients in float64."""
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), params)
        config = dataclasses.replace(MODEL, dtype="float64")
        return jax.device_get(jax.jit(jax.value_and_grad(make_loss(config)))(wide))


CHANGES = [{}, {"scan_layers": True, "remat": "layer"}, {"attention": "rows"}]


@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_gradients_are_those_of_float64_within_the_rounding_of_factors(params, exact, change):
    config = dataclasses.replace(ROUNDED, **change)
    loss, gradients = jax.jit(jax.value_and_grad(make_loss(config)))(params)
    assert abs(loss - exact[0]) < 1e-3 * abs(exact[0])
    changed = False
    for (path, found), expected in zip(
        jax.tree.leaves_with_path(gradients), jax.tree.leaves(exact[1]), strict=True
    ):
        # A factor is off by 2**-9 at most, and each gradient is behind a handful of products. The
        # gradient of the key's bias is 0: softmax does not see what all scores have in common.
        error, size = (np.linalg.norm(x) for x in (found - expected, expected))
        assert error < 2**-7 * size + 1e-8, jax.tree_util.keystr(path)
        changed |= error > 1e-5 * size
    assert changed  # something was rounded


def test_all_products_with_weights_are_rounded_and_nothing_where_the_field_is_off(params):
    def products(config):
        """Of each product: whether the factors are bfloat16, and the dtype of the result."""
        found = equations(jax.make_jaxpr(jax.grad(make_loss(config)))(params).jaxpr)
        return Counter(
            (x.invars[0].aval.dtype.name, x.outvars[0].aval.dtype.name)
            for x in found
            if x.primitive.name == "dot_general"
        )

    off, on = products(MODEL), products(ROUNDED)
    assert set(off) == {("float32", "float32")}
    # Of the layer six, the pooler, the dense layer and the decoder of the MLM head: each forward
    # and for the gradient of the rows. NSP's logits are an output layer.
    assert on == {("bfloat16", "float32"): 2 * 9, ("float32", "float32"): off.total() - 2 * 9}


def equations(jaxpr):
    for equation in jaxpr.eqns:
        yield equation
        for inner in jaxprs_in_params(equation.params):
            yield from equations(inner)


MESHES = """
import json
from benchmarks import meshes
from bertjax.config import ModelConfig

model = ModelConfig(
    vocab_size=99, hidden_size=32, num_layers=2, num_heads=8, intermediate_size=64,
    max_positions=meshes.LENGTH, dtype="float32", factors="bfloat16",
)
losses = []
for mesh, scan_layers in (((1, 1, 1), False), ((2, 2, 2), True), ((2, 4, 1), False)):
    run = meshes.Run(mesh, "bert_adamw", scan_layers=scan_layers, num_microbatches=2)
    losses.append(meshes.measure(run, model, 4)["losses"])
print(json.dumps(losses))
"""


@pytest.mark.slow
def test_on_a_mesh_the_losses_are_those_of_one_device():
    result = subprocess.run(
        [sys.executable, "-c", MESHES], capture_output=True, text=True, check=True, cwd=REPOSITORY
    )
    alone, *split = json.loads(result.stdout.splitlines()[-1])
    assert alone[0] != alone[-1]
    for losses in split:
        np.testing.assert_allclose(losses, alone, rtol=1e-4)


def test_other_devices_and_dtypes_are_refused_by_name():
    for backend in ("gpu", "tpu"):
        with pytest.raises(ConfigError, match=rf"is for CPUs, the backend is '{backend}': set"):
            check_backend(
                resolve_model(dataclasses.replace(ROUNDED, dtype="auto"), backend), backend, 1
            )
    both = dataclasses.replace(ROUNDED, dtype="bfloat16")
    with pytest.raises(ConfigError, match=r"'pallas' has kernels .*: set .*attention=xla"):
        check_backend(dataclasses.replace(ROUNDED, attention="pallas"), "cpu", 1)
    with pytest.raises(ConfigError, match=r"found config\.model\.dtype = 'bfloat16': set"):
        check_backend(both, "cpu", 1)


@pytest.mark.parametrize(("speed", "level"), [(0.55, "WARNING"), (1.8, "INFO")])
def test_what_it_gains_on_this_processor_is_said(monkeypatch, caplog, speed, level):
    monkeypatch.setattr(build, "speed_of_rounding", lambda: speed)
    with caplog.at_level(logging.INFO, "bertjax"):
        check_backend(MODEL, "cpu", 1)
        assert not caplog.records
        check_backend(ROUNDED, "cpu", 1)
    (record,) = caplog.records
    assert record.levelname == level
    assert f"{speed:.2f} times as fast as float32 on this processor (it" in record.getMessage()
    assert ("factors=compute is faster" in record.getMessage()) == (speed < 1)


def test_the_gain_is_measured():
    assert 0.05 < speed_of_rounding() < 20


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("flags : fma avx512_bf16 amx_tile amx_bf16", "it has avx512_bf16 and amx_bf16"),
        ("Features : fp asimd bf16", "it has bf16"),
        ("flags : avx2 avx512f", "it has none of avx512_bf16, amx_bf16, bf16, svebf16"),
        (None, "its instructions are unknown without {cpuinfo}"),
    ],
)
def test_instructions_are_named(tmp_path, flags, words):
    cpuinfo = tmp_path / "cpuinfo"
    if flags is not None:
        cpuinfo.write_text(f"model name : A processor\n{flags}\n")
    assert bfloat16_instructions(cpuinfo) == words.format(cpuinfo=cpuinfo)


def test_a_model_of_bfloat16_on_a_cpu_is_warned_of(caplog):
    model = dataclasses.replace(MODEL, dtype="bfloat16")
    with caplog.at_level(logging.WARNING, "bertjax"):
        check_backend(model, "gpu", 1)
        check_backend(MODEL, "cpu", 1)
        assert not caplog.records
        check_backend(model, "cpu", 1)
    (record,) = caplog.records
    assert "'bfloat16' on a CPU" in record.getMessage()
    assert "set config.model.dtype=float32" in record.getMessage()


@pytest.mark.parametrize(
    ("backend", "dtype", "attention", "scoring"),
    [
        ("cpu", "float32", "xla", "rows"),
        ("gpu", "bfloat16", "pallas", "pallas"),
        ("tpu", "bfloat16", "pallas", "pallas"),
        ("METAL", "bfloat16", "xla", "xla"),
    ],
)
def test_what_auto_means(backend, dtype, attention, scoring):
    model = dataclasses.replace(MODEL, dtype="auto", attention="auto")
    found = resolve_model(model, backend)
    assert (found.dtype, found.attention) == (dtype, attention)
    assert without_gradients(model, backend, 1).attention == scoring
    assert without_gradients(model, backend, 1).dtype == dtype
    check_backend(found, backend, 1)
    assert resolve_model(ROUNDED, backend) == ROUNDED  # what is said stays


def test_auto_is_resolved_by_the_caller():
    model = dataclasses.replace(MODEL, attention="auto")
    ids = jnp.zeros((1, 4), jnp.int32)
    with pytest.raises(ValueError, match=r"attention is 'auto'.*resolve_model"):
        jax.eval_shape(BertEncoder(model).apply, {"params": abstract_params(model)}, ids, ids, ids)
