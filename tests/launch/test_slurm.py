"""launch/slurm.sbatch on a real Slurm of this one machine, two tasks."""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from folders import RECIPE, REPOSITORY

from bertjax.testing import make_store

pytestmark = pytest.mark.launch

SCRIPT = REPOSITORY / "launch" / "slurm.sbatch"
NODE = Path(__file__).parent / "slurm_node.sh"


def run(*command, **options):
    result = subprocess.run(list(map(str, command)), capture_output=True, text=True, **options)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def wait_until(true, what, seconds=120):
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"{what}: not within {seconds} s"
        time.sleep(0.2)


@pytest.fixture(scope="module")
def slurm():
    """A running Slurm; yields the environment for its commands."""
    missing = [name for name in ("munged", "slurmctld", "slurmd") if not shutil.which(name)]
    if missing:
        pytest.skip(f"no {', '.join(missing)}: apt-get install slurm-wlm munge")
    if os.geteuid() != 0:
        pytest.skip("slurmd needs root")
    folder = tempfile.mkdtemp(prefix="slurm")  # a socket's path has to be short
    run(NODE, "start", folder)
    yield os.environ | {"SLURM_CONF": f"{folder}/slurm.conf"}
    run(NODE, "stop", folder)
    shutil.rmtree(folder)


class Job:
    """A submitted job: two tasks of slurm.sbatch with --workdir=FOLDER/run."""

    def __init__(self, slurm, folder, *flags, python=None, **variables):
        self.environment = slurm | variables | {"PYTHONPATH": str(REPOSITORY)}
        paths = [str(python or Path(sys.executable).parent), slurm["PATH"]]
        self.environment["PATH"] = os.pathsep.join(paths)
        self.workdir = folder / "run"
        self.log = folder / "job.log"
        options = ["--parsable", "--ntasks=2", f"--output={self.log}"]
        flags = (f"--workdir={self.workdir}", *flags)
        self.number = self._slurm("sbatch", *options, SCRIPT, *flags).strip()

    def _slurm(self, *command):
        return run(*command, env=self.environment)

    def show(self, field):
        job = self._slurm("scontrol", "show", "job", self.number)
        return re.search(rf"\b{field}=(\S+)", job)[1]

    def state(self):
        return self.show("JobState")

    def preempt(self):
        self._slurm("scancel", "--signal=TERM", self.number)

    def skip_the_pause(self):
        """Slurm lets a requeued job wait for two minutes after it has left the node."""
        # A job that is still leaving the node shows other states.
        wait_until(lambda: self.show("Restarts") == "1" and self.state() == "PENDING", "requeue")

        def started():
            # Refused where the job has started in the meantime.
            command = ["scontrol", "update", f"jobid={self.number}", "starttime=now"]
            subprocess.run(command, capture_output=True, env=self.environment)
            return self.state() != "PENDING"

        wait_until(started, "second start")

    def wait_for_end(self):
        ended = ("COMPLETED", "FAILED", "NODE_FAIL", "CANCELLED")
        wait_until(lambda: self.state() in ended, "end of the job", seconds=300)
        return int(self.show("ExitCode").split(":")[0])


@pytest.fixture
def stand_in(tmp_path):
    """A folder with a `python` that runs child.py, its steps from the variable STEPS."""
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    child = Path(__file__).parent / "child.py"
    python.write_text(
        f"""#!/bin/bash
if [[ $1 == -c ]]; then exit 0; fi
for flag in "$@"; do case $flag in --workdir=*) workdir=$flag ;; esac; done
export CHILD_NUMBER=$SLURM_PROCID
exec {sys.executable} {child} "$workdir" $STEPS
"""
    )
    python.chmod(0o755)
    return python.parent


def test_two_tasks_preempted_requeued_and_finished(slurm, tmp_path):
    store = make_store(tmp_path / "store").path
    job = Job(
        slurm,
        tmp_path,
        f"--config={RECIPE}",
        f"--config.data.store={store}",
        "--config.phases[0].num_steps=10000",
        "--config.num_steps=100",
        "--config.checkpoint.every_steps=1000",
        "--config.eval.every_steps=1000",
        JAX_PLATFORMS="cpu",
    )
    metrics = job.workdir / "metrics.jsonl"
    wait_until(lambda: metrics.is_file() and metrics.read_text().count("\n") > 8, "step 8")
    job.preempt()
    job.skip_the_pause()
    assert job.wait_for_end() == 0, job.log.read_text()
    log = job.log.read_text()
    step = int(re.search(r"0: .* preempted: saved at step (\d+)", log)[1])
    assert re.search(r"^1: .*saved at step", log, re.MULTILINE)  # of the other task
    assert f"requeued, to continue from checkpoint step_{step:08d}" in log
    assert "slurm.sbatch: command: srun" in log
    steps = [json.loads(line)["step"] for line in metrics.read_text().splitlines()]
    assert steps == list(range(1, 101))
    assert json.loads((job.workdir / "summary.json").read_text())["steps"] == 100


@pytest.mark.parametrize("code", ["1", "2"])
def test_an_error_ends_the_job(slurm, tmp_path, stand_in, code):
    job = Job(slurm, tmp_path, "--config=any", python=stand_in, STEPS=f"{code} 0")
    assert job.wait_for_end() == int(code)
    assert len((job.workdir / "starts0").read_text().splitlines()) == 1


def test_killed_tasks_are_requeued_until_no_checkpoint_comes(slurm, tmp_path, stand_in):
    job = Job(
        slurm,
        tmp_path,
        "--config=any",
        "--max_restarts=1",
        python=stand_in,
        STEPS="kill+ kill 0",
    )
    job.skip_the_pause()
    assert job.wait_for_end() == 1
    assert "exit code 137: gave up after 1 restarts" in job.log.read_text()
    assert len((job.workdir / "starts1").read_text().splitlines()) == 2


def test_a_dry_run_prints_the_command():
    result = subprocess.run(
        ["bash", SCRIPT, "--dry-run", "--config=base", "--workdir=w"],
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0
    assert result.stdout == (
        "srun --kill-on-bad-exit=0 --unbuffered --label "
        "python -m bertjax.train --config=base --workdir=w\n"
    )


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--workdir=w"], "--config=RECIPE is missing"),
        (["--config=base"], "--workdir=DIR is missing"),
        (["--config=base", "--workdir=w", "--max_restarts=x"], "--max_restarts=x"),
        (["--config=base", "--workdir=w"], "not a Slurm job"),
    ],
)
def test_what_is_missing_is_named(flags, named):
    environment = {k: v for k, v in os.environ.items() if not k.startswith("SLURM_")}
    result = subprocess.run(
        ["bash", SCRIPT, *flags], capture_output=True, text=True, env=environment
    )
    assert result.returncode == 2
    assert named in result.stderr
