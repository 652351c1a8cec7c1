"""The base class of all errors that bertjax foresees, and their exit codes.

Only `cli/command_line.py` prints them; docs/decisions/errors.md has the rule.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

EXIT_FINISHED = 0
EXIT_FAILED = 1  # during the work: a disk, a bucket, another run, divergence or a bug
EXIT_REFUSED = 2  # a setting or an input that cannot work
EXIT_PREEMPTED = 75  # EX_TEMPFAIL: run the same command again
EXIT_INTERRUPTED = 130  # by Ctrl-C: 128 + SIGINT, as in shells


class BertjaxError(Exception):
    """An error that bertjax foresees; its message says what was found, expected and what to do.

    Attributes:
      exit_code: of a command that ends with it.
      keeps_traceback: whether a command prints the traceback before the message, for an
        unforeseen error of a thread.
    """

    exit_code: int = EXIT_REFUSED
    keeps_traceback: bool = False


class ConfigError(BertjaxError, ValueError):
    """A setting that cannot work; the message says what was found, expected and what to do."""


def closest(name: str, known: Iterable[str]) -> str:
    """Returns advice for a name that does not exist: the closest one, else all of them."""
    known = sorted(known)
    match = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {match[0]!r}?" if match else f"choose from {', '.join(known)}"
