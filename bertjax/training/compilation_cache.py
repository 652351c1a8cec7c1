"""Compiled programs are kept on disk: a run that starts again is not compiled again."""

from __future__ import annotations

import logging

import jax

from bertjax.storage.cache import cache_folder

_LOG = logging.getLogger(__name__)
_MAX_BYTES = 10 << 30  # the oldest programs go first


def use_compilation_cache() -> None:
    """Sets JAX's persistent compilation cache to `compiled` in the cache folder.

    The folder is the user's alone, since what is read there is run. Does nothing where the user has
    set JAX_COMPILATION_CACHE_DIR; where several processes make one run, since on GPUs they compile
    together or not at all; and where the folder cannot be made.
    """
    if jax.config.values["jax_compilation_cache_dir"] is not None or jax.process_count() > 1:
        return
    folder = cache_folder() / "compiled"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if folder.stat().st_mode & 0o077:
            folder.chmod(0o700)
    except OSError as error:
        _LOG.warning("compiled programs are not kept: %s", error)
        return
    jax.config.update("jax_compilation_cache_max_size", _MAX_BYTES)
    jax.config.update("jax_compilation_cache_dir", str(folder))
