"""A workdir is whole: its tokenizer is kept, so it loads, converts and starts other runs."""

import json

import numpy as np
import pytest
from folders import RECIPE

import bertjax
from bertjax.checkpoints.loadable_workdir import keep_tokenizer
from bertjax.cli import recipes
from bertjax.config import ConfigError
from bertjax.data.store.store_writer import write_store
from bertjax.data.tokenizers.tokenizer import WordPieceTokenizer, load_tokenizer
from bertjax.pretraining.run import pretrain
from bertjax.testing import make_documents, make_store, make_tokenizer
from bertjax.weights.conversion import convert_checkpoint


def other_tokenizer():
    return WordPieceTokenizer(make_tokenizer().pieces, lower_case=False)


def test_the_copy_is_checked_when_a_run_resumes(tmp_path):
    keep_tokenizer(tmp_path, make_tokenizer(), resumed=False)
    assert load_tokenizer(tmp_path / "tokenizer").hash == make_tokenizer().hash
    keep_tokenizer(tmp_path, make_tokenizer(), resumed=True)
    with pytest.raises(ConfigError, match=r"tokenizer is the tokenizer .* remove that folder"):
        keep_tokenizer(tmp_path, other_tokenizer(), resumed=True)
    with open(tmp_path / "tokenizer" / "vocab.txt", "a") as file:
        file.write("more\n")
    with pytest.raises(ConfigError, match=r"vocab\.txt: the tokenizer's hash is"):
        keep_tokenizer(tmp_path, make_tokenizer(), resumed=True)


def test_a_resumed_run_says_what_to_do_with_a_copy_that_lost_a_file(tmp_path):
    keep_tokenizer(tmp_path, make_tokenizer(), resumed=False)
    (tmp_path / "tokenizer" / "bertjax_tokenizer.json").unlink()
    with pytest.raises(ConfigError, match=r"Or remove .*tokenizer: it is a copy of the store's"):
        keep_tokenizer(tmp_path, make_tokenizer(), resumed=True)


def test_a_copy_without_checkpoints_is_replaced(tmp_path):
    keep_tokenizer(tmp_path, make_tokenizer(), resumed=False)
    keep_tokenizer(tmp_path, other_tokenizer(), resumed=False)
    assert load_tokenizer(tmp_path / "tokenizer").hash == other_tokenizer().hash
    assert [path.name for path in tmp_path.iterdir()] == ["tokenizer"]


def test_folders_of_others_are_left_alone(tmp_path):
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "mine.txt").touch()
    with pytest.raises(ConfigError, match="no tokenizer that bertjax has written"):
        keep_tokenizer(tmp_path, make_tokenizer(), resumed=False)
    assert [path.name for path in (tmp_path / "tokenizer").iterdir()] == ["mine.txt"]
    write_store(tmp_path / "store", make_tokenizer(), make_documents(9, seed=1), [])
    before = {path: path.read_bytes() for path in (tmp_path / "store").rglob("*") if path.is_file()}
    with pytest.raises(ConfigError, match=r"--workdir=.*/store is a token store"):
        keep_tokenizer(tmp_path / "store", make_tokenizer(), resumed=False)
    assert before == {path: path.read_bytes() for path in before}


def test_an_older_workdir_gets_its_copy_when_it_resumes(tmp_path):
    keep_tokenizer(tmp_path, make_tokenizer(), resumed=True)
    assert load_tokenizer(tmp_path / "tokenizer").hash == make_tokenizer().hash


@pytest.mark.slow
def test_a_run_loads_converts_and_starts_another(tmp_path):
    make_store(tmp_path / "store")
    config = recipes.load_recipe(RECIPE)
    config.data.store, config.num_steps = str(tmp_path / "store"), 2
    assert pretrain(config, tmp_path / "run").exit_code == 0

    bert = bertjax.load(tmp_path / "run")
    assert bert.tokenizer.hash == make_tokenizer().hash
    assert bert.encode("w5 w6").pooled.shape == (1, 16)
    predictions = bert.fill_mask("w5 [MASK] w6", top_k=1000)[0]
    assert np.sum([p.probability for p in predictions]) == pytest.approx(1, abs=1e-4)
    assert 0 < bert.next_sentence("w5", "w6") < 1

    convert_checkpoint(tmp_path / "run", tmp_path / "hf")
    config.init_from, config.num_steps = f"hf:{tmp_path / 'hf'}", 1
    assert pretrain(config, tmp_path / "next").exit_code == 0
    # The rate of the first step is 0, so it leaves the parameters as they were.
    hashes = [
        json.loads((tmp_path / name / "summary.json").read_text())["params_sha256"]
        for name in ("run", "next")
    ]
    assert hashes[0] == hashes[1]
