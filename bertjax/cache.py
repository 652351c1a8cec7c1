"""Where a machine keeps copies of what lies in a bucket."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """$BERTJAX_CACHE, else bertjax in $XDG_CACHE_HOME, else ~/.cache/bertjax. Not made here.

    It holds `stores` (token stores that were fetched), `prepared` (stores on their way up) and
    `workdirs` (the growing files of runs). Nothing in it is removed by bertjax; all of it may be,
    while nothing runs.
    """
    chosen = os.environ.get("BERTJAX_CACHE")
    if chosen:
        return Path(chosen).expanduser().absolute()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "bertjax"
