"""How long a start takes, part by part."""

import subprocess
import sys
import time

import pytest

from bertjax.training.start_up import StartUp


def test_a_process_knows_how_long_it_has_run():
    started = time.monotonic()
    code = (
        "import time; time.sleep(0.5); from bertjax.training.start_up import process_seconds as p;"
        "print(p())"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    # The kernel counts starts in hundredths of a second.
    assert 0.49 <= float(found.stdout) <= time.monotonic() - started + 0.02


def test_parts_follow_each_other():
    start_up = StartUp()
    time.sleep(0.05)
    start_up.ends("a")
    time.sleep(0.1)
    start_up.ends("b")
    assert list(start_up.parts) == ["imports and devices", "a", "b"]
    assert start_up.parts["a"] == pytest.approx(0.05, abs=0.04)
    assert start_up.parts["b"] == pytest.approx(0.1, abs=0.04)
    assert f"{sum(start_up.parts.values()):.1f} s after the command began" in str(start_up)
