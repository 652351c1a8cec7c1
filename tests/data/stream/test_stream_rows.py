"""The row index: rows partition the sentences, and the file is found, refused and rebuilt."""

import dataclasses
import os

import numpy as np
import pytest
from stream_store import make_reader, shared_store

from bertjax.data.store.store import open_store
from bertjax.data.store.store_writer import write_store
from bertjax.data.stream import rows
from bertjax.data.stream.rows import RowSpec, build_row_index, row_index
from bertjax.testing import make_documents, make_tokenizer


def plain_row_starts(documents, room):
    """A walk sentence by sentence."""
    starts, sentence = [], 0
    for document in documents:
        tokens = room  # a document begins a row
        for ids in document:
            if tokens >= room:
                starts.append(sentence)
                tokens = 0
            tokens += len(ids)
            sentence += 1
    return [*starts, sentence]


@pytest.mark.slow
@pytest.mark.parametrize("room", [5, 29, 125, 509, 100_000])
@pytest.mark.parametrize("block", [1, 7, 1000, 2**20])
def test_index_equals_a_plain_walk(monkeypatch, room, block):
    documents = list(make_documents(2000, seed=1))
    if block == 1:
        documents = documents[:40]
    monkeypatch.setattr(rows, "_BLOCK", block)
    split = shared_store().train
    if block > 1:
        assert build_row_index(split, room).tolist() == plain_row_starts(documents, room)
    else:
        small = _cut(split, documents)
        assert build_row_index(small, room).tolist() == plain_row_starts(documents, room)


def _cut(split, documents):
    """The split's first documents."""
    num_documents = len(documents)
    document_offsets = split.document_offsets[: num_documents + 1]
    num_sentences = int(document_offsets[-1])
    return dataclasses.replace(
        split,
        num_documents=num_documents,
        num_sentences=num_sentences,
        document_offsets=document_offsets,
        sentence_offsets=split.sentence_offsets[: num_sentences + 1],
    )


@pytest.fixture
def store(tmp_path):
    return write_store(tmp_path / "s", make_tokenizer(), make_documents(30, seed=5))


def test_index_is_kept_and_read_again(store, monkeypatch):
    first = row_index(store.train, 61)
    files = list((store.path / "rows").iterdir())
    assert len(files) == 1
    assert files[0].name.startswith("train-61-")
    monkeypatch.setattr(rows, "row_blocks", None)  # not built again
    assert np.array_equal(row_index(store.train, 61), first)


@pytest.mark.parametrize("damage", ["empty", "cut", "other"])
def test_damaged_index_is_rebuilt(store, damage):
    first = row_index(store.train, 61).copy()
    file = next((store.path / "rows").iterdir())
    content = {"empty": b"", "cut": file.read_bytes()[:-8]}
    if damage == "other":
        np.save(file, first[:-1])
    else:
        file.write_bytes(content[damage])
    assert np.array_equal(row_index(store.train, 61), first)
    assert np.array_equal(np.load(file), first)


def test_changed_store_gets_its_own_index(store, tmp_path):
    row_index(store.train, 61)
    row_index(store.train, 100)
    old = {file.name for file in (store.path / "rows").iterdir()}
    other = write_store(tmp_path / "t", make_tokenizer(), make_documents(31, seed=6))
    os.rename(store.path / "rows", other.path / "rows")
    starts = row_index(other.train, 61)
    assert starts[-1] == other.train.num_sentences
    new = {file.name for file in (other.path / "rows").iterdir()}
    assert len(new - old) == 1
    assert len(old - new) == 1, "the stale index of this room is removed, that of another stays"


def test_read_only_store_uses_the_cache_then_memory(store, tmp_path, monkeypatch):
    expected = build_row_index(store.train, 61)
    # A file where the folder should be stands for a read-only store: tests may run as root.
    (store.path / "rows").write_text("")
    cache = tmp_path / "cache"
    cache.mkdir()
    np.save(cache / "train-61-0123456789abcdef.npy", expected)  # of another store
    assert np.array_equal(row_index(store.train, 61, cache), expected)
    assert len(list(cache.iterdir())) == 2
    assert np.array_equal(row_index(store.train, 61), expected)
    assert np.array_equal(row_index(store.train, 61, store.path / "rows"), expected)
    monkeypatch.setattr(rows, "row_blocks", None)
    assert np.array_equal(row_index(store.train, 61, cache), expected)


def test_room_follows_the_special_tokens():
    assert RowSpec(max_length=128, max_predictions=20).room == 125
    assert RowSpec(max_length=128, max_predictions=20, next_sentence=False).room == 126


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"max_length": 7}, "max_length is 7"),
        ({"max_predictions": -1}, "max_predictions is -1"),
        ({"max_predictions": 129}, "max_predictions is 129, expected 0 to 128"),
        ({"mask_rate": 1.5}, "mask_rate is 1.5"),
        ({"short_row_rate": -0.1}, "short_row_rate is -0.1"),
        ({"masking": "words"}, 'masking is "words"'),
    ],
)
def test_impossible_rows_are_refused(change, names):
    with pytest.raises(ValueError, match=names):
        RowSpec(**change)


def test_empty_split_is_refused(store):
    assert open_store(store.path).heldout.num_documents == 0
    with pytest.raises(ValueError, match="heldout split has no documents"):
        make_reader(store, "heldout")
