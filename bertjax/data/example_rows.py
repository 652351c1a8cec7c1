"""Rows of fine-tuning as a pure function of (seed, position), from arrays in memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from bertjax.data.counter_rng import keys_at, permute, stream_key
from bertjax.data.reader import Batch

_ORDER = 3  # what the key is for; 0 to 2 are those of `reader`


class ExampleRows:
    """Training rows: epoch after epoch, each time in another order, every row once an epoch."""

    def __init__(self, arrays: Mapping[str, np.ndarray], *, seed: int):
        """Keeps the arrays.

        Args:
            arrays: [n, ...] each, with input_ids [n, t].
            seed: of the run.
        """
        self._arrays = dict(arrays)
        self.num_rows, self._max_length = arrays["input_ids"].shape
        self._key = stream_key(seed, 0, _ORDER)

    @property
    def max_length(self) -> int:
        """Tokens of a row."""
        return self._max_length

    def rows(self, positions: np.ndarray) -> Batch:
        """The rows at positions [b], at least 0, as arrays [b, ...]; `row_ids` says which."""
        epoch, index = np.divmod(np.asarray(positions, np.int64), self.num_rows)
        row_ids = permute(index, self.num_rows, keys_at(self._key, epoch))
        return {
            **{name: array[row_ids] for name, array in self._arrays.items()},
            "row_ids": row_ids,
        }


def batches_in_order(
    arrays: Mapping[str, np.ndarray], *, global_batch_size: int, offsets: np.ndarray
) -> Iterator[Batch]:
    """All rows in their order; what is missing in the last batch is row 0 with row_weights 0.

    Args:
        arrays: [n, ...] each, with row_weights [n].
        global_batch_size: rows of a batch over all processes.
        offsets: integer [b], this process's rows of each global batch.
    """
    num_rows = len(arrays["row_weights"])
    for begin in range(0, num_rows, global_batch_size):
        positions = begin + offsets
        real = positions < num_rows
        batch = {name: array[np.where(real, positions, 0)] for name, array in arrays.items()}
        batch["row_weights"] = batch["row_weights"] * real.astype(np.float32)
        yield batch
