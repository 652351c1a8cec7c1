"""A folder of checkpoints: which are there, which are sound, what goes.

`step_00001234` is a finished checkpoint, `unsound_step_00001234` one that was found damaged and
set aside for inspection, `.saving_*` and `.removing_*` the unfinished work of a process. No jax and
no orbax here.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import time
from pathlib import Path

from bertjax.training import sealing
from bertjax.training.sealing import CheckpointError

_log = logging.getLogger(__name__)
_STEP_NAME = re.compile(r"step_(\d{8,})")


def step_path(directory: Path, step: int) -> Path:
    """Where the finished checkpoint of a step is."""
    return directory / f"step_{step:08d}"


def unfinished_path(directory: Path, step: int, attempt: int) -> Path:
    """Where the checkpoint of a step grows until it is sealed."""
    return directory / f".saving_step_{step:08d}.{attempt}"


def finished_steps(directory: Path) -> list[int]:
    """Steps that have a finished checkpoint, sound or not, ascending.

    Raises:
        CheckpointError: the directory is gone.
    """
    try:
        names = os.listdir(directory)
    except FileNotFoundError:
        raise CheckpointError(f"{directory}: no such directory; was the workdir removed?") from None
    matches = (_STEP_NAME.fullmatch(name) for name in names)
    return sorted(int(match[1]) for match in matches if match)


def finish(unfinished: Path, step: int) -> None:
    """Seals a checkpoint that has grown, and gives it its name."""
    sealing.write_seal(unfinished, step)
    unfinished.rename(step_path(unfinished.parent, step))
    sealing.sync_directory(unfinished.parent)


def remove_unfinished(directory: Path) -> bool:
    """Removes what a save or a removal that did not come to its end has left; True if any."""
    unfinished = [*directory.glob(".saving_*"), *directory.glob(".removing_*")]
    for path in unfinished:
        shutil.rmtree(path)
        _log.info("removed %s, which was never finished", path)
    return bool(unfinished)


def remove_failed_save(directory: Path) -> None:
    """Removes what a failed save has left, until it stays gone for a second.

    When one array cannot be written, the writer gives up while others are under way, and these may
    make the directory anew.
    """
    deadline, clear_since = time.monotonic() + 30, time.monotonic()
    error: OSError | None = None
    while time.monotonic() < min(deadline, clear_since + 1):
        try:
            if remove_unfinished(directory):
                clear_since, error = time.monotonic(), None
        except OSError as caught:  # a file was made while its directory was being emptied
            clear_since, error = time.monotonic(), caught
        time.sleep(0.05)
    if error:
        _log.warning("the partial output of a failed save stays: %s", error)


def prune(directory: Path, keep: int, protected_step: int | None = None) -> None:
    """Removes all but the newest `keep` (at least 1) checkpoints and the protected one."""
    for step in finished_steps(directory)[:-keep]:
        if step == protected_step:
            continue
        # Renamed first: a process killed in between must not leave half a checkpoint.
        path = step_path(directory, step)
        shutil.rmtree(path.rename(directory / f".removing_{path.name}"))


def newest_sound(directory: Path) -> Path | None:
    """The newest sound checkpoint; None if no save was ever finished.

    Newer ones that are unsound are set aside, each with a warning that names the files.

    Raises:
        CheckpointError: there are or were checkpoints and none is sound.
    """
    for step in reversed(finished_steps(directory)):
        path = step_path(directory, step)
        faults = find_faults(path)
        if not faults:
            return path
        aside = _set_aside(path)
        _log.warning("%s is unsound, set aside as %s: %s", path, aside.name, listed(faults))
    unsound = sorted(path.name for path in directory.glob("unsound_step_*"))
    if unsound:
        raise CheckpointError(
            f"{directory}: no sound checkpoint is left ({listed(unsound)}), and the run does not "
            "start over by itself. Put a good copy of a step_* directory there, or choose another "
            "--workdir, or remove the unsound_step_* directories to start from scratch"
        )
    return None


def find(path: Path) -> Path:
    """The sound checkpoint that `path` means; renames and removes nothing.

    Args:
        path: one checkpoint, or a workdir or its `checkpoints` folder for the newest sound one.

    Raises:
        CheckpointError: there is none, or none that is sound.
    """
    if not path.is_dir():
        raise CheckpointError(f"{path}: no such directory; expected a workdir or a checkpoint")
    if _STEP_NAME.fullmatch(path.name) or (path / sealing.SEAL_NAME).exists():
        candidates = [path]
    else:
        folder = path / "checkpoints" if (path / "checkpoints").is_dir() else path
        candidates = [step_path(folder, step) for step in reversed(finished_steps(folder))]
    for candidate in candidates:
        faults = find_faults(candidate)
        if not faults:
            return candidate
        _log.warning("%s is unsound: %s", candidate, listed(faults))
    if not candidates:
        raise CheckpointError(
            f"{path}: no checkpoint found; expected a workdir with checkpoints/step_*, or one "
            f"step_* directory with {sealing.SEAL_NAME}"
        )
    raise CheckpointError(
        f"{path}: no sound checkpoint; the last that was tried, {candidate}: {listed(faults)}"
    )


def find_faults(path: Path) -> list[str]:
    """What speaks against a checkpoint: its files (`sealing.find_faults`) or its name.

    Raises:
        CheckpointError: as `sealing.find_faults`.
    """
    faults = sealing.find_faults(path)
    match = _STEP_NAME.fullmatch(path.name)
    if not faults and match:
        step = sealing.read_seal(path)["step"]
        if step != int(match[1]):
            faults = [f"{sealing.SEAL_NAME}: step {step} found, {int(match[1])} expected"]
    return faults


def listed(lines: list[str], limit: int = 5) -> str:
    """The first few of many, for a message."""
    more = [f"and {len(lines) - limit} more"] if len(lines) > limit else []
    return "; ".join(lines[:limit] + more)


def _set_aside(path: Path) -> Path:
    aside, count = path.with_name(f"unsound_{path.name}"), 0
    while aside.exists():
        count += 1
        aside = path.with_name(f"unsound_{path.name}.{count}")
    try:
        return path.rename(aside)
    except OSError as error:
        raise CheckpointError(f"{path}: unsound, but cannot be set aside: {error}") from error
