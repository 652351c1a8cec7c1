"""One run per workdir in a bucket, which has no file locks that a kernel would free after a kill.

The lock is an object, WORKDIR/.lock. A run creates it on the condition that it does not exist, and
rewrites it every `BEAT_SECONDS` on the condition that no other run has written it. A run that finds
a lock

- takes it over at once, if its holder was a process of this machine that is gone;
- else watches it. If the lock is rewritten, its run is alive and this one is refused. If it does
  not change for `EXPIRY_SECONDS`, its run is dead and the lock is taken over.

No clocks are compared. If a run was cut off from the bucket for so long that another run took the
lock, it ends at its next beat; until then both may write. See docs/design/checkpoint.md.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bertjax.errors import EXIT_FAILED, BertjaxError
from bertjax.storage.bucket import BucketPath

_LOG = logging.getLogger(__name__)
BEAT_SECONDS = 15.0
EXPIRY_SECONDS = 60.0


class HeldError(BertjaxError):
    """Another run is alive; the message is its description of itself."""

    exit_code = EXIT_FAILED


@contextlib.contextmanager
def hold(path: BucketPath, words: str) -> Iterator[None]:
    """Holds the lock for the length of the `with` block.

    Args:
        path: of the lock.
        words: description of the holder, for a run that is refused.

    Raises:
        HeldError: another run holds it.
        OSError: the bucket cannot be written.
    """
    # A unique token distinguishes this lock from another one of the same process.
    token = uuid.uuid4().hex
    content = json.dumps({"holder": words, "process": _this_process(), "token": token}).encode()
    beat = _Beat(path, content, _acquire(path, content))
    beat.start()
    try:
        yield
    finally:
        beat.end()


def _acquire(path: BucketPath, content: bytes) -> int:
    """Writes the lock; returns its generation."""
    while True:
        generation = path.generation() or 0
        if generation:
            try:
                found = path.read_bytes()
            except FileNotFoundError:  # released at this moment
                continue
            if found == content:  # written, but the answer was lost
                return generation
            holder = json.loads(found)
            state = _state_here(holder["process"])
            if state == "alive" or (state == "unknown" and not _expires(path, generation, holder)):
                raise HeldError(holder["holder"])
        try:
            return path.write_bytes(content, generation)
        except FileExistsError:  # another run was faster, or the holder is alive after all
            continue


def _expires(path: BucketPath, generation: int, holder: dict[str, Any]) -> bool:
    """Watches the lock: False if it is rewritten within `EXPIRY_SECONDS`, else True."""
    _LOG.info(
        "the workdir was in use by %s; if that run is dead, this one continues in %.0f s",
        holder["holder"],
        EXPIRY_SECONDS,
    )
    watched = time.monotonic()
    while time.monotonic() - watched < EXPIRY_SECONDS:
        time.sleep(min(1.0, BEAT_SECONDS / 4))
        present = path.generation()
        if present != generation:
            return present is None
    return True


class _Beat(threading.Thread):
    """Rewrites the lock until `end`, and ends the process if the lock is lost."""

    def __init__(self, path: BucketPath, content: bytes, generation: int):
        super().__init__(name="workdir_lock", daemon=True)
        self._path, self._content, self._generation = path, content, generation
        self._ended = threading.Event()

    def run(self) -> None:
        while not self._ended.wait(BEAT_SECONDS):
            try:
                self._generation = self._path.write_bytes(self._content, self._generation)
            except FileExistsError:
                if not self._is_ours():
                    self._leave()
            except OSError as error:
                _LOG.warning("the lock on the workdir was not renewed: %s", error)

    def end(self) -> None:
        """Releases the lock."""
        self._ended.set()
        self.join()
        with contextlib.suppress(OSError):  # it expires by itself
            self._path.unlink(missing_ok=True, generation=self._generation)

    def _is_ours(self) -> bool:
        """Whether this process wrote it: the bucket has the write, the network lost the answer.

        A lock that is gone was released by a run that had taken it over.
        """
        try:
            generation = self._path.generation()
            if generation is None or self._path.read_bytes() != self._content:
                return False
            self._generation = generation
        except OSError:
            pass  # unknown now; the next beat asks again
        return True

    def _leave(self) -> None:
        print(
            f"error: {self._path} was taken over by another run while this one could not reach "
            "the bucket; this one writes nothing more",
            file=sys.stderr,
            flush=True,
        )
        logging.shutdown()
        os._exit(1)


def _this_process() -> dict[str, str | int]:
    """The identity of this process, by which its machine knows whether it is alive."""
    return {**_machine(), "pid": os.getpid(), "started": _start_time(os.getpid()) or ""}


def _machine() -> dict[str, str]:
    """Identity of the boot and the namespace of process ids, which containers do not share."""
    try:
        return {
            "boot": Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
            "namespace": os.readlink("/proc/self/ns/pid"),
        }
    except OSError:  # not Linux
        return {}


def _start_time(pid: int) -> str | None:
    """When a process was started, in clock ticks since boot; None if there is none."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]  # a zombie is dead


def _state_here(process: dict[str, Any]) -> str:
    """The word "alive" or "gone" if the process was on this machine, else "unknown"."""
    machine = _machine()
    if not machine or any(process.get(key) != value for key, value in machine.items()):
        return "unknown"
    return "alive" if _start_time(process["pid"]) == process["started"] else "gone"
