"""Records by name: those of bertjax, and those that a user adds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from bertjax.errors import ConfigError, closest

Record = TypeVar("Record")


class Registry(dict[str, Record]):
    """A dict of records by name.

    Attributes:
      what: one record in words, for errors.
      function: the function that adds records, for errors.
      built_in: names of the records of bertjax, which cannot be replaced.
    """

    def __init__(self, what: str, function: str, records: Mapping[str, Record]):
        """Keeps the records of bertjax.

        Args:
          what: one record in words, such as "head".
          function: the public function that calls `add`.
          records: by name.
        """
        super().__init__(records)
        self.what, self.function = what, function
        self.built_in = frozenset(records)

    def add(self, name: str, record: Record, *, replace: bool = False) -> None:
        """Adds a record; does nothing if an equal one has the name.

        Args:
          name: of the record.
          record: what the name stands for.
          replace: whether another record of the user may have the name.

        Raises:
          ConfigError: the name is empty or taken.
        """
        self.check(name, record, replace=replace)
        self[name] = record

    def check(self, name: str, record: Record, *, replace: bool = False) -> None:
        """Raises what `add` would raise."""
        if not name:
            raise ConfigError(f"{self.function}: the name of the {self.what} is empty; name it")
        if name in self and self[name] != record and (name in self.built_in or not replace):
            advice = "choose another name"
            if name not in self.built_in:
                advice += ", or give replace=True, as in a notebook cell that runs again"
            owner = "bertjax has" if name in self.built_in else "you have registered"
            raise ConfigError(
                f"{self.function}: {owner} another {self.what} of the name {name!r}; {advice}"
            )

    def own(self) -> dict[str, Record]:
        """The records that were added."""
        return {name: record for name, record in self.items() if name not in self.built_in}

    def advice(self, name: Any) -> str:
        """What to do about a name that is not known: the closest one, or registration."""
        return (
            f"{closest(str(name), self)}. If the {self.what} is your own, first import the module "
            f"that calls bertjax.{self.function} for it"
        )
