"""A small store of made-up documents, the same on every platform."""

import atexit
import functools
import shutil
import tempfile
from pathlib import Path

import numpy as np

from bertjax.data.store.store import Store
from bertjax.data.stream.reader import RowReader
from bertjax.data.stream.rows import RowSpec
from bertjax.testing import make_store, make_tokenizer


@functools.cache
def shared_store() -> Store:
    """2,000 training documents in several shards, 40 held out."""
    folder = Path(tempfile.mkdtemp(prefix="bertjax-stream-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return make_store(folder / "store", 2_000, 40, shard_tokens=100_000)


def make_reader(store=None, split="train", seed=3, stream_id=0, **spec) -> RowReader:
    store = store or shared_store()
    return RowReader(
        getattr(store, split), make_tokenizer(), RowSpec(**spec), seed=seed, stream_id=stream_id
    )


def chi_square_excess(counts: np.ndarray, expected: np.ndarray | float) -> float:
    """Standard deviations by which the statistic exceeds its mean; fair counts stay below 5."""
    expected = np.broadcast_to(expected, counts.shape)
    degrees = counts.size - 1
    return (((counts - expected) ** 2 / expected).sum() - degrees) / np.sqrt(2 * degrees)
