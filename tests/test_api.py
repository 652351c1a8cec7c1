"""bertjax from Python: the documented script, and what only shows there."""

import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from micro_runs import STEPS, micro

import bertjax
from bertjax.__main__ import COMMANDS
from bertjax.config import ModelConfig
from bertjax.data.texts import TextError
from bertjax.encoder import Encoder
from bertjax.models import init_params

PAGE = Path(bertjax.__file__).parents[1] / "docs" / "python.md"


def python(folder, *arguments):
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        timeout=600,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": ":".join(sys.path)},
    )


@pytest.mark.slow
def test_the_script_of_the_page_prepares_trains_fine_tunes_and_predicts(tmp_path):
    [script] = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.S)
    assert len(script.splitlines()) < 25
    (tmp_path / "script.py").write_text(script)
    first = python(tmp_path, "script.py")
    assert first.returncode == 0, first.stderr
    steps, scores = first.stdout.splitlines()
    assert steps.startswith("50 ")
    assert scores.startswith("Encoder(2 layers, 128 wide, 4,096 pieces, head 'classification' of 2")
    assert "'accuracy': 1.0" in scores
    assert "finished 50 steps" in first.stderr
    assert "oneDNN" not in first.stderr
    again = python(tmp_path, "script.py")
    assert (again.returncode, again.stdout) == (0, first.stdout)


def test_all_commands_are_imported_together_whatever_the_command_line_says():
    names = ["train", "finetune", "sweep", "predict", "convert", "newest_checkpoint"]
    names += [f"{room}.__main__" for room in ("prepare", "inspect", "plan")]
    code = "; ".join(f"import bertjax.{name}" for name in names)
    result = python(None, "-c", code, "--config=nothing", "--flag", "--help")
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_public_names_are_listed_and_no_module_shadows_them():
    assert set(bertjax.__all__) <= set(dir(bertjax))
    modules = {path.stem for path in Path(bertjax.__file__).parent.iterdir()}
    assert not modules & set(bertjax.__all__) - {"__version__"}
    for name in bertjax.__all__:
        assert getattr(bertjax, name) is not None
        assert f"`{name}" in PAGE.read_text() or name.startswith("_") or name[0].isupper(), name
    with pytest.raises(AttributeError, match="no attribute 'train_it'"):
        _ = bertjax.train_it


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_is_started_by_its_name(name):
    arguments = [] if name == "newest_checkpoint" else ["--help"]
    result = python(None, "-m", "bertjax", name, *arguments)
    if arguments:
        assert (result.returncode, result.stderr) == (0, "")
        assert "\nFlags:\n" in result.stdout
    else:
        assert (result.returncode, result.stdout) == (2, "")
        assert result.stderr.startswith("error: expected one workdir")


def test_the_first_argument_names_a_command():
    assert "finetune  " in python(None, "-m", "bertjax").stdout
    result = python(None, "-m", "bertjax", "trian")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == "error: no command 'trian'; did you mean 'train'?\n"


def test_a_script_without_a_main_guard_may_start_workers(tmp_path):
    """Spawned workers would import it, and each of them build the store again."""
    (tmp_path / "a.txt").write_text("A value of a module. An object and its name.\n\n" * 50)
    (tmp_path / "script.py").write_text(
        "import bertjax\n"
        "print('once')\n"
        "store = bertjax.build_store(['a.txt'], 'store', 'train:wordpiece', vocab_size=120,\n"
        "                            heldout_share=0, num_workers=2)\n"
        "print(store.train.num_documents)\n"
    )
    result = python(tmp_path, "script.py")
    assert (result.returncode, result.stdout) == (0, "once\n50\n"), result.stderr


def test_an_option_that_no_store_has_is_an_error(tmp_path):
    with pytest.raises(bertjax.BertjaxError, match=r"vocab: no such option .* 'vocab_size'\?"):
        bertjax.build_store("*.txt", tmp_path / "s", "train:wordpiece", vocab=60)


@pytest.mark.slow
def test_a_run_in_a_thread_is_a_run(store, tmp_path, whole_run):
    """Where no signal can be heard. The result says what summary.json says."""
    results = []
    thread = threading.Thread(
        target=lambda: results.append(bertjax.pretrain(micro(store), tmp_path))
    )
    thread.start()
    thread.join()
    [result] = results
    assert (result.exit_code, result.preempted, result.steps) == (0, False, STEPS)
    assert result.workdir == tmp_path
    assert int(result.state.step) == STEPS
    last = (whole_run / "evals.jsonl").read_text().splitlines()[-1]
    for name, value in result.metrics.items():
        assert name.startswith("heldout_")
        assert f'"{name}": {value}' in last


def test_recipes_are_given_by_name_and_changed_by_field(store, tmp_path):
    overrides = {"num_steps": 1, "data.store": Path(store), "model.vocab_size": 1_000}
    config = bertjax.load_recipe("tiny", overrides)
    assert (config.num_steps, config.data.store) == (1, str(store))
    assert bertjax.load_recipe("tiny").num_steps != 1
    with pytest.raises(bertjax.ConfigError, match=r"config.data.stor: .* 'store'\?"):
        bertjax.pretrain("tiny", tmp_path, {"data.stor": store})
    with pytest.raises(bertjax.ConfigError, match=r"config.data is a group of fields"):
        bertjax.load_recipe("tiny", {"data": store})
    with pytest.raises(bertjax.ConfigError, match=r"phases\[1\].num_steps: config.phases has 1"):
        bertjax.load_recipe("tiny", {"phases[1].num_steps": 3})
    with pytest.raises(AttributeError, match="stor"):  # a field that nobody reads
        config.data.stor = "x"


def drawn(wordpiece, head, **changes):
    fields = {"vocab_size": 1_000, "hidden_size": 16, "num_layers": 1, "num_heads": 2}
    sizes = {"intermediate_size": 32, "max_positions": 64, "dtype": "float32"}
    config = ModelConfig(**fields, **sizes, head=head, **changes)
    labels = tuple("abc"[: config.num_labels]) if head == "classification" else ()
    return Encoder(config, init_params(config, 3), wordpiece, labels)


@pytest.mark.slow
def test_one_text_has_one_answer_and_a_list_has_a_list(wordpiece):
    bert = drawn(wordpiece, "classification", num_labels=3)
    assert bert.can == ("classify", "embed")
    one, several = bert.classify("a value"), bert.classify(["a value", "a name"])
    assert one.keys() == {"label", "probabilities"}
    assert [text["label"] for text in several] == [one["label"], bert.classify("a name")["label"]]
    assert one == bert.predict("a value")
    assert bert.classify([]) == []
    assert bert.classify(("a value", "a name")).keys() == one.keys()
    reader = drawn(wordpiece, "span")
    pair = ("which value", "a true value")
    assert reader.answer([pair]) == [reader.answer(pair)] == [reader.predict(pair)]
    tagger = drawn(wordpiece, "tagging", num_labels=3)
    assert tagger.tag(["a value"]) == [tagger.tag("a value")]
    filler = drawn(wordpiece, "pretraining")
    assert filler.fill_mask(["a [MASK]"]) == [filler.fill_mask("a [MASK]")]
    plain = drawn(wordpiece, "encoder")
    np.testing.assert_array_equal(plain.predict("a"), plain.embed("a"))


def test_what_a_model_cannot_be_asked_is_an_error_that_names_the_text(wordpiece):
    bert = drawn(wordpiece, "classification", num_labels=3)
    with pytest.raises(bertjax.BertjaxError, match=r"cannot tag \(their head is 'classification'"):
        bert.tag("a value")
    with pytest.raises(TextError, match="text 1: this model takes one text, found two"):
        bert.classify(["a value", ("a value", "a name")])
    with pytest.raises(TextError, match="text 0: this model takes two texts, found one"):
        drawn(wordpiece, "span").answer(["a value"])
    with pytest.raises(bertjax.ConfigError, match="--max_length=65 is beyond the 64 positions"):
        bert.classify("a value", max_length=65)
    filler = drawn(wordpiece, "pretraining")
    with pytest.raises(TextError, match=r"text 1: has no \[MASK\]"):
        filler.fill_mask(["a [MASK]", "a value"])
    with pytest.raises(TextError, match="text 0: fill-mask takes one text, found int"):
        filler.fill_mask([3])
    with pytest.raises(bertjax.ConfigError, match="top_k=0: expected 1 or more"):
        filler.fill_mask("a [MASK]", top_k=0)


def test_a_model_says_what_it_is(wordpiece):
    shown = repr(drawn(wordpiece, "classification", num_labels=3))
    assert shown == (
        "Encoder(1 layers, 16 wide, 1,000 pieces, head 'classification' of 3 labels, float32)"
    )


@pytest.mark.slow
def test_a_pretrained_model_is_evaluated_as_its_run_was(store, whole_run):
    overrides = {"eval.max_rows": micro(store).eval.max_rows}
    found = bertjax.evaluate(whole_run, store, overrides=overrides).scores
    last = (whole_run / "evals.jsonl").read_text().splitlines()[-1]
    kept = dict(re.findall(r'"(heldout_\w+)": ([-\d.e]+)', last))
    assert found.keys() == kept.keys()
    for name, value in found.items():
        np.testing.assert_allclose(value, float(kept[name]), rtol=1e-5, err_msg=name)
    with pytest.raises(bertjax.BertjaxError, match=r"no such folder|manifest"):
        bertjax.evaluate(whole_run, whole_run / "no_store")
