"""Where a machine keeps copies of what lies in a bucket, and what it has compiled."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """$BERTJAX_CACHE, else bertjax in $XDG_CACHE_HOME, else ~/.cache/bertjax. Not made here.

    It holds `stores` (token stores that were fetched), `prepared` (stores on their way up),
    `workdirs` (the growing files of runs) and `compiled` (programs). Only of the last does bertjax
    remove anything; all of it may be removed while nothing runs.
    """
    chosen = os.environ.get("BERTJAX_CACHE")
    if chosen:
        return Path(chosen).expanduser().absolute()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "bertjax"
