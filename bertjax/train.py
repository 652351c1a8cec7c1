"""Pre-trains: `python -m bertjax.train --config=base --workdir=DIR --config.data.store=STORE`.

Run it again with the same workdir to resume. Exit codes: 0 finished; 75 preempted (SIGTERM or
SIGINT) and saved, run it again; 2 a setting that cannot work; 1 any other error.
"""

from __future__ import annotations

import logging
import sys

from absl import flags

from bertjax import cli
from bertjax.config import Config, ConfigError

_CONFIG = cli.define_config()
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder of the run: checkpoints, metrics.jsonl, curves.png, summary.json."
)


def main(config: Config) -> int:
    """Runs the training and turns foreseen errors into one line on stderr."""
    if not _WORKDIR.value:
        raise ConfigError("--workdir=DIR is missing: the folder that the run is kept in")
    from bertjax.data.store import StoreError
    from bertjax.training import loop
    from bertjax.training.checkpoint import CheckpointError
    from bertjax.training.workdir_lock import WorkdirInUseError

    try:
        return loop.run(config, _WORKDIR.value)
    except (
        CheckpointError,
        StoreError,
        WorkdirInUseError,
        loop.TrainingDivergedError,
    ) as error:
        logging.getLogger(__name__).debug("details", exc_info=True)
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    cli.run(main, _CONFIG)
