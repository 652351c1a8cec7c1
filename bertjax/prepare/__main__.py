"""Makes a token store from a corpus.

    python -m bertjax.prepare --input='corpus/*.jsonl.gz' --output=STORE --tokenizer=vocab.txt

Inputs are plain text (a blank line between documents, a line a paragraph), JSON lines with a
"text" field (*.jsonl, *.ndjson, *.json), either of them with gzip, on disk or in gs://,
tfds:NAME/CONFIG:SPLIT, and embedded:python, the documentation of this Python; several are separated
by commas. The store holds no lengths, pairs or masks: every recipe that uses its vocabulary can
read it.

--output=gs://BUCKET/FOLDER is prepared in this machine's cache ($BERTJAX_CACHE) and then uploaded,
the manifest last.

--runner=DirectRunner, DataflowRunner, FlinkRunner or SparkRunner has Apache Beam encode, with the
same result; input and output must lie where all its workers see them: docs/design/engines.md.

A run that was stopped or killed goes on with the same command. What cannot be used is reported by
file and line, counted in STORE/manifest.json, and an error under --strict. Exit codes: 0 prepared;
2 something that cannot work; 1 stopped in its work, the same command goes on; 130 interrupted.
"""

from __future__ import annotations

import hashlib
import shlex
from pathlib import Path

from absl import flags

from bertjax.cli import command_line
from bertjax.config import ConfigError
from bertjax.data.store.bucket_copy import upload_store
from bertjax.data.store.store import StoreError
from bertjax.data.store.store_writer import SHARD_TOKENS, UNFINISHED
from bertjax.errors import EXIT_FINISHED
from bertjax.inspect.stores import store_findings
from bertjax.prepare.build_store import prepare
from bertjax.prepare.options import PrepareOptions, PrepareStoppedError
from bertjax.storage.bucket import BucketPath, as_path, require_client
from bertjax.storage.cache import cache_folder

_INPUT = flags.DEFINE_string(
    "input",
    None,
    "Texts: globs, gs:// too, tfds:NAME/CONFIG:SPLIT or embedded:python, separated by commas.",
    required=True,
)
_OUTPUT = flags.DEFINE_string(
    "output", None, "Folder of the store: a path, or gs://BUCKET/FOLDER.", required=True
)
_TOKENIZER = flags.DEFINE_string(
    "tokenizer",
    None,
    "wordpiece:PATH (or PATH.txt), sentencepiece:PATH (or PATH.model), hf:FOLDER of a Hugging Face "
    "model, the folder of a saved tokenizer, or train:wordpiece or train:sentencepiece to train "
    "one on the training documents (about 256 MiB of them).",
    required=True,
)
_VOCAB_SIZE = flags.DEFINE_integer(
    "vocab_size",
    None,
    "Pieces of a trained vocabulary (30522 where not given); a given one is filled up to it. "
    "Missing pieces become [unusedN].",
    lower_bound=1,
)
_LOWER_CASE = flags.DEFINE_boolean(
    "lower_case",
    None,
    "Lower the text and drop accents. Default: yes for WordPiece, no for a trained SentencePiece; "
    "a given SentencePiece model says it itself.",
)
_LANGUAGE = flags.DEFINE_string(
    "language", "en", "Language of the texts, which decides where sentences end: ISO 639."
)
_HELDOUT_SHARE = flags.DEFINE_float(
    "heldout_share",
    0.01,
    "Share of the documents held out for evaluation, chosen by a hash of their text.",
)
_DROP_DUPLICATES = flags.DEFINE_boolean(
    "drop_duplicates",
    False,
    "Leave out documents most of whose text stands in an earlier one; STORE/duplicates.jsonl lists "
    "them. The input is read twice.",
)
_STRICT = flags.DEFINE_boolean("strict", False, "Stop at the first problem of the input.")
_SHARD_TOKENS = flags.DEFINE_integer(
    "shard_tokens",
    SHARD_TOKENS,
    "Tokens in a file of the store: what has to be done again after a kill.",
    lower_bound=1,
)
_DATA_DIR = flags.DEFINE_string(
    "data_dir", None, "Folder of TFDS data sets. Default: $TFDS_DATA_DIR or ~/tensorflow_datasets."
)
_NUM_WORKERS = flags.DEFINE_integer(
    "num_workers",
    0,
    "Processes that encode; 0 = one a core. The result is the same.",
    lower_bound=0,
)
_RUNNER = flags.DEFINE_string(
    "runner",
    "local",
    "Who encodes: local = processes on this machine, or a runner of Apache Beam (DirectRunner, "
    "DataflowRunner, FlinkRunner, SparkRunner; pip install 'bertjax[beam]'). The result is the "
    "same. Input and output must lie in a bucket or on storage that all its workers share.",
)
_BEAM_OPTIONS = flags.DEFINE_string(
    "beam_options",
    "",
    "Options of the runner, in one string: '--region=europe-west4 --num_workers=100'.",
)


def main(argv: list[str]) -> int:
    """Runs `prepare` with the flags; returns 0."""
    if len(argv) > 1:
        raise ConfigError(f"unexpected {argv[1]!r}; is a glob not quoted?")
    output = as_path(_OUTPUT.value)
    folder, staging = _OUTPUT.value, ""
    if isinstance(output, BucketPath):
        require_client()  # before hours of work
        number = hashlib.sha256(str(output).encode()).hexdigest()[:12]
        folder = str(cache_folder() / "prepared" / number / output.name)
        staging = str(output / UNFINISHED) if _RUNNER.value != "local" else ""
    store = prepare(
        PrepareOptions(
            input=_INPUT.value,
            output=folder,
            tokenizer=_TOKENIZER.value,
            vocab_size=_VOCAB_SIZE.value,
            lower_case=_LOWER_CASE.value,
            language=_LANGUAGE.value,
            heldout_share=_HELDOUT_SHARE.value,
            drop_duplicates=_DROP_DUPLICATES.value,
            strict=_STRICT.value,
            shard_tokens=_SHARD_TOKENS.value,
            data_dir=_DATA_DIR.value,
            num_workers=_NUM_WORKERS.value,
            runner=_RUNNER.value,
            beam_options=_BEAM_OPTIONS.value,
            staging=staging,
        )
    )
    for finding in store_findings(store):
        print("\n".join(finding.lines()))
    print(
        "texts, duplicates and lengths: python -m bertjax.inspect "
        f"{shlex.quote(_INPUT.value)} or {folder}"
    )
    if isinstance(output, BucketPath):
        try:
            upload_store(Path(folder), output)
        except StoreError as error:
            raise PrepareStoppedError(str(error)) from error
        (output / UNFINISHED).remove_tree()
        print(f"{output}: uploaded from {folder}, which may be deleted")
    return EXIT_FINISHED


if __name__ == "__main__":
    command_line.run(main, interrupted="interrupted; the same command goes on where it stopped")
