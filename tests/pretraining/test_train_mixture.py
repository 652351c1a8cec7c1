"""A run on several stores: resumed exactly, and refused with what is wrong before any work."""

import logging
import shutil

import numpy as np
import pytest
from micro_runs import computed, micro, read, summary

from bertjax.config import ConfigError
from bertjax.data.store.store import StoreError, open_store
from bertjax.data.store.store_writer import write_store
from bertjax.data.stream.reader import RowReader
from bertjax.data.tokenizers.tokenizer import WordPieceTokenizer
from bertjax.pretraining.run import pretrain
from bertjax.pretraining.stores import open_data, row_spec
from bertjax.testing import VOCAB_SIZE, make_documents, make_tokenizer
from bertjax.training.workdir import open_workdir


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mixture") / "other"
    write_store(folder, make_tokenizer(), make_documents(25, seed=3), make_documents(9, seed=4))
    return folder


def mixed(store, other, weights=(7, 3), **changes):
    return micro("", data__stores=f"{store}:{weights[0]},{other}:{weights[1]}", **changes)


@pytest.mark.slow
def test_stopped_and_continued_is_the_same_run(store, other, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    assert pretrain(mixed(store, other), tmp_path / "whole").exit_code == 0
    assert "the weights sum to 10 and are divided by it" in caplog.text
    assert f"mixture: 30.00 % of the rows from {other}, once through its" in caplog.text
    assert pretrain(mixed(store, other, num_steps=14), tmp_path / "stopped").exit_code == 0
    # The same weights, said in another way.
    assert pretrain(mixed(store, other, weights=(0.7, 0.3)), tmp_path / "stopped").exit_code == 0
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert summary(stopped)["params_sha256"] == summary(whole)["params_sha256"]
    assert computed(stopped) == computed(whole)
    assert read(stopped, "evals.jsonl")[-1] == read(whole, "evals.jsonl")[-1]
    with pytest.raises(ConfigError, match=r"the text \(config.data.store or stores\): "):
        pretrain(mixed(store, other, weights=(0.6, 0.4)), tmp_path / "stopped")


def test_one_store_named_as_a_mixture_is_the_store(store, tmp_path):
    workdir = open_workdir(str(tmp_path))
    plain, listed = micro(store), micro("", data__stores=f"{store}:0.5")
    one, same = open_data(plain, workdir), open_data(listed, workdir)
    assert same.store_hash == one.store_hash
    positions = np.arange(100)
    rows = one.training_rows(plain, 0).rows(positions)
    again = same.training_rows(listed, 0).rows(positions)
    assert all(np.array_equal(rows[name], again[name]) for name in rows)


def test_stores_draw_differently(store, other, tmp_path):
    config = mixed(store, other)
    data = open_data(config, open_workdir(str(tmp_path)))
    streams = [
        reader.stream for phase in range(2) for reader in data.training_rows(config, phase)._sources
    ]
    assert len(set(streams)) == 4


def test_the_shuffle_window_is_of_training_rows(store, other, tmp_path):
    config = mixed(store, other, data__shuffle_window=256)
    data = open_data(config, open_workdir(str(tmp_path)))
    windows = [reader.order.window for reader in data.training_rows(config, 0)._sources]
    assert windows == [256, 256]
    phase = config.resolved_phases()[0]
    assert [r.order.window for r in data.evaluation_rows(config, phase.max_length)._sources] == [
        0,
        0,
    ]
    config.data.shuffle_window = -1
    assert [r.order.window for r in data.training_rows(config, 0)._sources] == [0, 0]


def test_evaluation_and_unigrams_are_of_all_stores(store, other, tmp_path):
    config = mixed(store, other)
    data = open_data(config, open_workdir(str(tmp_path)))
    phase = config.resolved_phases()[0]
    rows = data.evaluation_rows(config, phase.max_length)
    sizes = [
        open_data(micro(one), open_workdir(str(tmp_path)))
        .evaluation_rows(config, phase.max_length)
        .num_rows
        for one in (store, other)
    ]
    assert rows.num_rows == sum(sizes)
    assert np.array_equal(
        np.sort(rows.rows(np.arange(rows.num_rows))["row_ids"]), np.arange(rows.num_rows)
    )
    first, second = (open_store(path).train.unigrams for path in (store, other))
    shares = 0.7 * first / first.sum() + 0.3 * second / second.sum()
    unigrams = data.unigrams()
    assert np.allclose(unigrams / unigrams.sum(), shares)
    assert unigrams.sum() == pytest.approx(first.sum() + second.sum())
    merged = open_data(micro("", data__stores=f"{store},{other}"), open_workdir(str(tmp_path)))
    assert np.allclose(merged.unigrams(), first + second)
    # An evaluation store stands alone, as it does beside one store.
    config.data.eval_store = str(other)
    alone = open_data(config, open_workdir(str(tmp_path)))
    assert [split.folder for split in alone.evaluation] == [other / "train"]


def test_a_share_of_a_store_is_its_first_documents(store, tmp_path):
    workdir = open_workdir(str(tmp_path))
    config = micro("", data__stores=f"{store}@0.25")
    data, whole = open_data(config, workdir), open_data(micro(store), workdir)
    assert data.store_hash != whole.store_hash
    first = write_store(tmp_path / "first", make_tokenizer(), list(make_documents(60, seed=1))[:15])
    alone = open_data(micro("", data__stores=f"{store}:1"), workdir)
    assert alone.store_hash == whole.store_hash
    assert (data.train[0].num_documents, data.train[0].num_tokens) == (15, first.train.num_tokens)
    spec = row_spec(config, config.resolved_phases()[0])
    expected = RowReader(first.train, make_tokenizer(), spec, seed=config.seed, stream_id=0)
    rows = data.training_rows(config, 0)
    assert rows.num_rows == expected.num_rows
    positions = np.arange(3 * rows.num_rows)
    found, wanted = rows.rows(positions), expected.rows(positions)
    assert all(np.array_equal(found[name], wanted[name]) for name in found)
    assert data.evaluation == (data.stores[0].heldout,)
    assert data.unigrams().sum() == pytest.approx(first.train.num_tokens)


def test_what_cannot_be_mixed_is_refused(store, other, tmp_path):
    workdir = open_workdir(str(tmp_path / "run"))
    with pytest.raises(StoreError, match=r"nothing/manifest.json: no such folder"):
        open_data(mixed(store, tmp_path / "nothing"), workdir)
    copy = tmp_path / "copy"
    shutil.copytree(other, copy)
    with pytest.raises(ConfigError, match=f"{other} and {copy} are the same store"):
        open_data(mixed(other, copy), workdir)
    pieces = make_tokenizer().pieces
    cased = WordPieceTokenizer([*pieces[:-1], "Another"], lower_case=False)
    assert cased.vocab_size == VOCAB_SIZE
    strange = write_store(tmp_path / "strange", cased, make_documents(5, seed=5))
    with pytest.raises(ConfigError) as error:
        open_data(mixed(store, strange.path), workdir)
    for part in (store, strange.path, open_store(store).tokenizer_hash[:12], cased.hash[:12]):
        assert str(part) in str(error.value)
    empty = write_store(tmp_path / "empty", make_tokenizer(), [], make_documents(1, seed=6))
    with pytest.raises(ConfigError, match=r"empty/train has no documents"):
        open_data(mixed(store, empty.path), workdir)


def test_a_store_without_held_out_documents_may_be_among_them(store, tmp_path):
    bare = write_store(tmp_path / "bare", make_tokenizer(), make_documents(20, seed=7))
    workdir = open_workdir(str(tmp_path / "run"))
    data = open_data(mixed(store, bare.path), workdir)
    assert [split.folder for split in data.evaluation] == [store / "heldout"]
    with pytest.raises(ConfigError, match=r"bare/heldout has no documents"):
        open_data(micro("", data__stores=f"{bare.path}"), workdir)


def test_the_order_of_the_stores_is_part_of_the_run(store, other, tmp_path):
    workdir = open_workdir(str(tmp_path))
    hashes = {
        open_data(mixed(*stores, weights=weights), workdir).store_hash
        for stores, weights in (((store, other), (7, 3)), ((other, store), (3, 7)))
    }
    assert len(hashes) == 2
