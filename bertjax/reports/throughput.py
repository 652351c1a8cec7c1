"""Rows per second, and the time that is left."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple


class Rates(NamedTuple):
    """The result of `Throughput.measure`."""

    sequences_per_second: float
    real_tokens_per_second: float


class Throughput:
    """Measures the steady rate of training, and estimates its end.

    A step counts when its metrics were fetched, because then the device has finished it. The first
    step, and the first after `restart`, only start the clock, because they wait for the compiler.
    Time inside `paused` (evaluation, a blocking save) does not count in the rates, but in the time
    left, because it will occur again.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self._clock = clock
        self.restart()

    def restart(self) -> None:
        """Resets everything. Call it when a step of another shape will be compiled."""
        self._start: float | None = None  # when the clock began, and the work since then
        self._flops = 0.0
        self._window = 0.0  # when the last measurement ended, and the work since then
        self._rows = self._real_tokens = 0
        self._paused_seconds = 0.0

    def add(self, rows: int, real_tokens: int, flops: float = 0.0) -> None:
        """Counts work, over all devices, that has just been finished."""
        if self._start is None:
            self._start = self._window = self._clock()
            self._paused_seconds = 0.0
            return
        self._rows += rows
        self._real_tokens += real_tokens
        self._flops += flops

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Leaves the time inside the block out of the rates."""
        begin = self._clock()
        try:
            yield
        finally:
            self._paused_seconds += self._clock() - begin

    def measure(self) -> Rates | None:
        """The rates since the last measurement; None if no step was counted since."""
        now = self._clock()
        seconds = now - self._window - self._paused_seconds
        if self._rows == 0 or seconds <= 0:
            return None
        rates = Rates(self._rows / seconds, self._real_tokens / seconds)
        self._window, self._rows, self._real_tokens, self._paused_seconds = now, 0, 0, 0.0
        return rates

    def seconds_left(self, flops_left: float) -> float | None:
        """The expected time of `flops_left` more FLOPs, by the pace since the clock started.

        Work is counted in FLOPs because a row of a later phase may be longer. None if no work
        with FLOPs was counted yet.
        """
        if self._start is None or self._flops == 0:
            return None
        return flops_left * (self._clock() - self._start) / self._flops
