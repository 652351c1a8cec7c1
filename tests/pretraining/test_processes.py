"""Several processes as one run, through the public command, on loopback."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time

import pytest
from folders import RECIPE, REPOSITORY

from bertjax.parallel.distributed import HEARTBEAT_SECONDS
from bertjax.testing import make_store

pytestmark = pytest.mark.processes

# Dropout is on. A rate at which rounding does not grow; a schedule that every run here shares.
SETTINGS = (
    "--config.phases=({'num_steps': 100000},)",
    "--config.optimizer.learning_rate=2e-3",
    "--config.eval.every_steps=0",
    "--config.checkpoint.every_steps=10",
)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes") / "store"
    return make_store(folder).path


class Run:
    """The command in some processes with some devices each, all on one workdir."""

    def __init__(self, store, workdir, *more, processes=1, devices=1, last=()):
        """`more` goes to all processes, `last` to the last one alone."""
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            port = found.getsockname()[1]
        flags = os.environ.get("XLA_FLAGS", "")
        environment = {
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": f"{flags} --xla_force_host_platform_device_count={devices}",
        }
        self.processes = []
        for i in range(processes):
            command = [
                sys.executable, "-m", "bertjax.train", f"--config={RECIPE}",
                f"--workdir={workdir}", f"--config.data.store={store}", *SETTINGS, *more,
            ]  # fmt: skip
            if processes > 1:
                command += [
                    f"--coordinator_address=127.0.0.1:{port}",
                    f"--num_processes={processes}",
                    f"--process_id={i}",
                ]
            command += last if i == processes - 1 else ()
            self.processes.append(
                subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
            )

    def finish(self, timeout=300):
        """Exit codes and what was said on stderr, by process."""
        errors = [process.communicate(timeout=timeout)[1] for process in self.processes]
        return [process.returncode for process in self.processes], errors


def run(store, workdir, *more, **kwargs):
    codes, errors = Run(store, workdir, *more, **kwargs).finish()
    assert set(codes) == {0}, "\n".join(errors)


def metrics(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def wait_for_steps(workdir, count):
    path = workdir / "metrics.jsonl"
    deadline = time.monotonic() + 300
    while not path.exists() or path.read_text().count("\n") < count:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def saved_steps(workdir):
    return sorted(int(path.name[5:]) for path in (workdir / "checkpoints").glob("step_*"))


def assert_same_run(workdir, reference):
    found, expected = metrics(workdir), metrics(reference)
    assert [line["step"] for line in found] == [line["step"] for line in expected]
    for line, other in zip(found, expected, strict=True):
        for name in ("position", "rows_sha256"):
            assert line[name] == other[name], (name, line["step"])
        for name in ("loss", "mlm_loss", "nsp_loss"):
            assert line[name] == pytest.approx(other[name], abs=1e-5), (name, line["step"])


@pytest.mark.slow
def test_a_run_moves_from_eight_devices_to_four_to_one_to_two_processes(store, tmp_path):
    moving, staying = tmp_path / "moving", tmp_path / "staying"
    run(store, staying, "--config.num_steps=20")
    mesh = ("--config.mesh.data=2", "--config.mesh.fsdp=2", "--config.mesh.tensor=2")
    run(store, moving, *mesh, "--config.num_steps=5", devices=8)
    split = "--config.mesh.shard_optimizer=true"
    run(store, moving, split, "--config.mesh.fsdp=2", "--config.num_steps=10", devices=4)
    run(store, moving, "--config.num_steps=15")
    # The tensor axis lies across the processes, so both read all rows of their group.
    mesh = ("--config.mesh.data=2", "--config.mesh.tensor=2")
    run(store, moving, *mesh, split, "--config.num_steps=20", processes=2, devices=2)
    assert_same_run(moving, staying)


@pytest.mark.slow
def test_preempted_killed_and_continued_by_another_number(store, tmp_path):
    workdir, staying = tmp_path / "workdir", tmp_path / "staying"
    mesh = ("--config.mesh.fsdp=2",)

    # SIGTERM to one: all save the same step.
    started = Run(store, workdir, *mesh, processes=2)
    wait_for_steps(workdir, 5)
    started.processes[1].send_signal(signal.SIGTERM)
    codes, errors = started.finish()
    assert codes == [75, 75], "\n".join(errors)
    step = max(saved_steps(workdir))
    for text in errors:
        assert f"preempted: saved at step {step:,}," in text
    assert metrics(workdir)[-1]["step"] == step

    # SIGKILL to one: the other ends within the stated time.
    started = Run(store, workdir, *mesh, processes=2)
    wait_for_steps(workdir, step + 15)
    started.processes[1].kill()
    killed = time.monotonic()
    codes, errors = started.finish()
    assert time.monotonic() - killed < 2 * HEARTBEAT_SECONDS
    assert codes[1] == -signal.SIGKILL
    assert codes[0] == 75 or codes[0] < 0, errors[0]  # what a supervisor starts again

    # One process goes on where two were.
    end = max(saved_steps(workdir)) + 5
    run(store, workdir, f"--config.num_steps={end}")
    run(store, staying, f"--config.num_steps={end}")
    assert_same_run(workdir, staying)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("last", "message"),
    [
        (
            ("--config.seed=1",),
            r"the recipe \(--print_config shows it\) of process 1 is not that of process 0",
        ),
        (("--workdir=elsewhere",), r"process 1 does not see what process 0 writes there"),
    ],
)
def test_processes_that_are_not_alike_are_refused(store, tmp_path, monkeypatch, last, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    codes, errors = Run(store, tmp_path / "workdir", processes=2, last=last).finish()
    assert codes == [2, 2], "\n".join(errors)
    assert all(re.search(message, text) for text in errors), "\n".join(errors)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--num_processes=2"], "--coordinator_address, --process_id is missing"),
        (
            ["--coordinator_address=host:1", "--num_processes=2", "--process_id=2"],
            "--process_id=2 is not below --num_processes=2",
        ),
        (
            ["--coordinator_address=host", "--num_processes=2", "--process_id=0"],
            "--coordinator_address=host has no port",
        ),
    ],
)
def test_flags_that_contradict_each_other_are_refused(store, tmp_path, arguments, message):
    codes, errors = Run(store, tmp_path, *arguments).finish()
    assert codes == [2]
    assert message in errors[0]
