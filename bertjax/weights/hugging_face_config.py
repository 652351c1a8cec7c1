"""Converts between config.json of a Hugging Face BERT and `ModelConfig`."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence
from typing import Any

from bertjax.config import Config, Gelu, ModelConfig, may_change
from bertjax.config.setting import setting_of
from bertjax.heads import ENCODER_ALONE, HEADS, NEXT_SENTENCE, Head, of_width
from bertjax.version import __version__
from bertjax.weights.weights import WeightsError

FIELDS = {  # bertjax: Hugging Face
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "intermediate_size": "intermediate_size",
    "max_positions": "max_position_embeddings",
    "num_token_types": "type_vocab_size",
    "dropout_rate": "hidden_dropout_prob",
    "attention_dropout_rate": "attention_probs_dropout_prob",
    "layer_norm_eps": "layer_norm_eps",
    "initializer_range": "initializer_range",
}
GELU: dict[str, Gelu] = {  # Hugging Face: bertjax
    "gelu": "erf",
    "gelu_python": "erf",
    "gelu_new": "tanh",
    "gelu_pytorch_tanh": "tanh",
}
_HIDDEN_ACT = {"erf": "gelu", "tanh": "gelu_new"}
_REFUSED = {  # keys that must have this value, if they are present
    "model_type": "bert",
    "position_embedding_type": "absolute",
    "is_encoder_decoder": False,
    "add_cross_attention": False,
    "tie_word_embeddings": True,
    "chunk_size_feed_forward": 0,
}


def to_model_config(
    values: dict[str, Any], tensor_names: Collection[str], source: str
) -> tuple[ModelConfig, tuple[str, ...]]:
    """Reads config.json.

    Args:
      values: the file's content.
      tensor_names: of the weights: they decide which pre-training heads there are, and whether
        there is a pooler.
      source: the file, for messages.

    Returns:
      The configuration, with the head that the folder has, and the names of its labels.

    Raises:
      WeightsError: the model is not a BERT encoder, or has options that bertjax does not have;
        names the key, its value and the accepted value.
    """
    for key, expected in _REFUSED.items():
        found = values.get(key, expected)
        if found != expected:
            raise WeightsError(
                f"{source}: {key} is {found!r}; bertjax reads BERT encoders with {expected!r}"
            )
    if values.get("pruned_heads"):
        raise WeightsError(f"{source}: pruned_heads is not empty; bertjax has no pruned heads")
    hidden_act = values.get("hidden_act", "gelu")
    if hidden_act not in GELU:
        raise WeightsError(
            f"{source}: hidden_act is {hidden_act!r}; expected one of {', '.join(GELU)}"
        )
    default = ModelConfig()
    fields = {ours: values.get(theirs, getattr(default, ours)) for ours, theirs in FIELDS.items()}
    for name, value in fields.items():
        kind = type(getattr(default, name))
        if kind is float and type(value) is int:
            fields[name] = float(value)
        elif type(value) is not kind:
            raise WeightsError(
                f"{source}: {FIELDS[name]} is {value!r}; expected the type {kind.__name__}"
            )
    known = {name.removeprefix("bert.") for name in tensor_names}
    head = _head(values, known, source)
    labels: tuple[str, ...] = ()
    if head.labels_have_names:
        labels = _labels(values, source)
    config = ModelConfig(
        **fields,
        gelu=GELU[hidden_act],
        head=head.name,
        next_sentence=NEXT_SENTENCE in head.verbs
        and (
            "cls.seq_relationship.weight" in known
            or values.get("architectures") == [head.architectures[0]]
        ),
        pooler=head.pooled == "always" or "pooler.dense.weight" in known,
        num_labels=len(labels) if head.labels_have_names else head.fewest_labels,
        direction="left_to_right" if values.get("is_decoder") else "bidirectional",
    )
    if head.predicts_next and not values.get("is_decoder"):
        raise WeightsError(
            f"{source}: the architecture is {head.architectures[0]!r}, and is_decoder is not true: "
            "such a model sees the token that it predicts; set is_decoder if it was trained so"
        )
    _check_pooled(config, source)
    if config.next_sentence and not config.pooler:
        raise WeightsError(
            f"{source}: the weights have cls.seq_relationship but no pooler (bert.pooler.dense), "
            "which it reads; save the whole model again"
        )
    return config, labels


def from_model_config(
    config: ModelConfig, labels: Sequence[str], tokenizer_hash: str, pad_id: int
) -> dict[str, Any]:
    """The content of config.json; bertjax's own entries are under the key "bertjax".

    Raises:
      WeightsError: the model has a head or an option that transformers' BERT does not have.
    """
    head = HEADS[config.head]
    if not head.architectures:
        raise WeightsError(
            f"the head {config.head!r} has no Hugging Face form; start a model from it (init_from) "
            f"with one of {', '.join(name for name, other in HEADS.items() if other.architectures)}"
        )
    for field in dataclasses.fields(config):
        name, value = field.name, getattr(config, field.name)
        # Architecture, labels and tensors determine the fields that do not belong to the encoder.
        is_said = name in FIELDS or name == "gelu" or setting_of(field).not_of_encoder
        if not (is_said or may_change(Config, f"model.{name}")) and value != field.default:
            raise WeightsError(
                f"model.{name} is {value!r}; transformers' BERT has {field.default!r} only, so "
                "that this model cannot be written as a Hugging Face folder"
            )
    _check_pooled(config, "the model")
    values: dict[str, Any] = {
        "architectures": [head.architectures[0 if config.next_sentence else -1]],
        "model_type": "bert",
        **{theirs: getattr(config, ours) for ours, theirs in FIELDS.items()},
        "hidden_act": _HIDDEN_ACT[config.gelu],
        "position_embedding_type": "absolute",
        "pad_token_id": pad_id,
    }
    if config.direction == "left_to_right":
        values["is_decoder"] = True
    if head.fewest_labels:
        names = labels or [f"LABEL_{i}" for i in range(config.num_labels)]
        values["id2label"] = {str(i): name for i, name in enumerate(names)}
        values["label2id"] = {name: i for i, name in enumerate(names)}
    if head.problem_type:
        values["problem_type"] = head.problem_type
    values["bertjax"] = {"version": __version__, "tokenizer_hash": tokenizer_hash}
    return values


def _head(values: dict[str, Any], tensor_names: Collection[str], source: str) -> Head:
    """The head, by the architecture; by the tensors for pre-training or no architecture."""
    architectures = values.get("architectures") or []
    known = dict.fromkeys(name for head in HEADS.values() for name in head.architectures)
    for name in architectures:
        if name not in known:
            raise WeightsError(
                f"{source}: the architecture is {name!r}; bertjax reads {', '.join(known)}"
            )
    name = architectures[0] if architectures else ""
    named = [head for head in HEADS.values() if name in head.architectures]
    if named and named[0].trained_on == "task":
        return named[0] if len(named) == 1 else _of_problem_type(named, values, source)
    # Published folders say BertForMaskedLM or BertModel and hold both pre-training heads.
    found = [head for head in HEADS.values() if head.hugging_face_tensor in tensor_names]
    # BertModel says nothing of a head.
    says_head = bool(named and named[0].layers)
    is_causal = named[0].predicts_next if says_head else bool(values.get("is_decoder"))
    pretrained = [head for head in found if head.trained_on == "store"]
    if fitting := [head for head in pretrained if head.predicts_next == is_causal]:
        return fitting[0]
    if named or not found:
        return named[0] if named else ENCODER_ALONE
    meant = list(dict.fromkeys(head.architectures[0] for head in found))
    if len(meant) > 1:
        tensor = found[0].hugging_face_tensor
        raise WeightsError(
            f"{source}: architectures is missing, and the weights have a {tensor.split('.')[0]}: "
            'say "architectures": ' + " or ".join(f'["{name}"]' for name in meant)
        )
    return found[0]


def _check_pooled(config: ModelConfig, source: str) -> None:
    """Refuses a left-to-right model whose pooled output is part of it.

    bertjax pools the last token of such a model. transformers pools [CLS], which sees no other.
    """
    head = HEADS[config.head]
    is_part = head.reads_pooled(config.next_sentence) or not head.layers
    if config.direction == "left_to_right" and config.pooler and is_part:
        raise WeightsError(
            f"{source}: is a left-to-right model (is_decoder) with a pooler, which reads the last "
            "token in bertjax and [CLS] in transformers, so that it cannot be converted; models "
            "with the heads causal, span and tagging can, and an encoder without a pooler"
        )


def _of_problem_type(heads: Sequence[Head], values: dict[str, Any], source: str) -> Head:
    """The head that config.json means, among those of one architecture."""
    problem_type, num_labels = values.get("problem_type"), len(_labels(values, source))
    if problem_type is None:  # then transformers trains one label with a squared loss
        return of_width(heads, num_labels)
    if problem_type not in (known := {head.problem_type: head for head in heads}):
        raise WeightsError(
            f"{source}: problem_type is {problem_type!r}; bertjax has {', '.join(known)}"
        )
    head = known[problem_type]
    if head.num_labels not in (0, num_labels):
        raise WeightsError(
            f"{source}: predicts {num_labels} numbers (problem_type is {problem_type}); bertjax's "
            f"{head.name} has one"
        )
    return head


def _labels(values: dict[str, Any], source: str) -> tuple[str, ...]:
    names = values.get("id2label")
    if names is None:
        return tuple(f"LABEL_{i}" for i in range(values.get("num_labels", 2)))
    try:
        by_id = {int(key): str(name) for key, name in names.items()}
        labels = tuple(by_id[id] for id in range(len(by_id)))
    except (AttributeError, KeyError, ValueError):
        raise WeightsError(
            f"{source}: id2label is {names!r}; expected the names of the labels 0, 1, 2, ..."
        ) from None
    if len(set(labels)) < len(labels):
        raise WeightsError(
            f"{source}: id2label is {names!r}, which has a name twice; give each label its own"
        )
    return labels
