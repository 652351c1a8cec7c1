"""Which documents a run reads: its stores, opened and checked, and their rows."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

from bertjax.config import Config, ConfigError, Phase, max_predictions
from bertjax.config.store_list import store_list
from bertjax.data.counter_rng import stream_key
from bertjax.data.store.bucket_copy import fetch_store, local_store, upload_store
from bertjax.data.store.store import MANIFEST, Split, Store, open_store
from bertjax.data.stream.mixture import MixedRows, whole_weights
from bertjax.data.stream.packed_rows import PackedRows
from bertjax.data.stream.reader import RowReader, Rows
from bertjax.data.stream.row_order import shuffle_window
from bertjax.data.stream.rows import RowSpec
from bertjax.data.tokenizers.tokenizer import Tokenizer
from bertjax.heads import HEADS
from bertjax.parallel.distributed import wait_for_all
from bertjax.prepare.embedded_store import prepare_embedded
from bertjax.storage.bucket import BucketPath
from bertjax.training.workdir import Workdir

_LOG = logging.getLogger(__name__)

# Held-out rows are drawn alike in every run, whatever its seed, so that runs compare.
_EVALUATION_SEED = 0
_EVALUATION_STREAM = 2**31 - 1  # no phase has this number


@dataclasses.dataclass(frozen=True)
class Data:
    """The documents of a run."""

    stores: tuple[Store, ...]
    train: tuple[Split, ...]  # of each store, or its first documents
    weights: tuple[int, ...] | None  # rows of each store, of a million; None = by size
    store_hash: str  # sha256 of the manifest, which names every file's checksum; of several stores
    # or a share of one, over theirs, the weights and the shares
    evaluation: tuple[Split, ...]
    evaluation_hash: str  # the same of the stores that the evaluation's documents are in
    tokenizer: Tokenizer
    cache: Path  # for row indexes, where a store is read-only
    is_embedded: bool  # no store was named

    def training_rows(self, config: Config, phase_index: int) -> Rows:
        """Rows of one phase; those of several stores are packed store by store."""
        phase = config.resolved_phases()[phase_index]
        readers = self._readers(
            self.train,
            row_spec(config, phase),
            config.seed,
            phase_index,
            config.data.shuffle_window,
        )
        sources: list[Rows] = [*readers]
        if phase.packing_depth > 1:
            sources = [PackedRows(reader, phase.packing_depth) for reader in readers]
        if len(sources) == 1:
            return sources[0]
        mixture = MixedRows(sources, self.weights)
        total = sum(mixture.weights)
        for store, source, weight in zip(self.stores, sources, mixture.weights, strict=True):
            _LOG.info(
                "mixture: %.2f %% of the rows from %s, once through its %s rows in %s",
                100 * weight / total,
                store.path,
                f"{source.num_rows:,}",
                f"{source.num_rows * total // weight:,}",
            )
        return mixture

    def evaluation_rows(self, config: Config, max_length: int) -> Rows:
        """Held-out rows of so many tokens, made as `config.eval` says; of several stores all."""
        spec = evaluation_spec(config, max_length)
        readers = self._readers(self.evaluation, spec, _EVALUATION_SEED, _EVALUATION_STREAM)
        return readers[0] if len(readers) == 1 else MixedRows(readers)

    def unigrams(self) -> np.ndarray:
        """How often each id occurs in the training documents, float64 [vocab_size].

        The counts of each store are scaled: to its weight, and to the share of it that is read.
        """
        counts = np.array([split.unigrams for split in self.train])
        tokens = np.array([split.num_tokens for split in self.train])
        shares = tokens if self.weights is None else np.array(self.weights)
        scales = shares / shares.sum() * tokens.sum() / counts.sum(axis=1)
        return np.asarray((counts * scales[:, None]).sum(axis=0))

    def _readers(
        self,
        splits: Sequence[Split],
        spec: RowSpec,
        seed: int,
        stream_id: int,
        window: int = 0,
    ) -> list[RowReader]:
        """A reader for each split; several draw differently."""
        return [
            RowReader(
                split,
                self.tokenizer,
                spec,
                seed=seed if len(splits) == 1 else stream_key(seed, number),
                stream_id=stream_id,
                cache=self.cache,
                shuffle_window=shuffle_window(window, split),
            )
            for number, split in enumerate(splits)
        ]


def open_data(config: Config, workdir: Workdir) -> Data:
    """Opens the stores that `config.data` names; without any, prepares the embedded corpus.

    A store in a bucket is brought to this machine's disk first.

    Raises:
      ConfigError: the model's vocabulary is not the stores', two stores were made with different
        tokenizers or are the same, or there is nothing to train or evaluate on.
      StoreError: a store is missing or damaged.
    """
    named = store_list(config.data)
    stores = tuple(open_store(local_store(entry.path)) for entry in named)
    if not stores:
        stores = (_embedded_store(workdir, config.model.vocab_size),)
    given = [entry.weight for entry in named if entry.weight is not None]
    weights = whole_weights(given) if given else None
    first = stores[0]
    if first.vocab_size != config.model.vocab_size:
        raise ConfigError(
            f"config.model.vocab_size = {config.model.vocab_size}, but the vocabulary of the store "
            f"{first.path} has {first.vocab_size} entries: set "
            f"--config.model.vocab_size={first.vocab_size}"
        )
    hashes: dict[str, Store] = {}
    for store in stores:
        _check_tokenizer(store, first, "config.data.stores")
        same = hashes.setdefault(_manifest_hash(store), store)
        if same is not store:
            raise ConfigError(
                f"config.data.stores: {same.path} and {store.path} are the same store: name it "
                "once, with the sum of the weights"
            )
        if not store.train.num_documents:
            raise _no_documents(store.train)
    shares = [entry.share for entry in named] or [1.0]
    train = tuple(
        store.train.first_documents(share) for store, share in zip(stores, shares, strict=True)
    )
    evaluation = tuple(store.heldout for store in stores if store.heldout.num_documents)
    evaluation_hash = store_hash = _joint_hash(list(hashes), weights, shares)
    if config.data.eval_store:
        other = open_store(local_store(config.data.eval_store))
        _check_tokenizer(other, first, "config.data.eval_store")
        if not other.train.num_documents:
            raise _no_documents(other.train)
        evaluation, evaluation_hash = (other.train,), _manifest_hash(other)
        if other.heldout.num_documents:
            _LOG.warning(
                "%d held-out documents of %s are not used: an evaluation store is prepared with "
                "--heldout_share=0",
                other.heldout.num_documents,
                other.path,
            )
    if not evaluation:
        raise _no_documents(first.heldout)
    if given and abs(sum(given) - 1) > 1e-6:
        _LOG.info("config.data.stores: the weights sum to %g and are divided by it", sum(given))
    return Data(
        stores=stores,
        train=train,
        weights=weights,
        store_hash=store_hash,
        evaluation=evaluation,
        evaluation_hash=evaluation_hash,
        tokenizer=first.tokenizer(),
        cache=workdir.local / "rows",
        is_embedded=not named,
    )


def _check_tokenizer(store: Store, first: Store, field: str) -> None:
    if store.tokenizer_hash != first.tokenizer_hash:
        raise ConfigError(
            f"{field}: {store.path} was made with the tokenizer {store.tokenizer_hash[:12]}, "
            f"{first.path} with {first.tokenizer_hash[:12]}: prepare it with "
            f"--tokenizer={first.path / 'tokenizer'}"
        )


def _no_documents(split: Split) -> ConfigError:
    return ConfigError(
        f"{split.folder} has no documents: prepare the store from more text, or name "
        "held-out documents with config.data.eval_store"
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


def _joint_hash(
    hashes: Sequence[str], weights: Sequence[int] | None, shares: Sequence[float]
) -> str:
    """Of one whole store its own, as its weight does not matter."""
    if len(hashes) == 1 and shares[0] == 1:
        return hashes[0]
    return hashlib.sha256(json.dumps([hashes, weights, shares]).encode()).hexdigest()


def evaluation_spec(config: Config, max_length: int) -> RowSpec:
    """What held-out rows look like: whether they are pairs is all that training decides."""
    return RowSpec(
        max_length=max_length,
        max_predictions=_num_masks(
            config, min(max_predictions(config.eval.mask_rate, max_length), max_length)
        ),
        mask_rate=config.eval.mask_rate,
        masking=config.eval.masking,
        short_row_rate=config.eval.short_row_rate,
        next_sentence=config.model.next_sentence,
    )


def row_spec(config: Config, phase: Phase) -> RowSpec:
    """What the training rows of a resolved phase look like."""
    return RowSpec(
        max_length=phase.max_length,
        max_predictions=_num_masks(config, phase.max_predictions),
        mask_rate=phase.mask_rate,
        masking=config.data.masking,
        short_row_rate=config.data.short_row_rate,
        next_sentence=config.model.next_sentence,
    )


def _num_masks(config: Config, most: int) -> int:
    """Masked positions per row: `most`, or 0 where each token predicts the next one."""
    return 0 if HEADS[config.model.head].predicts_next else most
