"""A folder of checkpoints in a bucket, and functions that open a checkpoint anywhere.

A bucket has no rename, so a checkpoint is written under its final name and counts once SEAL.json,
written last, exists. A `step_*` without it was never finished, or is being removed, and a start of
the run removes it. See docs/design/checkpoint.md. No jax and no orbax here.
"""

from __future__ import annotations

import logging
from pathlib import Path

from bertjax.checkpoints import sealing
from bertjax.checkpoints.checkpoint_directory import (
    CheckpointDirectory,
    find_faults,
    listed,
    step_of,
)
from bertjax.checkpoints.sealing import SEAL_NAME, CheckpointError
from bertjax.storage.bucket import BucketPath, in_parallel

_log = logging.getLogger(__name__)


class CheckpointBucket(CheckpointDirectory):
    """The checkpoints in a folder of a bucket."""

    def __init__(self, path: BucketPath):
        self.path = self._bucket_path = path

    def step_path(self, step: int) -> BucketPath:
        """The folder of a step's checkpoint, finished or not."""
        return self._bucket_path / f"step_{step:08d}"

    def unfinished_path(self, step: int, attempt: int) -> BucketPath:
        """The folder to which a step's checkpoint is written: its final name."""
        return self.step_path(step)

    def finished_steps(self) -> list[int]:
        """Steps that have a sealed checkpoint, intact or not, ascending."""
        steps = self._steps()
        sealed = in_parallel(self.is_finished, steps)
        return [step for step, is_sealed in zip(steps, sealed, strict=True) if is_sealed]

    def is_finished(self, step: int) -> bool:
        """Whether the checkpoint of a step has a seal."""
        return (self.step_path(step) / SEAL_NAME).is_file()

    def finish(self, unfinished: Path | BucketPath, step: int) -> None:
        """Seals a checkpoint that was written."""
        sealing.write_seal(unfinished, step)

    def remove_unfinished(self) -> bool:
        """Removes the remains of interrupted saves and removals; returns whether there were any."""
        finished = self.finished_steps()
        unfinished = [self.step_path(step) for step in self._steps() if step not in finished]
        for path in unfinished:
            path.remove_tree()
            _log.info("removed %s, which was never finished", path)
        return bool(unfinished)

    def _names(self) -> list[str]:
        return self._bucket_path.folders()

    def _remove(self, step: int) -> None:
        # If the process is killed in between, the next start removes the rest.
        self.step_path(step).remove_tree(first=SEAL_NAME)

    def _set_aside(self, path: Path | BucketPath) -> str:
        assert isinstance(path, BucketPath)
        aside = self._unused_name(f"unsound_{path.name}")
        try:
            path.copy_tree(path.with_name(aside))
            path.remove_tree(first=SEAL_NAME)
        except OSError as error:
            raise CheckpointError(f"{path}: unsound, but cannot be set aside: {error}") from error
        return aside


def open_directory(path: Path | BucketPath) -> CheckpointDirectory:
    """The checkpoints in a folder of a bucket or a file system."""
    return CheckpointBucket(path) if isinstance(path, BucketPath) else CheckpointDirectory(path)


def find(path: Path | BucketPath) -> Path | BucketPath:
    """The intact checkpoint of `path`; renames and removes nothing.

    Args:
        path: one checkpoint, or a workdir or its `checkpoints` folder for the newest intact one.

    Raises:
        CheckpointError: there is none, or none that is intact.
    """
    if not path.is_dir():
        raise CheckpointError(f"{path}: no such directory; expected a workdir or a checkpoint")
    if step_of(path.name) is not None or (path / SEAL_NAME).is_file():
        candidates = [path]
    else:
        folder = path / "checkpoints" if (path / "checkpoints").is_dir() else path
        directory = open_directory(folder)
        candidates = [directory.step_path(step) for step in reversed(directory.finished_steps())]
    for candidate in candidates:
        faults = find_faults(candidate)
        if not faults:
            return candidate
        _log.warning("%s is unsound: %s", candidate, listed(faults))
    if not candidates:
        raise CheckpointError(
            f"{path}: no checkpoint found; expected a workdir with checkpoints/step_*, or one "
            f"step_* directory with {SEAL_NAME}"
        )
    raise CheckpointError(
        f"{path}: no intact checkpoint; the last that was tried, {candidate}: {listed(faults)}"
    )
