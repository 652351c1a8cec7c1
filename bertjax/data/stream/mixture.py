"""Several sources of rows as one: which source has the row at a position, and where in it.

Source k has `weights[k]` of every `sum(weights)` rows, evenly spread, and its rows come in its own
order. Position p of the mixture determines the source and the position in it, without a table. So
a mixture is a pure function of (seed, position), as its sources are, and each source has epochs of
its own.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bertjax.data.stream.reader import Batch, Rows, check_positions

_PARTS = 10**6  # weights are rounded to a multiple of 1 / _PARTS of their sum
_LARGEST_TOTAL = 3 * 10**9  # so that the product of two places in a cycle fits 63 bits


def whole_weights(weights: Sequence[float]) -> tuple[int, ...]:
    """Weights above 0 as millionths of their sum, at least 1 each."""
    return tuple(max(1, round(weight / sum(weights) * _PARTS)) for weight in weights)


class MixedRows:
    """Rows of several sources of the same shapes; safe to share between threads.

    Attributes:
        num_rows: of one epoch of each source, together.
        weights: rows that each source has in a cycle, integers.
    """

    def __init__(self, sources: Sequence[Rows], weights: Sequence[int] | None = None):
        """Fixes the pattern.

        Args:
            sources: with rows of the same length and the same fields.
            weights: see `whole_weights`; None = the sizes of the sources, so that their epochs end
                together and each row comes once in `num_rows` rows.

        Raises:
            ValueError: the rows differ in length, or the number of weights is not that of sources.
        """
        lengths = sorted({source.max_length for source in sources})
        if len(lengths) != 1 or (weights is not None and len(weights) != len(sources)):
            raise ValueError(
                f"{len(sources)} sources with rows of {lengths} tokens and "
                f"{len(sources) if weights is None else len(weights)} weights; expected one length "
                "and a weight for each"
            )
        sizes = [source.num_rows for source in sources]
        self.num_rows = sum(sizes)
        if weights is None:
            scale = min(1.0, _LARGEST_TOTAL / self.num_rows)
            weights = [max(1, int(size * scale)) for size in sizes]
        self.weights = tuple(weights)
        self._sources = tuple(sources)
        self._first_ids = np.cumsum([0, *sizes[:-1]]).tolist()

    @property
    def max_length(self) -> int:
        """Tokens of a row."""
        return self._sources[0].max_length

    def rows(self, positions: np.ndarray) -> Batch:
        """The rows at some positions: those of the sources, in the order of the positions.

        `row_ids` are numbered through all sources: those of source k begin at the number of rows of
        the sources before it.
        """
        number, own = self.locate(check_positions(positions))
        batch: Batch = {}
        for k, source in enumerate(self._sources):
            here = np.flatnonzero(number == k)
            part = source.rows(own[here])
            part["row_ids"] = part["row_ids"] + self._first_ids[k]
            for name, rows in part.items():
                if k == 0:
                    batch[name] = np.empty((len(own), *rows.shape[1:]), rows.dtype)
                batch[name][here] = rows
        return batch

    def locate(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Where the rows at some positions come from.

        The sources choose places of a cycle one after the other. A source of weight w, which
        chooses among n free places, takes place i if floor((i + 1) w / n) > floor(i w / n). So its
        places are evenly spread, and exactly w of n.

        Args:
            positions: int64 [b], at least 0.

        Returns:
            The number of the source, and the position in it; int64 [b] each.
        """
        number = np.empty(len(positions), np.int64)
        own = np.empty(len(positions), np.int64)
        left = sum(self.weights)
        cycle, index = np.divmod(positions, left)
        open_rows = np.arange(len(positions))
        for k, weight in enumerate(self.weights):
            before = index * weight // left
            taken = (index + 1) * weight // left > before
            which = open_rows[taken]
            number[which] = k
            own[which] = cycle[which] * weight + before[taken]
            open_rows, index = open_rows[~taken], (index - before)[~taken]
            left -= weight
        return number, own
