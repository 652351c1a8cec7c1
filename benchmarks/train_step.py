"""Times the training step beside transformers', in turns on the same batch.

    python -m benchmarks.train_step --case=base:128:8 --peer=transformers
    python -m benchmarks.train_step --case=large:512:64:packed --peer=transformers
    python -m benchmarks.train_step --case=small:128:16 --set=factors=bfloat16 \
        --peer=transformers --peer_dtype=float32,bfloat16

A case is recipe:length:rows. Each contender compiles and warms up; then they take turns, some
steps each, and the fastest turn counts (identical runs on shared CPUs differ by a factor of two)
with the median beside it. All have dropout 0.1, BERT's AdamW or AdamW, clipping, and the same
rows, all tokens real. With `:packed` rows are made of sentence pairs as long as Wikipedia's
(benchmarks.packing): several in each of bertjax's, one in each of the peer's, padded.

transformers is timed twice: as it is, with the MLM logits of all positions, and with those of the
masked positions only, which is the work that bertjax does. Each has its own count of operations,
and bertjax a ratio to each. --peer_logits=masked leaves one out. On a CPU the peer computes in
float32; --peer_dtype=float32,bfloat16 times it in bfloat16 autocast too. --set=NAME=VALUE times
bertjax once more with another value of a field of the model.

Does not import TensorFlow, so that it runs where there is only JAX and PyTorch; on a GPU
benchmarks.gpu_variants runs it. Writes benchmarks/results/train_step.json (or --output) and prints
its table last.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.harness import RESULTS, Benchmark, UsageError, comma_list, rows

RESULT = RESULTS / "train_step.json"
DEPTH = 12  # pairs in a packed row, at most
WARM_UP_STEPS = 3
PEER = "transformers, "  # and which MLM logits it computes: the name of a contender
LOGITS = ("all", "masked")  # positions
DTYPES = ("float32", "bfloat16")  # of the peer on a CPU; the name of a contender has the second
# Beside torch in one process: neither takes the whole memory at once.
os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.45")

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402

from bertjax.cli.recipes import load_recipe  # noqa: E402
from bertjax.config import Config, Phase  # noqa: E402
from bertjax.config.checks import validate  # noqa: E402
from bertjax.config.overrides import with_overrides  # noqa: E402
from bertjax.flops import flops_per_row, peak_flops  # noqa: E402
from bertjax.models import (  # noqa: E402
    check_backend,
    init_params,
    resolve_model,
)
from bertjax.objectives.objective import abstract_batch, make_objective  # noqa: E402
from bertjax.parallel.sharding import make_mesh, replicated  # noqa: E402
from bertjax.training.compilation import (  # noqa: E402
    compile_train_step,
    measured_matmul_flops,
    program_bytes,
)
from bertjax.training.optimizer import make_optimizer  # noqa: E402
from bertjax.training.step import TrainState  # noqa: E402


class Bertjax:
    """The step that `bertjax.train` compiles, on one device."""

    def __init__(self, config: Config, batch: dict[str, np.ndarray]):
        """Draws parameters, compiles and takes the first steps.

        Args:
          config: with one phase and `model` resolved.
          batch: arrays of `abstract_batch`.
        """
        started = time.monotonic()
        (phase,) = config.resolved_phases()
        mesh = make_mesh(config.mesh, jax.devices()[:1])
        optimizer = make_optimizer(config.optimizer, config.total_steps)
        params = init_params(config.model, 0)
        state = TrainState(jnp.zeros((), jnp.int32), params, optimizer.transformation.init(params))
        self._state = jax.device_put(state, replicated(mesh))
        objective = make_objective(config.model)
        shapes = abstract_batch(objective, phase, mesh)
        self._batch = {name: jax.device_put(batch[name], x.sharding) for name, x in shapes.items()}
        self._key = jax.device_put(jax.random.key(0), replicated(mesh))
        self._step, parts = compile_train_step(
            config,
            phase,
            objective,
            optimizer,
            jax.tree.map(
                lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), self._state
            ),
            shapes,
            mesh,
        )
        self.settings = {
            "package": f"bertjax {version('bertjax')}, jax {jax.__version__}",
            "attention": config.model.attention,
            "scan_layers": config.model.scan_layers,
            "remat": config.model.remat,
            "microbatches": parts,
            "dtype": config.model.dtype,
            "factors": config.model.factors,
            "optimizer": config.optimizer.name,
        }
        self.run(WARM_UP_STEPS)
        self.compile_seconds = time.monotonic() - started

    def run(self, num_steps: int) -> float:
        """Takes steps and waits for the last; returns its loss."""
        for _ in range(num_steps):
            self._state, metrics = self._step(self._state, self._batch, self._key)
        return float(metrics["loss"])

    def peak_bytes(self) -> int:
        """Of the program, as the compiler counts it."""
        return sum(program_bytes(self._step).values())


def options(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    parser.add_argument("--case", action="append", default=[], help="recipe:length:rows[:packed]")
    parser.add_argument("--attention", default="xla", help="of bertjax: xla, pallas or both")
    parser.add_argument(
        "--set", action="append", default=[], help="NAME=VALUE of the model: a contender more"
    )
    parser.add_argument("--peer", choices=["transformers"], help="beside whom")
    parser.add_argument(
        "--peer_logits",
        type=comma_list,
        default=LOGITS,
        help="of which positions the peer computes MLM logits: all, masked or both",
    )
    parser.add_argument(
        "--peer_dtype",
        type=comma_list,
        default=("float32",),
        help="of the peer on a CPU: float32, bfloat16 or both",
    )
    parser.add_argument("--peer_eager", action="store_true", help="without torch.compile")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each contender")
    parser.add_argument("--seconds", type=float, default=5.0, help="of one turn, about")


def measure(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Runs the cases and prints the table."""
    if not args.case:
        raise UsageError("name a --case")
    if unknown := set(args.peer_logits) - {*LOGITS}:
        raise UsageError(
            f"--peer_logits: {', '.join(sorted(unknown))}; expected all, masked or both"
        )
    if unknown := set(args.peer_dtype) - {*DTYPES}:
        raise UsageError(
            f"--peer_dtype: {', '.join(sorted(unknown))}; expected float32, bfloat16 or both"
        )
    done = []
    for case in args.case:
        result = measure_case(case, args)
        yield result
        done.append(result)
    print(table(done))


def measure_case(case: str, args: argparse.Namespace) -> dict[str, Any]:
    """Times all contenders on one case, in turns."""
    config, batch, peer_batch = make_case(case)
    contenders: dict[str, Any] = {}
    variants = {
        f"bertjax, {attention}": {"model.attention": attention}
        for attention in args.attention.split(",")
    } | {f"bertjax, {field}": dict([f"model.{field}".split("=", 1)]) for field in args.set}
    for name, fields in variants.items():
        changed = with_overrides(config, fields)
        validate(changed)
        changed.model = resolve_model(changed.model, jax.default_backend())
        check_backend(changed.model, jax.default_backend(), 1)
        contenders[name] = Bertjax(changed, batch)
        print(f"{case}: {name}: {contenders[name].compile_seconds:.0f} s to start", flush=True)
    if args.peer:
        from benchmarks.train_step_peer import make_contenders

        peers = make_contenders(
            config.model,
            peer_batch,
            args.peer_logits,
            args.peer_dtype,
            compiled=not args.peer_eager,
        )
        for name, peer in peers.items():
            print(f"{case}: {name}: {peer.compile_seconds:.0f} s to start", flush=True)
        contenders |= peers
        del peers, peer
    counts = {}
    for name, contender in contenders.items():
        started = time.perf_counter()
        contender.run(1)
        counts[name] = max(1, round(args.seconds / (time.perf_counter() - started)))
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(args.rounds):
        for name, contender in contenders.items():
            started = time.perf_counter()
            loss = contender.run(counts[name])
            seconds[name].append((time.perf_counter() - started) / counts[name])
            assert np.isfinite(loss), f"{name}: loss {loss}"
    (phase,) = config.resolved_phases()
    size = 2_048 if jax.default_backend() == "cpu" else 8_192
    measured = measured_matmul_flops(config.model.dtype, size, turns=3)
    runs = {}
    for name, contender in contenders.items():
        best = min(seconds[name])
        peak_bytes = contender.peak_bytes()
        own = peer_batch if name.startswith(PEER) else batch
        sequences = own["pair_weights" if "pair_weights" in own else "row_weights"]
        tokens = own["segment_ids" if "segment_ids" in own else "attention_mask"] > 0
        runs[name] = {
            "sequences_per_second": float(sequences.sum() / best),
            "rows_per_second": phase.global_batch_size / best,
            "rows_per_second_median": phase.global_batch_size / statistics.median(seconds[name]),
            "real_tokens_per_second": int(tokens.sum()) / best,
            "flops_per_step": step_flops(config, contender.settings, own),
            "peak_gigabytes": peak_bytes and peak_bytes / 1e9,
            "seconds_to_start": round(contender.compile_seconds, 1),
            "step_seconds": seconds[name],
            "settings": contender.settings,
        }
    contenders.clear()
    gc.collect()
    result = {
        "case": case,
        "peer_mode": args.peer and ("eager" if args.peer_eager else "compiled"),
        "dropout_rate": config.model.dropout_rate,
        "measured_matmul_flops": measured,
        "products_queued": True,
        "peak_flops": peak_flops(jax.devices()[0].device_kind),
        "runs": runs,
        "flags": {name: os.environ.get(name, "") for name in ("XLA_FLAGS", "OMP_NUM_THREADS")},
    }
    return with_shares_and_ratios(result)


def step_flops(
    config: Config, settings: Mapping[str, Any], batch: Mapping[str, np.ndarray]
) -> float:
    """Operations of a step, of those that this contender performs; padding is among them.

    By `flops_per_row`, which is linear in the number of predictions.

    Args:
      config: with one phase.
      settings: of the contender. bertjax computes logits for every slot of `masked_positions`,
        the peer, by `mlm_logits`, for all positions or for the slots that hold a prediction.
      batch: of the contender.
    """
    rows, length = batch["input_ids"].shape
    logits = {
        "all": rows * length,
        "masked": int(batch["masked_weights"].sum()),
        "slots": batch["masked_positions"].size,
    }[settings.get("mlm_logits", "slots")]
    pairs = batch["cls_positions"].shape[1] if "cls_positions" in batch else 1
    without = flops_per_row(config.model, length, 0, pairs)
    return rows * without + logits * (flops_per_row(config.model, length, 1, pairs) - without)


def with_shares_and_ratios(result: Mapping[str, Any]) -> dict[str, Any]:
    """The result with what follows from the times and operations of its contenders.

    Results from before there were two peers have one, with the logits of all positions, and shares
    by bertjax's operations for both. They get the name, the operations and the shares of their own.
    """
    runs = {
        PEER + "all" if name == "transformers" else name: dict(run)
        for name, run in result["runs"].items()
    }
    if not all("flops_per_step" in run for run in runs.values()):
        config, batch, peer_batch = make_case(result["case"])
        for name, run in runs.items():
            if name.startswith(PEER):
                run["settings"] = {**run["settings"], "mlm_logits": "all"}
            own = peer_batch if name.startswith(PEER) else batch
            run["flops_per_step"] = step_flops(config, run["settings"], own)
            run.pop("ratio_to_peer", None)
    peak = result["peak_flops"]
    for run in runs.values():
        rate = run["flops_per_step"] / min(run["step_seconds"])
        run["mfu_of_peak"] = peak and rate / peak
        run["share_of_measured_matmul"] = rate / result["measured_matmul_flops"]
        run["ratios"] = {
            logits: {
                "fastest": _speed(run, min) / _speed(runs[PEER + logits], min),
                "median": _speed(run, statistics.median)
                / _speed(runs[PEER + logits], statistics.median),
            }
            for logits in LOGITS
            if PEER + logits in runs
        }
    return {**result, "runs": runs}


def _speed(run: Mapping[str, Any], turn: Callable[[list[float]], float]) -> float:
    """Real tokens a second in one of the turns; the stored figure is that of the fastest."""
    seconds = run["step_seconds"]
    return run["real_tokens_per_second"] * min(seconds) / turn(seconds)


def make_case(case: str) -> tuple[Config, dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The configuration of recipe:length:rows[:packed], bertjax's batch and the peer's."""
    recipe, length, rows, *packed = case.split(":")
    config = make_config(recipe, int(length), int(rows), DEPTH if packed else 1)
    batch, peer_batch = make_packed_batches(config) if packed else [make_batch(config)] * 2
    return config, batch, peer_batch


def make_config(recipe: str, length: int, rows: int, depth: int = 1) -> Config:
    """The recipe with one phase of such rows, of so many pairs at most, on one device."""
    config = load_recipe(recipe)
    return dataclasses.replace(
        config,
        model=resolve_model(config.model, jax.default_backend()),
        phases=(Phase(1_000_000, length, rows, packing_depth=depth),),
    )


def make_batch(config: Config) -> dict[str, np.ndarray]:
    """Full rows of random pieces, 15 % of them to predict, all from seed 0."""
    (phase,) = config.resolved_phases()
    b, t, m = phase.global_batch_size, phase.max_length, phase.max_predictions
    rng = np.random.default_rng(0)
    masked = round(phase.mask_rate * t)
    positions = np.zeros((b, m), np.int32)
    for row in positions:
        row[:masked] = np.sort(rng.choice(np.arange(1, t), masked, replace=False))
    weights = np.zeros((b, m), np.float32)
    weights[:, :masked] = 1
    return {
        "input_ids": rng.integers(5, config.model.vocab_size, (b, t), np.int32),
        "token_type_ids": np.repeat(np.arange(t)[None] >= t // 2, b, 0).astype(np.int32),
        "attention_mask": np.ones((b, t), np.int32),
        "masked_positions": positions,
        "masked_ids": rng.integers(5, config.model.vocab_size, (b, m), np.int32),
        "masked_weights": weights,
        "next_sentence_labels": rng.integers(0, 2, b, np.int32),
        "row_weights": np.ones(b, np.float32),
    }


def make_packed_batches(config: Config) -> list[dict[str, np.ndarray]]:
    """Pairs as long as Wikipedia's, packed, and as many rows of one such pair each."""
    from benchmarks.packing import short_documents
    from bertjax.data.stream.packed_rows import PackedRows
    from bertjax.data.stream.reader import RowReader
    from bertjax.data.stream.rows import RowSpec
    from bertjax.data.tokenizers.wordpiece import WordPieceTokenizer

    (phase,) = config.resolved_phases()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    pieces = [f"w{i}" for i in range(len(special), config.model.vocab_size)]
    tokenizer = WordPieceTokenizer(special + pieces, lower_case=True)
    with tempfile.TemporaryDirectory() as folder:
        store = short_documents(Path(folder), tokenizer)
        spec = RowSpec(max_length=phase.max_length, max_predictions=phase.max_predictions)
        pairs = RowReader(store.train, tokenizer, spec, seed=0, stream_id=0, cache=Path(folder))
        positions = np.arange(phase.global_batch_size)
        return [PackedRows(pairs, phase.packing_depth).rows(positions), pairs.rows(positions)]


HEADER = (
    "case",
    "contender",
    "sequences/s",
    "rows/s",
    "median",
    "real tokens/s",
    "GFLOP a row",
    "of peak",
    "of a product",
    "GB",
    "start, s",
    "ratio to all positions",
    "ratio to equal work",
)


def lines(results: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    """The cells of the table."""
    cells: list[tuple[str, ...]] = []
    for result in map(with_shares_and_ratios, results):
        rows = int(result["case"].split(":")[2])
        for name, run in result["runs"].items():
            peak, memory = run["mfu_of_peak"], run["peak_gigabytes"]
            cells.append(
                (
                    result["case"],
                    _peer_in_words(name, result["peer_mode"]) if name.startswith(PEER) else name,
                    f"{run['sequences_per_second']:,.4g}",
                    f"{run['rows_per_second']:,.4g}",
                    f"{run['rows_per_second_median']:,.4g}",
                    f"{run['real_tokens_per_second']:,.4g}",
                    f"{run['flops_per_step'] / rows / 1e9:.1f}",
                    f"{peak:.1%}" if peak else "",
                    f"{run['share_of_measured_matmul']:.1%}" + ("" if queued(result) else " *"),
                    f"{memory:.2f}" if memory else "",
                    f"{run['seconds_to_start']:.0f}",
                    *(_ratio(run["ratios"].get(logits)) for logits in LOGITS),
                )
            )
    return cells


def _peer_in_words(name: str, mode: str) -> str:
    logits, *dtype = name.removeprefix(PEER).split(", ")
    return ", ".join(["transformers", mode, f"{logits} positions", *dtype])


def queued(result: Mapping[str, Any]) -> bool:
    """Whether the products that shares are of were queued; in the first results they were not."""
    return result.get("products_queued", False)


def _ratio(ratio: Mapping[str, float] | None) -> str:
    return f"{ratio['fastest']:.2f} ({ratio['median']:.2f})" if ratio else ""


def table(results: list[dict[str, Any]]) -> str:
    """For the terminal."""
    rows = [HEADER, *lines(results)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        for row in rows
    )


BENCHMARK = Benchmark(measure, RESULT.name, options, keep=rows("device", "case", "peer_mode"))

if __name__ == "__main__":
    BENCHMARK.main()
