"""A trace of some steps of a run, for xprof."""

from __future__ import annotations

import contextlib
import logging
from pathlib import Path
from types import TracebackType
from typing import Any

import jax

from bertjax.config import Config

_LOG = logging.getLogger(__name__)
FOLDER = "profile"  # in the workdir


class Profile(contextlib.AbstractContextManager["Profile"]):
    """Traces the steps of `config.profile` into FOLDER of the workdir, in process 0.

    A trace contains the work of the host and of this process's devices. A run that starts inside
    the range traces the rest of it; a run that ends inside keeps its part.
    """

    def __init__(self, config: Config, workdir: Path):
        """Starts nothing yet.

        Args:
          config: validated.
          workdir: a local folder.
        """
        self._steps = config.profiled_steps() if jax.process_index() == 0 else range(0)
        self._folder = workdir / FOLDER
        self._since: int | None = None  # updates made when the trace began; None: there is none
        self._step = 0  # of the last update

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self._stop(self._step + 1)

    def update(self, step: int, computed: Any) -> None:
        """Starts or stops the trace, before the next step is computed.

        Args:
          step: updates made.
          computed: the result of the previous step, which is waited for, so that it is in no other
            trace.
        """
        self._step = step
        if (step in self._steps) == (self._since is not None):
            return
        jax.block_until_ready(computed)
        if self._since is not None:
            self._stop(step)
        else:
            self._folder.mkdir(parents=True, exist_ok=True)
            jax.profiler.start_trace(self._folder)
            self._since = step

    def _stop(self, step: int) -> None:
        if self._since is None:
            return
        jax.profiler.stop_trace()
        _LOG.info(
            "traced %d steps from step %d: pip install xprof; xprof --logdir=%s",
            step - self._since,
            self._since,
            self._folder,
        )
        self._since = None
