r"""Fine-tunes checkpoints of pre-training runs on tasks with several seeds, and draws the scores.

    python -m bertjax.sweep --models=runs/a,runs/b --tasks=tasks.json --seeds=0,1,2 \
      --workdir=sweeps/ab
    python -m bertjax.sweep --models=masked=runs/a,masked=runs/b,runs/c@2000,hf:FOLDER \
      --tasks=tasks.json --workdir=sweeps/abc

tasks.json has an object for each task: {"cola": {"train": "train.tsv", "eval": "dev.tsv",
"learning_rate": 5e-5, "batch_size": 32, "epochs": 3, "max_length": 64}}. Only train and eval are
needed. The others are flags of `bertjax.finetune`: task (default: the name), options (an object),
warmup_share.

WORKDIR/sweep.json has every score, with means and 95 % intervals over the seeds; sweep.png draws
them against the steps, predicted tokens and seconds of the pre-training. Run the command again with
the same --workdir to go on: finished runs are kept. Exit codes are those of `bertjax.train`.
"""

from __future__ import annotations

import typing
from collections.abc import Mapping, Sequence
from typing import Any

from absl import flags

from bertjax.cli import recipe_flags
from bertjax.cli.command_line import errors_in_one_line
from bertjax.config import ConfigError
from bertjax.errors import EXIT_FINISHED, EXIT_PREEMPTED
from bertjax.fine_tuning.defaults import DEFAULTS, is_decided

_NEEDED = ("models", "tasks", "workdir")


def main(argv: Sequence[str] | None = None) -> typing.NoReturn:
    """Runs the command; see `command_line.run`."""
    recipe_flags.run_with_overrides(_define, _sweep, __doc__ or "", DEFAULTS, is_decided, argv)


def _define(values: flags.FlagValues) -> None:
    flags.DEFINE_list(
        "models",
        [],
        "Workdirs of bertjax.train (every checkpoint that is kept), WORKDIR@STEP, WORKDIR@newest, "
        "checkpoints, or hf:FOLDER. NAME=... gives the line in the plot a name; those of one name "
        "are one line.",
        flag_values=values,
    )
    flags.DEFINE_string("tasks", None, "JSON file with the tasks, as above.", flag_values=values)
    flags.DEFINE_list(
        "seeds",
        ["0"],
        "Seeds of the new layer, the order and dropout; one run for each.",
        flag_values=values,
    )
    flags.DEFINE_string("workdir", None, "Folder of the sweep.", flag_values=values)
    flags.DEFINE_bool(
        "keep_checkpoints",
        True,
        "Keep the best and the last checkpoint of each run; else scores, predictions and curves.",
        flag_values=values,
    )


def _sweep(values: flags.FlagValues, overrides: Mapping[str, Any]) -> typing.NoReturn:
    for name in _NEEDED:
        if not values[name].value:
            raise ConfigError(f"--{name} is missing: {values[name].help}")
    from bertjax.parallel import distributed

    with errors_in_one_line(distributed.end):
        distributed.end(_run(values, overrides))


def _run(values: flags.FlagValues, overrides: Mapping[str, Any]) -> int:
    from bertjax.fine_tuning.runs import check_workdir
    from bertjax.sweeps.sweep import open_sweep, run_sweep
    from bertjax.training.loop import TrainingDivergedError

    workdir = check_workdir(values.workdir)
    seeds = [int(text) if text.isdigit() else text for text in values.seeds]
    sweep = open_sweep(values.models, values.tasks, typing.cast(list[int], seeds), overrides)
    if values.print_config:
        print("\n".join(run.config.to_json() for run in sweep.runs))
        return EXIT_FINISHED
    result = run_sweep(sweep, workdir, values.keep_checkpoints)
    if result.preempted:
        return EXIT_PREEMPTED
    print(result.table)
    if result.diverged:
        lines = [f"{name}: {reason}" for name, reason in result.diverged.items()]
        raise TrainingDivergedError("\n".join(lines))
    return EXIT_FINISHED


if __name__ == "__main__":
    main()
