"""Pre-trains a BERT on a token store, which `bertjax.prepare` makes from a corpus.

    python -m bertjax.train --config=base --workdir=DIR --config.data.store=STORE

Run it again with the same workdir to resume; the default workdir is runs/base. Without a store it
trains on the documentation of the Python installation, 2 MB.

On Cloud TPU, GKE, Slurm and Open MPI the same command on every machine makes one run; elsewhere add
--coordinator_address, --num_processes and --process_id.

Exit codes: 0 finished; 75 preempted (SIGTERM or SIGINT) and saved, or another process of the run
was lost: run it again; 2 a setting that cannot work; 1 any other error.
"""

from __future__ import annotations

import logging
import typing
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from bertjax.cli import recipe_flags
from bertjax.cli.command_line import errors_in_one_line
from bertjax.config import Config

_LOG = logging.getLogger("bertjax.train")  # also where the module is __main__


def main(argv: Sequence[str] | None = None) -> typing.NoReturn:
    """Runs the command; see `command_line.run`."""
    recipe_flags.run(_define, _train, __doc__ or "", argv)


def _define(values: flags.FlagValues) -> None:
    flags.DEFINE_string(
        "workdir",
        None,
        "Folder of the run: checkpoints, metrics.jsonl, curves.png, summary.json. A path, or "
        "gs://BUCKET/FOLDER. Default: runs/NAME, by the recipe's name. A run in this folder is "
        "resumed.",
        flag_values=values,
    )
    flags.DEFINE_string(
        "coordinator_address",
        "",
        "HOST:PORT of process 0. Not needed for one process, or on clusters that JAX knows.",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "num_processes",
        0,
        "Number of processes of the run, with --coordinator_address.",
        flag_values=values,
    )
    flags.DEFINE_integer("process_id", -1, "Number of this process, from 0.", flag_values=values)


def _train(values: flags.FlagValues, config: Config) -> typing.NoReturn:
    """Trains, alone or as one process of several."""
    workdir = values.workdir or str(Path("runs", recipe_flags.recipe_name(values)))
    import jax

    from bertjax.parallel import distributed
    from bertjax.pretraining.run import pretrain

    with (
        errors_in_one_line(distributed.end),
        distributed.connected(values.coordinator_address, values.num_processes, values.process_id),
    ):
        if jax.process_index() > 0:  # one process speaks for all
            logging.getLogger("bertjax").setLevel(logging.WARNING)
        if not values.workdir:
            _LOG.info("the run is kept in %s; --workdir=DIR for another folder", workdir)
        distributed.end(pretrain(config, workdir).exit_code)


if __name__ == "__main__":
    main()
