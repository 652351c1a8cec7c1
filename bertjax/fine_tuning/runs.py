"""The configurations of one fine-tuning run or of a grid, from a task, its files and a model."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bertjax.checkpoints.params_hash import params_sha256
from bertjax.config import ConfigError, FineTuningConfig, Phase, TaskConfig
from bertjax.config.checks import validate
from bertjax.config.overrides import with_overrides
from bertjax.data.tokenizers.tokenizer import Tokenizer
from bertjax.errors import BertjaxError
from bertjax.fine_tuning.defaults import DEFAULTS, is_decided
from bertjax.fine_tuning.job import Examples
from bertjax.fine_tuning.table import in_full
from bertjax.heads import HEADS
from bertjax.storage.bucket import is_bucket_path
from bertjax.tasks.registry import make_task
from bertjax.training.workdir import open_workdir
from bertjax.weights.formats import HUGGING_FACE, TF1, detect_format, read_weights
from bertjax.weights.hugging_face_folder import read_folder
from bertjax.weights.weights import Weights


@dataclasses.dataclass(frozen=True)
class Runs:
    """Fine-tuning runs that differ only in learning rate, batch size, epochs or seed; checked.

    Attributes:
      configs: one for each combination of the numbers.
      training: the examples to train on.
      evaluation: those to score on.
      tokenizer: that made the rows of both.
      initial_hash: `params_sha256` of the model to start from.
    """

    configs: list[FineTuningConfig]
    training: Examples
    evaluation: Examples
    tokenizer: Tokenizer
    initial_hash: str


def open_runs(
    task_name: str,
    init_from: str | Path,
    train: str | Path,
    eval: str | Path,
    *,
    options: Mapping[str, Any] | None = None,
    learning_rate: Sequence[float] = (3e-5,),
    batch_size: Sequence[int] = (32,),
    epochs: Sequence[float] = (),
    seed: Sequence[int] = (0,),
    max_length: int | None = None,
    warmup_share: float = 0.1,
    overrides: Mapping[str, Any] | None = None,
) -> Runs:
    """Reads the model and the examples, and checks everything before the first step.

    Args:
      task_name: one of `bertjax.tasks.registry.TASKS`.
      init_from: a workdir or a checkpoint of bertjax, or hf:FOLDER of a Hugging Face model.
      train: training examples: files, separated by commas, or tfds:NAME:SPLIT.
      eval: examples to score on, likewise.
      options: of the task, see `make_task`.
      learning_rate: peak learning rates.
      batch_size: rows per step, over all devices.
      epochs: times each example is seen; () = as the task has it.
      seed: of the new layer, the order and dropout.
      max_length: tokens per row; None = as the task has it.
      warmup_share: share of the steps in which the learning rate rises to its peak.
      overrides: other fields of `FineTuningConfig`, by dotted name.

    Raises:
      ConfigError: an argument, a field or the model does not fit.
      TaskError: the task, its options or its files are not as expected.
    """
    numbers = [
        _check_numbers("learning_rate", learning_rate),
        _check_numbers("batch_size", batch_size),
        _check_numbers("epochs", epochs) if epochs else [],
        _check_numbers("seed", seed, may_be_zero=True),
    ]
    if not 0 <= warmup_share <= 1:
        raise ConfigError(f"--warmup_share={warmup_share}: expected a share from 0 to 1")
    if max_length is not None and max_length < 1:
        raise ConfigError(f"--max_length={max_length}: expected 1 or more tokens")
    for name in overrides or {}:
        if is_decided(name):
            raise ConfigError(f"config.{name} is decided by an argument or the task")
    init_from = str(init_from)
    task = make_task(task_name, options)
    weights = _read_initial(init_from)
    initial, tokenizer = weights.config, weights.tokenizer
    assert tokenizer is not None
    max_length = max_length or task.default_max_length
    if max_length > initial.max_positions:
        raise ConfigError(
            f"--max_length={max_length} is beyond the {initial.max_positions} positions of "
            f"{init_from}: set --max_length={initial.max_positions} or less"
        )
    examples = task.read(str(train), needs_labels=True)
    task = task.with_labels(examples)
    training = Examples(task, examples, tokenizer, max_length)
    evaluation = Examples(task, task.read(str(eval), needs_labels=True), tokenizer, max_length)
    if initial.num_token_types < 2 and training.arrays["token_type_ids"].any():
        raise ConfigError(
            f"--init_from={init_from}: has one token type (model.num_token_types = 1), and the "
            f"pairs of texts of task {task.name} need two: start from another model"
        )
    model = dataclasses.replace(
        initial,
        head=task.head,
        num_labels=task.num_labels,
        pooler=HEADS[task.head].reads_pooled(initial.next_sentence),
    )
    described = TaskConfig(
        name=task.name,
        options=task.settings()["options"],
        train=str(train),
        eval=str(eval),
        max_length=max_length,
    )
    base = dataclasses.replace(DEFAULTS, model=model, init_from=init_from, task=described)
    num_rows = len(training.arrays["row_weights"])
    numbers[2] = numbers[2] or [task.default_epochs]
    configs = []
    for rate, rows, times, one_seed in itertools.product(*numbers):
        num_steps = max(1, math.floor(num_rows * times / rows))
        decided = {
            "seed": one_seed,
            "phases": (Phase(num_steps, training.max_length, rows),),
            "optimizer.learning_rate": rate,
            "optimizer.warmup_steps": round(warmup_share * num_steps),
            # Once an epoch, and at the end.
            "eval.every_steps": math.ceil(num_steps / max(1, round(times))),
            "task.batch_size": rows,
            "task.num_epochs": times,
        }
        configs.append(with_overrides(base, {**decided, **(overrides or {})}))
        validate(configs[-1])
    return Runs(configs, training, evaluation, tokenizer, params_sha256(weights.params))


def check_workdir(workdir: str | Path) -> Path:
    """Checks that results can be written to a workdir.

    Raises:
      ConfigError: it is a file, or in a bucket.
    """
    if is_bucket_path(workdir):
        raise ConfigError(
            f"--workdir={workdir}: fine-tuning keeps its results on a disk; name a folder"
        )
    return open_workdir(workdir).local  # which refuses a file


def folder_name(config: FineTuningConfig) -> str:
    """Folder of one run of several."""
    task = config.task
    rate, epochs = in_full(config.optimizer.learning_rate), in_full(task.num_epochs)
    return f"lr_{rate}_batch_{task.batch_size}_epochs_{epochs}_seed_{config.seed}"


def _check_numbers(name: str, values: Sequence[Any], may_be_zero: bool = False) -> list[Any]:
    numbers = [x for x in values if isinstance(x, (int, float)) and math.isfinite(x)]
    is_right = len(set(numbers)) == len(values) > 0 and min(numbers) >= 0
    if not is_right or (not may_be_zero and not min(numbers)):
        raise ConfigError(
            f"--{name}={','.join(map(_as_given, values))}: expected different positive numbers, "
            "separated by commas"
        )
    return numbers


def _as_given(value: Any) -> str:
    return in_full(value) if isinstance(value, float) else str(value)


def _read_initial(init_from: str) -> Weights:
    """The model to start from; each run reads the weights anew, laid out on its devices.

    Raises:
      ConfigError: there are none that can be read.
    """
    try:
        if init_from.startswith("hf:"):
            return read_folder(init_from.removeprefix("hf:"))
        found = "" if is_bucket_path(init_from) else detect_format(Path(init_from))
        if found == HUGGING_FACE:
            raise ConfigError(f"a Hugging Face folder is given as --init_from=hf:{init_from}")
        if found == TF1:
            raise ConfigError(
                f"{init_from} is a TF1 checkpoint: make a workdir of it first, python -m "
                f"bertjax.convert --input={init_from} --output=WORKDIR"
            )
        return read_weights(init_from)
    except BertjaxError as error:
        raise ConfigError(f"--init_from: {error}") from error
