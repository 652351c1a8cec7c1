"""Programs that several runs of one process need, compiled once."""

from __future__ import annotations

import collections
import hashlib
import logging
from typing import Any

import jax
from jax.sharding import Mesh

_LOG = logging.getLogger(__name__)
_KEPT = 64  # programs; the one that was not used for longest goes first
_PROGRAMS: collections.OrderedDict[tuple[Any, ...], jax.stages.Compiled] = collections.OrderedDict()


def compile_once(lowered: jax.stages.Lowered, mesh: Mesh) -> jax.stages.Compiled:
    """Compiles a program, or returns what this process has compiled of the same text.

    jax.jit knows a program by its Python function, and runs have functions of their own. The text
    of a program says everything that decides what it computes, numbers that are constants in it
    among them; so it pays to make those that differ from run to run arguments. Only the names of
    its arguments and results are not in it.

    Args:
      lowered: `jax.jit(...).lower(...)`.
      mesh: of the devices that it runs on.
    """
    text = hashlib.sha256(lowered.as_text().encode()).hexdigest()
    key = text, lowered.in_tree, lowered.out_tree, mesh
    if key in _PROGRAMS:
        _LOG.debug("program %s is compiled already", text[:12])
    else:
        _PROGRAMS[key] = lowered.compile()
    _PROGRAMS.move_to_end(key)
    while len(_PROGRAMS) > _KEPT:
        _PROGRAMS.popitem(last=False)
    return _PROGRAMS[key]
