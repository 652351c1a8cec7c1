"""The number of usable CPU cores."""

from __future__ import annotations

import os


def num_cores() -> int:
    """Cores that this process may use; under Slurm and in containers possibly not all."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
