"""BERT's AdamW, AdamW and LAMB, their learning-rate schedules and the weight-decay mask.

Every optimiser here is three steps: clip the gradients by their global norm, turn them into a
direction, take a step of the scheduled learning rate against it. They differ in the direction:

    bert_adamw   m / (sqrt(v) + eps) + weight_decay * w
    adamw        m' / (sqrt(v') + eps) + weight_decay * w
    lamb         r * (m' / (sqrt(v') + eps) + weight_decay * w),  r = |w| / |the bracket|

with m and v the running means of the gradient and of its square, m' = m / (1 - b1^t) and
v' = v / (1 - b2^t) at the t-th update (t = 1, 2, ...), and r one number a tensor (1 where either
norm is 0). Parameters hold each layer apart, so "a tensor" is one layer's. Biases and LayerNorm
are not decayed, and r = 1 for them.

References:
    google-research/bert, optimization.py (AdamWeightDecayOptimizer, create_optimizer);
    Loshchilov and Hutter 2019, "Decoupled Weight Decay Regularization";
    You et al. 2020, "Large Batch Optimization for Deep Learning", Algorithm 2.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from bertjax.config import ConfigError, OptimizerConfig
from bertjax.parameters import level, line_of

Tree = dict[str, Any]  # nested dicts of arrays
Schedule = Callable[[jax.typing.ArrayLike], jax.Array]


class Optimizer(NamedTuple):
    """A pure optimiser; both functions can be jitted.

    Attributes:
      init: params -> opt_state = {"mu": tree, "nu": tree}, float32 zeros shaped like params.
      update: (grads, opt_state, params, step) -> (new_params, new_opt_state, info). `step` is
          the number of updates made before this one. `info` holds float32 scalars:
          "learning_rate", the rate of this update, and "grad_norm", before clipping.
    """

    init: Callable[[Tree], Tree]
    update: Callable[[Tree, Tree, Tree, jax.typing.ArrayLike], tuple[Tree, Tree, Tree]]


def make_schedule(config: OptimizerConfig, total_steps: int) -> Schedule:
    """The learning rate of each step.

    With s the step, W `warmup_steps`, T `decay_steps` (0 means `total_steps`), P `learning_rate`
    and E `end_learning_rate`: P * s / W while s < W, and from then on, u = min(s, T),

        linear       E + (P - E) * (1 - u / T)
        polynomial   E + (P - E) * (1 - u / T) ** power
        cosine       E + (P - E) * (1 + cos(pi * (u - W) / (T - W))) / 2
        constant     P

    As in the reference, linear and polynomial decay count from step 0, not from the end of the
    warm-up: the rate drops a little there, from P * (W - 1) / W to P * (1 - W / T) where E = 0.
    Cosine decay starts at P when the warm-up ends (T > W). Without warm-up the rate of step 0 is P.

    Args:
      config: peak, warm-up, shape and end of the schedule.
      total_steps: steps of the whole run, used where `config.decay_steps` is 0.

    Returns:
      A function from the step (0 for the first update) to the rate, a float32 scalar.

    Raises:
      ConfigError: the schedule is unknown.
    """
    peak, end, warmup = config.learning_rate, config.end_learning_rate, config.warmup_steps
    decay_steps = config.decay_steps or total_steps
    decay: Schedule
    match config.schedule:
        case "linear" | "polynomial":
            power = config.power if config.schedule == "polynomial" else 1.0

            # Not optax.polynomial_schedule: compiled, its 1 - u / T can end a hair below zero, and
            # a fractional power of that is NaN.
            def decay(step: jax.typing.ArrayLike) -> jax.Array:
                left = jnp.clip(decay_steps - step, 0, decay_steps) / decay_steps
                return end + (peak - end) * left**power

        case "cosine":
            cosine = optax.cosine_decay_schedule(peak - end, max(decay_steps - warmup, 1))

            def decay(step: jax.typing.ArrayLike) -> jax.Array:
                return end + cosine(step - warmup)

        case "constant":
            decay = optax.constant_schedule(peak)
        case _:
            raise ConfigError(
                f"config.optimizer.schedule = {config.schedule!r} is not known; choose from "
                "constant, cosine, linear, polynomial"
            )

    def schedule(step: jax.typing.ArrayLike) -> jax.Array:
        step = jnp.asarray(step)
        # Not optax.linear_schedule, which subtracts from the peak and so rounds the first rates.
        rate = jnp.where(step < warmup, peak * (step / max(warmup, 1)), decay(step))
        return rate.astype(jnp.float32)

    return schedule


def decay_mask(params: Tree) -> Tree:
    """Which parameters weight decay applies to, and LAMB adapts; see `bertjax.parameters`.

    Args:
      params: nested dicts; the leaves may be anything.

    Returns:
      The same nested dicts with True (decayed) or False at the leaves.

    Raises:
      ValueError: the table of parameters has no line for a path.
    """
    return jax.tree_util.tree_map_with_path(lambda path, _: line_of(_name(path)).is_decayed, params)


def learning_rate_scales(params: Tree, layer_decay: float, frozen_layers: int) -> Tree:
    """What each parameter's learning rate is multiplied by.

    With L layers, `layer_decay` to the power L - 1 - i for layer i and L for the embeddings (Howard
    and Ruder 2018, "discriminative fine-tuning"); 1 for pooler and heads. 0 for the embeddings and
    the layers below `frozen_layers`, unless that is 0.

    Returns:
      The same nested dicts with floats at the leaves.
    """
    num_layers = len(params["encoder"])

    def scale(path: Any, _: Any) -> float:
        height = level(_name(path))
        if height is None:
            return 1.0
        is_frozen = frozen_layers and height <= frozen_layers
        return 0.0 if is_frozen else layer_decay ** (num_layers - height)

    return jax.tree_util.tree_map_with_path(scale, params)


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def make_optimizer(config: OptimizerConfig, total_steps: int) -> Optimizer:
    """The optimiser that `config` describes (formulas at the top of this file).

    Args:
      config: names, rates and coefficients.
      total_steps: steps of the whole run, see `make_schedule`.

    Raises:
      ConfigError: the optimiser or its schedule cannot be made.
    """
    schedule = make_schedule(config, total_steps)
    clip = optax.identity()
    if config.max_grad_norm:
        clip = optax.clip_by_global_norm(config.max_grad_norm)
    after_adam = optax.add_decayed_weights(config.weight_decay, mask=decay_mask)
    match config.name:
        case "bert_adamw":
            adam = _adam_without_bias_correction(config.b1, config.b2, config.eps)
        case "adamw":
            adam = optax.scale_by_adam(config.b1, config.b2, config.eps)
        case "lamb":
            adam = optax.scale_by_adam(config.b1, config.b2, config.eps)
            trust_ratio = optax.masked(optax.scale_by_trust_ratio(), decay_mask)
            after_adam = optax.chain(after_adam, trust_ratio)
        case _:
            raise ConfigError(
                f"config.optimizer.name = {config.name!r} is not known; choose from adamw, "
                "bert_adamw, lamb"
            )

    def init(params: Tree) -> Tree:
        decay_mask(params)  # an uncovered parameter shows now, not at the first update
        return {name: optax.tree.zeros_like(params, dtype=jnp.float32) for name in ("mu", "nu")}

    def update(
        grads: Tree, opt_state: Tree, params: Tree, step: jax.typing.ArrayLike
    ) -> tuple[Tree, Tree, Tree]:
        grads = optax.tree.cast(grads, jnp.float32)
        scales = learning_rate_scales(params, config.layer_decay, config.frozen_layers)
        # Frozen parameters count neither in the norm nor in the clipping.
        grads = jax.tree.map(lambda g, scale: g if scale else jnp.zeros_like(g), grads, scales)
        learning_rate = schedule(step)
        info = {"learning_rate": learning_rate, "grad_norm": optax.tree.norm(grads)}
        grads, _ = clip.update(grads, clip.init(params))
        adam_state = optax.ScaleByAdamState(count=jnp.asarray(step), **opt_state)
        direction, moments = adam.update(grads, adam_state)
        # Decay and trust ratio have no state of their own.
        direction, _ = after_adam.update(direction, after_adam.init(params), params)
        updates = jax.tree.map(lambda d, scale: -learning_rate * scale * d, direction, scales)
        new_params = optax.apply_updates(params, updates)
        return new_params, {"mu": moments.mu, "nu": moments.nu}, info

    return Optimizer(init, update)


def _adam_without_bias_correction(b1: float, b2: float, eps: float) -> optax.GradientTransformation:
    """optax.scale_by_adam with m and v as they are, which optax does not offer."""

    def update(
        grads: Any, state: optax.ScaleByAdamState, params: Any = None
    ) -> tuple[Any, optax.ScaleByAdamState]:
        mu = optax.tree.update_moment(grads, state.mu, b1, 1)
        nu = optax.tree.update_moment_per_elem_norm(grads, state.nu, b2, 2)
        direction = jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + eps), mu, nu)
        return direction, optax.ScaleByAdamState(optax.safe_increment(state.count), mu, nu)

    return optax.GradientTransformation(optax.scale_by_adam().init, update)
