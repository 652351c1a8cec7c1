"""Prints which checkpoint of a run is the newest: `python -m bertjax.newest_checkpoint WORKDIR`.

`step_00001234`, or nothing if no save was ever finished. The launchers ask it whether a run in a
bucket makes headway; it reads names alone and does not verify. Exit codes: 0; 1, with one line on
stderr, if the bucket does not answer.
"""

from __future__ import annotations

import sys

from bertjax.checkpoints.checkpoint_bucket import open_directory
from bertjax.config import ConfigError
from bertjax.storage.bucket import as_path


def main(workdir: str) -> int:
    """Prints the name; returns the exit code."""
    folder = as_path(workdir) / "checkpoints"
    directory = open_directory(folder)
    try:
        steps = directory.finished_steps() if folder.is_dir() else []
    except (OSError, ConfigError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if steps:
        print(directory.step_path(steps[-1]).name)
    return 0


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("error: expected one workdir: python -m bertjax.newest_checkpoint WORKDIR")
    sys.exit(main(sys.argv[1]))
