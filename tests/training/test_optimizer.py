"""Each optimiser against its formula in float64, each schedule against its closed form."""

import dataclasses
import functools
import math
import typing

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bertjax.config import ConfigError, OptimizerConfig
from bertjax.config.schema import ScheduleName
from bertjax.training.optimizer import (
    decay_mask,
    learning_rate_scales,
    make_optimizer,
    make_schedule,
    rate_table,
)
from bertjax.training.step import TrainState, apply_gradients

# Path, shape and whether it is decayed: said here by hand, not taken from the table under test.
PARAMETERS = {
    "embeddings/word/embedding": ((11, 6), True),
    "embeddings/position/embedding": ((5, 6), True),
    "embeddings/token_type/embedding": ((2, 6), True),
    "embeddings/layer_norm/scale": ((6,), False),
    "embeddings/layer_norm/bias": ((6,), False),
    "encoder/layer_0/attention/query/kernel": ((6, 6), True),
    "encoder/layer_0/attention/query/bias": ((6,), False),
    "encoder/layer_0/attention_layer_norm/scale": ((6,), False),
    "encoder/layer_0/attention_layer_norm/bias": ((6,), False),
    "encoder/layer_0/mlp/intermediate/kernel": ((6, 8), True),
    "encoder/layer_1/mlp/output/kernel": ((8, 6), True),
    "encoder/layer_1/mlp_layer_norm/scale": ((6,), False),
    "pooler/kernel": ((6, 6), True),
    "mlm_head/layer_norm/bias": ((6,), False),
    "mlm_head/output/bias": ((11,), False),
    "nsp_head/kernel": ((6, 2), True),
    "nsp_head/bias": ((2,), False),
}


def nested(flat):
    tree = {}
    for path, leaf in flat.items():
        *folders, name = path.split("/")
        node = tree
        for folder in folders:
            node = node.setdefault(folder, {})
        node[name] = leaf
    return tree


def flat(tree):
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def random_parameters(seed):
    rng = np.random.default_rng(seed)
    return {
        path: rng.normal(0, 0.5, shape).astype(np.float32)
        for path, (shape, _) in PARAMETERS.items()
    }


def norm(tensors):
    """Of all tensors together, in float64."""
    return math.sqrt(sum((value.astype(np.float64) ** 2).sum() for value in tensors.values()))


# Steps 0, 3, 4, 7 and 9 are above the clipping norm of 1, the others below it.
GRADIENT_NORMS = (5.0, 0.3, 0.9, 1.5, 40.0, 0.02, 0.7, 2.0, 0.999, 1.001)


def gradients(step):
    values = random_parameters(100 + step)
    scale = np.float32(GRADIENT_NORMS[step] / norm(values))
    return {path: scale * value for path, value in values.items()}


def first_state(optimizer, params):
    return TrainState(jnp.int32(0), params, optimizer.transformation.init(params))


def formula(config, total_steps, params, steps):
    """Parameters, m and v after `steps` updates, in float64, straight from the papers."""
    w = {path: value.astype(np.float64) for path, value in params.items()}
    m = {path: np.zeros_like(value) for path, value in w.items()}
    v = {path: np.zeros_like(value) for path, value in w.items()}
    norms = []
    for step in range(steps):
        g = {path: value.astype(np.float64) for path, value in gradients(step).items()}
        norms.append(norm(g))
        clip = min(1.0, config.max_grad_norm / norms[-1]) if config.max_grad_norm else 1.0
        rate = config.learning_rate * (
            step / config.warmup_steps if step < config.warmup_steps else 1 - step / total_steps
        )
        t = step + 1
        for path, (_, decayed) in PARAMETERS.items():
            m[path] = config.b1 * m[path] + (1 - config.b1) * clip * g[path]
            v[path] = config.b2 * v[path] + (1 - config.b2) * (clip * g[path]) ** 2
            if config.name == "bert_adamw":
                update = m[path] / (np.sqrt(v[path]) + config.eps)
            else:
                m_hat = m[path] / (1 - config.b1**t)
                v_hat = v[path] / (1 - config.b2**t)
                update = m_hat / (np.sqrt(v_hat) + config.eps)
            if decayed:
                update = update + config.weight_decay * w[path]
                if config.name == "lamb":
                    w_norm, update_norm = np.sqrt((w[path] ** 2).sum()), np.sqrt((update**2).sum())
                    update = update * (w_norm / update_norm if w_norm and update_norm else 1.0)
            w[path] = w[path] - rate * update
    return w, m, v, norms


@pytest.mark.parametrize("name", ["bert_adamw", "adamw", "lamb"])
@pytest.mark.parametrize("max_grad_norm", [1.0, 0.0])
def test_ten_steps_equal_the_formula(name, max_grad_norm):
    config = OptimizerConfig(
        name=name,
        learning_rate=0.02,
        warmup_steps=4,
        weight_decay=0.1,
        max_grad_norm=max_grad_norm,
        eps=1e-4,  # large enough to be seen
    )
    optimizer = make_optimizer(config, total_steps=20)
    start = random_parameters(0)
    params = nested({path: jnp.asarray(value) for path, value in start.items()})
    state = first_state(optimizer, params)
    assert {leaf.dtype for leaf in jax.tree.leaves(state.opt_state)} == {np.dtype(np.float32)}
    update = jax.jit(functools.partial(apply_gradients, optimizer))
    for step in range(10):
        before = flat(state.params)
        state, info = update(state, nested(gradients(step)))
        w, m, v, norms = formula(config, 20, start, step + 1)
        np.testing.assert_allclose(info["grad_norm"], norms[-1], rtol=1e-6)
        assert state.step == step + 1
        after = flat(state.params)
        mu, nu = (flat(optax.tree.get(state.opt_state, name)) for name in ("mu", "nu"))
        for path in PARAMETERS:
            np.testing.assert_allclose(mu[path], m[path], rtol=1e-5, atol=1e-8, err_msg=path)
            np.testing.assert_allclose(nu[path], v[path], rtol=1e-5, atol=1e-12, err_msg=path)
            np.testing.assert_allclose(after[path], w[path], rtol=1e-6, atol=1e-6, err_msg=path)
        assert info["learning_rate"].dtype == np.float32
        moved = [not np.array_equal(before[path], after[path]) for path in PARAMETERS]
        assert all(moved) if step else not any(moved)  # the rate of step 0 is 0


def train(config, shapes, steps):
    """Trains parameters of these shapes; returns them, the gradients, what each step made of them
    and the last state of the optimiser.
    """
    rng = np.random.default_rng(0)

    def draw():
        return {path: rng.normal(0, 0.5, shape) for path, shape in shapes.items()}

    optimizer, start = make_optimizer(config, total_steps=20), draw()
    params = {path: jnp.asarray(value, jnp.float32) for path, value in start.items()}
    state = first_state(optimizer, nested(params) | {"encoder": {}})
    update = jax.jit(functools.partial(apply_gradients, optimizer))
    grads, found = [draw() for _ in range(steps)], []
    for g in grads:
        state, _ = update(state, nested(g) | {"encoder": {}})
        found.append(flat(state.params))
    return start, grads, found, state.opt_state


KERNEL, BIAS = "pooler/kernel", "pooler/bias"
OTHERS = OptimizerConfig(
    learning_rate=0.02, warmup_steps=0, schedule="constant", weight_decay=0.1, max_grad_norm=0.0
)


def test_lion_equals_the_formula():
    config = dataclasses.replace(OTHERS, name="lion", b1=0.9, b2=0.95)
    w, grads, found, _ = train(config, {KERNEL: (8, 6), BIAS: (6,)}, 6)
    m = {path: np.zeros_like(value) for path, value in w.items()}
    for g, after in zip(grads, found, strict=True):
        for path, decay in ((KERNEL, 0.1), (BIAS, 0.0)):
            direction = np.sign(0.9 * m[path] + 0.1 * g[path]) + decay * w[path]
            m[path] = 0.95 * m[path] + 0.05 * g[path]
            w[path] = w[path] - 0.02 * direction
            np.testing.assert_allclose(after[path], w[path], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("b1", [0.9, 0.0])
@pytest.mark.parametrize("shape", [(32, 40), (40, 32), (32, 31)])  # the last is not factored
def test_adafactor_equals_the_formula(b1, shape):
    config = dataclasses.replace(OTHERS, name="adafactor", b1=b1, b2=0.6)  # the cap from step 4 on
    w, grads, found, state = train(config, {KERNEL: shape, BIAS: shape[1:]}, 6)
    v = {path: np.zeros_like(value) for path, value in w.items()}
    m = {path: np.zeros_like(value) for path, value in w.items()}
    for step, (g, after) in enumerate(zip(grads, found, strict=True)):
        b2 = min(0.6, 1 - (step + 1) ** -0.8)
        for path, decay in ((KERNEL, 0.1), (BIAS, 0.0)):
            v[path] = b2 * v[path] + (1 - b2) * g[path] ** 2
            estimate = v[path]
            if path == KERNEL and min(shape) >= 32:
                estimate = v[path].mean(1, keepdims=True) * v[path].mean(0) / v[path].mean()
            m[path] = b1 * m[path] + (1 - b1) * g[path] / np.sqrt(estimate)
            w[path] = w[path] - 0.02 * (m[path] + decay * w[path])
            np.testing.assert_allclose(after[path], w[path], rtol=1e-4, atol=1e-5)
    sizes = sum(x.size for x in jax.tree.leaves(state))
    if b1 == 0 and min(shape) >= 32:
        assert sizes < 4 * sum(shape)


def one_update(params, grads, **settings):
    config = OptimizerConfig(warmup_steps=0, schedule="constant", **settings)
    optimizer = make_optimizer(config, total_steps=1)
    update = jax.jit(functools.partial(apply_gradients, optimizer))
    state, info = update(first_state(optimizer, nested(params)), nested(grads))
    return flat(state.params), state.opt_state, info


def test_bert_adamw_is_not_optax_adamw_and_adamw_is():
    params, grads = random_parameters(0), gradients(2)
    optax_adamw = optax.adamw(0.01, eps=1e-6, weight_decay=0.01, mask=decay_mask)
    update = jax.jit(optax_adamw.update)
    updates, _ = update(nested(grads), optax_adamw.init(nested(params)), nested(params))
    peer = flat(optax.apply_updates(nested(params), updates))
    corrected, _, _ = one_update(params, grads, name="adamw", learning_rate=0.01)
    original, _, _ = one_update(params, grads, name="bert_adamw", learning_rate=0.01)
    for path, value in params.items():
        np.testing.assert_allclose(corrected[path], peer[path], rtol=1e-6, atol=1e-7)
        # m / sqrt(v) of a first step is 0.1 / sqrt(0.001) = 3.16 without the correction, else 1.
        if not PARAMETERS[path][1]:
            big = np.abs(grads[path]) > 1e-2
            ratio = ((original[path] - value) / (peer[path] - value))[big]
            np.testing.assert_allclose(ratio, 0.1 / math.sqrt(0.001), rtol=3e-3)


def test_lamb_takes_one_trust_ratio_a_tensor():
    params, grads = random_parameters(0), gradients(1)
    # The same tensor in two layers, ten times as large in the second.
    first, second = "encoder/layer_0/mlp/intermediate/kernel", "encoder/layer_1/mlp/output/kernel"
    grads[second] = grads[first].T
    params[second] = 10 * params[first].T
    rate = 0.125
    new, _, _ = one_update(params, grads, name="lamb", learning_rate=rate, weight_decay=0.0)
    step = {path: np.linalg.norm(new[path] - value) for path, value in params.items()}
    for path, (shape, adapted) in PARAMETERS.items():
        # The first corrected Adam direction is the sign of the gradient: its norm is sqrt(size).
        length = np.linalg.norm(params[path]) if adapted else math.sqrt(math.prod(shape))
        np.testing.assert_allclose(step[path], rate * length, rtol=1e-3, err_msg=path)
    np.testing.assert_allclose(step[second] / step[first], 10, rtol=1e-4)


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_lamb_trust_ratio_is_one_where_a_norm_is_zero(weight_decay):
    params, grads = random_parameters(0), gradients(1)
    zero_weight, zero_update = "pooler/kernel", "nsp_head/kernel"
    params[zero_weight] = np.zeros_like(params[zero_weight])
    grads[zero_update] = np.zeros_like(grads[zero_update])
    settings = {"learning_rate": 0.1, "weight_decay": weight_decay}
    lamb, _, _ = one_update(params, grads, name="lamb", **settings)
    adamw, _, _ = one_update(params, grads, name="adamw", **settings)
    np.testing.assert_array_equal(lamb[zero_weight], adamw[zero_weight])
    assert np.abs(lamb[zero_weight]).max() > 0.09
    if weight_decay:  # the update is wd * w: its ratio is 1 / wd
        np.testing.assert_allclose(lamb[zero_update], 0.9 * params[zero_update], rtol=1e-6)
    else:
        np.testing.assert_array_equal(lamb[zero_update], params[zero_update])


def test_norm_is_reported_before_clipping_and_clipping_is_by_the_global_norm():
    params, grads = random_parameters(0), gradients(4)
    _, clipped, info = one_update(params, grads, max_grad_norm=1.0)
    np.testing.assert_allclose(info["grad_norm"], GRADIENT_NORMS[4], rtol=1e-6)
    moments = flat(optax.tree.get(clipped, "mu"))
    norm = math.sqrt(
        sum(float((value.astype(np.float64) ** 2).sum()) for value in moments.values())
    )
    np.testing.assert_allclose(norm, (1 - 0.9) * 1.0, rtol=1e-6)
    _, free, _ = one_update(params, grads, max_grad_norm=0.0)
    for path, value in flat(optax.tree.get(free, "mu")).items():
        np.testing.assert_allclose(value, 40.0 * moments[path], rtol=1e-5)


def test_moments_of_bfloat16_gradients_are_float32():
    params = random_parameters(0)
    grads = {path: value.astype(jnp.bfloat16) for path, value in gradients(0).items()}
    new, opt_state, info = one_update(params, grads)
    leaves = [*jax.tree.leaves(opt_state), *jax.tree.leaves(info), *new.values()]
    assert {leaf.dtype for leaf in leaves} == {np.dtype(np.float32)}


LINEAR = OptimizerConfig(learning_rate=0.5, warmup_steps=100, end_learning_rate=0.125)


def after_warmup(config, step, decay_steps):
    peak, end, warmup = config.learning_rate, config.end_learning_rate, config.warmup_steps
    done = min(step, decay_steps)
    if config.schedule == "cosine":
        angle = math.pi * (done - warmup) / (decay_steps - warmup)
        return end + (peak - end) * (1 + math.cos(angle)) / 2
    power = {"linear": 1, "polynomial": config.power, "constant": 0}[config.schedule]
    return end + (peak - end) * (1 - done / decay_steps) ** power


@pytest.mark.parametrize("schedule", ["linear", "polynomial", "cosine", "constant"])
@pytest.mark.parametrize("decay_steps", [0, 800])
@pytest.mark.parametrize("warmup", [100, 0, 1])
def test_schedule_at_its_edges(schedule, decay_steps, warmup):
    config = dataclasses.replace(
        LINEAR, schedule=schedule, power=2.5, warmup_steps=warmup, decay_steps=decay_steps
    )
    rate = make_schedule(config, total_steps=1_000)
    end = decay_steps or 1_000
    for step in (0, 1, 50, 98, 99, 100, 101, 450, end - 1, end, end + 1, 5_000):
        expected = after_warmup(config, step, end)
        if step < warmup:
            expected = config.learning_rate * step / warmup
        for found in (rate(step), jax.jit(rate)(jnp.int32(step))):
            assert found.dtype == np.float32
            np.testing.assert_allclose(found, expected, rtol=1e-6, err_msg=f"step {step}")
    if warmup:
        assert rate(0) == 0


def test_reference_schedule_drops_where_the_warmup_ends():
    """The paper's numbers: 1e-4, 10,000 of 1,000,000 steps; decay counted from step 0."""
    rate = make_schedule(OptimizerConfig(), total_steps=1_000_000)
    np.testing.assert_allclose(rate(1), 1e-8, rtol=1e-6)
    np.testing.assert_allclose(rate(9_999), 0.9999e-4, rtol=1e-6)
    np.testing.assert_allclose(rate(10_000), 0.99e-4, rtol=1e-6)
    np.testing.assert_allclose(rate(500_000), 0.5e-4, rtol=1e-6)
    assert rate(1_000_000) == 0
    # Compiled, the division by these is inexact: the end must be 0 all the same.
    for total_steps in (41, 47, 55, 1_000):
        config = OptimizerConfig(warmup_steps=0, schedule="polynomial", power=0.5)
        assert jax.jit(make_schedule(config, total_steps))(total_steps) == 0


@pytest.mark.parametrize("shape", ["linear", "1-sqrt"])
@pytest.mark.parametrize(("decay_steps", "share", "start"), [(0, 0.2, 800), (640, 0.25, 480)])
@pytest.mark.parametrize("warmup", [100, 0])
def test_warmup_stable_decay_at_its_edges(shape, decay_steps, share, start, warmup):
    config = dataclasses.replace(
        LINEAR,
        schedule="warmup_stable_decay",
        decay_shape=shape,
        decay_share=share,
        decay_steps=decay_steps,
        warmup_steps=warmup,
    )
    end = decay_steps or 1_000
    rate = make_schedule(config, total_steps=1_000)
    for step in (0, 1, 99, 100, 300, start, start + 1, start + 40, end - 1, end, end + 1, 5_000):
        done = (min(step, end) - start) / (end - start)
        left = 1 - (math.sqrt(max(done, 0)) if shape == "1-sqrt" else max(done, 0))
        expected = 0.5 * step / warmup if step < warmup else 0.125 + 0.375 * left
        for found in (rate(step), jax.jit(rate)(jnp.int32(step))):
            assert found.dtype == np.float32
            np.testing.assert_allclose(found, expected, rtol=1e-6, err_msg=f"step {step}")
    assert rate(end) == np.float32(0.125)
    assert (rate(jnp.arange(start + 1, end)) < rate(jnp.arange(start, end - 1))).all()


def test_runs_of_any_length_have_the_same_rates_until_the_first_decays():
    config = OptimizerConfig(
        learning_rate=3e-4, warmup_steps=7, schedule="warmup_stable_decay", end_learning_rate=1e-5
    )
    steps = jnp.arange(80)
    short = jax.jit(make_schedule(config, 100))(steps)
    for longer in (101, 333, 10**6):
        np.testing.assert_array_equal(jax.jit(make_schedule(config, longer))(steps), short)
    constant = dataclasses.replace(config, schedule="constant")
    np.testing.assert_array_equal(jax.jit(make_schedule(constant, 100))(steps), short)


@pytest.mark.parametrize(
    ("share", "total", "start"), [(0.2, 1_000, 800), (0.29, 100, 71), (0.1, 30, 27), (0.01, 10, 9)]
)
def test_the_decay_begins_a_whole_number_of_steps_before_the_end(share, total, start):
    config = OptimizerConfig(schedule="warmup_stable_decay", decay_share=share)
    assert config.decay_start(total) == start
    assert dataclasses.replace(config, decay_steps=total).decay_start(10**6) == start
    assert dataclasses.replace(config, schedule="linear").decay_start(total) is None


@pytest.mark.parametrize("schedule", ["linear", "polynomial", "cosine"])
def test_a_warmup_as_long_as_the_decay_ends_at_the_end_rate(schedule):
    config = dataclasses.replace(LINEAR, schedule=schedule)
    rate = make_schedule(config, total_steps=config.warmup_steps)
    assert rate(99) == np.float32(0.5 * 0.99)
    assert rate(101) == np.float32(0.125)


def test_unknown_names_are_refused():
    with pytest.raises(ConfigError, match=r"schedule = 'lineer' is not known; .*linear"):
        make_schedule(OptimizerConfig(schedule="lineer"), 100_000)
    wrong = OptimizerConfig(schedule="warmup_stable_decay", decay_shape="sqrt")
    with pytest.raises(ConfigError, match=r"decay_shape = 'sqrt' is not known; .*1-sqrt, linear"):
        make_schedule(wrong, 100_000)
    with pytest.raises(ConfigError, match=r"name = 'adam' is not known; .*bert_adamw"):
        make_optimizer(OptimizerConfig(name="adam"), 100_000)


def test_decay_mask():
    mask = decay_mask(nested(dict.fromkeys(PARAMETERS, 0)))
    assert {path: bool(leaf) for path, leaf in flat(mask).items()} == {
        path: decayed for path, (_, decayed) in PARAMETERS.items()
    }


@pytest.mark.parametrize(
    "path",
    [
        "encoder/layer_0/gate",
        "encoder/adapter/embedding",
        "pooler/scale",
        "kernel",
        "mlm_head/bias_",
    ],
)
def test_decay_mask_refuses_a_path_it_does_not_know(path):
    params = {**random_parameters(0), path: np.zeros(3, np.float32)}
    with pytest.raises(ValueError, match=f"parameter '{path}' is not in"):
        make_optimizer(OptimizerConfig(), 100_000).transformation.init(nested(params))


# Layer-wise rates and frozen layers


def test_rates_fall_from_the_head_down():
    scales = flat(learning_rate_scales(nested(random_parameters(0)), 0.5, 0))
    expected = {"embeddings": 0.25, "encoder/layer_0": 0.5, "encoder/layer_1": 1.0}
    for path, scale in scales.items():
        part = next((part for part in expected if path.startswith(part)), None)
        assert scale == expected.get(part, 1.0), path


def test_what_lies_above_the_layers_is_no_layer():
    params = {**random_parameters(0), "encoder/final_layer_norm/scale": np.ones(3, np.float32)}
    scales = flat(learning_rate_scales(nested(params), 0.5, 2))
    assert scales.pop("encoder/final_layer_norm/scale") == 1.0
    assert scales == flat(learning_rate_scales(nested(random_parameters(0)), 0.5, 2))
    scales = flat(learning_rate_scales(nested(params), 0.5, 0))
    assert scales["embeddings/word/embedding"] == 0.25


@pytest.mark.parametrize("name", ["bert_adamw", "adamw", "lamb"])
def test_a_step_is_scaled_layer_by_layer(name):
    config = OptimizerConfig(name=name, learning_rate=0.02, warmup_steps=0, schedule="constant")
    params = nested(random_parameters(0))
    steps = {}
    for decay in (1.0, 0.5):
        optimizer = make_optimizer(dataclasses.replace(config, layer_decay=decay), 10)
        after, _ = apply_gradients(optimizer, first_state(optimizer, params), nested(gradients(0)))
        steps[decay] = flat(jax.tree.map(lambda a, b: a - b, after.params, params))
    scales = flat(learning_rate_scales(params, 0.5, 0))
    for path, step in steps[1.0].items():
        np.testing.assert_allclose(steps[0.5][path], scales[path] * step, rtol=1e-3, atol=1e-7)


def test_frozen_layers_neither_move_nor_count_in_the_norm():
    config = OptimizerConfig(name="adamw", learning_rate=0.02, warmup_steps=0, frozen_layers=1)
    optimizer = make_optimizer(config, 10)
    before = random_parameters(0)
    state = first_state(optimizer, nested(before))
    for step in range(3):
        state, info = apply_gradients(optimizer, state, nested(gradients(step)))
    frozen = [p for p in before if p.startswith(("embeddings/", "encoder/layer_0/"))]
    trained = {p: gradients(2)[p] for p in before if p not in frozen}
    assert float(info["grad_norm"]) == pytest.approx(norm(trained), rel=1e-5)
    for path, value in flat(state.params).items():
        assert np.array_equal(value, before[path]) == (path in frozen), path


@pytest.mark.parametrize("name", typing.get_args(ScheduleName))
def test_a_table_of_rates_has_the_rate_of_each_step(name):
    schedule = make_schedule(OptimizerConfig(schedule=name, warmup_steps=4), total_steps=20)
    # Divisions of one number and of many may round to different last bits.
    rates = [schedule(i) for i in range(21)]
    np.testing.assert_allclose(rate_table(schedule, 20)[:21], rates, rtol=2.4e-7)
