"""Trains with every fast option on and with every one off, and compares the losses.

    python -m benchmarks.fast_options --store=STORE --recipe=tiny --steps=50

Off: plain attention and LayerNorm, scattered lookups, float32, scanned layers. On: our kernels (interpreted where there is
neither a TPU nor a GPU), sorted lookups, bfloat16, unrolled layers. Each seed draws its own parameters, rows, masks and dropout, the
same for both. What the options change should be small beside what another seed does. Does not import
TensorFlow, so that it runs where there is only JAX. Writes benchmarks/results/fast_options.json and .png.
"""  # noqa: E501

from __future__ import annotations

import argparse
import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.harness import Benchmark
from bertjax.cli.recipes import load_recipe
from bertjax.config import Config
from bertjax.data.store.store import Store, open_store
from bertjax.data.stream.reader import RowReader
from bertjax.data.stream.rows import RowSpec
from bertjax.models import init_params
from bertjax.objectives.objective import make_objective
from bertjax.training.optimizer import make_optimizer
from bertjax.training.step import TrainState, train_step

OPTIONS: dict[str, dict[str, Any]] = {
    "off": {
        "attention": "xla",
        "layer_norm": "xla",
        "lookup_gradient": "scatter",
        "dtype": "float32",
        "scan_layers": True,
    },
    "on": {
        "attention": "pallas",
        "layer_norm": "pallas",
        "lookup_gradient": "sorted",
        "dtype": "bfloat16",
        "scan_layers": False,
    },
}
LAST = 10  # steps over which losses are compared


def options(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--recipe", default="tiny", help="of configs/")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--seeds", type=int, default=3)


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Runs all seeds both ways and draws the losses."""
    store = open_store(args.store)
    config = recipe(args.recipe, args.steps, store)
    runs = []
    for seed in range(args.seeds):
        for name, options in OPTIONS.items():
            losses = train(config, options, store, seed)
            runs.append({"seed": seed, "options": name, "losses": losses})
            print(f"seed {seed}, {name}: {losses[0]:.4f} to {np.mean(losses[-LAST:]):.4f}")
    (phase,) = config.resolved_phases()
    plot(runs, args.output.with_suffix(".png"))
    return {
        "recipe": args.recipe,
        "rows": f"{phase.global_batch_size} x {phase.max_length}",
        "dropout_rate": config.model.dropout_rate,
        "options": OPTIONS,
        "compared": compare(runs),
        "runs": runs,
    }


def recipe(name: str, steps: int, store: Store) -> Config:
    """The recipe's first phase cut to so many steps, with the dropout of the paper."""
    config = load_recipe(name)
    first = config.resolved_phases()[0]
    model = dataclasses.replace(
        config.model,
        vocab_size=store.tokenizer().vocab_size,
        dropout_rate=0.1,
        attention_dropout_rate=0.1,
    )
    optimizer = dataclasses.replace(config.optimizer, warmup_steps=steps // 5)
    phase = dataclasses.replace(first, num_steps=steps)
    return dataclasses.replace(config, model=model, optimizer=optimizer, phases=(phase,))


def train(config: Config, options: dict[str, Any], store: Store, seed: int) -> list[float]:
    """The loss of each step."""
    (phase,) = config.resolved_phases()
    spec = RowSpec(max_length=phase.max_length, max_predictions=phase.max_predictions)
    reader = RowReader(store.train, store.tokenizer(), spec, seed=seed, stream_id=0)
    model = dataclasses.replace(config.model, **options)
    optimizer = make_optimizer(config.optimizer, phase.num_steps)
    params = init_params(model, seed)
    state = TrainState(jnp.int32(0), params, optimizer.transformation.init(params))
    step = jax.jit(
        functools.partial(train_step, make_objective(model), optimizer, 1), donate_argnums=0
    )
    losses = []
    for i in range(phase.num_steps):
        rows = reader.rows(i * phase.global_batch_size + np.arange(phase.global_batch_size))
        batch = {name: jnp.asarray(x) for name, x in rows.items() if name != "row_ids"}
        state, metrics = step(state, batch, jax.random.key(seed))
        losses.append(float(metrics["loss"]))
    return losses


def compare(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean losses of the last steps: what the options change, and what the seed does."""
    last = {
        name: np.array([np.mean(r["losses"][-LAST:]) for r in runs if r["options"] == name])
        for name in OPTIONS
    }
    change = last["on"] - last["off"]
    return {
        "last_losses": {name: losses.tolist() for name, losses in last.items()},
        "on_minus_off": change.tolist(),
        "mean_on_minus_off": float(change.mean()),
        "standard_deviation_over_seeds_off": float(last["off"].std(ddof=1)),
        "largest_difference_at_any_step": max(
            abs(a - b)
            for off, on in zip(runs[::2], runs[1::2], strict=True)
            for a, b in zip(off["losses"], on["losses"], strict=True)
        ),
    }


def plot(runs: list[dict[str, Any]], path: Path) -> None:
    """Losses by step; one colour a seed, dashed where the options are on."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for run in runs:
        axes.plot(
            range(1, len(run["losses"]) + 1),
            run["losses"],
            color=f"C{run['seed']}",
            linestyle="--" if run["options"] == "on" else "-",
            label=f"seed {run['seed']}, options {run['options']}",
        )
    axes.set(xlabel="step", ylabel="loss, nats")
    axes.legend()
    figure.savefig(path, dpi=120)


BENCHMARK = Benchmark(measure, "fast_options.json", options)

if __name__ == "__main__":
    BENCHMARK.main()
