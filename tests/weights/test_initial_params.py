"""Where parameters come from when a run starts with another model's."""

import dataclasses
import logging

import jax
import numpy as np
import pytest
from hugging_face_goldens import FOLDER

from bertjax.config import ConfigError, MeshConfig, ModelConfig
from bertjax.config.setting import setting
from bertjax.models import abstract_params, init_params
from bertjax.parallel.sharding import make_mesh, parameter_shardings
from bertjax.weights.conversion import convert_checkpoint
from bertjax.weights.hugging_face_folder import read_folder
from bertjax.weights.initial_params import _check_same_model, initial_params
from bertjax.weights.weights import flatten

HASH = read_folder(FOLDER / "encoder").tokenizer.hash
BASE = dataclasses.replace(read_folder(FOLDER / "pretraining").config, dtype="float32")


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("initial") / "workdir"
    convert_checkpoint(FOLDER / "pretraining", folder)
    return folder


def wanted_by(model):
    shapes = abstract_params(model)
    shardings = parameter_shardings(shapes, make_mesh(MeshConfig()))
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        shapes,
        shardings,
    )


def start(init_from, model, tokenizer_hash=HASH, labels=()):
    abstract = wanted_by(model)
    found = initial_params(
        init_from, model, abstract, seed=5, tokenizer_hash=tokenizer_hash, labels=labels
    )
    assert jax.tree.structure(found) == jax.tree.structure(abstract)
    for leaf, expected in zip(jax.tree.leaves(found), jax.tree.leaves(abstract), strict=True):
        assert leaf.sharding == expected.sharding
    return flatten(found)


def messages(caplog, level):
    return [r.getMessage() for r in caplog.records if r.levelno == level]


def assert_taken(found, source, parts):
    theirs = flatten(read_folder(FOLDER / source).params)
    for path, leaf in theirs.items():
        if path.split("/")[0] in parts:
            np.testing.assert_array_equal(found[path], leaf, err_msg=path)


def assert_drawn(found, model, parts):
    drawn = flatten(init_params(model, 5))
    for path, leaf in found.items():
        if path.split("/")[0] in parts:
            # Compiled there, not here: the last bit may differ.
            np.testing.assert_allclose(leaf, drawn[path], rtol=1e-6, err_msg=path)


ENCODER = {"embeddings", "encoder", "pooler"}


def test_a_whole_model_is_taken_whole(caplog):
    with caplog.at_level(logging.INFO, "bertjax"):
        found = start(f"hf:{FOLDER / 'pretraining'}", BASE)
    assert_taken(found, "pretraining", ENCODER | {"mlm_head", "nsp_head"})
    assert not messages(caplog, logging.WARNING)


@pytest.mark.slow
def test_heads_that_the_folder_lacks_are_drawn_with_one_warning(caplog):
    found = start(f"hf:{FOLDER / 'encoder'}", BASE)
    assert_taken(found, "encoder", ENCODER)
    assert_drawn(found, BASE, {"mlm_head", "nsp_head"})
    assert messages(caplog, logging.WARNING) == [
        "initialized from seed 5, because the source lacks them: mlm_head, nsp_head"
    ]


@pytest.mark.parametrize("source", ["hf", "workdir"])
def test_pre_training_becomes_classification(source, workdir, caplog):
    model = dataclasses.replace(BASE, head="classification", num_labels=2)
    path = f"hf:{FOLDER / 'pretraining'}" if source == "hf" else str(workdir)
    name = path if source == "hf" else workdir / "checkpoints" / "step_00000000"
    with caplog.at_level(logging.INFO, "bertjax"):
        found = start(path, model)
    assert_taken(found, "pretraining", ENCODER)
    assert_drawn(found, model, {"classification_head"})
    assert messages(caplog, logging.INFO) == [
        f"starting at step 0 with the parameters of {name}, without its mlm_head, nsp_head"
    ]
    assert "classification_head" in messages(caplog, logging.WARNING)[0]


def test_a_head_of_another_number_of_labels_is_drawn():
    model = dataclasses.replace(BASE, head="classification", num_labels=2)
    found = start(f"hf:{FOLDER / 'classification'}", model)
    assert_taken(found, "classification", ENCODER)
    assert_drawn(found, model, {"classification_head"})


@pytest.mark.parametrize("source", ["hf", "workdir"])
def test_a_head_that_gives_a_number_is_taken(source, tmp_path):
    path = f"hf:{FOLDER / 'regression'}"
    if source == "workdir":
        convert_checkpoint(FOLDER / "regression", tmp_path / "run")
        path = str(tmp_path / "run")
    model = dataclasses.replace(BASE, head="regression", num_labels=1)
    assert_taken(start(path, model), "regression", ENCODER | {"classification_head"})


@pytest.mark.parametrize("source", ["hf", "workdir"])
def test_a_head_is_taken_by_the_names_of_its_labels(source, tmp_path, caplog):
    path = f"hf:{FOLDER / 'classification'}"
    if source == "workdir":
        convert_checkpoint(FOLDER / "classification", tmp_path / "run")
        path = str(tmp_path / "run")
    model = dataclasses.replace(BASE, head="classification", num_labels=3)
    found = start(path, model, labels=("no", "yes", "perhaps"))
    assert_taken(found, "classification", ENCODER | {"classification_head"})
    assert not messages(caplog, logging.WARNING)

    found = start(path, model, labels=("no", "perhaps", "yes"))
    theirs = flatten(read_folder(FOLDER / "classification").params)
    for name in ("kernel", "bias"):
        ours = found[f"classification_head/{name}"]
        np.testing.assert_array_equal(
            ours, theirs[f"classification_head/{name}"][..., [0, 2, 1]], err_msg=name
        )

    found = start(path, model, labels=("bad", "good", "ugly"))
    assert_taken(found, "classification", ENCODER)
    assert_drawn(found, model, {"classification_head"})
    assert messages(caplog, logging.WARNING)[0] == (
        "its classification_head is left: it is for no, yes, perhaps, not for bad, good, ugly"
    )


@pytest.mark.parametrize("source", ["hf", "workdir"])
def test_another_model_is_refused_field_by_field(source, workdir):
    model = dataclasses.replace(BASE, gelu="tanh", layer_norm_eps=1e-6, num_heads=4)
    path = f"hf:{FOLDER / 'pretraining'}" if source == "hf" else str(workdir)
    with pytest.raises(ConfigError) as error:
        start(path, model)
    assert "model.gelu: 'erf' there, 'tanh' here" in str(error.value)
    assert "\n" not in str(error.value)
    assert (
        "Set --config.model.num_heads=2 --config.model.gelu=erf --config.model.layer_norm_eps=1e-12"
        in str(error.value)
    )


def test_models_may_differ_in_what_is_not_of_the_encoder():
    @dataclasses.dataclass
    class Variant(ModelConfig):
        generator: int = setting(4, not_of_encoder=True)
        rotary: bool = setting(False)

    _check_same_model("runs/a", Variant(), Variant(generator=1))
    with pytest.raises(ConfigError, match=r"model\.rotary: False there, True here"):
        _check_same_model("runs/a", Variant(), Variant(rotary=True))


def test_another_tokenizer_is_refused(workdir):
    path = f"hf:{FOLDER / 'pretraining'}"
    with pytest.raises(ConfigError, match=f"--tokenizer={path}"):
        start(path, BASE, tokenizer_hash="0" * 64)
    with pytest.raises(ConfigError, match="with the tokenizer of that run"):
        start(str(workdir), BASE, tokenizer_hash="0" * 64)


def test_a_folder_that_cannot_be_read_is_a_setting_that_cannot_work(tmp_path):
    with pytest.raises(ConfigError, match=r"config\.init_from=hf:.*config\.json"):
        start(f"hf:{tmp_path}", BASE)
    with pytest.raises(ConfigError, match=r"config\.init_from=.*no checkpoint found"):
        start(str(tmp_path), BASE)
    folder = FOLDER / "pretraining"
    with pytest.raises(ConfigError, match=f"for a Hugging Face folder write hf:{folder}"):
        start(str(folder), BASE)


@pytest.mark.parametrize("change", ["more", "fewer"])
def test_an_encoder_with_other_parameters_is_refused(change):
    """Such as one with gates: drawing those, or leaving them, would spoil the others in silence."""
    wanted = wanted_by(BASE)
    if change == "more":
        wanted["encoder"]["layer_0"]["mlp"]["gate"] = {"kernel": wanted["pooler"]["kernel"]}
        expected = r"1 parameters differ, such as .*gate/kernel \(missing there, \(\d+, \d+\) here"
    else:
        del wanted["encoder"]["layer_1"]["mlp"]["output"]["bias"]
        expected = r"1 parameters differ, such as .*output/bias \(\(\d+,\) there, missing here"
    with pytest.raises(ConfigError, match=expected):
        initial_params(f"hf:{FOLDER / 'pretraining'}", BASE, wanted, seed=5, tokenizer_hash=HASH)
