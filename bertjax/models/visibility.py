"""Which keys each query may see: the record that every attention path and kernel uses.

docs/design/attention.md says how to add causal and windowed attention.
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

    A pytree. Its arrays are [b, t], so functions that split rows (`jax.lax.map`, `shard_map`) split
    them too. The other fields are static: a program is compiled for their values.

    Attributes:
      segment_ids: int32 [b, t], 0 = padding. An attention mask (1 = a token) is one segment. Inside
        a kernel it is a reference to one row of `laid_out`, [1, 1, t].
      packed: rows hold several segments, and a token sees only its own.
    """

    segment_ids: Any
    packed: bool = dataclasses.field(default=False, metadata={"static": True})

    def mask(self) -> jax.Array:
        """Bool, query by key: [b, 1, t, t], or [b, 1, 1, t] where all queries see the same keys.

        A padded query reaches no loss, so without `packed` it sees every token.
        """
        visible: jax.Array = self.segment_ids[:, None, None, :] > 0
        if self.packed:
            visible = visible & (
                self.segment_ids[:, None, :, None] == self.segment_ids[:, None, None, :]
            )
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
        return query_ids == key_ids

    def sees_any(self, queries: Any) -> jax.Array:
        """Bool [queries, 1] inside a kernel: a token sees at least itself, padding nothing."""
        return cast(jax.Array, self.segment_ids[0, :, queries].T != 0)
