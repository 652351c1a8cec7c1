"""TensorBoard event files, written without TensorFlow."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class EventWriter:
    """Appends scalars to one TensorBoard run, with a new event file for each start.

    The file begins with a session start at the step after `resume_step`. TensorBoard then ignores
    later steps in earlier files: those that a killed run had taken after its last checkpoint, and
    that the resumed run repeats.
    """

    def __init__(self, folder: Path, resume_step: int):
        """Opens a file in `folder` (made if missing) for the steps after `resume_step`."""
        # Slow to import, and not needed to read this module.
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._event_pb2, self._summary_pb2 = event_pb2, summary_pb2
        folder.mkdir(parents=True, exist_ok=True)
        # TensorBoard reads the files of a folder in the order of their names.
        seconds, nanoseconds = divmod(time.time_ns(), 10**9)
        name = f"{seconds:010d}.{nanoseconds:09d}.{socket.gethostname()}.{os.getpid()}"
        self._file = open(folder / f"events.out.tfevents.{name}", "wb")  # noqa: SIM115
        self._records = RecordWriter(self._file)
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._write(event_pb2.Event(file_version="brain.Event:2"))
        self._write(event_pb2.Event(step=resume_step + 1, session_log=start))

    def add(self, step: int, scalars: Mapping[str, float]) -> None:
        """Writes the scalars of one step; they are visible at once."""
        values = [
            self._summary_pb2.Summary.Value(tag=tag, simple_value=value)
            for tag, value in scalars.items()
        ]
        summary = self._summary_pb2.Summary(value=values)
        self._write(self._event_pb2.Event(step=step, summary=summary))

    def close(self) -> None:
        """Closes the file; it has been complete after each `add`."""
        self._file.close()

    def _write(self, event: Any) -> None:
        event.wall_time = time.time()
        self._records.write(event.SerializeToString())
        self._records.flush()
