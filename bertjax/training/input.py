"""Batches of rows on the mesh: each process makes its rows, together they are global arrays."""

from __future__ import annotations

import collections
import contextlib
import itertools
import types
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from bertjax.config import Config, Phase
from bertjax.data.stream.reader import Batch, Rows
from bertjax.data.stream.tf_data import BatchStream
from bertjax.parallel.sharding import local_rows, row_sharding

_Made = tuple[np.ndarray, dict[str, jax.Array]]

AHEAD = 2  # batches on the devices before they are needed


class DeviceBatches(Iterator[_Made], contextlib.AbstractContextManager["DeviceBatches"]):
    """Training batches on the devices, some made ahead; a context manager.

    Each process makes its own rows; together they are the global batch.
    """

    def __init__(self, config: Config, reader: Rows, phase: Phase, position: int, mesh: Mesh):
        """Opens the stream at `position`, counted in rows of the phase."""
        self._mesh = mesh
        self._global_batch_size = phase.global_batch_size
        self._stream = BatchStream(
            reader,
            global_batch_size=phase.global_batch_size,
            offsets=local_rows(mesh, phase.global_batch_size),
            position=position,
            num_threads=config.data.num_threads,
            prefetch_batches=config.data.prefetch_batches,
        )
        self._ready: collections.deque[_Made] = collections.deque()

    def __next__(self) -> _Made:
        """Returns this process's row ids [b] on the host, and the global batch on the devices."""
        for batch in itertools.islice(self._stream, AHEAD - len(self._ready)):
            on_devices = device_batch(batch, self._mesh, self._global_batch_size)
            self._ready.append((batch["row_ids"], on_devices))
        return self._ready.popleft()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: types.TracebackType | None,
    ) -> None:
        self._stream.close()


def device_batch(batch: Batch, mesh: Mesh, global_batch_size: int) -> dict[str, jax.Array]:
    """Puts this process's rows of a global batch onto its devices; row ids stay on the host.

    Args:
      batch: arrays [b, ...], the rows `local_rows(mesh, global_batch_size)`.
      mesh: of all processes' devices.
      global_batch_size: rows of all processes.
    """
    sharding = row_sharding(mesh)
    rows = local_rows(mesh, global_batch_size)

    def place(array: np.ndarray) -> jax.Array:
        shape = (global_batch_size, *array.shape[1:])

        def part(index: Any) -> np.ndarray:
            begin, stop, _ = index[0].indices(global_batch_size)
            first = np.searchsorted(rows, begin)
            return array[first : first + stop - begin]

        return jax.make_array_from_callback(shape, sharding, part)

    return {name: place(array) for name, array in batch.items() if name != "row_ids"}


def gather_row_ids(row_ids: np.ndarray, mesh: Mesh, global_batch_size: int) -> np.ndarray:
    """Row ids of the whole global batch [b], gathered from all processes.

    With several processes, each must call this.
    """
    if jax.process_count() == 1:
        return row_ids
    ids = np.zeros((global_batch_size, 1), np.int64)
    mine = local_rows(mesh, global_batch_size)
    ids[mine, 0] = row_ids + 1  # so that 0 means: not read here
    # Two halves: JAX has no 64-bit integers by default.
    parts = multihost_utils.process_allgather(ids.view(np.int32))
    return np.asarray(np.ascontiguousarray(parts).view(np.int64)[..., 0].max(axis=0) - 1)
