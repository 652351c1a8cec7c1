"""Looks for what would waste or spoil a run in a corpus or a token store.

    python -m bertjax.inspect STORE
    python -m bertjax.inspect 'corpus/*.jsonl.gz,more/*.txt' --html=report.html

Several inputs are separated by commas, as for prepare --input. Exit status: 0; under --strict 3
where anything was found; 2 where the input cannot be read.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from absl import flags

from bertjax.cli import command_line
from bertjax.config import ConfigError
from bertjax.data.store.store import MANIFEST, open_store, verify_store
from bertjax.data.tokenizers.tokenizer import from_argument
from bertjax.errors import EXIT_FINISHED, EXIT_REFUSED
from bertjax.inspect.page import page
from bertjax.inspect.report import inspect_store, inspect_texts

_JSON = flags.DEFINE_boolean("json", False, "Print JSON instead of text.")
_HTML = flags.DEFINE_string("html", None, "Also write a page with plots to this file.")
_STRICT = flags.DEFINE_boolean("strict", False, "Exit with 3 where anything was found.")
_LANGUAGE = flags.DEFINE_string(
    "language", "en", "Language of the texts, which decides where sentences end: ISO 639."
)
_TOKENIZER = flags.DEFINE_string(
    "tokenizer",
    None,
    "Tokenizer that the texts are to be prepared with, as for prepare, whose [UNK] are counted.",
)
_LOWER_CASE = flags.DEFINE_boolean(
    "lower_case", None, "Whether that tokenizer lowers the text, as for prepare."
)
_DATA_DIR = flags.DEFINE_string(
    "data_dir", None, "Folder of TFDS data sets. Default: $TFDS_DATA_DIR or ~/tensorflow_datasets."
)


def main(argv: list[str]) -> int:
    """Prints the report; see the exit status above."""
    if len(argv) != 2:
        raise ConfigError("give one STORE or 'GLOB,GLOB', quoted")
    if _HTML.value and not Path(_HTML.value).absolute().parent.is_dir():
        raise ConfigError(f"--html={_HTML.value}: expected a file in a folder that exists")
    if (Path(argv[1]) / MANIFEST).exists():
        verify_store(argv[1])
        report = inspect_store(open_store(argv[1]))
    else:
        tokenizer = None
        if _TOKENIZER.value:
            tokenizer = from_argument(_TOKENIZER.value, lower_case=_LOWER_CASE.value)
        report = inspect_texts(argv[1], _LANGUAGE.value, _DATA_DIR.value, tokenizer)
    if _HTML.value:
        Path(_HTML.value).write_text(page(report), encoding="utf-8")
    if _JSON.value:
        print(json.dumps(report.as_json(), ensure_ascii=False))
    else:
        print(report.text(sys.stdout.isatty()))
    return 3 if report.findings and _STRICT.value else EXIT_FINISHED


if __name__ == "__main__":
    command_line.run(main, exit_code=EXIT_REFUSED)
