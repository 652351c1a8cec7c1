"""The token store: what is written is read back, and damage is found and named."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest

from bertjax.data.store.store import StoreError, open_store, verify_store
from bertjax.data.store.store_writer import StoreWriter, write_store
from bertjax.data.tokenizers.tokenizer import WordPieceTokenizer

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def make_tokenizer(vocab_size):
    return WordPieceTokenizer(
        SPECIAL + [f"w{i}" for i in range(vocab_size - len(SPECIAL))], lower_case=True
    )


def make_documents(count, vocab_size, seed):
    rng = np.random.default_rng(seed)
    return [
        [
            rng.integers(0, vocab_size, rng.integers(1, 40)).tolist()
            for _ in range(rng.integers(1, 20))
        ]
        for _ in range(count)
    ]


def read_documents(split):
    tokens = [int(token) for shard in split.token_shards for token in shard]
    sentences = [
        tokens[int(a) : int(b)]
        for a, b in zip(split.sentence_offsets, split.sentence_offsets[1:], strict=False)
    ]
    return [
        sentences[int(a) : int(b)]
        for a, b in zip(split.document_offsets, split.document_offsets[1:], strict=False)
    ]


@pytest.mark.parametrize(("vocab_size", "dtype"), [(65_536, np.uint16), (65_537, np.uint32)])
def test_documents_come_back(tmp_path, vocab_size, dtype):
    train, heldout = make_documents(60, vocab_size, 0), make_documents(7, vocab_size, 1)
    train[0][0][0] = vocab_size - 1
    tokenizer = make_tokenizer(vocab_size)
    store = write_store(tmp_path / "s", tokenizer, iter(train), heldout, shard_tokens=4000)
    verify_store(tmp_path / "s")
    assert len(store.train.token_shards) > 2
    assert {shard.dtype for shard in store.train.token_shards} == {np.dtype(dtype)}
    assert read_documents(store.train) == train
    assert read_documents(store.heldout) == heldout
    flat = np.array([token for document in train for sentence in document for token in sentence])
    assert store.train.num_tokens == len(flat)
    assert store.train.unigrams.tolist() == np.bincount(flat, minlength=vocab_size).tolist()
    first_tokens = store.train.sentence_offsets[store.train.document_offsets.astype(np.int64)]
    assert set(store.train.shard_starts) <= set(first_tokens.astype(np.int64))
    assert store.tokenizer().hash == store.tokenizer_hash == tokenizer.hash
    assert not (tmp_path / "s" / "unfinished").exists()


def test_nothing_held_out(tmp_path):
    store = write_store(tmp_path / "s", make_tokenizer(10), [[[1, 2], [3]]])
    assert store.heldout.num_documents == store.heldout.num_tokens == 0
    assert store.heldout.token_shards == ()
    assert store.heldout.gather(np.array([0]), np.array([0]), 4).tolist() == [[0, 0, 0, 0]]


@pytest.mark.parametrize("shard_tokens", [10**9, 900])
def test_gather(tmp_path, shard_tokens):
    documents = make_documents(40, 500, 2)
    split = write_store(
        tmp_path / "s", make_tokenizer(500), documents, shard_tokens=shard_tokens
    ).train
    assert (len(split.token_shards) > 1) == (shard_tokens == 900)
    tokens = np.concatenate(split.token_shards)
    rng = np.random.default_rng(3)
    starts = rng.integers(0, len(tokens), 5000)
    shard_ends = split.shard_starts[np.searchsorted(split.shard_starts, starts, "right")]
    lengths = rng.integers(0, np.minimum(shard_ends - starts, 64) + 1)
    starts[0], lengths[0] = len(tokens), 0
    starts[1], lengths[1] = len(tokens) - 5, 5
    rows = split.gather(starts, lengths, 64)
    assert rows.dtype == np.int32
    for row, start, length in zip(rows, starts, lengths, strict=True):
        assert row.tolist() == [*tokens[start : start + length], *[0] * (64 - length)]


def test_a_store_may_have_more_shards_than_a_process_may_open_files(tmp_path):
    code = """
import resource, sys
from bertjax.data.store.store import StoreError, open_store
resource.setrlimit(resource.RLIMIT_NOFILE, (30, int(sys.argv[2])))
try:
    print(len(open_store(sys.argv[1]).train.token_shards))
except StoreError as error:
    print(error)
"""
    path, documents = tmp_path / "s", make_documents(40, 500, 2)
    shards = len(
        write_store(path, make_tokenizer(500), documents, shard_tokens=8).train.token_shards
    )
    assert shards > 30
    for hard, expected in ((4_096, str(shards)), (30, "ulimit -Hn")):
        command = [sys.executable, "-c", code, str(path), str(hard)]
        result = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert expected in result.stdout, result.stderr


def test_gather_refuses_ranges_that_do_not_exist(tmp_path):
    documents = make_documents(40, 500, 4)
    one = write_store(tmp_path / "one", make_tokenizer(500), documents).train
    many = write_store(tmp_path / "many", make_tokenizer(500), documents, shard_tokens=900).train
    end = one.num_tokens
    for split in (one, many):
        with pytest.raises(IndexError, match="of a shard"):
            split.gather(np.array([0, end - 2]), np.array([3, 3]), 8)
        with pytest.raises(IndexError):
            split.gather(np.array([end + 10]), np.array([1]), 8)
        with pytest.raises(IndexError):
            split.gather(np.array([-2]), np.array([1]), 8)
        with pytest.raises(ValueError, match="expected 0 to 8"):
            split.gather(np.array([0]), np.array([9]), 8)
        with pytest.raises(ValueError, match="1-D"):
            split.gather(np.array([0]), np.array([9, 9]), 8)
    with pytest.raises(IndexError, match="of a shard"):
        many.gather(many.shard_starts[1:2] - 1, np.array([2]), 8)


@pytest.fixture(scope="module")
def whole_store(tmp_path_factory):
    path = tmp_path_factory.mktemp("store") / "s"
    write_store(
        path,
        make_tokenizer(300),
        make_documents(30, 300, 5),
        make_documents(3, 300, 6),
        shard_tokens=3000,
    )
    return path


def store_files(path):
    return sorted(json.loads((path / "manifest.json").read_text())["files"])


def test_every_file_is_in_the_manifest(whole_store):
    files = {str(f.relative_to(whole_store)) for f in whole_store.rglob("*") if f.is_file()}
    assert files == {*store_files(whole_store), "manifest.json"}
    assert {"train/tokens-00001.npy", "heldout/unigrams.npy", "tokenizer/vocab.txt"} <= files


def test_damage_is_found_and_named(whole_store, tmp_path):
    for name in store_files(whole_store):
        copy = tmp_path / "copy"
        shutil.copytree(whole_store, copy)
        content = (copy / name).read_bytes()
        flipped = bytearray(content)
        flipped[len(flipped) // 2] ^= 4
        (copy / name).write_bytes(flipped)
        with pytest.raises(StoreError, match=f"{name}: its SHA-256"):
            verify_store(copy)
        (copy / name).write_bytes(content[:-1])
        with pytest.raises(StoreError, match=f"{name}: has {len(content) - 1} bytes"):
            open_store(copy)
        (copy / name).unlink()
        with pytest.raises(StoreError, match=f"{name}: is missing"):
            open_store(copy)
        shutil.rmtree(copy)


def test_wrong_shape_is_found_on_opening(whole_store, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(whole_store, copy)
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["splits"]["train"]["num_sentences"] += 1
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(StoreError, match=r"train/sentences.npy: is uint64"):
        open_store(copy)


def test_what_is_no_store_is_refused(whole_store, tmp_path):
    with pytest.raises(StoreError, match="no such folder"):
        open_store(tmp_path / "nothing")
    writer = StoreWriter(tmp_path / "unfinished", 300)
    writer.append("train", np.array([1, 2]), np.array([2]), np.array([1]))
    writer.commit({})
    with pytest.raises(StoreError, match="has not finished"):
        open_store(tmp_path / "unfinished")
    copy = tmp_path / "copy"
    shutil.copytree(whole_store, copy)
    for content, message in (
        (b'{"format": "bertjax-sto', "cannot be read as JSON"),
        (b"[]", "expected the manifest of a store"),
        (b'{"format": "bertjax-store", "format_version": 99}', "format_version is 99"),
    ):
        (copy / "manifest.json").write_bytes(content)
        with pytest.raises(StoreError, match=message):
            open_store(copy)


def test_another_tokenizer_is_refused(whole_store, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(whole_store, copy)
    make_tokenizer(301).save(copy / "tokenizer")
    manifest = json.loads((copy / "manifest.json").read_text())
    for name in ("tokenizer/vocab.txt", "tokenizer/bertjax_tokenizer.json"):
        manifest["files"][name]["bytes"] = (copy / name).stat().st_size
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(StoreError, match="made the tokens"):
        open_store(copy).tokenizer()


def test_writer_refuses_what_does_not_add_up(tmp_path):
    writer = StoreWriter(tmp_path / "s", 10)
    for tokens, sentences, documents, message in (
        ([1, 2], [1], [1], "sentences"),
        ([1, 2], [2, 0], [2], "sentences"),
        ([1, 2], [2], [2], "documents"),
        ([1, 10], [2], [1], "ids run from 1 to 10"),
        ([-1, 2], [2], [1], "ids run from -1 to 2"),
    ):
        with pytest.raises(ValueError, match=message):
            writer.append("train", np.array(tokens), np.array(sentences), np.array(documents))


def test_writer_goes_on_after_the_last_commit(tmp_path):
    documents = make_documents(20, 300, 7)
    tokenizer = make_tokenizer(300)
    whole = write_store(tmp_path / "whole", tokenizer, documents, shard_tokens=1500)

    def append(writer, some):
        for document in some:
            ids = np.array([token for sentence in document for token in sentence])
            lengths = np.array([len(sentence) for sentence in document])
            writer.append("train", ids, lengths, np.array([len(document)]))
            if writer.part_tokens >= 1500:
                writer.commit({"next": documents.index(document) + 1})

    killed = StoreWriter(tmp_path / "killed", 300)
    append(killed, documents[:15])  # and never closed
    shutil.copytree(tmp_path / "killed", tmp_path / "copy")
    killed.close()
    shutil.rmtree(tmp_path / "killed")
    (tmp_path / "copy").rename(tmp_path / "killed")
    assert list((tmp_path / "killed" / "train").glob("*.tmp"))
    writer = StoreWriter(tmp_path / "killed", 300)
    assert 0 < writer.state["next"] <= 15
    assert not list((tmp_path / "killed").rglob("*.tmp"))
    append(writer, documents[writer.state["next"] :])
    writer.commit({})
    tokenizer.save(tmp_path / "killed" / "tokenizer")
    writer.finish(tokenizer, {})
    for name in [*store_files(whole.path), "manifest.json"]:
        assert (tmp_path / "killed" / name).read_bytes() == (whole.path / name).read_bytes(), name
    with pytest.raises(StoreError, match="finished store is there already"):
        StoreWriter(tmp_path / "killed", 300)
