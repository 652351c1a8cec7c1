"""The command line of every command that takes a recipe.

`--config=NAME` is a recipe of `configs/` by name, `--config=PATH.py` one of your own; any field is
overridden by its dotted name, e.g. `--config.optimizer.learning_rate=2e-4` or
`--config.phases[1].num_steps=5000`.
"""

from __future__ import annotations

import sys
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import config_flags

from bertjax.cli import command_line
from bertjax.cli.config_help import ConfigHelpFlag
from bertjax.cli.recipes import recipe_names, recipe_path
from bertjax.config import Config, ConfigError, Phase
from bertjax.config.checks import validate
from bertjax.config.overrides import check_field
from bertjax.errors import EXIT_FINISHED

# A field with choices is read as text here; `validate` knows them.
config_flags.register_flag_parser_for_type(typing.Literal, flags.ArgumentParser())


def run(
    define: Callable[[flags.FlagValues], None],
    main: Callable[[flags.FlagValues, Config], int],
    description: str,
    argv: Sequence[str] | None = None,
) -> typing.NoReturn:
    """Runs a command that takes `--config=RECIPE`, as `command_line.run` runs one.

    What is wrong with the recipe is found before any work, and `--print_config` ends there.

    Args:
      define: defines the flags of the command, beside `--config`.
      main: does the work, given the parsed flags and the `Config`; returns the exit code.
      description: of the command, for `--help`.
      argv: name of the program and its arguments; None = those of this process.
    """

    def define_all(values: flags.FlagValues, argv: list[str]) -> None:
        config_flags.DEFINE_config_file(
            "config",
            None,
            f"Recipe: one of {', '.join(recipe_names())}, or the path of a .py file with "
            "get_config(). Override any field by its dotted name, e.g. "
            "--config.data.global_batch_size=64.",
            flag_values=values,
            lock_config=False,
            sys_argv=argv,
        )
        define(values)
        _define_last(values, Config())

    def checked(values: flags.FlagValues) -> int:
        config = values.config
        if config is None:
            raise ConfigError(
                f"--config is missing: choose from {', '.join(recipe_names())}, or a path"
            )
        config.phases = tuple(Phase(**p) if isinstance(p, dict) else p for p in config.phases)
        _check_reach(config, values)
        validate(config)
        if values.print_config:
            print(config.to_json())
            return EXIT_FINISHED
        return main(values, config)

    _run(define_all, checked, description, argv, Config)


def run_with_overrides(
    define: Callable[[flags.FlagValues], None],
    main: Callable[[flags.FlagValues, dict[str, Any]], int],
    description: str,
    config: Config,
    is_decided: Callable[[str], bool],
    argv: Sequence[str] | None = None,
) -> typing.NoReturn:
    """Runs a command that makes its configuration itself, as `command_line.run` runs one.

    Args:
      define: defines the flags of the command.
      main: does the work, given the parsed flags and the fields that `--config.NAME=VALUE` sets, by
        dotted name; returns the exit code. It sees to `--print_config`.
      description: of the command, for `--help`.
      config: what the fields are where nothing sets them.
      is_decided: whether the command decides a field by other means, by dotted name.
      argv: name of the program and its arguments; None = those of this process.
    """

    def define_all(values: flags.FlagValues, argv: list[str]) -> None:
        define(values)
        config_flags.DEFINE_config_dataclass(
            "config",
            config,
            "Any other field, by its dotted name, e.g. --config.mesh.fsdp=8.",
            flag_values=values,
            sys_argv=argv,
        )
        values["config"].default_as_str = "of the task"
        _define_last(values, config, is_decided)

    def overridden(values: flags.FlagValues) -> int:
        return main(values, _overrides(values))

    _run(define_all, overridden, description, argv, type(config), is_decided)


def _run(
    define: Callable[[flags.FlagValues, list[str]], None],
    main: Callable[[flags.FlagValues], int],
    description: str,
    argv: Sequence[str] | None,
    root: type[Config],
    is_decided: Callable[[str], bool] = lambda name: False,
) -> typing.NoReturn:
    program, *arguments = sys.argv if argv is None else argv
    values = flags.FlagValues()
    with command_line.errors_in_one_line():
        if command_line.is_help_asked(arguments):
            define(values, [program])
            command_line.show_help_if_asked(description, values, arguments)
        arguments = command_line.expand_home(arguments)
        given = [program, *_with_recipe_paths(arguments, root, is_decided)]
        try:
            define(values, given)
            rest = command_line.parse_flags(values, given)
        except IndexError as error:
            raise ConfigError(
                "--config.phases[i]: the recipe has fewer phases than that"
            ) from error
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ConfigError(str(error)) from error
        if rest:
            raise ConfigError(
                f"unexpected argument {rest[0]!r}: fields are set as --config.a.b=value"
            )
        # Lines with the time; of the libraries' own only warnings.
        command_line.show_log("%(asctime)s %(message)s")
        sys.exit(main(values))


def _define_last(
    values: flags.FlagValues, config: Config, is_decided: Callable[[str], bool] = lambda name: False
) -> None:
    """The flags that stand last in the help of every command with a configuration."""
    flags.DEFINE_flag(ConfigHelpFlag(config, is_decided), values)
    flags.DEFINE_bool(
        "print_config",
        False,
        "Print all fields of the resulting recipe and stop.",
        flag_values=values,
    )


def _overrides(values: flags.FlagValues) -> dict[str, Any]:
    """The fields that the command line sets, by dotted name without `config.`."""
    found: dict[str, Any] = config_flags.get_override_values(values["config"])
    return found


def _check_reach(config: Config, values: flags.FlagValues) -> None:
    """Refuses what would change nothing: a field of `data` that every phase has for itself."""
    for name in _overrides(values):
        section, _, field = name.partition(".")
        of_phases = [getattr(phase, field, 0) for phase in config.phases]
        if section == "data" and of_phases and all(of_phases):
            raise ConfigError(
                f"--config.{name}: the recipe's phases have their own ({of_phases}); set "
                f"--config.phases[0].{field}=..."
            )


def recipe_name(values: flags.FlagValues) -> str:
    """Name of the recipe that the command line gives: that of its file."""
    return Path(config_flags.get_config_filename(values["config"])).stem


def _with_recipe_paths(
    arguments: Sequence[str], root: type[Config], is_decided: Callable[[str], bool]
) -> list[str]:
    """Puts recipe names into the paths that config_flags wants, and checks the field names."""
    result = []
    expect_name = False
    for argument in arguments:
        name, _, value = argument.lstrip("-").partition("=")
        if root is not Config and name == "config" and argument.startswith("-"):
            raise ConfigError(
                f"{argument}: there is no recipe here; fields are set as --config.a.b=value"
            )
        if expect_name:
            argument = recipe_path(argument)
        elif argument.startswith("-") and name == "config" and value:
            argument = f"--config={recipe_path(value)}"
        elif argument.startswith("-") and name.removeprefix("no").startswith("config."):
            dotted = name.removeprefix("no")
            check_field(dotted, root, "--")
            if is_decided(dotted.removeprefix("config.")):
                raise ConfigError(
                    f"--{dotted} is decided by other flags or the task here: see --help"
                )
        expect_name = argument in ("--config", "-config")
        result.append(argument)
    return result
