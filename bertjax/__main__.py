"""bertjax: pre-training of BERT-like encoders in JAX on TPUs and GPUs.

`bertjax train ...` is `python -m bertjax.train ...`, and so with every command.
"""

from __future__ import annotations

import importlib
import sys
import typing
from collections.abc import Sequence

from bertjax.cli.command_line import errors_in_one_line
from bertjax.errors import ConfigError, closest

COMMANDS = {
    "prepare": "makes a token store from a corpus",
    "inspect": "looks for what would waste or spoil a run in a corpus or a store",
    "plan": "says whether a recipe fits, and how fast it can be",
    "train": "pre-trains a BERT on a store",
    "finetune": "fine-tunes a BERT on a task, and scores it",
    "sweep": "fine-tunes checkpoints on tasks with several seeds, and draws the scores",
    "predict": "predicts with a trained model",
    "convert": "converts a BERT between Hugging Face, TF1 and bertjax",
    "newest_checkpoint": "prints which checkpoint of a run is the newest",
}


def main(argv: Sequence[str] | None = None) -> typing.NoReturn:
    """Runs the command that the first argument names."""
    _, *arguments = sys.argv if argv is None else argv
    with errors_in_one_line():
        if not arguments or arguments[0] in ("--help", "-h"):
            print(_help())
            sys.exit(0)
        name = arguments[0]
        if name not in COMMANDS:
            raise ConfigError(f"no command {name!r}; {closest(name, COMMANDS)}")
        is_room = name in ("prepare", "inspect", "plan")
        module = importlib.import_module(f"bertjax.{name}" + ".__main__" * is_room)
        module.main([f"bertjax {name}", *arguments[1:]])
        raise AssertionError(f"{name} returned")


def _help() -> str:
    lines = [f"  {name:<20}{what}" for name, what in COMMANDS.items()]
    return "\n".join(
        [
            "bertjax: pre-training of BERT-like encoders in JAX on TPUs and GPUs.",
            "",
            "bertjax COMMAND --help is the same as python -m bertjax.COMMAND --help.",
            "",
            "Commands:",
            *lines,
        ]
    )


if __name__ == "__main__":
    main()
