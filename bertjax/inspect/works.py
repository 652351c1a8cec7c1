"""Works that are in a corpus twice: duplicates grouped by the work of their documents."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterable, Iterator

from bertjax.data.corpus.duplicates import Duplicate, duplicates_to_drop
from bertjax.inspect.findings import Finding

DROPPED_LIMIT = 0.01
_EXAMPLES = 3
Work = tuple[str, str]  # source, work


@dataclasses.dataclass(frozen=True)
class WorkPair:
    """Two works that share documents; counts are of documents found in the other."""

    first: Work
    second: Work
    first_found: int
    first_total: int
    second_found: int
    second_total: int

    def text(self) -> str:
        """One line."""
        return (
            f"{self.first[0]}: {self.first[1]} ({self.first_found} of {self.first_total} "
            f"documents) stands in {self.second[0]}: {self.second[1]} ({self.second_found} of "
            f"{self.second_total})"
        )


def work_pairs(duplicates: Iterable[Duplicate], totals: dict[Work, int]) -> list[WorkPair]:
    """Pairs of different works, in the order of the corpus.

    Args:
        duplicates: pairs of documents.
        totals: documents of each work.
    """
    found: dict[tuple[Work, Work], tuple[set[int], set[int]]] = collections.defaultdict(
        lambda: (set(), set())
    )
    for d in duplicates:
        first, second = (d.first.source, d.first.work), (d.second.source, d.second.work)
        if first != second:
            found[first, second][0].add(d.first.line)
            found[first, second][1].add(d.second.line)
    return [
        WorkPair(a, b, len(in_a), totals[a], len(in_b), totals[b])
        for (a, b), (in_a, in_b) in sorted(found.items())
    ]


def duplicate_findings(duplicates: list[Duplicate], num_documents: int) -> Iterator[Finding]:
    """One finding per pair of sources with documents that `--drop_duplicates` would leave out.

    Pairs within a source are a finding above DROPPED_LIMIT of all documents, other pairs always.
    """
    groups: dict[tuple[str, str], list[Duplicate]] = collections.defaultdict(list)
    for duplicate in duplicates_to_drop(duplicates):
        groups[duplicate.first.source, duplicate.second.source].append(duplicate)
    for (first, second), group in sorted(groups.items()):
        if first == second and len(group) <= DROPPED_LIMIT * num_documents:
            continue
        exact = sum(d.exact for d in group)
        yield Finding(
            "duplicates",
            second,
            f"{exact} exact and {len(group) - exact} near duplicates of documents in {first}",
            "each text once",
            "prepare with --drop_duplicates",
            tuple(
                f"{d.second.where}: {d.second_share:.0%} stands in {d.first.where}"
                for d in group[:_EXAMPLES]
            ),
        )
