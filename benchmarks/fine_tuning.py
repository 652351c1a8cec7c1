"""Fine-tunes beside transformers + torch: same weights, heads, rows, order and hyper-parameters.

    python -m benchmarks.fine_tuning --weights=FOLDER --data=../shared/data --task=cola

For each seed both fine-tune the same Hugging Face folder: the new layer begins with the numbers
that bertjax draws from the seed, the batches hold the same rows in the same order, and learning
rates, weight decay, clipping and evaluations are the same. What differs is the program and the
dropout masks; with --nodropout, the program alone. Both keep the best of the evaluations, one an
epoch. What stands in the results is not run again, and several processes may share the file: one a
core, with taskset, makes the most of two cores, and --programs= lets each run one of the two, or
at another time. benchmarks.fine_tuning_page makes the page of the results. Needs the extra `peer`,
in an environment of its own.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import logging
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import app, flags
from filelock import FileLock

from benchmarks.hardware import device_name
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
from bertjax.fine_tuning.run import fine_tune
from bertjax.models import init_params
from bertjax.tasks.registry import make_task
from bertjax.tasks.task import join_outputs
from bertjax.training.compilation_cache import use_compilation_cache
from bertjax.training.optimizer import make_schedule
from bertjax.weights.bertjax_checkpoint import SCORES
from bertjax.weights.hugging_face_folder import read_folder

RESULT = Path(__file__).parent / "results" / "fine_tuning.json"
TASKS = {  # name: (task, training files, evaluation file, tokens a row)
    "polarity": ("polarity", "polarity/train.tsv", "polarity/dev.tsv", 64),
    "cola": ("cola", "cola/in_domain_train.tsv", "cola/in_domain_dev.tsv", 64),
    "stsb": ("stsb", "stsb/sts-train.tsv", "stsb/sts-dev.tsv", 64),
    "wnut17": ("ner", "ner/wnut17train.conll", "ner/emerging.test.annotated", 64),
    "squad": ("squad", "squad/train-v1.1.json.gz", "squad/dev-v1.1.json.gz", 384),
}
_WEIGHTS = flags.DEFINE_string("weights", None, "Hugging Face folder of a BERT.", required=True)
_DATA = flags.DEFINE_string("data", "../shared/data", "Folder of the tasks' files.")
_TASK = flags.DEFINE_enum("task", None, list(TASKS), "What to fine-tune for.", required=True)
_PROGRAMS = flags.DEFINE_list("programs", ["bertjax", "transformers"], "Which of the two to run.")
_SEEDS = flags.DEFINE_list("seeds", ["0", "1", "2", "3", "4"], "Seeds.")
_EPOCHS = flags.DEFINE_integer("epochs", 3, "Times each example is seen.")
_LEARNING_RATE = flags.DEFINE_float("learning_rate", 5e-5, "Peak learning rate.")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 32, "Rows a step.")
_SHARE = flags.DEFINE_float("share", 1.0, "Of the training examples, the same for all seeds.")
_DTYPE: flags.FlagHolder[Any] = flags.DEFINE_enum(
    "dtype", "float32", ["float32", "bfloat16"], "Of the computation; parameters stay in float32."
)
_DROPOUT = flags.DEFINE_bool("dropout", True, "Without it both programs compute the same.")
_LOAD = flags.DEFINE_string("load", "", "What else the machine was doing, for the record.")

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
_PACKAGES = {"bertjax": ("jax", "bertjax"), "transformers": ("torch", "transformers")}
_INPUTS = ("input_ids", "token_type_ids", "attention_mask")


def main(_: list[str]) -> None:
    """Runs the seeds that are missing and prints the table."""
    logging.basicConfig(level=logging.WARNING)
    use_compilation_cache()  # as the command does
    name, train, evaluate, max_length = TASKS[_TASK.value]
    data = Path(_DATA.value)
    weights = read_folder(_WEIGHTS.value)
    tokenizer = weights.tokenizer
    assert tokenizer is not None
    task = make_task(name)
    examples = task.read(str(data / train), needs_labels=True)
    task = task.with_labels(examples)
    chosen = np.random.default_rng(0).permutation(len(examples))
    chosen = np.sort(chosen[: round(_SHARE.value * len(examples))])
    examples = [examples[i] for i in chosen]
    training = Examples(task, examples, tokenizer, max_length)
    evaluation = Examples(
        task, task.read(str(data / evaluate), needs_labels=True), tokenizer, max_length
    )
    model = dataclasses.replace(
        weights.config,
        head=task.head,
        num_labels=task.num_labels,
        pooler=task.head in ("classification", "regression"),
        dtype=_DTYPE.value,
    )
    if not _DROPOUT.value:
        model = dataclasses.replace(model, dropout_rate=0.0, attention_dropout_rate=0.0)
    key = f"{_TASK.value}_batch_{_BATCH_SIZE.value}_lr_{_LEARNING_RATE.value:g}"
    key += f"_epochs_{_EPOCHS.value}"
    if _SHARE.value < 1:
        key += f"_share_{_SHARE.value:g}"
    if not _DROPOUT.value:
        key += "_no_dropout"
    if _DTYPE.value != "float32":
        key += f"_{_DTYPE.value}"
    run = {
        "bertjax": functools.partial(_run_ours, training, evaluation, tokenizer),
        "transformers": functools.partial(_run_theirs, training, evaluation),
    }
    for seed, program in itertools.product(map(int, _SEEDS.value), _PROGRAMS.value):
        if program in _results().get(key, {}).get("runs", {}).get(str(seed), {}):
            continue
        scores, seconds, cpu_seconds = _timed(run[program], _config(model, task, training, seed))
        result = {
            "scores": scores,
            "seconds": seconds,
            "cpu_seconds": cpu_seconds,
            "hardware": device_name(),
            "load": _LOAD.value,
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "versions": {n: version(n) for n in _PACKAGES[program]},
        }
        _add(key, task.main_metric, training.max_length, str(seed), program, result)
        print(seed, program, json.dumps(result), flush=True)


def _config(model: ModelConfig, task: Any, training: Examples, seed: int) -> FineTuningConfig:
    rows = len(training.arrays["row_weights"])
    num_steps = rows * _EPOCHS.value // _BATCH_SIZE.value
    return FineTuningConfig(
        seed=seed,
        init_from=f"hf:{_WEIGHTS.value}",
        model=model,
        phases=(Phase(num_steps, training.max_length, _BATCH_SIZE.value),),
        optimizer=OptimizerConfig(
            name="adamw", learning_rate=_LEARNING_RATE.value, warmup_steps=round(0.1 * num_steps)
        ),
        checkpoint=CheckpointConfig(every_steps=num_steps, every_minutes=0, keep=1),
        eval=EvalConfig(every_steps=-(-num_steps // _EPOCHS.value)),
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
        fine_tune(config, Path(folder), training, evaluation, tokenizer)
        scores = json.loads((Path(folder) / SCORES).read_text())["scores"]
    return {k: v for k, v in scores.items() if k != "loss"}


def _run_theirs(
    training: Examples, evaluation: Examples, config: FineTuningConfig
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
            _WEIGHTS.value,
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
    num_steps = config.total_steps
    rates = np.asarray(make_schedule(config.optimizer, num_steps)(jax.numpy.arange(num_steps)))
    rows = ExampleRows(training.model_arrays(), seed=config.seed)
    best: dict[str, float] = {}
    for step in range(num_steps):
        positions = step * _BATCH_SIZE.value + np.arange(_BATCH_SIZE.value)
        batch = {name: torch.from_numpy(x).to(device) for name, x in rows.rows(positions).items()}
        model.train()
        with _precision(device):
            outputs = model(**{name: batch[name].long() for name in _INPUTS})
            loss = _loss(task.head, outputs, batch)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.optimizer.max_grad_norm)
        for group in optimizer.param_groups:
            group["lr"] = float(rates[step])
        optimizer.step()
        if (step + 1) % config.eval.every_steps == 0 or step + 1 == num_steps:
            scores = _evaluate_theirs(model, evaluation)
            if not best or scores[task.main_metric] > best[task.main_metric]:
                best = scores
    return best


def _precision(device: Any) -> Any:
    import torch

    return torch.autocast(device.type, torch.bfloat16, enabled=_DTYPE.value == "bfloat16")


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


def _evaluate_theirs(model: Any, evaluation: Examples) -> dict[str, float]:
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
            with _precision(model.device):
                found = model(**inputs)
            for name in names:
                parts[name].append((rows, found[name].float().cpu().numpy()))
    mask = arrays["attention_mask"]
    outputs = {name: join_outputs(task.head, parts[name], mask) for name in names}
    if task.head == "regression":
        outputs = {"values": outputs["logits"][:, 0]}
    return task.scores(evaluation.examples, task.predictions(evaluation.examples, arrays, outputs))


def _results() -> dict[str, Any]:
    return json.loads(RESULT.read_text()) if RESULT.exists() else {}


def _add(
    key: str, metric: str, max_length: int, seed: str, program: str, result: dict[str, Any]
) -> None:
    with FileLock(RESULT.with_suffix(".lock")):
        results = _results()
        entry = results.setdefault(
            key,
            {
                "task": _TASK.value,
                "weights": Path(_WEIGHTS.value).name,
                "main_metric": metric,
                "max_length": max_length,
                "batch_size": _BATCH_SIZE.value,
                "epochs": _EPOCHS.value,
                "learning_rate": _LEARNING_RATE.value,
                "share_of_training_examples": _SHARE.value,
                "dropout": _DROPOUT.value,
                "dtype": _DTYPE.value,
                "runs": {},
            },
        )
        entry["runs"].setdefault(seed, {})[program] = result
        RESULT.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    app.run(main)
