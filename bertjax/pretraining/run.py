"""Pre-training in a folder: `pretrain(config, workdir)`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bertjax.cli.recipes import open_recipe
from bertjax.config import Config
from bertjax.config.store_list import store_list
from bertjax.pretraining.job import Pretraining
from bertjax.storage.bucket import is_bucket_path, require_client
from bertjax.training import loop
from bertjax.training.optimizer import Optimizer
from bertjax.training.result import TrainingResult


def pretrain(
    config: Config | str,
    workdir: str | Path,
    overrides: Mapping[str, Any] | None = None,
    optimizer: Optimizer | None = None,
) -> TrainingResult:
    """Pre-trains in `workdir`, or resumes the run that is there.

    Args:
      config: the recipe, by name, as the path of a .py file, or as an object.
      workdir: of checkpoints, metrics, curves and summary: a folder, or gs://BUCKET/FOLDER.
      overrides: fields of the recipe by dotted name, {"data.store": "stores/mine"}.
      optimizer: instead of the one that `config.optimizer` describes; to resume, give it again.

    Returns:
      Steps, metrics and state; see `TrainingResult`.

    Raises:
      ConfigError: a setting cannot work, or contradicts the run in `workdir`.
      BertjaxError: others of `loop.run`.
    """
    config = open_recipe(config, overrides)
    stores = [store.path for store in store_list(config.data)]
    sources = (config.init_from, config.continue_from)
    if any(map(is_bucket_path, (workdir, *stores, config.data.eval_store, *sources))):
        require_client()  # before any work
    return loop.run(config, workdir, Pretraining, optimizer)
