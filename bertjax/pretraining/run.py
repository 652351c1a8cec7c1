"""Pre-training in a folder: `pretrain(config, workdir)`."""

from __future__ import annotations

from pathlib import Path

from bertjax.config import Config
from bertjax.pretraining.job import Pretraining
from bertjax.training import loop
from bertjax.training.optimizer import Optimizer


def pretrain(config: Config, workdir: str | Path, optimizer: Optimizer | None = None) -> int:
    """Pre-trains in `workdir`, or goes on with the run that is there; see `loop.run`."""
    return loop.run(config, workdir, Pretraining, optimizer)
