"""`bertjax.load` and `bertjax.convert`: what an encoder answers, and workdirs there and back."""

import dataclasses
import json
import logging
import resource
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hugging_face_goldens import FOLDER, outputs, texts
from safetensors.numpy import load_file

import bertjax
from bertjax.checkpoints.checkpoint import CheckpointError
from bertjax.config import ConfigError
from bertjax.data.tokenizers.tokenizer import TokenizerError, load_tokenizer
from bertjax.encoder import Encoder, HeadError
from bertjax.models import init_params
from bertjax.storage.atomic_files import whole_folder
from bertjax.weights.bertjax_checkpoint import write_checkpoint
from bertjax.weights.conversion import convert_checkpoint
from bertjax.weights.formats import read_weights
from bertjax.weights.hugging_face_folder import read_folder, write_folder
from bertjax.weights.weights import WeightsError, flatten


@pytest.fixture(scope="module")
def bert():
    return bertjax.load(FOLDER / "pretraining")


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """The pre-training model as a bertjax workdir."""
    folder = tmp_path_factory.mktemp("load") / "workdir"
    convert_checkpoint(FOLDER / "pretraining", folder)
    return folder


def test_results_come_in_order_whatever_the_batch(bert):
    words = ["cat", "dog sat", "the cat sat on the mat and the dog did it", ("a", "b c")]
    many = [words[i % 4] for i in range(300)]
    many[77] = "the mat"
    together = bert.encode(many)
    assert together.hidden_states.shape == (300, 13, 16)
    assert {array.dtype for array in together} == {np.dtype("float32")}
    for i in (0, 1, 2, 3, 77, 298, 299):
        alone = bert.encode(many[i])
        n = alone.hidden_states.shape[1]
        assert together.attention_mask[i].sum() == n
        for ours, expected in (
            (together.hidden_states[i, :n], alone.hidden_states[0]),
            (together.pooled[i], alone.pooled[0]),
            (together.mean_pooled[i], alone.mean_pooled[0]),
        ):
            np.testing.assert_allclose(ours, expected, atol=2e-6, rtol=0)
        assert not together.hidden_states[i, n:].any()


def test_embed_gives_the_means_of_encode(bert):
    texts = ["the cat sat on the mat", "dog", ("a", "b c"), ""]
    np.testing.assert_allclose(bert.embed(texts), bert.encode(texts).mean_pooled, atol=1e-6)
    assert bert.embed([]).shape == (0, 16)


def test_what_was_trained_with_kernels_is_loaded_without_them(tmp_path, caplog):
    weights = read_weights(FOLDER / "encoder")
    config = dataclasses.replace(weights.config, attention="pallas")
    write_checkpoint(dataclasses.replace(weights, config=config), tmp_path / "run")
    loaded = bertjax.load(tmp_path / "run")
    assert loaded.config.attention == "rows"
    assert not caplog.records
    ours, theirs = (x.embed("the cat") for x in (loaded, bertjax.load(FOLDER / "encoder")))
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("dtype", ["bfloat16", jnp.bfloat16])
def test_the_computation_may_be_in_bfloat16(dtype):
    found = bertjax.load(FOLDER / "encoder", dtype=dtype)
    assert found.config.dtype == "bfloat16"
    expected = bertjax.load(FOLDER / "encoder").encode("a good value").mean_pooled
    again = found.encode("a good value").mean_pooled
    assert again.dtype == np.float32
    np.testing.assert_allclose(again, expected, atol=0.05)
    assert not np.array_equal(again, expected)


def test_another_dtype_is_refused():
    with pytest.raises(ValueError, match="dtype='bf16': expected"):
        bertjax.load(FOLDER / "encoder", dtype="bf16")


def test_factors_may_be_rounded(tmp_path, caplog):
    weights = read_weights(FOLDER / "encoder")
    trained = dataclasses.replace(weights.config, factors="bfloat16", attention="auto")
    write_checkpoint(dataclasses.replace(weights, config=trained), tmp_path / "run")
    plain, rounded = (bertjax.load(tmp_path / "run", factors=x) for x in ("compute", "bfloat16"))
    assert "config.model.factors = 'bfloat16'" in caplog.text
    assert plain.config.factors == "compute"  # as dtype, not what it was trained with
    assert plain.config.attention == "rows"
    ours, exact = (x.embed("a good value") for x in (rounded, plain))
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, exact, atol=0.02)
    assert not np.array_equal(ours, exact)
    with pytest.raises(ValueError, match="factors='bf16': expected"):
        bertjax.load(FOLDER / "encoder", factors="bf16")
    with pytest.raises(ConfigError, match=r"found config\.model\.dtype = 'bfloat16'"):
        bertjax.load(FOLDER / "encoder", dtype="bfloat16", factors="bfloat16")


def test_longer_texts_are_cut_with_one_warning(bert, caplog):
    with caplog.at_level(logging.WARNING, "bertjax"):
        encoded = bert.encode(["cat " * 50, ("cat " * 30, "dog " * 9), "cat"])
    assert encoded.attention_mask.sum(axis=1).tolist() == [20, 20, 3]
    assert [r.getMessage()[:38] for r in caplog.records] == [
        "2 of 3 texts are longer than 20 tokens"
    ]


def test_no_texts_give_no_rows_and_other_things_are_refused(bert):
    assert bert.encode([]).mean_pooled.shape == (0, 16)
    with pytest.raises(TypeError, match="found 7"):
        bert.encode(["a", 7])
    with pytest.raises(TypeError, match="a tuple of two texts"):
        bert.encode([("a", "b", "c")])


def test_pairs_need_two_token_types(bert):
    config = dataclasses.replace(bert.config, num_token_types=1, next_sentence=False)
    params = jax.tree.map(np.asarray, init_params(config, 0))
    one_type = Encoder(config, params, bert.tokenizer)
    assert one_type.encode("the cat").hidden_states.shape[0] == 1
    for ask in (one_type.encode, one_type.embed, one_type.inspect):
        with pytest.raises(HeadError, match="one token type"):
            ask(("the cat", "a dog"))


def test_fill_mask_says_what_transformers_says(bert):
    logits = outputs("masked")["logits"].astype(np.float64)
    expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    found = bert.fill_mask(texts()["masked"], top_k=3)
    assert len(found) == len(expected) == 2
    for predictions, line in zip(found, expected, strict=True):
        best = np.argsort(-line)[:3]
        assert [p.id for p in predictions] == best.tolist()
        assert [p.piece for p in predictions] == [bert.tokenizer.pieces[i] for i in best]
        np.testing.assert_allclose([p.probability for p in predictions], line[best], rtol=1e-4)


def test_next_sentence_says_what_transformers_says(bert):
    logits = outputs("pretraining")["seq_relationship_logits"].astype(np.float64)
    for text, line in zip(texts()["small"], logits, strict=True):
        if isinstance(text, tuple):
            expected = 1 / (1 + np.exp(line[1] - line[0]))
            assert bert.next_sentence(*text) == pytest.approx(expected, abs=1e-5)


def softmax(x):
    exponentials = np.exp(x - x.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def test_inspect_says_what_the_layers_do(bert):
    text = ("the cat sat on the mat", "and the dog did it")
    seen = bert.inspect(text)
    n, heads = len(seen.pieces), bert.config.num_heads
    assert seen.pieces[0] == "[CLS]"
    assert [i for i, piece in enumerate(seen.pieces) if piece == "[SEP]"] == [7, n - 1]
    assert seen.attentions.shape == (bert.config.num_layers, heads, n, n)
    # Section 3.2.1 of Vaswani et al. (2017), in float64, from each layer's own input.
    for index in range(bert.config.num_layers):
        params = bert.params["encoder"][f"layer_{index}"]["attention"]
        x = seen.hidden_states[index].astype(np.float64)
        query, key = (
            (x @ np.float64(params[name]["kernel"]) + np.float64(params[name]["bias"]))
            .reshape(n, heads, -1)
            .transpose(1, 0, 2)
            for name in ("query", "key")
        )
        expected = softmax(query @ key.transpose(0, 2, 1) / np.sqrt(query.shape[-1]))
        np.testing.assert_allclose(seen.attentions[index], expected, atol=2e-6, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [
        {},
        {"scan_layers": True},
        {"attention": "xla", "scan_layers": True, "remat": "layer"},
        {"attention": "xla", "remat": "attention"},
        {"attention": "pallas"},
    ],
    ids=str,
)
def test_inspect_looks_at_the_forward_pass_of_encode(bert, change):
    """To the bit, for texts that fill their row and for those that are padded."""
    config = dataclasses.replace(bert.config, **change)
    other = Encoder(config, bert.params, bert.tokenizer)
    for text in ("cat", "cat " * 14, ("the cat sat on the mat", "a dog"), "the cat " * 20):
        seen, encoded = other.inspect(text), other.encode(text)
        assert len(seen.hidden_states) == 1 + config.num_layers
        np.testing.assert_array_equal(seen.hidden_states[-1], encoded.hidden_states[0])
        np.testing.assert_allclose(seen.attentions.sum(axis=-1), 1, atol=1e-6)
        np.testing.assert_allclose(seen.attentions, bert.inspect(text).attentions, atol=1e-5)


def test_a_mask_that_is_not_there_is_an_error(bert):
    with pytest.raises(ValueError, match=r"text 0: has no \[MASK\]; write it"):
        bert.fill_mask("the cat")
    with pytest.raises(ValueError, match=r"has 2 \[MASK\], of which 1 are among the first 20"):
        bert.fill_mask("[MASK] " + "cat " * 30 + "[MASK]")


@pytest.mark.parametrize("name", ["encoder", "masked_lm", "classification"])
def test_heads_that_are_not_there_are_an_error(name):
    other = bertjax.load(FOLDER / name)
    with pytest.raises(HeadError, match="no head for next sentence"):
        other.next_sentence("a", "b")
    if name != "masked_lm":
        with pytest.raises(HeadError, match=rf"masked tokens \(their head is '{name}'\)"):
            other.fill_mask("[MASK]")


def test_a_workdir_gives_what_the_folder_gave(bert, workdir):
    loaded = bertjax.load(workdir)
    assert loaded.config == bert.config
    ours, theirs = (loaded.encode("the cat"), bert.encode("the cat"))
    np.testing.assert_array_equal(ours.hidden_states, theirs.hidden_states)
    checkpoint = workdir / "checkpoints" / "step_00000000"
    assert bertjax.load(checkpoint).tokenizer.hash == bert.tokenizer.hash


def test_a_checkpoint_alone_wants_its_tokenizer(workdir, tmp_path):
    alone = tmp_path / "step_00000000"
    shutil.copytree(workdir / "checkpoints" / "step_00000000", alone)
    with pytest.raises(TokenizerError, match=r"tokenizer=\"STORE/tokenizer\""):
        bertjax.load(alone)
    loaded = bertjax.load(alone, tokenizer=workdir / "tokenizer")
    assert loaded.tokenizer.hash == load_tokenizer(workdir / "tokenizer").hash
    with pytest.raises(TokenizerError, match="was trained with the tokenizer"):
        bertjax.load(alone, tokenizer=FOLDER / "tagging")


def test_a_damaged_checkpoint_is_refused(workdir, tmp_path):
    shutil.copytree(workdir, tmp_path / "copy")
    (tmp_path / "copy/checkpoints/step_00000000/config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"config\.json"):
        bertjax.load(tmp_path / "copy")
    with pytest.raises(WeightsError, match="no such folder"):
        bertjax.load(tmp_path / "nothing")


def test_there_and_back_through_a_checkpoint(workdir, tmp_path):
    convert_checkpoint(workdir, tmp_path / "back")
    folders = FOLDER / "pretraining", tmp_path / "back"
    before, after = (load_file(folder / "model.safetensors") for folder in folders)
    assert before.keys() == after.keys()
    assert all(before[name].tobytes() == after[name].tobytes() for name in before)


def test_labels_travel(tmp_path):
    convert_checkpoint(FOLDER / "classification", tmp_path / "workdir")
    labels = json.loads((tmp_path / "workdir" / "labels.json").read_text())
    assert labels == ["no", "yes", "perhaps"]
    (tmp_path / "workdir" / "labels.json").write_text('["bad", "good", "none"]')
    convert_checkpoint(tmp_path / "workdir", tmp_path / "back")
    config = json.loads((tmp_path / "back" / "config.json").read_text())
    assert config["id2label"] == {"0": "bad", "1": "good", "2": "none"}
    (tmp_path / "workdir" / "labels.json").write_text('["bad"]')
    with pytest.raises(WeightsError, match="a list of 3 names"):
        read_weights(tmp_path / "workdir")


def test_a_pooler_that_the_head_does_not_read_goes_along(tmp_path, workdir):
    weights = read_weights(workdir)
    config = dataclasses.replace(weights.config, head="tagging", num_labels=2)
    head = {"kernel": np.ones((16, 2), np.float32), "bias": np.ones(2, np.float32)}
    params = {k: weights.params[k] for k in ("embeddings", "encoder", "pooler")}
    tagging = dataclasses.replace(weights, config=config, params=params | {"tagging_head": head})
    write_folder(tagging, tmp_path)
    again = read_folder(tmp_path)
    assert again.config == dataclasses.replace(config, next_sentence=False)
    ours, theirs = flatten(again.params), flatten(tagging.params)
    assert all(np.array_equal(ours[path], leaf) for path, leaf in theirs.items())


def test_an_output_that_is_there_or_fails_is_not_touched(workdir, tmp_path):
    with pytest.raises(WeightsError, match="exists already"):
        convert_checkpoint(FOLDER / "encoder", workdir)
    with pytest.raises(WeightsError, match="has the format huggingface already"):
        convert_checkpoint(FOLDER / "encoder", tmp_path / "new", to="huggingface")
    with pytest.raises(WeightsError, match="gs://b/out: is in a bucket; convert to a folder"):
        convert_checkpoint(FOLDER / "encoder", "gs://b/out")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))  # bytes: as on a disk that is full
    try:
        with pytest.raises(WeightsError, match=r"new: cannot be written: .*too large"):
            convert_checkpoint(workdir, tmp_path / "new")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    # Fails after the tokenizer's files were written: half of a surrogate pair has no UTF-8.
    weights = dataclasses.replace(read_weights(FOLDER / "regression"), labels=("\ud800",))
    with pytest.raises(UnicodeEncodeError), whole_folder(tmp_path / "new") as folder:
        write_folder(weights, folder)
    assert not list(tmp_path.iterdir())


def test_the_command_says_errors_in_one_line(tmp_path):
    command = [sys.executable, "-m", "bertjax.convert", f"--input={tmp_path / 'nothing'}"]
    result = subprocess.run(
        [*command, f"--output={tmp_path / 'out'}"], capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 2
    assert result.stderr.startswith("error: ")
    assert "no such folder" in result.stderr
    assert result.stderr.count("\n") == 1


def test_loading_needs_no_other_framework(workdir):
    code = """
import sys, bertjax
for path in sys.argv[1:]:
    bertjax.load(path)
found = {"tensorflow", "torch", "transformers"} & sys.modules.keys()
assert not found, found
"""
    command = [sys.executable, "-c", code, FOLDER / "pretraining", workdir]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
