"""Folders and files in a Google Cloud Storage bucket, by paths gs://BUCKET/FOLDER.

Only this file talks to the bucket, through google-cloud-storage, with the machine's default
credentials. (Orbax has its own access: tensorstore for arrays, etils.epath on gcsfs for the rest.)
A bucket has no folders, no rename and no append. An object appears complete or not at all under a
name that may contain slashes, and reads and listings after a write see it.

For tests and emulators the libraries read STORAGE_EMULATOR_HOST and TENSORSTORE_GCS_HTTP_URL.
"""

from __future__ import annotations

import base64
import concurrent.futures
import contextlib
import dataclasses
import errno
import fnmatch
import functools
import hashlib
import importlib.util
import io
import os
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from bertjax.errors import ConfigError

# etils.epath uses TensorFlow if that is installed, which cannot access a bucket without a plug-in.
# It decides once, when the first path of any kind is used.
os.environ.setdefault("EPATH_USE_TF", "false")

_SCHEME = "gs://"
_CONNECTIONS = 8  # transfers at a time; the client's pool has ten
_CHUNK_BYTES = 4 << 20


def is_bucket_path(path: object) -> bool:
    """Whether a path names something in a bucket."""
    return isinstance(path, BucketPath) or str(path).startswith(_SCHEME)


def as_path(path: object) -> Path | BucketPath:
    """A path of the right kind: `BucketPath` for gs://, else `pathlib.Path`."""
    return BucketPath(str(path)) if is_bucket_path(path) else Path(str(path))


@dataclasses.dataclass(frozen=True)
class Stored:
    """The entry of an object in a listing."""

    size: int  # bytes
    md5: str | None  # hexadecimal; None for an object that was composed of others


class BucketPath:
    """A file or folder in a bucket, with methods like those of `pathlib.Path`.

    Every method that asks the bucket raises FileNotFoundError, PermissionError or OSError with the
    path and the bucket's answer, after the client's own retries (two minutes). ConfigError means
    that the client library or credentials are missing.
    """

    def __init__(self, uri: str):
        bucket, _, key = uri.removeprefix(_SCHEME).partition("/")
        self.bucket = bucket
        self.key = "/".join(part for part in key.split("/") if part)
        if not uri.startswith(_SCHEME) or not bucket:
            raise ConfigError(f"{uri}: expected gs://BUCKET/FOLDER")

    def __str__(self) -> str:
        return f"{_SCHEME}{self.bucket}/{self.key}".rstrip("/")

    __fspath__ = __str__

    def __repr__(self) -> str:
        return f"BucketPath({str(self)!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, BucketPath) and str(self) == str(other)

    def __hash__(self) -> int:
        return hash(str(self))

    def __truediv__(self, name: str) -> BucketPath:
        return BucketPath(f"{self}/{name}")

    @property
    def name(self) -> str:
        """The last part of the path."""
        return (self.key or self.bucket).rpartition("/")[2]

    @property
    def parent(self) -> BucketPath:
        """The folder that contains this."""
        return BucketPath(f"{_SCHEME}{self.bucket}/{self.key.rpartition('/')[0]}")

    def with_name(self, name: str) -> BucketPath:
        """This path with another last part."""
        return self.parent / name

    # --- one file -------------------------------------------------------------------------------

    def is_file(self) -> bool:
        """Whether there is an object of this name."""
        return self.generation() is not None

    def generation(self) -> int | None:
        """The object's generation, which each write changes; None if there is no object."""
        with self._explained():
            blob = _client().bucket(self.bucket).get_blob(self.key)
        return None if blob is None else int(blob.generation)

    def read_bytes(self) -> bytes:
        """The whole content, verified by the bucket's checksum."""
        with self._explained():
            return bytes(self._blob().download_as_bytes())

    def read_text(self) -> str:
        """The whole content, as UTF-8."""
        return self.read_bytes().decode()

    def write_bytes(self, content: bytes, generation: int | None = None) -> int:
        """Writes the object completely or not at all; returns its generation.

        Args:
            content: what to write.
            generation: the required present generation, 0 = no such object; None = any.

        Raises:
            FileExistsError: the present generation is another.
        """
        blob = self._blob()
        with self._explained():
            blob.upload_from_string(
                content,
                content_type="application/octet-stream",
                if_generation_match=generation,
                checksum="md5",
            )
        return int(blob.generation)

    def write_text(self, text: str) -> None:
        """Writes the object completely or not at all, as UTF-8."""
        self.write_bytes(text.encode())

    def unlink(self, missing_ok: bool = False, generation: int | None = None) -> None:
        """Removes the object, if it has this generation.

        Raises:
            FileExistsError: the present generation is another.
        """
        try:
            with self._explained():
                self._blob().delete(if_generation_match=generation)
        except FileNotFoundError:
            if not missing_ok:
                raise

    def upload(self, file: Path) -> None:
        """Writes the object from a local file."""
        with self._explained():
            self._blob().upload_from_filename(str(file), checksum="md5")

    def open(self) -> io.RawIOBase:
        """A stream of the content, to be read once, some megabytes at a time."""
        with self._explained():
            return _Reader(self, self._blob().open("rb", chunk_size=_CHUNK_BYTES))

    def digest(self, algorithm: str, told: Callable[[bytes], None] = lambda chunk: None) -> str:
        """Reads the object through and hashes it.

        Args:
            algorithm: of hashlib.
            told: is called with each piece that was read.
        """
        digest = hashlib.new(algorithm)
        with self._explained(), self._blob().open("rb", chunk_size=_CHUNK_BYTES) as source:
            while chunk := source.read(_CHUNK_BYTES):
                digest.update(chunk)
                told(chunk)
        return digest.hexdigest()

    # --- a folder -------------------------------------------------------------------------------

    def mkdir(self, parents: bool = False, exist_ok: bool = False) -> None:
        """Does nothing: a folder exists once it contains an object."""

    def is_dir(self) -> bool:
        """Whether there are objects below this path."""
        with self._explained():
            return any(True for _ in self._list(max_results=1))

    def files(self) -> dict[str, Stored]:
        """All objects below, by paths relative to this, sorted by name."""
        with self._explained():
            found = {
                blob.name.removeprefix(self._prefix()): Stored(
                    int(blob.size), _hexadecimal(blob.md5_hash)
                )
                for blob in self._list()
                if not blob.name.endswith("/")  # a placeholder that consoles make for a folder
            }
        return dict(sorted(found.items()))

    def folders(self) -> list[str]:
        """Names of the folders in this one, sorted."""
        with self._explained():
            listing = self._list(delimiter="/")
            for _ in listing:  # the folders come with the pages
                pass
        return sorted(
            prefix.removeprefix(self._prefix()).rstrip("/") for prefix in listing.prefixes
        )

    def remove_tree(self, first: str = "") -> None:
        """Removes everything below.

        Args:
            first: the file that is removed before any other.
        """
        names = list(self.files())
        if first in names:
            (self / first).unlink(missing_ok=True)
        in_parallel(lambda name: (self / name).unlink(missing_ok=True), names)

    def copy_tree(self, target: BucketPath) -> None:
        """Copies everything below within Google Cloud, without a download."""

        def copy(name: str) -> None:
            source, copied, token = (self / name)._blob(), (target / name)._blob(), None
            with self._explained():
                while True:  # an object of gigabytes takes several calls
                    token, _, _ = copied.rewrite(source, token=token)
                    if token is None:
                        return

        in_parallel(copy, self.files())

    def as_epath(self) -> Any:
        """The same path for orbax."""
        import fsspec.config
        from etils import epath

        # Another process's files must be seen at once.
        fsspec.config.conf.setdefault("gcs", {})["use_listings_cache"] = False
        return epath.Path(str(self))

    def _prefix(self) -> str:
        return f"{self.key}/" if self.key else ""

    def _blob(self) -> Any:
        return _client().bucket(self.bucket).blob(self.key)

    def _list(self, **options: Any) -> Any:
        return _client().list_blobs(self.bucket, prefix=self._prefix(), **options)

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """Turns the client's errors into the operating system's, with the path."""
        _client()  # says what is missing
        import requests
        from google.api_core import exceptions
        from google.auth.exceptions import GoogleAuthError
        from google.cloud.exceptions import GoogleCloudError
        from google.cloud.storage.exceptions import DataCorruption, InvalidResponse

        kinds = (
            (exceptions.NotFound, FileNotFoundError, errno.ENOENT),
            (exceptions.PreconditionFailed, FileExistsError, errno.EEXIST),
            (exceptions.Forbidden, PermissionError, errno.EACCES),
            (exceptions.Unauthorized, PermissionError, errno.EACCES),
        )
        try:
            yield
        except (GoogleCloudError, exceptions.RetryError) as error:
            reason = getattr(error, "message", "") or str(error)
            for google, ours, number in kinds:
                if isinstance(error, google):
                    raise ours(number, reason, str(self)) from error
            raise OSError(errno.EIO, reason, str(self)) from error
        except GoogleAuthError as error:
            raise PermissionError(errno.EACCES, str(error), str(self)) from error
        except (requests.RequestException, DataCorruption, InvalidResponse) as error:
            raise OSError(errno.EIO, str(error), str(self)) from error


class _Reader(io.RawIOBase):
    """A stream of the client, with the operating system's errors."""

    def __init__(self, path: BucketPath, source: Any):
        self._path = path
        self._source = source

    def readable(self) -> bool:
        """Yes."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fills the buffer; 0 at the end."""
        with self._path._explained():
            return int(self._source.readinto(buffer))


def find_objects(pattern: str) -> dict[str, int]:
    """Bytes of the objects that a glob gs://BUCKET/... matches, by path, sorted.

    As for files, * and ? and [...] match within a folder, and ** matches any number of folders.
    """
    path = BucketPath(pattern)
    fixed = re.split(r"[*?\[]", path.key, maxsplit=1)[0]
    with path._explained():
        found = {
            f"{_SCHEME}{path.bucket}/{blob.name}": int(blob.size)
            for blob in _client().list_blobs(path.bucket, prefix=fixed)
            if _matches(blob.name.split("/"), path.key.split("/"))
        }
    return dict(sorted(found.items()))


def _matches(names: list[str], patterns: list[str]) -> bool:
    if not patterns or names == [""]:  # "" ends the name of a folder's placeholder
        return not names
    if patterns[0] == "**":
        return _matches(names, patterns[1:]) or (bool(names) and _matches(names[1:], patterns))
    return (
        bool(names)
        and fnmatch.fnmatchcase(names[0], patterns[0])
        and _matches(names[1:], patterns[1:])
    )


def in_parallel(
    function: Callable[[Any], Any],
    items: Iterable[Any],
    at_error: Callable[[], None] = lambda: None,
) -> list[Any]:
    """Calls the function for each item, several at a time.

    At the first error it starts no more calls, calls `at_error`, waits for those in progress and
    raises.
    """
    with concurrent.futures.ThreadPoolExecutor(_CONNECTIONS) as pool:
        try:
            return list(pool.map(function, items))
        except BaseException:
            at_error()
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def require_client() -> None:
    """Checks that buckets can be used here.

    Raises:
        ConfigError: the client library or credentials are missing; says how to get them.
    """
    _client()


@functools.cache
def _client() -> Any:
    missing = [
        package for package in ("gcsfs", "google.cloud.storage") if not _is_installed(package)
    ]
    if missing:
        raise ConfigError(
            f"gs:// paths need {' and '.join(missing)}, not installed here: "
            "pip install 'bertjax[gcs]'"
        )
    import google.cloud.storage as storage
    from google.auth.exceptions import DefaultCredentialsError

    try:
        return storage.Client(project=None)  # objects belong to buckets, whatever the project
    except DefaultCredentialsError:
        raise ConfigError(
            "gs:// paths need credentials, and none were found: run `gcloud auth "
            "application-default login`, or name a key in GOOGLE_APPLICATION_CREDENTIALS; on "
            "Google Cloud give the machine a service account that may write the bucket"
        ) from None


def _is_installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:  # of a parent
        return False


def _hexadecimal(md5: str | None) -> str | None:
    return base64.b64decode(md5).hex() if md5 else None
