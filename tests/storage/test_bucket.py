"""Paths in a bucket, on the storage emulator."""

import hashlib
import subprocess
import sys

import pytest

from bertjax.config import ConfigError
from bertjax.storage.bucket import BucketPath, as_path, is_bucket_path


def test_paths():
    path = BucketPath("gs://some-bucket/a//b/")
    assert str(path) == "gs://some-bucket/a/b"
    assert (path.bucket, path.key, path.name) == ("some-bucket", "a/b", "b")
    assert str(path / "c" / "d") == "gs://some-bucket/a/b/c/d"
    assert path.parent == BucketPath("gs://some-bucket/a")
    assert str(path.with_name("x")) == "gs://some-bucket/a/x"
    assert str(BucketPath("gs://some-bucket")) == "gs://some-bucket"
    assert as_path("gs://some-bucket/a/b") == path
    assert not is_bucket_path("/gs:/some")
    for wrong in ("gs://", "gs:///a", "s3://a/b"):
        with pytest.raises(ConfigError, match="expected gs://BUCKET/FOLDER"):
            BucketPath(wrong)


def test_files_and_folders(bucket):
    assert not bucket.is_dir()
    for name, content in (("b/c/two", b"22"), ("one", b"1"), ("b/three", b"")):
        (bucket / name).write_bytes(content)
    (bucket / "b").with_name("bb").write_text("not in b")
    assert bucket.is_dir()
    assert (bucket / "b").is_dir()
    assert not (bucket / "b").is_file()
    assert list(bucket.files()) == ["b/c/two", "b/three", "bb", "one"]
    stored = bucket.files()["b/c/two"]
    assert (stored.size, stored.md5) == (2, hashlib.md5(b"22").hexdigest())
    assert bucket.folders() == ["b"]
    assert (bucket / "b").folders() == ["c"]
    assert (bucket / "b/c/two").read_bytes() == b"22"
    (bucket / "b").copy_tree(bucket / "copy")
    assert (bucket / "copy").files() == (bucket / "b").files()
    (bucket / "b").remove_tree(first="three")
    assert list(bucket.files()) == ["bb", "copy/c/two", "copy/three", "one"]


def test_a_missing_file_is_named(bucket):
    for call in (BucketPath.read_bytes, BucketPath.unlink, lambda path: path.digest("md5")):
        with pytest.raises(FileNotFoundError) as caught:
            call(bucket / "absent")
        assert caught.value.filename == str(bucket / "absent")
    (bucket / "absent").unlink(missing_ok=True)


def test_a_write_may_depend_on_the_generation(bucket):
    file = bucket / "file"
    assert file.generation() is None
    first = file.write_bytes(b"1", generation=0)
    assert file.generation() == first
    with pytest.raises(FileExistsError):
        file.write_bytes(b"2", generation=0)
    second = file.write_bytes(b"3", generation=first)
    with pytest.raises(FileExistsError):
        file.write_bytes(b"4", generation=first)
    with pytest.raises(FileExistsError):
        file.unlink(generation=first)
    assert file.read_bytes() == b"3"
    file.unlink(generation=second)
    assert not file.is_file()


def test_a_large_file_is_read_in_pieces(bucket, tmp_path):
    content = bytes(range(256)) * 40_000  # 10 MB: beyond one piece, and beyond one request
    (tmp_path / "large").write_bytes(content)
    (bucket / "large").upload(tmp_path / "large")
    pieces: list[bytes] = []
    digest = (bucket / "large").digest("sha256", pieces.append)
    assert digest == hashlib.sha256(content).hexdigest()
    assert b"".join(pieces) == content
    assert len(pieces) > 1


def test_without_the_libraries_the_extra_is_named():
    code = (
        "import sys; sys.modules['gcsfs'] = None\n"
        "from bertjax.storage.bucket import BucketPath\n"
        "BucketPath('gs://bucket/x').read_bytes()"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    last = result.stderr.splitlines()[-1]
    assert "gs:// paths need gcsfs" in last
    assert "pip install 'bertjax[gcs]'" in last
