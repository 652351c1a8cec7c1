"""Single values of files of results, and logs: what stands within sentences and cells of pages."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness import RESULTS, ROOT

_FOLDERS = (ROOT / "docs" / "results", RESULTS)


def find(name: str) -> Path:
    """The file of that name, beside the pages or in benchmarks/results.

    Raises:
      FileNotFoundError: there is none.
    """
    for folder in _FOLDERS:
        if (folder / name).is_file():
            return folder / name
    raise FileNotFoundError(f"{name}: neither in docs/results nor in benchmarks/results")


def lines(name: str) -> list[dict[str, Any]]:
    """The records of a .jsonl file."""
    return [json.loads(line) for line in find(name).read_text(encoding="utf-8").splitlines()]


def value(name: str, *keys_and_format: str) -> str:
    """One value.

    Args:
      name: of a .json or .jsonl file.
      keys_and_format: keys from the outside to the inside, then Python's format, such as `.3f`. In
        a list a key is an index, or FIELD=VALUE of the one that is meant.
    """
    *keys, form = keys_and_format
    return format(_place(name, keys), form)


def _place(name: str, keys: Sequence[str]) -> Any:
    place: Any = (
        lines(name) if name.endswith(".jsonl") else json.loads(find(name).read_text("utf-8"))
    )
    for key in keys:
        place = _item(place, key) if isinstance(place, list) else place[key]
    return place


def _item(items: list[Any], key: str) -> Any:
    field, equals, wanted = key.partition("=")
    if not equals:
        return items[int(key)]
    (found,) = [item for item in items if str(item[field]) == wanted]
    return found


def mean(name: str, field: str, first_step: str, form: str) -> str:
    """The mean of a field over the records of a .jsonl from a step on."""
    chosen = [x[field] for x in lines(name) if x["step"] >= int(first_step)]
    return format(statistics.fmean(chosen), form)


def rate(name: str, field: str, first_step: str, form: str) -> str:
    """The same of a rate per second: all that was done over all the time.

    That is the harmonic mean, for as many rows lie between two records.
    """
    chosen = [x[field] for x in lines(name) if x["step"] >= int(first_step)]
    return format(statistics.harmonic_mean(chosen), form)


def log(name: str) -> str:
    """A log as it is."""
    return f"```\n{find(name).read_text(encoding='utf-8').rstrip()}\n```"


def count(name: str, *keys: str) -> str:
    """How many items a list has."""
    return format(len(_place(name, keys)), "d")
