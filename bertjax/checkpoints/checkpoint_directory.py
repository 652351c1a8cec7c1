"""A folder of checkpoints: which exist, which are intact, which are removed.

`step_00001234` is a finished checkpoint, `unsound_step_00001234` a corrupt one that was set aside
for inspection. `.saving_*` and `.removing_*` are unfinished work of a process. Buckets have no
rename: see `checkpoint_bucket`. No jax and no orbax here.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import time
from collections.abc import Collection
from pathlib import Path

from bertjax.checkpoints import sealing
from bertjax.checkpoints.sealing import CheckpointError
from bertjax.storage.atomic_files import sync
from bertjax.storage.bucket import BucketPath

_log = logging.getLogger(__name__)
_STEP_NAME = re.compile(r"step_(\d{8,})")


def step_of(name: str) -> int | None:
    """The step of a checkpoint folder, by its name; None for other folders."""
    match = _STEP_NAME.fullmatch(name)
    return int(match[1]) if match else None


class CheckpointDirectory:
    """The checkpoints in a folder of a file system with atomic renames."""

    def __init__(self, path: Path):
        self.path: Path | BucketPath = path

    def step_path(self, step: int) -> Path | BucketPath:
        """The folder of a step's finished checkpoint."""
        return self.path / f"step_{step:08d}"

    def unfinished_path(self, step: int, attempt: int) -> Path | BucketPath:
        """The folder to which a step's checkpoint is written until it is sealed."""
        return self.path / f".saving_step_{step:08d}.{attempt}"

    def make(self) -> None:
        """Makes the folder if it is missing."""
        self.path.mkdir(parents=True, exist_ok=True)

    def finished_steps(self) -> list[int]:
        """Steps that have a finished checkpoint, intact or not, ascending.

        Raises:
            CheckpointError: the directory is gone.
        """
        try:
            return self._steps()
        except FileNotFoundError:
            raise CheckpointError(
                f"{self.path}: no such directory; was the workdir removed?"
            ) from None

    def is_finished(self, step: int) -> bool:
        """Whether the checkpoint of a step is finished, intact or not."""
        return self.step_path(step).is_dir()

    def finish(self, unfinished: Path | BucketPath, step: int) -> None:
        """Seals a checkpoint that was written, and gives it its name."""
        assert isinstance(unfinished, Path)
        sealing.write_seal(unfinished, step)
        unfinished.rename(self.step_path(step))
        sync(unfinished.parent)

    def remove_unfinished(self) -> bool:
        """Removes the remains of interrupted saves and removals; returns whether there were any."""
        assert isinstance(self.path, Path)
        unfinished = [*self.path.glob(".saving_*"), *self.path.glob(".removing_*")]
        for path in unfinished:
            shutil.rmtree(path)
            _log.info("removed %s, which was never finished", path)
        return bool(unfinished)

    def remove_failed_save(self) -> None:
        """Removes the remains of a failed save, until they have stayed away for a second.

        If one array cannot be written, the writer gives up while others are in progress, which may
        create the directory again.
        """
        deadline, clear_since = time.monotonic() + 30, time.monotonic()
        error: OSError | None = None
        while time.monotonic() < min(deadline, clear_since + 1):
            try:
                if self.remove_unfinished():
                    clear_since, error = time.monotonic(), None
            except OSError as caught:  # a file was made while its directory was being emptied
                clear_since, error = time.monotonic(), caught
            time.sleep(0.05)
        if error:
            _log.warning("the partial output of a failed save stays: %s", error)

    def prune(self, keep: int, protected_steps: Collection[int] = ()) -> None:
        """Removes all but the newest `keep` (at least 1) checkpoints and the protected ones."""
        for step in self.finished_steps()[:-keep]:
            if step not in protected_steps:
                self._remove(step)

    def newest_sound(self) -> Path | BucketPath | None:
        """The newest intact checkpoint; None if no save was ever finished.

        Newer ones that are corrupt are set aside, each with a warning that names the files.

        Raises:
            CheckpointError: there are or were checkpoints and none is intact.
        """
        for step in reversed(self.finished_steps()):
            path = self.step_path(step)
            faults = find_faults(path)
            if not faults:
                return path
            aside = self._set_aside(path)
            _log.warning("%s is unsound, set aside as %s: %s", path, aside, listed(faults))
        unsound = [name for name in self._names() if name.startswith("unsound_step_")]
        if unsound:
            raise CheckpointError(
                f"{self.path}: no intact checkpoint is left ({listed(unsound)}), and the run does "
                "not start over by itself. Put a good copy of a step_* directory there, or choose "
                "another --workdir, or remove the unsound_step_* directories to start from scratch"
            )
        return None

    def _steps(self) -> list[int]:
        """Steps that have a folder, ascending."""
        return sorted(step for name in self._names() if (step := step_of(name)) is not None)

    def _names(self) -> list[str]:
        """Names of the folders in this one, sorted."""
        return sorted(os.listdir(self.path))

    def _remove(self, step: int) -> None:
        # Renamed first, so that a killed process leaves no partial checkpoint.
        path = self.step_path(step)
        assert isinstance(path, Path)
        shutil.rmtree(path.rename(path.with_name(f".removing_{path.name}")))

    def _set_aside(self, path: Path | BucketPath) -> str:
        aside = self._unused_name(f"unsound_{path.name}")
        assert isinstance(path, Path)
        try:
            path.rename(path.with_name(aside))
        except OSError as error:
            raise CheckpointError(f"{path}: unsound, but cannot be set aside: {error}") from error
        return aside

    def _unused_name(self, wanted: str) -> str:
        names, name, count = self._names(), wanted, 0
        while name in names:
            count += 1
            name = f"{wanted}.{count}"
        return name


def find_faults(path: Path | BucketPath) -> list[str]:
    """The faults of a checkpoint: of its files (`sealing.find_faults`) or its name.

    Raises:
        CheckpointError: as `sealing.find_faults`.
    """
    faults = sealing.find_faults(path)
    expected = step_of(path.name)
    if not faults and expected is not None:
        step = sealing.read_seal(path)["step"]
        if step != expected:
            faults = [f"{sealing.SEAL_NAME}: step {step} found, {expected} expected"]
    return faults


def listed(lines: list[str], limit: int = 5) -> str:
    """The first few of many, for a message."""
    more = [f"and {len(lines) - limit} more"] if len(lines) > limit else []
    return "; ".join(lines[:limit] + more)
