"""`--help_config`: every field of the configuration, as the fields describe themselves."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from absl import flags

from bertjax.cli.command_line import help_width, in_columns, in_paragraphs
from bertjax.config import Config, ConfigError, closest, is_within
from bertjax.config.description import FieldDescription, in_words, sections

_VALUES = {int: "N", float: "X"}
_INTRODUCTION = (
    "Each field is set as --config.NAME=VALUE, as in --config.optimizer.learning_rate=2e-4, and "
    "--print_config shows the result. Those with a * may change when a run is resumed."
)


class ConfigHelpFlag(flags.BooleanFlag):
    """Prints the fields of a configuration, or those of one section, and ends the program."""

    def __init__(self, config: Config, is_decided: Callable[[str], bool] = lambda name: False):
        """The arguments are those of `config_help`."""
        what = "Print the fields of --config, or of a section as --help_config=optimizer, and stop."
        super().__init__("help_config", False, what)
        self._fields = config, is_decided

    def parse(self, argument: Any) -> None:
        """Prints and exits with 0; `argument` is "true" or what stands after the =."""
        within = "" if argument == "true" else argument.removeprefix("config.")
        print(config_help(*self._fields, within, help_width()))
        sys.exit(0)


def config_help(config: Config, is_decided: Callable[[str], bool], within: str, width: int) -> str:
    """The fields of a configuration as text.

    Args:
      config: its values are the defaults.
      is_decided: whether the command decides a field, by dotted name: it is left out.
      within: a section or a field; empty = all.
      width: of a line.

    Raises:
      ConfigError: there is no such section.
    """
    found = sections(config)
    parts = [in_paragraphs(_INTRODUCTION, width)]
    for prefix, meaning, fields in found:
        shown = [
            field
            for field in fields
            if not is_decided(field.name) and (not within or is_within(field.name, [within]))
        ]
        if shown:
            heading = in_paragraphs(f"config.{prefix}".rstrip(".") + f": {meaning}", width)
            parts.append("\n".join([heading, *(x for f in shown for x in _entry(f, width))]))
    if len(parts) == 1:
        known = [prefix.rstrip(".") for prefix, *_ in found if prefix]
        raise ConfigError(f"--help_config={within}: no such section; {closest(within, known)}")
    return "\n\n".join(parts)


def _entry(field: FieldDescription, width: int) -> list[str]:
    """The lines of one field."""
    start = f"{'*' if field.may_change else ' '} {field.name.rpartition('.')[2]}="
    value = "|".join(field.choices) or field.setting.unit.upper() or _VALUES.get(field.kind, "...")
    remarks = [field.setting.bounds.capitalize(), field.values]
    if len(start + value) > width:
        value, remarks = "...", ["One of " + ", ".join(field.choices), *remarks]
    sentences = [field.setting.meaning, "; ".join(filter(None, remarks))]
    text = " ".join(f"{sentence.rstrip('.')}." for sentence in sentences if sentence)
    return in_columns(start + value, f"{text} Default: {in_words(field.default)}.", width)
