"""Named optimizers, their learning-rate schedules and the weight-decay mask.

Every optimizer here is one chain of optax transformations: zero the gradients of frozen
parameters, clip by the global norm, turn the gradients into a direction, and step against it with
the scheduled learning rate. They differ in the direction:

    bert_adamw   m / (sqrt(v) + eps) + weight_decay * w
    adamw        m' / (sqrt(v') + eps) + weight_decay * w
    lamb         r * (m' / (sqrt(v') + eps) + weight_decay * w),  r = |w| / |the bracket|
    lion         sign(b1 * m + (1 - b1) * g) + weight_decay * w
    adafactor    the running mean of g / sqrt(V) by b1 + weight_decay * w

with m and v the running means of the gradient g and of its square, by b1 and b2,
m' = m / (1 - b1^t) and v' = v / (1 - b2^t) at the t-th update (t = 1, 2, ...), and r one number
per tensor (1 if either norm is 0). Each layer has its own tensors.
Biases and LayerNorm are not decayed, and r = 1 for them.

Lion has one mean: the direction uses m before this update, and the update then changes m by b2.
`eps` is not read. The paper's b1 and b2 are 0.9 and 0.99 (0.95 and 0.98 for text), so set `b2`; its
learning rate is 3 to 10 times smaller than AdamW's, and its weight decay as many times larger.

Adafactor is that of Zhai et al.: rates are absolute as AdamW's (not relative to |w|), and the norm
of all gradients is clipped (not each tensor's direction). V is the running mean of g^2 by
min(b2, 1 - t^-0.8). If the two largest dimensions of a tensor are at least 32, only the means over
its rows and columns are kept, and V is their product divided by the mean of all. `eps` is not
read: 1e-30 is added to g^2. With b1 = 0 there is no running mean of the direction, as in Shazeer
and Stern, and hardly any state.

References:
    google-research/bert, optimization.py (AdamWeightDecayOptimizer, create_optimizer);
    Loshchilov and Hutter 2019, "Decoupled Weight Decay Regularization";
    You et al. 2020, "Large Batch Optimization for Deep Learning", Algorithm 2;
    Chen et al. 2023, "Symbolic Discovery of Optimization Algorithms", Algorithm 2;
    Shazeer and Stern 2018, "Adafactor: Adaptive Learning Rates with Sublinear Memory Cost";
    Zhai et al. 2022, "Scaling Vision Transformers", section 3.3;
    Hu et al. 2024, "MiniCPM: Unveiling the Potential of Small Language Models with Scalable
    Training Strategies";
    Hägele et al. 2024, "Scaling Laws and Compute-Optimal Training Beyond Fixed Training Durations".
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from bertjax.config import ConfigError, OptimizerConfig
from bertjax.parallel.partition import path_name
from bertjax.parameters import level, line_of

Tree = Any  # nested dicts of arrays
Schedule = Callable[[jax.typing.ArrayLike], jax.Array]


class Optimizer(NamedTuple):
    """An optax transformation, and the numbers that a run logs.

    Any transformation can be used, with any state:

        Optimizer(optax.adamw(schedule), schedule)

    Attributes:
      transformation: its `update` is also given `step`, the number of updates made before this
        one, where it takes extra arguments.
      schedule: step -> learning rate of the update; only for the log.
      grad_norm: gradients -> their norm before clipping; only for the log.
      with_schedule: another schedule -> the same optimizer with it; None if that cannot be made.
    """

    transformation: optax.GradientTransformation
    schedule: Schedule
    grad_norm: Callable[[Tree], jax.Array] = optax.tree.norm
    with_schedule: Callable[[Schedule], Optimizer] | None = None


def rate_table(schedule: Schedule, total_steps: int) -> jax.Array:
    """The learning rates of all steps of a run, as an argument of its program.

    So programs of other learning rates, warm-ups and numbers of steps are the same one. The table
    is filled up to a power of two, at least 4,096, because its length is a shape.

    Args:
      schedule: step -> learning rate; takes arrays of steps.
      total_steps: of the run.

    Returns:
      float32 [n]; the rate of step i is its element i.
    """
    length = max(4_096, 1 << (total_steps - 1).bit_length())
    return jnp.asarray(schedule(jnp.arange(length, dtype=jnp.int32)), jnp.float32)


def make_schedule(config: OptimizerConfig, total_steps: int) -> Schedule:
    """The learning rate of each step.

    With s the step, W `warmup_steps`, T `decay_steps` (0 means `total_steps`), P `learning_rate`
    and E `end_learning_rate`: P * s / W while s < W, and from then on, u = min(s, T),

        linear       E + (P - E) * (1 - u / T)
        polynomial   E + (P - E) * (1 - u / T) ** power
        cosine       E + (P - E) * (1 + cos(pi * (u - W) / (T - W))) / 2
        constant     P
        warmup_stable_decay
                     P                                      where u <= S
                     E + (P - E) * (1 - x)                  beyond, decay_shape "linear"
                     E + (P - E) * (1 - sqrt(x))            beyond, decay_shape "1-sqrt"

    with x = (u - S) / (T - S); the decay has T - S = `decay_share` * T steps, rounded, and at least
    one (`OptimizerConfig.decay_start`). The schedule is that of Hu et al. 2024, section 4, with the
    decays of Hägele et al. 2024, section 3.

    As in the reference, linear and polynomial decay count from step 0, not from the end of the
    warm-up. So the rate drops slightly there, from P * (W - 1) / W to P * (1 - W / T) if E = 0.
    Cosine decay starts at P when the warm-up ends (T > W). Without warm-up the rate of step 0 is P.

    Args:
      config: peak, warm-up, shape and end of the schedule.
      total_steps: steps of the whole run, used where `config.decay_steps` is 0.

    Returns:
      A function from the step (0 for the first update) to the rate, a float32 scalar.

    Raises:
      ConfigError: the schedule or the shape of its decay is unknown.
    """
    peak, end, warmup = config.learning_rate, config.end_learning_rate, config.warmup_steps
    decay_steps = config.decay_steps or total_steps
    decay: Schedule
    match config.schedule:
        case "linear" | "polynomial":
            power = config.power if config.schedule == "polynomial" else 1.0

            # Not optax.polynomial_schedule: compiled, its 1 - u / T can end slightly below zero,
            # and a fractional power of that is NaN.
            def decay(step: jax.typing.ArrayLike) -> jax.Array:
                left = jnp.clip(decay_steps - step, 0, decay_steps) / decay_steps
                return end + (peak - end) * left**power

        case "cosine":
            cosine: Schedule = optax.cosine_decay_schedule(peak - end, max(decay_steps - warmup, 1))

            def decay(step: jax.typing.ArrayLike) -> jax.Array:
                return end + cosine(step - warmup)

        case "constant":
            decay = optax.constant_schedule(peak)
        case "warmup_stable_decay":
            start = config.decay_start(total_steps)
            assert start is not None
            fall = _decay_shape(config)

            def decay(step: jax.typing.ArrayLike) -> jax.Array:
                step = jnp.asarray(step)
                done = jnp.clip(step - start, 0, decay_steps - start) / (decay_steps - start)
                # Before the decay the peak to the bit, as in a run of another length.
                return jnp.where(step <= start, peak, end + (peak - end) * fall(done))

        case _:
            raise ConfigError(
                f"config.optimizer.schedule = {config.schedule!r} is not known; choose from "
                "constant, cosine, linear, polynomial, warmup_stable_decay"
            )

    def schedule(step: jax.typing.ArrayLike) -> jax.Array:
        step = jnp.asarray(step)
        # Not optax.linear_schedule, which subtracts from the peak and so rounds the first rates.
        rate = jnp.where(step < warmup, peak * (step / max(warmup, 1)), decay(step))
        return rate.astype(jnp.float32)

    return schedule


def _decay_shape(config: OptimizerConfig) -> Callable[[jax.Array], jax.Array]:
    """From the share of the decay that is done, 0 to 1, to what is left, 1 to 0."""
    match config.decay_shape:
        case "linear":
            return lambda done: 1 - done
        case "1-sqrt":
            return lambda done: 1 - jnp.sqrt(done)
        case _:
            raise ConfigError(
                f"config.optimizer.decay_shape = {config.decay_shape!r} is not known; choose from "
                "1-sqrt, linear"
            )


def decay_mask(params: Tree) -> Tree:
    """The parameters that weight decay and LAMB's trust ratio apply to; see `bertjax.parameters`.

    Args:
      params: nested dicts; the leaves may be anything.

    Returns:
      The same nested dicts with True (decayed) or False at the leaves.

    Raises:
      ValueError: the table of parameters has no line for a path.
    """
    return jax.tree_util.tree_map_with_path(
        lambda path, _: line_of(path_name(path)).is_decayed, params
    )


def learning_rate_scales(params: Tree, layer_decay: float, frozen_layers: int) -> Tree:
    """The factor of each parameter's learning rate.

    With L layers, `layer_decay` to the power L - 1 - i for layer i and L for the embeddings (Howard
    and Ruder 2018, "discriminative fine-tuning"); 1 for pooler and heads. 0 for the embeddings and
    the layers below `frozen_layers`, unless that is 0.

    Returns:
      The same nested dicts with floats at the leaves.
    """
    paths = (path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params))
    num_layers = max(level(path) or 0 for path in paths)

    def scale(path: Any, _: Any) -> float:
        height = level(path_name(path))
        if height is None:
            return 1.0
        is_frozen = frozen_layers and height <= frozen_layers
        return 0.0 if is_frozen else layer_decay ** (num_layers - height)

    return jax.tree_util.tree_map_with_path(scale, params)


def make_optimizer(config: OptimizerConfig, total_steps: int) -> Optimizer:
    """The optimizer that `config` describes (formulas at the top of this file).

    Its state is float32, and has no count: the number of updates is `TrainState.step`.

    Args:
      config: names, rates and coefficients.
      total_steps: steps of the whole run, see `make_schedule`.

    Raises:
      ConfigError: the optimizer or its schedule cannot be made.
    """
    return _with_schedule(config, make_schedule(config, total_steps))


def _with_schedule(config: OptimizerConfig, schedule: Schedule) -> Optimizer:
    """The optimizer that `config` describes, with another schedule."""

    def scales(tree: Tree) -> Tree:
        return learning_rate_scales(tree, config.layer_decay, config.frozen_layers)

    def trained(grads: Tree, _: Any = None) -> Tree:
        """Zeroes the gradients of frozen parameters, which then do not count in the norm."""
        grads = optax.tree.cast(grads, jnp.float32)
        return jax.tree.map(
            lambda g, scale: g if scale else jnp.zeros_like(g), grads, scales(grads)
        )

    transformation = optax.chain(
        optax.stateless(trained),
        optax.clip_by_global_norm(config.max_grad_norm)
        if config.max_grad_norm
        else optax.identity(),
        *_direction(config),
        _scale_by_learning_rates(schedule, scales),
    )
    return Optimizer(
        transformation,
        schedule,
        grad_norm=lambda grads: optax.tree.norm(trained(grads)),
        with_schedule=functools.partial(_with_schedule, config),
    )


def _direction(config: OptimizerConfig) -> list[optax.GradientTransformation]:
    """From clipped gradients to the direction; a step goes against it."""
    b1, b2, eps = config.b1, config.b2, config.eps
    decay = optax.add_decayed_weights(config.weight_decay, mask=decay_mask)
    match config.name:
        case "bert_adamw":
            return [_counted_by_step(_adam_without_bias_correction(b1, b2, eps)), decay]
        case "adamw":
            return [_counted_by_step(optax.scale_by_adam(b1, b2, eps)), decay]
        case "lamb":
            trust_ratio = optax.masked(optax.scale_by_trust_ratio(), decay_mask)
            return [_counted_by_step(optax.scale_by_adam(b1, b2, eps)), decay, trust_ratio]
        case "lion":
            return [_counted_by_step(optax.scale_by_lion(b1, b2)), decay]
        case "adafactor":
            rms = optax.scale_by_factored_rms(
                min_dim_size_to_factor=32,
                decay_rate_fn=lambda step, power: jnp.minimum(b2, 1 - (step + 1.0) ** -power),
            )
            means = [_counted_by_step(optax.ema(b1, debias=False))] if b1 else []
            return [_counted_by_step(rms), *means, decay]
        case _:
            raise ConfigError(
                f"config.optimizer.name = {config.name!r} is not known; choose from adafactor, "
                "adamw, bert_adamw, lamb, lion"
            )


def _scale_by_learning_rates(
    schedule: Schedule, scales: Callable[[Tree], Tree]
) -> optax.GradientTransformationExtraArgs:
    """Multiplies by minus the learning rate of the step and by each parameter's factor."""

    def update(
        direction: Any, state: Any, params: Any = None, *, step: jax.typing.ArrayLike, **_: Any
    ) -> tuple[Any, Any]:
        rate = schedule(step)
        updates = jax.tree.map(lambda d, scale: -rate * scale * d, direction, scales(direction))
        return updates, state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)


def _counted_by_step(
    transformation: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
    """The same transformation with `step` in place of the `count` of its state."""

    def init(params: Any) -> Any:
        return transformation.init(params)._replace(count=None)

    def update(
        updates: Any, state: Any, params: Any = None, *, step: jax.typing.ArrayLike, **_: Any
    ) -> tuple[Any, Any]:
        counted = state._replace(count=jnp.asarray(step))
        updates, state = transformation.update(updates, counted, params)
        return updates, state._replace(count=None)

    return optax.GradientTransformationExtraArgs(init, update)


def _adam_without_bias_correction(b1: float, b2: float, eps: float) -> optax.GradientTransformation:
    """optax.scale_by_adam without bias correction, which optax does not have."""

    def update(
        grads: Any, state: optax.ScaleByAdamState, params: Any = None
    ) -> tuple[Any, optax.ScaleByAdamState]:
        mu = optax.tree.update_moment(grads, state.mu, b1, 1)
        nu = optax.tree.update_moment_per_elem_norm(grads, state.nu, b2, 2)
        direction = jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + eps), mu, nu)
        return direction, optax.ScaleByAdamState(optax.safe_increment(state.count), mu, nu)

    return optax.GradientTransformation(optax.scale_by_adam().init, update)
