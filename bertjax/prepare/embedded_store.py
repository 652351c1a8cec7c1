"""A store of the embedded corpus, for a run without a store."""

from __future__ import annotations

import logging
import os
import sysconfig
from pathlib import Path

from bertjax.data.corpus.embedded import EMBEDDED
from bertjax.data.store.store import MANIFEST, Store, StoreError, open_store
from bertjax.prepare.build_store import prepare
from bertjax.prepare.options import PrepareOptions

_LOG = logging.getLogger(__name__)
_HELDOUT_SHARE = 0.05


def prepare_embedded(folder: str | os.PathLike[str], vocab_size: int) -> Store:
    """Makes a store of the embedded corpus, or opens the one in `folder`, with a log line.

    Args:
        folder: of the store.
        vocab_size: of the WordPiece vocabulary trained on it, filled up with [unusedN].

    Raises:
        StoreError: the store in `folder` is another one.
    """
    folder = Path(folder)
    if (folder / MANIFEST).exists():
        store = open_store(folder)
        made_from = store.manifest.get("options", {}).get("input")
        if (made_from, store.vocab_size) != (EMBEDDED, vocab_size):
            raise StoreError(
                f"{folder}: is a store of {made_from} with {store.vocab_size} pieces, expected "
                f"{EMBEDDED} with {vocab_size}; use another folder or delete this one"
            )
        return store
    _LOG.info(
        "%s: preparing the embedded corpus, the documentation of this Python (%s), with a "
        "vocabulary of %d",
        folder,
        sysconfig.get_path("stdlib"),
        vocab_size,
    )
    return prepare(
        PrepareOptions(
            input=EMBEDDED,
            output=str(folder),
            tokenizer="train:wordpiece",
            vocab_size=vocab_size,
            lower_case=True,
            heldout_share=_HELDOUT_SHARE,
            num_workers=1,  # seconds of work: starting processes would take longer
        )
    )
