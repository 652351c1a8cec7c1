"""Fields of a configuration set by their dotted names, as on a command line."""

from __future__ import annotations

import copy
import dataclasses
import os
import re
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from bertjax.config.schema import Config, Phase
from bertjax.errors import ConfigError, closest

_Config = TypeVar("_Config", bound=Config)


def with_overrides(config: _Config, overrides: Mapping[str, Any]) -> _Config:
    """A copy of a configuration with other values.

    Args:
      config: stays as it is.
      overrides: values by dotted name, {"data.store": "stores/mine", "phases[0].num_steps": 100};
        paths may be `pathlib` paths.

    Raises:
      ConfigError: there is no such field; the values are checked by `validate`.
    """
    config = copy.deepcopy(config)
    for name, value in overrides.items():
        check_field(f"config.{name}", type(config))
        *sections, last = name.split(".")
        node: Any = config
        for section in sections:
            field, _, index = section.rstrip("]").partition("[")
            node = getattr(node, field)
            if index and int(index) >= len(node):
                raise ConfigError(f"config.{name}: config.{field} has {len(node)}")
            node = node[int(index)] if index else node
        setattr(node, last, os.fspath(value) if isinstance(value, os.PathLike) else value)
    return config


def check_field(dotted: str, root: type[Config], prefix: str = "") -> None:
    """Checks that a field exists.

    Args:
      dotted: its name, beginning with "config.".
      root: class of the configuration.
      prefix: of the name in messages.

    Raises:
      ConfigError: it does not, or is a group of fields; names the closest one.
    """
    node: Any = root
    where = f"{prefix}config"
    for part in dotted.split(".")[1:]:
        match = re.fullmatch(r"(\w+)(\[\d+\])?", part)
        hints = typing.get_type_hints(node) if dataclasses.is_dataclass(node) else {}
        if match is None or match[1] not in hints:
            raise ConfigError(f"{where}.{part}: no such field; {closest(part, hints)}")
        node = Phase if match[2] else hints[match[1]]
        where = f"{where}.{part}"
    if dataclasses.is_dataclass(node):
        names = [field.name for field in dataclasses.fields(node)]
        raise ConfigError(f"{where} is a group of fields: set one of {', '.join(names)}")
