"""`--help` of every command, as somebody reads it who has never seen one."""

import subprocess
import sys

import pytest

COMMANDS = ("train", "finetune", "predict", "convert", "prepare", "inspect", "plan")


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
        ("predict", "model", "max_length"),
    ],
)
def test_what_is_needed_first_comes_first(command, first, last):
    names = list(flags_of(read_help(command, 100, "-h").stdout))
    assert (names[0], names[-1]) == (first, last)
    assert ("config.FIELD" in names) == (command == "finetune")


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
