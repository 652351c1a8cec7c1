"""How long a start takes, part by part."""

import subprocess
import sys
import time

from bertjax.reports.start_up_times import StartUp


def test_a_process_knows_how_long_it_has_run():
    started = time.monotonic()
    code = (
        "import time; time.sleep(0.5);"
        "from bertjax.reports.start_up_times import process_seconds as p; print(p())"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    # The kernel counts starts in hundredths of a second.
    assert 0.49 <= float(found.stdout) <= time.monotonic() - started + 0.02


def test_parts_follow_each_other(monkeypatch):
    monkeypatch.setattr(StartUp, "_began", 0)
    began = time.monotonic()
    start_up = StartUp()
    before = start_up.parts["imports and devices"]
    time.sleep(0.05)
    start_up.ends("a")
    time.sleep(0.1)
    start_up.ends("b")
    assert list(start_up.parts) == ["imports and devices", "a", "b"]
    assert start_up.parts["a"] >= 0.05
    assert start_up.parts["b"] >= 0.1
    total = sum(start_up.parts.values())
    assert total - before <= time.monotonic() - began
    assert f"{total:.1f} s after the command began" in str(start_up)


def test_a_later_run_of_the_process_counts_from_its_own_beginning(monkeypatch):
    monkeypatch.setattr(StartUp, "_began", 1)
    start_up = StartUp()
    start_up.ends("a")
    assert list(start_up.parts) == ["a"]
    assert str(start_up).endswith(f"s after the run began (a {start_up.parts['a']:.1f})")
