"""`python -m bertjax.predict`: what each kind of model says from the shell, and what it refuses."""

import dataclasses
import json
import subprocess
import sys

import jax
import numpy as np
import pytest
from commands import run_here

from bertjax.config import ModelConfig
from bertjax.encoder import Encoder, load
from bertjax.models import init_params, make_model
from bertjax.objectives.fine_tuning import run_model
from bertjax.testing import make_workdir
from bertjax.weights.bertjax_checkpoint import write_checkpoint
from bertjax.weights.weights import Weights

OUTPUTS = {
    "classification": {"logits"},
    "regression": {"values"},
    "span": {"start_logits", "end_logits"},
    "tagging": {"logits"},
}
MODEL = ModelConfig(
    vocab_size=1_000,
    hidden_size=16,
    num_layers=1,
    num_heads=2,
    intermediate_size=32,
    max_positions=64,
    initializer_range=0.2,
    dtype="float32",
)
LABELS = {
    **{"pretraining": 0, "causal": 0, "classification": 3},
    **{"regression": 1, "tagging": 3, "span": 0},
}
NAMES = ("O", "B-THING", "I-THING")


def with_head(head):
    return dataclasses.replace(MODEL, head=head, num_labels=LABELS[head])


def parameters(head):
    return jax.tree.map(np.asarray, init_params(with_head(head), 3))


@pytest.fixture(scope="module")
def models(wordpiece, tmp_path_factory):
    """A workdir for each kind of head."""
    folder = tmp_path_factory.mktemp("predict")
    for head, count in LABELS.items():
        labels = NAMES if count == 3 else ()
        make_workdir(folder / head, head, labels, tokenizer=wordpiece)
    return folder


def predict(model, *arguments, stdin=None):
    return run_here("predict", f"--model={model}", *arguments, stdin=stdin)


def records(result):
    assert result.returncode == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


@pytest.mark.parametrize("head", ["classification", "regression", "tagging", "span"])
def test_outputs_are_those_of_the_model_however_rows_are_batched(wordpiece, head):
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 40, 70)
    mask = (np.arange(40) < lengths[:, None]).astype(np.int32)
    arrays = {
        "input_ids": rng.integers(5, 1_000, (70, 40)).astype(np.int32) * mask,
        "token_type_ids": mask * (np.arange(40) > 3),
        "attention_mask": mask,
    }
    config, params = with_head(head), parameters(head)
    found = Encoder(config, params, wordpiece).outputs(arrays)
    expected = run_model(make_model(config), config, params, arrays)
    assert set(found) == OUTPUTS[head]
    for name, values in found.items():
        each_token = head in ("tagging", "span")
        where = mask.astype(bool) if each_token else slice(None)
        np.testing.assert_allclose(values[where], np.asarray(expected[name])[where], atol=1e-5)
        assert (values.shape, values.dtype) == (expected[name].shape, np.float32)


def test_masks_are_filled_from_the_arguments(models):
    texts = ["The [MASK] is a value.", "A [MASK] of [MASK]."]
    found = records(predict(models / "pretraining", "--format=json", "--top_k=3", *texts))
    assert [record["text"] for record in found] == texts
    assert [len(record["masks"]) for record in found] == [1, 2]
    for mask in found[1]["masks"]:
        shares = [prediction["probability"] for prediction in mask]
        assert len(shares) == 3
        assert shares == sorted(shares, reverse=True)


def test_texts_are_scored_with_their_tokens(models):
    texts = ["the metamorphosis of a module", "a value\tits name", "\u200b"]
    bert = load(models / "pretraining")
    for flag, how in (("--mask_rest_of_word", True), ("--nomask_rest_of_word", False)):
        found = records(
            predict(models / "pretraining", "--do=score", "--format=json", flag, *texts)
        )
        asked = [texts[0], tuple(texts[1].split("\t")), texts[2]]
        for record, score in zip(found, bert.score(asked, how), strict=True):
            assert list(record)[-5:] == [
                *("log_likelihood", "per_token", "num_tokens", "pieces", "log_probabilities")
            ]
            assert record["log_likelihood"] == pytest.approx(score.log_likelihood, abs=2e-5)
            assert record["log_probabilities"] == pytest.approx(score.log_probabilities, abs=2e-5)
            assert record["pieces"] == score.pieces
            assert record["num_tokens"] == score.num_tokens
        assert [record["num_tokens"] for record in found] == [len(found[0]["pieces"]), 2, 0]
        assert found[0]["per_token"] * found[0]["num_tokens"] == pytest.approx(
            found[0]["log_likelihood"], abs=1e-4
        )
        assert found[2]["per_token"] is None  # NaN is no JSON


def test_a_left_to_right_model_scores_lines(models):
    bert = load(models / "causal")
    texts = ["the name of a module", "a value\tits name"]
    for flags, with_end in (([], False), (["--score_end"], True)):
        result = predict(models / "causal", *flags, *texts)
        assert result.returncode == 0, result.stderr
        for text, line in zip(texts, result.stdout.splitlines(), strict=True):
            total, mean, count, *same = line.split("\t")
            asked = tuple(same) if len(same) > 1 else same[0]
            score = bert.score(asked, score_end=with_end)
            assert "\t".join(same) == text
            assert float(total) == pytest.approx(score.log_likelihood, abs=1e-3)
            assert float(mean) == pytest.approx(score.per_token, abs=1e-3)
            assert int(count) == score.num_tokens
    assert predict(models / "causal", "\u200b").stdout == "0.0000\t-\t0\t\u200b\n"


def test_texts_are_classified_from_standard_input(models):
    lines = "a good value\n\nthe name of a module\n"
    command = [sys.executable, "-m", "bertjax.predict", f"--model={models / 'classification'}"]
    command += ["--format=json"]
    found = records(
        subprocess.run(command, input=lines, capture_output=True, text=True, timeout=300)
    )
    assert [record["text"] for record in found] == ["a good value", "the name of a module"]
    for record in found:
        assert sum(record["probabilities"].values()) == pytest.approx(1, abs=3e-6)
        assert record["label"] == max(record["probabilities"], key=record["probabilities"].get)
        assert set(record["probabilities"]) == set(NAMES)
        assert all(share == round(share, 6) for share in record["probabilities"].values())


def test_a_file_of_pairs_is_embedded_into_a_file(models, tmp_path):
    pairs = [
        {"text": "which value?", "text_pair": "the value is a string"},
        {"text": "what name?", "text_pair": "its name is module"},
    ]
    (tmp_path / "in.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    result = predict(
        models / "span",
        f"--input={tmp_path / 'in.jsonl'}",
        f"--output={tmp_path / 'out'}",
        "--format=json",
        "--max_length=64",
        "--do=embed",
    )
    assert result.returncode == 0, result.stderr
    embedded = [json.loads(line) for line in (tmp_path / "out").read_text().splitlines()]
    assert [len(record["embedding"]) for record in embedded] == [16, 16]
    assert [record["text_pair"] for record in embedded] == [p["text_pair"] for p in pairs]


def test_words_are_tagged(models):
    result = predict(models / "tagging", "the name of a module")
    assert result.returncode == 0, result.stderr
    words = result.stdout.strip().split(" ")
    assert [word.split("/")[0] for word in words] == ["the", "name", "of", "a", "module"]
    assert {word.partition("/")[2] for word in words} <= {"", *NAMES[1:]}
    # As in files of tags, a no-break space belongs to the word.
    [record] = records(predict(models / "tagging", "--format=json", "1\u00a0000 names"))
    assert record["words"] == ["1\u00a0000", "names"]


def test_a_model_of_no_task_reads_all_its_positions(wordpiece, tmp_path):
    config = dataclasses.replace(with_head("classification"), max_positions=160)
    params = jax.tree.map(np.asarray, init_params(config, 3))
    write_checkpoint(Weights("drawn", config, params, wordpiece, NAMES), tmp_path / "model")
    words = ["value"] * 126 + ["name"] * 60
    lengths = (126, 150, 186)  # rows of 128, 152 and, cut, 160 tokens
    texts = [" ".join(words[:n]) for n in lengths]
    result = predict(tmp_path / "model", "--format=json", *texts)
    assert "1 of 3 texts are longer than 160 tokens and were cut" in result.stderr
    found = [record["probabilities"] for record in records(result)]
    assert found[0] != found[1] != found[2]


def test_all_lines_are_of_one_text_or_all_of_two(models, tmp_path):
    """Also beyond the lines that are read at once."""
    (tmp_path / "texts.tsv").write_text("a value\n" * 1_024 + "a value\ta name\n")
    result = predict(models / "classification", f"--input={tmp_path / 'texts.tsv'}")
    assert result.returncode == 2
    assert "texts.tsv:1025: this model takes one text" in result.stderr


def test_half_of_a_surrogate_pair_is_written_as_its_escape(models, tmp_path):
    (tmp_path / "texts.jsonl").write_text('{"text": "a \\ud83d value"}\n')
    result = predict(models / "classification", f"--input={tmp_path / 'texts.jsonl'}")
    assert result.returncode == 0, result.stderr
    assert "a \\ud83d value" in result.stdout


@pytest.mark.parametrize(
    ("head", "arguments", "message"),
    [
        ("pretraining", ["no mask here"], "'no mask here': has no [MASK]"),
        (
            "pretraining",
            ["--do=classify", "text"],
            "is 'pretraining', which can fill-mask and next-sentence and score and embed",
        ),
        ("classification", ["--do=score", "text"], "which can classify and embed"),
        ("pretraining", ["--do=score", "a " * 63], "has 65 tokens with the special ones"),
        ("pretraining", ["--do=score", "--score_end", "text"], "--score_end=True: is for left"),
        ("causal", ["--nomask_rest_of_word", "text"], "--mask_rest_of_word=False: is for masked"),
        ("classification", ["one\ttwo", "one"], "this model takes"),
        ("missing", ["text"], "no such folder"),
        ("classification", ["--max_length=65", "text"], "beyond the 64 positions of"),
        ("classification", ["--do=clasify", "text"], "--do=clasify: value should be one of"),
        ("classification", ["--input=missing.txt"], "--input=missing.txt: no such file"),
        ("classification", ["--examples=dev.tsv"], "does not say what its task's files look like"),
        ("classification", ["--examples=dev.tsv", "text"], "arguments and --examples: give one"),
        ("classification", ["--output=missing/out", "text"], "in a folder that exists"),
    ],
)
def test_what_cannot_be_predicted_is_one_line(models, head, arguments, message):
    result = predict(models / head, *arguments)
    assert result.returncode == 2
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a good value\ncaf\xe9\n", "texts.txt:2: not UTF-8 (byte 0xe9)"),
        (b"\n \n", "texts.txt: has no texts"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_line(models, tmp_path, content, message):
    (tmp_path / "texts.txt").write_bytes(content)
    result = predict(models / "classification", f"--input={tmp_path / 'texts.txt'}")
    assert result.returncode == 2
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_wrong_record_is_named_and_leaves_no_half_of_an_output(models, tmp_path):
    """The input stays where it is named as the output, too."""
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    good = json.dumps({"text": "a good value"}) + "\n"
    target.write_text("of a run before")
    for wrong, message in (
        ('{"text": 3}', "in.jsonl:2: expected a JSON object with a string text"),
        ('{"text": "a", "text_pair": "b"}', "in.jsonl:2: this model takes one text"),
    ):
        source.write_text(good + wrong + "\n")
        result = predict(models / "classification", f"--input={source}", f"--output={target}")
        assert (result.returncode, result.stderr.count("\n")) == (2, 1), result.stderr
        assert message in result.stderr
        assert target.read_text() == "of a run before"
        assert {path.name for path in tmp_path.iterdir()} == {"in.jsonl", "out.jsonl"}
    source.write_text(good)
    for name in ("input", "examples"):
        result = predict(models / "classification", f"--{name}={source}", f"--output={source}")
        assert result.returncode == 2
        assert "is the input; name another file" in result.stderr
        assert source.read_text() == good


@pytest.mark.parametrize("name", ["texts.json", "texts.txt.gz", "texts.CSV"])
def test_files_that_are_no_lines_of_text_are_refused(models, tmp_path, name):
    (tmp_path / name).write_bytes(b"a good value\n")
    result = predict(models / "classification", f"--input={tmp_path / name}")
    assert result.returncode == 2
    assert f"{name}: expected texts, one per line" in result.stderr


def test_a_text_with_line_feeds_and_tabs_is_one_line(models, tmp_path):
    (tmp_path / "texts.JSONL").write_text(json.dumps({"text": "a good\n\tvalue"}) + "\n")
    result = predict(models / "classification", f"--input={tmp_path / 'texts.JSONL'}")
    [line] = result.stdout.splitlines()
    assert line.split("\t")[2] == r"a good\n\tvalue"


def test_a_model_of_short_rows_answers(models):
    """Of a reader's 64 positions a question would take all by default."""
    found = records(predict(models / "span", "--format=json", "which value?\ta true value"))
    assert found[0].keys() == {"text", "text_pair", "answer", "nbest"}


def test_a_byte_order_mark_is_no_part_of_the_text(models, tmp_path):
    (tmp_path / "texts.txt").write_bytes(b"\xef\xbb\xbfa good value\r\n")
    found = records(
        predict(models / "classification", "--format=json", f"--input={tmp_path / 'texts.txt'}")
    )
    assert [record["text"] for record in found] == ["a good value"]
