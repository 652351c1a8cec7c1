"""Evaluation on held-out rows: the same rows and masks every time, each counted once."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from bertjax.data.stream.reader import Batch, Rows, evaluation_batches
from bertjax.objectives.pretraining import Objective
from bertjax.parallel.sharding import local_rows, replicated
from bertjax.training.input import device_batch
from bertjax.training.step import Tree, evaluation_step

_TOKENS_A_DEVICE = 8_192  # in one batch: keeps devices busy, and needs far less than training


class Evaluation:
    """Evaluates parameters on the first rows of a reader.

    All processes run the same number of steps; rows that fill the last batch weigh nothing.
    """

    def __init__(
        self,
        objective: Objective,
        reader: Rows,
        unigrams: np.ndarray,
        max_rows: int,
        mesh: Mesh,
        *,
        next_sentence: bool,
    ):
        """Prepares to evaluate.

        Args:
          reader: of the held-out documents.
          unigrams: how often each id occurs in the training tokens [v].
          max_rows: rows to evaluate at most; 0 = all.
          next_sentence: whether rows are pairs.
        """
        self._objective = objective
        self._reader = reader
        self._max_rows = max_rows
        shards = mesh.shape["data"] * mesh.shape["fsdp"]
        self._batch_size = shards * max(1, _TOKENS_A_DEVICE // reader.max_length)
        self._mesh = mesh
        self._next_sentence = next_sentence
        self._step = jax.jit(
            functools.partial(evaluation_step, objective), out_shardings=replicated(mesh)
        )
        self.baselines = self._baselines(unigrams)

    def run(self, params: Tree) -> dict[str, float]:
        """Evaluates.

        Returns:
          The objective's loss and metrics over all rows, their names with `heldout_`, and beside
          them what a model that has learned frequencies alone scores on the same targets:
          heldout_unigram_entropy, the cross-entropy of the masked tokens under the training
          unigrams with one added to each count, in nats; and, where rows are pairs,
          heldout_nsp_majority, the share of the more frequent next-sentence label.
        """
        # Kept on the devices while the next batches are made, fetched once.
        sums = jax.device_get(
            [
                self._step(params, device_batch(b, self._mesh, self._batch_size))
                for b in self._batches()
            ]
        )
        totals = jax.tree.map(lambda *parts: jnp.float32(sum(map(float, parts))), *sums)
        metrics = {"loss": self._objective.loss(totals, totals), **self._objective.metrics(totals)}
        return {
            **{f"heldout_{name}": float(value) for name, value in metrics.items()},
            **self.baselines,
        }

    def _baselines(self, unigrams: np.ndarray) -> dict[str, float]:
        log_probability = np.log((unigrams + 1) / (unigrams.sum() + len(unigrams)))
        nats = masked = random_pairs = pairs = 0.0
        for batch in self._batches(all_processes=True):
            weights = batch["masked_weights"]
            nats -= float((log_probability[batch["masked_ids"]] * weights).sum())
            masked += float(weights.sum())
            random_pairs += float((batch["next_sentence_labels"] * batch["row_weights"]).sum())
            pairs += float(batch["row_weights"].sum())
        baselines = {"heldout_unigram_entropy": nats / masked}
        if self._next_sentence:
            baselines["heldout_nsp_majority"] = max(random_pairs, pairs - random_pairs) / pairs
        return baselines

    def _batches(self, all_processes: bool = False) -> Iterator[Batch]:
        return evaluation_batches(
            self._reader,
            global_batch_size=self._batch_size,
            offsets=None if all_processes else local_rows(self._mesh, self._batch_size),
            max_rows=self._max_rows,
        )
