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
    """The process was asked to stop before the first step: there was nothing to save.

    Not an `Exception`, so that nothing on the way takes it for an error.
    """


class PreemptionGuard:
    """Notes SIGTERM and SIGINT while the context is open.

    Until `defer` is called a signal raises `Preempted` where the program stands. After it, a
    signal only sets `requested`, which the loop reads between two steps, and a second one ends at
    once: SIGTERM the process, with 143, SIGINT with KeyboardInterrupt. A run that ends so is one
    that was killed: its checkpoints stay, what came after the last of them is lost.

    Python hands signals to the main thread alone; in another one nothing is noted.
    """

    def __init__(self, deferred: bool = False) -> None:
        """With `deferred` no signal raises: one of several processes never stops alone."""
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
        """From here on a signal waits for the loop to read `requested`."""
        self._deferred = True

    def _handle(self, number: int, _: types.FrameType | None) -> None:
        again, self.requested = self.requested, True  # also where what is raised gets lost
        name = signal.Signals(number).name
        if not self._deferred:
            raise Preempted(name)
        if again and number == signal.SIGINT:
            raise KeyboardInterrupt
        if again:
            _LOG.warning("%s again: ending at once, without saving", name)
            leave(128 + number)
        _LOG.warning(
            "%s: stopping after the step or evaluation at hand and saving; a second signal ends at "
            "once, without saving",
            name,
        )


def wait_until_ready(array: Any) -> None:
    """Waits for a `jax.Array` that is being computed, so that signals are heard meanwhile.

    Some of JAX's own waits hold them back until the array is done.
    """
    seconds = 1e-4
    while not array.is_ready():
        time.sleep(seconds)
        seconds = min(1.1 * seconds, 0.005)
