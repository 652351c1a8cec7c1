"""What is known of a field of the configuration stands at the field: meaning, unit, bounds."""

import dataclasses
import operator
from collections.abc import Mapping
from typing import Any, cast

_LIMITS = (
    ("at_least", "at least", operator.ge),
    ("above", "above", operator.gt),
    ("below", "below", operator.lt),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting:
    """What validation, errors, `--help_config` and docs/configuration.md say of a field.

    Attributes:
      meaning: sentences or phrases, each with its period; a section's is its docstring.
      unit: what a number counts, in the plural.
      at_least: the smallest number that is accepted.
      above: a number that every accepted one is greater than.
      below: a number that every accepted one is less than.
      values: what single values mean; numbers among them are accepted beside the bounds.
      may_change: whether it may differ between the run that saved a checkpoint and the run that
        resumes from it. Such a field, or section, says how to compute the same numbers, when to
        stop, to save, to evaluate and to report.
      not_of_encoder: it does not change what the parameters of the encoder mean: it says what
        stands on the encoder, what is drawn at the start or dropped in training. Two models may
        differ in it and have the same encoder.
    """

    meaning: str = ""
    unit: str = ""
    at_least: float | None = None
    above: float | None = None
    below: float | None = None
    values: Mapping[Any, str] = dataclasses.field(default_factory=dict)
    may_change: bool = False
    not_of_encoder: bool = False

    @property
    def bounds(self) -> str:
        """The bounds in words, such as "at least 0 and below 1"; empty without any."""
        limits = ((words, getattr(self, name)) for name, words, _ in _LIMITS)
        return " and ".join(f"{words} {limit}" for words, limit in limits if limit is not None)

    def accepts(self, value: Any) -> bool:
        """Whether a value of the right type lies within the bounds, if any, or is in `values`."""
        return self._is_within(value) or value in self.values

    def expected(self) -> str:
        """What a number should have been, for an error about one that is not accepted."""
        what = f"a number of {self.unit}" if self.unit else "a number"
        others = [f"{v!r} ({text})" for v, text in self.values.items() if not self._is_within(v)]
        return ", or ".join([f"{what}, {self.bounds}", *others])

    def _is_within(self, value: Any) -> bool:
        limits = ((getattr(self, name), holds) for name, _, holds in _LIMITS)
        return all(limit is None or holds(value, limit) for limit, holds in limits)


def setting(default: Any, meaning: str = "", **described: Any) -> Any:
    """A field of a dataclass, with a `Setting`.

    Args:
      default: its default value, or what makes one when it is called.
      meaning: as in `Setting`.
      **described: the other attributes of `Setting`.
    """
    metadata = {"setting": Setting(meaning=meaning, **described)}
    if callable(default):
        return dataclasses.field(default_factory=default, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def setting_of(field: dataclasses.Field[Any]) -> Setting:
    """What a field of the configuration says of itself."""
    return cast(Setting, field.metadata["setting"])
