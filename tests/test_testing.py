"""What the package ships for its users' tests."""

import string

import numpy as np
import pytest

import bertjax
from bertjax import testing
from bertjax.config import Config, DataConfig, OptimizerConfig
from bertjax.config.checks import validate
from bertjax.data.store.store import StoreError, open_store, verify_store
from bertjax.heads import HEADS


def test_the_tokenizer_knows_printable_ascii():
    tokenizer = testing.make_tokenizer()
    assert len(tokenizer.pieces) == len(set(tokenizer.pieces)) == testing.VOCAB_SIZE
    text = f"{string.ascii_letters}{string.digits} {string.punctuation}"
    pieces = [tokenizer.pieces[i] for i in tokenizer.encode(text)]
    assert "[UNK]" not in pieces
    assert "".join(piece.removeprefix("##") for piece in pieces) == text.replace(" ", "").lower()
    assert testing.make_tokenizer().hash == tokenizer.hash


def test_a_store_is_whole_and_the_same_each_time(tmp_path):
    store = testing.make_store(tmp_path / "store")
    verify_store(store.path)
    assert (store.train.num_documents, store.heldout.num_documents) == (60, 9)
    assert open_store(tmp_path / "store").manifest == store.manifest
    assert testing.make_store(tmp_path / "again").manifest == store.manifest
    other = testing.make_store(tmp_path / "other", seed=5).manifest["splits"]
    for split, numbers in store.manifest["splits"].items():
        assert other[split]["num_tokens"] != numbers["num_tokens"]
    assert len(testing.make_store(tmp_path / "parts", shard_tokens=2_000).train.token_shards) > 2
    with pytest.raises(StoreError):
        testing.make_store(tmp_path / "store")


def test_documents_are_of_the_lengths_asked_for_and_hold_no_special_token_but_unk():
    documents = list(testing.make_documents(300, seed=4, mean_sentences=3, mean_tokens=10))
    lengths = [len(sentence) for document in documents for sentence in document]
    assert np.mean([len(document) for document in documents]) == pytest.approx(3, rel=0.15)
    assert np.mean(lengths) == pytest.approx(10, rel=0.1)
    ids = {token for document in documents for sentence in document for token in sentence}
    assert ids & set(range(5)) == {1}
    assert max(ids) == testing.VOCAB_SIZE - 1


@pytest.mark.parametrize("head", HEADS)
def test_a_model_of_each_head_is_loaded(tmp_path, head):
    config = testing.make_workdir(tmp_path / "model", head)
    loaded = bertjax.load(tmp_path / "model")
    assert loaded.config.head == config.head == head
    optimizer = OptimizerConfig(warmup_steps=0)
    validate(Config(model=config, num_steps=1, data=DataConfig(max_length=64), optimizer=optimizer))
    texts = ["one text", "another"]
    embedded = loaded.embed(texts)
    assert embedded.shape == (2, 16)
    assert np.abs(embedded[0] - embedded[1]).max() > 0.01
    testing.make_workdir(tmp_path / "again", head)
    np.testing.assert_array_equal(bertjax.load(tmp_path / "again").embed(texts), embedded)
    testing.make_workdir(tmp_path / "other", head, seed=1)
    assert (bertjax.load(tmp_path / "other").embed(texts) != embedded).any()


def test_labels_have_names_where_the_head_gives_them_any(tmp_path, wordpiece):
    labels = ("bad", "good", "neither")
    config = testing.make_workdir(tmp_path / "model", "classification", labels, 0, wordpiece)
    loaded = bertjax.load(tmp_path / "model")
    assert (config.num_labels, loaded.labels) == (3, labels)
    assert loaded.tokenizer.hash == wordpiece.hash
    for head, given, advice in (
        ("classification", ("one",), "give at least 2"),
        ("span", labels, "leave them out"),
    ):
        with pytest.raises(ValueError, match=f"do not fit head = '{head}': .*{advice}"):
            testing.make_workdir(tmp_path / "none", head, given)
        assert not (tmp_path / "none").exists()
