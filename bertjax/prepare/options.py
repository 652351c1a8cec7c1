"""Options of `prepare`, and which of them decide the content of the store."""

from __future__ import annotations

import dataclasses
import re
import unicodedata
from importlib import metadata
from typing import Any

from bertjax.data.store.store import FORMAT_VERSION
from bertjax.data.store.store_writer import SHARD_TOKENS
from bertjax.errors import EXIT_FAILED, BertjaxError


class PrepareError(BertjaxError, ValueError):
    """Preparing cannot start or go on; the message says why and what to do."""


class PrepareStoppedError(PrepareError):
    """Preparing stopped on the way. Finished parts stay, and the same command continues."""

    exit_code = EXIT_FAILED


@dataclasses.dataclass(frozen=True)
class PrepareOptions:
    """Options of `prepare`. `OF_THE_RUN` lists those that do not decide the content."""

    input: str  # globs, tfds:NAME/CONFIG:SPLIT or embedded:python, separated by commas
    output: str  # folder of the store
    tokenizer: str  # see bertjax.data.tokenizers.tokenizer.from_argument
    vocab_size: int | None = None  # of a trained vocabulary; a given one is filled up to it
    lower_case: bool | None = None  # None: as the kind of tokenizer has it
    language: str = "en"  # of the sentence splitter, ISO 639
    heldout_share: float = 0.01  # of the documents
    drop_duplicates: bool = False  # leave out documents whose text came before
    strict: bool = False  # stop at the first problem of the input
    shard_tokens: int = SHARD_TOKENS  # what a kill can cost
    data_dir: str | None = None  # of TFDS
    num_workers: int = 0  # processes that encode; 0: one a core
    runner: str = "local"  # who encodes: processes of our own, or a runner of Apache Beam
    beam_options: str = ""  # of the runner, as on a command line
    staging: str = ""  # folder in a bucket for what its workers encode; "": in the output folder


def check_options(options: PrepareOptions) -> None:
    """Checks the options without reading the input."""
    if not 0 <= options.heldout_share < 1:
        raise PrepareError(
            f"--heldout_share={options.heldout_share}: expected a share from 0 to below 1, "
            "for example 0.01"
        )
    if not re.fullmatch(r"[a-z]{2,3}([-_]\w+)*", options.language):
        raise PrepareError(
            f"--language={options.language!r}: expected an ISO 639 code such as en, zh or ja"
        )
    if options.num_workers < 0 or options.shard_tokens < 1:
        raise PrepareError(
            f"--num_workers={options.num_workers} must be 0 or more and "
            f"--shard_tokens={options.shard_tokens} 1 or more"
        )
    if options.beam_options and options.runner == "local":
        raise PrepareError(
            f"--beam_options={options.beam_options!r} without Beam: name a --runner, such as "
            "DirectRunner"
        )


# What does not decide the content. `strict` decides whether there is any.
OF_THE_RUN = ("output", "num_workers", "data_dir", "runner", "beam_options", "staging", "strict")


def content_settings(options: PrepareOptions) -> dict[str, Any]:
    """What decides the content of the store, beside the input."""
    chosen = dataclasses.asdict(options)
    for name in OF_THE_RUN:
        del chosen[name]
    if not options.drop_duplicates:  # stores from before it was an option are the same
        del chosen["drop_duplicates"]
    versions = {
        "format": FORMAT_VERSION,
        "sentencex": metadata.version("sentencex"),
        "unicode": unicodedata.unidata_version,
    }
    return {"options": chosen, "versions": versions}
