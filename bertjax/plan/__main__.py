"""Plans a recipe: whether it fits the memory, and how fast it can be at best.

    python -m bertjax.plan --config=large --topology=v5e:16x16 --config.mesh.fsdp=8

Compiles the real training step for a TPU slice that you need not own (pip install 'bertjax[plan]')
or for the devices of this machine, and reports memory, arithmetic, collectives and the bound that
the chips set; for GPUs only by arithmetic. --search compares layouts and recommends one.
Exit codes: 0 it fits; 1 it does not; 2 a setting that cannot work.
"""

from __future__ import annotations

import json
import typing
from collections.abc import Sequence
from typing import Any

from absl import flags

from bertjax.cli import recipe_flags
from bertjax.config import Config
from bertjax.errors import EXIT_FINISHED

_DOES_NOT_FIT = 1


def main(argv: Sequence[str] | None = None) -> typing.NoReturn:
    """Runs the command; see `command_line.run`."""
    recipe_flags.run(_define, _plan, __doc__ or "", argv)


def _define(values: flags.FlagValues) -> None:
    flags.DEFINE_string(
        "topology",
        "",
        "CHIP:SHAPE: v4:2x2x4, v5e:16x16, v5p:2x2x4, v6e:4x4, a100:8, h100:8, h200:8 and other "
        "shapes of them. Default: the devices of this machine.",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "num_slices",
        1,
        "Equal slices (TPU) or machines (GPU), joined by the network.",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "phase",
        None,
        "Plan this phase only, from 0. Default: all.",
        lower_bound=0,
        flag_values=values,
    )
    flags.DEFINE_bool(
        "search",
        False,
        "Compare layouts (mesh, remat, microbatches) and recommend one.",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "num_compiles",
        3,
        "Layouts that --search compiles; 0 = arithmetic only.",
        lower_bound=0,
        flag_values=values,
    )
    flags.DEFINE_bool("json", False, "Print JSON instead of a table.", flag_values=values)


def _plan(values: flags.FlagValues, config: Config) -> int:
    """Plans and prints; 0 = it fits."""
    from bertjax.plan.plan_run import plan_run, search_layouts

    name = recipe_flags.recipe_name(values)
    where = {"num_slices": values.num_slices, "phase": values.phase}
    plan: Any
    if values.search:
        plan = search_layouts(config, values.topology, num_compiles=values.num_compiles, **where)
    else:
        plan = plan_run(config, values.topology, **where)
    print(json.dumps(plan.to_json(name), indent=2) if values.json else plan.to_text(name))
    return EXIT_FINISHED if plan.fits else _DOES_NOT_FIT


if __name__ == "__main__":
    main()
