"""The result of a run."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from bertjax.errors import EXIT_FINISHED, EXIT_PREEMPTED
from bertjax.storage.bucket import BucketPath
from bertjax.training.step import TrainState


@dataclasses.dataclass(frozen=True)
class TrainingResult:
    """The result of a run, finished or preempted.

    Attributes:
      workdir: of the run; `bertjax.load` reads the model from there.
      steps: number of updates, over all restarts.
      metrics: the last evaluation, with names `heldout_...`; empty before the first evaluation.
      preempted: whether a signal (SIGTERM, SIGINT) stopped the run. It was saved, and the same call
        resumes it.
      state: step, parameters (`state.params`) and optimizer state, laid out on the devices. None
        if the run was stopped before its first step, and in a `GridResult`.
    """

    workdir: Path | BucketPath
    steps: int
    metrics: Mapping[str, float]
    preempted: bool
    state: TrainState | None = dataclasses.field(repr=False)

    @property
    def exit_code(self) -> int:
        """The exit code of the command: 0 = finished, 75 = preempted."""
        return EXIT_PREEMPTED if self.preempted else EXIT_FINISHED
