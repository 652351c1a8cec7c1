"""The kernels of fused attention, interpreted, against NumPy in float64 with a hash of its own.

Both ways of cutting the work are run: whole rows as on TPU, blocks of 64 as on GPU.
"""

import dataclasses
import json
import logging
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attention_reference import kept, reference

from bertjax.config import ConfigError, ModelConfig
from bertjax.models import BertForPreTraining, check_backend, init_params, without_gradients
from bertjax.models.attention import dot_product_attention
from bertjax.models.dropout import plane_words
from bertjax.models.kernels import attention_kernel
from bertjax.models.kernels.fused_attention import fused_attention
from bertjax.models.visibility import Visibility

pytestmark = [pytest.mark.kernels, pytest.mark.slow]

EPSILON = float(np.finfo(np.float32).eps)
TILINGS = {"tpu": attention_kernel.tpu_tiling, "gpu": attention_kernel.gpu_tiling}


def interpreted(tiling, rate, q, k, v, gradient, segment_ids, keys, causal=False):
    """Output and gradients by the kernels, cut as on the platform that `tiling` names."""

    @jax.jit
    def run(q, k, v, gradient, segment_ids, keys):
        words = jnp.stack(plane_words(keys, q.shape[2]), -1)
        settings = {
            "dropout_rate": rate, "tiling": TILINGS[tiling](*q.shape[1:]), "interpret": True
        }  # fmt: skip
        arrays = (jnp.stack((q, k, v), axis=2), Visibility(segment_ids, causal=causal), words)
        output, log_sum_exp = attention_kernel.forward(*arrays, **settings)
        (of_qkv,) = attention_kernel.backward(*arrays, output, log_sum_exp, gradient, **settings)
        return output, *jnp.moveaxis(of_qkv, 2, 0)

    return run(q, k, v, gradient, segment_ids, keys)


def separately(q, k, v, *others):
    return fused_attention(jnp.stack((q, k, v), axis=2), *others)


def make_inputs(length, heads=2, head_size=16, rows=3, seed=0):
    rng = np.random.default_rng(seed)
    shape = (rows, length, heads, head_size)
    arrays = [rng.normal(size=shape).astype(np.float32) for _ in range(4)]
    segment_ids = rng.integers(0, 4, (rows, length)).astype(np.int32)  # not even contiguous
    segment_ids[-1] = 0  # and a row of padding alone
    return arrays, segment_ids, jax.random.split(jax.random.key(seed), rows)


@pytest.mark.slow
@pytest.mark.parametrize("tiling", TILINGS)
@pytest.mark.parametrize("rate", [0.0, 0.1])
@pytest.mark.parametrize(
    ("length", "causal"),
    [(n, False) for n in (1, 7, 64, 128, 200, 512)] + [(n, True) for n in (7, 128, 200, 600)],
)
def test_output_and_gradients_are_the_reference_within_rounding(length, causal, rate, tiling):
    (q, k, v, gradient), segment_ids, keys = make_inputs(length)
    keep = kept(keys, 2, length, rate)
    expected = reference(q, k, v, gradient, segment_ids, keep, rate, causal)
    found = interpreted(tiling, rate, q, k, v, gradient, segment_ids, keys, causal)
    for name, a, b in zip(("output", "dq", "dk", "dv"), found, expected, strict=True):
        assert a.dtype == jnp.float32
        atol = 16 * EPSILON * max(1.0, np.abs(b).max())
        np.testing.assert_allclose(a, b, rtol=0, atol=atol, err_msg=name)
        assert not np.asarray(a)[segment_ids == 0].any(), f"{name} of padding is 0"


@pytest.mark.parametrize("tiling", TILINGS)
def test_the_mask_is_the_hash_to_the_bit_in_both_passes(tiling):
    rows, heads, length = 2, 3, 200
    keys = jax.random.split(jax.random.key(5), rows)
    expected = kept(keys, heads, length, 0.1)
    assert abs(expected.mean() - 0.9) < 0.01
    # Equal scores, and values that tell the key: what a query gets is its line of the mask.
    zeros = np.zeros((rows, length, heads, length), np.float32)
    unit = np.broadcast_to(np.eye(length, dtype=np.float32)[:, None], zeros.shape)
    segment_ids = np.ones((rows, length), np.int32)
    output, _, _, dv = interpreted(tiling, 0.1, zeros, zeros, unit, unit, segment_ids, keys)
    np.testing.assert_array_equal(np.moveaxis(output, 2, 1) != 0, expected)
    np.testing.assert_array_equal(np.moveaxis(dv, 2, 1).swapaxes(2, 3) != 0, expected)


@pytest.mark.parametrize("tiling", TILINGS)
def test_bfloat16_is_closer_to_float64_than_the_xla_path(tiling):
    arrays, _, keys = make_inputs(200, head_size=64)
    q, k, v, gradient = (jnp.asarray(x, jnp.bfloat16) for x in arrays)
    ones = np.ones((3, 200), np.int32)
    expected = reference(q, k, v, gradient, ones, kept(keys, 2, 200, 0.1), 0.1)
    found = interpreted(tiling, 0.1, q, k, v, gradient, ones, keys)

    @jax.jit
    def plain(q, k, v):
        output, vjp = jax.vjp(
            lambda *x: dot_product_attention(*x, Visibility(ones), keys, 0.1), q, k, v
        )
        return output, *vjp(gradient)

    for name, a, b, c in zip(
        ("output", "dq", "dk", "dv"), found, plain(q, k, v), expected, strict=True
    ):
        assert a.dtype == jnp.bfloat16
        ours, theirs = (np.square(np.float64(x) - c).mean() ** 0.5 for x in (a, b))
        assert ours <= theirs, (name, ours, theirs)
        assert ours < 2**-8 * np.square(c).mean() ** 0.5, name


@pytest.mark.slow
def test_a_plain_mask_gives_what_the_xla_path_gives():
    (q, k, v, gradient), _, keys = make_inputs(24, heads=4)
    mask = (np.arange(24) < np.array([[24], [9], [1]])).astype(np.int32)
    gradient = gradient * mask[:, :, None, None]  # nothing reads what padding attends to

    def run(attend):
        output, vjp = jax.vjp(lambda *x: attend(*x, Visibility(mask), keys, 0.1), q, k, v)
        return output * mask[:, :, None, None], *vjp(gradient)

    for a, b in zip(run(separately), run(dot_product_attention), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=16 * EPSILON * float(jnp.abs(b).max()))


MODEL = ModelConfig(
    vocab_size=99, hidden_size=24, num_layers=2, num_heads=3, intermediate_size=48,
    max_positions=16, initializer_range=0.3, dtype="float64",
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [
        {"remat": "attention"},
        {"scan_layers": True, "remat": "layer"},
        {"direction": "left_to_right"},
    ],
)
def test_loss_and_gradients_of_a_model_are_those_of_the_xla_path(change):
    """In float64, where another bit of a mask would show and another order of sums does not."""
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        ids = rng.integers(5, 99, (4, 16))
        mask = (np.arange(16) < np.array([[16], [12], [9], [8]])).astype(np.int32)
        inputs = ids, np.zeros_like(ids), mask, np.sort(rng.integers(0, 8, (4, 3)))
        params = jax.tree.map(lambda x: jnp.float64(x), init_params(MODEL, 0))
        keys = jax.random.split(jax.random.key(1), 4)

        def gradients(**change):
            model = BertForPreTraining(dataclasses.replace(MODEL, **change))

            def loss(params):
                mlm, nsp = model.apply({"params": params}, *inputs, keys)
                return jnp.mean(jnp.square(mlm)) + jnp.mean(jnp.square(nsp))

            return jax.jit(jax.value_and_grad(loss))(params)

        direction = {name: change[name] for name in change if name == "direction"}
        found, expected = gradients(attention="pallas", **change), gradients(**direction)
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-11 * max(1.0, np.abs(b).max()))


@pytest.mark.slow
def test_meshes_draw_the_same_masks_and_train_alike():
    """On 8 simulated devices: rows over data and fsdp, heads over tensor; with both kernels."""
    result = subprocess.run(
        [sys.executable, "-c", MESHES], capture_output=True, text=True, timeout=600
    )
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout.splitlines()[-1])
    for mesh, differences in found["differences"].items():  # of numbers as large as 5
        assert max(differences) < 16 * EPSILON, (mesh, "a bit of a mask makes 0.1")
    alone, *on_meshes = found["losses"]
    for losses in on_meshes:
        np.testing.assert_allclose(losses, alone, rtol=0, atol=1e-5)


MESHES = """
import dataclasses, json
from benchmarks import meshes
import jax, jax.numpy as jnp, numpy as np
from bertjax.config import MeshConfig, ModelConfig
from bertjax.models.kernels.fused_attention import fused_attention
from bertjax.models.visibility import Visibility
from bertjax.parallel.sharding import make_mesh

rng = np.random.default_rng(0)
q, k, v, gradient = (rng.normal(size=(8, 24, 8, 16)).astype(np.float32) for _ in range(4))
visibility = Visibility(rng.integers(0, 3, (8, 24)).astype(np.int32))
keys = jax.random.split(jax.random.key(0), 8)

@jax.jit
def run(q, k, v):
    def attend(*x):
        return fused_attention(jnp.stack(x, 2), visibility, keys, 0.1)

    output, vjp = jax.vjp(attend, q, k, v)
    return output, *vjp(gradient)

alone, differences = run(q, k, v), {}
for axes in ((1, 1, 8), (2, 2, 2)):
    with jax.set_mesh(make_mesh(MeshConfig(*axes), jax.devices())):
        jax.clear_caches()
        split = run(q, k, v)
    shard = (8 // (axes[0] * axes[1]), 24, 8 // axes[2], 16)
    assert split[0].sharding.shard_shape(split[0].shape) == shard
    differences[str(axes)] = [float(abs(np.asarray(a) - b).max()) for a, b in zip(split, alone)]

model = ModelConfig(
    vocab_size=99, hidden_size=64, num_layers=2, num_heads=8, intermediate_size=64,
    max_positions=meshes.LENGTH, dtype="float32", remat="layer",
)
losses = {}
for mesh, kernels in (((1, 1, 1), "xla"), ((2, 2, 2), "pallas"), ((2, 4, 1), "pallas")):
    changed = dataclasses.replace(model, attention=kernels, layer_norm=kernels)
    run = meshes.Run(mesh, "bert_adamw", scan_layers=True, num_microbatches=2)
    losses[str(mesh)] = meshes.measure(run, changed, 4)["losses"]
print(json.dumps({"differences": differences, "losses": list(losses.values())}))
"""


def test_a_backend_without_kernels_is_refused_and_a_slow_one_announced(caplog):
    model = dataclasses.replace(MODEL, attention="pallas")
    with pytest.raises(ConfigError, match=r"'METAL': set config\.model\.attention=xla"):
        check_backend(model, "METAL", 1)
    with caplog.at_level(logging.WARNING, logger="bertjax"):
        check_backend(MODEL, "METAL", 1)
        check_backend(model, "tpu", 8)
        assert not caplog.records
        check_backend(model, "cpu", 1)
    assert "interpreted on a CPU" in caplog.text


@pytest.mark.parametrize(("backend", "num_devices"), [("gpu", 1), ("cpu", 2)])
def test_rows_one_after_the_other_are_for_one_cpu_device(backend, num_devices):
    model = dataclasses.replace(MODEL, attention="rows")
    check_backend(model, "cpu", 1)
    with pytest.raises(ConfigError, match=rf"found {num_devices} of '{backend}': set .*=xla"):
        check_backend(model, backend, num_devices)
    assert without_gradients(model, backend, num_devices).attention == "xla"
    assert without_gradients(MODEL, "cpu", 1).attention == "rows"
    kernels = dataclasses.replace(MODEL, attention="pallas")
    assert without_gradients(kernels, "gpu", num_devices).attention == "pallas"


@pytest.mark.parametrize("backend", ["cpu", "tpu"])
def test_a_pinned_layout_is_for_gpus(backend):
    model = dataclasses.replace(MODEL, activation_layout="row_major")
    check_backend(model, "gpu", 1)
    with pytest.raises(ConfigError, match=rf"'{backend}': set .*\.activation_layout=compiler"):
        check_backend(model, backend, 1)
    assert without_gradients(model, "gpu", 1).activation_layout == "row_major"
    assert without_gradients(model, backend, 1).activation_layout == "compiler"
