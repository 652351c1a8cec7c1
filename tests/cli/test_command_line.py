"""`--help` of every command, as somebody reads it who has never seen one."""

import os
import signal
import subprocess
import sys

import pytest
from folders import GOLDENS

from bertjax.cli import command_line

FOLDER = GOLDENS / "hugging_face" / "encoder"
COMMANDS = ("train", "finetune", "sweep", "predict", "convert", "prepare", "inspect", "plan")


def read_help(command, columns, flag="--help"):
    return subprocess.run(
        [sys.executable, "-m", f"bertjax.{command}", flag],
        capture_output=True,
        text=True,
        timeout=300,
        env={"COLUMNS": str(columns), "PYTHONPATH": ":".join(sys.path)},
    )


def flags_of(text):
    """Name -> description, of the list of flags."""
    found, name = {}, ""
    for line in text.split("\nFlags:\n")[1].split("\n\n")[0].splitlines():
        if line.startswith("  --"):
            head, _, rest = line.strip().partition("  ")
            name = head.partition("=")[0].removeprefix("--").removeprefix("[no]")
            found[name] = rest.strip()
        else:
            found[name] = f"{found[name]} {line.strip()}".strip()
    return found


@pytest.mark.parametrize("command", COMMANDS)
def test_help_says_what_the_command_does_and_each_of_its_own_flags(command):
    result = read_help(command, 100)
    assert (result.returncode, result.stderr) == (0, "")
    assert max(map(len, result.stdout.splitlines())) <= 100
    assert f"python -m bertjax.{command}" in result.stdout
    described = flags_of(result.stdout)
    for name, text in described.items():
        assert text[0].isupper() or text.startswith(("wordpiece:", "CHIP:", "HOST:")), name
        assert text.endswith("."), name
    assert not described.keys() & {"verbosity", "alsologtostderr", "pdb"}  # absl's
    assert "repeat this option" not in result.stdout


@pytest.mark.parametrize(
    ("command", "first", "last"),
    [
        ("train", "config", "print_config"),
        ("plan", "config", "print_config"),
        ("finetune", "task", "print_config"),
        ("sweep", "models", "print_config"),
        ("predict", "model", "max_length"),
    ],
)
def test_what_is_needed_first_comes_first(command, first, last):
    names = list(flags_of(read_help(command, 100, "-h").stdout))
    assert (names[0], names[-1]) == (first, last)
    assert ("config.FIELD" in names) == (command in ("finetune", "sweep"))


def test_help_fits_a_narrow_terminal():
    text = read_help("predict", 72).stdout
    described = text.split("\nFlags:\n")[1]
    assert max(map(len, described.splitlines())) <= 72
    assert "Default: text." in flags_of(text)["format"]


def test_a_text_after_two_dashes_is_no_flag(tmp_path):
    """`predict -- --help` predicts for the text `--help`."""
    result = subprocess.run(
        [sys.executable, "-m", "bertjax.predict", f"--model={tmp_path}", "--", "--help"],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 2
    assert "no checkpoint found" in result.stderr


def test_the_home_folder_is_written_as_a_tilde(monkeypatch):
    given = ["--workdir=~/runs", "-init_from=hf:~/model", "--train=~/a.tsv,~/b.tsv"]
    monkeypatch.setenv("HOME", "/home/me")
    kept = ["--option=separator=~", "a ~/text", "--tokenizer=~", "--", "--text=~/x"]
    found = command_line.expand_home([*given, *kept])
    expected = ["--workdir=/home/me/runs", "-init_from=hf:/home/me/model"]
    expected += ["--train=/home/me/a.tsv,/home/me/b.tsv"]
    assert found == [*expected, *kept]


@pytest.mark.parametrize("command", ["predict", "train"])
def test_commands_read_the_home_folder(command, tmp_path):
    flags = {"predict": ["--model=~/x"], "train": ["--config=tiny", "--workdir=~/x"]}[command]
    if command == "train":
        (tmp_path / "x").write_text("a file")
    result = subprocess.run(
        [sys.executable, "-m", f"bertjax.{command}", *flags],
        capture_output=True,
        text=True,
        timeout=300,
        env={"HOME": str(tmp_path), "PYTHONPATH": ":".join(sys.path)},
    )
    assert result.returncode == 2
    assert f"{tmp_path}/x: " in result.stderr


def test_an_empty_folder_that_the_command_runs_in_is_no_output(tmp_path):
    result = subprocess.run(
        [sys.executable, "-m", "bertjax.convert", f"--input={FOLDER}", "--output=."],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": ":".join(sys.path)},
    )
    assert result.returncode == 2
    assert result.stderr.endswith("is the folder that the command runs in; name a new folder\n")
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_while_files_are_read_is_one_line(tmp_path):
    texts = tmp_path / "texts"
    os.mkfifo(texts)
    arguments = [f"--model={FOLDER}", "--do=embed", f"--input={texts}"]
    # A shell starts what is to run in the background with SIGINT ignored, for children too.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        process = subprocess.Popen(
            [sys.executable, "-m", "bertjax.predict", *arguments], stderr=subprocess.PIPE, text=True
        )
    finally:
        signal.signal(signal.SIGINT, before)
    with process, texts.open("w"):  # open when the command has opened it
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (130, "interrupted\n")
