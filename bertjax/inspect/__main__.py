"""Checks a corpus or a token store for faults that would waste or spoil a run.

    python -m bertjax.inspect STORE
    python -m bertjax.inspect 'corpus/*.jsonl.gz,more/*.txt' --html=report.html

Several inputs are separated by commas, as for prepare --input. Exit codes: 0; under --strict 3 if
anything was found; 2 if the input cannot be read.
"""

from __future__ import annotations

import json
import sys
import typing
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from bertjax.cli import command_line
from bertjax.config import ConfigError
from bertjax.errors import EXIT_FINISHED, EXIT_REFUSED
from bertjax.inspect.page import page
from bertjax.inspect.report import inspect_data


def main(argv: Sequence[str] | None = None) -> typing.NoReturn:
    """Runs the command; see `command_line.run`."""
    command_line.run(_define, _inspect, __doc__ or "", argv, exit_code=EXIT_REFUSED)


def _define(values: flags.FlagValues) -> None:
    flags.DEFINE_boolean("json", False, "Print JSON instead of text.", flag_values=values)
    flags.DEFINE_string(
        "html", None, "Also write a page with plots to this file.", flag_values=values
    )
    flags.DEFINE_boolean(
        "strict", False, "Exit with 3 where anything was found.", flag_values=values
    )
    flags.DEFINE_string(
        "language",
        "en",
        "Language of the texts, which decides where sentences end: ISO 639.",
        flag_values=values,
    )
    flags.DEFINE_string(
        "tokenizer",
        None,
        "Tokenizer that the texts are to be prepared with, as for prepare; its [UNK] are counted.",
        flag_values=values,
    )
    flags.DEFINE_boolean(
        "lower_case",
        None,
        "Whether that tokenizer lowers the text, as for prepare.",
        flag_values=values,
    )
    flags.DEFINE_string(
        "data_dir",
        None,
        "Folder of TFDS data sets. Default: $TFDS_DATA_DIR or ~/tensorflow_datasets.",
        flag_values=values,
    )


def _inspect(values: flags.FlagValues, arguments: list[str]) -> int:
    """Prints the report; see the exit status above."""
    if len(arguments) != 1:
        raise ConfigError("give one STORE or 'GLOB,GLOB', quoted")
    if values.html and not Path(values.html).absolute().parent.is_dir():
        raise ConfigError(f"--html={values.html}: expected a file in a folder that exists")
    report = inspect_data(
        arguments[0], values.language, values.data_dir, values.tokenizer, values.lower_case
    )
    if values.html:
        Path(values.html).write_text(page(report), encoding="utf-8")
    if values.json:
        print(json.dumps(report.as_json(), ensure_ascii=False))
    else:
        print(report.text(sys.stdout.isatty()))
    return 3 if report.findings and values.strict else EXIT_FINISHED


if __name__ == "__main__":
    main()
