"""Checkpoints that were damaged, cut short by kill -9 or found no room."""

import contextlib
import errno
import gc
import logging
import os
import random
import resource
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from checkpoint_states import assert_is_step, names_in, run_python, save, write_two_checkpoints

from bertjax.checkpoints import sealing
from bertjax.checkpoints.checkpoint import CheckpointError, CheckpointStore, resolve

# What a failed write of orbax leaves behind; pytest hides the filter that `quiet_orbax` sets.
pytestmark = [
    pytest.mark.filterwarnings("ignore:coroutine 'async_serialize:RuntimeWarning"),
    pytest.mark.slow,
]


@pytest.fixture(autouse=True)
def collect_what_failed_writes_leave():
    yield
    gc.collect()


@pytest.fixture(scope="module")
def two_checkpoints(tmp_path_factory) -> Path:
    return write_two_checkpoints(tmp_path_factory.mktemp("two_checkpoints"))


@pytest.fixture
def workdir(two_checkpoints, tmp_path) -> Path:
    return Path(shutil.copytree(two_checkpoints, tmp_path / "run"))


# --- damage -------------------------------------------------------------------------------------


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    bit = random.Random(path.name).randrange(8 * len(content))
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


@pytest.mark.parametrize(
    ("damage", "words"),
    [(flip_a_bit, "sha256"), (truncate, "bytes found"), (Path.unlink, "missing")],
)
def test_damage_to_any_file_is_found_named_and_the_older_one_used(
    damage, words, two_checkpoints, tmp_path, caplog
):
    newest = two_checkpoints / "checkpoints" / "step_00000002"
    files = [path.relative_to(newest) for path in newest.rglob("*") if path.is_file()]
    assert len(files) > 20  # two orbax items, our JSON and the seal
    for i, name in enumerate(files):
        workdir = shutil.copytree(two_checkpoints, tmp_path / str(i))
        damage(workdir / "checkpoints" / "step_00000002" / name)
        caplog.clear()
        with CheckpointStore(workdir, keep=0) as store:
            assert_is_step(store.latest(), 1)
        assert names_in(workdir) == ["step_00000001", "unsound_step_00000002"]
        [record] = [record for record in caplog.records if record.levelname == "WARNING"]
        expected = words if name.name != "SEAL.json" or damage is Path.unlink else "damaged"
        assert f"{name}: " in record.getMessage()
        assert expected in record.getMessage()


def test_no_single_bit_of_a_seal_can_flip_unseen(two_checkpoints, tmp_path):
    seal = tmp_path / "SEAL.json"
    shutil.copy(two_checkpoints / "checkpoints" / "step_00000002" / "SEAL.json", seal)
    content = seal.read_bytes()
    sealing.read_seal(tmp_path)
    for bit in range(0, 8 * len(content), 31):  # 31 and 8 share no factor: each bit of a byte
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        seal.write_bytes(flipped)
        with pytest.raises(ValueError, match="damaged"):
            sealing.read_seal(tmp_path)


def test_a_half_copied_step_is_not_taken_for_the_latest(workdir, caplog):
    checkpoints = workdir / "checkpoints"
    shutil.copytree(checkpoints / "step_00000002", checkpoints / "step_00000003")
    files = sorted(path for path in (checkpoints / "step_00000003").rglob("*") if path.is_file())
    for path in files[len(files) // 2 :]:
        path.unlink()
    with CheckpointStore(workdir, keep=0) as store:
        assert_is_step(store.latest(), 2)
    assert "step_00000003 is unsound" in caplog.text


def test_a_whole_copy_under_another_step_or_with_a_file_too_many_is_unsound(workdir, caplog):
    checkpoints = workdir / "checkpoints"
    shutil.copytree(checkpoints / "step_00000002", checkpoints / "step_00000003")
    (checkpoints / "step_00000002" / "params" / "d" / "extra").write_text("x")
    with CheckpointStore(workdir, keep=0) as store:
        assert_is_step(store.latest(), 1)
    assert "SEAL.json: step 2 found, 3 expected" in caplog.text
    assert "params/d/extra: not listed in SEAL.json" in caplog.text


def test_a_file_server_that_does_not_answer_is_no_damage(workdir, monkeypatch):
    """The checkpoint is not set aside, which would be for good."""

    def fail(path, algorithm, sync=False):
        raise OSError(errno.ESTALE, "Stale file handle", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(sealing, "_digest", fail)
        with pytest.raises(CheckpointError, match=r"cannot be read now \(Stale file"):
            resolve(workdir)
    assert resolve(workdir).path.is_dir()


def test_with_none_sound_the_run_stops_and_stops_again(workdir):
    for step in ("step_00000001", "step_00000002"):
        flip_a_bit(workdir / "checkpoints" / step / "params" / "_METADATA")
    for _ in range(2):
        with (
            CheckpointStore(workdir, keep=0) as store,
            pytest.raises(CheckpointError, match=r"no intact checkpoint is left .*does not start"),
        ):
            store.latest()
    assert names_in(workdir) == ["unsound_step_00000001", "unsound_step_00000002"]


def test_a_second_unsound_one_of_the_same_step_is_kept_too(workdir):
    for _ in range(2):
        (workdir / "checkpoints" / "step_00000002" / "SEAL.json").unlink()
        with CheckpointStore(workdir, keep=0) as store:
            assert_is_step(store.latest(), 1)
            save(store, 2)
    assert names_in(workdir) == [
        "step_00000001",
        "step_00000002",
        "unsound_step_00000002",
        "unsound_step_00000002.1",
    ]


def test_another_format_version_is_refused_and_left_in_place(workdir, monkeypatch):
    newest = workdir / "checkpoints" / "step_00000002"
    (newest / "SEAL.json").unlink()
    with monkeypatch.context() as patch:
        patch.setattr(sealing, "FORMAT_VERSION", 3)
        sealing.write_seal(newest, 2)
    with (
        CheckpointStore(workdir, keep=0) as store,
        pytest.raises(CheckpointError, match=r"format 3 found, .* reads format 1 and 2"),
    ):
        store.latest()
    assert names_in(workdir) == ["step_00000001", "step_00000002"]


def test_resolve_takes_a_workdir_a_folder_or_a_step_and_renames_nothing(workdir, tmp_path, caplog):
    checkpoints = workdir / "checkpoints"
    for path in (workdir, checkpoints, str(checkpoints / "step_00000002")):
        assert_is_step(resolve(path), 2)
    copy = shutil.copytree(checkpoints / "step_00000002", tmp_path / "published")
    assert_is_step(resolve(copy), 2)
    flip_a_bit(checkpoints / "step_00000002" / "config.json")
    assert_is_step(resolve(workdir), 1)
    assert "config.json: sha256" in caplog.text
    with pytest.raises(CheckpointError, match=r"no intact checkpoint.*config.json: sha256"):
        resolve(checkpoints / "step_00000002")
    assert names_in(workdir) == ["step_00000001", "step_00000002"]
    with pytest.raises(CheckpointError, match="no such directory"):
        resolve(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="no checkpoint found"):
        resolve(tmp_path / "empty")


# --- kill -9 ------------------------------------------------------------------------------------

ROWS_OF_A_SLOW_SAVE = 20_000  # 1.3 MB a kernel, three kernels a checkpoint

# Imports once, then forks a process for each line it reads: a run that resumes and saves for ever.
RUNS = """
import os, sys
from checkpoint_states import *
from bertjax.checkpoints.checkpoint import CheckpointStore
for line in sys.stdin:
    pid = os.fork()
    if pid:
        print(pid, flush=True)
        os.waitpid(pid, 0)
        print("dead", flush=True)
        continue
    store = CheckpointStore(sys.argv[1], keep=2)
    checkpoint = store.latest()
    step = checkpoint.step if checkpoint else 0
    print("saving", flush=True)
    while True:
        step += 1
        save(store, step, int(sys.argv[2]))
"""


@pytest.mark.slow
def test_kill_9_at_random_moments_loses_no_finished_save(tmp_path):
    checkpoints = tmp_path / "checkpoints"
    moments = random.Random(0)
    steps, kills_inside_a_save = [0], 0
    runs = run_python(RUNS, tmp_path, ROWS_OF_A_SLOW_SAVE)
    try:
        for _ in range(40):
            runs.stdin.write("\n")
            runs.stdin.flush()
            pid = int(runs.stdout.readline())
            assert runs.stdout.readline() == "saving\n"
            time.sleep(moments.uniform(0, 0.8))
            os.kill(pid, signal.SIGKILL)
            assert runs.stdout.readline() == "dead\n"
            names = names_in(tmp_path) if checkpoints.exists() else []
            kills_inside_a_save += any(name.startswith(".saving_") for name in names)
            finished = [name for name in names if name.startswith("step_")]
            with CheckpointStore(tmp_path, keep=2) as store:
                checkpoint = store.latest()
            assert not [name for name in names_in(tmp_path) if name.startswith((".", "unsound"))]
            if checkpoint is None:
                assert not finished
                steps.append(0)
            else:
                assert checkpoint.path.name == finished[-1]
                assert_is_step(checkpoint, checkpoint.step, ROWS_OF_A_SLOW_SAVE)
                steps.append(checkpoint.step)
            if kills_inside_a_save >= 3 and len(steps) > 6 and steps[-1] > 2:
                break
    finally:
        runs.kill()
        runs.communicate()
    assert kills_inside_a_save >= 3
    assert steps == sorted(steps)
    assert steps[-1] > 2


# --- no room ------------------------------------------------------------------------------------


@contextlib.contextmanager
def small_file_system(folder: Path, size: int):
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("mounting a tmpfs is not permitted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.slow
def test_a_full_disk_loses_nothing_that_was_saved(tmp_path):
    rows, page, refused = 4_000, 4_096, 0  # 256 kB a kernel
    with (
        small_file_system(tmp_path / "disk", 4 << 20) as disk,
        CheckpointStore(disk, keep=0) as store,
    ):
        save(store, 1, rows)
        store.wait()
        used = sum(path.stat().st_blocks * 512 for path in disk.rglob("*"))
        step = 2
        for room in range(0, used + 30 * page, 30 * page):
            ballast = disk / "ballast"
            ballast.write_bytes(bytes(shutil.disk_usage(disk).free - room))
            message = ""
            try:
                save(store, step, rows)
                store.wait()
            except CheckpointError as error:
                message = str(error)
            if message:
                refused += 1
                assert f"step {step} was not saved: No space left on device" in message
                assert "step_00000001. " in message
                assert "Make room in" in message
                assert sorted(names_in(disk)) == ["step_00000001"]
                assert_is_step(resolve(disk), 1, rows)
            else:
                assert_is_step(resolve(disk), step, rows)
                shutil.rmtree(store.directory / f"step_{step:08d}")
            ballast.unlink()
            step += 1
        assert refused > 5
        assert refused < step - 2  # the last had room enough
        save(store, step, rows)
        assert store.wait() == step


@contextlib.contextmanager
def longest_file(size: int):
    """No file may grow beyond `size` bytes: a failing disk for whom a mount is not permitted."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("limit", [200, 20_000, 300_000])  # bytes a file: at once, early and late
def test_a_save_that_cannot_grow_loses_nothing(limit, tmp_path):
    rows = 8_000
    with CheckpointStore(tmp_path, keep=0) as store:
        save(store, 1, rows)
        store.wait()
        sizes = [path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()]
        assert max(sizes) > 300_000
        with longest_file(limit):
            save(store, 2, rows)
            with pytest.raises(CheckpointError, match="step 2 was not saved"):
                store.wait()
    assert names_in(tmp_path) == ["step_00000001"]
    assert_is_step(resolve(tmp_path), 1, rows)


@pytest.mark.parametrize("call", ["wait", "latest", "save"])
def test_a_failed_write_is_told_once_by_the_next_call(call, tmp_path):
    rows = 4_000
    with CheckpointStore(tmp_path, keep=0) as store:
        save(store, 1, rows)
        store.wait()
        with longest_file(20_000):
            save(store, 2, rows)
            while store._thread.is_alive():
                time.sleep(0.01)
        with pytest.raises(CheckpointError, match=r"step 2 was not saved: .*: \S+step_00000001$"):
            save(store, 3, rows) if call == "save" else getattr(store, call)()
        assert names_in(tmp_path) == ["step_00000001"]
        assert store.wait() == 1
        save(store, 2, rows)
    assert_is_step(resolve(tmp_path), 2, rows)


def save_one_and_divide_by_zero(workdir: Path) -> None:
    with CheckpointStore(workdir, keep=0) as store:
        save(store, 1, 4_000)
        _ = 1 // 0


def test_closing_tells_of_a_failed_save_but_hides_no_other_error(tmp_path, caplog):
    with longest_file(20_000):
        store = CheckpointStore(tmp_path, keep=0)
        save(store, 1, 4_000)
        with pytest.raises(CheckpointError, match=r"step 1 was not saved.*checkpoint: none$"):
            store.close()
        with pytest.raises(ZeroDivisionError):
            save_one_and_divide_by_zero(tmp_path)
    assert "step 1 was not saved" in caplog.text
    assert names_in(tmp_path) == []


def test_a_workdir_that_vanishes_is_an_error_too(tmp_path):
    with CheckpointStore(tmp_path / "run", keep=0) as store:
        save(store, 1, 4_000)
        store.wait()
        (tmp_path / "run").rename(tmp_path / "moved")
        with pytest.raises(CheckpointError, match=r"run/checkpoints: no such directory"):
            save(store, 2, 4_000)
        (tmp_path / "moved").rename(tmp_path / "run")
        with longest_file(20_000):
            save(store, 2, 4_000)
            (tmp_path / "run").rename(tmp_path / "moved")
            with pytest.raises(CheckpointError, match="step 2 was not saved"):
                store.wait()


def test_a_removal_cut_short_leaves_no_half_checkpoint(workdir, caplog):
    checkpoints = workdir / "checkpoints"
    (checkpoints / "step_00000001").rename(checkpoints / ".removing_step_00000001")
    (checkpoints / ".removing_step_00000001" / "SEAL.json").unlink()
    with caplog.at_level(logging.INFO), CheckpointStore(workdir, keep=0) as store:
        assert_is_step(store.latest(), 2)
    assert names_in(workdir) == ["step_00000002"]
    assert ".removing_step_00000001, which was never finished" in caplog.text
