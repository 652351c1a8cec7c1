"""An optimizer of your own: Signum, steps of the sign of the momentum (Bernstein et al. 2018).

It trains on a text to step 30, stops, and resumes to step 60; see own_optimizer.md.

    python examples/own_optimizer.py embedded:python runs/own_optimizer
"""

import sys
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

import bertjax
from bertjax.training.optimizer import Optimizer, decay_mask


class SignumState(NamedTuple):
    momentum: optax.Updates  # like the parameters, and split over devices like them


def signum(schedule, decay_rate=0.9, weight_decay=0.01):
    """W <- w - rate * (sign(m) + weight_decay * w), with m the running mean of the gradients."""

    def init(params):
        return SignumState(jax.tree.map(jnp.zeros_like, params))

    def update(grads, state, params=None, *, step, **_):
        momentum = jax.tree.map(
            lambda m, g: decay_rate * m + (1 - decay_rate) * g, state.momentum, grads
        )
        updates = jax.tree.map(
            lambda m, w, decayed: -schedule(step) * (jnp.sign(m) + weight_decay * decayed * w),
            momentum,
            params,
            decay_mask(params),  # False for biases and LayerNorm
        )
        return updates, SignumState(momentum)

    return optax.GradientTransformationExtraArgs(init, update)


def own_optimizer():
    schedule = optax.warmup_cosine_decay_schedule(0.0, 1e-3, warmup_steps=10, decay_steps=60)
    return Optimizer(signum(schedule), schedule)


if __name__ == "__main__":
    text, folder = sys.argv[1:]
    store = bertjax.build_store(text, f"{folder}/store", "train:wordpiece", vocab_size=2_000)
    base = {"data.store": store.path, "model.vocab_size": 2_000, "optimizer.warmup_steps": 10}
    base |= {"phases[0].num_steps": 60, "log.every_steps": 10}
    first = bertjax.pretrain("tiny", f"{folder}/run", {**base, "num_steps": 30}, own_optimizer())
    print(first.steps, first.metrics["heldout_mlm_loss"])
    run = bertjax.pretrain("tiny", f"{folder}/run", base, own_optimizer())
    print(run.steps, run.metrics["heldout_mlm_loss"])
