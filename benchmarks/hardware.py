"""What a result says of the machine that it was measured on."""

from __future__ import annotations

import os
import platform
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any


def cpu_name() -> str:
    """Model name from /proc/cpuinfo, where there is one."""
    if Path("/proc/cpuinfo").exists():
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor()


def device_name() -> str:
    """What JAX computes on: the kind of accelerator, or how many cores of which CPU."""
    import jax  # some benchmarks do without

    device = jax.devices()[0]
    if device.platform != "cpu":
        return device.device_kind
    return f"{len(os.sched_getaffinity(0))} x {cpu_name()}"


def record(load: str = "") -> dict[str, Any]:
    """What a result begins with: when, on what and with what it was measured.

    Args:
      load: what else the machine was doing.
    """
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": device_name(),
        "versions": {"python": platform.python_version(), "jax": version("jax")},
        "load": load,
    }
