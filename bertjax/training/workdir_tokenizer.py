"""WORKDIR/tokenizer: a copy of the store's tokenizer, so that a workdir is loadable on its own."""

from __future__ import annotations

import shutil
from pathlib import Path

from bertjax.config import ConfigError
from bertjax.data.atomic_files import whole_folder
from bertjax.data.store import MANIFEST
from bertjax.data.tokenizer import load_tokenizer
from bertjax.data.vocabulary import METADATA_FILE, Tokenizer, TokenizerError

TOKENIZER_FOLDER = "tokenizer"  # of a workdir


def keep_tokenizer(workdir: Path, tokenizer: Tokenizer, *, resumed: bool) -> None:
    """Copies the tokenizer into the workdir, or checks the copy of a run that resumes.

    Args:
      workdir: of the run; one process calls this.
      tokenizer: of the store.
      resumed: whether there are checkpoints of this run, trained with it; a copy that an earlier
        start left without any is replaced.

    Raises:
      ConfigError: the copy is damaged or another tokenizer; or the folder is somebody else's.
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
