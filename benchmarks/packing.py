"""How full packed rows are, and what a training step of them is worth beside padded ones.

    python -m benchmarks.packing --store=STORE

STORE is of real text (`wiki_train` and `speeches` of the test corpora). Beside it stands a store of random words whose
documents are as long as those of Wikipedia: lengths of one exponential distribution, so that about half of the places
of rows of one pair are padding, as Krell et al. 2021 (figure 1) found of Wikipedia at 512. For each: the share of real
tokens by depth; loss and gradients of packed rows beside those of the same pairs padded; and steps of a model of 4
layers, 256 wide, in turns. Writes benchmarks/results/packing.json.
"""  # noqa: E501

from __future__ import annotations

import argparse
import dataclasses
import functools
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.harness import Benchmark
from bertjax.config import ModelConfig, OptimizerConfig, packed_predictions
from bertjax.data.store.store import Store, open_store
from bertjax.data.store.store_writer import write_store
from bertjax.data.stream.packed_rows import PackedRows
from bertjax.data.stream.reader import Batch, RowReader
from bertjax.data.stream.rows import RowSpec
from bertjax.data.tokenizers.tokenizer import Tokenizer
from bertjax.models import BertForPreTraining, init_params
from bertjax.objectives.objective import make_objective
from bertjax.objectives.pretraining import (
    pretraining_denominators,
    pretraining_loss,
    pretraining_sums,
)
from bertjax.training.optimizer import make_optimizer
from bertjax.training.step import TrainState, train_step

LENGTH = 512
DEPTHS = (2, 3, 4, 6, 8, 12)
ROWS, ROUNDS, STEPS = 8, 5, 2
MODEL = ModelConfig(
    hidden_size=256, num_layers=4, num_heads=4, intermediate_size=1_024, dtype="float32"
)


def options(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    parser.add_argument("--store", type=Path, required=True)


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Measures both stores."""
    real = open_store(args.store)
    with tempfile.TemporaryDirectory() as folder:
        like = short_documents(Path(folder), real.tokenizer())
        return {
            "length": LENGTH,
            "model": dataclasses.asdict(MODEL),
            "stores": {
                "real text": measure_store(real, Path(folder) / "rows_real"),
                "lengths like Wikipedia's": measure_store(like, Path(folder) / "rows_like"),
            },
        }


def short_documents(folder: Path, tokenizer: Tokenizer) -> Store:
    """30,000 documents of random words in sentences of 20, 300 tokens in the mean."""
    rng = np.random.default_rng(0)
    ids = np.arange(tokenizer.vocab_size - 1_000, tokenizer.vocab_size)
    documents = []
    for length in 2 * rng.integers(4, 12, 30_000) + rng.exponential(280, 30_000).astype(int):
        cuts = np.arange(20, length - 5, 20)
        parts = np.split(np.arange(length), cuts)
        documents.append([rng.choice(ids, len(part)).tolist() for part in parts])
    return write_store(folder / "store", tokenizer, documents)


def measure_store(store: Store, cache: Path) -> dict[str, Any]:
    """Efficiency by depth; equality and speed at the first depth that fills 98 %."""
    pairs = reader(store, 1, cache)
    sample = pairs.lengths(pairs.draw(np.arange(min(pairs.num_rows, 50_000)))[1])
    result: dict[str, Any] = {
        "pairs_an_epoch": pairs.num_rows,
        "mean_tokens_of_a_pair": float(sample.mean()),
        "depths": [{"depth": 1, "pairs_a_row": 1.0, "real_share": float(sample.mean()) / LENGTH}],
    }
    best = None
    for depth in DEPTHS:
        packed = PackedRows(reader(store, depth, cache), depth)
        started = time.process_time()
        rows = packed.rows(np.arange(4_096))
        seconds = time.process_time() - started  # the window's packing is in it
        real = float((rows["segment_ids"] > 0).mean())
        windows = -(-pairs.num_rows // (1 << 17))
        result["depths"].append(
            {
                "depth": depth,
                "pairs_a_row": float(rows["pair_weights"].sum(axis=1).mean()),
                "real_share": real,
                "left_out": packed.left_out(0) / (pairs.num_rows / windows),
                "rows_per_cpu_second": 4_096 / seconds,
            }
        )
        if best is None and real >= 0.98:
            best = packed
    assert best is not None, f"no depth fills 98 %: {result['depths']}"
    result["depth_for_98_percent"] = best.depth
    shares = {entry["depth"]: entry["real_share"] for entry in result["depths"]}
    real_shares = {"packed": shares[best.depth], "padded": shares[1]}
    result |= compare(best, reader(store, best.depth, cache), real_shares)
    return result


def reader(store: Store, depth: int, cache: Path) -> RowReader:
    """Pairs of the store, with as many slots as a row of so many needs."""
    slots = packed_predictions(0.15, LENGTH, depth)
    spec = RowSpec(max_length=LENGTH, max_predictions=slots)
    return RowReader(store.train, store.tokenizer(), spec, seed=0, stream_id=0, cache=cache)


def compare(packed: PackedRows, pairs: RowReader, real_shares: dict[str, float]) -> dict[str, Any]:
    """Loss and gradients of the same pairs both ways, and steps of ROWS rows each way, in turns.

    The rows' shapes are static, so a step takes as long whatever is in them: real tokens a second
    are those of mean rows, `real_shares`, not of the few that are timed.
    """
    positions = np.arange(ROWS)
    table = packed.pair_positions(positions)
    rows, same = packed.rows(positions), pairs.rows(table[table >= 0])
    padded = pairs.rows(positions)
    model = BertForPreTraining(dataclasses.replace(MODEL, vocab_size=pairs.tokens.vocab_size))
    params = init_params(model.config, 0)
    optimizer = make_optimizer(OptimizerConfig(warmup_steps=0), 1_000)
    state = TrainState(jnp.int32(0), params, optimizer.transformation.init(params))
    step = jax.jit(functools.partial(train_step, make_objective(model.config), optimizer, 1))
    seconds: dict[str, list[float]] = {"packed": [], "padded": []}
    for _ in range(ROUNDS + 1):
        for name, batch in (("packed", rows), ("padded", padded)):
            started = time.perf_counter()
            for _ in range(STEPS):
                _, metrics = step(state, arrays(batch), jax.random.key(0))
                metrics["loss"].block_until_ready()
            seconds[name].append((time.perf_counter() - started) / STEPS)
    tokens = {name: share * ROWS * LENGTH for name, share in real_shares.items()}
    best = {name: min(times[1:]) for name, times in seconds.items()}  # the first one compiled
    speed = {name: tokens[name] / best[name] for name in best}
    return {
        "difference_from_the_same_pairs_padded": differences(model, params, rows, same),
        "rows_a_step": ROWS,
        "real_tokens_a_step": tokens,
        "seconds_a_step": best,
        "seconds_a_step_median": {k: statistics.median(v[1:]) for k, v in seconds.items()},
        "real_tokens_per_second": speed,
        "ratio": speed["packed"] / speed["padded"],
    }


def differences(
    model: BertForPreTraining, params: Any, packed: Batch, padded: Batch
) -> dict[str, float]:
    """Of the losses, and the largest of any gradient, without dropout."""

    def loss(params: Any, batch: dict[str, jax.Array]) -> jax.Array:
        sums = pretraining_sums(model, params, batch, None)
        return pretraining_loss(sums, pretraining_denominators(batch))

    run = jax.jit(jax.value_and_grad(loss))
    (one, one_grads), (other, other_grads) = (
        run(params, arrays(packed)),
        run(params, arrays(padded)),
    )
    largest = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), one_grads, other_grads)
    return {"loss": abs(float(one - other)), "gradients": max(jax.tree.leaves(largest))}


def arrays(batch: Batch) -> dict[str, jax.Array]:
    """What the step takes of a batch."""
    return {name: jnp.asarray(x) for name, x in batch.items() if name != "row_ids"}


BENCHMARK = Benchmark(measure, "packing.json", options)

if __name__ == "__main__":
    BENCHMARK.main()
