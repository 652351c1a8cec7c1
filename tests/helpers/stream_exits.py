"""Ends interpreters with a stream running: `python stream_exits.py STORE HOW HOW ...`.

HOW is "close", "open" (nobody closes it), "raise" (SystemExit with status 3) or, to see what the
finaliser is for, "unguarded". TensorFlow is imported once; each interpreter is a fork that opens
a stream, takes batches and ends by the ordinary way out. Prints how each ended: its exit status,
or "hangs".
"""

import gc
import os
import signal
import sys
import time

import tensorflow  # noqa: F401 (so that the forks need not import it)
from stream_store import make_reader

from bertjax.data.store.store import open_store
from bertjax.data.stream.tf_data import BatchStream

SECONDS = 30  # for one to end
OPEN: list[BatchStream] = []  # still referred to when the interpreter ends


def main(store: str, *hows: str) -> None:
    reader = make_reader(open_store(store))
    gc.freeze()  # the forks need not take TensorFlow's own objects apart as they end
    for how in hows:
        child = os.fork()
        if child == 0:
            run(reader, how)
            return
        print(how, wait(child), flush=True)


def run(reader, how: str) -> None:
    stream = BatchStream(reader, global_batch_size=64, num_threads=2)
    OPEN.append(stream)
    for _ in range(40):
        next(stream)
    if how == "close":
        stream.close()
    if how == "unguarded":
        stream._finalizer.detach()
    if how == "raise":
        raise SystemExit(3)


def wait(child: int) -> str:
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return str(os.waitstatus_to_exitcode(status))
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return "hangs"


if __name__ == "__main__":
    main(*sys.argv[1:])
