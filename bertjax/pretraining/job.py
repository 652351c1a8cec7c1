"""Pre-training as a job of the loop: rows of a store, masked tokens and next sentence."""

from __future__ import annotations

import datetime
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from bertjax.config import Config, ConfigError, Phase
from bertjax.data.stream.reader import Rows
from bertjax.models import BertForPreTraining, without_gradients
from bertjax.objectives.pretraining import pretraining_batch, pretraining_objective
from bertjax.pretraining.documents import open_data
from bertjax.pretraining.evaluation import Evaluation
from bertjax.reports.curves import plot_curves, pretraining_panels
from bertjax.training.compilation import estimate_step_seconds
from bertjax.training.job import Source
from bertjax.training.phases import Phases
from bertjax.training.step import Tree
from bertjax.training.workdir import Workdir

_LOG = logging.getLogger(__name__)
_MANY_EPOCHS = 40  # beyond them more of the same text adds nothing (Muennighoff et al. 2023)


class Pretraining:
    """See `bertjax.training.job.Job`."""

    metric_names: tuple[str, ...] = ("mlm_loss", "nsp_loss", "mlm_accuracy", "nsp_accuracy")
    main_metric: str | None = None

    def __init__(self, config: Config, workdir: Workdir, mesh: Mesh):
        """Opens the stores.

        Args:
          config: with `model.dtype` resolved.

        Raises:
          ConfigError: as `documents.open_data`, or the model's head is another.
          StoreError: a store is missing or damaged.
        """
        if config.model.head != "pretraining":
            raise ConfigError(
                f"config.model.head = {config.model.head!r}: pre-training needs 'pretraining'; "
                "python -m bertjax.finetune trains the others"
            )
        self._config, self._mesh = config, mesh
        self._data = open_data(config, workdir)
        self.objective = pretraining_objective(BertForPreTraining(config.model))
        model = without_gradients(config.model, mesh.devices.flat[0].platform, mesh.size)
        self._heldout_objective = pretraining_objective(BertForPreTraining(model))
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

    def abstract_batch(self, phase: Phase, mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes of one global batch."""
        return pretraining_batch(phase, mesh)

    def evaluate(self, phase_index: int, params: Tree) -> dict[str, float]:
        """Losses and accuracies on held-out rows, beside those of frequencies alone.

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
                next_sentence=self._config.model.next_sentence,
            )
        return self._evaluations[length].run(params)

    def describe(self, scores: Mapping[str, Any]) -> str:
        """The held-out losses in one line."""
        text = "held-out MLM loss {:.3f} nats (training unigrams: {:.3f})".format(
            scores["heldout_mlm_loss"], scores["heldout_unigram_entropy"]
        )
        if self._config.model.next_sentence:
            text += ", NSP accuracy {:.3f} (majority: {:.3f})".format(
                scores["heldout_nsp_accuracy"], scores["heldout_nsp_majority"]
            )
        return text

    def plot(self, workdir: Path) -> Path:
        """Draws curves.png."""
        return plot_curves(workdir, pretraining_panels(self._config.model.next_sentence))
