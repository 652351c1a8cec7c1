"""The configurations of one fine-tuning run or of a grid, from a task, its files and a model."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bertjax.checkpoints.params_hash import params_sha256
from bertjax.config import ConfigError, FineTuningConfig, ModelConfig, Phase, TaskConfig
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
from bertjax.tasks.task import Task
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
    numbers = check_numbers(learning_rate, batch_size, epochs, seed, max_length, warmup_share)
    check_overrides(overrides)
    task = make_task(task_name, options)
    initial = open_initial(str(init_from))
    length = row_length(task, initial, max_length)
    data = read_data(task, str(train), str(eval))
    return make_runs(
        initial,
        data,
        *data.rows(initial.tokenizer, length),
        numbers=numbers,
        max_length=length,
        warmup_share=warmup_share,
        overrides=overrides,
    )


class Numbers(NamedTuple):
    """The numbers of several runs, of which each combination is one; no epochs = the task's."""

    learning_rates: list[float]
    batch_sizes: list[int]
    epochs: list[float]
    seeds: list[int]


def check_numbers(
    learning_rate: Sequence[float],
    batch_size: Sequence[int],
    epochs: Sequence[float],
    seed: Sequence[int],
    max_length: int | None,
    warmup_share: float,
) -> Numbers:
    """Checks the numbers that `open_runs` takes.

    Raises:
      ConfigError: one cannot be, or is given twice.
    """
    numbers = Numbers(
        check_list("learning_rate", learning_rate),
        check_list("batch_size", batch_size),
        check_list("epochs", epochs) if epochs else [],
        check_list("seed", seed, may_be_zero=True),
    )
    if not 0 <= warmup_share <= 1:
        raise ConfigError(f"--warmup_share={warmup_share}: expected a share from 0 to 1")
    if max_length is not None and max_length < 1:
        raise ConfigError(f"--max_length={max_length}: expected 1 or more tokens")
    return numbers


def check_overrides(overrides: Mapping[str, Any] | None) -> None:
    """Refuses fields that an argument or the task decides.

    Raises:
      ConfigError: there is one.
    """
    for name in overrides or {}:
        if is_decided(name):
            raise ConfigError(f"config.{name} is decided by an argument or the task")


@dataclasses.dataclass(frozen=True)
class InitialModel:
    """A model to start from, without its parameters.

    Attributes:
      init_from: where each run reads them.
      config: of the model.
      tokenizer: of the model.
      params_hash: `params_sha256` of its parameters.
    """

    init_from: str
    config: ModelConfig
    tokenizer: Tokenizer
    params_hash: str


def open_initial(init_from: str, flag: str = "init_from") -> InitialModel:
    """Reads a model to start from; each run reads the weights anew, laid out on its devices.

    Args:
      init_from: see `open_runs`.
      flag: that gave it, for messages.

    Raises:
      ConfigError: there is none that can be read.
    """
    weights = _read_initial(init_from, flag)
    assert weights.tokenizer is not None
    return InitialModel(init_from, weights.config, weights.tokenizer, params_sha256(weights.params))


@dataclasses.dataclass(frozen=True)
class TaskData:
    """The examples of a task.

    Attributes:
      task: that knows its labels.
      train: the files to train on, as they were given.
      eval: those to score on.
      training: examples of `Task.read`.
      evaluation: likewise.
    """

    task: Task[Any]
    train: str
    eval: str
    training: Sequence[Any]
    evaluation: Sequence[Any]

    def rows(self, tokenizer: Tokenizer, max_length: int) -> tuple[Examples, Examples]:
        """The rows to train on, and those to score on."""
        return (
            Examples(self.task, self.training, tokenizer, max_length),
            Examples(self.task, self.evaluation, tokenizer, max_length),
        )


def read_data(task: Task[Any], train: str, eval: str) -> TaskData:
    """Reads the examples of a task; see `open_runs`."""
    training = task.read(train, needs_labels=True)
    task = task.with_labels(training)
    return TaskData(task, train, eval, training, task.read(eval, needs_labels=True))


def row_length(task: Task[Any], initial: InitialModel, max_length: int | None) -> int:
    """The largest number of tokens per row, of which the model must have the positions.

    Raises:
      ConfigError: it has fewer.
    """
    length = max_length or task.default_max_length
    if length > initial.config.max_positions:
        raise ConfigError(
            f"--max_length={length} is beyond the {initial.config.max_positions} positions of "
            f"{initial.init_from}: set --max_length={initial.config.max_positions} or less"
        )
    return length


def make_runs(
    initial: InitialModel,
    data: TaskData,
    training: Examples,
    evaluation: Examples,
    *,
    numbers: Numbers,
    max_length: int,
    warmup_share: float,
    overrides: Mapping[str, Any] | None,
) -> Runs:
    """The runs of one model on one task.

    Args:
      initial: to start from.
      data: the task.
      training: its rows to train on, of the model's tokenizer.
      evaluation: those to score on.
      numbers: each combination is a run.
      max_length: that was asked for; rows may be shorter.
      warmup_share: see `open_runs`.
      overrides: see `open_runs`.

    Raises:
      ConfigError: the model does not fit the task, or a field cannot work.
    """
    task, their = data.task, initial.config
    if their.num_token_types < 2 and training.arrays["token_type_ids"].any():
        raise ConfigError(
            f"--init_from={initial.init_from}: has one token type (model.num_token_types = 1), and "
            f"the pairs of texts of task {task.name} need two: start from another model"
        )
    model = dataclasses.replace(
        their,
        head=task.head,
        num_labels=task.num_labels,
        pooler=HEADS[task.head].reads_pooled(their.next_sentence),
        factors="compute",  # rounded factors are a matter of the processor that pre-trained
    )
    described = TaskConfig(
        name=task.name,
        options=task.settings()["options"],
        train=data.train,
        eval=data.eval,
        max_length=max_length,
    )
    base = dataclasses.replace(DEFAULTS, model=model, init_from=initial.init_from, task=described)
    num_rows = len(training.arrays["row_weights"])
    combined = numbers._replace(epochs=numbers.epochs or [task.default_epochs])
    configs = []
    for rate, rows, times, one_seed in itertools.product(*combined):
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
    return Runs(configs, training, evaluation, initial.tokenizer, initial.params_hash)


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


def check_list(name: str, values: Sequence[Any], may_be_zero: bool = False) -> list[Any]:
    """Checks the numbers that the flag `name` gives.

    Raises:
      ConfigError: there is none, one is no positive number, or is given twice.
    """
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


def _read_initial(init_from: str, flag: str) -> Weights:
    try:
        if init_from.startswith("hf:"):
            return read_folder(init_from.removeprefix("hf:"))
        refuse_other_formats(init_from, flag)
        return read_weights(init_from)
    except BertjaxError as error:
        raise ConfigError(f"--{flag}: {error}") from error


def refuse_other_formats(init_from: str, flag: str) -> None:
    """Refuses a folder of another program's weights that is given like a bertjax one.

    Raises:
      WeightsError: there is no such folder.
      ConfigError: it is one of Hugging Face or TF1; says how to give it.
    """
    found = "" if is_bucket_path(init_from) else detect_format(Path(init_from))
    if found == HUGGING_FACE:
        raise ConfigError(f"a Hugging Face folder is given as --{flag}=hf:{init_from}")
    if found == TF1:
        raise ConfigError(
            f"{init_from} is a TF1 checkpoint: make a workdir of it first, python -m "
            f"bertjax.convert --input={init_from} --output=WORKDIR"
        )
