"""Descriptions of the fields of a configuration, by section, for help and documentation."""

import dataclasses
import inspect
import typing
from typing import Any, NamedTuple

from bertjax.config.schema import Config, Phase, choices_of, may_change, walk
from bertjax.config.setting import Setting, setting_of


class FieldDescription(NamedTuple):
    """A field as `--help_config` and docs/configuration.md show it."""

    name: str  # dotted, such as model.gelu or phases[0].num_steps
    kind: Any  # the annotated type: int, float, bool, str, tuple, dict or Literal
    default: Any
    setting: Setting
    may_change: bool

    @property
    def choices(self) -> tuple[str, ...]:
        """The possible values in the form of the command line; () if they cannot be listed."""
        return ("true", "false") if self.kind is bool else choices_of(self.kind, self.setting)

    @property
    def values(self) -> str:
        """The meaning of single values: "0 = all; -1 = as many as fit"."""
        meanings = self.setting.values.items()
        return "; ".join(f"{in_words(value)} = {text}" for value, text in meanings)


class Section(NamedTuple):
    """Fields with the same prefix."""

    prefix: str  # empty, or with a dot: "model."
    meaning: str
    fields: list[FieldDescription]


def in_words(value: Any) -> str:
    """A value in the form of the command line; empty text is in quotes."""
    return str(value).lower() if isinstance(value, bool) else str(value) or '""'


def sections(config: Config) -> list[Section]:
    """Every field of a configuration, with its values as defaults.

    Without phases, one default phase is added to describe its fields.
    """
    found: dict[str, Section] = {}
    for name, node, field in walk(dataclasses.replace(config, phases=config.phases or (Phase(),))):
        prefix = "".join(name.rpartition(".")[:2])
        section = found.setdefault(prefix, Section(prefix, inspect.getdoc(type(node)) or "", []))
        if not dataclasses.is_dataclass(field.type):
            default = config.phases if name == "phases" else getattr(node, field.name)
            section.fields.append(
                FieldDescription(
                    name,
                    dict if typing.get_origin(field.type) is dict else field.type,
                    default,
                    setting_of(field),
                    may_change(type(config), name),
                )
            )
    return list(found.values())
