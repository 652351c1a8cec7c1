"""The documented bytes of `params_sha256`, written out by hand."""

import hashlib
import struct

import jax
import jax.numpy as jnp
import numpy as np

from bertjax.checkpoints.params_hash import params_sha256


def test_the_bytes_are_those_of_the_docstring():
    # "a-b" < "a/c" as bytes, though a tree walk by keys meets a/c first.
    params = {
        "a": {"c": np.array([[1.0, -2.5]], np.float32)},
        "a-b": np.array(7, np.int32),
        "ü": np.array([1.5], jnp.bfloat16),
    }
    content = (
        b"a-b\0int32()" + struct.pack("<i", 7)
        + b"a/c\0float32(1, 2)" + struct.pack("<2f", 1.0, -2.5)
        + b"\xc3\xbc\0bfloat16(1,)" + struct.pack("<f", 1.5)[2:]
    )  # fmt: skip
    assert params_sha256(params) == hashlib.sha256(content).hexdigest()


def test_where_and_how_arrays_lie_changes_nothing():
    array = np.arange(12, dtype=np.float32).reshape(3, 4)
    expected = params_sha256({"kernel": array})
    assert params_sha256({"kernel": jax.device_put(array)}) == expected
    assert params_sha256({"kernel": np.asfortranarray(array)}) == expected
    assert params_sha256({"kernel": array.astype(">f4")}) == expected


def test_every_part_counts():
    array = np.arange(4, dtype=np.float32)
    others = (
        {"kernel": array},
        {"bias": array},
        {"kernel": array.reshape(2, 2)},
        {"kernel": array.view(np.int32)},
        {"kernel": array + np.float32(1e-7)},
    )
    assert len({params_sha256(params) for params in others}) == len(others)
