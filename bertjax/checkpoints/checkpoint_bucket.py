"""A folder of checkpoints in a bucket, and the way to open one wherever it is.

Nothing can be renamed in a bucket, so a checkpoint grows under its own name, and its SEAL.json,
written last, is what makes it one: a `step_*` without it was never finished, or is on its way out,
and goes when a run starts. See docs/design/checkpoint.md. No jax and no orbax here.
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
        """Where the checkpoint of a step is, finished or not."""
        return self._bucket_path / f"step_{step:08d}"

    def unfinished_path(self, step: int, attempt: int) -> BucketPath:
        """Where the checkpoint of a step grows: under its final name."""
        return self.step_path(step)

    def finished_steps(self) -> list[int]:
        """Steps that have a sealed checkpoint, sound or not, ascending."""
        steps = self._steps()
        sealed = in_parallel(self.is_finished, steps)
        return [step for step, is_sealed in zip(steps, sealed, strict=True) if is_sealed]

    def is_finished(self, step: int) -> bool:
        """Whether the checkpoint of a step has a seal."""
        return (self.step_path(step) / SEAL_NAME).is_file()

    def finish(self, unfinished: Path | BucketPath, step: int) -> None:
        """Seals a checkpoint that has grown."""
        sealing.write_seal(unfinished, step)

    def remove_unfinished(self) -> bool:
        """Removes what a save or a removal that did not come to its end has left; True if any."""
        finished = self.finished_steps()
        unfinished = [self.step_path(step) for step in self._steps() if step not in finished]
        for path in unfinished:
            path.remove_tree()
            _log.info("removed %s, which was never finished", path)
        return bool(unfinished)

    def _names(self) -> list[str]:
        return self._bucket_path.folders()

    def _remove(self, step: int) -> None:
        # A process killed in between leaves what the next start removes.
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
    """The checkpoints in a folder, of a bucket or of a file system."""
    return CheckpointBucket(path) if isinstance(path, BucketPath) else CheckpointDirectory(path)


def find(path: Path | BucketPath) -> Path | BucketPath:
    """The sound checkpoint that `path` means; renames and removes nothing.

    Args:
        path: one checkpoint, or a workdir or its `checkpoints` folder for the newest sound one.

    Raises:
        CheckpointError: there is none, or none that is sound.
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
        f"{path}: no sound checkpoint; the last that was tried, {candidate}: {listed(faults)}"
    )
