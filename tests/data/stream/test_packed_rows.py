"""Packed rows: the pairs of the unpacked stream, bit for bit, whatever the batch and the thread."""

import atexit
import functools
import hashlib
import logging
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
from stream_store import make_reader

from bertjax.data.store.store_writer import write_store
from bertjax.data.stream import packed_rows
from bertjax.data.stream.packed_rows import PackedRows
from bertjax.data.stream.reader import RowReader
from bertjax.data.stream.rows import RowSpec
from bertjax.data.stream.tf_data import BatchStream
from bertjax.prepare.build_store import prepare
from bertjax.prepare.options import PrepareOptions
from bertjax.testing import make_documents, make_tokenizer

SPEC = {"max_length": 64, "max_predictions": 12}
SPECS = [
    SPEC,
    {**SPEC, "masking": "whole_word"},
    {**SPEC, "masking": "span"},
    {**SPEC, "next_sentence": False},
]
DEPTH = 3


@functools.cache
def short_documents():
    """A store in whose pairs half of the places of a row are padding."""
    folder = Path(tempfile.mkdtemp(prefix="bertjax-packed-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    documents = make_documents(3_000, seed=7, mean_sentences=2, mean_tokens=10)
    return write_store(folder / "store", make_tokenizer(), documents)


def make_pairs(**spec):
    return make_reader(short_documents(), **(spec or SPEC))


def make_packed(depth=DEPTH, **spec):
    return PackedRows(make_pairs(**spec), depth)


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("start", [0, 10**9])
def test_a_row_holds_the_pairs_of_the_unpacked_stream(spec, start):
    packed = make_packed(**spec)
    reader = make_pairs(**spec)
    positions = start + np.arange(200)
    batch, table = packed.rows(positions), packed.pair_positions(positions)
    assert (table >= 0).sum(axis=1).max() == DEPTH
    for i in range(200):
        row = {name: array[i] for name, array in batch.items()}
        pairs = reader.rows(table[i][table[i] >= 0])
        count = len(pairs["row_ids"])
        assert row["pair_weights"].tolist() == [1.0] * count + [0.0] * (DEPTH - count)
        begin = slot = 0
        for j in range(count):
            pair = {name: array[j] for name, array in pairs.items()}
            n = pair["attention_mask"].sum()
            here = slice(begin, begin + n)
            assert row["cls_positions"][j] == begin
            assert row["next_sentence_labels"][j] == pair["next_sentence_labels"]
            for name in ("input_ids", "token_type_ids"):
                assert np.array_equal(row[name][here], pair[name][:n]), name
            assert (row["segment_ids"][here] == j + 1).all()
            assert np.array_equal(row["position_ids"][here], np.arange(n))
            used = int(pair["masked_weights"].sum())
            slots = slice(slot, slot + used)
            moved = pair["masked_positions"][:used] + begin
            assert np.array_equal(row["masked_positions"][slots], moved)
            assert np.array_equal(row["masked_ids"][slots], pair["masked_ids"][:used])
            begin, slot = begin + n, slot + used
        for name in ("input_ids", "token_type_ids", "segment_ids", "position_ids"):
            assert not row[name][begin:].any(), name
        assert row["masked_weights"].tolist() == [1.0] * slot + [0.0] * (12 - slot)
        for name in ("masked_positions", "masked_ids"):
            assert not row[name][slot:].any(), name
        for name in ("cls_positions", "next_sentence_labels"):
            assert not row[name][count:].any(), name


# What packed streams hold: the same promise as that of tests/data/stream/test_stream_reader.py.
GOLDEN = [
    "2df220b30b2f7744ff56851163577a1cac279a3a892ba5e646a89c372f2db244",
    "a0696dd0468eacaebfa5aaa461b1c598c36b2366d998d809a59d961d6f8adf6a",
    "8a78215072c6e9e219cade4e58734c673b76bd5ddcd110f68dac65866eff99eb",
    "956d2e5b2fd4c6e80f3f7363764dbbf9ba11fc91737e90050a7bc0a12d3cf36e",
]


@pytest.mark.parametrize(("spec", "expected"), list(zip(SPECS, GOLDEN, strict=True)))
def test_rows_never_change(spec, expected):
    packed = make_packed(**spec)
    positions = np.concatenate([np.arange(150), 10**9 + np.arange(150)])
    digest = hashlib.sha256()
    for name, array in sorted(packed.rows(positions).items()):
        digest.update(name.encode() + array.astype(array.dtype.newbyteorder("<")).tobytes())
    assert digest.hexdigest() == expected


@pytest.mark.parametrize("is_packed", [False, True])
def test_rows_without_masks_are_the_same_rows(is_packed):
    make = make_packed if is_packed else make_pairs
    masked = make(**SPECS[-1]).rows(np.arange(50))
    plain = make(**{**SPECS[-1], "max_predictions": 0}).rows(np.arange(50))
    used = masked["masked_weights"] > 0
    row, _ = np.nonzero(used)
    original = masked["input_ids"].copy()
    original[row, masked["masked_positions"][used]] = masked["masked_ids"][used]
    assert (original != masked["input_ids"]).sum() > 100
    assert masked.keys() - plain.keys() == {"masked_positions", "masked_ids", "masked_weights"}
    for name, array in plain.items():
        np.testing.assert_array_equal(array, original if name == "input_ids" else masked[name])


def test_shapes_and_types():
    for count in (0, 5):
        batch = make_packed().rows(np.arange(count))
        assert {name: (array.dtype.name, array.shape) for name, array in batch.items()} == {
            "input_ids": ("int32", (count, 64)),
            "token_type_ids": ("int32", (count, 64)),
            "segment_ids": ("int32", (count, 64)),
            "position_ids": ("int32", (count, 64)),
            "masked_positions": ("int32", (count, 12)),
            "masked_ids": ("int32", (count, 12)),
            "masked_weights": ("float32", (count, 12)),
            "cls_positions": ("int32", (count, 3)),
            "next_sentence_labels": ("int32", (count, 3)),
            "pair_weights": ("float32", (count, 3)),
            "row_ids": ("int64", (count,)),
        }


def test_a_row_is_the_same_in_any_batch_and_any_reader():
    packed = make_packed()
    positions = 10**7 + np.arange(96)
    together = packed.rows(positions)
    other = make_packed()  # which has planned no window yet
    backwards = [other.rows(positions[i : i + 1]) for i in reversed(range(96))][::-1]
    for name, array in together.items():
        assert np.array_equal(array, np.concatenate([row[name] for row in backwards])), name


@pytest.mark.parametrize("window_pairs", [500, 2**17])
def test_every_pair_comes_once_an_epoch(monkeypatch, window_pairs):
    monkeypatch.setattr(packed_rows, "_WINDOW_PAIRS", window_pairs)
    packed, n = make_packed(), make_pairs().num_rows
    windows = packed.num_rows // packed.window_rows
    assert windows == -(-n // window_pairs)
    left_out = 0
    for epoch in (0, 1, 10**6):
        table = packed.pair_positions(epoch * packed.num_rows + np.arange(packed.num_rows))
        assert (table[:, 0] >= 0).all()
        held = table[table >= 0]
        assert len(np.unique(held)) == len(held)
        assert held.min() >= epoch * n
        assert held.max() < (epoch + 1) * n
        missing = sum(packed.left_out(epoch * windows + window) for window in range(windows))
        assert len(held) == n - missing
        left_out += missing
    assert left_out <= 0.001 * 3 * n
    # Rows do not come in the order in which they were packed, the fullest first.
    full = (packed.rows(np.arange(400))["segment_ids"] > 0).mean(axis=1)
    assert abs(np.corrcoef(np.arange(400), full)[0, 1]) < 0.2


def test_what_finds_no_place_is_counted_and_said(monkeypatch, caplog):
    monkeypatch.setattr(packed_rows, "rows_for", lambda sample, count, *_: count // 3)
    packed = make_packed()
    with caplog.at_level(logging.INFO, "bertjax"):
        table = packed.pair_positions(np.arange(packed.num_rows))
    n = make_pairs().num_rows
    missing = n - (table >= 0).sum()
    assert packed.left_out(0) == missing > 0
    assert f"packed: {missing:,} of the {n:,} pairs of window 0 found no place" in caplog.text


def test_seed_and_stream_change_everything():
    base = make_packed().rows(np.arange(200))
    for change in ({"seed": 4}, {"stream_id": 1}):
        packed = PackedRows(make_pairs(**SPEC, **change), DEPTH)
        assert packed.num_rows == make_packed().num_rows
        rows = packed.rows(np.arange(200))
        assert (rows["row_ids"] != base["row_ids"]).mean() > 0.95
        assert (rows["segment_ids"] != base["segment_ids"]).any(axis=1).mean() > 0.5


@pytest.mark.parametrize("has_tensorflow", [True, False])
def test_several_processes_and_threads_read_the_same(monkeypatch, has_tensorflow):
    """Windows of a few rows, so that threads plan several at a time and drop old ones."""
    monkeypatch.setattr("bertjax.data.stream.tf_data._has_tensorflow", lambda: has_tensorflow)
    monkeypatch.setattr("bertjax.data.stream.tf_data._BLOCK_TOKENS", 2**12)
    monkeypatch.setattr(packed_rows, "_WINDOW_PAIRS", 40)
    monkeypatch.setattr(packed_rows, "_KEPT_WINDOWS", 3)
    expected = make_packed()
    for process in range(2):
        offsets = process + 2 * np.arange(16)
        with BatchStream(
            make_packed(), global_batch_size=32, offsets=offsets, position=10**6, num_threads=4
        ) as stream:
            for k in range(40):
                batch = next(stream)
                rows = expected.rows(10**6 + 32 * k + offsets)
                for name, array in rows.items():
                    assert np.array_equal(batch[name], array), name


def test_a_failure_is_raised_to_every_thread_that_waits(monkeypatch):
    packed = make_packed()
    monkeypatch.setattr(packed, "_make_plan", lambda window: 1 // 0)
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            packed.rows(np.arange(4))


def test_what_cannot_work_is_refused():
    reader = make_pairs()
    with pytest.raises(ValueError, match="positions start at 0, found -3"):
        PackedRows(reader, DEPTH).rows(np.array([5, -3]))
    with pytest.raises(ValueError, match="2 pairs or more, found a depth of 1"):
        PackedRows(reader, 1)
    with pytest.raises(ValueError, match=r"max_predictions is 12, but .* set it to 14 or more"):
        PackedRows(reader, 8)


def share(packed, count=3_000):
    return (packed.rows(np.arange(count))["segment_ids"] > 0).mean()


@pytest.mark.slow
def test_rows_are_full_where_half_of_the_places_were_padding(tmp_path):
    """Documents as short as Wikipedia's, in rows of 512."""
    store = write_store(
        tmp_path / "s", make_tokenizer(), make_documents(12_000, seed=5, mean_sentences=10)
    )
    reader = make_reader(store, max_length=512, max_predictions=88)
    unpacked = reader.rows(np.arange(3_000))["attention_mask"].mean()
    assert 0.4 < unpacked < 0.6
    packed = PackedRows(reader, 12)
    assert share(packed) >= 0.98
    assert packed.left_out(0) <= 0.001 * reader.num_rows


@pytest.mark.slow
def test_rows_of_real_text_are_full(shared_data, tmp_path):
    files = (shared_data / "corpus" / f"{name}.jsonl.gz" for name in ("wiki_train", "speeches"))
    vocabulary = shared_data / "vocab" / "bert-base-uncased-vocab.txt"
    store = prepare(
        PrepareOptions(
            input=",".join(map(str, files)),
            output=str(tmp_path / "s"),
            tokenizer=f"wordpiece:{vocabulary}",
        )
    )
    spec = RowSpec(max_length=512, max_predictions=84)
    reader = RowReader(store.train, store.tokenizer(), spec, seed=0, stream_id=0)
    assert share(PackedRows(reader, 4)) >= 0.98
