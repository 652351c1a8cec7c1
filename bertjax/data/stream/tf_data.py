"""Batches made ahead of time in the background: tf.data calls the reader from several threads.

Without TensorFlow a pool of threads does the same, and logs it. Nothing here is random: the number
of a batch determines its positions. So a stream opens at any position at once, and TensorFlow's
version cannot change its content.
"""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import functools
import gc
import importlib.util
import logging
import os
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from bertjax.cores import num_cores
from bertjax.data.stream.reader import Batch, Rows
from bertjax.errors import EXIT_FAILED, BertjaxError

# Tokens made by one call, 2,048 rows of 128. With fewer, NumPy's calls are costly: calls for 32
# rows take nine times as long per row. With more, the arrays do not fit the cache.
_BLOCK_TOKENS = 2**18


class StreamError(BertjaxError, RuntimeError):
    """The reader failed in the background; the message names the positions, the cause follows."""

    exit_code = EXIT_FAILED
    keeps_traceback = True


class BatchStream(Iterator[Batch], contextlib.AbstractContextManager["BatchStream"]):
    """Iterates endlessly over batches, from any position; a context manager.

    `close` stops the threads: an interpreter that ends under a running tf.data iterator can hang.
    A stream that is dropped or still open at exit closes itself.
    """

    def __init__(
        self,
        reader: Rows,
        *,
        global_batch_size: int,
        offsets: np.ndarray | None = None,
        position: int = 0,
        num_threads: int = 0,
        prefetch_batches: int = 4,
    ):
        """Starts making batches.

        Args:
            reader: makes the rows.
            global_batch_size: rows of a batch over all processes.
            offsets: integer [b], this process's rows of each global batch; None = all of them.
                Batch k has the rows at position + k * global_batch_size + offsets.
            position: first row of the first global batch: the whole state of a stream.
            num_threads: calls at the same time; 0 = one per core, at most 16.
            prefetch_batches: least number of batches made ahead.

        Raises:
            ValueError: an offset lies outside the global batch, or there is none.
        """
        offsets = np.arange(global_batch_size) if offsets is None else np.asarray(offsets)
        if not len(offsets) or offsets.min() < 0 or offsets.max() >= global_batch_size:
            raise ValueError(
                f"offsets {offsets} do not lie in a global batch of {global_batch_size} rows"
            )
        batch_size = len(offsets)
        # Several small batches are made by one call and handed out as slices of it.
        self._batches_per_block = max(1, _BLOCK_TOKENS // (batch_size * reader.max_length))
        self._batch_size = batch_size
        begins = np.arange(self._batches_per_block)[:, None] * global_batch_size
        in_block = (position + begins + offsets).ravel()
        stride = self._batches_per_block * global_batch_size
        num_threads = num_threads or min(16, num_cores())
        pipeline = _TensorFlowPipeline if _has_tensorflow() else _ThreadPipeline
        self._pipeline = pipeline(
            reader,
            positions=lambda block: int(block) * stride + in_block,
            num_threads=num_threads,
            prefetch_blocks=-(-prefetch_batches // self._batches_per_block),
        )
        # Also called when the stream is collected and at exit, before TensorFlow goes.
        self._finalizer = weakref.finalize(self, self._pipeline.close)
        self._block: Batch = {}
        self._next_batch = self._batches_per_block

    def __next__(self) -> Batch:
        """The next batch: what `rows` of the reader returns, not to be written to.

        Raises:
            StreamError: the reader failed.
            StopIteration: the stream is closed.
        """
        if not self._finalizer.alive:
            raise StopIteration
        if self._next_batch == self._batches_per_block:
            self._block = self._pipeline.next_block()
            self._next_batch = 0
        begin = self._next_batch * self._batch_size
        self._next_batch += 1
        return {name: rows[begin : begin + self._batch_size] for name, rows in self._block.items()}

    def close(self) -> None:
        """Stops the background work and waits for it; may be called twice."""
        self._finalizer()

    def __exit__(self, *exception: object) -> None:
        self.close()


class _TensorFlowPipeline:
    """Blocks of rows in order, made by the threads of tf.data."""

    def __init__(
        self,
        reader: Rows,
        positions: Callable[[int], np.ndarray],
        num_threads: int,
        prefetch_blocks: int,
    ):
        tf = _import_tensorflow()
        self._positions = positions
        self._blocks_taken = 0
        empty = reader.rows(np.zeros(0, np.int64))
        self._names = tuple(empty)
        # By block. An exception must not reach TensorFlow, which would log its traceback and pass
        # on only its text.
        self._errors: dict[int, Exception] = {}
        self._closing = threading.Event()
        errors, closing = self._errors, self._closing

        def make_block(block: np.ndarray) -> list[np.ndarray]:
            rows = empty
            if not closing.is_set():  # queued blocks need not be made
                try:
                    rows = reader.rows(positions(int(block)))
                except Exception as error:
                    errors[int(block)] = error
            return list(rows.values())

        dtypes = [array.dtype for array in empty.values()]
        options = tf.data.Options()
        options.deterministic = True
        options.autotune.enabled = False
        options.threading.private_threadpool_size = num_threads
        dataset = tf.data.Dataset.range(np.iinfo(np.int64).max)
        dataset = dataset.map(
            tf.autograph.experimental.do_not_convert(
                lambda block: tf.numpy_function(make_block, [block], dtypes, stateful=False)
            ),
            num_parallel_calls=num_threads,
            deterministic=True,
        )
        dataset = dataset.prefetch(prefetch_blocks).with_options(options)
        self._iterator = dataset.as_numpy_iterator()

    def next_block(self) -> Batch:
        """The next block; its arrays are read-only."""
        block = self._blocks_taken
        if block not in self._errors:
            arrays = next(self._iterator)
        if block in self._errors:
            raise _stream_error(self._positions(block), self._errors[block])
        self._blocks_taken += 1
        return dict(zip(self._names, arrays, strict=True))

    def close(self) -> None:
        """Deletes the iterator, which waits for its threads."""
        self._closing.set()
        self._iterator = None
        gc.collect()  # the dataset's functions are in reference cycles


class _ThreadPipeline:
    """The same without TensorFlow."""

    def __init__(
        self,
        reader: Rows,
        positions: Callable[[int], np.ndarray],
        num_threads: int,
        prefetch_blocks: int,
    ):
        self._make_block = lambda block: reader.rows(positions(block))
        self._positions = positions
        self._pool = concurrent.futures.ThreadPoolExecutor(num_threads, "bertjax-stream")
        self._blocks_taken = 0
        self._ahead: collections.deque[concurrent.futures.Future[Batch]] = collections.deque()
        self._num_ahead = num_threads + prefetch_blocks

    def next_block(self) -> Batch:
        """The next block; its arrays are read-only."""
        while len(self._ahead) < self._num_ahead:
            block = self._blocks_taken + len(self._ahead)
            self._ahead.append(self._pool.submit(self._make_block, block))
        try:
            rows = self._ahead[0].result()
        except Exception as error:
            raise _stream_error(self._positions(self._blocks_taken), error) from error
        self._ahead.popleft()
        self._blocks_taken += 1
        for array in rows.values():
            array.flags.writeable = False
        return rows

    def close(self) -> None:
        """Waits for the blocks in progress; queued ones are dropped."""
        self._pool.shutdown(cancel_futures=True)


def _stream_error(positions: np.ndarray, error: Exception) -> StreamError:
    found = StreamError(
        f"making the rows at positions {positions[0]} to {positions[-1]} failed: "
        f"{type(error).__name__}: {error}"
    )
    found.__cause__ = error
    return found


# Set only during the import of TensorFlow, which then imports Keras lazily. Keras takes half of the
# import time. Later it is unset, so tf.keras is not changed.
_LEGACY_KERAS = "TF_USE_LEGACY_KERAS"


@functools.cache
def _has_tensorflow() -> bool:
    if importlib.util.find_spec("tensorflow") is not None:
        return True
    logging.getLogger(__name__).warning(
        "TensorFlow is not installed: batches are made by a pool of threads instead of tf.data"
    )
    return False


def _import_tensorflow() -> Any:
    """TensorFlow, without the GPUs: its runtime would take their memory from JAX.

    Raises:
        RuntimeError: the process already uses TensorFlow on a GPU.
    """
    # It only feeds rows here, and would print lines about floating point twice.
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    given = os.environ.get(_LEGACY_KERAS)
    os.environ[_LEGACY_KERAS] = "1"
    try:
        import tensorflow as tf
    finally:
        del os.environ[_LEGACY_KERAS]
        if given is not None:
            os.environ[_LEGACY_KERAS] = given
    try:
        tf.config.set_visible_devices([], "GPU")
    except RuntimeError as error:
        raise RuntimeError(
            "TensorFlow already runs on the GPUs of this process, and would keep their memory "
            "from JAX; call tf.config.set_visible_devices([], 'GPU') before TensorFlow is used"
        ) from error
    return tf
