"""One base class of all errors, which knows its exit code, and one place that prints them."""

import ast
import errno
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import bertjax
from bertjax.cli.command_line import errors_in_one_line
from bertjax.config import ConfigError
from bertjax.data.store.store import StoreError
from bertjax.data.stream.tf_data import StreamError
from bertjax.errors import BertjaxError
from bertjax.parallel import distributed
from bertjax.storage.workdir_lock import WorkdirInUseError

ROOT = Path(bertjax.__file__).parent
TREES = {path: ast.parse(path.read_text()) for path in sorted(ROOT.rglob("*.py"))}
DEFINED = {  # name -> module
    node.name: ".".join(path.relative_to(ROOT.parent).with_suffix("").parts)
    for path, tree in TREES.items()
    for node in ast.walk(tree)
    if isinstance(node, ast.ClassDef) and node.name.endswith(("Error", "Killed"))
}
NOT_2 = {
    **dict.fromkeys(("CheckpointError", "GroupError", "GroupKilled", "HeldError"), 1),
    **dict.fromkeys(("PrepareStoppedError", "StreamError", "TrainingDivergedError"), 1),
    "WorkdirInUseError": 1,
    "PeerLostError": 75,
}


def python(code, *arguments):
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=300
    )


def test_every_error_derives_from_one_class_and_knows_its_exit_code():
    found = {name: getattr(importlib.import_module(at), name) for name, at in DEFINED.items()}
    assert {name for name, error in found.items() if not issubclass(error, BertjaxError)} == set()
    codes = {name: error.exit_code for name, error in found.items()}
    assert codes == dict.fromkeys(DEFINED, 2) | NOT_2
    # What was caught before there was a base class still is.
    standard = (ValueError, RuntimeError)
    others = {name for name, error in found.items() if not issubclass(error, standard)}
    assert others == {"BertjaxError", "HeldError"}


def test_no_tuple_names_several_of_our_errors():
    """Whoever lists them forgets one: they have a base class, and an exit code each."""
    for path, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Tuple):
                names = {getattr(item, "attr", getattr(item, "id", "")) for item in node.elts}
                assert len(names & DEFINED.keys()) < 2, f"{path}:{node.lineno}"


def test_errors_are_printed_in_one_place():
    printing = {
        path.relative_to(ROOT).as_posix()
        for path, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.keyword) and node.arg == "file"
        if ast.unparse(node.value) == "sys.stderr"
    }
    # A run that lost its lock must not write another byte: its thread ends the process.
    assert printing == {"cli/command_line.py", "storage/bucket_lock.py"}


class UnknownError(bertjax.BertjaxError):
    exit_code = 7


@pytest.mark.parametrize(
    ("error", "line", "code"),
    [
        (ConfigError("a is b; expected c"), "error: a is b; expected c", 2),
        (StoreError("no store"), "error: no store", 2),
        (WorkdirInUseError("in use"), "error: in use", 1),
        (UnknownError("seven"), "error: seven", 7),
        (
            distributed.PeerLostError("gone"),
            "error: another process of this run is gone: gone\n"
            "run the same command again on all machines to resume",
            75,
        ),
        (
            FileNotFoundError(errno.ENOENT, "No such file or directory", "a.txt"),
            "error: a.txt: No such file or directory",
            1,
        ),
        (OSError(errno.EIO, "503 later", "gs://b/a"), "error: gs://b/a: 503 later", 1),
        (OSError(errno.ENOSPC, "No space left on device"), "error: No space left on device", 1),
    ],
)
@pytest.mark.parametrize("of_all", [None, 2])
def test_a_foreseen_error_is_one_line_and_its_exit_code(capsys, error, line, code, of_all):
    with pytest.raises(SystemExit) as ended, errors_in_one_line(exit_code=of_all):
        raise error
    assert ended.value.code == (of_all or code)
    assert capsys.readouterr() == ("", f"{line}\n")


@pytest.mark.parametrize(
    "error",
    [
        ValueError("no setting"),
        OSError("without a number"),
        BrokenPipeError(errno.EPIPE, "Broken pipe"),
        OSError(errno.EBADF, "Bad file descriptor"),
    ],
)
def test_an_unforeseen_error_keeps_its_traceback(capsys, error):
    with pytest.raises(SystemExit) as ended, errors_in_one_line(exit_code=2):
        raise error
    assert ended.value.code == 1
    printed = capsys.readouterr().err
    assert "Traceback" in printed
    assert printed.endswith(f"Error: {error}\n")


def test_what_a_thread_met_is_told_with_its_traceback(capsys):
    with pytest.raises(SystemExit) as ended, errors_in_one_line():
        raise StreamError("making the rows failed") from IndexError("list index out of range")
    assert ended.value.code == 1
    printed = capsys.readouterr().err
    assert "IndexError: list index out of range" in printed
    assert printed.endswith("\nerror: making the rows failed\n")


def test_ctrl_c_is_130(capsys):
    ended = []
    with errors_in_one_line(ended.append, exit_code=2, interrupted="interrupted; go on"):
        raise KeyboardInterrupt
    assert ended == [130]
    assert capsys.readouterr().err == "interrupted; go on\n"


@pytest.mark.parametrize(
    ("several", "code", "waits"),
    [
        *((False, 0, True), (False, 1, True), (False, 75, False), (False, 130, False)),
        *((True, 0, True), (True, 1, False), (True, 2, False)),
    ],
)
def test_a_command_that_trains_ends_without_waiting(several, code, waits):
    """After a signal, and after an error where other processes would be waited for."""
    result = python(
        "import atexit, jax\n"
        "from bertjax.parallel import distributed\n"
        f"jax.distributed.is_initialized = lambda: {several}\n"
        "atexit.register(print, 'a normal end')\n"
        f"distributed.end({code})"
    )
    assert (result.returncode, result.stdout) == (code, "a normal end\n" if waits else "")


@pytest.mark.parametrize(
    ("error", "several", "is_loss"),
    [
        (RuntimeError("Gloo all-reduce failed: Connection reset by peer"), True, True),
        (ValueError("UNAVAILABLE: Socket closed"), True, True),
        (RuntimeError("Connection reset by peer"), False, False),
        (RuntimeError("a bug"), True, False),
        (OSError(errno.ECONNRESET, "connection reset"), True, False),
        (ConfigError("bucket unavailable"), True, False),  # which is said as it is
    ],
)
def test_the_loss_of_another_process_is_told_from_other_errors(
    monkeypatch, error, several, is_loss
):
    monkeypatch.setattr(distributed, "_connect", lambda *_: None)
    monkeypatch.setattr(distributed.jax, "process_count", lambda: 1 + several)
    expected = distributed.PeerLostError if is_loss else type(error)
    with pytest.raises(expected, match=str(error.args[-1])) as caught, distributed.connected():
        raise error
    assert (caught.value is error) != is_loss


def test_commands_end_as_they_say(tmp_path):
    """What is no matter of one room: a disk that is full, a command without its argument."""
    text = tmp_path / "a.txt"
    text.write_text("A sentence here. Another one.\n\nA document.\n")
    for module, arguments, code, line in (
        ("inspect", [str(text), "--html=/dev/full"], 2, "error: No space left on device\n"),
        ("newest_checkpoint", [], 2, "error: expected one workdir: "),
    ):
        result = subprocess.run(
            [sys.executable, "-m", f"bertjax.{module}", *arguments],
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert (result.returncode, result.stderr.count("\n")) == (code, 1), result.stderr
        assert result.stderr.startswith(line)


def test_a_bug_in_a_command_that_refuses_keeps_its_traceback():
    result = python(
        "from bertjax.cli import command_line\n"
        "command_line.run(lambda values: None, lambda values, rest: 1 // 0, '', exit_code=2)"
    )
    assert result.returncode == 1
    assert result.stderr.splitlines()[0] == "Traceback (most recent call last):"
    assert result.stderr.splitlines()[-1].startswith("ZeroDivisionError")


def test_the_decision_names_every_exit_code():
    text = (ROOT.parent / "docs" / "decisions" / "errors.md").read_text()
    constants = {
        value for name, value in vars(importlib.import_module("bertjax.errors")).items()
        if name.startswith("EXIT_")
    }  # fmt: skip
    assert constants == {0, 1, 2, 75, 130}
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert [int(line.split("|")[1]) for line in rows[2:]] == sorted(constants)
    for name, code in NOT_2.items():
        if name not in ("GroupError", "GroupKilled", "HeldError"):  # caught inside
            [row] = [line for line in rows if f"`{name}`" in line]
            assert row.startswith(f"| {code} |"), name
