"""The supervisor, with real processes: what it starts again, what it ends with, whom it signals."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = [pytest.mark.launch, pytest.mark.slow]

SCRIPT = Path(__file__).parents[2] / "launch" / "supervise.sh"
CHILD = Path(__file__).parent / "child.py"


def start(workdir, *steps, options=("--backoff_seconds=0",)):
    command = [sys.executable, str(CHILD), f"--workdir={workdir}", *steps]
    return subprocess.Popen(
        [str(SCRIPT), *options, "--", *command], stderr=subprocess.PIPE, text=True
    )


def run(workdir, *steps, **changes):
    process = start(workdir, *steps, **changes)
    _, log = process.communicate(timeout=60)
    return process.returncode, log


def pids(workdir):
    """Of the children, one for each start."""
    starts = workdir / "starts"
    return [int(line) for line in starts.read_text().splitlines()] if starts.exists() else []


def wait_for_start(workdir, number):
    deadline = time.monotonic() + 30
    while len(pids(workdir)) < number:
        assert time.monotonic() < deadline, "the command was not started"
        time.sleep(0.02)
    return pids(workdir)[-1]


@pytest.mark.parametrize("code", [0, 1, 2, 3, 127])
def test_ends_with_what_a_restart_would_not_change(tmp_path, code):
    assert run(tmp_path, str(code), "0")[0] == code
    assert len(pids(tmp_path)) == 1


def test_starts_again_after_a_preemption_and_after_a_kill(tmp_path):
    code, log = run(tmp_path, "75", "kill", "75+", "0")
    assert code == 0
    assert len(pids(tmp_path)) == 4
    assert "exit code 137: starting again" in log
    assert "from the beginning" in log
    assert "from step_00000003" in log


def test_an_error_after_a_preemption_ends_it(tmp_path):
    assert run(tmp_path, "75", "1", "0")[0] == 1
    assert len(pids(tmp_path)) == 2


def test_gives_up_when_no_checkpoint_comes(tmp_path):
    options = ("--backoff_seconds=0", "--max_restarts=2")
    code, log = run(tmp_path, *["kill"] * 9, options=options)
    assert code == 1
    assert len(pids(tmp_path)) == 3
    assert "gave up after 2 restarts" in log


def test_a_new_checkpoint_sets_the_count_back(tmp_path):
    options = ("--backoff_seconds=0", "--max_restarts=2")
    code, _ = run(tmp_path, *["75+", "75", "75+", "75", "75", "75", "0"], options=options)
    assert code == 1
    assert len(pids(tmp_path)) == 5  # the third in a row that made no checkpoint is the last


def test_a_stopped_supervisor_waits_for_the_save_and_starts_nothing(tmp_path):
    process = start(tmp_path, "wait", "0")
    wait_for_start(tmp_path, 1)
    process.send_signal(signal.SIGTERM)
    _, log = process.communicate(timeout=30)
    assert process.returncode == 75
    assert (tmp_path / "checkpoints" / "step_00000001").is_dir()
    assert len(pids(tmp_path)) == 1
    assert "stopped with exit code 75" in log


def test_a_command_that_finishes_while_being_stopped_has_finished(tmp_path):
    process = start(tmp_path, "finish", "1")
    wait_for_start(tmp_path, 1)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == 0


def test_sigterm_to_the_command_alone_is_a_preemption(tmp_path):
    process = start(tmp_path, "wait", "0")
    os.kill(wait_for_start(tmp_path, 1), signal.SIGTERM)
    assert process.wait(timeout=30) == 0
    assert len(pids(tmp_path)) == 2
    process.stderr.close()


def test_stopped_while_it_pauses(tmp_path):
    process = start(tmp_path, "75", "0", options=("--backoff_seconds=30",))
    wait_for_start(tmp_path, 1)
    time.sleep(0.5)
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=20)
    assert process.returncode == 75
    assert time.monotonic() - began < 10
    assert len(pids(tmp_path)) == 1


def test_the_pause_doubles(tmp_path):
    _, log = run(tmp_path, "75", "75", "0", options=("--backoff_seconds=1",))
    assert "starting again in 1 s" in log
    assert "starting again in 2 s" in log


# Seals the checkpoint of step 1 in the bucket when it is started for the first time; always exits
# with 75.
BUCKET_CHILD = """
import os, pathlib, sys, urllib.request
workdir, starts = sys.argv[1].removeprefix("--workdir=gs://bucket/"), pathlib.Path(sys.argv[2])
starts.open("a").write("x")
if starts.read_text() == "x":
    address = os.environ["STORAGE_EMULATOR_HOST"] + "/upload/storage/v1/b/bucket/o"
    name = f"{workdir}/checkpoints/step_00000001/SEAL.json"
    urllib.request.urlopen(f"{address}?uploadType=media&name={name}", data=b"{}")
sys.exit(75)
"""


def test_checkpoints_in_a_bucket_are_headway_too(bucket, tmp_path):
    starts = tmp_path / "starts"
    options = ["--backoff_seconds=0", "--max_restarts=1"]
    command = [sys.executable, "-c", BUCKET_CHILD, f"--workdir={bucket}", str(starts)]
    result = subprocess.run(
        [str(SCRIPT), *options, "--", *command],
        cwd=SCRIPT.parents[1],  # where bertjax is
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 1
    assert starts.read_text() == "xx"
    assert "starting again in 0 s, from step_00000001" in result.stderr
    assert "gave up after 1 restarts without a new checkpoint" in result.stderr


def test_prints_the_command(tmp_path):
    _, log = run(tmp_path, "0", "a b")
    assert f"command: {sys.executable} {CHILD} --workdir={tmp_path} 0 a\\ b\n" in log


def test_a_dry_run_stops_after_the_command(tmp_path):
    command = [str(SCRIPT), "--dry-run", "touch", str(tmp_path / "file")]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0
    assert result.stdout == f"touch {tmp_path / 'file'}\n"
    assert not (tmp_path / "file").exists()


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ([], "no command"),
        (["--max_restart=1", "true"], "--max_restart=1"),
        (["--max_restarts=x", "true"], "--max_restarts=x"),
        (["--backoff_seconds=-1", "true"], "--backoff_seconds=-1"),
    ],
)
def test_a_bad_command_line_is_named(arguments, named):
    result = subprocess.run([str(SCRIPT), *arguments], capture_output=True, text=True)
    assert result.returncode == 2
    assert named in result.stderr
