"""Records a run while it trains: metrics.jsonl, evals.jsonl, the terminal and TensorBoard."""

from __future__ import annotations

import contextlib
import datetime
import json
import logging
import math
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

import jax
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from bertjax.config import Config, closest
from bertjax.objectives.objective import Metric
from bertjax.reports.event_files import EventWriter
from bertjax.storage.atomic_files import write_file

_LOG = logging.getLogger(__name__)

METRICS = "metrics.jsonl"
EVALS = "evals.jsonl"
SUMMARY = "summary.json"


def step_keys(metrics: Sequence[Metric]) -> tuple[str, ...]:
    """The keys of every line of metrics.jsonl, in this order; an unknown value is null.

    Args:
      metrics: those that the objective reports.
    """
    return (
        "step",  # updates made, this one included
        "phase",  # counted from 0
        "position",  # rows of the phase read so far
        "loss",
        *(metric.name for metric in metrics),
        "learning_rate",
        "grad_norm",  # before clipping
        "sequences_per_second",
        "real_tokens_per_second",
        "mfu",
        "real_token_share",  # of the step's tokens; the rest is padding
        "pairs_per_row",  # if rows are packed
        "predicted_tokens",  # so far, over all restarts; null if no tokens are predicted
        "rows_sha256",  # of the ids of the step's rows
    )


# Not worth a chart.
_NOT_CHARTED = {"step", "position", "rows_sha256", "not_finite"}


class Tracker(contextlib.AbstractContextManager["Tracker"]):
    """Records a run in its workdir, and shows its progress.

    A step is one line of metrics.jsonl, an evaluation one of evals.jsonl. Both contain strict JSON,
    are flushed line by line, and are cut back when a run is resumed, so no step occurs twice. A
    number that is not finite is written as null and named under `not_finite`. A terminal has one
    progress line; otherwise each line goes to the log, with the time. TensorBoard reads
    WORKDIR/tensorboard, where `train` and `heldout` have the same names of charts.

    Only process 0 writes; in the others every method does nothing.
    """

    def __init__(
        self, workdir: Path, config: Config, metrics: Sequence[Metric], resume_step: int = 0
    ):
        """Opens the files of `workdir`, cut back to the steps up to `resume_step`.

        Args:
          workdir: of the run.
          config: of the run: its last step, and whether TensorBoard gets its scalars.
          metrics: those that the objective reports, in the order of `step_keys`.
          resume_step: updates made before; later lines are cut off.

        Raises:
          OSError: a file cannot be written.
        """
        self.last_evaluation: int | None = None  # step of the last line of evals.jsonl
        self.evaluations: list[dict[str, Any]] = []  # the lines of evals.jsonl, in process 0
        self._keys = step_keys(metrics)
        self._formats = {
            "loss": "loss {:.3f}",
            **{metric.name: metric.progress for metric in metrics if metric.progress},
            "sequences_per_second": "{:,.1f} sequences/s",
            "real_tokens_per_second": "{:,.0f} real tokens/s",
            "mfu": "MFU {:.1%}",
        }
        self._total_steps = config.last_step
        self._exits = contextlib.ExitStack()
        self._writes = jax.process_index() == 0
        if not self._writes:
            return
        workdir.mkdir(parents=True, exist_ok=True)
        self._steps = self._open(workdir / METRICS, resume_step)
        self._evals = self._open(workdir / EVALS, resume_step)
        self.evaluations = read_lines(workdir / EVALS)
        if self.evaluations:
            self.last_evaluation = self.evaluations[-1]["step"]
        self._events: dict[str, EventWriter] = {}
        if config.log.tensorboard:
            for run in ("train", "heldout"):
                self._events[run] = EventWriter(workdir / "tensorboard" / run, resume_step)
                self._exits.callback(self._events[run].close)
        self._bar: tqdm | None = None
        if sys.stderr.isatty():
            has_width = os.get_terminal_size(sys.stderr.fileno()).columns > 0
            self._bar = self._exits.enter_context(
                tqdm(
                    initial=resume_step,
                    total=self._total_steps,
                    ncols=None if has_width else 120,
                    dynamic_ncols=has_width,
                    bar_format="{desc}  {percentage:3.0f}% {bar:16}",
                    desc="compiling the first step",
                )
            )
            self._exits.enter_context(logging_redirect_tqdm())  # log lines above the bar

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self.close()

    def log_step(self, record: Mapping[str, Any], seconds_left: float | None = None) -> None:
        """Records a training step.

        Args:
          record: values by name, from `step_keys`; numbers, or arrays of one element. "step" must
            be there, the others may be missing.
          seconds_left: expected time to the end of the run.

        Raises:
          ValueError: a name is not one of the keys.
        """
        if not self._writes:
            return
        for name in record:
            if name not in self._keys:
                raise ValueError(f"{name!r} is not a key of {METRICS}; {closest(name, self._keys)}")
        line = _plain({name: record.get(name) for name in self._keys})
        self._write(self._steps, "train", line)
        text = self._progress(line, seconds_left)
        if self._bar is None:
            _LOG.info("%s", text)
        else:
            self._bar.set_description_str(text, refresh=False)
            self._bar.n = line["step"]
            self._bar.refresh()

    def log_eval(self, record: Mapping[str, Any]) -> None:
        """Records an evaluation: "step", "phase" and values called `heldout_*`."""
        self.last_evaluation = record["step"]
        if not self._writes:
            return
        line = _plain(record)
        self.evaluations.append(line)
        self._write(self._evals, "heldout", line)
        values = "  ".join(
            f"{_chart_name(name).replace('_', ' ')} {value:.4g}"
            for name, value in line.items()
            if isinstance(value, float)
        )
        _LOG.info("step %s  held out:  %s", f"{line['step']:,}", values)

    def close(self) -> None:
        """Closes the files and the progress line; may be called twice."""
        self._exits.close()

    def _progress(self, line: Mapping[str, Any], seconds_left: float | None) -> str:
        """The most important numbers come first, because a narrow terminal cuts off the end."""
        parts = [f"step {line['step']:,}/{self._total_steps:,}"]
        if seconds_left is not None:
            parts.append(f"{datetime.timedelta(seconds=round(seconds_left))} left")
        parts += [f"{name} is {value}" for name, value in line.get("not_finite", {}).items()]
        parts += [
            form.format(line[name])
            for name, form in self._formats.items()
            if line.get(name) is not None
        ]
        return "  ".join(parts)

    def _open(self, path: Path, resume_step: int) -> TextIO:
        cut_back(path, resume_step)
        return self._exits.enter_context(open(path, "a", encoding="utf-8", buffering=1))

    def _write(self, file: TextIO, run: str, line: dict[str, Any]) -> None:
        file.write(json.dumps(line, allow_nan=False) + "\n")  # line-buffered: one write per line
        if run in self._events:
            scalars = {
                _chart_name(name): value
                for name, value in line.items()
                if name not in _NOT_CHARTED and value is not None
            }
            self._events[run].add(line["step"], scalars)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The records of metrics.jsonl or evals.jsonl; none if there is no such file.

    Lines that are not JSON objects with a step are left out, with a warning. The last line is
    incomplete if the run was killed while it wrote.
    """
    if not path.exists():
        return []
    records = []
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            record = json.loads(line)
            record["step"] = int(record["step"])
        except (ValueError, TypeError, KeyError):
            _LOG.warning("%s:%d is left out: not a JSON object with a step", path, number)
            continue
        records.append(record)
    return records


def cut_back(path: Path, step: int) -> None:
    """Drops the lines of steps after `step`, and incomplete lines, atomically."""
    if not path.exists():
        return
    records = read_lines(path)
    kept = [json.dumps(record) + "\n" for record in records if record["step"] <= step]
    content = "".join(kept).encode()
    if content != path.read_bytes():
        write_file(path, content)
    if len(kept) < len(records):
        _LOG.info("%s: dropped %d lines after step %d", path, len(records) - len(kept), step)


def write_summary(workdir: Path, summary: Mapping[str, Any]) -> None:
    """Writes summary.json atomically; numbers that are not finite become null."""
    text = json.dumps(_plain(summary), indent=2, allow_nan=False) + "\n"
    write_file(workdir / SUMMARY, text.encode())


def _plain(record: Mapping[str, Any]) -> dict[str, Any]:
    """Values that JSON can express; `not_finite` names the others."""
    plain, not_finite = {}, {}
    for name, value in record.items():
        value = value.item() if hasattr(value, "item") else value
        if isinstance(value, float) and not math.isfinite(value):
            not_finite[name] = str(value)  # "nan", "inf" or "-inf"
            value = None
        plain[name] = value
    return {**plain, "not_finite": not_finite} if not_finite else plain


def _chart_name(name: str) -> str:
    return name.removeprefix("heldout_")
