"""A run's workdir: a folder, or a folder in a bucket with local files that are uploaded.

metrics.jsonl, evals.jsonl, the event files of TensorBoard, summary.json and curves.png are written
to a local folder, since a bucket cannot append. (`rows` and `store` in that folder are not
uploaded.) Changed files are uploaded whole: once per minute, at the end, and before a checkpoint
counts. So the bucket has every line up to the step of each of its checkpoints, and a resumed run
on any machine finds everything there.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

from bertjax.errors import ConfigError
from bertjax.reports.tracker import EVALS, METRICS
from bertjax.storage.atomic_files import write_file
from bertjax.storage.bucket import BucketPath, as_path, in_parallel
from bertjax.storage.cache import cache_folder

_LOG = logging.getLogger(__name__)
_UPLOAD_SECONDS = 60.0
_STAY_HERE = ("rows", "store")  # and every hidden file


class Workdir:
    """A workdir in a file system; the processes of the run share it."""

    def __init__(self, path: Path | BucketPath, local: Path):
        self.path = path  # for the checkpoints and the lock
        self.local = local  # for everything else

    @contextlib.contextmanager
    def kept(self) -> Iterator[None]:
        """Process 0 runs in this block; files in `local` are kept in `path`."""
        yield

    def upload(self) -> None:
        """Uploads the changed files of `local`."""

    def take_records(self, other: Path | BucketPath) -> None:
        """Copies the metrics of another run's workdir, which this run continues.

        Raises:
          OSError: a file cannot be read or written.
        """
        for name in (METRICS, EVALS):
            with contextlib.suppress(FileNotFoundError):
                write_file(self.local / name, (other / name).read_bytes())


class BucketWorkdir(Workdir):
    """A workdir in a bucket."""

    def __init__(self, path: BucketPath):
        number = hashlib.sha256(str(path).encode()).hexdigest()[:12]
        super().__init__(path, cache_folder() / "workdirs" / number / path.name)
        self._bucket = path
        self._uploaded: dict[str, tuple[int, int]] = {}  # size and time of each file
        self._uploading = threading.Lock()

    @contextlib.contextmanager
    def kept(self) -> Iterator[None]:
        """Starts with the files of the bucket; uploads while the block runs, and after it.

        Raises:
            OSError: the bucket cannot be read or written, or the local half not.
        """
        self._begin()
        ended = threading.Event()
        thread = threading.Thread(target=self._upload_now_and_then, args=(ended,), daemon=True)
        thread.start()
        try:
            yield
        except BaseException:
            self._end(thread, ended)
            with contextlib.suppress(OSError):  # the error that ends the block is raised
                self.upload()
            raise
        self._end(thread, ended)
        self.upload()

    def upload(self) -> None:
        """Uploads the files of `local` that have changed, as long as they are now.

        Raises:
            OSError: the bucket cannot be written.
        """
        with self._uploading:
            changed = {
                name: state
                for name, state in self._states().items()
                if self._uploaded.get(name) != state
            }

            def upload(name: str) -> None:
                # Read first: the file may grow under an upload.
                (self._bucket / name).write_bytes((self.local / name).read_bytes())
                self._uploaded[name] = changed[name]

            in_parallel(upload, changed)

    def _begin(self) -> None:
        for name in self._states():  # of an earlier run on this machine; the bucket's files count
            (self.local / name).unlink()
        for name in ("tensorboard", "tokenizer"):
            shutil.rmtree(self.local / name, ignore_errors=True)
        self.local.mkdir(parents=True, exist_ok=True)
        for name in (METRICS, EVALS):
            with contextlib.suppress(FileNotFoundError):
                (self.local / name).write_bytes((self._bucket / name).read_bytes())
        self._uploaded = self._states()

    def _states(self) -> dict[str, tuple[int, int]]:
        states = {}
        for path in self.local.rglob("*"):
            parts = path.relative_to(self.local).parts
            if parts[0] not in _STAY_HERE and not path.name.startswith(".") and path.is_file():
                status = path.stat()
                states["/".join(parts)] = status.st_size, status.st_mtime_ns
        return states

    def _upload_now_and_then(self, ended: threading.Event) -> None:
        while not ended.wait(_UPLOAD_SECONDS):
            try:
                self.upload()
            except OSError as error:
                _LOG.warning("metrics and curves wait for the next upload: %s", error)

    @staticmethod
    def _end(thread: threading.Thread, ended: threading.Event) -> None:
        ended.set()
        thread.join()


def open_workdir(path: str | Path | BucketPath) -> Workdir:
    """The workdir that a path names.

    Raises:
      ConfigError: it is a file.
    """
    path = as_path(path)
    if isinstance(path, Path) and path.is_file():
        raise ConfigError(f"--workdir={path}: is a file; name a folder")
    return BucketWorkdir(path) if isinstance(path, BucketPath) else Workdir(path, path)
