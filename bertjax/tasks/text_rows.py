"""Rows of one text or two: [CLS] a [SEP], or [CLS] a [SEP] b [SEP] with token types 0 and 1."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np

from bertjax.data.stream.pairs import truncated_lengths
from bertjax.data.tokenizers.vocabulary import Tokenizer
from bertjax.tasks.task import Arrays, TaskError

_LOG = logging.getLogger(__name__)
_CHUNK_ROWS = 1 << 14  # rows computed at once: temporary arrays stay near 100 MB at length 512


def empty_rows(num_rows: int, max_length: int, tokenizer: Tokenizer) -> Arrays:
    """Arrays of padding only, each row with weight 1."""
    return {
        "input_ids": np.full((num_rows, max_length), tokenizer.pad_id, np.int32),
        "token_type_ids": np.zeros((num_rows, max_length), np.int32),
        "attention_mask": np.zeros((num_rows, max_length), np.int32),
        "row_weights": np.ones(num_rows, np.float32),
    }


def text_rows(
    tokenizer: Tokenizer, texts: Sequence[str], pairs: Sequence[str] | None, max_length: int
) -> Arrays:
    """Makes a row of each text, or of each text and its pair.

    A text that is too long loses pieces at its end. A pair loses them one by one from the longer
    text (the second if equal): `_truncate_seq_pair` of google-research/bert, run_classifier.py.

    Raises:
        TaskError: `max_length` is too small for the special tokens and one piece of each text.
    """
    special = 2 if pairs is None else 3
    least = special + (1 if pairs is None else 2)
    if max_length < least:
        raise TaskError(f"max_length = {max_length} has no room for a row; give at least {least}")
    room = max_length - special
    a_ids, a_length = tokenizer.encode_sentences(texts)
    b_ids, b_length = tokenizer.encode_sentences([] if pairs is None else pairs)
    a_start, b_start = (np.cumsum(length) - length for length in (a_length, b_length))
    num_pieces = a_length if pairs is None else a_length + b_length
    if num_cut := int(np.count_nonzero(num_pieces > room)):
        _LOG.warning(
            "%s of %s texts are longer than %d tokens and were cut (--max_length)",
            f"{num_cut:,}",
            f"{len(texts):,}",
            max_length,
        )
    if pairs is None:
        a_length = np.minimum(a_length, room)
    else:
        a_length, b_length = truncated_lengths(a_length, b_length, room)
    rows = empty_rows(len(texts), max_length, tokenizer)
    column = np.arange(max_length)[None]
    for first in range(0, len(texts), _CHUNK_ROWS):
        part = slice(first, first + _CHUNK_ROWS)
        ids, mask, types = (
            rows[name][part] for name in ("input_ids", "attention_mask", "token_type_ids")
        )
        a_end = 1 + a_length[part, None]
        ids[:, 0] = tokenizer.cls_id
        _put(ids, a_ids, a_start[part, None] - 1 + column, (column >= 1) & (column < a_end))
        ids[column == a_end] = tokenizer.sep_id
        end = a_end
        if pairs is not None:
            end = a_end + 1 + b_length[part, None]
            inside = (column > a_end) & (column < end)
            _put(ids, b_ids, b_start[part, None] - a_end - 1 + column, inside)
            ids[column == end] = tokenizer.sep_id
            types[:] = (column > a_end) & (column <= end)
        mask[:] = column <= end
    return rows


def _put(rows: np.ndarray, ids: np.ndarray, places: np.ndarray, inside: np.ndarray) -> None:
    rows[inside] = ids[places[inside]]
