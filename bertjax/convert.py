"""Converts a BERT between Hugging Face and bertjax; TF1 checkpoints to either.

    python -m bertjax.convert --input=runs/mine --output=mine_hf
    python -m bertjax.convert --input=FOLDER_OF_A_BERT --output=bert_bertjax

A bertjax workdir or checkpoint becomes a folder that transformers' AutoModel and AutoTokenizer
open; a Hugging Face folder (config.json, model.safetensors, vocab.txt) or a TF1 checkpoint
(bert_config.json, vocab.txt, *.ckpt.*) becomes a workdir for --config.init_from and bertjax.load.
Heads, labels, tokenizer, casing and the form of GELU are kept. The output is a new folder, written
completely or not at all. Exit codes: 0 converted; 2 something that cannot work, in one line.
"""

from __future__ import annotations

import typing
from collections.abc import Sequence

from absl import flags

from bertjax.cli import command_line
from bertjax.config import ConfigError
from bertjax.errors import EXIT_FINISHED, EXIT_REFUSED


def main(argv: Sequence[str] | None = None) -> typing.NoReturn:
    """Runs the command; see `command_line.run`."""
    command_line.run(_define, _convert, __doc__ or "", argv, exit_code=EXIT_REFUSED)


def _define(values: flags.FlagValues) -> None:
    flags.DEFINE_string(
        "input",
        None,
        "A bertjax workdir or checkpoint, a Hugging Face folder, or a TF1 checkpoint (the folder, "
        "or FOLDER/model.ckpt-1000).",
        required=True,
        flag_values=values,
    )
    flags.DEFINE_string(
        "output", None, "Folder to make, or an empty one.", required=True, flag_values=values
    )
    flags.DEFINE_enum(
        "to",
        None,
        ["huggingface", "bertjax"],
        "Format of the output. Default: huggingface from bertjax, bertjax from the others.",
        flag_values=values,
    )
    flags.DEFINE_string(
        "tokenizer",
        None,
        "Folder of the tokenizer, where it does not lie with the weights; STORE/tokenizer for "
        "example.",
        flag_values=values,
    )


def _convert(values: flags.FlagValues, arguments: list[str]) -> int:
    """Converts; returns 0."""
    if arguments:
        raise ConfigError(
            f"unexpected argument {arguments[0]!r}: expected --input=... --output=..."
        )
    from bertjax.weights.conversion import convert_checkpoint

    command_line.show_log()
    convert_checkpoint(values.input, values.output, values.to, values.tokenizer)
    return EXIT_FINISHED


if __name__ == "__main__":
    main()
