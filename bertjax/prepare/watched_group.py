"""A function in a process group of its own, started again when one of its processes is killed.

Beam's direct runner waits forever for a worker that was killed: only one of its threads ends with
an error. So it runs in a process that then ends itself and its workers. It also ends when the
process that started it is gone.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.process
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from bertjax.errors import EXIT_FAILED, BertjaxError
from bertjax.prepare.spawn import without_main


class GroupError(BertjaxError, RuntimeError):
    """The function raised an error, whose message this has."""

    exit_code = EXIT_FAILED


class GroupKilled(BertjaxError, RuntimeError):
    """Processes of the group were killed at every start."""

    exit_code = EXIT_FAILED


def run_watched(
    function: Callable[..., None],
    arguments: Sequence[Any],
    num_starts: int,
    log: Path,
    told: Callable[[], None],
) -> None:
    """Calls the function until it returns.

    Args:
        function: continues after a kill; can be pickled, with its arguments.
        arguments: of the function.
        num_starts: number of starts before it gives up.
        log: file to which the output of its processes is appended.
        told: is called before the group is started again.

    Raises:
        GroupError: the function raised an error.
        GroupKilled: processes were killed at every start.
    """
    context = multiprocessing.get_context("spawn")
    for start in range(num_starts):
        if start:
            told()
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=_run, args=(function, arguments, log, sender))
        with without_main():
            process.start()
        sender.close()
        try:
            with contextlib.suppress(EOFError):  # killed
                if reason := receiver.recv():
                    raise GroupError(reason)
                return
        finally:
            process.kill()
            with contextlib.suppress(ProcessLookupError):  # all have ended
                os.killpg(process.pid or 0, signal.SIGKILL)
            process.join()
            receiver.close()
    raise GroupKilled


def _run(
    function: Callable[..., None], arguments: Sequence[Any], log: Path, sender: Connection
) -> None:
    os.setpgrp()  # Ctrl-C reaches the process that started this one, which ends the group
    threading.Thread(target=_end_with_parent, daemon=True).start()
    threading.excepthook = _end_with_thread
    with open(log, "ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    reason = ""
    try:
        function(*arguments)
    except Exception as error:
        traceback.print_exc()
        reason = f"{type(error).__name__}: {str(error).strip()}"
    sys.stdout.flush()
    sys.stderr.flush()
    sender.send(reason)
    os._exit(0)  # threads that wait for a worker would keep this process


def _end_with_parent() -> None:
    parent = multiprocessing.process.parent_process()
    assert parent is not None
    parent.join()
    os.killpg(0, signal.SIGKILL)


def _end_with_thread(error: threading.ExceptHookArgs) -> None:
    threading.__excepthook__(error)
    sys.stderr.flush()
    os.killpg(0, signal.SIGKILL)
