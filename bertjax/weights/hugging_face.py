"""Converts tensors of transformers' `BertModel` and heads to bertjax's parameters and back.

`parameters.py` has the names. A PyTorch linear layer computes x W^T, so its weight is [out, in]
where bertjax has [in, out]; all other tensors are the same. The decoder of masked tokens is tied:
it consists of the word table and `cls.predictions.bias`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from bertjax.config import ModelConfig
from bertjax.parameters import has_head, parameters
from bertjax.weights.weights import Name, WeightsError, from_tree, to_tree

# Copies of tied tensors: the name of the copy, and of the original.
TIED = {
    "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
    "cls.predictions.decoder.bias": "cls.predictions.bias",
}
# A buffer in old files, with and without the prefix.
BUFFERS = ("bert.embeddings.position_ids", "embeddings.position_ids")


def parameter_names(config: ModelConfig) -> dict[str, Name]:
    """The Hugging Face name of every parameter of a model, by bertjax's path.

    With a head the encoder's names begin with "bert.", as in `BertForPreTraining`; without, as in
    `BertModel`, they do not.
    """
    prefix = "" if has_head(config) else "bert."
    return {
        path: Name(line.hugging_face.removeprefix(prefix), path.endswith("/kernel"))
        for path, line in parameters(config).items()
    }


def to_bertjax(
    tensors: Mapping[str, np.ndarray], config: ModelConfig, source: str = "Hugging Face weights"
) -> dict[str, Any]:
    """Converts the tensors of a state dict to bertjax's tree of parameters.

    Args:
      tensors: by their names, current or old (`gamma` and `beta`); linear weights [out, in].
      config: of the model; its head decides which tensors are required.
      source: for messages.

    Returns:
      Nested dict of arrays, kernels [in, out], with unchanged dtypes. Kernels are views.

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
    return to_tree(tensors, parameter_names(config), config, source)


def from_bertjax(
    params: Mapping[str, Any], config: ModelConfig, source: str = "parameters"
) -> dict[str, np.ndarray]:
    """Converts bertjax's tree to Hugging Face's tensors by name; the inverse of `to_bertjax`.

    Raises:
      WeightsError: the tree is not that of a BERT with the head of `config`.
    """
    return from_tree(params, parameter_names(config), config, source)


def _current_names(tensors: Mapping[str, Any], config: ModelConfig) -> dict[str, Any]:
    """The tensors by their names in `parameter_names`."""
    result = {}
    for name, tensor in tensors.items():
        name = name.replace("LayerNorm.gamma", "LayerNorm.weight")
        name = name.replace("LayerNorm.beta", "LayerNorm.bias")
        if not has_head(config):
            name = name.removeprefix("bert.")
        elif name.startswith(("embeddings.", "encoder.", "pooler.")):
            name = f"bert.{name}"
        result[name] = tensor
    return result
