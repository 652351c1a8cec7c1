"""One run a workdir, with real processes."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from folders import REPOSITORY

from bertjax.config import ConfigError
from bertjax.storage.workdir_lock import WorkdirInUseError, lock_workdir

HOLDER = """
import sys
from bertjax.storage.workdir_lock import lock_workdir
with lock_workdir(sys.argv[1]):
    print("holds", flush=True)
    sys.stdin.read()
"""


def start_holder(workdir: Path) -> subprocess.Popen:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(workdir)],
        cwd=REPOSITORY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "holds\n"
    return process


@pytest.mark.processes
def test_a_second_run_is_refused_and_told_who_holds_the_workdir(tmp_path):
    workdir = tmp_path / "new" / "run"
    with start_holder(workdir) as holder:
        for _ in range(2):  # being refused takes nothing away
            with pytest.raises(WorkdirInUseError) as caught, lock_workdir(workdir):
                pass
            assert f"{workdir} is in use by process {holder.pid} on {os.uname().nodename}" in str(
                caught.value
            )
            assert "another --workdir" in str(caught.value)
        holder.communicate("")
    with lock_workdir(workdir), pytest.raises(WorkdirInUseError, match=f"process {os.getpid()} "):
        lock_workdir(workdir).__enter__()


def test_kill_9_leaves_no_lock_behind(tmp_path):
    with start_holder(tmp_path) as holder:
        os.kill(holder.pid, signal.SIGKILL)
        holder.wait()
        with lock_workdir(tmp_path):
            pass


def test_an_error_in_the_run_frees_the_workdir(tmp_path):
    with pytest.raises(ZeroDivisionError), lock_workdir(tmp_path):
        raise ZeroDivisionError
    with lock_workdir(tmp_path):
        pass


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    for workdir in (tmp_path / "file" / "run", Path("/proc/no/run")):
        with (
            pytest.raises(ConfigError, match=rf"--workdir={workdir}: cannot be made or written"),
            lock_workdir(workdir),
        ):
            pass
