"""Keeps compiled programs on disk, so that a restarted run is not compiled again."""

from __future__ import annotations

import logging

import jax

from bertjax.storage.cache import cache_folder

_LOG = logging.getLogger(__name__)
_MAX_BYTES = 10 << 30  # the oldest programs are removed first


def use_compilation_cache() -> None:
    """Sets JAX's persistent compilation cache to `compiled` in the cache folder.

    Only the user may read or write the folder, because programs in it are run. Nothing happens if
    the user has set JAX_COMPILATION_CACHE_DIR, if the folder cannot be made, or if the run has
    several processes, since on GPUs they must all compile or none.
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
