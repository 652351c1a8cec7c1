"""A tokenizer, a store and a model for tests: small, random and the same on every machine.

import bertjax
from bertjax import testing

def test_my_code(tmp_path):
    store = testing.make_store(tmp_path / "store")  # 60 documents to train on, 9 held out
    testing.make_workdir(tmp_path / "model", head="classification", labels=("bad", "good"))
    model = bertjax.load(tmp_path / "model")

Nothing is read from the network, and each call takes seconds at most. The model has learned
nothing: what it answers is arbitrary, but the same for the same seed.
"""

from __future__ import annotations

import os
import string
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from bertjax.config import ModelConfig
from bertjax.data.counter_rng import bits64, keys_at, stream_key, uniform_float, uniform_int
from bertjax.data.store.store import Store
from bertjax.data.store.store_writer import SHARD_TOKENS, write_store
from bertjax.data.tokenizers.tokenizer import WordPieceTokenizer
from bertjax.data.tokenizers.vocabulary import Tokenizer
from bertjax.heads import HEADS

VOCAB_SIZE = 1_000
_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_UNKNOWN = 1
_CONTINUES_EVERY = 4  # one piece in four continues a word
_UNKNOWN_EVERY = 97  # one token in 97 of the documents is [UNK]


def make_tokenizer() -> WordPieceTokenizer:
    """Returns an uncased WordPiece tokenizer with `VOCAB_SIZE` pieces.

    It knows all printable ASCII characters, so English text becomes single characters and no
    [UNK]. One piece in four continues a word.
    """
    in_words = string.ascii_lowercase + string.digits
    first, later = iter(in_words + string.punctuation), iter(in_words)
    pieces = []
    for i in range(len(_SPECIAL), VOCAB_SIZE):
        continues = i % _CONTINUES_EVERY == 0
        piece = next(later if continues else first, f"w{i}")
        pieces.append(f"##{piece}" if continues else piece)
    return WordPieceTokenizer([*_SPECIAL, *pieces], lower_case=True)


def make_documents(
    count: int, seed: int, mean_sentences: int = 12, mean_tokens: int = 22
) -> Iterator[list[list[int]]]:
    """Yields documents as `write_store` takes them: lists of sentences, lists of token ids.

    Args:
      count: number of documents.
      seed: of the keyed generator; the same documents for the same seed.
      mean_sentences: per document; the numbers follow a geometric distribution.
      mean_tokens: per sentence; likewise.

    Yields:
      Ids below `VOCAB_SIZE`. Of the special tokens only [UNK] occurs.
    """
    for document in keys_at(stream_key(seed), np.arange(count)):
        key = np.array([document])
        sentences = _geometric(key, np.array([1]), mean_sentences)[0]
        lengths = _geometric(key, 2 + np.arange(sentences), mean_tokens)
        bits = bits64(key, 10_000 + np.arange(lengths.sum()))
        ids = len(_SPECIAL) + uniform_int(bits, VOCAB_SIZE - len(_SPECIAL))
        ids[ids % _UNKNOWN_EVERY == 0] = _UNKNOWN
        yield [part.tolist() for part in np.split(ids, np.cumsum(lengths)[:-1])]


def _geometric(key: np.ndarray, counters: np.ndarray, mean: int) -> np.ndarray:
    """One number, at least 1, per counter."""
    uniform = uniform_float(bits64(key, counters))
    below = np.cumprod(np.full(20 * mean, 1 - 1 / mean))
    numbers: np.ndarray = 1 + (uniform[:, None] < below).sum(axis=1)
    return numbers


def make_store(
    folder: str | os.PathLike[str],
    num_documents: int = 60,
    num_heldout: int = 9,
    seed: int = 1,
    shard_tokens: int = SHARD_TOKENS,
) -> Store:
    """Writes a store of `make_documents` with `make_tokenizer` and returns it.

    Args:
      folder: a new folder, or one without a store.
      num_documents: to train on.
      num_heldout: held out for evaluation.
      seed: of the training documents; that of the held-out ones is one more.
      shard_tokens: a file of token ids ends when it has this many.

    Raises:
      StoreError: the folder has a store already.
    """
    return write_store(
        folder,
        make_tokenizer(),
        make_documents(num_documents, seed),
        make_documents(num_heldout, seed + 1),
        shard_tokens=shard_tokens,
    )


def make_workdir(
    folder: str | os.PathLike[str],
    head: str = "pretraining",
    labels: Sequence[str] = (),
    seed: int = 0,
    tokenizer: Tokenizer | None = None,
) -> ModelConfig:
    """Writes a workdir with a random model, which `bertjax.load` opens and fine-tuning starts from.

    The model has 2 layers of width 16 with 2 heads and reads up to 64 tokens. Its initial weights
    are wide, so that different texts get different outputs.

    Args:
      folder: a new folder, or an empty one.
      head: a key of `bertjax.heads.HEADS`.
      labels: names of the labels; heads that need labels get their fewest, without names, when
        none are given.
      seed: of the parameters.
      tokenizer: with at most `VOCAB_SIZE` pieces; None = `make_tokenizer()`.

    Returns:
      The configuration of the model.

    Raises:
      ValueError: the labels do not fit the head.
    """
    import jax  # which tokenizers and stores do not need

    from bertjax.models import init_params
    from bertjax.weights.bertjax_checkpoint import write_checkpoint
    from bertjax.weights.weights import Weights

    record = HEADS[head]
    num_labels = len(labels) or record.fewest_labels
    if labels and (not record.labels_have_names or num_labels < record.fewest_labels):
        raise ValueError(
            f"labels = {tuple(labels)!r} do not fit head = {head!r}: "
            + (
                f"give at least {record.fewest_labels}"
                if record.labels_have_names
                else "its labels have no names; leave them out"
            )
        )
    config = ModelConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=16,
        num_layers=2,
        num_heads=2,
        intermediate_size=32,
        max_positions=64,
        initializer_range=0.2,
        dtype="float32",
        head=head,
        num_labels=num_labels,
        direction="left_to_right" if record.predicts_next else "bidirectional",
        next_sentence=not record.predicts_next,
    )
    params = jax.tree.map(np.asarray, init_params(config, seed))
    weights = Weights("drawn", config, params, tokenizer or make_tokenizer(), tuple(labels))
    write_checkpoint(weights, Path(folder))
    return config
