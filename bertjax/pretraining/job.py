"""Pre-training as a job of the loop: rows of a store, and an objective that is trained on them."""

from __future__ import annotations

import datetime
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from bertjax.config import Config, ConfigError
from bertjax.data.stream.reader import Rows
from bertjax.heads import HEADS, heads_trained_on
from bertjax.models import without_gradients
from bertjax.objectives.objective import make_objective
from bertjax.pretraining.evaluation import Evaluation
from bertjax.pretraining.stores import open_data
from bertjax.reports.curves import plot_curves
from bertjax.training.compilation import estimate_step_seconds
from bertjax.training.job import Source
from bertjax.training.phases import Phases
from bertjax.training.step import Tree
from bertjax.training.workdir import Workdir

_LOG = logging.getLogger(__name__)
_MANY_EPOCHS = 40  # beyond them more of the same text adds nothing (Muennighoff et al. 2023)


class Pretraining:
    """See `bertjax.training.job.Job`."""

    main_metric: str | None = None

    def __init__(self, config: Config, workdir: Workdir, mesh: Mesh):
        """Opens the stores.

        Args:
          config: with `model` resolved.
          workdir: of the run.
          mesh: of the devices that compute.

        Raises:
          ConfigError: as `stores.open_data`, or the model's head is not trained on a store.
          StoreError: a store is missing or damaged.
        """
        heads = heads_trained_on("store")
        if config.model.head not in heads:
            raise ConfigError(
                f"config.model.head = {config.model.head!r}: pre-training needs "
                f"{' or '.join(map(repr, heads))}; python -m bertjax.finetune trains the others"
            )
        if config.model.direction == "left_to_right" and not HEADS[config.model.head].predicts_next:
            _LOG.warning(
                "config.model.direction = 'left_to_right' with config.model.head = %r: masked "
                "tokens are predicted from the tokens before them alone. To learn the next token, "
                "set config.model.head=causal and config.model.next_sentence=false",
                config.model.head,
            )
        self._config, self._mesh = config, mesh
        self._data = open_data(config, workdir)
        self.objective = make_objective(config.model)
        model = without_gradients(config.model, mesh.devices.flat[0].platform, mesh.size)
        self._heldout_objective = make_objective(model)
        self.source = Source(self._data.tokenizer, self._data.store_hash)
        self.fingerprints: Mapping[str, str] = {
            "stores (config.data.store or stores)": self._data.store_hash,
            "evaluation store (config.data.eval_store)": self._data.evaluation_hash,
        }
        self._evaluations: dict[int, Evaluation] = {}  # by length, for what they have compiled

    def training_rows(self, phase_index: int) -> Rows:
        """Rows of the phase's length from the store, packed if the phase says so."""
        rows = self._data.training_rows(self._config, phase_index)
        phase = self._config.resolved_phases()[phase_index]
        num_steps = Phases(self._config).num_steps(phase_index)
        epochs = num_steps * phase.global_batch_size / rows.num_rows
        if self._data.is_embedded and epochs > _MANY_EPOCHS:
            step_seconds, _ = estimate_step_seconds(self._config, phase, self._mesh)
            _LOG.warning(
                "no config.data.store is given: this trains on the embedded corpus, some 2 MB of "
                "documentation, and goes over it %s times in this phase, which takes %s here at "
                "least. To train on your own text, make a store of it and name it: "
                "python -m bertjax.prepare --input='corpus/*.txt' --output=stores/mine "
                "--tokenizer=train:wordpiece --vocab_size=%d, then "
                "--config.data.store=stores/mine and a --workdir of its own",
                f"{epochs:,.0f}",
                datetime.timedelta(seconds=round(num_steps * step_seconds)),
                self._config.model.vocab_size,
            )
        return rows

    def evaluate(self, phase_index: int, params: Tree) -> dict[str, float]:
        """Losses and accuracies on held-out rows, beside the baselines of the objective.

        The rows are those of `config.eval`, one pair each, whatever the training rows look like.
        """
        phase = self._config.resolved_phases()[phase_index]
        length = self._config.eval.max_length or phase.max_length
        if length not in self._evaluations:
            self._evaluations[length] = Evaluation(
                self._heldout_objective,
                self._data.evaluation_rows(self._config, length),
                self._data.unigrams(),
                self._config.eval.max_rows,
                self._mesh,
            )
        return self._evaluations[length].run(params)

    def describe(self, scores: Mapping[str, Any]) -> str:
        """The held-out scores in one line, with the baselines."""
        parts = [
            metric.summary.format(
                scores[f"heldout_{metric.name}"], scores.get(f"heldout_{metric.baseline}")
            )
            for metric in self.objective.reported
            if metric.summary
        ]
        return f"held-out {', '.join(parts)}"

    def plot(self, workdir: Path) -> Path:
        """Draws curves.png."""
        return plot_curves(workdir, self.objective.reported)
