"""One run per workdir: a lock that the kernel releases however the process ends.

In a bucket see `bucket_lock`.
"""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from bertjax.errors import EXIT_FAILED, BertjaxError, ConfigError
from bertjax.storage import bucket_lock
from bertjax.storage.bucket import BucketPath, as_path

LOCK_NAME = ".lock"


class WorkdirInUseError(BertjaxError, RuntimeError):
    """Another run holds the workdir; the message names its process, host and start."""

    exit_code = EXIT_FAILED


@contextlib.contextmanager
def lock_workdir(workdir: Path | BucketPath | str) -> Iterator[None]:
    """Holds `workdir` (created if need be) for the length of the `with` block.

    The lock is `flock` on `WORKDIR/.lock`, so a killed run leaves no lock. The file stays; its
    content (process, host, start) is only for the message of a run that is refused.

    Raises:
        WorkdirInUseError: another run holds it.
        ConfigError: the folder cannot be made or written.
        OSError: the bucket cannot be written.
    """
    path = as_path(workdir) / LOCK_NAME
    started = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
    words = f"process {os.getpid()} on {socket.gethostname()}, started {started}"
    if isinstance(path, BucketPath):
        try:
            with bucket_lock.hold(path, words):
                yield
        except bucket_lock.HeldError as error:
            raise _in_use(workdir, str(error)) from None
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Not "w": the holder's description must survive a refused attempt.
        lock = open(path, "a+")  # noqa: SIM115 (closed below)
    except OSError as error:
        raise ConfigError(
            f"--workdir={workdir}: cannot be made or written ({error.strerror}: {error.filename}); "
            "choose another folder"
        ) from error
    with lock as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise _in_use(workdir, file.read().strip()) from None
        file.truncate(0)
        file.write(f"{words}\n")
        file.flush()
        yield


def _in_use(workdir: Path | BucketPath | str, holder: str) -> WorkdirInUseError:
    return WorkdirInUseError(
        f"workdir {workdir} is in use by {holder or 'another run'}. "
        "Wait for that run, stop it, or choose another --workdir"
    )
