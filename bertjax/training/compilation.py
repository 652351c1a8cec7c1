"""Compiles the train step ahead of time, with as many microbatches as the memory requires."""

from __future__ import annotations

import functools
import logging
import re
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import psutil
from jax.sharding import Mesh

from bertjax.config import Config, ConfigError, Phase
from bertjax.flops import peak_flops
from bertjax.models.layers import product_precision
from bertjax.models.rounded_product import speed_of_rounding
from bertjax.objectives.objective import Objective, make_objective
from bertjax.parallel.compile_once import compile_once
from bertjax.parallel.sharding import replicated
from bertjax.parameters import kept_values
from bertjax.training.input import AHEAD
from bertjax.training.optimizer import Optimizer
from bertjax.training.step import Batch, TrainState, train_step

_LOG = logging.getLogger(__name__)
USABLE = 0.9  # of the memory: the rest is for the runtime and fragmentation
# Other programs share the memory of a CPU, so a step may use half of it. More microbatches cost
# nothing there: a part of at most so many tokens fits the caches better than a larger one.
_USABLE_CPU, _TOKENS_CPU = 0.5, 2_048
_QUEUED_PRODUCTS = 20


class DoesNotFitError(ConfigError):
    """The step needs more memory than a device has.

    Attributes:
      needed_bytes: memory of the smallest program that was tried, or the least that any program
        needs if none was tried; 0 if the compiler does not say.
      num_microbatches: of that program.
    """

    def __init__(self, message: str, needed_bytes: int, num_microbatches: int):
        super().__init__(message)
        self.needed_bytes = needed_bytes
        self.num_microbatches = num_microbatches


def compile_train_step(
    config: Config,
    phase: Phase,
    objective: Objective,
    optimizer: Optimizer,
    abstract_state: TrainState,
    batch: Mapping[str, jax.ShapeDtypeStruct],
    mesh: Mesh,
    memory: int | None = None,
    first: int | None = None,
    rates: jax.Array | None = None,
) -> tuple[jax.stages.Compiled, int]:
    """Compiles the step of one phase for the mesh.

    With `config.num_microbatches` 0, takes the smallest number of parts whose program fits into a
    device's memory, as the compiler counts it. The number is first estimated from the activations
    and then checked. On CPUs it must fit half of the memory, in parts of at most 2,048 tokens, so
    that the memory seldom decides and runs are alike.

    Args:
      config: of the run, with `model` resolved.
      phase: has the rows of a batch and their length.
      objective: what the step minimises.
      optimizer: what the step updates with.
      abstract_state: shapes, dtypes and shardings of the state.
      batch: shapes, dtypes and shardings of one global batch.
      mesh: of the devices.
      memory: bytes of a device; None = ask the device, which must exist then.
      first: number to try first if the memory decides: that of the run that is resumed, although
        fewer may be enough now; None = estimate it.
      rates: a `rate_table`. Then the program reads its learning rates there, and one that this
        process has compiled already is taken. None = they are constants of the program.

    Returns:
      The compiled (state, batch, key) -> (state, metrics), or with `rates` (rates, state, batch,
      key) -> (state, metrics), which donates the state, and the number of microbatches.

    Raises:
      DoesNotFitError: not even one row per device and microbatch fits, or the given number of
        microbatches is too small.
    """
    if memory is None:
        memory = device_memory_bytes(mesh)
    on_cpu = mesh.devices.flat[0].platform == "cpu"
    limit = (_USABLE_CPU if on_cpu else USABLE) * memory
    rows = phase.global_batch_size // (mesh.shape["data"] * mesh.shape["fsdp"])  # a device
    waiting = _waiting_bytes(config, batch, on_cpu)
    batches = bytes_a_device(batch) + waiting
    fixed = bytes_a_device(abstract_state) + batches  # however the batch is cut
    if memory and not config.num_microbatches and fixed > USABLE * memory:
        raise DoesNotFitError(
            f"{phase.global_batch_size:,} rows of {phase.max_length} tokens, however they are cut, "
            f"need {(fixed - batches) / 1e9:.2f} GB per device for parameters and moments and "
            f"{batches / 1e9:.2f} GB for the batches that are made ahead, and a device has "
            f"{memory / 1e9:.2f} GB: "
            + (
                "take fewer rows (config.data.global_batch_size)"
                if batches > fixed / 2
                else "shard the parameters (config.mesh.fsdp) or take a smaller model"
            ),
            fixed,
            rows,
        )
    candidates = [n for n in range(first or 1, rows + 1) if rows % n == 0]
    if config.num_microbatches:
        candidates = [config.num_microbatches]
    elif memory and first is None:
        fitting = [
            n
            for n in candidates
            if waiting + _guessed_bytes(config, phase, abstract_state, rows / n) <= limit
            and not (on_cpu and rows / n * phase.max_length > _TOKENS_CPU and n < rows)
        ]
        candidates = candidates[candidates.index(fitting[0]) if fitting else -1 :]
    key = jax.ShapeDtypeStruct(
        (), jax.eval_shape(jax.random.key, 0).dtype, sharding=replicated(mesh)
    )
    while True:
        parts = candidates[0]
        started = time.monotonic()
        settings: Any = {"shard_optimizer": config.mesh.shard_optimizer}
        jit = functools.partial(
            jax.jit,
            out_shardings=(jax.tree.map(lambda x: x.sharding, abstract_state), replicated(mesh)),
        )
        compiled = None
        try:
            if rates is None:
                step = functools.partial(train_step, objective, optimizer, parts, **settings)
                compiled = jit(step, donate_argnums=0).lower(abstract_state, batch, key).compile()
            else:
                step = functools.partial(
                    _tabled_train_step, objective, optimizer, parts, **settings
                )
                lowered = jit(step, donate_argnums=1).lower(rates, abstract_state, batch, key)
                compiled = compile_once(lowered, mesh)
            needed = sum(program_bytes(compiled).values()) + waiting
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            needed = _bytes_wanted(str(error), bytes_a_device((abstract_state, batch)))
        _LOG.info(
            "compiled the step of %d rows x %d tokens in %d microbatch%s in %.1f s; "
            "%.2f GB per device%s",
            phase.global_batch_size,
            phase.max_length,
            parts,
            "" if parts == 1 else "es",
            time.monotonic() - started,
            needed / 1e9,
            f" of {memory / 1e9:.1f}" if memory else "",
        )
        if compiled is not None and (config.num_microbatches or not memory or needed <= limit):
            return compiled, parts
        if len(candidates) == 1:
            if compiled is not None and needed <= USABLE * memory:
                _LOG.warning(
                    "the step takes more than half of the memory that is available: another "
                    "program that needs it may end this one"
                )
                return compiled, parts
            raise _does_not_fit(phase, rows // parts, needed, memory, parts)
        # Memory beyond the fixed part is proportional to the rows of a part: the next that may fit.
        candidates = candidates[1:]
        may_fit = [n for n in candidates if fixed + (needed - fixed) * parts / n <= limit]
        if needed > fixed:
            candidates = candidates[candidates.index(may_fit[0]) if may_fit else -1 :]


def _tabled_train_step(
    objective: Objective,
    optimizer: Optimizer,
    num_microbatches: int,
    rates: jax.Array,
    state: TrainState,
    batch: Batch,
    key: jax.Array,
    **settings: Any,
) -> tuple[TrainState, dict[str, Any]]:
    """`train_step` with the learning rates of a table."""
    assert optimizer.with_schedule is not None
    tabled = optimizer.with_schedule(lambda step: rates[step])
    return train_step(objective, tabled, num_microbatches, state, batch, key, **settings)


def _does_not_fit(phase: Phase, rows: int, needed: int, memory: int, parts: int) -> DoesNotFitError:
    """The error of a step with `rows` rows per device and microbatch."""
    needs = f"{needed / 1e9:.2f} GB" if needed else "more"
    return DoesNotFitError(
        f"{phase.global_batch_size:,} rows of {phase.max_length} tokens, {rows:,} per device and "
        f"microbatch, need {needs}, and a device has {memory / 1e9:.2f} GB: take fewer rows "
        "(config.data.global_batch_size), more microbatches (config.num_microbatches), shard the "
        "parameters (config.mesh.fsdp), recompute (config.model.remat=layer) or shorten the rows",
        needed,
        parts,
    )


def _waiting_bytes(config: Config, batch: Mapping[str, jax.ShapeDtypeStruct], on_cpu: bool) -> int:
    """Bytes of waiting batches: those on the devices and, on a CPU, those made ahead."""
    return bytes_a_device(batch) * (AHEAD + (config.data.prefetch_batches if on_cpu else 0))


def may_not_fit(
    config: Config,
    phase: Phase,
    abstract_state: TrainState,
    batch: Mapping[str, jax.ShapeDtypeStruct],
    mesh: Mesh,
    memory: int,
) -> bool:
    """Whether a phase needs so much memory that only the compiler can tell if it fits.

    Uses the first estimate of `compile_train_step`, which may miss half of the memory.
    """
    rows = phase.global_batch_size // (mesh.shape["data"] * mesh.shape["fsdp"])
    part = rows / (config.num_microbatches or rows)
    needed = _guessed_bytes(config, phase, abstract_state, part)
    needed += _waiting_bytes(config, batch, mesh.devices.flat[0].platform == "cpu")
    return bool(memory) and needed > memory / 2


def _guessed_bytes(config: Config, phase: Phase, abstract_state: TrainState, rows: float) -> float:
    """First estimate of the memory of a step with `rows` rows per device and microbatch."""
    # The gradients are as large as the parameters.
    state = bytes_a_device(abstract_state) + 1.5 * bytes_a_device(abstract_state.params)
    return state + rows * activation_bytes(config, phase)


def device_memory_bytes(mesh: Mesh) -> int:
    """Memory that one device may use; on CPU its share of the host memory; 0 = not known."""
    device = mesh.local_devices[0]
    stats = device.memory_stats() or {}
    if "bytes_limit" in stats:
        return int(stats["bytes_limit"])
    if device.platform != "cpu":
        return 0
    # Available and not free memory, because the kernel releases cached files.
    return int(psutil.virtual_memory().available) // len(mesh.local_devices)


def estimate_step_seconds(config: Config, phase: Phase, mesh: Mesh) -> tuple[float, str]:
    """A lower bound of a step's time, and its derivation in words.

    Uses the FLOPs of the model and the device's peak. If the peak is not known, the rate of a
    matrix product is measured.
    """
    flops = phase.global_batch_size * make_objective(config.model).row_flops(phase)
    device = mesh.local_devices[0]
    rate = peak_flops(device.device_kind)
    source = f"the peak of {device.device_kind}"
    if rate is None:
        rate = _matmul_flops_here(config.model.dtype)
        if config.model.factors == "bfloat16":
            rate *= max(1.0, speed_of_rounding())
        source = "the rate of a matrix product timed here"
        if device.platform == "cpu":  # simulated devices share the cores that were timed
            rate /= len(mesh.local_devices)
    seconds = flops / (rate * mesh.size)
    return seconds, (
        f"{phase.global_batch_size} rows x {flops / phase.global_batch_size / 1e9:.1f} GFLOP at "
        f"{rate * mesh.size / 1e12:.3g} TFLOP/s, {source}"
    )


@functools.cache
def _matmul_flops_here(dtype: str) -> float:
    """Measured once, before the compiler runs at the same time."""
    return measured_matmul_flops(dtype, turns=3)


def measured_matmul_flops(dtype: str, size: int = 1_024, turns: int = 1) -> float:
    """Measures FLOP/s of a product of square matrices.

    Products are queued, and only the last is waited for, as in a training step: a wait after each
    would count the launch and the host's wake-up as arithmetic. Each product is a factor of the
    next, so they run one after the other, and the last is done when all are.

    Args:
      dtype: of factors and product.
      size: rows and columns.
      turns: how often to time the queue; the fastest counts.
    """
    # Random: with zeros and ones chips draw less power and run faster. Divided by the square root
    # of the size, so that entries keep their magnitude from product to product.
    values = np.random.default_rng(0).normal(size=(size, size)) / size**0.5
    x = jnp.asarray(values, jnp.dtype(dtype))
    multiply = jax.jit(functools.partial(jnp.matmul, precision=product_precision(dtype)))
    multiply(x, x).block_until_ready()
    times = []
    for _ in range(turns):
        started = time.perf_counter()
        _queue_products(multiply, x).block_until_ready()
        times.append(time.perf_counter() - started)
    return 2 * size**3 * _QUEUED_PRODUCTS / min(times)


def _queue_products(multiply: Callable[[Any, Any], Any], x: Any) -> Any:
    product = x
    for _ in range(_QUEUED_PRODUCTS):
        product = multiply(product, x)
    return product


def program_bytes(compiled: Any) -> dict[str, int]:
    """Memory of a program on one device, by kind; the sum is its peak."""
    usage = compiled.memory_analysis()
    return {
        "arguments": usage.argument_size_in_bytes,
        "outputs": usage.output_size_in_bytes,
        "aliased": -usage.alias_size_in_bytes,  # outputs that reuse the memory of arguments
        "temporary": usage.temp_size_in_bytes,
        "code": usage.generated_code_size_in_bytes,
    }


def _bytes_wanted(message: str, argument_bytes: int) -> int:
    """The memory that the program needs according to libtpu; 0 if the compiler gives none."""
    if total := re.search(r"Used ([\d.]+)([KMGT]) of", message):
        return int(float(total[1]) * 1024 ** " KMGT".index(total[2]))
    if temporary := re.search(r"HLO temporaries \(([\d.]+)([KMGT])\)", message):
        return argument_bytes + int(float(temporary[1]) * 1024 ** " KMGT".index(temporary[2]))
    return 0


def bytes_a_device(abstract: Any) -> int:
    """Bytes of a tree of shapes with shardings on one device."""
    return sum(
        int(np.prod(x.sharding.shard_shape(x.shape))) * x.dtype.itemsize
        for x in jax.tree.leaves(abstract)
    )


def activation_bytes(config: Config, phase: Phase) -> float:
    """Activations of one row kept for the backward pass (Korthikanti et al. 2022, section 4.1).

    Their figures are for 16 bits: two bytes for each value that a product needs again, 4 d for the
    inputs of the two LayerNorms and 2 d for the masks of dropout, 34 d per token and layer of BERT.
    Recomputation is not included. This is only a first estimate; the compiler decides.
    """
    model, t = config.model, phase.max_length
    if model.remat == "layer":
        layers = 2.0 * t * model.hidden_size * model.num_layers
    else:
        kept = model.remat != "attention" and model.attention == "xla"  # [b, h, t, t] arrays
        scores = 5 * model.num_heads * t if kept else 0
        token = 2 * kept_values(model) + 6 * model.hidden_size + scores
        layers = 1.0 * t * model.num_layers * token
    logits = 3 * 4 * phase.max_predictions * model.vocab_size
    return layers * jnp.dtype(model.dtype).itemsize / 2 + logits
