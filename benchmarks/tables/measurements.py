"""Under which circumstances each file of benchmarks/results was measured."""

from __future__ import annotations

from collections.abc import Iterable

from benchmarks.harness import FIELDS, RESULTS, circumstances, read_contents, records

_COLUMNS = ("date", "device", "versions", "commit", "load")


def files() -> str:
    """One line per file; a file of several records has the different values of all of them."""
    table = [
        "| file | records | " + " | ".join(_COLUMNS) + " |",
        "|---" * (2 + len(_COLUMNS)) + "|",
    ]
    for path in sorted(RESULTS.glob("*.json")):
        found = [circumstances(record) for record in records(read_contents(path))]
        cells = [_several(x[column] for x in found) for column in _COLUMNS]
        link = f"[{path.name}](../../benchmarks/results/{path.name})"
        table.append(f"| {link} | {len(found)} | " + " | ".join(cells) + " |")
    return "\n".join(table)


def fields() -> str:
    """One line per field of a record."""
    return "\n".join(f"- `{name}`: {words}" for name, words in FIELDS.items())


def _several(values: Iterable[str]) -> str:
    return "; ".join(dict.fromkeys(values)).replace("|", "\\|")
