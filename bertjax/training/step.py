"""The train step and the evaluation step: pure functions of (state, batch, key).

jax.jit(functools.partial(train_step, objective, optimizer, num_microbatches), donate_argnums=0)
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from bertjax.objectives.objective import Objective, Sums, is_packed
from bertjax.parallel.partition import ROWS, constrain, split_update, sum_over_data
from bertjax.training.optimizer import Optimizer

Tree = Any  # nested dicts of arrays
Batch = dict[str, jax.Array]

_EVALUATION_SEED = 0  # so that runs compare, whatever their seed
# Distinct from the numbers of dropout keys, which `jax.random.split` derives as `fold_in` does.
_SAMPLING = 2**31 - 1


class TrainState(NamedTuple):
    """Everything that training changes: arrays, or their shapes. `step` counts the updates made."""

    step: Any  # int32 []
    params: Tree
    opt_state: Tree


def train_step(
    objective: Objective,
    optimizer: Optimizer,
    num_microbatches: int,
    state: TrainState,
    batch: Batch,
    key: jax.Array,
    shard_optimizer: bool = False,
) -> tuple[TrainState, dict[str, Any]]:
    """One update on one global batch.

    The run's `key` is folded with the step and each row's number, so dropout depends neither on
    the number of microbatches nor on the mesh, and a resumed run draws what the uninterrupted one
    would have drawn. The denominators are taken over the global batch before it is split, so any
    number of microbatches gives the same gradient (a mean of means would not: the counts of
    masked tokens vary).

    Args:
      objective: what is minimised.
      optimizer: what the parameters are updated with.
      num_microbatches: parts that the batch is run in, one after the other; divides its rows.
      state: before the update.
      batch: arrays whose first dimension is rows [b, ...].
      key: the run's key, the same at every step.
      shard_optimizer: whether the update is split over `data` (Xu et al. 2020, "Automatic
        Cross-Replica Sharding of Weight Update in Data-Parallel Training").

    Returns:
      The new state, and scalars of this step: `loss`, `learning_rate`, `grad_norm` (before
      clipping), `real_tokens` (int32), of packed rows `pairs`, and `sums`, the objective's sums
      over the batch by name. All but `real_tokens` are float32.
    """
    row_keys = _row_keys(jax.random.fold_in(key, state.step), batch)
    denominators = objective.denominators(batch)

    def loss_and_sums(params: Tree, part: Batch, keys: jax.Array) -> tuple[jax.Array, Sums]:
        sums = objective.sums(params, part, keys, _sampling_keys(keys))
        return objective.loss(sums, denominators), sums

    gradient = jax.grad(loss_and_sums, has_aux=True)
    if num_microbatches == 1 and not shard_optimizer:
        grads, sums = gradient(state.params, batch, row_keys)
    else:
        parts = jax.tree.map(functools.partial(_split_rows, num_microbatches), (batch, row_keys))
        # Scattered by us: XLA alone would cut the products that make the gradients into loops.
        add = sum_over_data(functools.partial(_accumulate, gradient), shard_optimizer)
        grads, sums = add(state.params, parts)

    if shard_optimizer:
        # Gathered again by what reads the new parameters: the step's results are whole.
        grads, state = split_update(grads), state._replace(params=split_update(state.params))
    state, info = apply_gradients(optimizer, state, grads)
    loss = objective.loss(sums, denominators)
    return state, {**info, "loss": loss, **_counts(batch), "sums": sums}


def apply_gradients(
    optimizer: Optimizer, state: TrainState, grads: Tree
) -> tuple[TrainState, dict[str, jax.Array]]:
    """Returns the state after one update, and its `learning_rate` and `grad_norm` (float32 [])."""
    update = optax.with_extra_args_support(optimizer.transformation).update
    updates, opt_state = update(grads, state.opt_state, state.params, step=state.step)
    params = optax.apply_updates(state.params, updates)
    info = {
        "learning_rate": optimizer.schedule(state.step),
        "grad_norm": optimizer.grad_norm(grads),
    }
    return TrainState(state.step + 1, params, opt_state), info


def evaluation_step(
    objective: Objective, params: Tree, batch: Batch, first_row: jax.Array
) -> dict[str, jax.Array]:
    """Returns the objective's sums over one batch, without dropout.

    The objective's random draws depend only on the rows' numbers: they are the same in each
    evaluation, with batches of any size.

    Args:
      objective: whose sums are taken.
      params: of the model.
      batch: arrays whose first dimension is rows [b, ...].
      first_row: int32 [], the number of the batch's first row.
    """
    keys = _row_keys(jax.random.key(_EVALUATION_SEED), batch, first_row)
    return objective.sums(params, batch, None, _sampling_keys(keys))


def _row_keys(key: jax.Array, batch: Batch, first_row: Any = 0) -> jax.Array:
    """A key for each row [b], by its number."""
    numbers = first_row + jnp.arange(batch["input_ids"].shape[0])
    return jax.vmap(functools.partial(jax.random.fold_in, key))(numbers)


def _sampling_keys(row_keys: jax.Array) -> jax.Array:
    """Keys [b] for what an objective draws, which dropout does not use."""
    return jax.vmap(lambda key: jax.random.fold_in(key, _SAMPLING))(row_keys)


def _accumulate(gradient: Callable[..., Tree], params: Tree, parts: Tree) -> Tree:
    """The sum of `gradient(params, *part)` over the parts [n, b, ...], one after the other."""

    def add(carry: Tree, part: Tree) -> tuple[Tree, None]:
        return jax.tree.map(jnp.add, carry, gradient(params, *part)), None

    first = jax.tree.map(lambda x: x[0], parts)
    if len(jax.tree.leaves(parts)[0]) == 1:
        return gradient(params, *first)
    zeros = jax.tree.map(
        lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(gradient, params, *first)
    )
    return jax.lax.scan(add, zeros, parts)[0]


def _counts(batch: Batch) -> dict[str, jax.Array]:
    if is_packed(batch):
        real = (batch["segment_ids"] > 0).sum()
        return {"real_tokens": real, "pairs": batch["pair_weights"].sum()}
    return {"real_tokens": batch["attention_mask"].sum()}


def _split_rows(parts: int, x: jax.Array) -> jax.Array:
    """[b, ...] -> [parts, b / parts, ...], each part with rows of every device."""
    x = jnp.swapaxes(x.reshape(x.shape[0] // parts, parts, *x.shape[1:]), 0, 1)
    return constrain(x, None, ROWS)
