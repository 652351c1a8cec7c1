"""Hugging Face's BERT: names and shapes of the tensors of transformers' `BertModel` and heads.

A PyTorch linear layer computes x W^T, so its weight is [out, in] where ours is [in, out]; all other
tensors are the same. The decoder of masked tokens is tied: it appears here as the word table and
`cls.predictions.bias`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from bertjax.config import ModelConfig
from bertjax.weights.weights import WeightsError, flatten, to_tree

# Our module: theirs. Tables and LayerNorms and dense layers differ in the names of their arrays.
ROOT_MODULES = {
    "embeddings/word": "embeddings.word_embeddings",
    "embeddings/position": "embeddings.position_embeddings",
    "embeddings/token_type": "embeddings.token_type_embeddings",
    "embeddings/layer_norm": "embeddings.LayerNorm",
    "pooler": "pooler.dense",
}
LAYER_MODULES = {
    "attention/query": "attention.self.query",
    "attention/key": "attention.self.key",
    "attention/value": "attention.self.value",
    "attention/output": "attention.output.dense",
    "attention_layer_norm": "attention.output.LayerNorm",
    "mlp/intermediate": "intermediate.dense",
    "mlp/output": "output.dense",
    "mlp_layer_norm": "output.LayerNorm",
}
HEAD_MODULES = {  # by `ModelConfig.head`
    "pretraining": {
        "mlm_head/dense": "cls.predictions.transform.dense",
        "mlm_head/layer_norm": "cls.predictions.transform.LayerNorm",
        "mlm_head/output": "cls.predictions",
        "nsp_head": "cls.seq_relationship",
    },
    "encoder": {},
    "classification": {"classification_head": "classifier"},
    "regression": {"classification_head": "classifier"},
    "span": {"span_head": "qa_outputs"},
    "tagging": {"tagging_head": "classifier"},
}
# Copies of tied tensors: theirs, and what it is a copy of.
TIED = {
    "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
    "cls.predictions.decoder.bias": "cls.predictions.bias",
}
# A buffer that old files carry, with and without the prefix.
BUFFERS = ("bert.embeddings.position_ids", "embeddings.position_ids")


def parameter_names(config: ModelConfig) -> Iterator[tuple[str, str]]:
    """Yields (our path, their name) of every parameter of a model.

    With a head the encoder's names begin with "bert.", as in `BertForPreTraining`; without, as in
    `BertModel`, they do not.
    """
    modules = dict(ROOT_MODULES)
    if not config.pooler:
        del modules["pooler"]
    for index in range(config.num_layers):
        for ours, theirs in LAYER_MODULES.items():
            modules[f"encoder/layer_{index}/{ours}"] = f"encoder.layer.{index}.{theirs}"
    if config.head != "encoder":
        modules = {ours: f"bert.{theirs}" for ours, theirs in modules.items()}
    modules |= HEAD_MODULES[config.head]
    if not config.next_sentence:
        modules.pop("nsp_head", None)
    for ours, theirs in modules.items():
        if theirs.endswith("_embeddings"):
            yield f"{ours}/embedding", f"{theirs}.weight"
        elif theirs.endswith("LayerNorm"):
            yield f"{ours}/scale", f"{theirs}.weight"
            yield f"{ours}/bias", f"{theirs}.bias"
        else:
            if ours != "mlm_head/output":  # tied: only a bias of its own
                yield f"{ours}/kernel", f"{theirs}.weight"
            yield f"{ours}/bias", f"{theirs}.bias"


def to_bertjax(
    tensors: Mapping[str, np.ndarray], config: ModelConfig, source: str = "Hugging Face weights"
) -> dict[str, Any]:
    """Turns the tensors of a state dict into our tree of parameters.

    Args:
      tensors: by their names, current or old (`gamma` and `beta`); linear weights [out, in].
      config: of the model; its head says which tensors there must be.
      source: for messages.

    Returns:
      Nested dict of arrays, kernels [in, out], in the dtype that they came in. Kernels are views.

    Raises:
      WeightsError: tensors are missing, unexpected or of another shape, all listed by name, or the
        decoder of masked tokens is not the word table.
    """
    tensors = _current_names(tensors, config)
    for copy, original in TIED.items():
        if copy in tensors and original in tensors:
            if not np.array_equal(tensors[copy], tensors[original]):
                raise WeightsError(
                    f"{source}: {copy} is not {original}; bertjax has no decoder of masked tokens "
                    "with parameters of its own (tie_word_embeddings: false)"
                )
            del tensors[copy]
    for name in BUFFERS:
        tensors.pop(name, None)
    names = dict(parameter_names(config))
    return to_tree(tensors, names, _transposed(names), config, source)


def from_bertjax(params: Mapping[str, Any], config: ModelConfig) -> dict[str, np.ndarray]:
    """Turns our tree into Hugging Face's tensors by name; the inverse of `to_bertjax`."""
    names = dict(parameter_names(config))
    leaves = flatten(params)
    turned = _transposed(names)
    return {
        theirs: np.ascontiguousarray(leaves[ours].T if ours in turned else leaves[ours])
        for ours, theirs in names.items()
    }


def _transposed(paths: Mapping[str, str]) -> set[str]:
    return {path for path in paths if path.endswith("/kernel")}


def _current_names(tensors: Mapping[str, Any], config: ModelConfig) -> dict[str, Any]:
    """The tensors by the names that `parameter_names` has for them."""
    result = {}
    for name, tensor in tensors.items():
        name = name.replace("LayerNorm.gamma", "LayerNorm.weight")
        name = name.replace("LayerNorm.beta", "LayerNorm.bias")
        if config.head == "encoder":
            name = name.removeprefix("bert.")
        elif name.startswith(("embeddings.", "encoder.", "pooler.")):
            name = f"bert.{name}"
        result[name] = tensor
    return result
