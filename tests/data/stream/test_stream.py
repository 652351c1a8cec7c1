"""The tf.data pipeline: the reader's rows, on time, and a clean end."""

import gc
import subprocess
import sys
import threading
import time
import weakref

import numpy as np
import pytest
import tensorflow as tf
from folders import HELPERS
from stream_store import make_reader, shared_store

from bertjax.data.stream.tf_data import BatchStream, StreamError


@pytest.fixture(scope="module", params=["tf.data", "threads"])
def pipeline(request):
    """Both ways to make batches: `threads` is what is used where TensorFlow is not installed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "bertjax.data.stream.tf_data._has_tensorflow", lambda: request.param == "tf.data"
        )
        yield request.param


@pytest.fixture(scope="module")
def reader(pipeline):
    return make_reader(max_length=64, max_predictions=10)


def assert_rows(batch, reader, positions):
    for name, expected in reader.rows(positions).items():
        assert batch[name].dtype == expected.dtype
        assert np.array_equal(batch[name], expected), name


@pytest.mark.parametrize("position", [0, 3, 10**7])
@pytest.mark.parametrize(("batch_size", "processes"), [(8, 1), (96, 2), (5000, 1)])
def test_batches_are_the_readers_rows(reader, batch_size, processes, position):
    """Small batches come from one block, large ones are a block each; several blocks pass."""
    size = batch_size * processes
    for process in range(processes):
        # Every other row, as where the devices of two processes take turns along the mesh.
        offsets = process + processes * np.arange(batch_size)
        with BatchStream(
            reader, global_batch_size=size, offsets=offsets, position=position, num_threads=2
        ) as stream:
            count = 10_000 // batch_size
            for k in range(count):
                batch = next(stream)
                if k % 100 in (0, 1) or k == count - 1:
                    assert_rows(batch, reader, position + k * size + offsets)


def test_first_batch_far_into_the_stream_is_quick(reader):
    begin = time.perf_counter()
    with BatchStream(reader, global_batch_size=256, position=10**7) as stream:
        batch = next(stream)
        assert time.perf_counter() - begin < 1
    assert_rows(batch, reader, 10**7 + np.arange(256))


@pytest.mark.parametrize("offsets", [[15, 16], [-1, 0], []])
def test_share_outside_the_global_batch_is_refused(reader, offsets):
    with pytest.raises(ValueError, match="do not lie in a global batch of 16 rows"):
        BatchStream(reader, global_batch_size=16, offsets=np.array(offsets))


def test_no_gpu_is_left_to_tensorflow(reader):
    with BatchStream(reader, global_batch_size=8):
        assert tf.config.get_visible_devices("GPU") == []


class _FailingReader:
    """Fails from a position on."""

    def __init__(self, reader, position):
        self.max_length = reader.max_length
        self._reader = reader
        self._position = position

    def rows(self, positions):
        if len(positions) and positions.max() >= self._position:
            raise IndexError("token 7 of shard 3 is missing")
        return self._reader.rows(positions)


def test_a_failure_is_raised_at_its_batch_and_stays(reader, capfd):
    failing = _FailingReader(reader, 3 * 4096)
    with BatchStream(failing, global_batch_size=4096, num_threads=2) as stream:
        for _ in range(3):
            next(stream)
        for _ in range(2):
            with pytest.raises(
                StreamError, match="positions 12288 to 16383 failed: IndexError: token 7 of shard 3"
            ) as raised:
                next(stream)
            assert isinstance(raised.value.__cause__, IndexError)
    assert "Traceback" not in capfd.readouterr().err


def test_close_ends_the_stream_and_its_threads(reader):
    before = threading.active_count()
    stream = BatchStream(reader, global_batch_size=8, num_threads=2)
    next(stream)
    stream.close()
    stream.close()
    with pytest.raises(StopIteration):
        next(stream)
    assert threading.active_count() == before


def test_a_dropped_stream_closes_itself(reader):
    stream = BatchStream(reader, global_batch_size=8, num_threads=2)
    next(stream)
    pipeline = weakref.ref(stream._pipeline)
    del stream
    gc.collect()
    assert pipeline() is None


@pytest.mark.slow
def test_interpreters_end():
    """Closed or not; without the finaliser each of them hangs in TensorFlow's threads."""
    hows = ["close", "open"] * 6 + ["raise"] * 2
    result = subprocess.run(
        [sys.executable, HELPERS / "stream_exits.py", shared_store().path, *hows],
        capture_output=True,
        text=True,
        timeout=500,
        check=True,
    )
    statuses = {"close": 0, "open": 0, "raise": 3}
    expected = [f"{how} {statuses[how]}" for how in hows]
    assert result.stdout.splitlines() == expected, result.stderr[-2000:]


@pytest.mark.slow
def test_tensorflow_comes_without_keras_which_stays_within_reach():
    code = (
        "import os, sys; sys.path.insert(0, 'tests/helpers');"
        "from stream_store import make_reader; from bertjax.data.stream.tf_data import BatchStream;"
        "stream = BatchStream(make_reader(), global_batch_size=2); next(stream); stream.close();"
        "print('keras' in sys.modules, 'TF_USE_LEGACY_KERAS' in os.environ);"
        "import tensorflow as tf; print(tf.keras.__version__.split('.')[0])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert result.stdout.split() == ["False", "False", "3"]


def test_without_tensorflow_threads_are_used_and_named():
    code = (
        "import sys; sys.path.insert(0, 'tests/helpers');"
        "import importlib.util as u; find = u.find_spec;"
        "u.find_spec = lambda name, *a: None if name == 'tensorflow' else find(name, *a);"
        "from stream_store import make_reader; from bertjax.data.stream.tf_data import BatchStream;"
        "print(next(BatchStream(make_reader(), global_batch_size=2))['input_ids'].shape);"
        "print('tensorflow' in sys.modules)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert result.stdout.split() == ["(2,", "128)", "False"]
    assert "TensorFlow is not installed" in result.stderr
