"""The comparison of test_hugging_face.py, live, on larger models; transformers opens what we write.

Prints the largest differences: pytest -s shows them.
"""

import runpy

import numpy as np
import pytest
from folders import GOLDENS
from hugging_face_goldens import MODELS, texts
from test_hugging_face import TOLERANCE, real_weights  # noqa: F401 (a fixture)

import bertjax
from bertjax.weights.hugging_face_folder import read_folder, write_folder

pytestmark = pytest.mark.peer

for package in ("torch", "transformers"):
    pytest.importorskip(
        package,
        reason=f"{package} is not installed; the extra `peer` brings it: "
        'pip install "bertjax[peer]"',
    )

LARGER = {
    "hidden_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "intermediate_size": 100,
    "max_position_embeddings": 40,
}


@pytest.fixture(scope="module")
def functions():
    """Those that write the goldens."""
    script = GOLDENS / "make_hugging_face_goldens.py"
    return runpy.run_path(str(script))


@pytest.fixture(scope="module")
def folders(functions, tmp_path_factory):
    """A larger model of each architecture, as transformers saves it."""
    root = tmp_path_factory.mktemp("live")
    for seed, name in enumerate(MODELS):
        kind, settings = functions["MODELS"][name]
        length = LARGER["max_position_embeddings"]
        tokenizer = functions["make_tokenizer"](root / name, name != "tagging", length)
        model = functions["make_model"](kind, LARGER | settings, len(tokenizer), 100 + seed)
        model.save_pretrained(root / name)
        tokenizer.save_pretrained(root / name)
    return root


def largest_difference(functions, folder, several):
    """Between our hidden states and pooled outputs and theirs, at real positions."""
    import transformers

    model = transformers.AutoModel.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    theirs = functions["run"](model, tokenizer, several)
    ours = bertjax.load(folder).encode(several)
    mask = theirs["attention_mask"]
    np.testing.assert_array_equal(ours.attention_mask, mask)
    differences = [np.abs(ours.hidden_states - theirs["hidden_states"] * mask[:, :, None]).max()]
    if ours.pooled is not None:
        differences.append(np.abs(ours.pooled - theirs["pooler_output"]).max())
    return max(differences)


@pytest.mark.parametrize("name", ["pretraining", "masked_lm", "encoder", "tagging"])
def test_encode_equals_transformers(functions, folders, name):
    difference = largest_difference(functions, folders / name, texts()["small"])
    print(f"{name}: {difference:.1e}")
    assert difference < TOLERANCE


@pytest.mark.parametrize("name", MODELS)
def test_transformers_opens_what_we_write(functions, folders, name, tmp_path):
    import torch
    import transformers

    write_folder(read_folder(folders / name), tmp_path)
    kind = getattr(transformers, functions["MODELS"][name][0])
    before = kind.from_pretrained(folders / name).state_dict()
    model, info = kind.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert transformers.AutoModel.from_pretrained(tmp_path).config.hidden_size == 48
    old, new = (transformers.AutoTokenizer.from_pretrained(f) for f in (folders / name, tmp_path))
    for text in [*texts()["small"], texts()["masked"]]:
        pair = (text,) if isinstance(text, str) else text
        assert dict(old(*pair, truncation=True)) == dict(new(*pair, truncation=True))
    assert new.mask_token_id == old.mask_token_id


def test_transformers_opens_a_sentence_piece_tokenizer_of_ours(sentence_piece, tmp_path):
    import transformers

    from bertjax.data.tokenizers.hugging_face_tokenizer import hugging_face_files

    for name, text in hugging_face_files(sentence_piece, 40).items():
        (tmp_path / name).write_text(text)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in ("Two words, and  some more.", "naïve ½ ﬁsh", ""):
        expected = [sentence_piece.cls_id, *sentence_piece.encode(text), sentence_piece.sep_id]
        assert theirs(text)["input_ids"] == expected


def test_real_weights_equal_transformers(functions, real_weights):  # noqa: F811
    difference = largest_difference(functions, real_weights, texts()["real"])
    print(f"real weights: {difference:.1e}")
    assert difference < TOLERANCE


def scored_by_transformers(folder, kind, text, mask_rest_of_word=False):
    """Log-probabilities of a text's tokens: of the next ones, or of each masked in turn.

    Words are those of their tokenizer.
    """
    import torch
    import transformers

    model = getattr(transformers, kind).from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    given = tokenizer(text, return_tensors="pt")
    ids, words = given["input_ids"], given.word_ids()
    places = range(1, ids.shape[1] - 1)
    with torch.no_grad():
        if kind == "BertLMHeadModel":
            logits = model(**given).logits[0, :-2]
        else:
            copies = ids.repeat(len(places), 1)
            for copy, place in zip(copies, places, strict=True):
                copy[place] = tokenizer.mask_token_id
                for after in places if mask_rest_of_word else ():
                    if after > place and words[after] == words[place]:
                        copy[after] = tokenizer.mask_token_id
            logits = model(copies).logits[range(len(places)), places]
    nats = torch.log_softmax(logits, dim=-1)
    return nats.gather(1, ids[0, 1:-1, None])[:, 0].numpy()


SCORED = "the dogs sat on the mats, abcde and the cat did it"


@pytest.mark.parametrize("mask_rest_of_word", [True, False])
def test_pseudo_log_likelihoods_equal_transformers(folders, mask_rest_of_word):
    folder = folders / "masked_lm"
    expected = scored_by_transformers(folder, "BertForMaskedLM", SCORED, mask_rest_of_word)
    score = bertjax.load(folder).score(SCORED, mask_rest_of_word)
    assert sum(piece.startswith("##") for piece in score.pieces) > 3
    np.testing.assert_allclose(score.log_probabilities, expected, atol=TOLERANCE)


def test_log_likelihoods_of_a_left_to_right_model_equal_transformers(functions, tmp_path):
    import transformers

    tokenizer = functions["make_tokenizer"](tmp_path, True, LARGER["max_position_embeddings"])
    config = transformers.BertConfig(**LARGER, vocab_size=len(tokenizer), is_decoder=True)
    transformers.BertLMHeadModel(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    score = bertjax.load(tmp_path).score(SCORED)
    expected = scored_by_transformers(tmp_path, "BertLMHeadModel", SCORED)
    np.testing.assert_allclose(score.log_probabilities, expected, atol=TOLERANCE)
