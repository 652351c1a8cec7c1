"""The means in a line of metrics.jsonl, over the steps since the previous line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bertjax.config import Phase
from bertjax.objectives.objective import Objective


@jax.jit
def _add(totals: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    return {name: totals[name] + jnp.float32(more[name]) for name in more}


class SinceLogged:
    """Sums over the steps since the last logged line, kept on the devices.

    Losses and accuracies are means over all their labels, as if the steps were one batch.
    """

    def __init__(
        self,
        objective: Objective,
        totals: Mapping[str, float],
        predicted_tokens: int | None = 0,
    ):
        """Starts where a run starts or is resumed.

        Args:
          objective: of the run.
          totals: those of the checkpoint of a resumed run, else empty.
          predicted_tokens: of the checkpoint of a resumed run; None if it does not say.
        """
        self._objective = objective
        self._totals: dict[str, Any] = {name: np.float32(x) for name, x in totals.items()}
        # Up to the last line; a float32 counts to 2**24 only.
        self._predicted: int | None = None
        if objective.predicted and predicted_tokens is not None:
            self._predicted = predicted_tokens - self._predicted_in(totals)

    def add(self, metrics: Mapping[str, Any], phase: Phase) -> None:
        """Adds a step of the phase, without waiting for it.

        Args:
          metrics: of `train_step`.
          phase: that the step belongs to; has the rows of a batch and their length.
        """
        rows = phase.global_batch_size
        step = {
            **{f"sum/{name}": total for name, total in metrics["sums"].items()},
            "grad_norm": metrics["grad_norm"],
            "real_tokens": metrics["real_tokens"],
            "pairs": metrics.get("pairs", np.float32(0)),
            "packed_rows": np.float32(rows if "pairs" in metrics else 0),
            "places": np.float32(rows * phase.max_length),
            "steps": np.float32(1),
        }
        totals = self._totals if self._totals.keys() == step.keys() else dict.fromkeys(step, 0.0)
        self._totals = _add(totals, step)

    def totals(self) -> dict[str, float]:
        """The sums that a checkpoint keeps, so that a resumed run writes the same next line."""
        return {name: float(total) for name, total in jax.device_get(self._totals).items()}

    def predicted_tokens(self) -> int | None:
        """Tokens whose predictions the run has learned from; None = not of tokens, or not known."""
        if self._predicted is None:
            return None
        return self._predicted + self._predicted_in(self.totals())

    def _predicted_in(self, totals: Mapping[str, float]) -> int:
        return round(totals[f"sum/{self._objective.predicted}"]) if totals else 0

    def take(self) -> dict[str, Any]:
        """Returns the means by their names in metrics.jsonl, and resets the sums.

        Returns:
          The objective's metrics, loss and grad_norm, real_token_share, pairs_per_row (None where
          no rows were packed) and predicted_tokens, which is not a mean but the count so far.
        """
        self._predicted = self.predicted_tokens()
        totals = {name: jnp.float32(total) for name, total in self.totals().items()}
        self._totals = {}
        sums = {
            name.removeprefix("sum/"): total
            for name, total in totals.items()
            if name.startswith("sum/")
        }
        packed = totals["packed_rows"]
        means: dict[str, Any] = {
            **self._objective.metrics(sums),
            "loss": self._objective.loss(sums, sums),
            "grad_norm": totals["grad_norm"] / totals["steps"],
            "real_token_share": totals["real_tokens"] / totals["places"],
        }
        return {
            **{name: float(mean) for name, mean in means.items()},
            "pairs_per_row": float(totals["pairs"] / packed) if packed else None,
            "predicted_tokens": self._predicted,
        }
