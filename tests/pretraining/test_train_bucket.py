"""Runs with --workdir=gs://...: killed, continued and damaged, the same as on a disk."""

import json
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from folders import RECIPE, REPOSITORY
from micro_runs import STEPS, assert_same_run, micro, read
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from bertjax.config import ConfigError
from bertjax.data.store.bucket_copy import upload_store
from bertjax.pretraining.run import pretrain
from bertjax.pretraining.stores import open_data
from bertjax.storage.bucket import BucketPath
from bertjax.training.workdir import open_workdir


def fetch(workdir: BucketPath, folder: Path) -> Path:
    """A copy on the disk of what a run has left in the bucket."""
    for name in workdir.files():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes((workdir / name).read_bytes())
    return folder


def start(workdir, store_path):
    command = [sys.executable, "-m", "bertjax.train", f"--config={RECIPE}", f"--workdir={workdir}"]
    return subprocess.Popen(
        [*command, f"--config.data.store={store_path}"],
        cwd=REPOSITORY,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
def test_killed_and_continued_on_another_machine_is_the_same_run(
    bucket, store, whole_run, tmp_path, monkeypatch, caplog
):
    caplog.set_level(logging.INFO)
    workdir = bucket / "run"
    upload_store(store, bucket / "store")
    with start(workdir, bucket / "store") as process:
        seal = workdir / "checkpoints" / "step_00000004" / "SEAL.json"
        deadline = time.monotonic() + 600
        while not seal.is_file():
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        os.kill(process.pid, signal.SIGKILL)
    left = fetch(workdir, tmp_path / "left")
    assert len(read(left)) >= 4  # what counts was uploaded before the checkpoint
    monkeypatch.setenv("BERTJAX_CACHE", str(tmp_path / "another machine"))
    assert pretrain(micro(bucket / "store"), str(workdir)).exit_code == 0
    assert "resuming from step" in caplog.text
    found = fetch(workdir, tmp_path / "found")
    assert_same_run(found, whole_run)
    assert (found / "curves.png").read_bytes().startswith(b"\x89PNG")
    kept = sorted(path.name for path in (found / "checkpoints").iterdir())
    assert kept == ["step_00000012", "step_00000016", "step_00000018"]
    assert not (found / ".lock").exists()
    assert not (found / "rows").exists()
    events = EventAccumulator(str(found / "tensorboard" / "train"))
    events.Reload()
    assert [event.step for event in events.Scalars("loss")] == list(range(1, STEPS + 1))


@pytest.mark.slow
def test_a_run_in_a_bucket_continues_another_one_there(bucket, store, whole_run, tmp_path):
    trunk, branch = bucket / "trunk", bucket / "branch"
    assert pretrain(micro(store, checkpoint__keep=0), str(trunk)).exit_code == 0
    config = micro(store, continue_from=f"{trunk}/checkpoints/step_00000008")
    assert pretrain(config, str(branch)).exit_code == 0
    assert_same_run(fetch(branch, tmp_path / "found"), whole_run)
    config.optimizer.learning_rate = 1.0
    with pytest.raises(ConfigError, match=r"only the first 1 steps .* none is in gs://.*/trunk/ch"):
        pretrain(config, str(bucket / "other"))


@pytest.mark.slow
def test_a_damaged_checkpoint_is_named_and_the_run_goes_on_from_the_one_before(
    bucket, store, whole_run, tmp_path, caplog
):
    assert pretrain(micro(store, num_steps=8), str(bucket)).exit_code == 0
    newest = bucket / "checkpoints" / "step_00000008"
    name = next(name for name in newest.files() if name.startswith("opt_state/ocdbt.process_0/d/"))
    (newest / name).unlink()
    # Lines beyond the checkpoint, and one that was torn, are not the resumed run's.
    lines = (bucket / "metrics.jsonl").read_bytes()
    (bucket / "metrics.jsonl").write_bytes(lines + b'{"step": 9}\n{"step": 1')
    (bucket / "checkpoints" / "step_00000009" / "progress.json").write_text("{}")  # never sealed
    caplog.set_level(logging.INFO)
    assert pretrain(micro(store), str(bucket)).exit_code == 0
    assert (
        f"{newest} is unsound, set aside as unsound_step_00000008: {name}: missing" in caplog.text
    )
    assert "step_00000009, which was never finished" in caplog.text
    assert "resuming from step 4" in caplog.text
    assert_same_run(fetch(bucket, tmp_path / "found"), whole_run)

    # Parameters of a run in the bucket, and one more run that finds its workdir's settings changed.
    caplog.clear()
    config = micro(store, init_from=str(bucket), num_steps=1)
    assert pretrain(config, tmp_path / "next").exit_code == 0
    assert f"with the parameters of {bucket}/checkpoints/step_00000018" in caplog.text
    with pytest.raises(ConfigError, match=r"gs://.*step_00000018 belongs to a run with other"):
        pretrain(micro(store, seed=2), str(bucket))


@pytest.mark.slow
def test_the_embedded_corpus_is_kept_in_the_bucket(bucket, tmp_path, monkeypatch):
    config, workdir = micro(""), open_workdir(str(bucket))
    data = open_data(config, workdir)
    manifest = json.loads((bucket / "store" / "manifest.json").read_bytes())
    assert manifest["options"]["input"] == "embedded:python"
    workdir.upload()
    assert list(bucket.folders()) == ["store"]
    monkeypatch.setenv("BERTJAX_CACHE", str(tmp_path / "another machine"))
    monkeypatch.setattr("bertjax.prepare.embedded_store.prepare", None)  # it is not prepared twice
    again = open_data(config, open_workdir(str(bucket)))
    assert again.store_hash == data.store_hash
    assert again.stores[0].path.is_relative_to(tmp_path / "another machine" / "stores")
