"""One run a workdir: a lock that the kernel releases however the process ends."""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import os
import socket
from collections.abc import Iterator
from pathlib import Path

LOCK_NAME = ".lock"


class WorkdirInUseError(RuntimeError):
    """Another run holds the workdir; the message names its process, host and start."""


@contextlib.contextmanager
def lock_workdir(workdir: Path | str) -> Iterator[None]:
    """Holds `workdir` (created if need be) for the length of the `with` block.

    The lock is `flock` on `WORKDIR/.lock`, so a killed run leaves none behind. The file stays; what
    it says (process, host, start) only serves the message of the run that is refused.

    Raises:
        WorkdirInUseError: another run holds it.
        OSError: the workdir cannot be created or written.
    """
    path = Path(workdir) / LOCK_NAME
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+") as file:  # not "w": the holder's words must survive a refused attempt
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise WorkdirInUseError(
                f"workdir {workdir} is in use by {file.read().strip() or 'another run'}. "
                "Wait for that run, stop it, or choose another --workdir"
            ) from None
        file.truncate(0)
        started = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
        file.write(f"process {os.getpid()} on {socket.gethostname()}, started {started}\n")
        file.flush()
        yield
