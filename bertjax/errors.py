"""What can go wrong by a setting, a file or a machine: one base class of all our errors."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class BertjaxError(Exception):
    """An error that bertjax foresees; its message says what was found, expected and what to do.

    Attributes:
      exit_code: of a command that it ends: 2 for what cannot work as it was asked for, 1 for what
        failed on the way.
    """

    exit_code = 2


class ConfigError(BertjaxError, ValueError):
    """A setting that cannot work; the message says what was found, expected and what to do."""


def closest(name: str, known: Iterable[str]) -> str:
    """Returns advice for a name that does not exist: the closest one, else all of them."""
    known = sorted(known)
    match = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {match[0]!r}?" if match else f"choose from {', '.join(known)}"
