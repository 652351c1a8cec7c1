"""What a run trains: pre-training or fine-tuning. The loop knows how, a job knows what."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from jax.sharding import Mesh

from bertjax.config import Config
from bertjax.data.stream.reader import Rows
from bertjax.data.tokenizers.tokenizer import Tokenizer
from bertjax.objectives.objective import Objective
from bertjax.training.step import Tree
from bertjax.training.workdir import Workdir


@dataclasses.dataclass(frozen=True)
class Source:
    """What must be the same when a run is resumed.

    Attributes:
      tokenizer: of the rows.
      data_hash: of what the training rows are made of.
      evaluation_hash: likewise, where evaluations choose the best checkpoint; else "".
      initial_hash: of the parameters that a fine-tuning starts from, for its scores are said to be
        theirs; else "".
      labels: of a head of classes or tags, in the order of its outputs (`data_hash` knows them).
    """

    tokenizer: Tokenizer
    data_hash: str
    evaluation_hash: str = ""
    initial_hash: str = ""
    labels: tuple[str, ...] = ()


class Job(Protocol):
    """The part of a run that differs between pre-training and fine-tuning.

    With several processes each holds one and makes the same calls.

    Attributes:
      objective: what is minimised, and all that is told of it.
      source: of the training rows.
      fingerprints: {what: hash} of everything that all processes must have read alike.
      main_metric: the evaluation's score that says which checkpoint is best (higher is better) and
        is never removed; None where the newest one is.
    """

    objective: Objective
    source: Source
    fingerprints: Mapping[str, str]
    main_metric: str | None

    def training_rows(self, phase_index: int) -> Rows:
        """Opens the rows of a phase."""

    def evaluate(self, phase_index: int, params: Tree) -> dict[str, float]:
        """Scores the held-out rows of the phase; names begin with `heldout_`."""

    def describe(self, scores: Mapping[str, Any]) -> str:
        """Says in words what an evaluation found."""

    def plot(self, workdir: Path) -> Path:
        """Draws the curves of the run; returns the picture's path."""


OpenJob = Callable[[Config, Workdir, Mesh], Job]
