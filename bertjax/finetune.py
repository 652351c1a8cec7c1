r"""Fine-tunes a pre-trained BERT on a task, and scores it.

    python -m bertjax.finetune --task=sst2 --init_from=runs/mine --workdir=runs/sst2 \
      --train=train.tsv --eval=dev.tsv
    python -m bertjax.finetune --task=classification --option=text_column=review \
      --option=label_column=stars --init_from=hf:FOLDER --workdir=runs/reviews \
      --train=train.csv --eval=dev.csv

It trains the encoder and one small new layer with the loop and checkpoints of pre-training: run the
command again with the same --workdir to resume. Lists (--seed=0,1,2 --learning_rate=2e-5,3e-5,5e-5)
make one run for each combination, each in its own folder, and a table of means and deviations. Exit
codes are those of `bertjax.train`.

The published settings (Devlin et al. 2019, appendix A.3): batch 16 or 32, learning rate 5e-5, 3e-5
or 2e-5, 2 to 4 epochs.
"""

from __future__ import annotations

import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from absl import flags

from bertjax.cli import recipe_flags
from bertjax.cli.command_line import errors_in_one_line
from bertjax.config import ConfigError
from bertjax.errors import EXIT_FINISHED, EXIT_PREEMPTED
from bertjax.fine_tuning.defaults import DEFAULTS, is_decided
from bertjax.tasks.registry import TASKS, parse_option

_NEEDED = ("task", "init_from", "train", "eval", "workdir")


def main(argv: Sequence[str] | None = None) -> typing.NoReturn:
    """Runs the command; see `command_line.run`."""
    recipe_flags.run_with_overrides(_define, _fine_tune, __doc__ or "", DEFAULTS, is_decided, argv)


def _define(values: flags.FlagValues) -> None:
    flags.DEFINE_string("task", None, f"One of {', '.join(TASKS)}.", flag_values=values)
    flags.DEFINE_multi_string(
        "option",
        [],
        "Option of the task as NAME=VALUE, once for each. classification and regression: "
        "text_column, text_pair_column, label_column, and of classification label_names; ner: "
        "word_column, tag_column, separator, entity_types; squad: doc_stride, max_query_length, "
        "n_best, max_answer_length. E.g. --option=text_column=sentence.",
        flag_values=values,
    )
    flags.DEFINE_string(
        "init_from",
        None,
        "A workdir or a checkpoint of bertjax, or hf:FOLDER of a Hugging Face model.",
        flag_values=values,
    )
    flags.DEFINE_string(
        "train",
        None,
        "Training examples: files, separated by commas, or tfds:NAME:SPLIT.",
        flag_values=values,
    )
    flags.DEFINE_string(
        "eval",
        None,
        "Examples to score on: files, separated by commas, or tfds:NAME:SPLIT.",
        flag_values=values,
    )
    flags.DEFINE_string(
        "workdir", None, "Folder of the run, or of the runs of a list.", flag_values=values
    )
    flags.DEFINE_list(
        "learning_rate",
        ["3e-5"],
        "Peak learning rates; one run for each.",
        flag_values=values,
    )
    flags.DEFINE_list(
        "batch_size",
        ["32"],
        "Rows per step, over all devices; one run for each.",
        flag_values=values,
    )
    flags.DEFINE_list(
        "epochs",
        None,
        "Passes over the examples; one run for each. Default: 3; 2 for squad.",
        flag_values=values,
    )
    flags.DEFINE_list(
        "seed",
        ["0"],
        "Seeds of the new layer, the order and dropout; one run for each.",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "max_length",
        None,
        "Largest number of tokens per row. Default: 128; 384 for squad.",
        lower_bound=1,
        flag_values=values,
    )
    flags.DEFINE_float(
        "warmup_share",
        0.1,
        "Share of the steps in which the learning rate rises to its peak.",
        0,
        1,
        flag_values=values,
    )


def _fine_tune(values: flags.FlagValues, overrides: Mapping[str, Any]) -> typing.NoReturn:
    """Fine-tunes, once or for each combination of the lists."""
    for name in _NEEDED:
        if not values[name].value:
            raise ConfigError(f"--{name} is missing: {values[name].help}")
    from bertjax.parallel import distributed

    with errors_in_one_line(distributed.end):
        distributed.end(_run(values, overrides))


def _run(values: flags.FlagValues, overrides: Mapping[str, Any]) -> int:
    from bertjax.fine_tuning.fine_tune import run_grid, run_one
    from bertjax.fine_tuning.runs import check_workdir, open_runs
    from bertjax.training.loop import TrainingDivergedError

    workdir = check_workdir(values.workdir)
    runs = open_runs(
        values.task,
        values.init_from,
        values.train,
        values.eval,
        options=dict(_option(values.task, text) for text in values.option),
        learning_rate=_numbers(values, "learning_rate", float),
        batch_size=_numbers(values, "batch_size", int),
        epochs=_numbers(values, "epochs", float),
        seed=_numbers(values, "seed", int),
        max_length=values.max_length,
        warmup_share=values.warmup_share,
        overrides=overrides,
    )
    if values.print_config:
        print("\n".join(config.to_json() for config in runs.configs))
        return EXIT_FINISHED
    if len(runs.configs) == 1:
        return run_one(runs, workdir).exit_code
    result = run_grid(runs, workdir)
    if result.preempted:
        return EXIT_PREEMPTED
    print(result.table)
    if result.diverged:
        lines = [f"{name}: {reason}" for name, reason in result.diverged.items()]
        raise TrainingDivergedError("\n".join(lines))
    return EXIT_FINISHED


def _option(task: str, text: str) -> tuple[str, Any]:
    """Name and value of an --option.

    Raises:
      ConfigError: it has no =.
    """
    name, separator, value = text.partition("=")
    if not separator:
        raise ConfigError(f"--option={text}: expected NAME=VALUE")
    return name, parse_option(task, name, value)


def _numbers(values: flags.FlagValues, name: str, kind: Callable[[str], float]) -> list[Any]:
    """The numbers of a list; `open_runs` refuses a text that is none."""
    numbers: list[Any] = []
    for text in values[name].value or ():
        try:
            numbers.append(kind(text))
        except ValueError:
            numbers.append(text)
    return numbers


if __name__ == "__main__":
    main()
