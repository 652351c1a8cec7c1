"""The attention kernels beside XLA's attention: memory as compiled for a chip, time on a device.

    python -m benchmarks.attention_kernel --compile=v5e:2x2     # or v6e:2x2: libtpu, no TPU
    python -m benchmarks.attention_kernel --compile=h100        # jax's CUDA wheels, no GPU
    python -m benchmarks.attention_kernel --check --time        # on the GPU or TPU of this machine

Each adds its part to benchmarks/results/attention_kernel.json. `--compile` takes a stack of layers
that are projections and attention (no feed-forward, no LayerNorm), scanned, bfloat16, dropout 0.1,
and their gradients by weights and input, on one device. What H100 needs, installed and in the
environment, stands at the head of benchmarks/h100.py.
`--check` compares output and gradients of both paths with those of NumPy in float64
(tests/helpers/attention_reference.py), and the mask to the bit; it ends with 1 where the kernels
are off.
`--time` is of forward and backward of one attention; the two paths take turns, the least counts.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import SingleDeviceSharding

from benchmarks import h100
from benchmarks.harness import Benchmark, cpu, cpu_name, nested
from bertjax.models.attention import dot_product_attention
from bertjax.models.kernels.fused_attention import fused_attention
from bertjax.models.visibility import Visibility
from bertjax.plan.topology import open_target
from bertjax.training.compilation import program_bytes

sys.path.append(str(Path(__file__).parent.parent / "tests" / "helpers"))

import attention_reference

RATE = 0.1


def by_kernels(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    visibility: Visibility,
    row_keys: jax.Array | None,
    dropout_rate: float,
) -> jax.Array:
    """`fused_attention`, called like `dot_product_attention`."""
    return fused_attention(jnp.stack((q, k, v), axis=2), visibility, row_keys, dropout_rate)


PATHS: dict[str, Callable[..., jax.Array]] = {
    "xla": functools.partial(dot_product_attention, dropout_rate=RATE),
    "remat": jax.checkpoint(
        functools.partial(dot_product_attention, dropout_rate=RATE), prevent_cse=False
    ),
    "pallas": functools.partial(by_kernels, dropout_rate=RATE),
}
SHAPES = {  # layers, rows, length, heads, columns of a head
    "BASE, 64 x 128": (12, 64, 128, 12, 64),
    "BASE, 16 x 512": (12, 16, 512, 12, 64),
    "LARGE, 16 x 512": (24, 16, 512, 16, 64),
}


def options(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    parser.add_argument("--compile", metavar="CHIP", help="v5e:2x2, v6e:2x2, ... or h100")
    parser.add_argument("--check", action="store_true", help="on the device of this machine")
    parser.add_argument("--time", action="store_true", help="on the device of this machine")
    parser.add_argument(
        "--paths",
        default=",".join(PATHS),
        help="of attention; libtpu 0.0.42.1 crashes where it compiles remat for v6e",
    )


def measure(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Compiles, times or checks, and prints."""
    flags = os.environ.get("XLA_FLAGS", "")
    paths = {name: PATHS[name] for name in args.paths.split(",")}
    if args.compile:
        rows = compile_all(args.compile, paths)
        # Where it compiles no device is opened.
        what = {"what": "compiled", "chip": args.compile, "device": cpu()}
        yield {**what, "flags": flags, "rows": rows}
    if not args.check and not args.time:
        return
    device = jax.devices()[0]
    kind = cpu_name() if device.platform == "cpu" else device.device_kind
    if args.time:
        if device.platform == "cpu":
            print("on a CPU the kernels are interpreted: there is nothing to time")
        else:
            yield {"what": "timed", "chip": kind, "flags": flags, "rows": time_all(paths)}
    if args.check:
        rows = check_all()
        yield {"what": "checked", "chip": kind, "flags": flags, "rows": rows}
        if not all(row["passes"] for row in rows):
            raise SystemExit("the kernels are off: see the rows that do not pass")


def compile_all(chip: str, paths: dict[str, Callable[..., jax.Array]]) -> list[dict[str, Any]]:
    """Bytes of temporary memory of the stack of layers, by shape and path."""
    device = h100.device() if chip == "h100" else open_target(chip, 1).devices[0]
    sharding = SingleDeviceSharding(device)

    def abstract(shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    found = []
    for shape_name, (layers, b, t, h, k) in SHAPES.items():
        for path, attend in paths.items():
            d = h * k
            started = time.monotonic()
            compiled = (
                jax.jit(functools.partial(gradients, attend, h))
                .lower(
                    abstract((layers, 4, d, d), jnp.bfloat16),
                    abstract((b, t, d), jnp.bfloat16),
                    Visibility(abstract((b, t), jnp.int32)),
                    abstract((layers, b), jax.random.key(0).dtype),
                )
                .compile()
            )
            row = {
                "shape": shape_name,
                "path": path,
                "temporary_bytes": program_bytes(compiled)["temporary"],
                "compile_seconds": round(time.monotonic() - started, 1),
            }
            print(json.dumps(row), flush=True)
            found.append(row)
    return found


def gradients(
    attend: Callable[..., jax.Array],
    num_heads: int,
    kernels: jax.Array,
    x: jax.Array,
    visibility: Visibility,
    row_keys: jax.Array,
) -> Any:
    """Gradients of layers of projections and attention by their kernels [layers, 4, d, d] and x."""

    def layer(x: jax.Array, inputs: Any) -> tuple[jax.Array, None]:
        kernels, row_keys = inputs
        q, k, v = ((x @ kernels[i]).reshape(*x.shape[:2], num_heads, -1) for i in range(3))
        context = attend(q, k, v, visibility, row_keys)
        return x + context.reshape(x.shape) @ kernels[3], None

    def loss(kernels: jax.Array, x: jax.Array) -> jax.Array:
        return jnp.sum(
            jnp.square(jax.lax.scan(layer, x, (kernels, row_keys))[0]), dtype=jnp.float32
        )

    return jax.grad(loss, argnums=(0, 1))(kernels, x)


def time_all(
    paths: dict[str, Callable[..., jax.Array]], calls: int = 20, rounds: int = 10
) -> list[dict[str, Any]]:
    """Seconds of forward and backward of one attention, by shape and path."""
    found = []
    for shape_name, (_, b, t, h, k) in SHAPES.items():
        rng = np.random.default_rng(0)
        q, key, v, gradient = (
            jnp.asarray(rng.normal(size=(b, t, h, k)), jnp.bfloat16) for _ in range(4)
        )
        visibility = Visibility(jnp.ones((b, t), jnp.int32))
        row_keys = jax.random.split(jax.random.key(0), b)
        steps = {
            path: jax.jit(functools.partial(both_passes, attend)) for path, attend in paths.items()
        }
        inputs = (q, key, v, visibility, row_keys, gradient)
        for step in steps.values():
            jax.block_until_ready(step(*inputs))
        least = dict.fromkeys(steps, float("inf"))
        for _ in range(rounds):
            for path, step in steps.items():
                started = time.perf_counter()
                for _ in range(calls):
                    results = step(*inputs)
                jax.block_until_ready(results)
                least[path] = min(least[path], (time.perf_counter() - started) / calls)
        for path, seconds in least.items():
            row = {"shape": shape_name, "path": path, "seconds": seconds}
            print(json.dumps(row), flush=True)
            found.append(row)
    return found


def check_all() -> list[dict[str, Any]]:
    """Errors of both paths against float64, by length, dropout and dtype; the mask to the bit.

    An error is the norm of the difference over the norm of the reference, the largest of output,
    dq, dk and dv. The kernels pass where theirs is within the dtype's rounding and not above 1.5
    times that of XLA's path.
    """
    found: list[dict[str, Any]] = []
    rows, heads, columns = 2, 2, 64
    for length in (64, 128, 384, 512):
        rng = np.random.default_rng(length)
        shape = (rows, length, heads, columns)
        keys = jax.random.split(jax.random.key(length), rows)
        # Packed: several segments, then padding.
        cuts = np.sort(rng.choice(np.arange(1, length), (rows, 3)))
        segment_ids = (1 + (np.arange(length) >= cuts[:, :, None]).sum(1)).astype(np.int32) % 4
        visibility = Visibility(jnp.asarray(segment_ids), packed=True)
        real = (segment_ids > 0)[:, :, None, None]
        for rate in (0.0, RATE):
            keep = attention_reference.kept(keys, heads, length, rate)
            for dtype in ("float32", "bfloat16"):
                q, k, v, gradient = (
                    jnp.asarray(rng.normal(size=shape) * real, jnp.dtype(dtype)) for _ in range(4)
                )
                expected = attention_reference.reference(q, k, v, gradient, segment_ids, keep, rate)
                errors = {}
                for path, attend in (("xla", dot_product_attention), ("pallas", by_kernels)):
                    run = jax.jit(
                        functools.partial(both_passes, functools.partial(attend, dropout_rate=rate))
                    )
                    errors[path] = max(
                        float(np.linalg.norm((np.float64(a) - b) * real) / np.linalg.norm(b * real))
                        for a, b in zip(
                            run(q, k, v, visibility, keys, gradient),
                            expected,
                            strict=True,
                        )
                    )
                rounding = float(jnp.finfo(dtype).eps)
                found.append(
                    {
                        "length": length,
                        "dropout_rate": rate,
                        "dtype": dtype,
                        "errors": errors,
                        "passes": errors["pallas"] < 4 * rounding
                        and errors["pallas"] < 1.5 * errors["xla"] + rounding,
                    }
                )
                print(json.dumps(found[-1]), flush=True)
    length = 128
    keys = jax.random.split(jax.random.key(1), rows)
    keep = attention_reference.kept(keys, heads, length, RATE)
    zeros = jnp.zeros((rows, length, heads, columns), jnp.float32)
    ones = Visibility(jnp.ones((rows, length), jnp.int32))
    attend = functools.partial(by_kernels, dropout_rate=RATE)
    halves = []
    for begin in range(0, length, columns):  # heads no wider than those of a model
        # Equal scores, and values that tell the key: what a query gets is its line of the mask.
        unit = jnp.eye(length)[:, None, begin : begin + columns]
        unit = jnp.broadcast_to(unit, zeros.shape)
        output, _, _, dv = both_passes(attend, zeros, zeros, unit, ones, keys, unit)
        halves.append((np.moveaxis(output, 2, 1) != 0, np.moveaxis(dv, 2, 1) != 0))
    forward, backward = (np.concatenate(half, axis=3) for half in zip(*halves, strict=True))
    masks = (forward, backward.swapaxes(2, 3))
    found.append(
        {
            "mask_bits_that_differ": [int((mask != keep).sum()) for mask in masks],
            "passes": all(np.array_equal(mask, keep) for mask in masks),
        }
    )
    print(json.dumps(found[-1]), flush=True)
    return found


def both_passes(
    attend: Callable[..., jax.Array],
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    visibility: Visibility,
    row_keys: jax.Array,
    gradient: jax.Array,
) -> Any:
    """The output of an attention and its gradients."""
    output, backward = jax.vjp(lambda *x: attend(*x, visibility, row_keys), q, k, v)
    return output, *backward(gradient)


BENCHMARK = Benchmark(measure, "attention_kernel.json", options, keep=nested("what", "chip"))

if __name__ == "__main__":
    BENCHMARK.main()
