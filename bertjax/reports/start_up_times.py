"""The time of a run from its command to its first step, part by part."""

from __future__ import annotations

import os
import time


class StartUp:
    """Seconds from the command to the first step, by part of the start.

    If one process has several runs (`bertjax.finetune` with lists), the first is counted from the
    command, and the others from their own beginning.
    """

    _began = 0  # runs of this process

    def __init__(self) -> None:
        """The first part is everything before: importing, connecting, finding devices."""
        is_first = StartUp._began == 0
        StartUp._began += 1
        self._of = "command" if is_first else "run"
        self.parts = {"imports and devices": process_seconds()} if is_first else {}
        self._since = time.monotonic()

    def ends(self, part: str) -> None:
        """Ends a part, which began at the end of the previous one."""
        now = time.monotonic()
        self.parts[part] = now - self._since
        self._since = now

    def __str__(self) -> str:
        parts = ", ".join(f"{part} {seconds:.1f}" for part, seconds in self.parts.items())
        return f"{sum(self.parts.values()):.1f} s after the {self._of} began ({parts})"


def process_seconds() -> float:
    """Seconds since this process was started; without /proc, its CPU time."""
    try:
        with open("/proc/self/stat", encoding="utf-8") as file:
            ticks = int(file.read().rpartition(")")[2].split()[19])  # field 22 of proc(5)
        return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError):
        return time.process_time()
