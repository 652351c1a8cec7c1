"""What a run has come to."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from bertjax.errors import EXIT_FINISHED, EXIT_PREEMPTED
from bertjax.storage.bucket import BucketPath
from bertjax.training.step import TrainState


@dataclasses.dataclass(frozen=True)
class TrainingResult:
    """What a run has come to when it returns.

    Attributes:
      workdir: of the run; `bertjax.load` reads the model from there.
      steps: updates made, over all restarts.
      metrics: the last evaluation, `heldout_...` each; empty before the first one.
      preempted: whether the run was asked to stop (SIGTERM, SIGINT) and has saved; the same call
        resumes it.
      state: step, parameters (`state.params`) and the optimizer's state, laid out on the devices;
        None where the run was stopped before it had begun, and in a `GridResult`.
    """

    workdir: Path | BucketPath
    steps: int
    metrics: Mapping[str, float]
    preempted: bool
    state: TrainState | None = dataclasses.field(repr=False)

    @property
    def exit_code(self) -> int:
        """What a command ends with: 0 = finished, 75 = preempted."""
        return EXIT_PREEMPTED if self.preempted else EXIT_FINISHED
