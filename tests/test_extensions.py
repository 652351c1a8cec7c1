"""Heads, encoders, tasks and tokenizers of a user's own: what is accepted and what is refused.

tests/examples/ trains with them.
"""

import dataclasses
import json

import numpy as np
import pytest
from flax import linen as nn
from registries import REGISTRIES, restored

import bertjax
from bertjax.config import Config, ConfigError, ModelConfig, Phase
from bertjax.config.checks import validate
from bertjax.config.description import sections
from bertjax.data.tokenizers.offsets import OffsetEncoder
from bertjax.data.tokenizers.tokenizer import TOKENIZERS, WordPieceTokenizer, load_tokenizer
from bertjax.data.tokenizers.vocabulary import SPECIAL_PIECES, Tokenizer, TokenizerError
from bertjax.encoder import Encoder
from bertjax.encoders import ENCODERS, EncoderVariant
from bertjax.heads import HEADS, Answer, Head, resolve
from bertjax.models import init_params
from bertjax.models.layers import dense
from bertjax.parameters import TABLE, Parameter, dense_parameters, parameters, shapes
from bertjax.tasks.registry import TASKS, make_task, parse_option
from bertjax.weights.hugging_face_folder import write_folder
from bertjax.weights.weights import Weights, flatten

OWN = Head(
    "own",
    module="bertjax.models.fine_tuning:BertForClassification",
    trained_on="task",
    objective="bertjax.objectives.fine_tuning:fine_tuning_objective",
    layers=("own_head",),
    outputs={"logits": "labels"},
    answers={"labels": Answer("int32")},
    loss="cross_entropy",
    task="bertjax.tasks.text_task:TextTask",
    verbs=("classify",),
)
LAYER = dense_parameters("own_head", ("hidden_size", 3), ("embed", None), "pairs")
GATE = dense_parameters(
    "encoder/layer_*/mlp/gate", ("hidden_size", "intermediate_size"), ("embed", "mlp"), "tokens"
)
NORM = ("encoder/layer_*/mlp_layer_norm/scale", "encoder/layer_*/mlp_layer_norm/bias")


@pytest.fixture(autouse=True)
def _restored():
    with restored():
        yield


class Letters(Tokenizer):
    kind = "letters"
    content_file = "letters.txt"

    def __init__(self):
        pieces = [*SPECIAL_PIECES, *"abc"]
        ids = {piece: id for id, piece in enumerate(SPECIAL_PIECES)}
        starts = np.ones(len(pieces), bool)
        super().__init__(
            pieces, special_ids=ids, word_starts=starts, lower_case=False, content=b"abc"
        )

    @classmethod
    def from_file(cls, path, *, lower_case, vocab_size):
        assert path.read_bytes() == b"abc"
        assert (lower_case, vocab_size) == (False, 8)
        return cls()

    def encode(self, text):
        return [self.pieces.index(letter) for letter in text if letter in "abc"]

    def decode(self, ids):
        return "".join(self.pieces[id] for id in ids)


def test_own_names_are_accepted_by_the_configuration_and_its_errors():
    config = Config(phases=(Phase(20_000),), model=ModelConfig(head="own", encoder="gated"))
    with pytest.raises(ConfigError, match=r"config.model.encoder = 'gated' is not known; .*bert"):
        validate(config)
    bertjax.register_encoder(EncoderVariant("gated"), GATE)
    with pytest.raises(ConfigError, match=r"config.model.head = 'own' is not known; .*tagging"):
        validate(config)
    bertjax.register_head(OWN, LAYER)
    validate(config)
    assert Config.from_json(config.to_json()) == config
    [model] = [section for section in sections(config) if section.prefix == "model."]
    assert {"own", "bert", "gated"} <= {name for field in model.fields for name in field.choices}
    with pytest.raises(ConfigError, match=r"'ovn' is not known; did you mean 'own'\?"):
        validate(dataclasses.replace(config, model=ModelConfig(head="ovn")))


def test_own_parameters_belong_to_their_models_alone():
    bertjax.register_head(OWN, LAYER)
    bertjax.register_encoder(EncoderVariant("gated", without=NORM), GATE)
    plain = ModelConfig(num_layers=2)
    gated = dataclasses.replace(plain, encoder="gated")
    own = dataclasses.replace(plain, head="own")
    added = shapes(gated).keys() - shapes(plain).keys()
    assert added == {
        f"encoder/layer_{i}/mlp/gate/{leaf}" for i in (0, 1) for leaf in ("kernel", "bias")
    }
    assert shapes(gated)["encoder/layer_1/mlp/gate/kernel"] == (768, 3_072)
    left = shapes(plain).keys() - shapes(gated).keys()
    assert left == {path.replace("*", str(i)) for i in (0, 1) for path in NORM}
    assert shapes(own)["own_head/kernel"] == (768, 3)
    assert not [path for path in shapes(plain) if "own_head" in path or "gate" in path]
    assert not parameters(own)["own_head/kernel"].hugging_face


@pytest.mark.parametrize("registry", REGISTRIES, ids=lambda registry: registry.what)
def test_a_name_that_exists_is_refused(registry):
    taken, record = next(iter(registry.items()))
    registry.add(taken, record)  # the same again
    with pytest.raises(ConfigError, match=f"bertjax has another {registry.what} of the name"):
        registry.add(taken, "other", replace=True)
    registry.add("mine", "first")
    with pytest.raises(ConfigError, match=r"you have registered another .* 'mine'; .*replace=True"):
        registry.add("mine", "second")
    registry.add("mine", "second", replace=True)
    assert registry.own() == {"mine": "second"}
    with pytest.raises(ConfigError, match=r"the name .* is empty"):
        registry.add("", "third")


@pytest.mark.parametrize(
    ("changes", "lines", "message"),
    [
        ({"name": "span"}, LAYER, "bertjax has another head of the name 'span'"),
        ({}, {}, "the layer 'own_head' of the head 'own' has no parameters"),
        ({"layers": ()}, LAYER, "'own_head/kernel' lies in 'own_head', .* layers .* 'own' .none"),
        ({"objective": ""}, LAYER, "objective of the head 'own' is empty, which trained_on='task'"),
        ({"task": ""}, LAYER, "task of the head 'own' is empty"),
        ({"trained_on": "text"}, LAYER, "trained_on='text' of the head 'own': expected one of"),
        ({"outputs": {"logits": "tags"}}, LAYER, "no answer 'tags'; its answers are labels"),
        (
            {"layers": ("pooler",)},
            {"pooler/kernel": Parameter((3,), (None,), False)},
            "bertjax has another parameter of the name 'pooler/kernel'",
        ),
    ],
)
def test_a_head_that_would_fail_later_is_refused_at_once(changes, lines, message):
    before = dict(TABLE)
    with pytest.raises(ConfigError, match=rf"^register_head.*{message}"):
        bertjax.register_head(dataclasses.replace(OWN, **changes), lines)
    assert "own" not in HEADS
    assert before == TABLE


def test_an_encoder_with_parameters_elsewhere_is_refused():
    with pytest.raises(
        ConfigError, match=r"'own_head/kernel' does not lie in .* see register_head"
    ):
        bertjax.register_encoder(EncoderVariant("gated"), LAYER)
    with pytest.raises(ConfigError, match="without has 'encoder/layer_0/mlp/gate/kernel', which"):
        bertjax.register_encoder(
            EncoderVariant("gated", without=("encoder/layer_0/mlp/gate/kernel",))
        )
    kernel = {"encoder/layer_*/mlp/output/kernel": GATE["encoder/layer_*/mlp/gate/kernel"]}
    with pytest.raises(ConfigError, match="bertjax has another parameter of the name"):
        bertjax.register_encoder(EncoderVariant("gated"), kernel)
    assert not ENCODERS.own()


def test_a_record_holds_a_class_or_its_dotted_name():
    assert resolve("bertjax.heads:Head") is Head
    assert resolve(Head) is Head


def test_own_tasks_have_options_and_are_listed():
    made = []
    bertjax.register_task("mine", lambda options: made.append(options), {"text": str})
    make_task("mine", {"text": "1"})
    assert made == [{"text": "1"}]
    assert (parse_option("mine", "text", "1"), parse_option("mine", "number", "1")) == ("1", 1)
    with pytest.raises(bertjax.BertjaxError, match=r"no task 'mime'; did you mean 'mine'\?"):
        make_task("mime")
    assert TASKS.own().keys() == {"mine"}


def test_own_tokenizer_is_saved_and_loaded_by_its_kind(tmp_path):
    Letters().save(tmp_path)
    with pytest.raises(TokenizerError, match=r"kind 'letters' .* \(the module test_extensions\)"):
        load_tokenizer(tmp_path)
    bertjax.register_tokenizer(Letters)
    loaded = load_tokenizer(tmp_path)
    assert (type(loaded), loaded.hash) == (Letters, Letters().hash)
    ids, lengths = loaded.encode_sentences(["abc", "", "ca"])
    assert (ids.tolist(), lengths.tolist()) == ([5, 6, 7, 7, 5], [3, 0, 2])
    assert (ids.dtype, lengths.dtype) == (np.uint16, np.int64)
    assert loaded.encode_sentences([])[0].tolist() == []
    description = tmp_path / "bertjax_tokenizer.json"
    metadata = json.loads(description.read_text())
    description.write_text(json.dumps(metadata | {"hash": "0"}))
    with pytest.raises(TokenizerError, match="the tokenizer's hash is"):
        load_tokenizer(tmp_path)
    assert TOKENIZERS.own() == {"letters": Letters}


def test_tokenizers_of_bertjax_do_not_say_a_module(tmp_path):
    WordPieceTokenizer([*SPECIAL_PIECES, "a"], lower_case=True).save(tmp_path)
    assert "module" not in json.loads((tmp_path / "bertjax_tokenizer.json").read_text())


def test_what_an_own_tokenizer_cannot_do_is_an_error(tmp_path):
    with pytest.raises(TokenizerError, match=r"kind 'letters' do not say where .* squad and ner"):
        OffsetEncoder(Letters()).encode("abc")
    weights = Weights("own", ModelConfig(vocab_size=8, head="encoder"), {}, Letters(), (), None)
    with pytest.raises(bertjax.BertjaxError, match="kind 'letters' have no Hugging Face form"):
        write_folder(weights, tmp_path / "hf")


class Linear(nn.Module):
    """A layer with one product, which shows nothing of what is inside."""

    config: ModelConfig

    @nn.compact
    def __call__(self, hidden_states, visibility, row_keys=None):
        return dense(self.config, self.config.hidden_size, "linear")(hidden_states)


def test_an_encoder_of_other_layers_encodes_and_cannot_be_inspected():
    without = tuple(path for path in TABLE if path.startswith("encoder/"))
    lines = dense_parameters("encoder/layer_*/linear", ("hidden_size",) * 2, ("embed", None), "")
    bertjax.register_encoder(EncoderVariant("linear", Linear, without=without), lines)
    config = ModelConfig(8, 4, 2, 2, 8, 16, head="encoder", encoder="linear", dtype="float32")
    params = init_params(config, 0)
    found = {path: leaf.shape for path, leaf in flatten(params).items()}
    assert found == shapes(config)
    bert = Encoder(config, params, Letters())
    hidden = bert.encode("abc").hidden_states
    embeddings = Encoder(dataclasses.replace(config, num_layers=1), params, Letters())
    one = embeddings.encode("abc").hidden_states
    layer = params["encoder"]["layer_1"]["linear"]
    np.testing.assert_allclose(hidden, one @ layer["kernel"] + layer["bias"], rtol=1e-5)
    with pytest.raises(ConfigError, match=r"model.encoder = 'linear': its layers do not show"):
        bert.inspect("abc")


def test_a_recipe_that_registers_is_loaded_again(tmp_path):
    recipe = tmp_path / "mine.py"
    recipe.write_text(
        "import bertjax\n"
        "from bertjax.config import ModelConfig\n"
        "from bertjax.encoders import EncoderVariant\n"
        "class Layer: pass\n"
        "bertjax.register_encoder(EncoderVariant('mine', Layer), replace=True)\n"
        "def get_config():\n"
        "    return bertjax.Config(num_steps=20_000, model=ModelConfig(encoder='mine'))\n"
    )
    validate(bertjax.load_recipe(str(recipe)))
    first = ENCODERS["mine"]
    validate(bertjax.load_recipe(str(recipe)))
    assert ENCODERS["mine"] != first
