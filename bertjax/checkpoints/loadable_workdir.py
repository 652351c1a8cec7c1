"""The files beside checkpoints that make a workdir loadable: tokenizer, labels, scores."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from bertjax.config import ConfigError
from bertjax.data.store.store import MANIFEST
from bertjax.data.tokenizers.tokenizer import load_tokenizer
from bertjax.data.tokenizers.vocabulary import METADATA_FILE, Tokenizer, TokenizerError
from bertjax.storage.atomic_files import whole_folder, write_file

# Files of a workdir.
TOKENIZER_FOLDER = "tokenizer"
LABELS = "labels.json"  # names of the labels, in the order of their ids
SCORES = "scores.json"  # of a finished fine-tuning; names the best checkpoint


def keep_tokenizer(workdir: Path, tokenizer: Tokenizer, *, resumed: bool) -> None:
    """Copies the tokenizer into the workdir, or checks the copy of a resumed run.

    Args:
      workdir: of the run; one process calls this.
      tokenizer: of the store.
      resumed: whether this run has checkpoints, which were trained with the copy. A copy without
        checkpoints is replaced.

    Raises:
      ConfigError: the copy is corrupt or another tokenizer, or the folder is not bertjax's.
    """
    folder = workdir / TOKENIZER_FOLDER
    if (workdir / MANIFEST).exists():
        raise ConfigError(f"--workdir={workdir} is a token store: choose another folder")
    if not resumed and folder.exists() and not (folder / METADATA_FILE).exists():
        raise ConfigError(
            f"{folder} is there and is no tokenizer that bertjax has written: choose another "
            "--workdir"
        )
    if resumed and folder.exists():
        try:
            found = load_tokenizer(folder).hash
        except TokenizerError as error:
            raise ConfigError(
                f"{error}. Or remove {folder}: it is a copy of the store's"
            ) from error
        if found != tokenizer.hash:
            raise ConfigError(
                f"{folder} is the tokenizer {found[:12]}, but this run was trained with "
                f"{tokenizer.hash[:12]}: remove that folder, it is a copy of the store's"
            )
        return
    shutil.rmtree(folder, ignore_errors=True)
    with whole_folder(folder) as copy:
        tokenizer.save(copy)


def keep_labels(workdir: Path, labels: Sequence[str]) -> None:
    """Writes the names of the run's labels, or removes those of a run without checkpoints.

    Args:
      workdir: of the run, after it was checked; one process calls this.
      labels: in the order of their ids; () for a head without labels.
    """
    if labels:
        text = json.dumps(list(labels), indent=1, ensure_ascii=False) + "\n"
        write_file(workdir / LABELS, text.encode("utf-8", "backslashreplace"))
    else:
        (workdir / LABELS).unlink(missing_ok=True)
