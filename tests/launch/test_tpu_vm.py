"""launch/tpu_vm.sh on a slice of two workers in a folder (cloud.py); what runs there is real."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

pytestmark = [pytest.mark.launch, pytest.mark.slow]

SCRIPT = Path(__file__).parents[2] / "launch" / "tpu_vm.sh"
HERE = Path(__file__).parent
SLICE = ["--name=bert", "--zone=z", "--project=p", "--accelerator_type=v5litepod-8"]


class Cloud:
    """A cloud, and the training that its workers run: child.py, its steps from WORKDIR/steps."""

    def __init__(self, folder, venv, num_workers=1):
        self.num_workers = num_workers
        self.folder = folder / "cloud"
        self.folder.mkdir()
        gcloud = folder / "bin" / "gcloud"
        gcloud.parent.mkdir()
        gcloud.write_text(f'#!/bin/bash\nexec {sys.executable} {HERE / "cloud.py"} "$@"\n')
        gcloud.chmod(0o755)
        # The worker's script looks for this one first; copying a venv is quicker than making one.
        python = gcloud.with_name("python3.13")
        python.write_text(f'#!/bin/bash\n[[ "$1 $2" == "-m venv" ]] && cp --archive {venv} "$3"\n')
        python.chmod(0o755)
        self.workdir = folder / "run"
        self.workdir.mkdir()
        self.wheel = folder / "bertjax-0.0.0-py3-none-any.whl"
        train = f"""
import os, pathlib, runpy, sys
[workdir] = [a for a in sys.argv if a.startswith("--workdir=")]
steps = pathlib.Path(workdir.partition("=")[2], "steps").read_text().split()
os.environ["CHILD_NUMBER"] = pathlib.Path.home().name
print("training with", *sys.argv[1:], flush=True)
sys.argv = ["child.py", workdir, *steps]
runpy.run_path({str(HERE / "child.py")!r}, run_name="__main__")
"""
        info = "bertjax-0.0.0.dist-info"
        with zipfile.ZipFile(self.wheel, "w") as wheel:
            wheel.writestr("bertjax/__init__.py", "")
            wheel.writestr("bertjax/train.py", train)
            wheel.writestr(
                f"{info}/METADATA",
                "Metadata-Version: 2.1\nName: bertjax\nVersion: 0.0.0\nProvides-Extra: tpu\n",
            )
            wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
            wheel.writestr(f"{info}/RECORD", "")
        self.environment = os.environ | {
            "CLOUD": str(self.folder),
            "NUM_WORKERS": str(num_workers),
            "PATH": f"{gcloud.parent}{os.pathsep}{os.environ['PATH']}",
        }

    def start(self, command, *options, **more):
        flags = ["--config=tiny", f"--workdir={self.workdir}"]
        options = [*SLICE, f"--wheel={self.wheel}", "--poll_seconds=1", *options]
        return subprocess.Popen(
            [str(SCRIPT), command, *options, "--", *flags],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=self.environment,
            **more,
        )

    def run(self, command, *options, exit_code=0):
        process = self.start(command, *options)
        output, _ = process.communicate(timeout=300)
        assert process.returncode == exit_code, output
        return output

    def steps(self, *steps):
        (self.workdir / "steps").write_text(" ".join(steps))

    def calls(self, verb):
        lines = (self.folder / "calls").read_text().splitlines()
        return [line for line in lines if f" {verb} " in line]

    def wait_for_start(self, number):
        def starts(worker):
            path = self.workdir / f"starts{worker}"
            return len(path.read_text().splitlines()) if path.exists() else 0

        deadline = time.monotonic() + 240
        while min(map(starts, range(self.num_workers))) < number:
            assert time.monotonic() < deadline, f"start {number}"
            time.sleep(0.1)

    def take_away(self):
        code = "import cloud; cloud.take_workers_away()"
        subprocess.run([sys.executable, "-c", code], cwd=HERE, env=self.environment, check=True)
        (self.folder / "slice.json").write_text(
            json.dumps({"kind": "queued-resources", "state": ["SUSPENDED"]})
        )


@pytest.fixture(scope="module")
def venv(tmp_path_factory):
    folder = tmp_path_factory.mktemp("worker") / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    return folder


@pytest.fixture
def make_cloud(tmp_path, venv):
    clouds = []

    def make(num_workers=1):
        clouds.append(Cloud(tmp_path, venv, num_workers))
        return clouds[-1]

    yield make
    for cloud in clouds:
        if (cloud.folder / "workers").exists():
            cloud.run("stop")


@pytest.fixture
def cloud(make_cloud):
    return make_cloud()


@pytest.mark.parametrize(
    ("num_workers", "queue"), [(2, []), (1, ["--no_queue"])], ids=["queued", "direct"]
)
def test_up_stop_and_delete_can_all_be_repeated(make_cloud, num_workers, queue):
    cloud = make_cloud(num_workers)
    cloud.steps("wait", "0")
    shard = cloud.folder / "buckets" / "b" / "store" / "shard"
    shard.parent.mkdir(parents=True)
    shard.write_text("tokens")
    options = [*queue, "--spot", "--store=gs://b/store"]
    first = cloud.run("up", *options)
    cloud.wait_for_start(1)
    assert "venv/bin/python -m bertjax.train --config=tiny --workdir=" in first
    [create] = cloud.calls("create")
    assert "--spot" in create
    kind = "tpu-vm" if queue else "queued-resources"
    assert create.startswith(f"compute tpus {kind} create bert ")

    second = cloud.run("up", *options)
    assert len(cloud.calls("create")) == 1
    assert second.count("is installed already") == num_workers
    assert second.count("running already") == num_workers
    assert cloud.run("status", *queue).count(": running, process") == num_workers

    for home in (cloud.folder / "workers").iterdir():
        assert (home / "bertjax" / "store" / "shard").read_text() == "tokens"
    with cloud.start("log", *queue, start_new_session=True) as log:
        lines = iter(log.stdout.readline, "")
        trained = next(line for line in lines if line.startswith("training with"))
        os.killpg(log.pid, signal.SIGTERM)
    assert trained.rstrip().endswith("--config.data.store=store")

    assert cloud.run("stop", *queue).count(": ended with exit code 75") == num_workers
    assert (cloud.workdir / "checkpoints" / "step_00000001").is_dir()
    cloud.run("delete", *queue)
    assert not (cloud.folder / "workers").exists()
    assert "bert is not there" in cloud.run("delete", *queue)


@pytest.mark.parametrize(("kind", "other"), [("tpu-vm", []), ("queued-resources", ["--no_queue"])])
def test_delete_finds_a_slice_of_the_other_kind(cloud, kind, other):
    """It must not go on costing unseen."""
    path = cloud.folder / "slice.json"
    path.write_text(json.dumps({"kind": kind, "state": ["READY"]}))
    assert "bert is not there" not in cloud.run("delete", *other)
    assert not path.exists()


def test_watch_brings_a_preempted_slice_back_until_training_ends(cloud):
    cloud.steps("wait", "0")
    watch = cloud.start("watch")
    cloud.wait_for_start(1)
    (cloud.folder / "says_nothing").touch()  # that is not the end of training
    (cloud.folder / "fails").write_text("delete")
    while (cloud.folder / "says_nothing").exists():
        time.sleep(0.1)
    cloud.take_away()
    output, _ = watch.communicate(timeout=300)
    assert watch.returncode == 0, output
    cloud.wait_for_start(2)
    assert "training unknown" in output
    assert "bert is SUSPENDED" in output
    assert "training finished" in output
    assert len(cloud.calls("create")) == 2
    assert len(cloud.calls("delete")) == 2  # the first one failed


def test_watch_ends_when_training_fails(cloud):
    cloud.steps("1", "0")
    output = cloud.run("watch", exit_code=2)
    assert "training failed" in output
    assert ": ended with exit code 1" in output
    assert len(cloud.calls("create")) == 1


def test_a_slice_that_will_not_come_back_is_not_waited_for(cloud):
    (cloud.folder / "slice.json").write_text(
        json.dumps({"kind": "queued-resources", "state": ["SUSPENDED"]})
    )
    assert "bert is SUSPENDED and will not come back" in cloud.run("create", exit_code=2)


@pytest.mark.parametrize(
    ("options", "flags", "named"),
    [
        (["--name="], None, "--name=NAME is missing"),
        (["--project="], None, "--project=ID is missing"),
        (["--zone="], None, "--zone=ZONE is missing"),
        (["--accelerator_type="], None, "--accelerator_type=TYPE is missing"),
        (["--accelerator_type=h100"], None, "--accelerator_type=h100: unknown"),
        (["--num_slices=two"], None, "--num_slices=two"),
        (["--num_slices=2", "--no_queue"], None, "--no_queue creates one slice"),
        (["--mount=10.0.0.2:/runs"], None, "--mount=10.0.0.2:/runs: expected nfs://"),
        (["--mount=nfs://h/s"], None, "is not below /mnt/bertjax"),
        (["--store=stores/wiki"], None, "--store=stores/wiki: expected gs://"),
        (["--wheel=no.whl"], None, "--wheel=no.whl: no such file"),
        (["--wheel=", "--revision=nowhere"], None, "--revision=nowhere: no such revision"),
        (["--zon=z"], None, "unknown option --zon=z"),
        ([], ["--workdir=w"], "--config=RECIPE"),
        ([], ["--config=base"], "--workdir=DIR"),
        ([], ["--config=bse", "--workdir=w"], "--config=bse: no recipe"),
        ([], ["--config=no.py", "--workdir=w"], "--config=no.py: no such file"),
        ([], ["--config=base", "--workdir=w", "--dry-run"], "put it before --"),
    ],
)
def test_what_is_missing_or_wrong_is_named(tmp_path, options, flags, named):
    cloud = Cloud(tmp_path, venv="none")
    command = [str(SCRIPT), "up", *SLICE, f"--wheel={cloud.wheel}", *options, "--"]
    command += flags or ["--config=tiny", "--workdir=w"]
    result = subprocess.run(command, capture_output=True, text=True, env=cloud.environment)
    assert result.returncode == 2
    assert named in result.stderr
    calls = cloud.folder / "calls"
    assert "compute tpus" not in (calls.read_text() if calls.exists() else "")


def test_a_machine_without_gcloud_is_told_so(tmp_path):
    for name in ("bash", "dirname", "basename", "git"):
        (tmp_path / name).symlink_to(shutil.which(name))
    result = subprocess.run(
        [str(SCRIPT), "create", *SLICE],
        capture_output=True,
        text=True,
        env={"PATH": str(tmp_path)},
    )
    assert result.returncode == 2
    assert "gcloud is not installed: https://" in result.stderr
