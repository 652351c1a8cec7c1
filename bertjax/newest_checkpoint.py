"""Prints which checkpoint of a run is the newest: `python -m bertjax.newest_checkpoint WORKDIR`.

`step_00001234`, or nothing if no save was ever finished. The launchers ask it whether a run in a
bucket makes headway; it reads names alone and does not verify. Exit codes: 0; with one line on
stderr 1 if the bucket does not answer, 2 if buckets cannot be used here or no workdir is given.
"""

from __future__ import annotations

import sys

from bertjax.checkpoints.checkpoint_bucket import open_directory
from bertjax.cli.command_line import errors_in_one_line
from bertjax.errors import EXIT_FINISHED, ConfigError
from bertjax.storage.bucket import as_path


def main(workdir: str) -> int:
    """Prints the name; returns 0."""
    folder = as_path(workdir) / "checkpoints"
    directory = open_directory(folder)
    steps = directory.finished_steps() if folder.is_dir() else []
    if steps:
        print(directory.step_path(steps[-1]).name)
    return EXIT_FINISHED


if __name__ == "__main__":
    with errors_in_one_line():
        if len(sys.argv) != 2:
            raise ConfigError("expected one workdir: python -m bertjax.newest_checkpoint WORKDIR")
        sys.exit(main(sys.argv[1]))
