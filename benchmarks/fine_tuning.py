"""Fine-tunes beside transformers + torch: same weights, heads, rows, order and hyper-parameters.

    python -m benchmarks.fine_tuning --weights=FOLDER --data=../shared/data --task=cola

For each seed both fine-tune the same Hugging Face folder: the new layer begins with the numbers
that bertjax draws from the seed, the batches hold the same rows in the same order, and learning
rates, weight decay, clipping and evaluations are the same. What differs is the program and the
dropout masks; with --nodropout, the program alone. Both keep the best of the evaluations, one an
epoch. What stands in the results is not run again, and several processes may share the file: one a
core, with taskset, makes the most of two cores, and --programs= lets each run one of the two, or
at another time. Needs the extra `peer`, in an environment of its own.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import itertools
import json
import logging
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks.harness import DATA, Benchmark, Contents, Record, comma_list, read_contents
from bertjax.checkpoints.loadable_workdir import SCORES
from bertjax.config import (
    CheckpointConfig,
    EvalConfig,
    FineTuningConfig,
    LogConfig,
    ModelConfig,
    OptimizerConfig,
    Phase,
    TaskConfig,
)
from bertjax.data.stream.example_rows import ExampleRows
from bertjax.fine_tuning.job import Examples
from bertjax.fine_tuning.run import train_and_score
from bertjax.models import init_params
from bertjax.tasks.registry import make_task
from bertjax.tasks.task import join_outputs
from bertjax.training.compilation_cache import use_compilation_cache
from bertjax.training.optimizer import make_schedule
from bertjax.weights.hugging_face_folder import read_folder

TASKS = {  # name: (task, training files, evaluation file, tokens a row)
    "polarity": ("polarity", "polarity/train.tsv", "polarity/dev.tsv", 64),
    "cola": ("cola", "cola/in_domain_train.tsv", "cola/in_domain_dev.tsv", 64),
    "stsb": ("stsb", "stsb/sts-train.tsv", "stsb/sts-dev.tsv", 64),
    "wnut17": ("ner", "ner/wnut17train.conll", "ner/emerging.test.annotated", 64),
    "squad": ("squad", "squad/train-v1.1.json.gz", "squad/dev-v1.1.json.gz", 384),
}
_CLASSES = {
    "classification": "BertForSequenceClassification",
    "regression": "BertForSequenceClassification",
    "tagging": "BertForTokenClassification",
    "span": "BertForQuestionAnswering",
}
# Of each head: the new layer here, and what transformers calls it.
_LAYERS = {
    "classification": ("classification_head", "classifier"),
    "regression": ("classification_head", "classifier"),
    "tagging": ("tagging_head", "classifier"),
    "span": ("span_head", "qa_outputs"),
}
PROGRAMS = ("bertjax", "transformers")
_INPUTS = ("input_ids", "token_type_ids", "attention_mask")


def options(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    parser.add_argument("--weights", required=True, help="Hugging Face folder of a BERT")
    parser.add_argument("--data", type=Path, default=DATA, help="folder of the tasks' files")
    parser.add_argument("--task", required=True, choices=TASKS, help="what to fine-tune for")
    parser.add_argument(
        "--programs", type=comma_list, default=PROGRAMS, help="which of the two to run"
    )
    parser.add_argument("--seeds", type=comma_list, default=["0", "1", "2", "3", "4"])
    parser.add_argument("--epochs", type=int, default=3, help="times each example is seen")
    parser.add_argument("--learning_rate", type=float, default=5e-5, help="at the peak")
    parser.add_argument("--batch_size", type=int, default=32, help="rows per step")
    parser.add_argument(
        "--share", type=float, default=1.0, help="of the training examples, the same for all seeds"
    )
    parser.add_argument(
        "--dtype",
        default="float32",
        choices=["float32", "bfloat16"],
        help="of the computation; parameters stay in float32",
    )
    parser.add_argument(
        "--nodropout",
        dest="dropout",
        action="store_false",
        help="without dropout both programs compute the same",
    )


def measure(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Runs the seeds that are missing."""
    logging.basicConfig(level=logging.WARNING)
    use_compilation_cache()  # as the command does
    name, train, evaluate, max_length = TASKS[args.task]
    weights = read_folder(args.weights)
    tokenizer = weights.tokenizer
    assert tokenizer is not None
    task = make_task(name)
    examples = task.read(str(args.data / train), needs_labels=True)
    task = task.with_labels(examples)
    chosen = np.random.default_rng(0).permutation(len(examples))
    chosen = np.sort(chosen[: round(args.share * len(examples))])
    examples = [examples[i] for i in chosen]
    training = Examples(task, examples, tokenizer, max_length)
    evaluation = Examples(
        task, task.read(str(args.data / evaluate), needs_labels=True), tokenizer, max_length
    )
    model = dataclasses.replace(
        weights.config,
        head=task.head,
        num_labels=task.num_labels,
        pooler=task.head in ("classification", "regression"),
        dtype=args.dtype,
    )
    if not args.dropout:
        model = dataclasses.replace(model, dropout_rate=0.0, attention_dropout_rate=0.0)
    run = {
        "bertjax": functools.partial(_run_ours, training, evaluation, tokenizer),
        "transformers": functools.partial(_run_theirs, training, evaluation, args.weights),
    }
    setting = {
        "task": args.task,
        "weights": Path(args.weights).name,
        "main_metric": task.main_metric,
        "max_length": training.max_length,
        "batch_size": args.batch_size,
        "epochs": args.epochs,
        "learning_rate": args.learning_rate,
        "share_of_training_examples": args.share,
        "dropout": args.dropout,
        "dtype": args.dtype,
    }
    for seed, program in itertools.product(args.seeds, args.programs):
        done = (read_contents(args.output) or {}).get(_key(setting), {}).get("runs", {})
        if program in done.get(seed, {}):
            continue
        config = _config(args, model, task, training, int(seed))
        scores, seconds, cpu_seconds = _timed(run[program], config)
        print(seed, program, json.dumps(scores), flush=True)
        yield {
            "setting": setting,
            "seed": seed,
            "program": program,
            "scores": scores,
            "seconds": seconds,
            "cpu_seconds": cpu_seconds,
        }


def keep(old: Contents, record: Record) -> Contents:
    """Puts a run under its setting, seed and program."""
    results = old or {}
    setting = record.pop("setting")
    runs = results.setdefault(_key(setting), setting | {"runs": {}})["runs"]
    runs.setdefault(record["seed"], {})[record["program"]] = record
    return results


def _key(setting: dict[str, Any]) -> str:
    key = f"{setting['task']}_batch_{setting['batch_size']}_lr_{setting['learning_rate']:g}"
    key += f"_epochs_{setting['epochs']}"
    if setting["share_of_training_examples"] < 1:
        key += f"_share_{setting['share_of_training_examples']:g}"
    if not setting["dropout"]:
        key += "_no_dropout"
    if setting["dtype"] != "float32":
        key += f"_{setting['dtype']}"
    return key


def _config(
    args: argparse.Namespace, model: ModelConfig, task: Any, training: Examples, seed: int
) -> FineTuningConfig:
    rows = len(training.arrays["row_weights"])
    num_steps = rows * args.epochs // args.batch_size
    return FineTuningConfig(
        seed=seed,
        init_from=f"hf:{args.weights}",
        model=model,
        phases=(Phase(num_steps, training.max_length, args.batch_size),),
        optimizer=OptimizerConfig(
            name="adamw", learning_rate=args.learning_rate, warmup_steps=round(0.1 * num_steps)
        ),
        checkpoint=CheckpointConfig(every_steps=num_steps, every_minutes=0, keep=1),
        eval=EvalConfig(every_steps=-(-num_steps // args.epochs)),
        log=LogConfig(every_steps=50, tensorboard=False),
        task=TaskConfig(name=task.name, options=task.settings()["options"]),
    )


def _timed(run: Callable[[Any], dict[str, float]], config: Any) -> tuple[Any, float, float]:
    """What `run` returns; seconds on the clock and of all its threads."""
    clock, cpu = time.monotonic(), time.process_time()
    result = run(config)
    return result, round(time.monotonic() - clock, 1), round(time.process_time() - cpu, 1)


def _run_ours(
    training: Examples, evaluation: Examples, tokenizer: Any, config: FineTuningConfig
) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        train_and_score(config, Path(folder), training, evaluation, tokenizer)
        scores = json.loads((Path(folder) / SCORES).read_text())["scores"]
    return {k: v for k, v in scores.items() if k != "loss"}


def _run_theirs(
    training: Examples, evaluation: Examples, weights: str, config: FineTuningConfig
) -> dict[str, float]:
    """The same with torch, in the plain way of transformers' examples."""
    import torch
    import transformers

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(config.seed)
    task = training.task
    transformers.logging.set_verbosity_error()
    model = (
        getattr(transformers, _CLASSES[task.head])
        .from_pretrained(
            weights,
            num_labels=task.num_labels,
            hidden_dropout_prob=config.model.dropout_rate,
            attention_probs_dropout_prob=config.model.attention_dropout_rate,
            dtype=torch.float32,
        )
        .to(device)
    )
    ours, their_name = _LAYERS[task.head]
    head, layer = init_params(config.model, config.seed)[ours], getattr(model, their_name)
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(np.array(head["kernel"]).T.copy()))
        layer.bias.copy_(torch.from_numpy(np.array(head["bias"])))
    plain = [p for n, p in model.named_parameters() if n.endswith("bias") or "LayerNorm" in n]
    plain_ids = set(map(id, plain))
    decayed = [p for p in model.parameters() if id(p) not in plain_ids]
    optimizer = torch.optim.AdamW(
        [
            {"params": decayed, "weight_decay": config.optimizer.weight_decay},
            {"params": plain, "weight_decay": 0.0},
        ],
        lr=1.0,
        betas=(config.optimizer.b1, config.optimizer.b2),
        eps=config.optimizer.eps,
    )
    (phase,) = config.resolved_phases()
    num_steps, batch_size = phase.num_steps, phase.global_batch_size
    rates = np.asarray(make_schedule(config.optimizer, num_steps)(jax.numpy.arange(num_steps)))
    rows = ExampleRows(training.model_arrays(), seed=config.seed)
    best: dict[str, float] = {}
    for step in range(num_steps):
        positions = step * batch_size + np.arange(batch_size)
        batch = {name: torch.from_numpy(x).to(device) for name, x in rows.rows(positions).items()}
        model.train()
        with _precision(device, config.model):
            outputs = model(**{name: batch[name].long() for name in _INPUTS})
            loss = _loss(task.head, outputs, batch)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.optimizer.max_grad_norm)
        for group in optimizer.param_groups:
            group["lr"] = float(rates[step])
        optimizer.step()
        if (step + 1) % config.eval.every_steps == 0 or step + 1 == num_steps:
            scores = _evaluate_theirs(model, evaluation, config.model)
            if not best or scores[task.main_metric] > best[task.main_metric]:
                best = scores
    return best


def _precision(device: Any, model: ModelConfig) -> Any:
    import torch

    return torch.autocast(device.type, torch.bfloat16, enabled=model.dtype == "bfloat16")


def _loss(head: str, outputs: Any, batch: dict[str, Any]) -> Any:
    import torch

    cross_entropy = torch.nn.functional.cross_entropy
    if head == "span":
        start = cross_entropy(outputs.start_logits, batch["start_positions"].long())
        return (start + cross_entropy(outputs.end_logits, batch["end_positions"].long())) / 2
    if head == "regression":
        return torch.nn.functional.mse_loss(outputs.logits[:, 0], batch["targets"])
    if head == "classification":
        return cross_entropy(outputs.logits, batch["labels"].long())
    chosen = batch["tag_weights"] > 0
    return cross_entropy(outputs.logits[chosen], batch["tag_ids"][chosen].long())


def _evaluate_theirs(model: Any, evaluation: Examples, config: ModelConfig) -> dict[str, float]:
    import torch

    model.eval()
    task, arrays = evaluation.task, evaluation.arrays
    names = ("start_logits", "end_logits") if task.head == "span" else ("logits",)
    lengths = arrays["attention_mask"].sum(axis=1)
    order = np.argsort(lengths, kind="stable")
    parts: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {name: [] for name in names}
    with torch.no_grad():
        for begin in range(0, len(order), 64):  # of like lengths, padded to the longest
            rows = order[begin : begin + 64]
            inputs = {
                name: torch.from_numpy(arrays[name][rows, : lengths[rows[-1]]])
                .long()
                .to(model.device)
                for name in _INPUTS
            }
            with _precision(model.device, config):
                found = model(**inputs)
            for name in names:
                parts[name].append((rows, found[name].float().cpu().numpy()))
    mask = arrays["attention_mask"]
    outputs = {name: join_outputs(task.head, parts[name], mask) for name in names}
    if task.head == "regression":
        outputs = {"values": outputs["logits"][:, 0]}
    return task.scores(evaluation.examples, task.predictions(evaluation.examples, arrays, outputs))


BENCHMARK = Benchmark(measure, "fine_tuning.json", options, keep=keep)

if __name__ == "__main__":
    BENCHMARK.main()
