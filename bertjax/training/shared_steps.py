"""Whether a run would have taken the steps of a checkpoint: what `config.continue_from` needs."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from bertjax.checkpoints.checkpoint import Checkpoint
from bertjax.checkpoints.checkpoint_bucket import open_directory
from bertjax.config import Config, ConfigError, Phase, is_within
from bertjax.training.optimizer import make_schedule

# What may differ as long as the steps up to the checkpoint are the same.
_LENGTHS_AND_RATES = (
    *("num_steps", "phases"),
    *("optimizer.learning_rate", "optimizer.warmup_steps", "optimizer.schedule"),
    *("optimizer.decay_steps", "optimizer.decay_share", "optimizer.decay_shape"),
    *("optimizer.end_learning_rate", "optimizer.power"),
)


class OtherStep(NamedTuple):
    """A setting, or a learning rate, by which the steps of two runs differ.

    Attributes:
      step: updates that both runs make alike.
      what: the setting, or the rate of the next update.
      values: in the first run and in the second.
    """

    step: int
    what: str
    values: tuple[float, float]


def concerns_steps(name: str) -> bool:
    """Whether a setting (dotted name) only says which steps a run takes, and at which rates."""
    return is_within(name, _LENGTHS_AND_RATES)


def check_shared_steps(checkpoint: Checkpoint, saved: Config, config: Config) -> None:
    """Checks that the steps of a checkpoint are the first ones of a run, which has more.

    Args:
      checkpoint: of another run.
      saved: the configuration of that run.
      config: of the run that goes on from it; the same but for what `concerns_steps`.

    Raises:
      ConfigError: naming what differs, and a checkpoint to take instead.
    """
    where = f"config.continue_from={checkpoint.path}"
    found = other_steps(saved, config, checkpoint.step)
    alike = min((other.step for other in found), default=checkpoint.step)
    if checkpoint.step >= config.last_step:
        advice = _earlier_checkpoint(checkpoint, min(alike, config.last_step - 1))
        raise ConfigError(
            f"{where}: nothing would be left to train, because this run ends at step "
            f"{config.last_step:,}: raise its number of steps, or {advice}"
        )
    if found:
        listed = "; ".join(f"{what}: {old} there, {new} here" for _, what, (old, new) in found)
        raise ConfigError(
            f"{where}: only the first {alike:,} steps are those of this run ({listed}): "
            f"{_earlier_checkpoint(checkpoint, alike)}"
        )


def other_steps(old: Config, new: Config, step: int) -> list[OtherStep]:
    """Where two runs differ in their first `step` updates, by their phases and learning rates."""
    found = []
    first = 0
    for i, (theirs, ours) in enumerate(
        zip(old.resolved_phases(), new.resolved_phases(), strict=False)
    ):
        if first >= step:  # not begun there
            break
        for field in dataclasses.fields(Phase):
            values = getattr(theirs, field.name), getattr(ours, field.name)
            at = first
            if field.name == "num_steps":
                at += min(*values, step - first)
                if at == step:
                    continue
            if values[0] != values[1]:
                found.append(OtherStep(at, f"config.phases[{i}].{field.name}", values))
        if found:  # the phases that follow lie elsewhere
            break
        first += theirs.num_steps
    rates = [
        np.asarray(make_schedule(config.optimizer, config.total_steps)(jnp.arange(step)))
        for config in (old, new)
    ]
    if (differ := np.flatnonzero(rates[0] != rates[1])).size:
        at = int(differ[0])
        values = float(f"{rates[0][at]:.6g}"), float(f"{rates[1][at]:.6g}")
        found.append(OtherStep(at, f"the learning rate of step {at + 1:,}", values))
    return found


def _earlier_checkpoint(checkpoint: Checkpoint, step: int) -> str:
    """Advice to continue from a checkpoint of the same run at this step or before.

    Args:
      checkpoint: one that is too late.
      step: updates that both runs make alike.
    """
    if step == 0:
        return "start this run without continue_from"
    folder = open_directory(checkpoint.path.parent)
    fitting = [saved for saved in folder.finished_steps() if saved <= step]
    if not fitting:
        return f"name a checkpoint of step {step:,} or before; none is in {folder.path}"
    return f"set --config.continue_from={folder.step_path(fitting[-1])}"
