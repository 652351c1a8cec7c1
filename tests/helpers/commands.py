"""Commands run in this process, which saves the seconds that a process takes to start.

That `python -m bertjax.NAME` does the same as its `main` is for a test of each command to show.
"""

import contextlib
import importlib
import io
import logging
import subprocess
import sys


def run_here(name: str, *arguments: object, stdin: str | None = None):
    """Runs bertjax.NAME; returns what `subprocess.run(..., text=True)` would."""
    command = importlib.import_module(f"bertjax.{name}")
    argv = [name, *map(str, arguments)]
    root = logging.getLogger()
    ours = logging.getLogger("bertjax")
    before = root.handlers[:], root.level, ours.level
    streams = [
        io.TextIOWrapper(io.BytesIO(content), "utf-8", write_through=True)
        for content in ((stdin or "").encode(), b"", b"")
    ]
    standard_input, sys.stdin = sys.stdin, streams[0]
    root.handlers.clear()  # else they would be closed: the command sets up its own
    try:
        with (
            contextlib.redirect_stdout(streams[1]),
            contextlib.redirect_stderr(streams[2]),
        ):
            try:
                command.main(argv)
            except SystemExit as end:
                code = end.code
    finally:
        sys.stdin = standard_input
        root.handlers[:] = before[0]
        root.setLevel(before[1])
        ours.setLevel(before[2])
    output, errors = (stream.buffer.getvalue().decode() for stream in streams[1:])
    return subprocess.CompletedProcess(argv, code, output, errors)
