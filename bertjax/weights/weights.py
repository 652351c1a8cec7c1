"""A model as other programs left it: configuration, parameters in our tree, tokenizer, labels."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from bertjax.config import ModelConfig
from bertjax.data.tokenizers.vocabulary import Tokenizer
from bertjax.errors import BertjaxError


class WeightsError(BertjaxError, ValueError):
    """Weights that cannot be read or written; says which file or tensor, and what to do."""


@dataclasses.dataclass(frozen=True)
class Weights:
    """What is converted and loaded.

    Attributes:
      source: the folder or file, for messages.
      config: with the head that the parameters have.
      params: nested dict of float32 numpy arrays, kernels [in, out].
      tokenizer: None where the folder has none.
      labels: names of the labels of a classification or tagging head; empty where none are known.
      task: the fields of `TaskConfig` that a bertjax model was fine-tuned with; None for others.
    """

    source: str
    config: ModelConfig
    params: dict[str, Any]
    tokenizer: Tokenizer | None
    labels: tuple[str, ...] = ()
    task: Mapping[str, Any] | None = None


def parameter_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Shapes of a model's parameters by path, as `bertjax.models.abstract_params`, without jax."""
    d, f = config.hidden_size, config.intermediate_size
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings/word/embedding": (config.vocab_size, d),
        "embeddings/position/embedding": (config.max_positions, d),
        "embeddings/token_type/embedding": (config.num_token_types, d),
    }

    def norm(path: str) -> None:
        shapes.update({f"{path}/scale": (d,), f"{path}/bias": (d,)})

    def dense(path: str, inputs: int, outputs: int) -> None:
        shapes.update({f"{path}/kernel": (inputs, outputs), f"{path}/bias": (outputs,)})

    norm("embeddings/layer_norm")
    for index in range(config.num_layers):
        layer = f"encoder/layer_{index}"
        for name in ("query", "key", "value", "output"):
            dense(f"{layer}/attention/{name}", d, d)
        norm(f"{layer}/attention_layer_norm")
        dense(f"{layer}/mlp/intermediate", d, f)
        dense(f"{layer}/mlp/output", f, d)
        norm(f"{layer}/mlp_layer_norm")
    if config.pooler:
        dense("pooler", d, d)
    if config.head == "pretraining":
        dense("mlm_head/dense", d, d)
        norm("mlm_head/layer_norm")
        shapes["mlm_head/output/bias"] = (config.vocab_size,)
        if config.next_sentence:
            dense("nsp_head", d, 2)
    elif config.head in ("classification", "regression"):
        dense("classification_head", d, config.num_labels)
    elif config.head == "span":
        dense("span_head", d, 2)
    elif config.head == "tagging":
        dense("tagging_head", d, config.num_labels)
    return shapes


def to_tree(
    tensors: Mapping[str, np.ndarray],
    names: Mapping[str, str],
    transposed: Iterable[str],
    config: ModelConfig,
    source: str,
) -> dict[str, Any]:
    """Puts other people's tensors into our tree.

    Args:
      tensors: by their names; all of them, and no others, must be parameters.
      names: their name for each path of the model.
      transposed: paths whose tensors lie the other way round, [out, in].
      config: of the model.
      source: for messages.

    Returns:
      Nested dict of arrays in the dtype that they came in. Transposed ones are views.

    Raises:
      WeightsError: tensors are missing, unexpected or of another shape; lists them by name.
    """
    turned = set(transposed)
    shapes = parameter_shapes(config)
    faults = [f"missing: {names[path]}" for path in shapes if names[path] not in tensors]
    faults += [f"unexpected: {name}" for name in sorted(set(tensors) - set(names.values()))]
    params: dict[str, Any] = {}
    for path, shape in shapes.items():
        tensor = tensors.get(names[path])
        if tensor is None:
            continue
        expected = shape[::-1] if path in turned else shape
        if tensor.shape != expected:
            faults.append(f"misshapen: {names[path]} is {tensor.shape}, expected {expected}")
        put(params, path, tensor.T if path in turned else tensor)
    if faults:
        more = f"\n  and {len(faults) - 20} more" if len(faults) > 20 else ""
        raise WeightsError(
            f"{source}: not the tensors of a BERT with {config.num_layers} layers and the head "
            f"{config.head!r}:\n  " + "\n  ".join(faults[:20]) + more + "\nCompare the "
            "configuration file beside the weights with them"
        )
    return params


def put(tree: dict[str, Any], path: str, leaf: Any) -> None:
    """Puts a leaf at a path of a nested dict."""
    *parents, name = path.split("/")
    for parent in parents:
        tree = tree.setdefault(parent, {})
    tree[name] = leaf


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The leaves of nested dicts by path."""
    leaves: dict[str, Any] = {}
    for name, node in tree.items():
        path = f"{prefix}/{name}" if prefix else name
        leaves |= flatten(node, path) if isinstance(node, Mapping) else {path: node}
    return leaves
