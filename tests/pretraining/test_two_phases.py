"""Short rows, then longer packed ones, in one run: killed in each phase it is the same run."""

import itertools
import subprocess
import sys
import time

import pytest
from folders import RECIPE
from micro_runs import assert_same_run, read

FLAGS = (
    "--config.phases[0].num_steps=8",
    "--config.phases[1].num_steps=24",
    "--config.phases[1].packing_depth=3",
    "--config.checkpoint.every_steps=2",
    "--config.checkpoint.keep=0",
)


def start(store, workdir):
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "bertjax.train", f"--config={RECIPE}", f"--workdir={workdir}"),
            *(f"--config.data.store={store}", *FLAGS),
        ],
        stderr=subprocess.PIPE,
        text=True,
    )


def kill_after(step, store, workdir):
    """Starts the run, and kills it once it has saved a step of its own, `step` or later."""
    process = start(store, workdir)
    while not any(
        int(path.name.removeprefix("step_")) >= step
        for path in (workdir / "checkpoints").glob("step_*")
    ):
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)
    process.kill()
    process.communicate()
    return read(workdir)[-1]["step"]


@pytest.mark.slow
def test_killed_in_each_phase_and_between_them_it_is_the_same_run(store, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    process = start(store, whole)
    assert process.communicate()[1].count("compiled the step of") == 2
    assert process.returncode == 0
    lines = read(whole)
    assert [line["phase"] for line in lines] == [0] * 8 + [1] * 24
    assert [line["position"] for line in lines[7:10]] == [64, 4, 8]
    assert all(line["pairs_per_row"] is None for line in lines[:8])
    assert max(line["pairs_per_row"] for line in lines[8:]) > 1
    rates = [line["learning_rate"] for line in lines]  # one schedule over both phases
    assert rates[4] == max(rates)
    assert all(a > b for a, b in itertools.pairwise(rates[4:]))

    assert kill_after(2, store, killed) < 8  # in the first phase
    assert kill_after(8, store, killed) == 8  # its last step is saved, the next phase compiles
    assert 12 <= kill_after(12, store, killed) < 32
    process = start(store, killed)
    assert "resuming from step" in process.communicate()[1]
    assert process.returncode == 0
    assert_same_run(killed, whole)
