"""A function in a process group that is started again when a process of it is killed."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from folders import PYTHONPATH
from prepare_runs import running

from bertjax.prepare.watched_group import GroupError, GroupKilled, run_watched

pytestmark = pytest.mark.processes

NUM_STARTS = 3


def note(folder):
    """Counts this start; returns how many there were."""
    starts = len(list(folder.iterdir()))
    (folder / str(starts)).write_text(str(os.getpgrp()))
    return starts


def work(folder, num_deaths):
    """Loses a worker as Beam does, in a thread that others wait for."""
    if note(folder) < num_deaths:
        worker = subprocess.Popen(["sleep", "100"])
        worker.kill()
        threading.Thread(target=check, args=(worker,)).start()
        time.sleep(100)


def check(worker):
    if worker.wait():
        raise RuntimeError("the worker ended with an error")


def fail(folder):
    subprocess.Popen(["sleep", "100"])
    note(folder)
    print("to the log")
    raise ValueError("long " * 100_000 + "reason")  # more than a pipe holds


def wait(folder):
    subprocess.Popen(["sleep", "100"])
    note(folder)
    time.sleep(100)


@pytest.fixture
def starts(tmp_path):
    folder = tmp_path / "starts"
    folder.mkdir()
    return folder


@pytest.mark.parametrize("num_deaths", [0, 2, 3])
def test_started_again(starts, tmp_path, num_deaths):
    told = []
    watched = work, (starts, num_deaths), NUM_STARTS, tmp_path / "log", lambda: told.append(1)
    if num_deaths < NUM_STARTS:
        run_watched(*watched)
    else:
        with pytest.raises(GroupKilled):
            run_watched(*watched)
    assert len(list(starts.iterdir())) == min(num_deaths + 1, NUM_STARTS)
    assert len(told) == min(num_deaths, NUM_STARTS - 1)
    assert (tmp_path / "log").read_text().count("RuntimeError: the worker ended") == num_deaths


def test_an_error_is_handed_on_and_not_tried_again(starts, tmp_path, capfd):
    with pytest.raises(GroupError, match=r"^ValueError: long long .*reason$"):
        run_watched(fail, (starts,), NUM_STARTS, tmp_path / "log", lambda: None)
    assert len(list(starts.iterdir())) == 1
    assert (tmp_path / "log").read_text().startswith("to the log")
    wait_until_ended(members(starts))
    assert capfd.readouterr() == ("", "")


def test_nothing_outlives_the_process_that_watches(starts, tmp_path):
    code = (
        "import sys; from pathlib import Path; from test_watched_group import wait\n"
        "from bertjax.prepare.watched_group import run_watched\n"
        f"run_watched(wait, (Path(sys.argv[1]),), 1, Path({str(tmp_path / 'log')!r}), print)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(starts)],
        cwd=Path(__file__).parent,
        env=os.environ | {"PYTHONPATH": PYTHONPATH},
    )
    deadline = time.monotonic() + 60
    while not list(starts.glob("0")) or not (starts / "0").read_text():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    processes = members(starts)
    assert len(processes) == 2
    process.send_signal(signal.SIGKILL)
    process.wait()
    wait_until_ended(processes)


def wait_until_ended(processes):
    deadline = time.monotonic() + 20
    while any(map(running, processes)):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def members(starts):
    """Processes of the group of the first start."""
    group = int((starts / "0").read_text())
    return [int(p.name) for p in Path("/proc").glob("[0-9]*") if group_of(p) == group]


def group_of(folder):
    try:
        return int((folder / "stat").read_text().rpartition(")")[2].split()[2])
    except (FileNotFoundError, ProcessLookupError):
        return None
