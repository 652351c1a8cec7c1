"""Evaluation on held-out rows: the same rows and masks every time, each counted once."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from bertjax.data.stream.reader import Batch, Rows, evaluation_batches
from bertjax.objectives.objective import Objective
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
    ):
        """Prepares to evaluate.

        Args:
          objective: of the run, for a model without gradients.
          reader: of the held-out documents.
          unigrams: how often each id occurs in the training tokens [v].
          max_rows: rows to evaluate at most; 0 = all.
          mesh: of the devices that compute.
        """
        self._objective = objective
        self._reader = reader
        self._max_rows = max_rows
        shards = mesh.shape["data"] * mesh.shape["fsdp"]
        self._batch_size = shards * max(1, _TOKENS_A_DEVICE // reader.max_length)
        self._mesh = mesh
        self._step = jax.jit(
            functools.partial(evaluation_step, objective), out_shardings=replicated(mesh)
        )
        scores = objective.baselines(self._batches(all_processes=True), unigrams)
        self.baselines = {f"heldout_{name}": score for name, score in scores.items()}

    def run(self, params: Tree) -> dict[str, float]:
        """Evaluates.

        Returns:
          The objective's loss and metrics over all rows and beside them its baselines on the same
          targets; names begin with `heldout_`.
        """
        # Kept on the devices while the next batches are made, fetched once.
        sums = jax.device_get(
            [
                self._step(
                    params,
                    device_batch(batch, self._mesh, self._batch_size),
                    np.int32(number * self._batch_size),
                )
                for number, batch in enumerate(self._batches())
            ]
        )
        totals = jax.tree.map(lambda *parts: jnp.float32(sum(map(float, parts))), *sums)
        metrics = {"loss": self._objective.loss(totals, totals), **self._objective.metrics(totals)}
        return {
            **{f"heldout_{name}": float(value) for name, value in metrics.items()},
            **self.baselines,
        }

    def _batches(self, all_processes: bool = False) -> Iterator[Batch]:
        return evaluation_batches(
            self._reader,
            global_batch_size=self._batch_size,
            offsets=None if all_processes else local_rows(self._mesh, self._batch_size),
            max_rows=self._max_rows,
        )
