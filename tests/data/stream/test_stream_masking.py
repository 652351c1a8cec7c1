"""Masking against plain transcriptions that use the same hashes, and its proportions."""

import numpy as np
import pytest
from stream_store import chi_square_excess, make_reader

from bertjax.data.counter_rng import bits32, bits64, keys_at, stream_key
from bertjax.data.stream.masking import mask_rows
from bertjax.data.stream.rows import RowSpec
from bertjax.testing import VOCAB_SIZE, make_tokenizer

TOKENS = make_tokenizer()
CLS, SEP, MASK = TOKENS.cls_id, TOKENS.sep_id, TOKENS.mask_id
SAMPLE = 100_000


@pytest.fixture(scope="module")
def sample():
    """100,000 rows of an unmasked kind: the same stream, and what it held before masking."""
    reader = make_reader(max_length=64, max_predictions=10)
    rows = reader.rows(10**6 + np.arange(SAMPLE))
    original = rows["input_ids"].copy()
    used = rows["masked_weights"] > 0
    row, slot = np.nonzero(used)
    original[row, rows["masked_positions"][row, slot]] = rows["masked_ids"][row, slot]
    return reader, rows, original, used


def test_counts_are_the_reference_rounding(sample):
    _, rows, _, used = sample
    lengths = rows["attention_mask"].sum(axis=1)
    expected = [min(10, max(1, round(0.15 * n))) for n in range(65)]
    assert np.array_equal(used.sum(axis=1), np.array(expected)[lengths])
    assert np.array_equal(used, np.arange(10) < used.sum(axis=1)[:, None])
    for name in ("masked_positions", "masked_ids"):
        assert not rows[name][~used].any()
    # 15 % of the tokens, but for the rounding of half a token a row at most.
    assert abs(used.sum() - 0.15 * lengths.sum()) < 0.5 * SAMPLE


@pytest.mark.parametrize("rate", [0.15, 0.3, 0.05, 0.125])
def test_rounding_is_half_to_even_of_the_float_product(rate):
    lengths = np.arange(5, 513)
    ids = np.full((len(lengths), 512), 9, np.int32)
    spec = RowSpec(max_length=512, max_predictions=80, mask_rate=rate)
    masked = mask_rows(ids, lengths, keys_at(0, lengths), spec, TOKENS)
    expected = [min(80, max(1, round(rate * n))) for n in lengths.tolist()]
    assert masked.weights.sum(axis=1).tolist() == expected


def test_positions_ascend_and_are_never_special(sample):
    _, rows, original, used = sample
    steps = np.diff(rows["masked_positions"], axis=1)
    assert (steps[used[:, 1:]] > 0).all()
    chosen = original[np.nonzero(used)[0], rows["masked_positions"][used]]
    assert not np.isin(chosen, (CLS, SEP, TOKENS.pad_id)).any()
    assert (chosen == TOKENS.unk_id).any(), "an unknown word is a candidate"
    at = np.take_along_axis(rows["attention_mask"], rows["masked_positions"], axis=1)
    assert (at[used] == 1).all()
    # Elsewhere nothing changed.
    changed = rows["input_ids"] != original
    assert changed.sum() <= used.sum()
    assert ((original == CLS).sum(axis=1) == 1).all()
    assert ((original == SEP).sum(axis=1) == 2).all()


def test_replacements_are_80_10_10_and_uniform(sample):
    _, rows, _, used = sample
    before = rows["masked_ids"][used]
    after = rows["input_ids"][np.nonzero(used)[0], rows["masked_positions"][used]]
    n = len(before)
    assert n > 600_000
    share_kept = 0.1 + 0.1 / VOCAB_SIZE  # a random token may be the same
    share_masked = 0.8 + 0.1 / VOCAB_SIZE
    for share, expected in (
        ((after == MASK).mean(), share_masked),
        ((after == before).mean(), share_kept),
    ):
        assert abs(share - expected) < 5 * np.sqrt(expected * (1 - expected) / n)
    random = after[(after != MASK) & (after != before)]
    counts = np.bincount(random, minlength=VOCAB_SIZE)
    assert len(counts) == VOCAB_SIZE
    others = np.delete(np.arange(VOCAB_SIZE), MASK)
    # A token that stands in the text often is a little less often seen as a change.
    expected = 0.1 / VOCAB_SIZE * (n - np.bincount(before, minlength=VOCAB_SIZE))[others]
    assert chi_square_excess(counts[others], expected) < 5
    assert counts[[TOKENS.pad_id, CLS, SEP]].min() > 0, "special tokens are replacements too"


def test_every_candidate_is_equally_likely(sample):
    _, rows, _, _ = sample
    full = rows["attention_mask"].sum(axis=1) == 64
    first_sep = 64 - 1 - rows["token_type_ids"].sum(axis=1)
    # Rows of 64 tokens get 10 of 61 candidates; all but the first [SEP] and the ends.
    counts = np.bincount(rows["masked_positions"][full].ravel(), minlength=64)
    candidates = full.sum() - np.bincount(first_sep[full], minlength=64)
    candidates[[0, 63]] = 0
    likely = candidates > 0
    assert not counts[~likely].any()
    # Draws without replacement vary less than independent ones, so this is on the safe side.
    assert chi_square_excess(counts[likely], candidates[likely] * 10 / 61) < 5
    # Neighbours are chosen together as often as any two.
    positions = rows["masked_positions"][full]
    adjacent = (np.diff(positions, axis=1) == 1).sum(axis=1).mean()
    expected = 10 * 9 / (61 * 60) * (61 - 2)  # the [SEP] in between parts one pair of 60
    assert abs(adjacent - expected) < 0.02


def plain_words(ids, length):
    """Columns of each word; a piece goes with the candidate just before it."""
    words = []
    for column in range(length):
        if ids[column] in (CLS, SEP):
            continue
        before = ids[column - 1]
        if words and not TOKENS.word_starts[ids[column]] and before not in (CLS, SEP):
            words[-1].append(column)
        else:
            words.append([column])
    return words


def plain_order(words, key, t):
    """Words by their scores: hash with the number of the word in the low bits."""
    low = (1 << (t - 1).bit_length()) - 1
    hashes = bits32(bits64(key, 0), np.arange(len(words), dtype=np.uint32))[0]
    return sorted(range(len(words)), key=lambda i: int(hashes[i]) & ~low | i)


def plain_whole_word(words, order, budget):
    """`create_masked_lm_predictions` with do_whole_word_mask, after its shuffle."""
    chosen = []
    for i in order:
        if len(chosen) >= budget:
            break
        if len(chosen) + len(words[i]) > budget:
            continue
        chosen += words[i]
    return sorted(chosen)


def plain_spans(words, order, budget, lengths):
    """Spans of whole words; column → first column of its span."""
    taken, total = {}, 0
    for i in order:
        for step in range(lengths[i]):
            if i + step >= len(words) or i + step in taken:
                break
            if step and words[i + step][0] != words[i + step - 1][-1] + 1:
                break
            if total + len(words[i + step]) > budget:
                break
            taken[i + step] = words[i][0]
            total += len(words[i + step])
    return {column: begin for i, begin in taken.items() for column in words[i]}


def plain_span_length(bits):
    shares = [0.2 * 0.8**k for k in range(10)]
    total, below = sum(shares), 0.0
    for length, share in enumerate(shares, 1):
        below += share / total
        if bits / 2**32 < below:
            return length
    return 10


@pytest.mark.parametrize("long_words", [False, True])
@pytest.mark.parametrize("masking", ["whole_word", "span"])
def test_words_and_spans_equal_a_plain_walk(masking, long_words):
    reader = make_reader(max_length=64, max_predictions=7, masking=masking)
    rows = reader.rows(np.arange(1500))
    ids = rows["input_ids"].copy()
    if long_words:  # nine pieces in ten continue a word, so that many do not fit
        text = (ids != CLS) & (ids != SEP) & (rows["attention_mask"] == 1)
        ids[text & (ids % 10 > 0)] = 12
        assert not TOKENS.word_starts[12]
    lengths = rows["attention_mask"].sum(axis=1)
    keys = keys_at(stream_key(4), np.arange(len(ids)))
    masked = mask_rows(ids, lengths, keys, reader.spec, TOKENS)
    below_budget = 0
    for i in range(len(ids)):
        key = keys[i : i + 1]
        words = plain_words(ids[i].tolist(), lengths[i])
        order = plain_order(words, key, 64)
        budget = min(7, max(1, round(0.15 * int(lengths[i]))))
        if masking == "whole_word":
            expected = plain_whole_word(words, order, budget)
            action_columns = expected
        else:
            drawn = bits32(bits64(key, 3), np.arange(64, dtype=np.uint32))[0]
            span_lengths = [0] * len(words)
            for step, word in enumerate(order):
                span_lengths[word] = plain_span_length(int(drawn[step]))
            spans = plain_spans(words, order, budget, span_lengths)
            expected = sorted(spans)
            action_columns = [spans[column] for column in expected]
        count = int(masked.weights[i].sum())
        assert masked.positions[i, :count].tolist() == expected
        assert masked.ids[i, :count].tolist() == ids[i, expected].tolist()
        below_budget += count < budget
        actions = bits32(bits64(key, 1), np.array(action_columns, np.uint32))[0] / 2**32
        new = masked.input_ids[i, expected]
        assert (new[actions < 0.8] == MASK).all()
        kept = (actions >= 0.8) & (actions < 0.9)
        assert (new[kept] == ids[i, expected][kept]).all()
        random = bits32(bits64(key, 2), np.array(expected, np.uint32))[0]
        random = random.astype(np.int64) * VOCAB_SIZE >> 32
        assert (new[actions >= 0.9] == random[actions >= 0.9]).all()
        untouched = np.setdiff1d(np.arange(64), expected)
        assert np.array_equal(masked.input_ids[i, untouched], ids[i, untouched])
    assert (below_budget > 100) == long_words


def test_span_lengths_are_spanbert():
    """With one-piece words and room for one span, the count is the span's length."""
    spec = RowSpec(max_length=128, max_predictions=10, mask_rate=1.0, masking="span")
    ids = np.full((40_000, 128), 9, np.int32)
    keys = keys_at(stream_key(5), np.arange(len(ids)))
    masked = mask_rows(ids, np.full(len(ids), 128), keys, spec, TOKENS)
    assert (masked.weights.sum(axis=1) == 10).all()
    # The first span of a row: 3.8 words on average; runs in a row are at least that long.
    runs = 1 + (np.diff(masked.positions, axis=1) > 1).sum(axis=1)
    assert 2.5 < runs.mean() < 3.5
    # All of a span is masked, kept or replaced.
    is_mask = np.take_along_axis(masked.input_ids, masked.positions, axis=1) == MASK
    single = runs == 1
    assert single.sum() > 1000
    whole = is_mask[single]
    # A run may be two spans that touch, or hold a random token that happens to be [MASK].
    assert (whole.all(axis=1) | ~whole.any(axis=1)).mean() > 0.9
    assert abs(is_mask.mean() - 0.8) < 0.01


def test_all_candidates_can_be_chosen():
    ids = np.array([[CLS, 9, 10, SEP, 11, SEP, 0, 0]], np.int32)
    for masking in ("token", "whole_word", "span"):
        spec = RowSpec(max_length=8, max_predictions=8, mask_rate=1.0, masking=masking)
        masked = mask_rows(ids, np.array([6]), keys_at(1, np.arange(1)), spec, TOKENS)
        assert masked.positions[0].tolist() == [1, 2, 4, 0, 0, 0, 0, 0]
        assert masked.ids[0].tolist() == [9, 10, 11, 0, 0, 0, 0, 0]
        assert masked.weights[0].tolist() == [1, 1, 1, 0, 0, 0, 0, 0]
