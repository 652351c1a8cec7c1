"""What all commands share: a `--help` that fits a terminal, and errors in one line."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import sys
import textwrap
import traceback
import typing
from collections.abc import Callable, Iterator, Sequence

from absl import app, flags

from bertjax.config import Config, ConfigError, closest
from bertjax.errors import EXIT_FAILED, EXIT_INTERRUPTED, BertjaxError

_HELP = {"--help", "-help", "-h", "-?"}
_FLAG_WIDTH = 26  # of the column of flags
_VALUES = {"int": "N", "float": "X", "comma separated list of strings": "A,B,..."}
_NO_DEFAULT = (None, False, "", 0, -1)  # stand for "not given"
# What reading and writing say of a disk, without the name of the file.
_OF_A_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EIO}


def run(
    main: Callable[[list[str]], int],
    *,
    exit_code: int | None = None,
    interrupted: str = "interrupted",
) -> typing.NoReturn:
    """Parses the command line and exits with what `main(argv)` returns.

    `--help` is printed and exits with 0; for errors, a wrong flag among them, and the arguments see
    `errors_in_one_line`.
    """
    show_help_if_asked()
    expand_home()
    with errors_in_one_line(exit_code=exit_code, interrupted=interrupted):
        app.run(main, flags_parser=parse_flags)
    raise AssertionError("app.run returned")


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


def parse_flags(argv: Sequence[str]) -> list[str]:
    """Parses the flags; returns what is none.

    Raises:
      ConfigError: a flag does not exist, is missing or has a value that it cannot have.
    """
    try:
        return flags.FLAGS(argv)
    except flags.Error as error:
        known = [flag.name for flag in _own_flags()]
        missing = re.match(r"flag --(\w+)=None: .* must have a value", str(error))
        if missing:
            help_text = flags.FLAGS[missing[1]].help
            raise ConfigError(f"--{missing[1]} is missing: {help_text}") from error
        unknown = getattr(error, "flagname", "")
        advice = f"; {closest(unknown, known)}" if unknown and unknown not in known else ""
        text = str(error).split(" Did you mean")[0].rstrip(".")
        raise ConfigError(f"{text}{advice}") from error


def expand_home() -> None:
    """Puts the home folder for the ~/ of --workdir=~/runs, which shells leave as it is."""
    for i, argument in enumerate(sys.argv[1:], 1):
        if argument == "--":
            return
        if argument.startswith("-") and not argument.lstrip("-").startswith("option="):
            sys.argv[i] = re.sub(r"(?<=[=:,])~(?=/)", lambda _: os.path.expanduser("~"), argument)


def show_help_if_asked() -> None:
    """Prints the help and exits with 0 where the command line asks for it."""
    arguments = sys.argv[1:]
    if "--" in arguments:
        arguments = arguments[: arguments.index("--")]
    if _HELP & set(arguments):
        print(help_text(sys.modules["__main__"].__doc__ or "", help_width()))
        sys.exit(0)


def help_width() -> int:
    """The width of a line of help, as the terminal has it: 60 to 100 characters."""
    return max(60, min(100, shutil.get_terminal_size(fallback=(100, 24)).columns))


def help_text(description: str, width: int) -> str:
    """What the command is and each of our own flags, in the order they are defined.

    Args:
      description: paragraphs; indented lines stay as they are.
      width: of a line.
    """
    described = "\n".join(line for flag in _own_flags() for line in _describe(flag, width))
    last = "--helpfull lists those of the libraries too."
    return "\n\n".join([in_paragraphs(description, width), f"Flags:\n{described}", last])


def in_paragraphs(text: str, width: int) -> str:
    """A docstring in lines of a width; indented paragraphs stay as they are."""
    paragraphs = text.strip().split("\n\n")
    return "\n\n".join(p if p.startswith(" ") else textwrap.fill(p, width) for p in paragraphs)


def _own_flags() -> Iterator[flags.Flag]:
    """The command's flags: the recipe before them, overrides of a recipe after."""
    modules = flags.FLAGS.flags_by_module_dict()
    command = list(modules.get(sys.argv[0], ()))
    shared = {flag.name: flag for flag in modules.get("bertjax.cli.recipe_flags", ())}
    recipe = [shared[name] for name in ("config",) if name in shared]
    is_overridden = bool(recipe) and isinstance(recipe[0].default, Config)
    yield from command + recipe if is_overridden else recipe + command
    yield from (shared[name] for name in ("help_config", "print_config") if name in shared)


def _describe(flag: flags.Flag, width: int) -> list[str]:
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


def _head(flag: flags.Flag) -> str:
    """A flag as it is written on the command line."""
    if isinstance(flag.default, Config):
        return f"--{flag.name}.FIELD=..."
    if flag.boolean:
        return f"--{'' if flag.default is False else '[no]'}{flag.name}"
    if isinstance(flag, flags.EnumFlag):
        return f"--{flag.name}={'|'.join(flag.parser.enum_values)}"
    return f"--{flag.name}={_VALUES.get(flag.flag_type(), '...')}"
