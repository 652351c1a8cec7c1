"""Turns SIGTERM and SIGINT into a clean stop."""

from __future__ import annotations

import logging
import signal
import threading
import time
import types
from typing import Any

from bertjax.parallel.distributed import leave

_LOG = logging.getLogger(__name__)


class Preempted(BaseException):
    """The process was preempted before the first step, with nothing to save.

    Not an `Exception`, so that no handler treats it as an error.
    """


class PreemptionGuard:
    """Records SIGTERM and SIGINT while the context is open.

    Before `defer` is called, a signal raises `Preempted` at once. Afterwards, a signal only sets
    `requested`, which the loop reads between two steps. A second signal ends at once: SIGTERM ends
    the process with 143, and SIGINT raises KeyboardInterrupt. Such a run counts as killed: its
    checkpoints stay, and steps after the last one are lost.

    Python delivers signals to the main thread only. In another thread none is noted.
    """

    def __init__(self, deferred: bool = False) -> None:
        """With `deferred` no signal raises, since one of several processes must not stop alone."""
        self.requested = False
        self._deferred = deferred
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> PreemptionGuard:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def defer(self) -> None:
        """From now on a signal waits until the loop reads `requested`."""
        self._deferred = True

    def _handle(self, number: int, _: types.FrameType | None) -> None:
        again, self.requested = self.requested, True  # also if the exception is swallowed
        name = signal.Signals(number).name
        if not self._deferred:
            raise Preempted(name)
        if again and number == signal.SIGINT:
            raise KeyboardInterrupt
        if again:
            _LOG.warning("%s again: ending at once, without saving", name)
            leave(128 + number)
        _LOG.warning(
            "%s: stopping after the current step or evaluation and saving; a second signal ends at "
            "once, without saving",
            name,
        )


def wait_until_ready(array: Any) -> None:
    """Waits for a `jax.Array` that is being computed, and handles signals meanwhile.

    Some of JAX's own waits hold them back until the array is done.
    """
    seconds = 1e-4
    while not array.is_ready():
        time.sleep(seconds)
        seconds = min(1.1 * seconds, 0.005)
