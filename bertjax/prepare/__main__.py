"""Makes a token store from a corpus.

    python -m bertjax.prepare --input='corpus/*.jsonl.gz' --output=STORE --tokenizer=vocab.txt

Inputs are plain text (a blank line between documents, one line per paragraph), JSON lines with a
"text" field (*.jsonl, *.ndjson, *.json), either of them with gzip, on disk or in gs://,
tfds:NAME/CONFIG:SPLIT, and embedded:python, the documentation of this Python; several are separated
by commas. The store holds no lengths, pairs or masks: every recipe that uses its vocabulary can
read it.

--output=gs://BUCKET/FOLDER is prepared in this machine's cache ($BERTJAX_CACHE) and then uploaded,
the manifest last.

With --runner=DirectRunner, DataflowRunner, FlinkRunner or SparkRunner, Apache Beam encodes, and the
result is the same. All its workers must see the input and the output: docs/design/engines.md.

If a run was stopped or killed, the same command continues it. Text that cannot be used is reported
by file and line, counted in STORE/manifest.json, and an error under --strict. Exit codes: 0
prepared; 2 something that cannot work; 1 stopped during the work, the same command continues; 130
interrupted.
"""

from __future__ import annotations

import dataclasses
import shlex
import sys
import typing
from collections.abc import Sequence
from typing import Any

from absl import flags

from bertjax.cli import command_line
from bertjax.config import ConfigError
from bertjax.data.store.store_writer import SHARD_TOKENS
from bertjax.errors import EXIT_FINISHED
from bertjax.prepare.build_store import build_store
from bertjax.prepare.options import PrepareOptions


def main(argv: Sequence[str] | None = None) -> typing.NoReturn:
    """Runs the command; see `command_line.run`."""
    interrupted = "interrupted; the same command continues where it stopped"
    command_line.run(_define, _prepare, __doc__ or "", argv, interrupted=interrupted)


def _define(values: flags.FlagValues) -> None:
    flags.DEFINE_string(
        "input",
        None,
        "Texts: globs (or gs://), tfds:NAME/CONFIG:SPLIT, embedded:python; separated by commas.",
        required=True,
        flag_values=values,
    )
    flags.DEFINE_string(
        "output",
        None,
        "Folder of the store: a path, or gs://BUCKET/FOLDER.",
        required=True,
        flag_values=values,
    )
    flags.DEFINE_string(
        "tokenizer",
        None,
        "wordpiece:PATH (or PATH.txt), sentencepiece:PATH (or PATH.model), hf:FOLDER of a Hugging "
        "Face model, the folder of a saved tokenizer, or train:wordpiece or train:sentencepiece to "
        "train one on the training documents (about 256 MiB of them).",
        required=True,
        flag_values=values,
    )
    flags.DEFINE_integer(
        "vocab_size",
        None,
        "Size of a trained vocabulary (default 30522). A given vocabulary is filled up to this "
        "size with [unusedN].",
        lower_bound=1,
        flag_values=values,
    )
    flags.DEFINE_boolean(
        "lower_case",
        None,
        "Lower the text and drop accents. Default: yes for WordPiece, no for a trained "
        "SentencePiece. A given SentencePiece model decides it itself.",
        flag_values=values,
    )
    flags.DEFINE_string(
        "language",
        "en",
        "Language of the texts, which decides where sentences end: ISO 639.",
        flag_values=values,
    )
    flags.DEFINE_float(
        "heldout_share",
        0.01,
        "Share of the documents held out for evaluation, chosen by a hash of their text.",
        flag_values=values,
    )
    flags.DEFINE_boolean(
        "drop_duplicates",
        False,
        "Leave out documents if most of their text is in an earlier one; STORE/duplicates.jsonl "
        "lists them. The input is read twice.",
        flag_values=values,
    )
    flags.DEFINE_boolean(
        "strict", False, "Stop at the first problem of the input.", flag_values=values
    )
    flags.DEFINE_integer(
        "shard_tokens",
        SHARD_TOKENS,
        "Tokens per file of the store. A kill costs at most the work for one file.",
        lower_bound=1,
        flag_values=values,
    )
    flags.DEFINE_string(
        "data_dir",
        None,
        "Folder of TFDS data sets. Default: $TFDS_DATA_DIR or ~/tensorflow_datasets.",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "num_workers",
        0,
        "Processes that encode; 0 = one per core. The result is the same.",
        lower_bound=0,
        flag_values=values,
    )
    flags.DEFINE_string(
        "runner",
        "local",
        "What encodes: local = processes on this machine, or a runner of Apache Beam "
        "(DirectRunner, DataflowRunner, FlinkRunner, SparkRunner; pip install 'bertjax[beam]'). "
        "The result is the same. Its workers must share input and output: a bucket or shared "
        "storage.",
        flag_values=values,
    )
    flags.DEFINE_string(
        "beam_options",
        "",
        "Options of the runner, in one string: '--region=europe-west4 --num_workers=100'.",
        flag_values=values,
    )


def _prepare(values: flags.FlagValues, arguments: list[str]) -> int:
    """Builds the store; returns 0."""
    if arguments:
        raise ConfigError(f"unexpected {arguments[0]!r}; is a glob not quoted?")
    command_line.show_log(stream=sys.stdout)
    names = [field.name for field in dataclasses.fields(PrepareOptions) if field.name in values]
    given: dict[str, Any] = {name: values[name].value for name in names}
    store = build_store(**given)
    print(
        "texts, duplicates and lengths: python -m bertjax.inspect "
        f"{shlex.quote(values.input)} or {store.path}"
    )
    return EXIT_FINISHED


if __name__ == "__main__":
    main()
