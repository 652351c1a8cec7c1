"""The phases of a run: which phase, position and FLOPs belong to a step."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from bertjax.config import Config, Phase


class Phases:
    """The phases of a run, counted from 0, and the steps and rows of each."""

    def __init__(self, config: Config):
        """Lays the phases out one after the other, up to `config.last_step`."""
        self._phases = config.resolved_phases()
        self._first = [0, *itertools.accumulate(phase.num_steps for phase in self._phases)]
        self._last_step = config.last_step

    def __getitem__(self, index: int) -> Phase:
        return self._phases[index]

    def index(self, step: int) -> int:
        """The phase of the step after `step` updates; after all steps, the last phase."""
        step = min(step, self._last_step - 1)
        return max(i for i in range(len(self._phases)) if self._first[i] <= step)

    def end(self, index: int) -> int:
        """Updates made when the phase ends."""
        return min(self._first[index + 1], self._last_step)

    def num_steps(self, index: int) -> int:
        """Steps of the phase that the run takes."""
        return max(0, self.end(index) - self._first[index])

    def position(self, step: int, index: int) -> int:
        """Rows of the phase that were read after `step` updates."""
        return (step - self._first[index]) * self._phases[index].global_batch_size

    def flops_left(self, step: int, row_flops: Sequence[float]) -> float:
        """Floating-point operations of all steps after `step` updates.

        Args:
          step: updates made.
          row_flops: floating-point operations to train on one row of each phase.
        """
        return sum(
            max(0, self.end(i) - max(self._first[i], step)) * phase.global_batch_size * row_flops[i]
            for i, phase in enumerate(self._phases)
        )
