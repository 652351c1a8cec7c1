"""The files of examples/ run as a user runs them, and what they leave is what they say."""

import importlib
import json
import random
import runpy
import sys
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pytest
from folders import REPOSITORY
from registries import forget, restored

import bertjax
from bertjax.data.tokenizers.tokenizer import TOKENIZERS
from bertjax.encoders import ENCODERS
from bertjax.heads import HEADS
from bertjax.tasks.registry import TASKS

pytestmark = pytest.mark.slow
EXAMPLES = REPOSITORY / "examples"
FILES = sorted(EXAMPLES.glob("*.py"))
WORDS = ("a", "list", "of", "values", "is", "the", "name", "or", "type", "that", "an", "object")


@pytest.fixture(autouse=True)
def _restored(monkeypatch):
    """What an example registers is gone after the test; no worker processes are started."""
    monkeypatch.setattr("bertjax.prepare.build_store.num_cores", lambda: 1)
    with restored():
        yield


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.txt"
    rng = random.Random(0)
    sentences = [" ".join(rng.choices(WORDS, k=9)).capitalize() + "." for _ in range(2_000)]
    path.write_text("\n\n".join(" ".join(sentences[i : i + 5]) for i in range(0, 2_000, 5)))
    return path


def run(name, text, folder, monkeypatch, capsys):
    """Runs an example in this process; returns what it printed, by line."""
    monkeypatch.setattr(sys, "argv", [f"{name}.py", str(text), str(folder)])
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    return capsys.readouterr().out.splitlines()


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_an_example_is_short_and_has_its_page(path):
    lines = path.read_text().splitlines()
    assert len(lines) < 80
    assert f"    python examples/{path.name} embedded:python runs/{path.stem}" in lines
    page = path.with_suffix(".md").read_text()
    assert f"python examples/{path.name} embedded:python runs/{path.stem}" in page
    assert f"examples/{path.stem}.md" in (REPOSITORY / "docs" / "python.md").read_text()


def test_own_objective_learns_more_than_the_share_of_the_replaced_tokens(
    text, tmp_path, monkeypatch, capsys
):
    [printed] = run("own_objective", text, tmp_path, monkeypatch, capsys)
    assert "head 'detection'" in printed
    steps = read(tmp_path / "run" / "metrics.jsonl")
    assert steps[-1]["detection_loss"] < steps[0]["detection_loss"]
    [scores] = read(tmp_path / "run" / "evals.jsonl")
    assert scores["heldout_detection_loss"] < 0.8 * scores["heldout_share_entropy"]
    assert 0.3 < scores["heldout_share_entropy"] < 0.5  # some 15 % of the tokens
    forget(HEADS)
    with pytest.raises(
        bertjax.ConfigError,
        match=r"step_00000080: config.model.head = 'detection' is not known; .*tagging.* If the "
        r"head is your own, first import the module that calls bertjax.register_head for it",
    ):
        bertjax.load(tmp_path / "run")


def test_own_encoder_trains_and_is_loaded(text, tmp_path, monkeypatch, capsys):
    first, pieces = run("own_encoder", text, tmp_path, monkeypatch, capsys)
    assert "(128, 344) (2, 2, " in first
    assert pieces.count("'") == 10
    steps = read(tmp_path / "run" / "metrics.jsonl")
    assert steps[-1]["mlm_loss"] < steps[0]["mlm_loss"] - 0.5
    bert = bertjax.load(tmp_path / "run")
    gate = bert.params["encoder"]["layer_1"]["mlp"]["gate"]
    assert (gate["kernel"].shape, gate["bias"].shape) == ((128, 344), (344,))
    assert np.abs(gate["bias"]).max() > 0  # it was trained
    attentions = bert.inspect("A list.").attentions
    np.testing.assert_allclose(attentions.sum(-1), 1, rtol=1e-5)
    base = {"model.vocab_size": 2_000, "data.store": str(tmp_path / "store")}
    base |= {"init_from": str(tmp_path / "run"), "phases[0].num_steps": 1}
    base |= {"optimizer.warmup_steps": 0, "model.intermediate_size": 344}
    with pytest.raises(bertjax.ConfigError, match=r"another model \(model.encoder: 'geglu'"):
        bertjax.pretrain("tiny", tmp_path / "bert", base)
    with pytest.raises(bertjax.BertjaxError, match=r"model.encoder is 'geglu'; .* 'bert' only"):
        bertjax.convert_checkpoint(tmp_path / "run", tmp_path / "hf")
    forget(ENCODERS)
    with pytest.raises(
        bertjax.ConfigError, match=r"model.encoder = 'geglu' .*bertjax.register_encoder for it"
    ):
        bertjax.load(tmp_path / "run")


def test_own_head_counts_and_its_saved_run_says_what_to_import(text, tmp_path, monkeypatch, capsys):
    [printed] = run("own_head", text, tmp_path, monkeypatch, capsys)
    scores = json.loads((tmp_path / "count" / "scores.json").read_text())
    assert scores["scores"]["minus_error"] > -0.3
    assert f"'minus_error': {scores['scores']['minus_error']}" in printed
    records = read(tmp_path / "count" / "predictions.jsonl")
    assert [round(record["value"]) for record in records[:5]] == [0, 1, 2, 3, 4]
    bert = bertjax.load(tmp_path / "count")
    assert bert.can == ("count", "embed")
    assert round(bert.predict("an error and an error and a list")["value"]) == 2
    forget(TASKS)
    with pytest.raises(bertjax.BertjaxError, match=r"no task 'count'; .*bertjax.register_task"):
        bert.predict("an error")
    forget(HEADS)
    with pytest.raises(bertjax.ConfigError, match=r"'count' is not known; .*bertjax.register_head"):
        bertjax.load(tmp_path / "count")
    with pytest.raises(bertjax.BertjaxError, match=r"no task 'count'; .*bertjax.register_task"):
        bertjax.fine_tune("count", tmp_path / "bert", tmp_path / "x", text, text)


def test_own_optimizer_resumes_with_its_state(text, tmp_path, monkeypatch, capsys, caplog):
    caplog.set_level("INFO", "bertjax")
    first, last = run("own_optimizer", text, tmp_path, monkeypatch, capsys)
    assert (first.split()[0], last.split()[0]) == ("30", "60")
    assert float(last.split()[1]) < float(first.split()[1])
    assert "resuming from step 30" in caplog.text
    steps = read(tmp_path / "run" / "metrics.jsonl")
    assert [line["step"] for line in steps] == [10, 20, 30, 40, 50, 60]
    assert steps[-1]["mlm_loss"] < steps[0]["mlm_loss"]
    monkeypatch.syspath_prepend(EXAMPLES)
    own = importlib.import_module("own_optimizer").own_optimizer()
    for line in steps:  # the log has the own schedule
        rate = float(own.schedule(line["step"] - 1))
        np.testing.assert_allclose(line["learning_rate"], rate, rtol=1e-5)
    base = {"data.store": str(tmp_path / "store"), "model.vocab_size": 2_000}
    base |= {"optimizer.warmup_steps": 10, "phases[0].num_steps": 60, "log.every_steps": 10}
    bertjax.pretrain("tiny", tmp_path / "whole", base, own)
    runs = [json.loads((tmp_path / name / "summary.json").read_text()) for name in ("run", "whole")]
    assert runs[0]["params_sha256"] == runs[1]["params_sha256"]
    with pytest.raises(bertjax.BertjaxError, match="opt_state"):
        bertjax.pretrain("tiny", tmp_path / "run", base)


def test_own_tokenizer_makes_a_store_and_trains(text, tmp_path, monkeypatch, capsys):
    first, second = run("own_tokenizer", text, tmp_path, monkeypatch, capsys)
    assert "261 pieces" in first
    steps = read(tmp_path / "run" / "metrics.jsonl")
    assert steps[-1]["mlm_loss"] < steps[0]["mlm_loss"]
    ids = [5 + byte for byte in " naïve bytes".encode()]
    assert second == f"{ids} naïve bytes (1, 128)"
    forget(TOKENIZERS)
    with pytest.raises(
        bertjax.BertjaxError,
        match=r"kind 'bytes' is not known; .*sentencepiece, wordpiece.*bertjax.register_tokenizer "
        r"for it \(the module own_tokenizer\)",
    ):
        bertjax.load(tmp_path / "run")


def test_worker_processes_know_a_tokenizer_of_a_module(text, tmp_path, monkeypatch):
    """Also if the script registers it, which they do not run, and not the module."""
    monkeypatch.setattr("bertjax.prepare.build_store.num_cores", lambda: 2)
    monkeypatch.syspath_prepend(EXAMPLES)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "plain_bytes.py").write_text(
        "import own_tokenizer\nclass PlainBytes(own_tokenizer.ByteTokenizer):\n    kind = 'plain'\n"
    )
    module = importlib.import_module("plain_bytes")
    bertjax.register_tokenizer(module.PlainBytes)
    module.PlainBytes().save(tmp_path / "tokenizer")
    started = []

    class Pool(ProcessPoolExecutor):
        def __init__(self, num_workers, *args):
            started.append(num_workers)
            super().__init__(num_workers, *args)

    monkeypatch.setattr("bertjax.prepare.encode_blocks.ProcessPoolExecutor", Pool)
    store = bertjax.build_store(text, tmp_path / "store", tmp_path / "tokenizer")
    assert started == [2]
    tokens = np.concatenate([np.asarray(shard) for shard in store.train.token_shards])
    decoded = module.PlainBytes().decode(tokens.tolist())
    assert decoded[:40] in text.read_text()
