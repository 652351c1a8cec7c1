"""Any tree of arrays as nested dicts, so that a file's names do not depend on its Python classes.

An optimiser's state is tuples in tuples of named tuples. On disk an array is named by the
attributes and dict keys that lead to it, `mu/pooler/kernel`, without the positions in tuples: a
chain may gain a step that has no state. Where that would not tell all arrays apart, as with two
counts in one chain, every name has its positions too: `0/mu/pooler/kernel`, `0/count`, `2/count`.
"""

from __future__ import annotations

import functools
import operator
from typing import Any

import jax

from bertjax.parameters import nest

Tree = Any


def to_dicts(tree: Tree) -> dict[str, Any]:
    """Returns nested dicts with the leaves of `tree`, as they are named on disk.

    Nested dicts themselves come back as they are; a lone leaf is named `state`.
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
