"""Sentence pairs against a plain transcription of the reference's rules."""

import random
from collections import Counter

import numpy as np
import pytest
from stream_store import chi_square_excess, make_reader, shared_store

from bertjax.data.counter_rng import keys_at, stream_key
from bertjax.data.store.store_writer import write_store
from bertjax.data.stream.pairs import draw_segments, truncated_lengths
from bertjax.data.stream.rows import RowSpec
from bertjax.testing import make_documents, make_tokenizer

ROOM = 29
SPEC = RowSpec(max_length=ROOM + 3, max_predictions=5)


@pytest.mark.parametrize("room", [2, 5, 6, 29, 30])
def test_truncation_equals_dropping_one_at_a_time(room):
    a, b = (grid.ravel() for grid in np.meshgrid(np.arange(1, 80), np.arange(1, 80)))
    for a_length, b_length, *kept in zip(a, b, *truncated_lengths(a, b, room), strict=True):
        while a_length + b_length > room:
            if a_length > b_length:
                a_length -= 1
            else:
                b_length -= 1
        assert kept == [a_length, b_length]


def plain_pair(documents, document, sentences, spec, rng):
    """One row as the reference makes it; tokens are (document, sentence, place) triples."""
    room = spec.room
    target = rng.randint(2, room) if rng.random() < spec.short_row_rate else room
    chunk, length = [], 0
    for sentence in sentences:
        chunk.append(sentence)
        length += len(sentence)
        if length >= target:
            break
    a_end = rng.randint(1, len(chunk) - 1) if len(chunk) >= 2 else 1
    a = [token for sentence in chunk[:a_end] for token in sentence]
    b = []
    is_random = len(chunk) == 1 or rng.random() < 0.5
    if is_random:
        for _ in range(10):
            other = rng.randint(0, len(documents) - 1)
            if other != document:
                break
        start = rng.randint(0, len(documents[other]) - 1)
        for sentence in documents[other][start:]:
            b.extend(sentence)
            if len(b) >= target - len(a):
                break
    else:
        b = [token for sentence in chunk[a_end:] for token in sentence]
    while len(a) + len(b) > room:
        longer = a if len(a) > len(b) else b
        del longer[0 if rng.random() < 0.5 else -1]
    return a, b, is_random


def test_pairs_have_the_reference_distribution(tmp_path):
    """Every outcome of a few rows of a tiny store, as often as the transcription has it."""
    lengths = [[3, 2, 9, 4, 16, 1, 2], [45], [2, 40, 3], [1]]
    documents = [[[7] * n for n in sentences] for sentences in lengths]
    store = write_store(tmp_path / "s", make_tokenizer(), documents)
    tokens = iter(range(10**6))
    documents = [[[next(tokens) for _ in sentence] for sentence in d] for d in documents]
    reader = make_reader(store, max_length=ROOM + 3, max_predictions=5)
    starts = np.asarray(reader.starts)
    sentences = [sentence for d in documents for sentence in d]
    owner = [i for i, d in enumerate(documents) for _ in d]
    draws = 20_000
    assert reader.num_rows == 6
    for row in range(reader.num_rows):
        first, last = np.full(draws, starts[row]), np.full(draws, starts[row + 1])
        keys = keys_at(stream_key(row), np.arange(draws))
        found = Counter(
            zip(*(x.tolist() for x in draw_segments(store.train, first, last, keys, SPEC)),
                strict=True)
        )  # fmt: skip
        rng = random.Random(row)
        expected: Counter = Counter()
        for _ in range(draws):
            a, b, is_random = plain_pair(
                documents, owner[first[0]], sentences[first[0] : last[0]], SPEC, rng
            )
            expected[a[0], len(a), b[0], len(b), int(is_random)] += 1
        # Two samples of the same size: compared outcome by outcome, rare ones put together.
        outcomes = {o for o in found | expected if found[o] + expected[o] >= 20}
        table = np.array([[found[o], expected[o]] for o in outcomes])
        rare = np.array([[draws, draws]]) - table.sum(axis=0)
        table = np.concatenate([table, rare[rare.sum(axis=1) > 0]])
        assert len(table) > 20
        half = table.sum(axis=1) / 2
        # (found - half)^2 / half + (expected - half)^2 / half is chi-square, a degree an outcome.
        statistic = (((table - half[:, None]) ** 2).sum(axis=1) / half).sum()
        assert abs(statistic - len(table) + 1) / np.sqrt(2 * len(table)) < 5


def check_texts(split, segments, spec):
    """Segments are runs of tokens inside one document each, and fit."""
    offsets = split.sentence_offsets.astype(np.int64)
    bounds = offsets[split.document_offsets.astype(np.int64)]
    document = {}
    for side in ("a", "b"):
        start, length = getattr(segments, f"{side}_start"), getattr(segments, f"{side}_length")
        assert length.min() >= 1
        document[side] = np.searchsorted(bounds, start, side="right") - 1
        assert (start + length <= bounds[document[side] + 1]).all()
    total = segments.a_length + segments.b_length
    assert total.max() == spec.room
    return document["a"] == document["b"]


def test_random_segments_come_from_another_document():
    reader = make_reader(max_length=32, max_predictions=5)
    row = np.arange(60_000) % reader.num_rows
    keys = keys_at(stream_key(3), np.arange(len(row)))
    first, last = reader.starts[row], reader.starts[row + 1]
    segments = draw_segments(reader.split, first, last, keys, SPEC)
    same_document = check_texts(reader.split, segments, SPEC)
    assert np.array_equal(same_document, segments.is_random == 0)


def test_a_single_document_is_its_own_random_one(tmp_path):
    store = write_store(
        tmp_path / "s", make_tokenizer(), make_documents(1, seed=7, mean_sentences=400)
    )
    reader = make_reader(store, max_length=32, max_predictions=5)
    labels = reader.rows(np.arange(4000))["next_sentence_labels"]
    assert 0.45 < labels.mean() < 0.75


def test_a_split_of_one_token(tmp_path):
    store = write_store(tmp_path / "s", make_tokenizer(), [[[9]]])
    for next_sentence, text in ((True, [2, 9, 3, 9, 3]), (False, [2, 9, 3])):
        reader = make_reader(store, max_length=8, max_predictions=2, next_sentence=next_sentence)
        row = reader.rows(np.array([10**12]))
        assert reader.num_rows == 1
        assert row["attention_mask"][0].sum() == len(text)
        restored = row["input_ids"][0]
        restored[row["masked_positions"][0][row["masked_weights"][0] > 0]] = 9
        assert restored[: len(text)].tolist() == text


def test_share_of_random_pairs():
    """Half, and half of the rows that have one sentence to begin with."""
    reader = make_reader(max_length=64, max_predictions=10)
    positions = 5 * reader.num_rows + np.arange(100_000)
    rows = reader.rows(positions)
    offsets = reader.split.sentence_offsets.astype(np.int64)
    first, last = reader.starts[rows["row_ids"]], reader.starts[rows["row_ids"] + 1]
    room = reader.spec.room
    # A row of several sentences has one after all if a short target lies in the first of them.
    in_first = np.clip((offsets[first + 1] - offsets[first] - 1) / (room - 1), 0, 1)
    one_sentence = np.where(last - first == 1, 1.0, 0.1 * in_first)
    expected = 0.5 + 0.5 * one_sentence.mean()
    assert 0.55 < expected < 0.75
    assert abs(rows["next_sentence_labels"].mean() - expected) < 0.005


def test_long_sentences_lose_tokens_at_both_ends(tmp_path):
    store = write_store(tmp_path / "s", make_tokenizer(), [[[5] * 200_000], *[[[6] * 3]] * 9])
    spec = RowSpec(max_length=32, max_predictions=5, short_row_rate=0.0)
    keys = keys_at(stream_key(1), np.arange(2000))
    zeros = np.zeros(2000, np.int64)
    segments = draw_segments(store.train, zeros, zeros + 1, keys, spec)
    assert set(segments.a_length) == {26}
    assert set(segments.b_length) == {3}
    front = segments.a_start  # Binomial(199,974, 1/2)
    assert abs(front.mean() - 99_987) < 5 * 223.6 / np.sqrt(2000)
    assert 0.9 < front.std() / 223.6 < 1.1


def test_without_next_sentence_all_of_a_long_sentence_is_read(tmp_path):
    """As many tokens are dropped in front as may be, each number as likely."""
    store = write_store(tmp_path / "s", make_tokenizer(), [[[5] * 1_000]])
    spec = RowSpec(max_length=32, max_predictions=5, next_sentence=False)
    keys = keys_at(stream_key(1), np.arange(20_000))
    zeros = np.zeros(20_000, np.int64)
    segments = draw_segments(store.train, zeros, zeros + 1, keys, spec)
    assert set(segments.a_length) == {30}
    counts = np.bincount(segments.a_start, minlength=971)
    assert len(counts) == 971
    assert counts.min() > 0
    # The sum of squares over 970 degrees of freedom, within five standard deviations.
    expected = 20_000 / 971
    assert abs(((counts - expected) ** 2 / expected).sum() - 970) < 5 * np.sqrt(2 * 970)


def test_rows_without_next_sentence_are_running_text():
    spec = RowSpec(max_length=64, max_predictions=10, next_sentence=False)
    reader = make_reader(max_length=64, max_predictions=10, next_sentence=False)
    row = np.arange(50_000) % reader.num_rows
    keys = keys_at(stream_key(4), np.arange(len(row)))
    first, last = reader.starts[row], reader.starts[row + 1]
    segments = draw_segments(reader.split, first, last, keys, spec)
    offsets = reader.split.sentence_offsets.astype(np.int64)
    assert (segments.a_start >= offsets[first]).all()
    assert (segments.a_start + segments.a_length <= offsets[last]).all()
    assert segments.a_length.max() == 62
    assert not segments.b_length.any()
    assert not segments.is_random.any()
    # Nine tenths are the whole row, or as much of it as there is room for.
    whole = segments.a_length == np.minimum(offsets[last] - offsets[first], 62)
    assert 0.9 < whole.mean() < 0.96
    # Where rows are long enough to show it, short targets are uniform in [2, room].
    rows = reader.rows(np.arange(1000))
    assert not rows["token_type_ids"].any()
    assert not rows["next_sentence_labels"].any()
    assert ((rows["input_ids"] == 3).sum(axis=1) == 1).all()


def test_short_targets_are_uniform(tmp_path):
    """With sentences of one token a row is as long as its target."""
    store = write_store(tmp_path / "s", make_tokenizer(), [[[8]] * 600, [[9]] * 600])
    spec = RowSpec(max_length=32, max_predictions=5, short_row_rate=1.0)
    keys = keys_at(stream_key(6), np.arange(60_000))
    first = np.zeros(60_000, np.int64)
    segments = draw_segments(store.train, first, first + ROOM, keys, spec)
    ends_early = (segments.is_random == 1) & (segments.b_start + segments.b_length) % 600 == 0
    total = (segments.a_length + segments.b_length)[~ends_early]
    counts = np.bincount(total, minlength=ROOM + 1)
    assert counts[:2].sum() == 0
    assert chi_square_excess(counts[2:], len(total) / (ROOM - 1)) < 5
    # A of n one-token sentences is uniform in [1, n - 1].
    full = total == ROOM
    counts = np.bincount(segments.a_length[~ends_early][full], minlength=ROOM)
    assert counts[0] == 0
    assert chi_square_excess(counts[1:], full.sum() / (ROOM - 1)) < 5


def test_random_documents_and_sentences_are_uniform(tmp_path):
    sentences = [3, 1, 6, 2]
    store = write_store(tmp_path / "s", make_tokenizer(), [[[7] * 40] * n for n in sentences])
    spec = RowSpec(max_length=32, max_predictions=5, short_row_rate=0.0)
    draws = 60_000
    keys = keys_at(stream_key(8), np.arange(draws))
    first = np.zeros(draws, np.int64)  # of document 0
    segments = draw_segments(store.train, first, first + 1, keys, spec)
    assert segments.is_random.all()
    # Each document of the others alike, then each sentence of it alike.
    counts = np.bincount(segments.b_start // 40, minlength=12)
    assert counts[:3].sum() == 0
    expected = np.repeat([1 / 3, 1 / 18, 1 / 6], [1, 6, 2]) * draws
    assert chi_square_excess(counts[3:], expected) < 5


def test_store_is_in_several_shards():
    assert len(shared_store().train.token_shards) > 3
