"""One record per head: the layers on the encoder, and everything the package knows of them.

`config.model.head` names one. No other file compares a head's name: it asks `HEADS[name]`.
docs/decisions/heads_and_objectives.md says what a new head needs.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, NamedTuple

from bertjax.registry import Registry

Named = str | Callable[..., Any]  # a dotted name, or what it stands for
EMBED = "embed"  # what `bertjax.predict` can do with every head
FILL_MASK = "fill-mask"
NEXT_SENTENCE = "next-sentence"  # only with `config.model.next_sentence`
SCORE = "score"
INPUTS = ("input_ids", "token_type_ids", "attention_mask")  # int32 [b, t] each


class Answer(NamedTuple):
    """An array of a fine-tuning batch with which outputs are compared."""

    dtype: str
    per_token: bool = False  # [b, t]; else one per row [b]


@dataclasses.dataclass(frozen=True)
class Head:
    """The properties of one head.

    Dotted names are MODULE:NAME, imported when they are first needed (`resolve`). The class or
    function itself may stand in place of its dotted name.

    Attributes:
      name: in `config.model.head`.
      module: dotted name of the Flax module, made as `module(config)`.
      trained_on: rows of a store (`bertjax.train`), of a task (`bertjax.finetune`), or nothing.
      objective: dotted name of (config) -> `bertjax.objectives.objective.Objective`.
      inputs: arrays of a batch with which the module is called, in this order.
      layers: groups of parameters beside the encoder's: the first parts of their paths.
      pooled: when the pooled output is read.
      can_pack: rows may hold several pairs.
      predicts_next: each token predicts the next one, of a left-to-right model: rows of a store
        have no masks, and the head runs on all tokens.
      num_labels: width of the output if it is always the same (1 = a number, whose axis is
        dropped); 0 = the number of labels.
      fewest_labels: least value of `config.model.num_labels`; 0 = it is not used.
      labels_have_names: whether a label is a name, and not a number or a position.
      outputs: for a task's head {output: the answer it is compared with}, all float32.
      answers: arrays of a batch with the answers.
      answer_weights: the answer with the weights of the others; "" = each row has weight 1.
      loss: a key of `bertjax.objectives.fine_tuning.LOSSES`, or a `Loss` itself.
      per_token: outputs are [b, t, ...], else [b, ...].
      lowest_at_padding: outputs at padding are the lowest number, so that it is never chosen;
        else 0.
      task: dotted name of the `Task` for predicting texts if the task of the fine-tuning is not
        known.
      verbs: the values of `bertjax.predict --do` beside EMBED; the first is the default.
      architectures: those of Hugging Face that are read as this head. The first is written, or the
        last for a model without next sentence. Empty = no Hugging Face form.
      problem_type: in Hugging Face's config.json, if heads share an architecture.
      hugging_face_tensor: a tensor that only folders with this head have.
      tf1_tensor: the same for a checkpoint of google-research/bert.
    """

    name: str
    module: Named
    trained_on: Literal["store", "task", "nothing"]
    objective: Named = ""
    inputs: tuple[str, ...] = INPUTS
    layers: tuple[str, ...] = ()
    pooled: Literal["always", "for next sentence", "never"] = "never"
    can_pack: bool = False
    predicts_next: bool = False
    num_labels: int = 0
    fewest_labels: int = 0
    labels_have_names: bool = False
    outputs: Mapping[str, str] = dataclasses.field(default_factory=dict)
    answers: Mapping[str, Answer] = dataclasses.field(default_factory=dict)
    answer_weights: str = ""
    loss: Any = ""
    per_token: bool = False
    lowest_at_padding: bool = False
    task: Named = ""
    verbs: tuple[str, ...] = ()
    architectures: tuple[str, ...] = ()
    problem_type: str = ""
    hugging_face_tensor: str = ""
    tf1_tensor: str = ""

    def reads_pooled(self, next_sentence: bool) -> bool:
        """Whether a model with this head reads the pooled output."""
        return self.pooled == "always" or (self.pooled == "for next sentence" and next_sentence)

    def can(self, next_sentence: bool) -> tuple[str, ...]:
        """The values of `bertjax.predict --do` for a model of this head, the default first."""
        verbs = (verb for verb in self.verbs if verb != NEXT_SENTENCE or next_sentence)
        return *verbs, EMBED


_FINE_TUNING = "bertjax.objectives.fine_tuning:fine_tuning_objective"

_BUILT_IN: dict[str, Head] = {
    head.name: head
    for head in (
        Head(
            name="pretraining",
            module="bertjax.models.pretraining:BertForPreTraining",
            trained_on="store",
            objective="bertjax.objectives.pretraining:pretraining_objective",
            inputs=(*INPUTS, "masked_positions"),
            layers=("mlm_head", "nsp_head"),
            pooled="for next sentence",
            can_pack=True,
            verbs=(FILL_MASK, NEXT_SENTENCE, SCORE),
            architectures=("BertForPreTraining", "BertForMaskedLM"),
            hugging_face_tensor="cls.predictions.bias",
            tf1_tensor="cls/predictions/output_bias",
        ),
        Head(
            name="causal",
            module="bertjax.models.causal:BertForCausalLM",
            trained_on="store",
            objective="bertjax.objectives.causal:causal_objective",
            inputs=(*INPUTS, "masked_positions"),
            layers=("mlm_head",),
            can_pack=True,
            predicts_next=True,
            verbs=(SCORE,),
            architectures=("BertLMHeadModel",),
            hugging_face_tensor="cls.predictions.bias",
        ),
        Head(
            name="encoder",
            module="bertjax.models.bert:BertEncoder",
            trained_on="nothing",
            architectures=("BertModel",),
        ),
        Head(
            name="classification",
            module="bertjax.models.fine_tuning:BertForClassification",
            trained_on="task",
            objective=_FINE_TUNING,
            layers=("classification_head",),
            pooled="always",
            fewest_labels=2,
            labels_have_names=True,
            outputs={"logits": "labels"},
            answers={"labels": Answer("int32")},
            loss="cross_entropy",
            task="bertjax.tasks.text_task:TextTask",
            verbs=("classify",),
            architectures=("BertForSequenceClassification",),
            problem_type="single_label_classification",
            hugging_face_tensor="classifier.weight",
            tf1_tensor="output_weights",
        ),
        Head(
            name="regression",
            module="bertjax.models.fine_tuning:BertForClassification",
            trained_on="task",
            objective=_FINE_TUNING,
            layers=("classification_head",),
            pooled="always",
            num_labels=1,
            fewest_labels=1,
            outputs={"values": "targets"},
            answers={"targets": Answer("float32")},
            loss="squared_error",
            task="bertjax.tasks.text_task:TextTask",
            verbs=("classify",),
            architectures=("BertForSequenceClassification",),
            problem_type="regression",
            hugging_face_tensor="classifier.weight",
            tf1_tensor="output_weights",
        ),
        Head(
            name="span",
            module="bertjax.models.fine_tuning:BertForSpans",
            trained_on="task",
            objective=_FINE_TUNING,
            layers=("span_head",),
            num_labels=2,
            outputs={"start_logits": "start_positions", "end_logits": "end_positions"},
            answers={"start_positions": Answer("int32"), "end_positions": Answer("int32")},
            loss="cross_entropy",
            per_token=True,
            lowest_at_padding=True,
            task="bertjax.tasks.squad.squad:SquadTask",
            verbs=("answer",),
            architectures=("BertForQuestionAnswering",),
            hugging_face_tensor="qa_outputs.weight",
            tf1_tensor="cls/squad/output_weights",
        ),
        Head(
            name="tagging",
            module="bertjax.models.fine_tuning:BertForTagging",
            trained_on="task",
            objective=_FINE_TUNING,
            layers=("tagging_head",),
            fewest_labels=2,
            labels_have_names=True,
            outputs={"logits": "tag_ids"},
            answers={"tag_ids": Answer("int32", True), "tag_weights": Answer("float32", True)},
            answer_weights="tag_weights",
            loss="cross_entropy",
            per_token=True,
            task="bertjax.tasks.ner.ner:NerTask",
            verbs=("tag",),
            architectures=("BertForTokenClassification",),
            hugging_face_tensor="classifier.weight",
        ),
    )
}

HEADS = Registry("head", "register_head", _BUILT_IN)
ENCODER_ALONE = HEADS["encoder"]


def heads_trained_on(what: str) -> tuple[str, ...]:
    """The names of the heads that are trained on "store", "task" or "nothing"."""
    return tuple(name for name, head in HEADS.items() if head.trained_on == what)


def of_width(heads: Iterable[Head], num_labels: int) -> Head:
    """The head for this many labels, among heads that differ only in the output's width."""
    return min(heads, key=lambda head: (head.num_labels != num_labels, head.num_labels != 0))


def resolve(named: Named) -> Any:
    """What a dotted name MODULE:NAME of a record stands for; anything else stands for itself."""
    if not isinstance(named, str):
        return named
    module, _, name = named.partition(":")
    return getattr(importlib.import_module(module), name)
