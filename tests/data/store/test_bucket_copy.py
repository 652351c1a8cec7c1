"""Stores in a bucket: fetched once, verified, gone on with; and sent there."""

import logging
import multiprocessing
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from folders import REPOSITORY

from bertjax.data.store import bucket_copy
from bertjax.data.store.bucket_copy import fetch_store, local_store, upload_store
from bertjax.data.store.store import StoreError, open_store, verify_store
from bertjax.data.store.store_writer import write_store
from bertjax.storage.bucket import BucketPath
from bertjax.storage.cache import cache_folder
from bertjax.testing import make_documents, make_tokenizer

DAMAGED = "train/sentences.npy"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("staging") / "store"
    write_store(folder, make_tokenizer(), make_documents(30, seed=1), make_documents(5, seed=2))
    return folder


@pytest.fixture
def source(folder, bucket) -> BucketPath:
    upload_store(folder, bucket / "store")
    return bucket / "store"


def test_a_store_is_fetched_whole_and_once(source, folder, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    fetched = local_store(str(source))
    assert fetched.parent == cache_folder() / "stores"
    verify_store(fetched)
    assert (fetched / "manifest.json").read_bytes() == (folder / "manifest.json").read_bytes()
    assert open_store(fetched).train.num_tokens == open_store(folder).train.num_tokens
    assert f"fetching {source}: 100 % of " in caplog.text
    monkeypatch.setattr(bucket_copy, "_fetch", None)  # nothing is left to fetch
    assert fetch_store(source) == fetched
    assert local_store(str(folder)) == folder


def test_a_damaged_object_is_named_and_the_fetch_goes_on_when_it_is_put_right(
    source, folder, monkeypatch
):
    (source / DAMAGED).write_bytes((folder / DAMAGED).read_bytes()[:-1] + b"x")
    with pytest.raises(StoreError, match=f"{source}/{DAMAGED}: its SHA-256 is .* damaged"):
        fetch_store(source)
    [fetched] = (cache_folder() / "stores").iterdir()
    assert not (fetched / "manifest.json").exists()  # no store yet
    assert not (fetched / DAMAGED).exists()
    there = {path for path in fetched.rglob("*.npy") if path.is_file()}

    (source / DAMAGED).unlink()
    with pytest.raises(StoreError, match=f"{source}/{DAMAGED}: is missing"):
        fetch_store(source)

    (source / DAMAGED).upload(folder / DAMAGED)
    times = {path: path.stat().st_mtime_ns for path in there}
    assert fetch_store(source) == fetched
    verify_store(fetched)
    assert times == {path: path.stat().st_mtime_ns for path in there}  # not fetched again


def test_room_is_asked_for_first(source, monkeypatch):
    usage = shutil.disk_usage("/")._replace(free=1_000)
    monkeypatch.setattr(bucket_copy.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(StoreError, match=r"GB of gs://.* are still to come.*BERTJAX_CACHE"):
        fetch_store(source)


def test_no_store_is_named(bucket):
    with pytest.raises(StoreError, match=f"{bucket}/manifest.json: no such folder"):
        fetch_store(bucket)


def test_processes_of_a_machine_wait_for_the_first(source):
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        first, second = pool.map(fetch_store, [source, source])
    assert first == second
    verify_store(first)


def test_an_upload_is_gone_on_with_and_overwrites_no_other_store(source, folder, tmp_path):
    generation = (source / DAMAGED).generation()
    (source / "manifest.json").unlink()
    (source / "heldout/sentences.npy").unlink()
    upload_store(folder, source)
    assert (source / DAMAGED).generation() == generation  # was there already
    verify_store(fetch_store(source))
    other = write_store(tmp_path / "other", make_tokenizer(), make_documents(3, seed=4), [])
    with pytest.raises(StoreError, match=f"{source}: another store is there"):
        upload_store(other.path, source)


def test_prepare_uploads(bucket, tmp_path):
    (tmp_path / "corpus.txt").write_text("A sentence here. Another one.\n\nA new document. Yes.\n")
    command = [sys.executable, "-m", "bertjax.prepare", f"--input={tmp_path / 'corpus.txt'}"]
    options = ["--tokenizer=train:wordpiece", "--vocab_size=300", "--heldout_share=0"]

    def run():
        return subprocess.run(
            [*command, f"--output={bucket}/made", *options, "--num_workers=1"],
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
        )

    result = run()
    assert result.returncode == 0, result.stderr
    assert f"{bucket}/made: uploaded from {cache_folder()}" in result.stdout
    assert open_store(fetch_store(bucket / "made")).train.num_documents == 2
    # Something else there: the work was done, so it is not 2, "cannot begin".
    (bucket / "made" / "manifest.json").write_bytes(b"{}")
    result = run()
    assert (result.returncode, result.stderr.count("error: ")) == (1, 1)
    assert "another store is there" in result.stderr
