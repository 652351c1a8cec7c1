"""What is compared: the arms, which differ in the objective alone, and the sizes of the experiment.

The arms of a size share network, initial weights, rows, their order, batch size, steps, optimizer
and schedule. No arm predicts next sentences. Seed s of every arm reads the same rows.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bertjax import Config, load_recipe
from bertjax.config import Phase

LEFT_TO_RIGHT = {"model.head": "causal", "model.direction": "left_to_right"}
ARMS: dict[str, dict[str, Any]] = {
    "masked_15": {},
    "masked_40": {"data.mask_rate": 0.4},
    "left_to_right": LEFT_TO_RIGHT,
    # The first half of the steps as left_to_right; the second starts from it (see `parts`).
    "left_to_right_then_masked": {},
}


@dataclasses.dataclass(frozen=True)
class Size:
    """How large the experiment is.

    Attributes:
      arms: that are run, in this order for each seed.
      seeds: of initial weights, rows, masks.
      steps: of each arm.
      evaluated: steps whose checkpoints are scored on BLiMP; those of `fine_tuned` are among them.
      fine_tuned: steps whose checkpoints are fine-tuned.
      pairs: of BLiMP, per paradigm.
      settings: of the network and its training, over the recipe base.
    """

    arms: tuple[str, ...]
    seeds: tuple[int, ...]
    steps: int
    evaluated: tuple[int, ...]
    fine_tuned: tuple[int, ...]
    pairs: int
    settings: Mapping[str, Any]


_COMMON = {
    "model.next_sentence": False,
    "model.pooler": False,
    "model.dropout_rate": 0.0,
    "model.attention_dropout_rate": 0.0,
    "optimizer.name": "adamw",
    "checkpoint.keep": 0,
    "checkpoint.every_minutes": 0.0,
    "log.tensorboard": False,
}
SIZES = {
    # Two CPU cores; each arm and seed takes at most 20 minutes there.
    "cpu": Size(
        arms=("masked_15", "left_to_right", "masked_40"),
        seeds=(0, 1),
        steps=2_400,
        evaluated=(400, 800, 1_200, 1_600, 2_000, 2_400),
        fine_tuned=(800, 1_600, 2_400),
        pairs=50,
        settings={
            **_COMMON,
            "model.vocab_size": 4_096,
            "model.hidden_size": 256,
            "model.num_layers": 4,
            "model.num_heads": 4,
            "model.intermediate_size": 1_024,
            "model.max_positions": 64,
            # Wider than BERT's 0.02, as in the recipe tiny: short runs leave the plateau earlier.
            "model.initializer_range": 0.06,
            "data.max_length": 64,
            "data.global_batch_size": 32,
            "optimizer.learning_rate": 1e-3,
            "optimizer.warmup_steps": 200,
            "eval.every_steps": 200,
            "eval.max_rows": 1_024,
            "checkpoint.every_steps": 400,
            "log.every_steps": 50,
        },
    ),
    # One GPU for ten minutes: 7,200 steps of 256 rows of 128 tokens are 236 million places.
    "gpu": Size(
        arms=tuple(ARMS),
        seeds=(0,),
        steps=7_200,
        evaluated=(600, 1_200, 2_400, 3_600, 4_800, 7_200),
        fine_tuned=(1_200, 3_600, 7_200),
        pairs=1_000,
        settings={
            **_COMMON,
            "model.vocab_size": 4_096,
            "model.hidden_size": 384,
            "model.num_layers": 6,
            "model.num_heads": 6,
            "model.intermediate_size": 1_536,
            "model.max_positions": 128,
            "data.max_length": 128,
            "data.global_batch_size": 256,
            "optimizer.learning_rate": 1e-3,
            "optimizer.warmup_steps": 400,
            "eval.every_steps": 600,
            "eval.max_rows": 4_096,
            "checkpoint.every_steps": 600,
            "log.every_steps": 100,
        },
    ),
    # Seconds, to try every command; shows nothing.
    "toy": Size(
        arms=tuple(ARMS),
        seeds=(0, 1),
        steps=12,
        evaluated=(4, 8, 12),
        fine_tuned=(8, 12),
        pairs=1,
        settings={
            **_COMMON,
            "model.vocab_size": 4_096,
            "model.hidden_size": 32,
            "model.num_layers": 2,
            "model.num_heads": 2,
            "model.intermediate_size": 64,
            "model.max_positions": 64,
            "data.max_length": 32,
            "data.global_batch_size": 8,
            "optimizer.learning_rate": 1e-3,
            "optimizer.warmup_steps": 2,
            "eval.every_steps": 4,
            "eval.max_rows": 64,
            "checkpoint.every_steps": 2,
            "log.every_steps": 2,
        },
    ),
}


@dataclasses.dataclass(frozen=True)
class Part:
    """One run of `bertjax.pretrain`; most arms are one, an arm that changes its objective two.

    Attributes:
      folder: of the run, below that of the size.
      config: without the stores.
      first_step: steps of the arm before this run.
    """

    folder: str
    config: Config
    first_step: int = 0


def parts(size: Size, arm: str, seed: int) -> list[Part]:
    """The runs of an arm, one after the other; the later ones start from the one before.

    The second run of left_to_right_then_masked has an optimizer state of its own and reads other
    rows: it is a run with `init_from`, with a warm-up and half of the steps.
    """
    config = _config(size, ARMS[arm], seed, size.steps)
    folder = f"{arm}_{seed}"
    if arm != "left_to_right_then_masked":
        return [Part(folder, config)]
    half = size.steps // 2
    first = _config(size, LEFT_TO_RIGHT, seed, half)
    second = _config(size, {"seed": seed + 1_000}, seed + 1_000, half)
    return [Part(f"{folder}_first", first), Part(folder, second, half)]


def _config(size: Size, changes: Mapping[str, Any], seed: int, steps: int) -> Config:
    return load_recipe(
        "base", {**size.settings, "phases": (Phase(num_steps=steps),), **changes, "seed": seed}
    )


def checkpoint_path(runs: Path, size: Size, arm: str, seed: int, step: int) -> Path | None:
    """The folder of an arm's checkpoint of a step; None if it is not there yet."""
    for part in parts(size, arm, seed):
        own = step - part.first_step
        if 0 < own <= part.config.total_steps:
            path = runs / part.folder / "checkpoints" / f"step_{own:08d}"
            return path if path.is_dir() else None
    raise ValueError(f"step {step} is beyond the {size.steps} steps of an arm")
