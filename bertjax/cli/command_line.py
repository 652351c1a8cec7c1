"""What all commands share: a `--help` that fits a terminal, and errors in one line."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
import shutil
import sys
import textwrap
import traceback
import typing
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TextIO

from absl import flags

from bertjax.config import Config, ConfigError, closest
from bertjax.errors import EXIT_FAILED, EXIT_INTERRUPTED, BertjaxError

_HELP = {"--help", "-help", "-h", "-?"}
_FLAG_WIDTH = 26  # of the column of flags
_VALUES = {"int": "N", "float": "X", "comma separated list of strings": "A,B,..."}
_NO_DEFAULT = (None, False, "", 0, -1)  # stand for "not given"
# What reading and writing say of a disk, without the name of the file.
_OF_A_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EIO}


def run(
    define: Callable[[flags.FlagValues], None],
    main: Callable[[flags.FlagValues, list[str]], int],
    description: str,
    argv: Sequence[str] | None = None,
    *,
    exit_code: int | None = None,
    interrupted: str = "interrupted",
) -> typing.NoReturn:
    """Parses a command line, runs a command with it and ends the program.

    The flags belong to this call alone, so that commands can be imported side by side. `--help` is
    printed and exits with 0. For errors, a wrong flag among them, see `errors_in_one_line`.

    Args:
      define: defines the flags of the command.
      main: does the work, given the parsed flags and the arguments that are no flags; returns the
        exit code.
      description: of the command, for `--help`.
      argv: name of the program and its arguments; None = those of this process.
      exit_code: of everything that is foreseen; None = that of the error's class.
      interrupted: the line for Ctrl-C.
    """
    program, *arguments = sys.argv if argv is None else argv
    values = flags.FlagValues()
    with errors_in_one_line(exit_code=exit_code, interrupted=interrupted):
        define(values)
        show_help_if_asked(description, values, arguments)
        sys.exit(main(values, parse_flags(values, [program, *expand_home(arguments)])))


@contextlib.contextmanager
def errors_in_one_line(
    end: Callable[[int], typing.NoReturn] = sys.exit,
    exit_code: int | None = None,
    interrupted: str = "interrupted",
) -> Iterator[None]:
    """Prints what ends the `with` block and ends the program; the one place that does.

    A `BertjaxError` becomes one line on stderr and the exit code of its class, an OSError that
    names a file or a bucket, or says that a disk is full or broken, one line and 1, Ctrl-C one
    line and 130. Anything else is a bug: its traceback, and 1.

    Args:
      end: ends the program with an exit code.
      exit_code: of all that is foreseen; None = as above.
      interrupted: the line for Ctrl-C.
    """
    try:
        yield
    except KeyboardInterrupt:
        print(interrupted, file=sys.stderr)
        end(EXIT_INTERRUPTED)
    except Exception as error:
        line, code = _foreseen(error)
        if not line or getattr(error, "keeps_traceback", False):
            traceback.print_exc()
        if line:
            print(f"error: {line}", file=sys.stderr)
            code = exit_code or code
        end(code)


def _foreseen(error: Exception) -> tuple[str, int]:
    """What a foreseen error says, "" for others, and the exit code."""
    if isinstance(error, BertjaxError):
        return str(error), error.exit_code
    if isinstance(error, OSError) and error.strerror:
        if error.filename:
            return f"{error.filename}: {error.strerror}", EXIT_FAILED
        if error.errno in _OF_A_DISK:
            return error.strerror, EXIT_FAILED
    return "", EXIT_FAILED


def show_log(
    format: str = "%(message)s", stream: TextIO | None = None, level: int = logging.INFO
) -> None:
    """Shows what bertjax logs, and of the libraries' own lines only warnings.

    Args:
      format: of a line, as `logging` has it.
      stream: None = stderr.
      level: of the lines of bertjax that are shown.
    """
    date = "%Y-%m-%d %H:%M:%S"
    logging.basicConfig(
        format=format, datefmt=date, level=logging.WARNING, stream=stream, force=True
    )
    logging.getLogger("bertjax").setLevel(level)


def parse_flags(values: flags.FlagValues, argv: Sequence[str]) -> list[str]:
    """Parses the flags; returns the arguments that are none, without the name of the program.

    Raises:
      ConfigError: a flag does not exist, is missing or has a value that it cannot have.
    """
    try:
        return values(argv)[1:]
    except flags.Error as error:
        missing = re.match(r"flag --(\w+)=None: .* must have a value", str(error))
        if missing:
            help_text = values[missing[1]].help
            raise ConfigError(f"--{missing[1]} is missing: {help_text}") from error
        unknown = getattr(error, "flagname", "")
        advice = f"; {closest(unknown, list(values))}" if unknown and unknown not in values else ""
        text = str(error).split(" Did you mean")[0].rstrip(".")
        raise ConfigError(f"{text}{advice}") from error


def expand_home(arguments: Sequence[str]) -> list[str]:
    """Puts the home folder for the ~/ of --workdir=~/runs, which shells leave as it is."""
    end, home = _flags_end(arguments), os.path.expanduser("~")
    return [
        re.sub(r"(?<=[=:,])~(?=/)", lambda _: home, argument)
        if i < end and argument.startswith("-") and not argument.lstrip("-").startswith("option=")
        else argument
        for i, argument in enumerate(arguments)
    ]


def show_help_if_asked(
    description: str, values: flags.FlagValues, arguments: Sequence[str]
) -> None:
    """Prints the help and exits with 0 where the arguments ask for it."""
    if is_help_asked(arguments):
        print(help_text(description, values, help_width()))
        sys.exit(0)


def is_help_asked(arguments: Sequence[str]) -> bool:
    """Whether --help is among the arguments, before any --."""
    return bool(_HELP & set(arguments[: _flags_end(arguments)]))


def _flags_end(arguments: Sequence[str]) -> int:
    """How many arguments stand before a --, behind which nothing is a flag."""
    return list(arguments).index("--") if "--" in arguments else len(arguments)


def help_width() -> int:
    """The width of a line of help, as the terminal has it: 60 to 100 characters."""
    return max(60, min(100, shutil.get_terminal_size(fallback=(100, 24)).columns))


def help_text(description: str, values: flags.FlagValues, width: int) -> str:
    """What the command is and each of its flags, in the order they are defined.

    Args:
      description: paragraphs; indented lines stay as they are.
      values: the flags.
      width: of a line.
    """
    shown = [values[name] for name in values if "." not in name]  # no fields of a recipe
    described = "\n".join(line for flag in shown for line in _describe(flag, width))
    return f"{in_paragraphs(description, width)}\n\nFlags:\n{described}"


def in_paragraphs(text: str, width: int) -> str:
    """A docstring in lines of a width; indented paragraphs stay as they are."""
    paragraphs = text.strip().split("\n\n")
    return "\n\n".join(p if p.startswith(" ") else textwrap.fill(p, width) for p in paragraphs)


def _describe(flag: flags.Flag[Any], width: int) -> list[str]:
    """The lines of one flag."""
    text = re.sub(r"^<[^>]*>: |;\s+repeat this option to .*", "", flag.help.strip())  # absl's own
    if flag.default not in _NO_DEFAULT and not isinstance(flag.default, (bool, Config)):
        default = flag.default
        shown = ",".join(map(str, default)) if isinstance(default, list) else str(default)
        text += f" Default: {shown}." if shown else ""
    return in_columns(f"  {_head(flag)}", text, width)


def in_columns(head: str, text: str, width: int) -> list[str]:
    """The lines of a flag or a field: its name and value, then the text in a column of its own."""
    lines = textwrap.wrap(text, width - _FLAG_WIDTH - 2, break_on_hyphens=False)
    if len(head) <= _FLAG_WIDTH:
        head += " " * (_FLAG_WIDTH + 2 - len(head)) + lines.pop(0)
    return [head, *(" " * (_FLAG_WIDTH + 2) + line for line in lines)]


def _head(flag: flags.Flag[Any]) -> str:
    """A flag as it is written on the command line."""
    if isinstance(flag.default, Config):
        return f"--{flag.name}.FIELD=..."
    if flag.boolean:
        return f"--{'' if flag.default is False else '[no]'}{flag.name}"
    if isinstance(flag, flags.EnumFlag):
        return f"--{flag.name}={'|'.join(flag.parser.enum_values)}"
    return f"--{flag.name}={_VALUES.get(flag.flag_type(), '...')}"
