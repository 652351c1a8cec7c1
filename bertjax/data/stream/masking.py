"""Masked language modelling: which tokens of a row are predicted, and what replaces them.

The proportions are the reference's (google-research/bert, `create_masked_lm_predictions`); spans
are SpanBERT's (Joshi et al. 2020, section 3.1). Everything is a function of the row's key.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np

from bertjax.data.counter_rng import bits32, bits64
from bertjax.data.stream.rows import RowSpec

# 80 % [MASK], 10 % unchanged, 10 % a random token, on 32 random bits.
_MASK_BELOW = np.uint32(0.8 * 2**32)
_KEEP_BELOW = np.uint32(0.9 * 2**32)
_NEVER = np.uint32(0xFFFFFFFF)  # the score of a token that is no candidate

# Span lengths in words: geometric with p = 0.2, cut at 10 and normalized; mean 3.8.
_LONGEST_SPAN = 10
_SPAN_SHARES = 0.2 * 0.8 ** np.arange(_LONGEST_SPAN)
_SPAN_BELOW = (np.cumsum(_SPAN_SHARES / _SPAN_SHARES.sum())[:-1] * 2**32).astype(np.uint32)

# One key per purpose.
_CHOOSE, _ACTION, _REPLACEMENT, _SPAN_LENGTH = range(4)


class TokenIds(Protocol):
    """What the stream needs from a tokenizer; every `Tokenizer` has it."""

    vocab_size: int
    cls_id: int
    sep_id: int
    mask_id: int
    pad_id: int
    word_starts: np.ndarray  # bool [vocab_size]


class MaskedRows(NamedTuple):
    """Rows with masks, and the targets; m = min(max_predictions, t); unused slots are 0."""

    input_ids: np.ndarray  # int32 [b, t]
    positions: np.ndarray  # int32 [b, m], ascending
    ids: np.ndarray  # int32 [b, m], the original tokens
    weights: np.ndarray  # float32 [b, m], 1 where a slot is used


class _Choice(NamedTuple):
    positions: np.ndarray  # int64 [b, m], ascending; 0 where unused
    used: np.ndarray  # bool [b, m]
    action_columns: np.ndarray  # int64 [b, m], the column whose hash decides 80/10/10


def mask_rows(
    input_ids: np.ndarray, lengths: np.ndarray, keys: np.ndarray, spec: RowSpec, tokens: TokenIds
) -> MaskedRows:
    """Chooses and replaces tokens.

    Candidates are all tokens except [CLS] and [SEP]; [UNK] is one, as in the reference. A row of n
    tokens, special tokens included, gets min(max_predictions, max(1, round(mask_rate * n))), half
    to even; "whole_word" and "span" may give fewer if no whole word fits any more. A random
    token is uniform over the whole vocabulary, special tokens included.

    Args:
        input_ids: int32 [b, t], rows that begin at column 0; not changed. Any t that holds the
            tokens gives the same masks.
        lengths: int64 [b], tokens of each row, special tokens included.
        keys: uint64 [b].
        spec: how much to mask, and how: "token", "whole_word" or "span".
        tokens: ids and word starts.
    """
    t = input_ids.shape[1]
    m = min(spec.max_predictions, t)
    candidates = (input_ids != tokens.cls_id) & (input_ids != tokens.sep_id)
    candidates &= np.arange(t) < lengths[:, None]
    # The same float64 product and rounding as Python's round().
    budget = np.maximum(1, np.rint(spec.mask_rate * lengths).astype(np.int64))
    budget = np.minimum(spec.max_predictions, budget)
    if spec.masking == "token":
        choice = _choose_tokens(candidates, budget, keys, m, spec.max_length)
    else:
        words = _find_words(input_ids, candidates, tokens.word_starts)
        choose = _choose_words if spec.masking == "whole_word" else _choose_spans
        choice = choose(words, budget, keys, m, spec.max_length)

    columns = choice.positions.astype(np.uint32)
    original = np.take_along_axis(input_ids, choice.positions, axis=1)
    action = bits32(bits64(keys, _ACTION), choice.action_columns.astype(np.uint32))
    random = bits32(bits64(keys, _REPLACEMENT), columns).astype(np.uint64)
    random = (random * np.uint64(tokens.vocab_size)) >> np.uint64(32)
    new = np.where(action < _KEEP_BELOW, original, random.astype(np.int32))
    new[action < _MASK_BELOW] = tokens.mask_id
    masked = input_ids.copy()
    row, slot = np.nonzero(choice.used)
    masked[row, choice.positions[row, slot]] = new[row, slot]
    return MaskedRows(
        masked,
        choice.positions.astype(np.int32),
        np.where(choice.used, original, np.int32(0)),
        choice.used.astype(np.float32),
    )


def _choose_tokens(
    candidates: np.ndarray, budget: np.ndarray, keys: np.ndarray, m: int, max_length: int
) -> _Choice:
    """The candidates with the smallest scores."""
    t = candidates.shape[1]
    scores, column_bits = _scores(candidates, keys, max_length)
    smallest = np.sort(np.partition(scores, m - 1, axis=1)[:, :m], axis=1)
    used = (np.arange(m) < budget[:, None]) & (smallest != _NEVER)
    positions = np.where(used, smallest & column_bits, np.uint32(t)).astype(np.int64)
    positions.sort(axis=1)  # the unused slots are now last
    used = positions < t
    positions[~used] = 0
    return _Choice(positions, used, positions)


def _scores(
    candidates: np.ndarray, keys: np.ndarray, max_length: int
) -> tuple[np.ndarray, np.uint32]:
    """uint32 [b, t]: random high bits, the column in the low ones (returned as a mask).

    So no two scores are equal, and sorting scores sorts columns. If two candidates agree in the
    high bits, the lower column wins; at t = 512 this changes about one row in ten thousand.
    """
    columns = np.arange(candidates.shape[1], dtype=np.uint32)
    column_bits = np.uint32((1 << (max_length - 1).bit_length()) - 1)
    scores = bits32(bits64(keys, _CHOOSE), columns)
    scores &= ~column_bits
    scores |= columns
    # No candidate has this score: the last column is beyond the row, [SEP] or padding.
    scores[~candidates] = _NEVER
    return scores, column_bits


class _Words(NamedTuple):
    """The words of the rows, at most w per row."""

    candidates: np.ndarray  # bool [b, t]
    word: np.ndarray  # int64 [b, t], number of the word at a candidate position
    size: np.ndarray  # int64 [b, w], candidate positions of each word; 0 beyond the last
    begin: np.ndarray  # int64 [b, w], first column of each word


def _find_words(input_ids: np.ndarray, candidates: np.ndarray, word_starts: np.ndarray) -> _Words:
    """Words end before [SEP]. A token whose word's start was cut off is a word of its own."""
    b, t = input_ids.shape
    starts = word_starts[input_ids]
    starts[:, 1:] |= ~candidates[:, :-1]
    starts[:, 0] = True
    starts &= candidates
    word = np.cumsum(starts, axis=1) - 1
    row, column = np.nonzero(starts)
    begin = np.zeros((b, t), np.int64)
    begin[row, word[row, column]] = column
    row, column = np.nonzero(candidates)
    size = np.bincount(row * t + word[row, column], minlength=b * t).reshape(b, t)
    return _Words(candidates, word, size, begin)


def _word_order(words: _Words, keys: np.ndarray, max_length: int) -> tuple[np.ndarray, np.ndarray]:
    """int64 [b, w], each row's words in random order; bool [b, w], False after the last word."""
    valid = words.size > 0
    scores, word_bits = _scores(valid, keys, max_length)
    scores.sort(axis=1)
    order = np.minimum(scores & word_bits, np.uint32(valid.shape[1] - 1)).astype(np.int64)
    return order, scores != _NEVER


def _choose_words(
    words: _Words, budget: np.ndarray, keys: np.ndarray, m: int, max_length: int
) -> _Choice:
    """Takes words in random order and skips those that do not fit, as the reference does.

    A word that does not fit now never will, so each round drops all of these. It takes as many of
    the others as fit together, until nothing fits.
    """
    order, valid = _word_order(words, keys, max_length)
    size = np.take_along_axis(words.size, order, axis=1) * valid
    chosen = np.zeros(size.shape, bool)
    remaining = budget.copy()
    rows = np.arange(len(size))
    while len(rows):
        left = remaining[rows, None]
        open_size = np.where(chosen[rows] | (size[rows] > left), 0, size[rows])
        fits = (open_size > 0) & (np.cumsum(open_size, axis=1) <= left)
        chosen[rows] |= fits
        remaining[rows] -= (open_size * fits).sum(axis=1)
        rows = rows[fits.any(axis=1)]
    taken = np.zeros_like(chosen)
    np.put_along_axis(taken, order, chosen, axis=1)
    positions, used = _positions(words, taken, m)
    return _Choice(positions, used, positions)


def _choose_spans(
    words: _Words, budget: np.ndarray, keys: np.ndarray, m: int, max_length: int
) -> _Choice:
    """Takes spans of whole words, each from a random free word, until none fits.

    A span ends before [SEP], before a word that is taken and before the word that no longer fits.
    One hash decides for the whole span whether it is masked, kept or replaced.
    """
    order, valid = _word_order(words, keys, max_length)
    lengths = bits32(bits64(keys, _SPAN_LENGTH), np.arange(order.shape[1], dtype=np.uint32))
    lengths = 1 + np.searchsorted(_SPAN_BELOW, lengths, side="right")
    # Windows of the longest span may reach beyond the last word, so columns are added.
    room = ((0, 0), (0, _LONGEST_SPAN))
    size = np.pad(words.size, room)
    begin = np.pad(words.begin, room)
    follows = np.zeros(size.shape, bool)  # on the word before, without [SEP] in between
    follows[:, 1:] = begin[:, :-1] + size[:, :-1] == begin[:, 1:]
    taken = np.zeros(size.shape, bool)
    action_column = np.zeros(size.shape, np.int64)
    remaining = budget.copy()
    step = np.arange(_LONGEST_SPAN)
    rows = np.arange(len(order))
    for i in range(order.shape[1]):
        rows = rows[valid[rows, i] & (remaining[rows] > 0)]
        if len(rows) == 0:
            break
        row, window = rows[:, None], order[rows, i, None] + step
        fits = (follows[row, window] | (step == 0)) & ~taken[row, window] & (size[row, window] > 0)
        fits &= step < lengths[rows, i, None]
        fits &= np.cumsum(size[row, window], axis=1) <= remaining[rows, None]
        span = np.logical_and.accumulate(fits, axis=1)
        taken[row, window] |= span
        action_column[row, window] = np.where(
            span, begin[row, window[:, :1]], action_column[row, window]
        )
        remaining[rows] -= (size[row, window] * span).sum(axis=1)
    positions, used = _positions(words, taken, m)
    word = np.take_along_axis(words.word, positions, axis=1)
    return _Choice(positions, used, np.take_along_axis(action_column, word, axis=1))


def _positions(words: _Words, taken: np.ndarray, m: int) -> tuple[np.ndarray, np.ndarray]:
    """The columns of the taken words, ascending: int64 [b, m], 0 where unused, and bool [b, m]."""
    chosen = words.candidates & np.take_along_axis(taken, np.maximum(words.word, 0), axis=1)
    count = chosen.sum(axis=1)
    row, column = np.nonzero(chosen)
    slot = np.arange(len(row)) - np.repeat(np.cumsum(count) - count, count)
    positions = np.zeros((len(taken), m), np.int64)
    positions[row, slot] = column
    return positions, np.arange(m) < count[:, None]
