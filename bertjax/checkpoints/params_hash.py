"""One hash for a set of parameters, the same on every machine, mesh and number of processes."""

from __future__ import annotations

import hashlib
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from bertjax.parallel.partition import path_name


def params_sha256(params: Any) -> str:
    """The sha256, in hex, over the parameters in the order of their paths.

    A path is the dict keys from the root joined by "/"; paths are ordered by their UTF-8 bytes.
    Each parameter adds, with nothing between: the path in UTF-8, one NUL byte, the dtype's name in
    ASCII ("float32", "bfloat16"), the shape as Python writes a tuple in ASCII ("(30522, 768)",
    "(768,)", "()"), and the elements in C order, little-endian.

    Args:
        params: nested dicts of arrays. With several processes each must call this: parameters that
            are spread over them are gathered, one at a time.
    """
    digest = hashlib.sha256()
    leaves = {
        path_name(path).encode(): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }
    for path, leaf in sorted(leaves.items()):
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
            leaf = multihost_utils.process_allgather(leaf, tiled=True)
        array = np.asarray(leaf)
        digest.update(path + b"\0" + array.dtype.name.encode() + str(array.shape).encode())
        little_endian = array.astype(array.dtype.newbyteorder("<"), copy=False)
        digest.update(np.ascontiguousarray(little_endian).tobytes())
    return digest.hexdigest()
