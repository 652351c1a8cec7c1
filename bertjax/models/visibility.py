"""Which keys each query may see: the record that every attention path and kernel uses.

docs/design/attention.md says how to add windowed attention.
"""

from __future__ import annotations

import dataclasses
from typing import Any, cast

import jax
import jax.numpy as jnp


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Visibility:
    """A token sees the tokens of its row, or of its segment; no token sees padding.

    With `causal` it sees itself and those before it.

    A pytree. Its arrays are [b, t], so functions that split rows (`jax.lax.map`, `shard_map`) split
    them too. The other fields are static: a program is compiled for their values.

    Attributes:
      segment_ids: int32 [b, t], 0 = padding. An attention mask (1 = a token) is one segment. Inside
        a kernel it is a reference to one row of `laid_out`, [1, 1, t].
      packed: rows hold several segments, and a token sees only its own.
      causal: a token sees no later one. Places are those in the row: segments are contiguous.
    """

    segment_ids: Any
    packed: bool = dataclasses.field(default=False, metadata={"static": True})
    causal: bool = dataclasses.field(default=False, metadata={"static": True})

    def mask(self) -> jax.Array:
        """Bool, query by key: [b, 1, t, t], or [b, 1, 1, t] where all queries see the same keys.

        A padded query reaches no loss, so without `packed` it sees every token before it.
        """
        visible: jax.Array = self.segment_ids[:, None, None, :] > 0
        if self.packed:
            visible = visible & (
                self.segment_ids[:, None, :, None] == self.segment_ids[:, None, None, :]
            )
        if self.causal:
            places = jnp.arange(self.segment_ids.shape[1])
            visible = visible & (places[:, None] >= places)
        return visible

    def laid_out(self, length: int) -> Visibility:
        """The record as kernels take it: arrays [b, 1, length], padded from t tokens."""
        record: Visibility = jax.tree.map(
            lambda x: jnp.pad(x, ((0, 0), (0, length - x.shape[1])))[:, None, :], self
        )
        return record

    def block(self, queries: Any, keys: Any) -> jax.Array:
        """Bool [queries, keys] inside a kernel; a padded query sees nothing.

        A token sees its own segment whether or not rows are packed: a mask is one segment.

        Args:
          queries: slice of the row, of `pl.ds`.
          keys: slice of the row.
        """
        query_ids: jax.Array = self.segment_ids[0, :, queries].T
        key_ids = self.segment_ids[0, :, keys]
        key_ids = jnp.where(key_ids == 0, -1, key_ids)  # so that padding does not match padding
        visible: jax.Array = query_ids == key_ids
        if self.causal:
            query_places = _places(queries, query_ids, axis=0)
            visible &= query_places >= _places(keys, key_ids, axis=1)
        return visible

    def key_blocks(self, query_block: Any, num_blocks: int) -> tuple[Any, Any]:
        """First block of keys that a block of queries sees, and the one after the last.

        Inside a kernel whose blocks of queries and of keys are equally long.
        """
        return 0, query_block + 1 if self.causal else num_blocks

    def query_blocks(self, key_block: Any, num_blocks: int) -> tuple[Any, Any]:
        """First block of queries that sees a block of keys, and the one after the last."""
        return key_block if self.causal else 0, num_blocks

    def share_of_blocks(self, num_blocks: int) -> float:
        """The share of the pairs of blocks that kernels visit."""
        return (num_blocks + 1) / (2 * num_blocks) if self.causal else 1.0

    def sees_any(self, queries: Any) -> jax.Array:
        """Bool [queries, 1] inside a kernel: a token sees at least itself, padding nothing."""
        return cast(jax.Array, self.segment_ids[0, :, queries].T != 0)


def _places(tokens: Any, ids: jax.Array, axis: int) -> jax.Array:
    """Places in the row of the tokens of a slice, in the shape of their ids."""
    places: jax.Array = tokens.start + jax.lax.broadcasted_iota(jnp.int32, ids.shape, axis)
    return places
