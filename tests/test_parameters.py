"""The table of parameters against the models, and what reads it."""

import dataclasses
import re

import numpy as np
import pytest

from bertjax.config import Config, ModelConfig, Phase
from bertjax.models import abstract_params
from bertjax.parallel.partition import RULES
from bertjax.parameters import (
    TABLE,
    is_of_layer,
    kept_values,
    level,
    line_of,
    parameters,
    shapes,
)
from bertjax.training.compilation import activation_bytes
from bertjax.weights.hugging_face import from_bertjax, to_bertjax
from bertjax.weights.weights import WeightsError, flatten, unflatten

# No two sizes alike, so that a shape says which they are.
SMALL = ModelConfig(
    vocab_size=50, hidden_size=8, num_layers=11, num_heads=2, intermediate_size=12, max_positions=9
)
HEADS = ("pretraining", "encoder", "classification", "regression", "span", "tagging")
MODELS = [
    dataclasses.replace(
        SMALL, head=head, pooler=pooler, next_sentence=pooler and next_sentence, num_labels=3
    )
    for head in HEADS
    for pooler in (True, False)
    for next_sentence in (True, False)
    if pooler or head not in ("classification", "regression")
]


def arrays(config: ModelConfig) -> dict:
    """A tree of a model's parameters, each of them of its own value."""
    return unflatten(
        {
            path: np.full(shape, value, np.float32)
            for value, (path, shape) in enumerate(shapes(config).items())
        }
    )


@pytest.mark.parametrize("config", MODELS, ids=lambda c: f"{c.head}-{c.pooler}-{c.next_sentence}")
def test_the_table_is_what_the_models_have(config):
    expected = {path: leaf.shape for path, leaf in flatten(abstract_params(config)).items()}
    assert shapes(config) == expected


def test_every_line_is_of_some_model_and_fits_itself():
    used = {re.sub(r"layer_\d+", "layer_*", path) for model in MODELS for path in shapes(model)}
    assert used == TABLE.keys()
    for path, line in TABLE.items():
        assert len(line.axes) == len(line.sizes), path
        assert {axis for axis in line.axes if axis} <= RULES.keys(), path
        assert line.factor in ("tokens", "predictions", "pairs", ""), path
        assert not line.factor or len(line.sizes) == 2, path


@pytest.mark.parametrize("config", MODELS, ids=lambda c: f"{c.head}-{c.pooler}-{c.next_sentence}")
def test_names_elsewhere_are_of_one_parameter_each(config):
    lines = parameters(config)
    for names in (
        [line.hugging_face for line in lines.values() if line.hugging_face],
        [line.tf1 for line in lines.values() if line.tf1],
    ):
        assert len(set(names)) == len(names)
        assert not [name for name in names if "*" in name]


def test_a_parameter_without_a_line_is_refused():
    assert line_of("encoder/layer_10/mlp/output/kernel").axes == ("mlp", "embed")
    for path in ("encoder/layer_0/mlp/gate/kernel", "encoder/layer_x/mlp/output/kernel", "pooler"):
        with pytest.raises(ValueError, match=f"'{path}' is not in bertjax.parameters.TABLE"):
            line_of(path)


def test_a_stack_of_layers_may_lie_anywhere(monkeypatch):
    line = line_of("encoder/layer_10/mlp/output/kernel")
    monkeypatch.setitem(TABLE, "generator/encoder/layer_*/mlp/output/kernel", line)
    assert line_of("generator/encoder/layer_11/mlp/output/kernel") is line
    assert is_of_layer("generator/encoder/layer_11/mlp/output/kernel")
    assert is_of_layer("encoder/layer_0/mlp_layer_norm/scale")
    assert not is_of_layer("mlm_head/layer_norm/scale")
    assert level("generator/encoder/layer_11/mlp/output/kernel") is None


def test_levels_count_from_the_embeddings_up():
    found = [level(path) for path in shapes(SMALL)]
    assert found == sorted(found, key=lambda n: 99 if n is None else n)
    assert set(found) == {*range(12), None}
    assert level("encoder/layer_10/mlp/output/bias") == 11


def test_a_layer_keeps_what_its_products_need():
    """The inputs of attention, its output layer and both layers of the mlp; q, k and v; mlp's."""
    model = ModelConfig()
    d, f = model.hidden_size, model.intermediate_size
    assert kept_values(model) == (d + d + d + f) + (3 * d + f)
    phase = Phase(1, 128, 1, 20)
    config = Config(model=dataclasses.replace(model, dtype="bfloat16", attention="pallas"))
    logits = 3 * 4 * 20 * model.vocab_size
    assert activation_bytes(config, phase) == 34 * d * 128 * model.num_layers + logits


def test_a_layer_keeps_nothing_of_lines_that_its_model_lacks(monkeypatch):
    lines = {path: x for path, x in parameters(SMALL).items() if "/attention/query/" not in path}
    before = kept_values(SMALL)
    monkeypatch.setattr("bertjax.parameters.parameters", lambda config: lines)
    assert kept_values(SMALL) == before - SMALL.hidden_size


def test_an_export_leaves_no_parameter_behind():
    config = MODELS[0]
    tensors = from_bertjax(arrays(config), config)
    assert flatten(to_bertjax(tensors, config)).keys() == shapes(config).keys()

    tree = arrays(config)
    tree["encoder"]["layer_0"]["mlp"]["gate"] = {"kernel": np.zeros((8, 12), np.float32)}
    with pytest.raises(WeightsError, match=r"runs/mine: .*\n  has no name there: .*/gate/kernel$"):
        from_bertjax(tree, config, "runs/mine")
    del tree["encoder"]["layer_0"]["mlp"]["gate"], tree["pooler"]["bias"]
    with pytest.raises(WeightsError, match=r"\n  missing: pooler/bias$"):
        from_bertjax(tree, config)


def test_a_parameter_without_a_name_elsewhere_is_refused_there(monkeypatch):
    """And does not take the place of another one without a name."""
    config = MODELS[0]
    tensors = from_bertjax(arrays(config), config)
    for leaf in ("scale", "bias"):
        line = TABLE[f"mlm_head/layer_norm/{leaf}"]._replace(hugging_face="", tf1="")
        monkeypatch.setitem(TABLE, f"encoder/final_layer_norm/{leaf}", line)
    unnamed = r"\n  has no name there: encoder/final_layer_norm/"
    with pytest.raises(WeightsError, match=f"{unnamed}bias{unnamed}scale$"):
        from_bertjax(arrays(config), config)
    with pytest.raises(WeightsError, match=f"{unnamed}scale{unnamed}bias\nCompare"):
        to_bertjax(tensors, config)


def test_an_import_leaves_no_tensor_behind():
    config = MODELS[0]
    tensors = from_bertjax(arrays(config), config)
    tensors["bert.encoder.layer.0.gate.weight"] = np.zeros((12, 8), np.float32)
    del tensors["bert.pooler.dense.bias"]
    with pytest.raises(WeightsError) as error:
        to_bertjax(tensors, config)
    assert "missing: bert.pooler.dense.bias" in str(error.value)
    assert "unexpected: bert.encoder.layer.0.gate.weight" in str(error.value)
