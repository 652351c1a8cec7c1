"""Fine-tunes a pre-trained BERT on a task, and scores it.

    python -m bertjax.finetune --task=sst2 --init_from=runs/mine --workdir=runs/sst2 \\
      --train=train.tsv --eval=dev.tsv
    python -m bertjax.finetune --task=classification --option=text_column=review \\
      --option=label_column=stars --init_from=hf:FOLDER --workdir=runs/reviews \\
      --train=train.csv --eval=dev.csv

One small layer on a pre-trained encoder, on the same loop, checkpoints and resume as pre-training:
run the command again with the same --workdir to resume. Lists (--seed=0,1,2
--learning_rate=2e-5,3e-5,5e-5) make one run for each combination, in folders of their own, and a
table of means and deviations. Exit codes are those of `bertjax.train`.

The published settings (Devlin et al. 2019, appendix A.3): batch 16 or 32, learning rate 5e-5, 3e-5
or 2e-5, 2 to 4 epochs.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
import math
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags

from bertjax.cli import recipe_flags
from bertjax.cli.command_line import errors_in_one_line
from bertjax.config import (
    CheckpointConfig,
    Config,
    ConfigError,
    FineTuningConfig,
    LogConfig,
    ModelConfig,
    OptimizerConfig,
    Phase,
    TaskConfig,
    is_within,
)
from bertjax.config.checks import validate
from bertjax.errors import EXIT_FINISHED, BertjaxError
from bertjax.heads import HEADS
from bertjax.storage.bucket import is_bucket_path
from bertjax.tasks.registry import TASK_NAMES, make_task, parse_option
from bertjax.tasks.task import Task

if TYPE_CHECKING:
    from bertjax.fine_tuning.job import Examples
    from bertjax.weights.weights import Weights

_LOG = logging.getLogger("bertjax.finetune")  # also where the module is __main__

# Of the configuration: what flags decide here, and what of these sections they do not.
_DECIDED = (
    *("task", "data", "phases", "seed", "init_from", "model.head", "model.num_labels"),
    *("optimizer.learning_rate", "optimizer.warmup_steps", "eval"),
)
_FREE = ("data.num_threads", "data.prefetch_batches", "eval.every_steps")


def _is_decided(name: str) -> bool:
    """Whether a field of the configuration is set by flags of its own or by the task."""
    return is_within(name, _DECIDED) and name not in _FREE


_CONFIG = recipe_flags.define_overrides(
    FineTuningConfig(
        optimizer=OptimizerConfig(name="adamw", warmup_steps=0),
        checkpoint=CheckpointConfig(keep=1),
        log=LogConfig(every_steps=20),
    ),
    _is_decided,
)
_TASK = flags.DEFINE_string("task", None, f"One of {', '.join(TASK_NAMES)}.")
_OPTION = flags.DEFINE_multi_string(
    "option",
    [],
    "Option of the task as NAME=VALUE, once for each. classification and regression: text_column, "
    "text_pair_column, label_column, and of classification label_names; ner: word_column, "
    "tag_column, separator, entity_types; squad: doc_stride, max_query_length, n_best, "
    "max_answer_length. E.g. --option=text_column=sentence.",
)
_INIT_FROM = flags.DEFINE_string(
    "init_from", None, "A workdir or a checkpoint of bertjax, or hf:FOLDER of a Hugging Face model."
)
_TRAIN = flags.DEFINE_string(
    "train", None, "Training examples: files, separated by commas, or tfds:NAME:SPLIT."
)
_EVAL = flags.DEFINE_string(
    "eval", None, "Examples to score on: files, separated by commas, or tfds:NAME:SPLIT."
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run, or of the runs of a list.")
_LEARNING_RATE = flags.DEFINE_list(
    "learning_rate", ["3e-5"], "Peak learning rates; several make a run each."
)
_BATCH_SIZE = flags.DEFINE_list(
    "batch_size", ["32"], "Rows a step, over all devices; several make a run each."
)
_EPOCHS = flags.DEFINE_list("epochs", None, "Times each example is seen. Default: 3; 2 for squad.")
_SEED = flags.DEFINE_list(
    "seed", ["0"], "Seeds of the new layer, the order and dropout; several make a run each."
)
_MAX_LENGTH = flags.DEFINE_integer(
    "max_length", None, "Tokens a row at most. Default: 128; 384 for squad.", lower_bound=1
)
_WARMUP = flags.DEFINE_float(
    "warmup_share", 0.1, "Share of the steps in which the learning rate rises to its peak.", 0, 1
)


def main(overridden: Config) -> typing.NoReturn:
    """Fine-tunes, once or for each combination of the lists."""
    for flag in (_TASK, _INIT_FROM, _TRAIN, _EVAL, _WORKDIR):
        if not flag.value:
            raise ConfigError(f"--{flag.name} is missing: {flags.FLAGS[flag.name].help}")
    if Path(_text(_WORKDIR)).is_file():
        raise ConfigError(f"--workdir={_WORKDIR.value}: is a file; name a folder")
    if is_bucket_path(_WORKDIR.value):
        raise ConfigError(
            f"--workdir={_WORKDIR.value}: fine-tuning keeps its results on a disk; name a folder"
        )
    from bertjax.parallel import distributed

    with errors_in_one_line(distributed.end):
        distributed.end(_run(overridden))


def _run(overridden: Config) -> int:
    from bertjax.checkpoints.params_hash import params_sha256
    from bertjax.fine_tuning.job import Examples
    from bertjax.fine_tuning.run import fine_tune
    from bertjax.training.compilation_cache import use_compilation_cache
    from bertjax.training.loop import TrainingDivergedError

    use_compilation_cache()
    assert isinstance(overridden, FineTuningConfig)
    # All that can be wrong is found before the first step of the first run.
    task = make_task(_text(_TASK), dict(map(_option, _OPTION.value)))
    init_from = _text(_INIT_FROM)
    weights = _read_initial(init_from)
    initial, tokenizer = weights.config, weights.tokenizer
    assert tokenizer is not None
    max_length = _MAX_LENGTH.value or task.default_max_length
    if max_length > initial.max_positions:
        raise ConfigError(
            f"--max_length={max_length} is beyond the {initial.max_positions} positions of "
            f"{init_from}: set --max_length={initial.max_positions} or less"
        )
    examples = task.read(_text(_TRAIN), needs_labels=True)
    task = task.with_labels(examples)
    training = Examples(task, examples, tokenizer, max_length)
    evaluation = Examples(task, task.read(_text(_EVAL), needs_labels=True), tokenizer, max_length)
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
    settings = list(
        itertools.product(
            _numbers(_LEARNING_RATE, float),
            _numbers(_BATCH_SIZE, int),
            _numbers(_EPOCHS, float) if _EPOCHS.value else [task.default_epochs],
            _numbers(_SEED, int),
        )
    )
    configs = [
        _make_config(overridden, model, task, max_length, training, *setting)
        for setting in settings
    ]
    for config in configs:
        validate(config)
    if recipe_flags.PRINT_CONFIG.value:
        print("\n".join(config.to_json() for config in configs))
        return 0
    _LOG.info(
        "task %s: %s training examples in %s rows of %d tokens, %s to evaluate on",
        task.name,
        f"{len(examples):,}",
        f"{len(training.arrays['row_weights']):,}",
        training.max_length,
        f"{len(evaluation.examples):,}",
    )
    workdir = Path(_text(_WORKDIR))
    folders = [workdir] if len(configs) == 1 else [workdir / _name(config) for config in configs]
    initial_hash = params_sha256(weights.params)
    del weights
    diverged: dict[Path, str] = {}
    for number, (config, folder) in enumerate(zip(configs, folders, strict=True), 1):
        if len(configs) > 1:
            _LOG.info("run %d of %d: %s", number, len(configs), folder)
        try:
            exit_code = fine_tune(config, folder, training, evaluation, tokenizer, initial_hash)
        except TrainingDivergedError as error:
            if len(configs) == 1:
                raise
            _LOG.error("%s", error)  # the others of the list are worth having
            diverged[folder] = str(error)  # the error itself would keep the run's state
            continue
        if exit_code != EXIT_FINISHED:
            return exit_code
    if len(configs) > 1:
        from bertjax.fine_tuning.table import summarize

        print(summarize(workdir, folders, diverged))
    if diverged:
        lines = [f"{folder.name}: {reason}" for folder, reason in diverged.items()]
        raise TrainingDivergedError("\n".join(lines))
    return EXIT_FINISHED


def _read_initial(init_from: str) -> Weights:
    """The model to start from; each run reads the weights anew, laid out on its devices.

    Raises:
      ConfigError: there are none that can be read.
    """
    from bertjax.weights.formats import HUGGING_FACE, TF1, detect_format, read_weights
    from bertjax.weights.hugging_face_folder import read_folder

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


def _make_config(
    overridden: FineTuningConfig,
    model: ModelConfig,
    task: Task[Any],
    max_length: int,
    training: Examples,
    learning_rate: float,
    batch_size: int,
    num_epochs: float,
    seed: int,
) -> FineTuningConfig:
    """The configuration of one run: what the flags say, then what `--config.` overrides."""
    num_rows = len(training.arrays["row_weights"])
    num_steps = max(1, math.floor(num_rows * num_epochs / batch_size))
    config = FineTuningConfig.from_json(overridden.to_json())
    config.seed, config.init_from = seed, _text(_INIT_FROM)
    config.model = dataclasses.replace(model)
    config.phases = (Phase(num_steps, training.max_length, batch_size),)
    config.optimizer.learning_rate = learning_rate
    config.optimizer.warmup_steps = round(_WARMUP.value * num_steps)
    # Once an epoch, and at the end.
    config.eval.every_steps = math.ceil(num_steps / max(1, round(num_epochs)))
    config.task = TaskConfig(
        name=task.name,
        options=task.settings()["options"],
        train=_text(_TRAIN),
        eval=_text(_EVAL),
        max_length=max_length,
        batch_size=batch_size,
        num_epochs=num_epochs,
    )
    for name, value in recipe_flags.overrides(_CONFIG).items():
        *sections, field = name.split(".")
        node: Any = config
        for section in sections:
            node = getattr(node, section)
        setattr(node, field, value)
    return config


def _text(flag: flags.FlagHolder) -> str:
    """The value of a flag that main has found to be there."""
    return flag.value


def _option(text: str) -> tuple[str, Any]:
    """Name and value of an --option.

    Raises:
      ConfigError: it has no =.
    """
    name, separator, value = text.partition("=")
    if not separator:
        raise ConfigError(f"--option={text}: expected NAME=VALUE")
    return name, parse_option(_text(_TASK), name, value)


def _numbers(flag: flags.FlagHolder, kind: type) -> list[Any]:
    try:
        numbers: Sequence[Any] = [kind(text) for text in flag.value]
    except ValueError:
        numbers = []
    is_right = numbers and len(set(numbers)) == len(numbers) and all(map(math.isfinite, numbers))
    if not is_right or min(numbers) < 0 or (flag is not _SEED and not min(numbers)):
        raise ConfigError(
            f"--{flag.name}={','.join(flag.value)}: expected different positive numbers, separated "
            "by commas"
        )
    return list(numbers)


def _name(config: FineTuningConfig) -> str:
    """Folder of one run of several."""
    from bertjax.fine_tuning.table import in_full

    task = config.task
    rate, epochs = in_full(config.optimizer.learning_rate), in_full(task.num_epochs)
    return f"lr_{rate}_batch_{task.batch_size}_epochs_{epochs}_seed_{config.seed}"


if __name__ == "__main__":
    recipe_flags.run(main, _CONFIG, recipe=False)
