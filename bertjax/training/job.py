"""What the loop trains: the interface of pre-training and fine-tuning."""

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
    """Properties that must be the same when a run is resumed.

    Attributes:
      tokenizer: of the rows.
      data_hash: of the source of the training rows.
      evaluation_hash: of the evaluation rows, if evaluations choose the best checkpoint; else "".
      initial_hash: of the initial parameters of a fine-tuning, whose scores name them; else "".
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
      objective: what is minimized, with its metrics.
      source: of the training rows.
      fingerprints: {what: hash} of everything that all processes must read identically.
      main_metric: the evaluation's score that selects the best checkpoint (higher is better), which
        is never removed; None = the newest checkpoint counts.
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
        """The result of an evaluation in words."""

    def plot(self, workdir: Path) -> Path:
        """Draws the curves of the run; returns the picture's path."""


OpenJob = Callable[[Config, Workdir, Mesh], Job]
