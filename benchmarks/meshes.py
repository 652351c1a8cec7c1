"""Trains the same model on several meshes of 8 simulated devices and compares the losses.

    python -m benchmarks.meshes

20 steps with dropout, of 4 layers with 8 heads and a vocabulary of 30,522, by AdamW and by LAMB,
layers scanned and unrolled. Writes benchmarks/results/meshes.json: for each run the largest
difference of a loss from the first run's, the share of the parameters' bytes that is split, and
whether the compiler had to copy whole arrays ("Involuntary full rematerialization").
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import json
import os
import tempfile
import time
from collections.abc import Iterator
from typing import Any

DEVICES = 8
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + f" --xla_force_host_platform_device_count={DEVICES}"
)

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402

from benchmarks.harness import Benchmark  # noqa: E402
from bertjax.config import (  # noqa: E402
    Direction,
    LookupGradient,
    MeshConfig,
    ModelConfig,
    OptimizerConfig,
    OptimizerName,
)
from bertjax.models import init_params  # noqa: E402
from bertjax.objectives.objective import make_objective  # noqa: E402
from bertjax.parallel.sharding import (  # noqa: E402
    make_mesh,
    parameter_shardings,
    replicated,
    row_sharding,
    state_shardings,
)
from bertjax.training.optimizer import make_optimizer  # noqa: E402
from bertjax.training.step import TrainState, train_step  # noqa: E402

MESHES = ((1, 1, 1), (8, 1, 1), (1, 8, 1), (1, 1, 8), (2, 2, 2))
LENGTH, MASKED, ROWS = 16, 4, 16


@dataclasses.dataclass(frozen=True)
class Run:
    """One training of the model."""

    mesh: tuple[int, int, int]
    optimizer: OptimizerName
    scan_layers: bool
    num_microbatches: int = 1
    direction: Direction = "bidirectional"  # left_to_right learns the next token
    lookup_gradient: LookupGradient = "scatter"
    shard_optimizer: bool = False


def options(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    parser.add_argument("--quick", action="store_true", help="smaller, fewer; printed only")


def compare(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Runs all combinations, or with --quick a few, which are only printed."""
    model = ModelConfig(
        vocab_size=99 if arguments.quick else 30_522,  # 8 divides neither
        hidden_size=32 if arguments.quick else 64,
        num_layers=2 if arguments.quick else 4,
        num_heads=8,
        intermediate_size=64 if arguments.quick else 256,
        max_positions=LENGTH,
        dtype="float32",
    )
    steps = 8 if arguments.quick else 20
    if arguments.quick:  # the first of each optimiser is what the others are compared with
        runs = [
            *(Run(m, "lamb", scan_layers=True) for m in ((1, 1, 1), (1, 1, 8), (2, 2, 2))),
            Run((1, 1, 1), "bert_adamw", scan_layers=True, num_microbatches=8),
            Run((8, 1, 1), "bert_adamw", scan_layers=True),
            Run((4, 1, 2), "bert_adamw", scan_layers=False, num_microbatches=2),
            Run((2, 2, 2), "bert_adamw", scan_layers=True, num_microbatches=2),
            Run((1, 8, 1), "bert_adamw", scan_layers=False, num_microbatches=2),
            *(
                Run(mesh, "bert_adamw", False, parts, "left_to_right")
                for mesh, parts in (
                    ((1, 1, 1), 1),
                    ((8, 1, 1), 1),
                    ((4, 1, 2), 2),
                    ((1, 8, 1), 2),
                    ((2, 2, 2), 1),
                )
            ),
            *(
                Run(mesh, "bert_adamw", True, parts, lookup_gradient="sorted")
                for mesh, parts in (((8, 1, 1), 1), ((4, 1, 2), 2), ((1, 8, 1), 2), ((2, 2, 2), 2))
            ),
            Run((2, 1, 1), "lamb", True, shard_optimizer=True),
            Run((4, 1, 1), "lamb", True, shard_optimizer=True),
            Run((8, 1, 1), "bert_adamw", True, 2, shard_optimizer=True),
            Run((2, 2, 2), "bert_adamw", True, shard_optimizer=True),
        ]
    else:
        runs = [
            Run(mesh, optimizer, scan)
            for optimizer in ("bert_adamw", "adamw", "lamb")
            for scan in (False, True)
            for mesh in MESHES
        ]
    reference: dict[tuple[str, str], list[float]] = {}
    results = []
    for run in runs:
        result = measure(run, model, steps)
        losses = result.pop("losses")
        first = reference.setdefault((run.optimizer, run.direction), losses)
        result["largest_difference"] = max(abs(a - b) for a, b in zip(losses, first, strict=True))
        results.append({**dataclasses.asdict(run), **result})
        print(json.dumps(results[-1]), flush=True)
    if arguments.quick:
        return
    yield {
        "simulated_devices": DEVICES,
        "model": dataclasses.asdict(model),
        "steps": steps,
        "runs": results,
    }


def measure(run: Run, model: ModelConfig, steps: int) -> dict[str, Any]:
    """Trains and says how it went."""
    model = dataclasses.replace(
        model,
        scan_layers=run.scan_layers,
        direction=run.direction,
        lookup_gradient=run.lookup_gradient,
    )
    if run.direction == "left_to_right":
        model = dataclasses.replace(model, head="causal", next_sentence=False, pooler=False)
    mesh = make_mesh(
        MeshConfig(*run.mesh, run.shard_optimizer), jax.devices()[: int(np.prod(run.mesh))]
    )
    # A rate at which the loss falls smoothly: a larger one makes rounding grow from step to step.
    config = OptimizerConfig(name=run.optimizer, learning_rate=2e-3, warmup_steps=2)
    optimizer = make_optimizer(config, 100)
    objective = make_objective(model)
    params = init_params(model, 0)
    placed = jax.device_put(params, parameter_shardings(params, mesh))
    opt_state = optimizer.transformation.init(placed)
    shardings = state_shardings(opt_state, placed, mesh, run.shard_optimizer)
    state = TrainState(
        step=jax.device_put(jnp.int32(0), replicated(mesh)),
        params=placed,
        opt_state=jax.device_put(opt_state, shardings),
    )
    batch = jax.device_put(make_batch(model.vocab_size), row_sharding(mesh))
    key = jax.device_put(jax.random.key(0), replicated(mesh))
    losses = []
    with jax.set_mesh(mesh):
        step = jax.jit(
            functools.partial(
                train_step,
                objective,
                optimizer,
                run.num_microbatches,
                shard_optimizer=run.shard_optimizer,
            ),
            donate_argnums=0,
            out_shardings=(jax.tree.map(lambda x: x.sharding, state), replicated(mesh)),
        )
        begin = time.monotonic()
        with captured_stderr() as messages:
            compiled = step.lower(state, batch, key).compile()
        seconds = time.monotonic() - begin
        for _ in range(steps):
            state, metrics = compiled(state, batch, key)
            losses.append(float(metrics["loss"]))
    return {
        "losses": losses,
        "first_loss": losses[0],
        "last_loss": losses[-1],
        "sharded_share": sharded_share(state.params),
        "sharded_share_of_optimizer": sharded_share(state.opt_state),
        "rematerialised": "Involuntary full rematerialization" in "".join(messages),
        "compile_seconds": round(seconds, 1),
    }


def sharded_share(params: Any) -> float:
    """Share of the parameters' bytes that no device holds all of."""
    leaves = jax.tree.leaves(params)
    split = [x for x in leaves if x.sharding.shard_shape(x.shape) != x.shape]
    return round(sum(x.nbytes for x in split) / sum(x.nbytes for x in leaves), 4)


def make_batch(vocab_size: int) -> dict[str, np.ndarray]:
    """A batch whose rows differ in length and in their number of masked tokens."""
    rng = np.random.default_rng(0)
    weights = rng.integers(0, 2, (ROWS, MASKED)).astype(np.float32)
    weights[:, 0] = 1
    return {
        "input_ids": rng.integers(5, vocab_size, (ROWS, LENGTH), np.int32),
        "token_type_ids": np.repeat([[0] * 8 + [1] * 8], ROWS, 0).astype(np.int32),
        "attention_mask": (np.arange(LENGTH) < rng.integers(8, 17, (ROWS, 1))).astype(np.int32),
        "masked_positions": np.sort(rng.integers(1, 8, (ROWS, MASKED), np.int32)),
        "masked_ids": rng.integers(5, vocab_size, (ROWS, MASKED), np.int32),
        "masked_weights": weights,
        "next_sentence_labels": rng.integers(0, 2, ROWS, np.int32),
        "row_weights": np.ones(ROWS, np.float32),
    }


@contextlib.contextmanager
def captured_stderr() -> Iterator[list[str]]:
    """Collects what is written to file descriptor 2, where the compiler's C++ code warns."""
    messages: list[str] = []
    with tempfile.TemporaryFile() as file:
        saved = os.dup(2)
        os.dup2(file.fileno(), 2)
        try:
            yield messages
        finally:
            os.dup2(saved, 2)
            os.close(saved)
            file.seek(0)
            messages.append(file.read().decode(errors="replace"))


BENCHMARK = Benchmark(compare, "meshes.json", options)

if __name__ == "__main__":
    BENCHMARK.main()
