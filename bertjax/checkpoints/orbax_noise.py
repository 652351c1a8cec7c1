"""Silences orbax's repeated messages, which it logs through absl, asyncio and stderr."""

from __future__ import annotations

import functools
import logging
import sys
import warnings


@functools.cache
def quiet_orbax() -> None:
    """Silences orbax's INFO lines, and repetitions of errors that `checkpoint` raises.

    If one array cannot be written, orbax leaves the others in progress. Each of these complains on
    standard error when it ends: tasks never retrieved, coroutines never awaited, callbacks into a
    closed event loop.
    """
    for name in ("absl", "asyncio"):
        logging.getLogger(name).addFilter(_is_worth_showing)
    warnings.filterwarnings("ignore", "coroutine 'async_serialize", RuntimeWarning)
    hook = sys.unraisablehook

    def without_closed_loops(unraisable: sys.UnraisableHookArgs) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            hook(unraisable)

    sys.unraisablehook = without_closed_loops


def _is_worth_showing(record: logging.LogRecord) -> bool:
    if record.name == "asyncio":
        return "orbax" not in logging.Formatter().format(record)  # message and traceback
    return "/orbax/" not in record.pathname or record.levelno == logging.WARNING
