"""One run a workdir in a bucket, with real processes."""

import json
import os
import signal
import time

import pytest
from test_workdir_lock import start_holder

from bertjax.storage import bucket_lock
from bertjax.storage.workdir_lock import WorkdirInUseError, lock_workdir


@pytest.fixture
def quick(monkeypatch):
    """Beats of a tenth of a second."""
    monkeypatch.setattr(bucket_lock, "BEAT_SECONDS", 0.1)
    monkeypatch.setattr(bucket_lock, "EXPIRY_SECONDS", 1.0)


def move_to_another_machine(lock):
    holder = json.loads(lock.read_bytes())
    holder["process"]["boot"] = "another"
    lock.write_bytes(json.dumps(holder).encode())


@pytest.mark.processes
def test_a_second_run_is_refused_and_a_killed_one_is_in_nobodys_way(bucket):
    with start_holder(bucket) as holder:
        for _ in range(2):
            with pytest.raises(WorkdirInUseError) as caught, lock_workdir(bucket):
                pass
            assert f"{bucket} is in use by process {holder.pid} on {os.uname().nodename}" in str(
                caught.value
            )
        os.kill(holder.pid, signal.SIGKILL)
        holder.wait()
        assert (bucket / ".lock").is_file()  # it could not give it back
        began = time.monotonic()
        with lock_workdir(bucket):
            assert time.monotonic() - began < bucket_lock.EXPIRY_SECONDS / 4
            with pytest.raises(WorkdirInUseError, match=f"process {os.getpid()} "):
                lock_workdir(bucket).__enter__()
    assert not (bucket / ".lock").is_file()


def test_a_run_of_another_machine_is_refused_while_it_is_alive(bucket, quick, monkeypatch):
    with lock_workdir(bucket):
        time.sleep(0.3)  # beats
        machine = bucket_lock._machine()
        monkeypatch.setattr(bucket_lock, "_machine", lambda: {**machine, "boot": "another"})
        with pytest.raises(WorkdirInUseError, match="is in use by process"):
            lock_workdir(bucket).__enter__()


def test_a_dead_run_of_another_machine_is_taken_over_after_a_while(bucket, quick):
    with start_holder(bucket) as holder:
        os.kill(holder.pid, signal.SIGKILL)
    move_to_another_machine(bucket / ".lock")
    began = time.monotonic()
    with lock_workdir(bucket):
        assert time.monotonic() - began >= bucket_lock.EXPIRY_SECONDS


HOLDER = """
import sys
from bertjax.storage import bucket_lock
from bertjax.storage.workdir_lock import lock_workdir
bucket_lock.BEAT_SECONDS = 0.2
with lock_workdir(sys.argv[1]):
    print("holds", flush=True)
    sys.stdin.read()
"""


def test_a_run_that_lost_the_workdir_ends(bucket, monkeypatch):
    monkeypatch.setattr("test_workdir_lock.HOLDER", HOLDER)
    with start_holder(bucket) as holder:
        move_to_another_machine(bucket / ".lock")
        assert holder.wait(timeout=30) == 1
    assert json.loads((bucket / ".lock").read_bytes())["process"]["boot"] == "another"


def test_a_run_ends_whose_lock_was_taken_over_and_given_back(bucket, monkeypatch):
    monkeypatch.setattr("test_workdir_lock.HOLDER", HOLDER)
    with start_holder(bucket) as holder:
        (bucket / ".lock").unlink()
        assert holder.wait(timeout=30) == 1
    assert not (bucket / ".lock").is_file()


@pytest.mark.parametrize("error", [FileExistsError, OSError])
def test_a_beat_that_was_not_confirmed_ends_nothing(bucket, quick, monkeypatch, error):
    """The network fails after the bucket has made the write, or before."""
    with lock_workdir(bucket):
        write, failures = type(bucket).write_bytes, []

        def write_and_fail(path, content, generation=None):
            if not failures:
                failures.append(error)
                if error is FileExistsError:  # the answer to the repeated request
                    write(path, content, generation)
                raise error("network")
            return write(path, content, generation)

        monkeypatch.setattr(type(bucket), "write_bytes", write_and_fail)
        time.sleep(0.5)
        assert failures
        with pytest.raises(WorkdirInUseError):
            lock_workdir(bucket).__enter__()
    assert not (bucket / ".lock").is_file()
