"""The stores that a run reads, as `config.data.stores` names them: a:0.7,b:0.3 or a,b."""

from __future__ import annotations

import math
from typing import NamedTuple

from bertjax.config import ConfigError, DataConfig


class WeightedStore(NamedTuple):
    """A store of a mixture."""

    path: str  # a folder or gs://
    weight: float | None  # share of the rows, relative to the others'; None = by size


def store_list(data: DataConfig) -> tuple[WeightedStore, ...]:
    """The stores of `data.store` or `data.stores`; none where both are empty.

    A store is followed by a colon and its weight, or all are without one. What follows the last
    colon is a weight unless it has a slash, so that gs:// needs no quoting.

    Raises:
      ConfigError: both fields are set, an entry is empty, a store comes twice, a weight is no
        number above 0, or some have a weight and others none.
    """
    if not data.stores:
        return (WeightedStore(data.store, None),) if data.store else ()
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


def _entry(entry: str, where: str) -> WeightedStore:
    path, colon, weight_text = entry.rpartition(":")
    weight = None
    if not colon or "/" in weight_text:
        path = entry
    else:
        weight = _weight(weight_text)
        if weight is None:
            raise ConfigError(
                f"{where}: the weight of {path or 'a store'} is {weight_text!r}; expected a number "
                "above 0, relative to the other weights"
            )
    if not path:
        raise ConfigError(f"{where}: a store is missing; expected STORE:WEIGHT,STORE:WEIGHT")
    return WeightedStore(path.rstrip("/"), weight)


def _weight(text: str) -> float | None:
    try:
        weight = float(text)
    except ValueError:
        return None
    return weight if 0 < weight < math.inf else None
