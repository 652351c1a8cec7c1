"""Times the training step beside transformers', in turns on the same batch.

    python -m benchmarks.train_step --case=base:128:8 --peer=transformers
    python -m benchmarks.train_step --case=large:512:64:packed --peer=transformers

A case is recipe:length:rows. Each contender compiles and warms up; then they take turns, some
steps each, and the fastest turn counts (identical runs on shared CPUs differ by a factor of two)
with the median beside it. Both have dropout 0.1, BERT's AdamW or AdamW, clipping, and the same
rows, all tokens real. With `:packed` rows are made of sentence pairs as long as Wikipedia's
(benchmarks.packing): several in each of bertjax's, one in each of the peer's, padded.

Imports neither TensorFlow nor the command line of bertjax, so that it runs where there is only JAX
and PyTorch; on a GPU benchmarks.gpu runs the cases. Writes benchmarks/results/train_step.json (or
--output) and prints its table last; --report writes docs/results/train_step.md and .png from the
results.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import gc
import importlib
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

RESULT = Path(__file__).parent / "results" / "train_step.json"
PAGE = Path(__file__).parent.parent / "docs" / "results" / "train_step.md"
DEPTH = 12  # pairs in a packed row, at most
WARM_UP_STEPS = 3
# Beside torch in one process: neither takes the whole memory at once.
os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.45")

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402

from benchmarks.hardware import device_name  # noqa: E402
from bertjax.config import Config, Phase  # noqa: E402
from bertjax.models import BertForPreTraining, compute_dtype, init_params  # noqa: E402
from bertjax.models.layers import product_precision  # noqa: E402
from bertjax.training.compilation import compile_train_step, program_bytes  # noqa: E402
from bertjax.training.metrics import flops_per_row, peak_flops  # noqa: E402
from bertjax.training.objectives import pretraining_batch, pretraining_objective  # noqa: E402
from bertjax.training.optimizer import make_optimizer  # noqa: E402
from bertjax.training.sharding import make_mesh, replicated  # noqa: E402
from bertjax.training.step import TrainState  # noqa: E402


class Bertjax:
    """The step that `bertjax.train` compiles, on one device."""

    def __init__(self, config: Config, batch: dict[str, np.ndarray]):
        """Draws parameters, compiles and takes the first steps.

        Args:
          config: with one phase and `model.dtype` resolved.
          batch: arrays of `pretraining_batch`.
        """
        started = time.monotonic()
        (phase,) = config.resolved_phases()
        mesh = make_mesh(config.mesh, jax.devices()[:1])
        optimizer = make_optimizer(config.optimizer, config.total_steps)
        params = init_params(config.model, 0)
        state = TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))
        self._state = jax.device_put(state, replicated(mesh))
        shapes = pretraining_batch(phase, mesh)
        self._batch = {name: jax.device_put(batch[name], x.sharding) for name, x in shapes.items()}
        self._key = jax.device_put(jax.random.key(0), replicated(mesh))
        self._step, parts = compile_train_step(
            config,
            phase,
            pretraining_objective(BertForPreTraining(config.model)),
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
            "optimizer": config.optimizer.name,
        }
        self.run(WARM_UP_STEPS)
        self.compile_seconds = time.monotonic() - started

    def run(self, num_steps: int) -> float:
        """Takes steps and waits for the last; returns its loss."""
        for _ in range(num_steps):
            self._state, metrics = self._step(self._state, self._batch, self._key)
        return float(metrics["loss"])

    def program_text(self) -> str:
        """The optimised program, in HLO."""
        return self._step.as_text() or ""

    def peak_bytes(self) -> int:
        """Of the program, as the compiler counts it."""
        return sum(program_bytes(self._step).values())


def main() -> None:
    """Runs the cases, writes each as it is done, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", action="append", default=[], help="recipe:length:rows[:packed]")
    parser.add_argument("--attention", default="xla", help="of bertjax: xla, pallas or both")
    parser.add_argument("--peer", choices=["transformers"], help="beside whom")
    parser.add_argument("--peer_eager", action="store_true", help="without torch.compile")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each contender")
    parser.add_argument("--seconds", type=float, default=5.0, help="of one turn, about")
    parser.add_argument("--load", default="", help="what else the machine was doing")
    parser.add_argument("--output", type=Path, default=RESULT)
    parser.add_argument("--report", action="store_true", help="only write the page")
    args = parser.parse_args()
    if args.report:
        report(json.loads(args.output.read_text()))
        return
    if not args.case:
        parser.error("name a --case")
    results = json.loads(args.output.read_text()) if args.output.exists() else []
    done = []
    for case in args.case:
        result = measure(case, args)
        done.append(result)
        same = ("device", "case", "peer_mode")
        results = [r for r in results if any(r[k] != result[k] for k in same)] + [result]
        args.output.write_text(json.dumps(results, indent=1) + "\n")
    print(table(done))


def measure(case: str, args: argparse.Namespace) -> dict[str, Any]:
    """Times all contenders on one case, in turns."""
    recipe, length, rows, *packed = case.split(":")
    config = make_config(recipe, int(length), int(rows), DEPTH if packed else 1)
    batch, peer_batch = make_packed_batches(config) if packed else [make_batch(config)] * 2
    contenders: dict[str, Any] = {}
    for attention in args.attention.split(","):
        model = dataclasses.replace(config.model, attention=attention)
        name = f"bertjax, {attention}"
        contenders[name] = Bertjax(dataclasses.replace(config, model=model), batch)
        print(f"{case}: {name}: {contenders[name].compile_seconds:.0f} s to start", flush=True)
    if args.peer:
        from benchmarks.train_step_peer import Transformers

        contenders[args.peer] = Transformers(config.model, peer_batch, compiled=not args.peer_eager)
        print(f"{case}: {args.peer}: {contenders[args.peer].compile_seconds:.0f} s to start")
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
    flops = phase.global_batch_size * flops_per_row(
        config.model, phase.max_length, phase.max_predictions
    )
    kind = jax.devices()[0].device_kind
    peak, measured = peak_flops(kind), matmul_flops(config.model.dtype)
    runs = {}
    for name, contender in contenders.items():
        best = min(seconds[name])
        peak_bytes = contender.peak_bytes()
        own = peer_batch if name == args.peer else batch
        sequences = own["pair_weights" if "pair_weights" in own else "row_weights"]
        tokens = own["segment_ids" if "segment_ids" in own else "attention_mask"] > 0
        runs[name] = {
            "sequences_per_second": float(sequences.sum() / best),
            "rows_per_second": phase.global_batch_size / best,
            "rows_per_second_median": phase.global_batch_size / statistics.median(seconds[name]),
            "real_tokens_per_second": int(tokens.sum()) / best,
            "mfu_of_peak": peak and flops / best / peak,
            "share_of_measured_matmul": flops / best / measured,
            "peak_gigabytes": peak_bytes and peak_bytes / 1e9,
            "seconds_to_start": round(contender.compile_seconds, 1),
            "step_seconds": seconds[name],
            "settings": contender.settings,
        }
    if args.peer:
        for run in runs.values():
            speed, theirs = (r["real_tokens_per_second"] for r in (run, runs[args.peer]))
            run["ratio_to_peer"] = speed / theirs
    contenders.clear()
    gc.collect()
    return {
        "case": case,
        "device": device_name(),
        "peer_mode": args.peer and ("eager" if args.peer_eager else "compiled"),
        "dropout_rate": config.model.dropout_rate,
        "measured_matmul_flops": measured,
        "peak_flops": peak,
        "runs": runs,
        "flags": {name: os.environ.get(name, "") for name in ("XLA_FLAGS", "OMP_NUM_THREADS")},
        "python": platform.python_version(),
        "command": "python -m benchmarks.train_step " + " ".join(sys.argv[1:]),
        "load": args.load,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def make_config(recipe: str, length: int, rows: int, depth: int = 1) -> Config:
    """The recipe with one phase of such rows, of so many pairs at most, on one device."""
    config = importlib.import_module(f"configs.{recipe}").get_config()
    dtype = compute_dtype(config.model, jax.default_backend())
    return dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, dtype=dtype),
        phases=(Phase(1_000_000, length, rows, packing_depth=depth),),
    )


def make_batch(config: Config) -> dict[str, np.ndarray]:
    """Full rows of random pieces, 15 % of them to predict, all from seed 0."""
    (phase,) = config.resolved_phases()
    b, t, m = phase.global_batch_size, phase.max_length, phase.max_predictions
    rng = np.random.default_rng(0)
    masked = round(config.data.mask_rate * t)
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
    from bertjax.data.packed_rows import PackedRows
    from bertjax.data.reader import RowReader
    from bertjax.data.rows import RowSpec
    from bertjax.data.wordpiece import WordPieceTokenizer

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


def matmul_flops(dtype: str) -> float:
    """FLOP/s of a large square matrix product, timed here and now."""
    size = 2_048 if jax.default_backend() == "cpu" else 8_192
    # Random: on zeros and ones chips draw less power and run faster.
    x = jnp.asarray(np.random.default_rng(0).normal(size=(size, size)), jnp.dtype(dtype))
    multiply = jax.jit(functools.partial(jnp.matmul, precision=product_precision(dtype)))
    multiply(x, x).block_until_ready()
    times = []
    for _ in range(10):
        started = time.perf_counter()
        multiply(x, x).block_until_ready()
        times.append(time.perf_counter() - started)
    return 2 * size**3 / min(times)


HEADER = (
    "case",
    "contender",
    "sequences/s",
    "rows/s",
    "median",
    "real tokens/s",
    "of peak",
    "of a product",
    "GB",
    "start, s",
    "ratio",
)


def lines(results: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    """The cells of the table."""
    cells: list[tuple[str, ...]] = []
    for result in results:
        for name, run in result["runs"].items():
            peak, memory = run["mfu_of_peak"], run["peak_gigabytes"]
            cells.append(
                (
                    result["case"],
                    f"{name}, {result['peer_mode']}" if "bertjax" not in name else name,
                    f"{run['sequences_per_second']:,.4g}",
                    f"{run['rows_per_second']:,.4g}",
                    f"{run['rows_per_second_median']:,.4g}",
                    f"{run['real_tokens_per_second']:,.4g}",
                    f"{peak:.1%}" if peak else "",
                    f"{run['share_of_measured_matmul']:.1%}",
                    f"{memory:.2f}" if memory else "",
                    f"{run['seconds_to_start']:.0f}",
                    f"{run['ratio_to_peer']:.2f}" if "ratio_to_peer" in run else "",
                )
            )
    return cells


def table(results: list[dict[str, Any]]) -> str:
    """For the terminal."""
    rows = [HEADER, *lines(results)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        for row in rows
    )


def report(results: list[dict[str, Any]]) -> None:
    """Writes the page and the plot beside it."""
    import matplotlib.pyplot as plt

    text = [
        "# The training step beside transformers",
        "",
        "Written by `python -m benchmarks.train_step --report` from "
        "`benchmarks/results/train_step.json`, which has commands, versions, settings and the "
        "time of every turn. The fastest turn counts, the median stands beside it; dropout 0.1, in "
        "turns in one process, full "
        "rows and the same batch, or where the case says packed, pairs as long as Wikipedia's. The "
        "ratio is of real tokens. 'Of peak' is against the vendor's dense bfloat16 figure, 'of a "
        "product' against a large matrix product timed in the same process.",
        "",
    ]
    for device in dict.fromkeys(result["device"] for result in results):
        chosen = [result for result in results if result["device"] == device]
        text += [f"## {device}", "", "| " + " | ".join(HEADER) + " |", "|---" * len(HEADER) + "|"]
        text += ["| " + " | ".join(row) + " |" for row in lines(chosen)]
        text.append("")
    PAGE.write_text(
        "\n".join([*text, "![arithmetic of the step beside a matrix product](train_step.png)", ""])
    )
    cells = [row[:2] for row in lines(results)]
    labels = [f"{case}\n{contender}" for case, contender in cells]
    shares = [
        run["share_of_measured_matmul"] for result in results for run in result["runs"].values()
    ]
    colors = ["tab:blue" if "bertjax" in label else "tab:gray" for label in labels]
    figure, axes = plt.subplots(figsize=(8, 0.6 + 0.5 * len(labels)), layout="constrained")
    axes.barh(range(len(labels)), shares, color=colors, tick_label=labels)
    axes.invert_yaxis()
    axes.set_xlabel("arithmetic of the model / a large matrix product on the same device")
    figure.savefig(PAGE.with_suffix(".png"), dpi=120)


if __name__ == "__main__":
    main()
