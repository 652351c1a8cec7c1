"""Prints the newest checkpoint of a run: `python -m bertjax.newest_checkpoint WORKDIR`.

`step_00001234`, or nothing if no save was ever finished. The launchers use it to see whether a run
in a bucket makes progress. It reads names only and does not verify. Exit codes: 0; with one line on
stderr 1 if the bucket does not answer, 2 if buckets cannot be used here or no workdir is given.
"""

from __future__ import annotations

import sys
import typing
from collections.abc import Sequence

from bertjax.checkpoints.checkpoint_bucket import open_directory
from bertjax.cli.command_line import errors_in_one_line
from bertjax.errors import EXIT_FINISHED, ConfigError
from bertjax.storage.bucket import as_path


def main(argv: Sequence[str] | None = None) -> typing.NoReturn:
    """Runs the command; `argv` as in `command_line.run`."""
    _, *arguments = sys.argv if argv is None else argv
    with errors_in_one_line():
        if len(arguments) != 1:
            raise ConfigError("expected one workdir: python -m bertjax.newest_checkpoint WORKDIR")
        if name := newest_checkpoint(arguments[0]):
            print(name)
        sys.exit(EXIT_FINISHED)


def newest_checkpoint(workdir: str) -> str:
    """The name of the newest checkpoint of a workdir; "" if there is none."""
    folder = as_path(workdir) / "checkpoints"
    directory = open_directory(folder)
    steps = directory.finished_steps() if folder.is_dir() else []
    return directory.step_path(steps[-1]).name if steps else ""


if __name__ == "__main__":
    main()
