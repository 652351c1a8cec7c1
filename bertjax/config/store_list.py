"""The stores that a run reads, from `config.data.stores`: a:0.7,b:0.3 or a,b@0.1."""

from __future__ import annotations

import math
from typing import NamedTuple

from bertjax.config import ConfigError, DataConfig


class NamedStore(NamedTuple):
    """A store of a mixture."""

    path: str  # a folder or gs://
    weight: float | None = None  # of its rows, relative to the others'; None = by size
    share: float = 1.0  # of its documents, the first ones


def store_list(data: DataConfig) -> tuple[NamedStore, ...]:
    """The stores of `data.store` or `data.stores`; () if both are empty.

    STORE@SHARE takes a share of the store's documents. Either every store is followed by a colon
    and a weight, or none is. Shares and weights have no slash, so gs:// needs no quoting.

    Raises:
      ConfigError: both fields are set, an entry is empty, a store comes twice, a weight is no
        number above 0, a share is not between 0 and 1, or some have a weight and others none.
    """
    if not data.stores:
        return (NamedStore(data.store),) if data.store else ()
    where = f"config.data.stores = {data.stores!r}"
    if data.store:
        raise ConfigError(
            f"{where} and config.data.store = {data.store!r}: set one of the two; stores may name "
            "a single one"
        )
    stores = tuple(_entry(entry.strip(), where) for entry in data.stores.split(","))
    paths = [store.path for store in stores]
    for path in paths:
        if paths.count(path) > 1:
            raise ConfigError(f"{where}: {path} comes twice; give it the sum of the weights")
    without = [store.path for store in stores if store.weight is None]
    if 0 < len(without) < len(stores):
        raise ConfigError(
            f"{where}: {without[0]} has no weight, but others have: give each store one, or none "
            "to any (then they are mixed by their size)"
        )
    return stores


def _entry(entry: str, where: str) -> NamedStore:
    rest, weight_text = _split_off(entry, ":")
    path, share_text = _split_off(rest, "@")
    path = path.rstrip("/")
    if not path:
        raise ConfigError(f"{where}: a store is missing; expected STORE:WEIGHT,STORE:WEIGHT")
    weight = None if weight_text is None else _number(weight_text)
    share = 1.0 if share_text is None else _number(share_text)
    if weight == 0.0:
        raise ConfigError(
            f"{where}: the weight of {path} is {weight_text!r}; expected a number above 0, "
            "relative to the other weights"
        )
    if not 0 < share <= 1:
        raise ConfigError(
            f"{where}: the share of {path} is {share_text!r}; expected a number above 0 and up to "
            "1, of its documents"
        )
    return NamedStore(path, weight, share)


def _split_off(text: str, mark: str) -> tuple[str, str | None]:
    """The text before and after the last mark; a mark before a slash is part of a path."""
    before, found, after = text.rpartition(mark)
    return (before, after) if found and "/" not in after else (text, None)


def _number(text: str) -> float:
    """A number above 0, or 0 for anything else."""
    try:
        number = float(text)
    except ValueError:
        return 0.0
    return number if 0 < number < math.inf else 0.0
