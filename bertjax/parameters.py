"""Every parameter of a model, described once.

This table says how a parameter is split over a mesh, whether it is decayed, what it costs, and its
names in other programs. A parameter without a line here is refused everywhere. Paths are a public
format: see docs/design/model.md.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from bertjax.config import ModelConfig
from bertjax.encoders import ENCODERS
from bertjax.heads import HEADS
from bertjax.registry import Registry


class Parameter(NamedTuple):
    """One line: a parameter, or the same parameter of every layer.

    Attributes:
      sizes: of its dimensions, [in, out] for a kernel; fields of `ModelConfig`, or numbers.
      axes: logical axis of each dimension, see `bertjax.parallel.partition`; None = never split.
      is_decayed: whether weight decay and LAMB's trust ratio apply.
      factor: number of vectors per row that a matrix product multiplies it by: "tokens",
        "predictions" or "pairs"; "" = it is in no matrix product.
      hugging_face: its name in transformers, where kernels are [out, in]; "" = it has none.
      tf1: its name in google-research/bert, where `output_weights` are [out, in]; "" = none.
      encoder: the only value of `config.model.encoder` for which a model has it; "" = any.
    """

    sizes: tuple[str | int, ...]
    axes: tuple[str | None, ...]
    is_decayed: bool
    factor: str = ""
    hugging_face: str = ""
    tf1: str = ""
    encoder: str = ""

    def shape(self, config: ModelConfig) -> tuple[int, ...]:
        """The shape in a model."""
        return tuple(getattr(config, n) if isinstance(n, str) else n for n in self.sizes)


def _table(path: str, size: str, axis: str | None, factor: str = "") -> dict[str, Parameter]:
    name = f"bert/embeddings/{path}_embeddings"
    axes = (axis, "embed")
    names = f"{name.replace('/', '.')}.weight", name
    line = Parameter((size, "hidden_size"), axes, True, factor, *names)
    return {f"embeddings/{path}/embedding": line}


def _named(folder: str, separator: str, leaf: str) -> str:
    """A name in another program, or "" if the folder has no name there."""
    return folder and f"{folder}{separator}{leaf}"


def _layer_norm(path: str, hugging_face: str) -> dict[str, Parameter]:
    tf1 = hugging_face.replace("encoder.layer.", "encoder.layer_").replace(".", "/")
    return {
        f"{path}/{ours}": Parameter(
            ("hidden_size",),
            (None,),
            False,
            "",
            _named(hugging_face, ".", theirs),
            _named(tf1, "/", old),
        )
        for ours, theirs, old in (("scale", "weight", "gamma"), ("bias", "bias", "beta"))
    }


def dense_parameters(
    path: str,
    sizes: tuple[str | int, str | int],
    axes: tuple[str | None, str | None],
    factor: str,
    hugging_face: str = "",
    tf1: tuple[str, str] | None = None,
) -> dict[str, Parameter]:
    """The lines of a dense layer: kernel [in, out] and bias [out].

    Args:
      path: of its folder here.
      sizes: (in, out), as in `Parameter`.
      axes: of the kernel, as in `Parameter`.
      factor: of the kernel, as in `Parameter`.
      hugging_face: its name there; "" = it has none, and by default none in TF1.
      tf1: names of kernel and bias; None = those of Hugging Face, with slashes.
    """
    old = hugging_face.replace("encoder.layer.", "encoder.layer_").replace(".", "/")
    kernel, bias = tf1 or (_named(old, "/", "kernel"), _named(old, "/", "bias"))
    weight, vector = _named(hugging_face, ".", "weight"), _named(hugging_face, ".", "bias")
    # Biases are split where their activations are; those of the hidden states are whole.
    bias_axes = (axes[1] if axes[1] != "embed" else None,)
    return {
        f"{path}/kernel": Parameter(sizes, axes, True, factor, weight, kernel),
        f"{path}/bias": Parameter(sizes[1:], bias_axes, False, "", vector, bias),
    }


def _output_layer(
    path: str, size: str | int, factor: str, hugging_face: str, tf1: str | None
) -> dict[str, Parameter]:
    """The last layer of a head.

    Args:
      path: of its folder here.
      size: of the output, as in `Parameter`.
      factor: of the kernel, as in `Parameter`.
      hugging_face: its name in transformers; "" = it has none.
      tf1: the folder of `output_weights` and `output_bias`; None = it has no such names.
    """
    names = ("", "") if tf1 is None else (f"{tf1}output_weights", f"{tf1}output_bias")
    return dense_parameters(
        path, ("hidden_size", size), ("embed", None), factor, hugging_face, names
    )


_LAYER, _BERT_LAYER = "encoder/layer_*", "bert.encoder.layer.*"
_SQUARE = ("hidden_size", "hidden_size")

_BUILT_IN: dict[str, Parameter] = {
    **_table("word", "vocab_size", "vocab", factor="predictions"),  # it is the decoder too
    **_table("position", "max_positions", None),
    **_table("token_type", "num_token_types", None),
    **_layer_norm("embeddings/layer_norm", "bert.embeddings.LayerNorm"),
    **{
        path: line
        for name in ("query", "key", "value")
        for path, line in dense_parameters(
            f"{_LAYER}/attention/{name}",
            _SQUARE,
            ("embed", "heads"),
            "tokens",
            f"{_BERT_LAYER}.attention.self.{name}",
        ).items()
    },
    **dense_parameters(
        f"{_LAYER}/attention/output",
        _SQUARE,
        ("heads", "embed"),
        "tokens",
        f"{_BERT_LAYER}.attention.output.dense",
    ),
    **_layer_norm(f"{_LAYER}/attention_layer_norm", f"{_BERT_LAYER}.attention.output.LayerNorm"),
    **dense_parameters(
        f"{_LAYER}/mlp/intermediate",
        ("hidden_size", "intermediate_size"),
        ("embed", "mlp"),
        "tokens",
        f"{_BERT_LAYER}.intermediate.dense",
    ),
    **dense_parameters(
        f"{_LAYER}/mlp/output",
        ("intermediate_size", "hidden_size"),
        ("mlp", "embed"),
        "tokens",
        f"{_BERT_LAYER}.output.dense",
    ),
    **_layer_norm(f"{_LAYER}/mlp_layer_norm", f"{_BERT_LAYER}.output.LayerNorm"),
    **dense_parameters("pooler", _SQUARE, ("embed", None), "pairs", "bert.pooler.dense"),
    **dense_parameters(
        "mlm_head/dense",
        _SQUARE,
        ("embed", None),
        "predictions",
        "cls.predictions.transform.dense",
    ),
    **_layer_norm("mlm_head/layer_norm", "cls.predictions.transform.LayerNorm"),
    "mlm_head/output/bias": Parameter(
        ("vocab_size",),
        ("vocab",),
        False,
        "",
        "cls.predictions.bias",
        "cls/predictions/output_bias",
    ),
    **_output_layer("nsp_head", 2, "pairs", "cls.seq_relationship", "cls/seq_relationship/"),
    **_output_layer("classification_head", "num_labels", "pairs", "classifier", ""),
    **_output_layer("span_head", 2, "tokens", "qa_outputs", "cls/squad/"),
    **_output_layer("tagging_head", "num_labels", "tokens", "classifier", None),
}

# Path -> line; * is the number of the layer.
TABLE = Registry("parameter", "register_head or register_encoder", _BUILT_IN)


def nest(leaves: Iterable[tuple[Sequence[str], Any]]) -> dict[str, Any]:
    """Nested dicts of leaves.

    Args:
      leaves: each with the keys that lead to it, from the root down.
    """
    tree: dict[str, Any] = {}
    for (*parents, name), leaf in leaves:
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = leaf
    return tree


def part(path: str) -> str:
    """The part of the model of a parameter: `embeddings`, `encoder`, `pooler` or a head."""
    return path.split("/")[0]


def has_head(config: ModelConfig) -> bool:
    """Whether the model has a head, apart from a pooler."""
    return bool(HEADS[config.head].layers)


def parameters(config: ModelConfig) -> dict[str, Parameter]:
    """The parameters of a model by path; names in other programs have the layer's number."""
    parts = {"embeddings", "encoder", *HEADS[config.head].layers}
    parts |= {"pooler"} if config.pooler else set()
    parts -= set() if config.next_sentence else {"nsp_head"}
    found: dict[str, Parameter] = {}
    for is_layers, lines in itertools.groupby(TABLE.items(), lambda item: "*" in item[0]):
        kept = [
            (path, line)
            for path, line in lines
            if part(path) in parts
            and line.encoder in ("", config.encoder)
            and path not in ENCODERS[config.encoder].without
        ]
        for index in range(config.num_layers if is_layers else 1):
            for path, line in kept:
                found[path.replace("*", str(index))] = line._replace(
                    hugging_face=line.hugging_face.replace("*", str(index)),
                    tf1=line.tf1.replace("*", str(index)),
                )
    return found


def shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Shapes of a model's parameters by path."""
    return {path: line.shape(config) for path, line in parameters(config).items()}


def line_of(path: str) -> Parameter:
    """The line of the parameter at a path, for any model.

    Raises:
      ValueError: the table has none.
    """
    line = TABLE.get(_pattern(path))
    if line is None:
        raise ValueError(
            f"parameter {path!r} is not in bertjax.parameters.TABLE: give it a line there, which "
            "says how it is split, decayed and called elsewhere; for a head or an encoder of your "
            "own in parameters= of register_head or register_encoder"
        )
    return line


def is_of_layer(path: str) -> bool:
    """Whether a parameter belongs to a layer of a stack, the encoder's or another."""
    return "*" in _pattern(path)


def _pattern(path: str) -> str:
    """The path with * for the number of the layer, as in `TABLE`."""
    return re.sub(r"(?<=/layer_)\d+(?=/)", "*", path)


def level(path: str) -> int | None:
    """The level of a parameter: 0 in the embeddings, i + 1 in layer i, None above."""
    if layer := re.match(r"encoder/layer_(\d+)/", path):
        return int(layer[1]) + 1
    return 0 if part(path) == "embeddings" else None


def products(config: ModelConfig, length: int, max_predictions: int, num_pairs: int = 1) -> int:
    """Multiplications of a row's activations by parameters, in one forward pass.

    Args:
      config: of the model.
      length: tokens of the row, padding included.
      max_predictions: largest number of masked positions of the row; not read for a head that
        predicts the next token.
      num_pairs: largest number of pairs of the row.
    """
    head, lines = HEADS[config.head], parameters(config)
    reads_pooled = head.reads_pooled(config.next_sentence)
    predictions = length if head.predicts_next else max_predictions
    times = {
        "tokens": length,
        "predictions": predictions if "masked_positions" in head.inputs else 0,
        # Pre-training without next sentence has a pooler, but does not run it.
        "pairs": 0 if head.trained_on == "store" and not reads_pooled else num_pairs,
        "": 0,
    }
    return sum(times[line.factor] * math.prod(line.shape(config)) for line in lines.values())


def kept_values(config: ModelConfig) -> int:
    """Values per token that a layer keeps for the backward pass, without attention's.

    They are the inputs of its products (a shared input counts once) and the outputs of products
    that are not hidden states.
    """
    layer = [
        (path.split("/")[2], line)  # the sublayer
        for path, line in parameters(config).items()
        if path.startswith("encoder/layer_0/") and line.factor
    ]
    inputs = {(sublayer, line.axes[0]): line.shape(config)[0] for sublayer, line in layer}
    outputs = [line.shape(config)[1] for _, line in layer if line.axes[1] != "embed"]
    return sum(inputs.values()) + sum(outputs)
