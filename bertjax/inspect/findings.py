"""The findings of checks."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Finding:
    """One kind of fault in one source or store, with the first places where it was seen."""

    kind: str
    source: str
    found: str
    expected: str
    advice: str
    examples: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """The finding as text."""
        head = f"{self.kind}: {self.source}: found {self.found}; expected {self.expected}; "
        return [head + self.advice, *(f"    {example}" for example in self.examples)]


@dataclasses.dataclass(frozen=True)
class Limit:
    """The largest share that is not a finding, and what to do about a larger one."""

    share: float
    what: str
    advice: str
