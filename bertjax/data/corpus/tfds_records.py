"""Data sets of tensorflow-datasets: opening one, and its records as plain Python values."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from bertjax.data.corpus.blocks import CorpusError


def open_tfds(name: str, data_dir: str | None) -> tuple[Any, Any]:
    """Returns the builder and the information about the split of `tfds:NAME/CONFIG:SPLIT`.

    Downloads and prepares the data set if that was not done before.

    Raises:
        CorpusError: the name has another form, or TFDS cannot open it.
    """
    import tensorflow as tf
    import tensorflow_datasets as tfds

    with contextlib.suppress(RuntimeError):  # too late: the caller already uses TensorFlow
        tf.config.set_visible_devices([], "GPU")  # text needs none, and another run may
    data_set, colon, split = name.removeprefix("tfds:").rpartition(":")
    if not colon or not data_set or not split:
        raise CorpusError(f"{name}: expected tfds:NAME/CONFIG:SPLIT")
    try:
        builder = tfds.builder(data_set, data_dir=data_dir)
        builder.download_and_prepare()
        information = builder.info.splits[split]
    except Exception as error:  # TFDS raises many kinds, down to HTTP errors
        reason = str(error).partition("\n")[0]
        raise CorpusError(f"{name}: TFDS cannot open it: {reason}") from error
    return builder, information


def read_tfds_records(name: str, data_dir: str | None = None) -> Iterator[dict[str, Any]]:
    """The records of `tfds:NAME/CONFIG:SPLIT`, in order.

    Text is str, numbers are Python's, sequences are lists. A class label is its name, or None if it
    is hidden (-1). Other TFDS features are returned unchanged.

    Raises:
        CorpusError: see `open_tfds`.
    """
    import tensorflow_datasets as tfds

    builder, _ = open_tfds(name, data_dir)
    features = dict(builder.info.features)
    labels = {k: f for k, f in features.items() if isinstance(f, tfds.features.ClassLabel)}
    config = tfds.ReadConfig(interleave_cycle_length=1)  # one file after the other
    split = name.rpartition(":")[2]
    examples = builder.as_dataset(split, shuffle_files=False, read_config=config)
    for example in tfds.as_numpy(examples):
        record = {key: _plain(value) for key, value in example.items()}
        for key, feature in labels.items():
            record[key] = feature.int2str(record[key]) if record[key] >= 0 else None
        yield record


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, np.ndarray):
        return [_plain(part) for part in value] if value.ndim else _plain(value.item())
    if isinstance(value, np.generic):
        return value.item()
    return value
