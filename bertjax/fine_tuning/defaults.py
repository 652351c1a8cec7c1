"""Default configuration of a fine-tuning run, and the fields that cannot be overridden."""

from __future__ import annotations

from bertjax.config import (
    CheckpointConfig,
    FineTuningConfig,
    LogConfig,
    OptimizerConfig,
    is_within,
)

DEFAULTS = FineTuningConfig(
    optimizer=OptimizerConfig(name="adamw", warmup_steps=0),
    checkpoint=CheckpointConfig(keep=1),
    log=LogConfig(every_steps=20),
)

# Sections that the task and the arguments decide, and the fields in them that stay free.
_DECIDED = (
    *("task", "data", "phases", "seed", "init_from", "continue_from"),
    *("model.head", "model.num_labels"),
    *("optimizer.learning_rate", "optimizer.warmup_steps", "eval"),
)
_FREE = ("data.num_threads", "data.prefetch_batches", "eval.every_steps")


def is_decided(name: str) -> bool:
    """Whether the task or an argument decides a field (dotted name), so that no override may."""
    return is_within(name, _DECIDED) and name not in _FREE
