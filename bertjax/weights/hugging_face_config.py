"""config.json of a Hugging Face BERT and `ModelConfig`, both ways."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence
from typing import Any

from bertjax.config import Config, Gelu, HeadName, ModelConfig, may_change
from bertjax.version import __version__
from bertjax.weights.weights import WeightsError

FIELDS = {  # ours: theirs
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
GELU: dict[str, Gelu] = {  # theirs: ours
    "gelu": "erf",
    "gelu_python": "erf",
    "gelu_new": "tanh",
    "gelu_pytorch_tanh": "tanh",
}
# What config.json says by other keys, or the tensors.
_SAID = ("gelu", "head", "num_labels", "next_sentence", "pooler")
_HIDDEN_ACT = {"erf": "gelu", "tanh": "gelu_new"}
ARCHITECTURES = (
    "BertForPreTraining",
    "BertForMaskedLM",
    "BertModel",
    "BertForSequenceClassification",
    "BertForQuestionAnswering",
    "BertForTokenClassification",
)
_REFUSED = {  # what must have this value, where it is said
    "model_type": "bert",
    "position_embedding_type": "absolute",
    "is_decoder": False,
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
      tensor_names: of the weights: they say which of the pre-training heads there are, and whether
        there is a pooler.
      source: the file, for messages.

    Returns:
      The configuration, with the head that the folder has, and the names of its labels.

    Raises:
      WeightsError: the model is no BERT encoder, or has options that bertjax does not have; names
        the key, its value and what would be read.
    """
    for key, expected in _REFUSED.items():
        found = values.get(key, expected)
        if found != expected:
            raise WeightsError(
                f"{source}: {key} is {found!r}; bertjax reads BERT encoders with {expected!r}"
            )
    if values.get("pruned_heads"):
        raise WeightsError(f"{source}: pruned_heads is not empty; bertjax has no pruned heads")
    if values.get("problem_type") == "multi_label_classification":
        raise WeightsError(
            f"{source}: problem_type is 'multi_label_classification'; bertjax classifies into one "
            "label ('single_label_classification') or predicts a number ('regression')"
        )
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
    if head in ("classification", "tagging"):  # a number has no name
        labels = _labels(values, source)
    config = ModelConfig(
        **fields,
        gelu=GELU[hidden_act],
        head=head,
        next_sentence=head == "pretraining"
        and (
            "cls.seq_relationship.weight" in known
            or values.get("architectures") == ["BertForPreTraining"]
        ),
        pooler=head in ("classification", "regression") or "pooler.dense.weight" in known,
        num_labels=1 if head == "regression" else len(labels),
    )
    if config.next_sentence and not config.pooler:
        raise WeightsError(
            f"{source}: the weights have cls.seq_relationship but no pooler (bert.pooler.dense), "
            "which it reads; save the whole model again"
        )
    return config, labels


def from_model_config(
    config: ModelConfig, labels: Sequence[str], tokenizer_hash: str, pad_id: int
) -> dict[str, Any]:
    """The content of config.json; our own facts are under the key "bertjax".

    Raises:
      WeightsError: the model has an option that transformers' BERT does not have.
    """
    for field in dataclasses.fields(config):
        name, value = field.name, getattr(config, field.name)
        is_said = name in FIELDS or name in _SAID or may_change(Config, f"model.{name}")
        if not is_said and value != field.default:
            raise WeightsError(
                f"model.{name} is {value!r}; transformers' BERT has {field.default!r} only, so "
                "that this model cannot be written as a Hugging Face folder"
            )
    values: dict[str, Any] = {
        "architectures": [_architecture(config)],
        "model_type": "bert",
        **{theirs: getattr(config, ours) for ours, theirs in FIELDS.items()},
        "hidden_act": _HIDDEN_ACT[config.gelu],
        "position_embedding_type": "absolute",
        "pad_token_id": pad_id,
    }
    if config.head in ("classification", "regression", "tagging"):
        names = labels or [f"LABEL_{i}" for i in range(config.num_labels)]
        values["id2label"] = {str(i): name for i, name in enumerate(names)}
        values["label2id"] = {name: i for i, name in enumerate(names)}
    if config.head == "regression":
        values["problem_type"] = "regression"
    elif config.head == "classification":
        values["problem_type"] = "single_label_classification"
    values["bertjax"] = {"version": __version__, "tokenizer_hash": tokenizer_hash}
    return values


def _architecture(config: ModelConfig) -> str:
    if config.head == "pretraining":
        return "BertForPreTraining" if config.next_sentence else "BertForMaskedLM"
    return {
        "encoder": "BertModel",
        "classification": "BertForSequenceClassification",
        "regression": "BertForSequenceClassification",
        "span": "BertForQuestionAnswering",
        "tagging": "BertForTokenClassification",
    }[config.head]


def _head(values: dict[str, Any], tensor_names: Collection[str], source: str) -> HeadName:
    """`ModelConfig.head`, by the architecture; pre-training heads by the tensors alone."""
    architectures = values.get("architectures") or []
    for name in architectures:
        if name not in ARCHITECTURES:
            raise WeightsError(
                f"{source}: the architecture is {name!r}; bertjax reads {', '.join(ARCHITECTURES)}"
            )
    name = architectures[0] if architectures else ""
    if name == "BertForSequenceClassification":
        # Without a problem_type transformers trains one label with a squared loss.
        regression = values.get("problem_type") == "regression" or (
            values.get("problem_type") is None and len(_labels(values, source)) == 1
        )
        if regression and len(_labels(values, source)) != 1:
            raise WeightsError(
                f"{source}: predicts {len(_labels(values, source))} numbers (problem_type is "
                "regression); bertjax's regression has one"
            )
        return "regression" if regression else "classification"
    if name in ("BertForQuestionAnswering", "BertForTokenClassification"):
        return "span" if name == "BertForQuestionAnswering" else "tagging"
    # Published folders say BertForMaskedLM or BertModel and hold both pre-training heads.
    predicts = "cls.predictions.bias" in tensor_names
    if predicts or name in ("BertForPreTraining", "BertForMaskedLM"):
        return "pretraining"
    if "qa_outputs.weight" in tensor_names and not name:
        return "span"
    if "classifier.weight" in tensor_names and not name:
        raise WeightsError(
            f"{source}: architectures is missing, and the weights have a classifier: say "
            '"architectures": ["BertForSequenceClassification"] or ["BertForTokenClassification"]'
        )
    return "encoder"


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
