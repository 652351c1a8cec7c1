"""Checkpoints in a bucket: sealed last, verified by the listing, damage found and set aside."""

import json
import logging
import os
import shutil
import subprocess
import sys

import pytest
from checkpoint_states import assert_is_step, save
from folders import REPOSITORY

from bertjax import newest_checkpoint
from bertjax.checkpoints import sealing
from bertjax.checkpoints.checkpoint import CheckpointError, CheckpointStore, resolve
from bertjax.checkpoints.checkpoint_directory import find_faults
from bertjax.storage.bucket import BucketPath

pytestmark = pytest.mark.slow


def names_in(workdir: BucketPath) -> list[str]:
    return (workdir / "checkpoints").folders()


@pytest.fixture(scope="module")
def saved(bucket_server) -> BucketPath:
    """A workdir with the checkpoints of steps 1 and 2; tests work on copies of it."""
    workdir = BucketPath("gs://bucket/saved")
    with CheckpointStore(str(workdir), keep=0) as store:
        save(store, 1)
        save(store, 2)
    return workdir


@pytest.fixture
def workdir(saved, bucket) -> BucketPath:
    saved.copy_tree(bucket)
    return bucket


@pytest.fixture
def newest(workdir) -> BucketPath:
    return workdir / "checkpoints" / "step_00000002"


def test_saved_sealed_and_restored(workdir, newest):
    assert names_in(workdir) == ["step_00000001", "step_00000002"]
    assert_is_step(resolve(str(workdir)), 2)
    assert_is_step(resolve(newest.with_name("step_00000001")), 1)
    files = newest.files()
    seal = json.loads((newest / "SEAL.json").read_bytes())
    assert seal["format_version"] == 2
    assert seal["files"] == {
        name: {"size": stored.size, "md5": stored.md5}
        for name, stored in files.items()
        if name != "SEAL.json"
    }
    assert {"params/_METADATA", "progress.json", "config.json"} < set(seal["files"])


def test_only_the_newest_are_kept_and_steps_grow(workdir):
    with CheckpointStore(workdir, keep=2) as store:
        assert store.latest().step == 2
        with pytest.raises(CheckpointError, match="step 2 cannot be saved, step 2 is there"):
            save(store, 2)
        save(store, 3)
        store.wait()
        assert names_in(workdir) == ["step_00000002", "step_00000003"]
        assert_is_step(store.latest(), 3)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-1])


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


@pytest.mark.parametrize(
    ("damage", "words"),
    [(flip_a_bit, "md5"), (truncate, "bytes found"), (BucketPath.unlink, "missing")],
)
def test_damage_is_found_named_and_the_older_one_used(damage, words, workdir, newest, caplog):
    name = next(name for name in newest.files() if name.startswith("params/ocdbt.process_0/d/"))
    damage(newest / name)
    with CheckpointStore(workdir, keep=0) as store:
        assert_is_step(store.latest(), 1)
    assert names_in(workdir) == ["step_00000001", "unsound_step_00000002"]
    [record] = [record for record in caplog.records if record.levelname == "WARNING"]
    assert str(newest) in record.getMessage()
    assert f"{name}: " in record.getMessage()
    assert words in record.getMessage()


def test_a_damaged_seal_and_a_file_too_many_are_unsound(workdir, newest, caplog):
    flip_a_bit(newest / "SEAL.json")
    (newest.with_name("step_00000001") / "extra").write_text("x")
    with (
        CheckpointStore(workdir, keep=0) as store,
        pytest.raises(CheckpointError, match=r"no intact checkpoint is left .*does not start"),
    ):
        store.latest()
    assert "SEAL.json: damaged" in caplog.text
    assert "extra: not listed in SEAL.json" in caplog.text
    assert names_in(workdir) == ["unsound_step_00000001", "unsound_step_00000002"]


def test_without_a_seal_it_was_never_finished(workdir, newest, caplog):
    caplog.set_level(logging.INFO)
    (newest / "SEAL.json").unlink()
    assert_is_step(resolve(workdir), 1)  # ignored, and nothing is removed
    assert (newest / "progress.json").is_file()
    with CheckpointStore(workdir, keep=0) as store:
        assert_is_step(store.latest(), 1)
        assert f"removed {newest}, which was never finished" in caplog.text
        save(store, 2)
    assert_is_step(resolve(workdir), 2)
    with pytest.raises(CheckpointError, match="no such directory"):
        resolve(workdir / "nowhere")


def test_a_save_fails_with_what_has_to_come_before_it(bucket):
    def refuse():
        raise OSError("the metrics are not there")

    with CheckpointStore(bucket, keep=0, before_seal=refuse) as store:
        save(store, 1)
        with pytest.raises(CheckpointError, match="step 1 was not saved: the metrics are not"):
            store.wait()
    assert names_in(bucket) == []


def test_checkpoints_can_be_copied_from_and_to_a_disk(workdir, newest, tmp_path):
    local = tmp_path / "step_00000002"
    for name in newest.files():
        (local / name).parent.mkdir(parents=True, exist_ok=True)
        (local / name).write_bytes((newest / name).read_bytes())
    assert_is_step(resolve(local), 2)
    file = next(local.glob("params/d/*"))
    flip_a_bit(file)
    assert any(f"{file.name}: md5" in fault for fault in find_faults(local))

    with CheckpointStore(tmp_path / "run", keep=0) as store:
        save(store, 5)
    source, target = tmp_path / "run" / "checkpoints" / "step_00000005", workdir / "step_00000005"
    for path in source.rglob("*"):
        if path.is_file():
            (target / path.relative_to(source).as_posix()).upload(path)
    assert_is_step(resolve(target), 5)
    flip_a_bit(target / "params" / "_METADATA")
    assert any("params/_METADATA: sha256" in fault for fault in find_faults(target))
    shutil.rmtree(source)


def test_a_bucket_that_does_not_answer_is_no_damage(workdir, newest, monkeypatch):
    def fail(*_):
        raise OSError(5, "503 try later", str(newest))

    monkeypatch.setattr(BucketPath, "files", fail)
    with pytest.raises(CheckpointError, match=r"503 try later.*says nothing about the checkpoint"):
        sealing.find_faults(newest)


def test_the_newest_checkpoint_is_told_by_its_seal(workdir, newest, tmp_path, capsys):
    def told(folder):
        with pytest.raises(SystemExit, match="0"):
            newest_checkpoint.main(["newest_checkpoint", str(folder)])
        return capsys.readouterr().out

    assert told(workdir) == "step_00000002\n"
    (newest / "SEAL.json").unlink()
    assert told(workdir) == "step_00000001\n"
    assert told(workdir / "nowhere") == ""
    (tmp_path / "checkpoints" / "step_00000007").mkdir(parents=True)
    assert told(tmp_path) == "step_00000007\n"


@pytest.mark.parametrize(
    ("name", "arguments", "code"),
    [
        ("convert", ["--input={}", "--output=out"], 2),
        (
            "finetune",
            ["--task=cola", "--train=x", "--eval=x", "--workdir=out", "--init_from={}"],
            1,
        ),
        ("predict", ["--model={}", "text"], 2),
        ("newest_checkpoint", ["{}"], 1),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_bucket_that_is_not_there_is_one_line(bucket_server, tmp_path, name, arguments, code):
    arguments = [part.format("gs://no-such-bucket/run") for part in arguments]
    result = subprocess.run(
        [sys.executable, "-m", f"bertjax.{name}", *arguments],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == code, result.stderr
    assert result.stderr.startswith("error: "), result.stderr
    assert "gs://no-such-bucket/run" in result.stderr
    assert result.stderr.count("\n") == 1, result.stderr
    assert not (tmp_path / "out").exists()
