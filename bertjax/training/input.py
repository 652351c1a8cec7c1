"""From the store to the devices: which documents a run reads, and its batches on the mesh."""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import itertools
import logging
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from bertjax.bucket import BucketPath
from bertjax.config import Config, ConfigError, Phase
from bertjax.data.embedded import prepare_embedded
from bertjax.data.packed_rows import PackedRows
from bertjax.data.reader import Batch, RowReader, Rows
from bertjax.data.rows import RowSpec
from bertjax.data.staging import fetch_store, local_store, upload_store
from bertjax.data.store import MANIFEST, Split, Store, open_store
from bertjax.data.stream import BatchStream
from bertjax.data.tokenizer import Tokenizer
from bertjax.training.distributed import wait_for_all
from bertjax.training.sharding import local_rows, row_sharding
from bertjax.training.workdir import Workdir

_LOG = logging.getLogger(__name__)
_AHEAD = 2  # batches on the devices before they are needed

# Held-out rows are drawn alike in every run, whatever its seed, so that runs compare.
_EVALUATION_SEED = 0
_EVALUATION_STREAM = 2**31 - 1  # no phase has this number


@dataclasses.dataclass(frozen=True)
class Data:
    """The documents of a run."""

    store: Store
    store_hash: str  # sha256 of the manifest, which names every file's checksum
    evaluation: Split
    evaluation_hash: str  # the same of the store that the evaluation's documents are in
    tokenizer: Tokenizer
    cache: Path  # for row indexes, where the store is read-only

    def training_rows(self, config: Config, phase_index: int) -> Rows:
        """Rows of one phase."""
        phase = config.resolved_phases()[phase_index]
        reader = RowReader(
            self.store.train,
            self.tokenizer,
            row_spec(config, phase),
            seed=config.seed,
            stream_id=phase_index,
            cache=self.cache,
        )
        return PackedRows(reader, phase.packing_depth) if phase.packing_depth > 1 else reader

    def evaluation_rows(self, config: Config, phase: Phase) -> RowReader:
        """Held-out rows as long as those of the phase."""
        return RowReader(
            self.evaluation,
            self.tokenizer,
            row_spec(config, phase),
            seed=_EVALUATION_SEED,
            stream_id=_EVALUATION_STREAM,
            cache=self.cache,
        )


def open_data(config: Config, workdir: Workdir) -> Data:
    """Opens the stores that `config.data` names; without any, prepares the embedded corpus.

    A store in a bucket is brought to this machine's disk first.

    Raises:
      ConfigError: the model's vocabulary is not the store's, the evaluation store was made with
        another tokenizer, or a store has nothing to train or evaluate on.
      StoreError: a store is missing or damaged.
    """
    if config.data.store:
        store = open_store(local_store(config.data.store))
    else:
        store = _embedded_store(workdir, config.model.vocab_size)
    if store.vocab_size != config.model.vocab_size:
        raise ConfigError(
            f"config.model.vocab_size = {config.model.vocab_size}, but the vocabulary of the store "
            f"{store.path} has {store.vocab_size} entries: set "
            f"--config.model.vocab_size={store.vocab_size}"
        )
    evaluation, evaluation_store = store.heldout, store
    if config.data.eval_store:
        other = open_store(local_store(config.data.eval_store))
        if other.tokenizer_hash != store.tokenizer_hash:
            raise ConfigError(
                f"config.data.eval_store = {other.path} was made with the tokenizer "
                f"{other.tokenizer_hash[:12]}, config.data.store = {store.path} with "
                f"{store.tokenizer_hash[:12]}: prepare it with "
                f"--tokenizer={store.path / 'tokenizer'}"
            )
        evaluation, evaluation_store = other.train, other
        if other.heldout.num_documents:
            _LOG.warning(
                "%d held-out documents of %s are not used: an evaluation store is prepared with "
                "--heldout_share=0",
                other.heldout.num_documents,
                other.path,
            )
    for split in (store.train, evaluation):
        if not split.num_documents:
            raise ConfigError(
                f"{split.folder} has no documents: prepare the store from more text, or name "
                "held-out documents with config.data.eval_store"
            )
    return Data(
        store=store,
        store_hash=_manifest_hash(store),
        evaluation=evaluation,
        evaluation_hash=_manifest_hash(evaluation_store),
        tokenizer=store.tokenizer(),
        cache=workdir.local / "rows",
    )


def _embedded_store(workdir: Workdir, vocab_size: int) -> Store:
    """Process 0 prepares it, then the others open it."""
    folder, shared = workdir.local / "store", workdir.path / "store"
    if jax.process_index() != 0:
        wait_for_all("embedded corpus")
    elif isinstance(shared, BucketPath) and not (shared / MANIFEST).is_file():
        prepare_embedded(folder, vocab_size)
        upload_store(folder, shared)
    if isinstance(shared, BucketPath):
        folder = fetch_store(shared)
    store = prepare_embedded(folder, vocab_size)
    if jax.process_index() == 0:
        wait_for_all("embedded corpus")
    return store


def _manifest_hash(store: Store) -> str:
    return hashlib.sha256((store.path / MANIFEST).read_bytes()).hexdigest()


def row_spec(config: Config, phase: Phase) -> RowSpec:
    """What the rows of a phase look like."""
    return RowSpec(
        max_length=phase.max_length,
        max_predictions=phase.max_predictions,
        mask_rate=config.data.mask_rate,
        masking=config.data.masking,
        short_row_rate=config.data.short_row_rate,
        next_sentence=config.model.next_sentence,
    )


class DeviceBatches:
    """Training batches on the devices, some ahead of need; a context manager.

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
        self._ready: collections.deque[tuple[np.ndarray, dict[str, jax.Array]]]
        self._ready = collections.deque()

    def __iter__(self) -> Iterator[tuple[np.ndarray, dict[str, jax.Array]]]:
        return self

    def __next__(self) -> tuple[np.ndarray, dict[str, jax.Array]]:
        """Returns this process's row ids [b] on the host, and the global batch on the devices."""
        for batch in itertools.islice(self._stream, _AHEAD - len(self._ready)):
            on_devices = device_batch(batch, self._mesh, self._global_batch_size)
            self._ready.append((batch["row_ids"], on_devices))
        return self._ready.popleft()

    def __enter__(self) -> DeviceBatches:
        return self

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
    """Row ids of the whole global batch [b], from those that each process has read.

    With several processes each must call this.
    """
    if jax.process_count() == 1:
        return row_ids
    ids = np.zeros((global_batch_size, 1), np.int64)
    mine = local_rows(mesh, global_batch_size)
    ids[mine, 0] = row_ids + 1  # so that 0 means: not read here
    # Two halves: JAX has no 64-bit integers by default.
    parts = multihost_utils.process_allgather(ids.view(np.int32))
    return np.ascontiguousarray(parts).view(np.int64)[..., 0].max(axis=0) - 1
