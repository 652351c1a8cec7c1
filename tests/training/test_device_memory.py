"""How much memory a step may use."""

import re
from pathlib import Path

import jax
import pytest

from bertjax.config import MeshConfig
from bertjax.parallel.sharding import make_mesh
from bertjax.training.compilation import device_memory_bytes

MEMORY = Path("/proc/meminfo")


def kilobytes(name):
    return int(re.search(rf"^{name}: +(\d+) kB$", MEMORY.read_text(), re.M)[1])


@pytest.mark.skipif(not MEMORY.exists(), reason="no /proc/meminfo to compare with")
def test_what_is_cached_of_files_is_available(tmp_path):
    """A machine that has read a large corpus has little free memory, and much that can be had."""
    file = tmp_path / "cached"
    file.write_bytes(bytes(200 << 20))
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    before = kilobytes("MemAvailable")
    found = device_memory_bytes(mesh) / 1024
    after = kilobytes("MemAvailable")
    # Nearer to it than the cached file is large; others on this machine may take and give.
    assert abs(found - (before + after) / 2) < 100 * 1024 + abs(before - after)
    assert found - kilobytes("MemFree") > 100 * 1024
