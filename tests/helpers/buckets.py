"""Fixture `bucket`: a folder of its own in a bucket of the storage emulator, for each test."""

import importlib.util
import os
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from bertjax.storage.bucket import BucketPath


@pytest.fixture(scope="session")
def bucket_server():
    """A running emulator; the environment of this process and its children names it."""
    for module, package in (("gcp_storage_emulator", "gcp-storage-emulator"), ("gcsfs", "gcsfs")):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"no {package}: pip install 'bertjax[dev]'")
    server = subprocess.Popen(
        [sys.executable, str(Path(__file__).parent / "bucket_server.py")],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    address = server.stdout.readline().strip()
    variables = {
        "STORAGE_EMULATOR_HOST": address,
        "TENSORSTORE_GCS_HTTP_URL": address,
        # Else gcsfs asks Google itself, over gRPC, what kind of bucket it is.
        "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
        "GCE_METADATA_HOST": "127.0.0.1:1",  # no credentials: nobody to ask for them
        "GCE_METADATA_ROOT": "127.0.0.1:1",
    }
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    yield address
    for name, value in before.items():
        if value is None:
            del os.environ[name]
        else:
            os.environ[name] = value
    server.kill()
    server.communicate()


@pytest.fixture
def bucket(bucket_server, tmp_path, monkeypatch) -> BucketPath:
    """An empty folder, and an empty cache on this machine."""
    monkeypatch.setenv("BERTJAX_CACHE", str(tmp_path / "cache"))
    return BucketPath(f"gs://bucket/{uuid.uuid4().hex[:8]}")
