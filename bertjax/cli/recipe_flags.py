"""The command line of every command that takes a recipe.

`--config=NAME` is a recipe of `configs/` by name, `--config=PATH.py` one of your own; any field is
overridden by its dotted name, e.g. `--config.optimizer.learning_rate=2e-4` or
`--config.phases[1].num_steps=5000`.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import re
import sys
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from absl import app, flags
from ml_collections import config_flags

from bertjax.cli.command_line import (
    errors_in_one_line,
    expand_home,
    parse_flags,
    show_help_if_asked,
)
from bertjax.cli.config_help import ConfigHelpFlag
from bertjax.cli.recipes import recipe_names, recipe_path
from bertjax.config import Config, ConfigError, Phase, closest
from bertjax.config.checks import validate

# A field with choices is read as text here; `validate` knows them.
config_flags.register_flag_parser_for_type(typing.Literal, flags.ArgumentParser())
PRINT_CONFIG = flags.DEFINE_bool(
    "print_config", False, "Print all fields of the resulting recipe and stop."
)


def define_config() -> flags.FlagHolder:
    """Defines `--config` and `--help_config`; call it once, in the module of the command."""
    flags.DEFINE_flag(ConfigHelpFlag(Config()))
    return config_flags.DEFINE_config_file(
        "config",
        None,
        f"Recipe: one of {', '.join(recipe_names())}, or the path of a .py file with get_config(). "
        "Override any field by its dotted name, e.g. --config.data.global_batch_size=64.",
        lock_config=False,
    )


def define_overrides(config: Config, is_decided: Callable[[str], bool]) -> flags.FlagHolder:
    """Defines `--config.a.b=value` over a configuration that the command makes itself.

    A field that does not exist or cannot be set ends the program here, in one line: the flag reads
    the command line as it is defined.

    Args:
      config: what the fields are where nothing sets them.
      is_decided: whether the command decides a field by other means, by dotted name.
    """
    flags.DEFINE_flag(ConfigHelpFlag(config, is_decided))
    with errors_in_one_line():
        for argument in sys.argv[1:]:
            if argument.lstrip("-").partition("=")[0] == "config" and argument.startswith("-"):
                raise ConfigError(
                    f"{argument}: there is no recipe here; fields are set as --config.a.b=value"
                )
        _with_recipe_paths(sys.argv[1:], type(config), is_decided)
    holder = config_flags.DEFINE_config_dataclass(
        "config", config, "Any other field, by its dotted name, e.g. --config.mesh.fsdp=8."
    )
    flags.FLAGS["config"].default_as_str = "of the task"
    return holder


def overrides(config_flag: flags.FlagHolder) -> dict[str, Any]:
    """The fields that the command line sets, by dotted name without `config.`."""
    return config_flags.get_override_values(flags.FLAGS[config_flag.name])


def run(
    main: Callable[[Config], int | None], config_flag: flags.FlagHolder, *, recipe: bool = True
) -> typing.NoReturn:
    """Parses the command line, checks the recipe and exits with what `main(config)` returns.

    For errors see `errors_in_one_line`; what is wrong with a recipe is found before any work.

    Args:
      recipe: False where `config_flag` comes from `define_overrides`; main checks the result.
    """
    show_help_if_asked()
    expand_home()
    with errors_in_one_line():
        root: Any = Config if recipe else type(flags.FLAGS["config"].default)
        sys.argv = [sys.argv[0], *_with_recipe_paths(sys.argv[1:], root)]
        app.run(lambda argv: _main(argv, main, config_flag, recipe), flags_parser=_parse_flags)
    raise AssertionError("app.run returned")


def _main(
    argv: Sequence[str], main: Callable, config_flag: flags.FlagHolder, recipe: bool
) -> int | None:
    if len(argv) > 1:
        raise ConfigError(f"unexpected argument {argv[1]!r}: fields are set as --config.a.b=value")
    config = config_flag.value
    if config is None:
        raise ConfigError(
            f"--config is missing: choose from {', '.join(recipe_names())}, or a path"
        )
    if recipe:
        config.phases = tuple(Phase(**p) if isinstance(p, dict) else p for p in config.phases)
        _check_reach(config, config_flag)
        validate(config)
        if PRINT_CONFIG.value:
            print(config.to_json())
            return 0
    # TensorFlow only feeds rows here; it would print lines about floating point twice.
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    # Lines with the time; of the libraries' own only warnings.
    logging.basicConfig(
        format="%(asctime)s %(message)s",
        datefmt="%Y-%m-%d %H:%M:%S",
        level=logging.WARNING,
        force=True,
    )
    logging.getLogger("bertjax").setLevel(logging.INFO)
    return main(config)


def _check_reach(config: Config, config_flag: flags.FlagHolder) -> None:
    """Refuses what would change nothing: a field of `data` that every phase has for itself."""
    for name in overrides(config_flag):
        section, _, field = name.partition(".")
        values = [getattr(phase, field, 0) for phase in config.phases]
        if section == "data" and values and all(values):
            raise ConfigError(
                f"--config.{name}: the recipe's phases have their own ({values}); set "
                f"--config.phases[0].{field}=..."
            )


def _parse_flags(argv: Sequence[str]) -> list[str]:
    try:
        return parse_flags(argv)
    except IndexError as error:
        raise ConfigError("--config.phases[i]: the recipe has fewer phases than that") from error
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(str(error)) from error


def recipe_name(config_flag: flags.FlagHolder) -> str:
    """Name of the recipe that the command line gives: that of its file."""
    return Path(config_flags.get_config_filename(flags.FLAGS[config_flag.name])).stem


def _with_recipe_paths(
    argv: Sequence[str], root: type[Config], is_decided: Callable[[str], bool] = lambda name: False
) -> list[str]:
    """Puts recipe names into the paths that config_flags wants, and checks the field names."""
    result = []
    expect_name = False
    for argument in argv:
        name, _, value = argument.lstrip("-").partition("=")
        if expect_name:
            argument = recipe_path(argument)
        elif argument.startswith("-") and name == "config" and value:
            argument = f"--config={recipe_path(value)}"
        elif argument.startswith("-") and name.removeprefix("no").startswith("config."):
            dotted = name.removeprefix("no")
            _check_field(dotted, root)
            if is_decided(dotted.removeprefix("config.")):
                raise ConfigError(
                    f"--{dotted} is decided by other flags or the task here: see --help"
                )
        expect_name = argument in ("--config", "-config")
        result.append(argument)
    return result


def _check_field(dotted: str, root: type[Config]) -> None:
    """Raises with the closest name if a dotted field does not exist."""
    node: Any = root
    where = "config"
    for part in dotted.split(".")[1:]:
        match = re.fullmatch(r"(\w+)(\[\d+\])?", part)
        hints = typing.get_type_hints(node) if dataclasses.is_dataclass(node) else {}
        if match is None or match[1] not in hints:
            raise ConfigError(f"--{where}.{part}: no such field; {closest(part, hints)}")
        node = Phase if match[2] else hints[match[1]]
        where = f"{where}.{part}"
    if dataclasses.is_dataclass(node):
        names = [field.name for field in dataclasses.fields(node)]
        raise ConfigError(f"--{where} is a group of fields: set one of {', '.join(names)}")
