"""Any tree of arrays as nested dicts, so that names on disk do not depend on Python classes.

An optimizer state is nested tuples and named tuples. On disk an array's name consists of the
attributes and dict keys that lead to it, `mu/pooler/kernel`. It has no positions in tuples, so a
chain may gain a step without state. If names would not be unique, as with two counts in one chain,
all names include positions: `0/mu/pooler/kernel`, `0/count`, `2/count`.
"""

from __future__ import annotations

import functools
import operator
from typing import Any

import jax

from bertjax.parameters import nest

Tree = Any


def to_dicts(tree: Tree) -> dict[str, Any]:
    """Returns nested dicts with the leaves of `tree`, by their names on disk.

    Nested dicts are returned unchanged; a single leaf is named `state`.
    """
    return nest(zip(_names(tree), jax.tree.leaves(tree), strict=True))


def from_dicts(dicts: dict[str, Any], like: Tree) -> Tree:
    """Returns a tree of the structure of `like` with the leaves of `to_dicts(like)`.

    Raises:
      KeyError: `dicts` lacks one of them.
    """
    leaves = [functools.reduce(operator.getitem, name, dicts) for name in _names(like)]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def _names(tree: Tree) -> list[tuple[str, ...]]:
    """The name of each leaf, from the root down."""
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(tree)]
    short = [
        tuple(_word(key) for key in path if not isinstance(key, jax.tree_util.SequenceKey))
        for path in paths
    ]
    beginnings = {name[:i] for name in short for i in range(len(name))}
    if len(set(short)) == len(short) and beginnings.isdisjoint(short) and () not in short:
        return short
    return [tuple(map(_word, path)) or ("state",) for path in paths]


def _word(key: Any) -> str:
    return jax.tree_util.keystr((key,), simple=True)
