"""Hugging Face's BERT: the names and shapes of transformers' `BertForPreTraining`.

A PyTorch linear layer computes x W^T, so its weight is [out, in] where ours is [in, out]; all other
tensors are the same. The decoder of masked tokens is tied: it appears here as the word table and
`cls.predictions.bias`. Those weights were trained with, or converted for, the erf form of GELU.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

# Our module: theirs. Tables and LayerNorms and dense layers differ in the names of their arrays.
ROOT_MODULES = {
    "embeddings/word": "bert.embeddings.word_embeddings",
    "embeddings/position": "bert.embeddings.position_embeddings",
    "embeddings/token_type": "bert.embeddings.token_type_embeddings",
    "embeddings/layer_norm": "bert.embeddings.LayerNorm",
    "pooler": "bert.pooler.dense",
    "mlm_head/dense": "cls.predictions.transform.dense",
    "mlm_head/layer_norm": "cls.predictions.transform.LayerNorm",
    "mlm_head/output": "cls.predictions",
    "nsp_head": "cls.seq_relationship",
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
# Copies of tied tensors, and a buffer that old files carry.
DUPLICATES = frozenset(
    {
        "cls.predictions.decoder.weight",
        "cls.predictions.decoder.bias",
        "bert.embeddings.position_ids",
    }
)


def parameter_names(num_layers: int) -> Iterator[tuple[str, str]]:
    """Yields (our path, their name) of every parameter of a model with so many layers."""
    modules = dict(ROOT_MODULES)
    for index in range(num_layers):
        for ours, theirs in LAYER_MODULES.items():
            modules[f"encoder/layer_{index}/{ours}"] = f"bert.encoder.layer.{index}.{theirs}"
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


def to_bertjax(tensors: Mapping[str, np.ndarray], num_layers: int) -> dict[str, Any]:
    """Turns the tensors of a `BertForPreTraining` state dict into our tree of parameters.

    Args:
      tensors: by their names; linear weights [out, in].
      num_layers: of the encoder.

    Returns:
      Nested dict of arrays, kernels [in, out], in the dtype that they came in. Kernels are views.

    Raises:
      ValueError: a tensor is missing, or one is left over.
    """
    names = dict(parameter_names(num_layers))
    missing = sorted(set(names.values()) - set(tensors))
    unknown = sorted(set(tensors) - set(names.values()) - DUPLICATES)
    if missing or unknown:
        raise ValueError(
            f"not the tensors of a BertForPreTraining with {num_layers} layers: "
            f"{len(missing)} missing {missing[:3]}, {len(unknown)} unknown {unknown[:3]}; "
            "check the number of layers and that the weights have both pre-training heads"
        )
    params: dict[str, Any] = {}
    for ours, theirs in names.items():
        *modules, leaf = ours.split("/")
        node = params
        for module in modules:
            node = node.setdefault(module, {})
        node[leaf] = tensors[theirs].T if leaf == "kernel" else tensors[theirs]
    return params
