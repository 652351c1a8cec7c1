"""Does a recipe fit, and how fast can it be at best.

    python -m bertjax.plan --config=large --topology=v5e:16x16 --config.mesh.fsdp=8

Compiles the real training step for a TPU slice that nobody here owns (pip install 'bertjax[plan]')
or for the devices of this machine, and reports memory, arithmetic, collectives and the bound that
the chips set; for GPUs by arithmetic alone. --search compares layouts and recommends one.
Exit codes: 0 it fits; 1 it does not; 2 a setting that cannot work.
"""

from __future__ import annotations

import json
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from bertjax.cli import recipe_flags
from bertjax.config import Config, ConfigError

_CONFIG = recipe_flags.define_config()
_TOPOLOGY = flags.DEFINE_string(
    "topology",
    "",
    "CHIP:SHAPE: v4:2x2x4, v5e:16x16, v5p:2x2x4, v6e:4x4, a100:8, h100:8, h200:8 and other shapes "
    "of them. Default: the devices of this machine.",
)
_NUM_SLICES = flags.DEFINE_integer(
    "num_slices", 1, "Equal slices (TPU) or machines (GPU), joined by the network."
)
_PHASE = flags.DEFINE_integer(
    "phase", None, "Plan this phase only, from 0. Default: all.", lower_bound=0
)
_SEARCH = flags.DEFINE_bool(
    "search", False, "Compare meshes, remat and microbatches, and recommend one."
)
_NUM_COMPILES = flags.DEFINE_integer(
    "num_compiles", 3, "Layouts that --search compiles; 0 = arithmetic alone.", lower_bound=0
)
_JSON = flags.DEFINE_bool("json", False, "Print JSON instead of a table.")


def main(config: Config) -> int:
    """Plans and prints; 0 = it fits."""
    num_phases = len(config.resolved_phases())
    if _PHASE.value is not None and _PHASE.value >= num_phases:
        raise ConfigError(f"--phase={_PHASE.value}: the recipe has phases 0 to {num_phases - 1}")
    phases = range(num_phases) if _PHASE.value is None else [_PHASE.value]

    from bertjax.plan import phase_plan, report, search
    from bertjax.plan.topology import open_target

    target = open_target(
        _TOPOLOGY.value, _NUM_SLICES.value, compiles=not _SEARCH.value or _NUM_COMPILES.value > 0
    )
    config = phase_plan.resolve(config, target)
    recipe = Path(config_flags.get_config_filename(flags.FLAGS["config"])).stem
    if _SEARCH.value:
        result = search.search(config, list(phases), target, _NUM_COMPILES.value)
        print(
            json.dumps(result.to_json(recipe), indent=2) if _JSON.value else result.to_text(recipe)
        )
        return 0 if result.best is not None else 1
    plans = [phase_plan.plan_phase(config, index, target) for index in phases]
    advice = [[] if plan.fits else phase_plan.advise(config, plan, target) for plan in plans]
    if _JSON.value:
        print(json.dumps(report.plan_json(config, recipe, target, plans, advice), indent=2))
    else:
        print(report.plan_text(config, recipe, target, plans, advice))
    return 0 if all(plan.fits for plan in plans) else 1


if __name__ == "__main__":
    recipe_flags.run(main, _CONFIG)
