"""A small store of made-up documents, the same on every platform."""

import atexit
import functools
import shutil
import tempfile
from pathlib import Path

import numpy as np

from bertjax.data.counter_rng import bits64, keys_at, stream_key, uniform_float, uniform_int
from bertjax.data.store.store import Store
from bertjax.data.store.store_writer import write_store
from bertjax.data.stream.reader import RowReader
from bertjax.data.stream.rows import RowSpec
from bertjax.data.tokenizers.tokenizer import WordPieceTokenizer

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
VOCAB_SIZE = 1000


def make_tokenizer() -> WordPieceTokenizer:
    """Every fourth piece continues a word."""
    pieces = [f"##w{i}" if i % 4 == 0 else f"w{i}" for i in range(len(SPECIAL), VOCAB_SIZE)]
    return WordPieceTokenizer(SPECIAL + pieces, lower_case=True)


def make_documents(count: int, seed: int, mean_sentences: int = 12, mean_tokens: int = 22):
    """Documents and sentences of geometric lengths; [UNK] occurs, the other special ids do not."""
    for document in keys_at(stream_key(seed), np.arange(count)):
        key = np.array([document])
        sentences = geometric(key, 1, mean_sentences)[0]
        lengths = geometric(key, 2 + np.arange(sentences), mean_tokens)
        ids = bits64(key, 10_000 + np.arange(lengths.sum()))
        ids = 5 + uniform_int(ids, VOCAB_SIZE - 5)
        ids[ids % 97 == 0] = 1  # [UNK]
        yield [part.tolist() for part in np.split(ids, np.cumsum(lengths)[:-1])]


def geometric(key: np.ndarray, counter, mean: int) -> np.ndarray:
    uniform = uniform_float(bits64(key, counter))
    below = np.cumprod(np.full(20 * mean, 1 - 1 / mean))
    return 1 + (uniform[:, None] < below).sum(axis=1)


@functools.cache
def shared_store() -> Store:
    """2,000 training documents in several shards, 40 held out."""
    folder = Path(tempfile.mkdtemp(prefix="bertjax-stream-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return write_store(
        folder / "store",
        make_tokenizer(),
        make_documents(2000, seed=1),
        make_documents(40, seed=2),
        shard_tokens=100_000,
    )


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
