"""Which keys a query may see: both forms of the record against the sentence that defines it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bertjax.models.visibility import Visibility

SEGMENT_IDS = np.array(
    [
        [1, 1, 1, 1, 1, 1, 1, 1],
        [1, 1, 1, 2, 2, 3, 0, 0],
        [2, 1, 0, 2, 1, 1, 0, 2],  # neither in order nor contiguous
        [0, 0, 0, 0, 0, 0, 0, 0],  # a row of padding alone
    ],
    np.int32,
)


def sees(ids, query, key, packed, causal):
    """A token sees the tokens of its row, or of its segment, or the earlier ones of these.

    Padding is seen by no token.
    """
    is_own = not packed or ids[query] == ids[key]
    return bool(ids[key] > 0 and is_own and (not causal or key <= query))


def expected(segment_ids, packed, causal):
    """[b, t, t], query by key."""
    places = range(segment_ids.shape[1])
    return np.array(
        [[[sees(ids, q, k, packed, causal) for k in places] for q in places] for ids in segment_ids]
    )


@pytest.mark.parametrize("causal", [False, True])
def test_the_mask_of_packed_rows_is_each_token_s_own_segment(causal):
    mask = np.asarray(Visibility(SEGMENT_IDS, packed=True, causal=causal).mask())
    assert mask.shape == (4, 1, 8, 8)
    assert mask.dtype == np.bool_
    np.testing.assert_array_equal(mask[:, 0], expected(SEGMENT_IDS, True, causal))
    assert not mask[3].any()
    assert not mask[:, 0][SEGMENT_IDS == 0].any()


def test_without_packing_all_queries_see_the_tokens():
    mask = np.asarray(Visibility(SEGMENT_IDS).mask())
    assert mask.shape == (4, 1, 1, 8)  # no array of [t, t]
    np.testing.assert_array_equal(
        np.broadcast_to(mask[:, 0], (4, 8, 8)), expected(SEGMENT_IDS, False, False)
    )
    causal = np.asarray(Visibility(SEGMENT_IDS, causal=True).mask())
    np.testing.assert_array_equal(causal[:, 0], expected(SEGMENT_IDS, False, True))


@pytest.mark.parametrize("length", [8, 12])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("packed", [False, True])
def test_blocks_of_kernels_see_what_tokens_see_in_the_mask(packed, causal, length):
    segment_ids = SEGMENT_IDS if packed else np.minimum(SEGMENT_IDS, 1)
    record = Visibility(jnp.asarray(segment_ids), packed, causal).laid_out(length)
    assert (record.packed, record.causal) == (packed, causal)
    padded = np.pad(segment_ids, ((0, 0), (0, length - 8)))
    allowed = expected(padded, packed, causal)
    allowed &= (padded > 0)[:, :, None]  # padded queries see nothing here
    num_blocks = length // 4
    for row in range(4):
        one = jax.tree.map(lambda x, row=row: x[row : row + 1], record)
        assert one.segment_ids.shape == (1, 1, length)
        for i in range(0, length, 4):
            queries = slice(i, i + 4)
            any_key = allowed[row, queries].any(axis=1, keepdims=True)
            np.testing.assert_array_equal(one.sees_any(queries), any_key)
            for j in range(0, length, 4):
                keys = slice(j, j + 4)
                found = one.block(queries, keys)
                np.testing.assert_array_equal(found, allowed[row, queries, keys])
                is_visited = j // 4 in range(*one.key_blocks(i // 4, num_blocks))
                assert is_visited == (i // 4 in range(*one.query_blocks(j // 4, num_blocks)))
                assert is_visited or not found.any()
    visited = [len(range(*record.key_blocks(i, num_blocks))) for i in range(num_blocks)]
    assert sum(visited) / num_blocks**2 == record.share_of_blocks(num_blocks)


def test_it_is_split_by_rows_and_its_facts_are_static():
    record = Visibility(jnp.asarray(SEGMENT_IDS), packed=True)
    masks = jax.lax.map(lambda row: jax.tree.map(lambda x: x[None], row).mask()[0], record)
    np.testing.assert_array_equal(masks, record.mask())
    other = Visibility(record.segment_ids)
    assert [x.shape for x in jax.tree.leaves(other)] == [(4, 8)]
    assert jax.tree.structure(other) != jax.tree.structure(record)  # another program
