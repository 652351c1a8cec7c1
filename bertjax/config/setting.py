"""Metadata of a configuration field, written at the field: meaning, unit, bounds."""

import dataclasses
import operator
from collections.abc import Mapping
from typing import Any, cast

from bertjax.registry import Registry

_LIMITS = (
    ("at_least", "at least", operator.ge),
    ("above", "above", operator.gt),
    ("below", "below", operator.lt),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting:
    """What validation, errors, `--help_config` and docs/configuration.md say about a field.

    Attributes:
      meaning: sentences or phrases, each with its period; a section has its docstring instead.
      unit: what a number counts, in the plural.
      at_least: the smallest accepted number.
      above: every accepted number is greater than this.
      below: every accepted number is less than this.
      values: the meaning of single values; numbers among them are accepted beside the bounds.
      may_change: whether a resumed run may have another value than the run that saved the
        checkpoint. Such a field, or section, decides how to compute the same numbers, and when to
        stop, save, evaluate and report.
      names: a registry, if the values are its names.
      not_of_encoder: the field does not change what the parameters of the encoder mean. It
        describes the head, the initialization, the dropout or the direction, so a model may start
        from the encoder of another that differs in it.
    """

    meaning: str = ""
    unit: str = ""
    at_least: float | None = None
    above: float | None = None
    below: float | None = None
    values: Mapping[Any, str] = dataclasses.field(default_factory=dict)
    names: Registry[Any] | None = None
    may_change: bool = False
    not_of_encoder: bool = False

    @property
    def bounds(self) -> str:
        """The bounds in words, such as "at least 0 and below 1"; empty without any."""
        limits = ((words, getattr(self, name)) for name, words, _ in _LIMITS)
        return " and ".join(f"{words} {limit}" for words, limit in limits if limit is not None)

    @property
    def exceptions(self) -> tuple[Any, ...]:
        """The values that are accepted although they are beyond the bounds, such as 0 for "all"."""
        return tuple(value for value in self.values if not self._is_within(value))

    def accepts(self, value: Any) -> bool:
        """Whether a value of the right type is within the bounds, if any, or is in `values`."""
        return self._is_within(value) or value in self.values

    def expected(self) -> str:
        """The accepted numbers in words, for an error about another one."""
        what = f"a number of {self.unit}" if self.unit else "a number"
        others = [f"{value!r} ({self.values[value]})" for value in self.exceptions]
        return ", or ".join([f"{what}, {self.bounds}", *others])

    def _is_within(self, value: Any) -> bool:
        limits = ((getattr(self, name), holds) for name, _, holds in _LIMITS)
        return all(limit is None or holds(value, limit) for limit, holds in limits)


def setting(default: Any, meaning: str = "", **described: Any) -> Any:
    """A field of a dataclass, with a `Setting`.

    Args:
      default: the default value, or a function that makes it.
      meaning: as in `Setting`.
      **described: the other attributes of `Setting`.
    """
    metadata = {"setting": Setting(meaning=meaning, **described)}
    if callable(default):
        return dataclasses.field(default_factory=default, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def setting_of(field: dataclasses.Field[Any]) -> Setting:
    """The `Setting` of a configuration field."""
    return cast(Setting, field.metadata["setting"])
