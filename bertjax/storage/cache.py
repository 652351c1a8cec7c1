"""The machine's cache folder: copies from buckets, and compiled programs."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """$BERTJAX_CACHE, else bertjax in $XDG_CACHE_HOME, else ~/.cache/bertjax. Not made here.

    It contains `stores` (fetched token stores), `prepared` (stores to be uploaded), `workdirs` (the
    growing files of runs) and `compiled` (programs). bertjax removes files of `compiled` only. All
    of it may be removed while nothing runs.
    """
    chosen = os.environ.get("BERTJAX_CACHE")
    if chosen:
        return Path(chosen).expanduser().absolute()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "bertjax"
