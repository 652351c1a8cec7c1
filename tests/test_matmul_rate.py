"""The rate of a matrix product, which says how well a step uses a device of no known peak."""

import functools
import time

import jax
import jax.numpy as jnp

from bertjax.models.layers import product_precision
from bertjax.training.compilation import measured_matmul_flops

SIZE = 1_024


def seconds_of_one_product():
    """The fastest of ten, each waited for."""
    x = jnp.ones((SIZE, SIZE), jnp.float32)
    multiply = jax.jit(functools.partial(jnp.matmul, precision=product_precision("float32")))
    multiply(x, x).block_until_ready()
    times = []
    for _ in range(10):
        started = time.perf_counter()
        multiply(x, x).block_until_ready()
        times.append(time.perf_counter() - started)
    return min(times)


def test_queued_products_are_all_waited_for():
    """A clock that stopped before the last product was done would find a rate many times as high.

    It finds hundreds of times as high a rate as here; one that counted one product, a twentieth. A
    factor of ten leaves room for what else the machine does.
    """
    single = 2 * SIZE**3 / seconds_of_one_product()
    assert single / 10 < measured_matmul_flops("float32", SIZE, turns=3) < single * 10


def test_products_stay_finite_in_every_type():
    """Entries of the twentieth product are as large as the first's: no overflow, no zeros."""
    for dtype in ("float32", "bfloat16"):
        assert measured_matmul_flops(dtype, 64) > 0
