"""A model from another program: configuration, bertjax's parameters, tokenizer, labels."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from bertjax.config import ModelConfig
from bertjax.data.tokenizers.vocabulary import Tokenizer
from bertjax.errors import BertjaxError
from bertjax.parameters import nest, shapes


class WeightsError(BertjaxError, ValueError):
    """Weights that cannot be read or written; says which file or tensor, and what to do."""


class Name(NamedTuple):
    """The name of a parameter in another program, and whether it is transposed there.

    An empty text means that it has no such parameter.
    """

    text: str
    is_turned: bool


@dataclasses.dataclass(frozen=True)
class Weights:
    """A model as it is converted and loaded.

    Attributes:
      source: the folder or file, for messages.
      config: with the head of the parameters.
      params: nested dict of float32 numpy arrays, kernels [in, out].
      tokenizer: None if the folder has none.
      labels: names of the labels of a classification or tagging head; empty if not known.
      task: the fields of `TaskConfig` that a bertjax model was fine-tuned with; None for others.
    """

    source: str
    config: ModelConfig
    params: dict[str, Any]
    tokenizer: Tokenizer | None
    labels: tuple[str, ...] = ()
    task: Mapping[str, Any] | None = None


def to_tree(
    tensors: Mapping[str, np.ndarray], names: Mapping[str, Name], config: ModelConfig, source: str
) -> dict[str, Any]:
    """Converts named tensors of another program to bertjax's tree.

    Args:
      tensors: by their names; all of them, and no others, must be parameters.
      names: of each path of the model.
      config: of the model.
      source: for messages.

    Returns:
      Nested dict of arrays with unchanged dtypes. Transposed ones are views.

    Raises:
      WeightsError: tensors are missing, unexpected or of another shape, or parameters of the model
        have no name there; lists them by name.
    """
    theirs = {name.text for name in names.values() if name.text}
    faults = [f"has no name there: {path}" for path, name in names.items() if not name.text]
    faults += [f"missing: {name}" for name in sorted(theirs - tensors.keys())]
    faults += [f"unexpected: {name}" for name in sorted(tensors.keys() - theirs)]
    leaves: dict[str, np.ndarray] = {}
    for path, shape in shapes(config).items():
        name, is_turned = names[path]
        tensor = tensors.get(name)
        if tensor is None:
            continue
        expected = shape[::-1] if is_turned else shape
        if tensor.shape != expected:
            faults.append(f"misshapen: {name} is {tensor.shape}, expected {expected}")
        leaves[path] = tensor.T if is_turned else tensor
    if faults:
        raise WeightsError(
            f"{source}: not the tensors of a BERT with {config.num_layers} layers and the head "
            f"{config.head!r}:\n  {_listed(faults)}\nCompare the configuration file beside the "
            "weights with them"
        )
    return unflatten(leaves)


def from_tree(
    params: Mapping[str, Any], names: Mapping[str, Name], config: ModelConfig, source: str
) -> dict[str, np.ndarray]:
    """Bertjax's tree as tensors of another program, by name; the inverse of `to_tree`.

    Args:
      params: all parameters of the model, and no others.
      names: of each path of the model.
      config: of the model.
      source: for messages.

    Raises:
      WeightsError: the tree has a parameter without a name there, or lacks one; lists them by path.
    """
    leaves, named = flatten(params), {path for path, name in names.items() if name.text}
    faults = [f"has no name there: {path}" for path in sorted(leaves.keys() - named)]
    faults += [f"missing: {path}" for path in sorted(names.keys() - leaves.keys())]
    if faults:
        raise WeightsError(
            f"{source}: not the parameters of a BERT with {config.num_layers} layers and the head "
            f"{config.head!r}, which alone can be written:\n  {_listed(faults)}"
        )
    return {
        name: np.ascontiguousarray(leaves[path].T if is_turned else leaves[path])
        for path, (name, is_turned) in names.items()
    }


def _listed(faults: list[str]) -> str:
    more = f"\n  and {len(faults) - 20} more" if len(faults) > 20 else ""
    return "\n  ".join(faults[:20]) + more


def unflatten(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """Nested dicts of leaves by path."""
    return nest((path.split("/"), leaf) for path, leaf in leaves.items())


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The leaves of nested dicts by path."""
    leaves: dict[str, Any] = {}
    for name, node in tree.items():
        path = f"{prefix}/{name}" if prefix else name
        leaves |= flatten(node, path) if isinstance(node, Mapping) else {path: node}
    return leaves
