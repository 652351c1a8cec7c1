"""The rate of a matrix product, which says how well a step uses a device of no known peak."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bertjax.training import compilation
from bertjax.training.compilation import measured_matmul_flops


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_queue_is_twenty_products_one_after_the_other(dtype, monkeypatch):
    """What is waited for is the last, whose entries are as large as the first factor's."""
    queue, lasts = compilation._queue_products, []

    def counted(multiply, x):
        calls = []
        lasts.append((x, queue(lambda a, b: calls.append(a) or multiply(a, b), x)))
        assert len(calls) == 20
        assert len(set(map(id, calls))) == 20
        return lasts[-1][1]

    monkeypatch.setattr(compilation, "_queue_products", counted)
    assert measured_matmul_flops(dtype, 256, turns=2) > 0
    assert len(lasts) == 2
    for x, last in lasts:
        assert last.dtype == jnp.dtype(dtype)
        ratio = np.asarray(jnp.std(last) / jnp.std(x), np.float64)
        assert 0.1 < ratio < 10
        assert isinstance(last, jax.Array)
