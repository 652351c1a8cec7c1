"""What a result says of the machine that it was measured on."""

from __future__ import annotations

import os
import platform
from pathlib import Path


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
    return f"{os.cpu_count()} x {cpu_name()}" if device.platform == "cpu" else device.device_kind
