"""The configuration of a run: typed dataclasses, checked before any work starts.

A recipe (a file in `configs/`) fills a `Config`; the command line overrides fields by dotted name
(`--config.optimizer.learning_rate=2e-4`, see `bertjax.cli`); `Config.to_json` travels with every
checkpoint. A row is one line of a batch: a sentence pair of at most `max_length` tokens, padding
included, or several pairs where rows are packed.
"""

import dataclasses
import json
import math
import re
import typing
from collections.abc import Iterable, Iterator
from typing import Any, Literal

from bertjax.config.setting import Setting, setting, setting_of
from bertjax.encoders import ENCODERS
from bertjax.errors import ConfigError, closest
from bertjax.heads import HEADS

# Choices that other packages use; those of a single field stand at the field.
Attention = Literal["xla", "auto", "pallas", "rows"]
Direction = Literal["bidirectional", "left_to_right"]
Dtype = Literal["auto", "float32", "bfloat16"]
Gelu = Literal["tanh", "erf"]
LookupGradient = Literal["scatter", "sorted"]
Masking = Literal["token", "whole_word", "span"]
MASKINGS: tuple[Masking, ...] = typing.get_args(Masking)
DecayShape = Literal["linear", "1-sqrt"]
OptimizerName = Literal["bert_adamw", "adamw", "lamb", "lion", "adafactor"]
Remat = Literal["none", "attention", "layer"]  # from most memory to least
REMATS: tuple[Remat, ...] = typing.get_args(Remat)
ScheduleName = Literal["linear", "polynomial", "cosine", "constant", "warmup_stable_decay"]

_MASKINGS = {
    "token": "each token by itself",
    "whole_word": "all tokens of a word together",
    "span": "several words in a row (SpanBERT, Joshi et al. 2020)",
}
_AS_IN_DATA = {0: "as in data"}
_FILLS = {-1: "the remaining devices"}


@dataclasses.dataclass(slots=True)
class ModelConfig:
    """The encoder and its head (Devlin et al. 2019, section 3)."""

    vocab_size: int = setting(
        30_522, "Entries of the word table; must equal the store's vocabulary size.", at_least=1
    )
    hidden_size: int = setting(768, "Width of the hidden states.", at_least=1)
    num_layers: int = setting(12, "Layers of the encoder.", unit="layers", at_least=1)
    num_heads: int = setting(
        12, "Attention heads per layer; must divide hidden_size.", unit="heads", at_least=1
    )
    intermediate_size: int = setting(3_072, "Inner width of the feed-forward sublayer.", at_least=1)
    max_positions: int = setting(512, "Length of the longest row.", unit="tokens", at_least=1)
    num_token_types: int = setting(
        2, "Number of token types (segments): sentence A and sentence B.", at_least=1
    )
    dropout_rate: float = setting(
        0.1,
        "Dropout rate of the embeddings and of both sublayers' outputs.",
        at_least=0,
        below=1,
        not_of_encoder=True,
    )
    attention_dropout_rate: float = setting(
        0.1,
        "Dropout rate of the attention probabilities.",
        at_least=0,
        below=1,
        not_of_encoder=True,
    )
    gelu: Gelu = setting(
        "tanh",
        "Form of the GELU.",
        values={
            "tanh": "the approximation, as in google-research/bert",
            "erf": "exact, as in most Hugging Face weights",
        },
    )
    layer_norm_eps: float = setting(1e-12, "Epsilon that LayerNorm adds to the variance.", above=0)
    initializer_range: float = setting(
        0.02,
        "Standard deviation of initial weights, before truncation at two deviations.",
        above=0,
        not_of_encoder=True,
    )
    encoder: str = setting(
        "bert",
        "The layers and embeddings of the encoder.",
        values={"bert": "as published"},
        names=ENCODERS,
    )
    direction: Direction = setting(
        "bidirectional",
        "Which tokens a token attends to.",
        values={
            "bidirectional": "all tokens, as BERT",
            "left_to_right": "itself and those before it, as GPT; heads read the last token where "
            "BERT reads [CLS]",
        },
        not_of_encoder=True,
    )
    next_sentence: bool = setting(
        True,
        "Predict whether the second sentence follows the first (NSP).",
        values={False: "no NSP head, no NSP loss; a row holds consecutive sentences"},
        not_of_encoder=True,
    )
    pooler: bool = setting(
        True,
        "Have a pooler, a dense layer on [CLS] (on the last token of a left-to-right model). NSP, "
        "classification and regression need it.",
        not_of_encoder=True,
    )
    head: str = setting(
        "pretraining",
        "The layers on the encoder; fine-tuning sets it. The head of pre-training predicts masked "
        "tokens and next sentences, causal the next token at every token, classification and "
        "regression give a label or a number for each row, span the start and end of an answer, "
        "and tagging a label for each word.",
        values={"encoder": "no head"},
        names=HEADS,
        not_of_encoder=True,
    )
    num_labels: int = setting(
        0,
        "Number of labels for classification and tagging; 1 for regression.",
        unit="labels",
        at_least=0,
        not_of_encoder=True,
    )
    dtype: Dtype = setting(
        "auto",
        "Dtype of matrix products; weights, softmax and losses are always float32.",
        values={"auto": "float32 on CPUs, bfloat16 elsewhere"},
        may_change=True,
    )
    factors: Literal["compute", "bfloat16"] = setting(
        "compute",
        "Dtype to which the factors of products with weights are rounded; sums and results keep "
        "dtype.",
        values={
            "compute": "dtype, not rounded",
            "bfloat16": "for CPUs that multiply it faster than float32 (docs/design/speed.md)",
        },
        may_change=True,
    )
    scan_layers: bool = setting(
        False,
        "Compile one layer and loop over it. The program compiles faster and runs slower.",
        may_change=True,
    )
    attention: Attention = setting(
        "xla",
        "How attention is computed (docs/design/attention.md).",
        values={
            "xla": "compiled by XLA like the rest of the model",
            "auto": "pallas on GPUs and TPUs, xla on CPUs",
            "pallas": "Pallas kernels, for TPUs and CUDA GPUs",
            "rows": "one row of the batch after the other, for one CPU device",
        },
        may_change=True,
    )
    layer_norm: Literal["xla", "pallas"] = setting(
        "xla",
        "How dropout, residual sum and LayerNorm at the end of a sublayer are computed "
        "(docs/design/residual_norm.md).",
        values={
            "xla": "by the compiler",
            "pallas": "in one kernel in each direction, for GPUs and TPUs. It has been compiled "
            "for both and has run on neither; hidden_size is a multiple of 64",
        },
        may_change=True,
    )
    activation_layout: Literal["compiler", "row_major"] = setting(
        "compiler",
        "Memory layout of hidden states.",
        values={
            "compiler": "the compiler chooses",
            "row_major": "pinned to [b, t, d], for GPUs",
        },
        may_change=True,
    )
    lookup_gradient: LookupGradient = setting(
        "scatter",
        "How the gradients of the word table, and of the positions of packed rows, are added up.",
        values={
            "scatter": "as the compiler does; on GPUs in an order that changes from run to run",
            "sorted": "in the order of the sorted ids, the same in every run",
        },
        may_change=True,
    )
    remat: Remat = setting(
        "none",
        "Rematerialization: activations that the backward pass computes again to save memory.",
        values={
            "none": "nothing",
            "attention": "scores and probabilities of attention",
            "layer": "everything inside a layer",
        },
        may_change=True,
    )


@dataclasses.dataclass(slots=True)
class DataConfig:
    """Where rows come from and how they are made."""

    store: str = setting(
        "",
        "Store that bertjax.prepare wrote: a folder or gs://BUCKET/FOLDER.",
        values={"": "a store of the documentation of the Python installation"},
        may_change=True,
    )
    stores: str = setting(
        "",
        "Several stores in place of one: a:0.7,b:0.3 in these shares, a,b in proportion to their "
        "sizes, a@0.1 the first tenth of the documents of a (docs/design/stream.md).",
        may_change=True,
    )
    eval_store: str = setting(
        "",
        "Store to evaluate on.",
        values={"": "the held-out documents of store, or of all stores"},
        may_change=True,
    )
    global_batch_size: int = setting(
        256, "Rows per step, over all devices and microbatches.", unit="rows", at_least=1
    )
    max_length: int = setting(
        128, "Tokens per row, special tokens included.", unit="tokens", at_least=8
    )
    max_predictions: int = setting(
        0,
        "Largest number of masked positions per row.",
        unit="positions",
        at_least=1,
        values={
            0: "ceil(mask_rate * max_length), or the most that packed pairs can have, rounded up "
            "to a multiple of 4; 20 at length 128, 80 at 512"
        },
    )
    mask_rate: float = setting(
        0.15,
        "Share of the tokens that are masked and predicted. With the head causal there are no "
        "masks.",
        above=0,
        below=1,
    )
    masking: Masking = setting("token", "How masked tokens are chosen.", values=_MASKINGS)
    short_row_rate: float = setting(
        0.1,
        "Share of the rows that are cut to a random length (BERT's short_seq_prob).",
        at_least=0,
        below=1,
    )
    shuffle_window: int = setting(
        -1,
        "Rows that are read and shuffled together (docs/design/stream.md).",
        unit="rows",
        at_least=256,
        values={0: "all", -1: "all, or 2**18 for a store with more than 32 GiB of tokens"},
    )
    num_threads: int = setting(
        0,
        "Threads that make rows.",
        unit="threads",
        at_least=1,
        values={0: "one per core, at most 16"},
        may_change=True,
    )
    prefetch_batches: int = setting(
        4, "Batches that are made ahead.", unit="batches", at_least=1, may_change=True
    )
    packing_depth: int = setting(
        1,
        "Largest number of sentence pairs per row. Each pair attends to itself only "
        "(docs/design/packing.md).",
        unit="pairs",
        at_least=1,
        values={1: "no packing"},
    )


@dataclasses.dataclass(slots=True)
class OptimizerConfig:
    """The optimizer and its schedule."""

    name: OptimizerName = setting(
        "bert_adamw",
        "The optimizer (bertjax/training/optimizer.py has the formulas).",
        values={"bert_adamw": "AdamW without bias correction, as in google-research/bert"},
    )
    learning_rate: float = setting(1e-4, "Learning rate at the peak.", above=0)
    warmup_steps: int = setting(
        10_000, "Steps in which the learning rate rises linearly from 0.", unit="steps", at_least=0
    )
    schedule: ScheduleName = setting(
        "linear",
        "How the learning rate falls after the warm-up.",
        values={
            "warmup_stable_decay": "stays at the peak, then falls in the last steps, so runs of "
            "several lengths share their first steps (docs/design/schedule.md)"
        },
    )
    decay_steps: int = setting(
        0,
        "Step at which end_learning_rate is reached.",
        unit="steps",
        at_least=1,
        values={0: "the last step of the last phase"},
    )
    decay_share: float = setting(
        0.2,
        "Share of the schedule's steps in which warmup_stable_decay falls.",
        above=0,
        below=1,
    )
    decay_shape: DecayShape = setting(
        "1-sqrt",
        "How warmup_stable_decay falls from the peak to end_learning_rate.",
        values={
            "linear": "by the same amount in each step",
            "1-sqrt": "by the square root of the share of the decay that is done (Hägele et al. "
            "2024)",
        },
    )
    end_learning_rate: float = setting(0.0, "Learning rate at the end of the schedule.", at_least=0)
    power: float = setting(1.0, "Exponent of the polynomial schedule (1 is linear).", above=0)
    weight_decay: float = setting(
        0.01, "Weight decay of all parameters except biases and LayerNorm.", at_least=0
    )
    b1: float = setting(0.9, "Decay of the first moment.", at_least=0, below=1)
    b2: float = setting(0.999, "Decay of the second moment.", at_least=0, below=1)
    eps: float = setting(1e-6, "Epsilon that is added to the root of the second moment.", above=0)
    max_grad_norm: float = setting(
        1.0, "Global norm to which gradients are clipped.", above=0, values={0: "no clipping"}
    )
    layer_decay: float = setting(
        1.0, "Learning rate of a layer, divided by that of the next higher layer.", above=0
    )
    frozen_layers: int = setting(
        0,
        "Number of lowest layers that are not trained. Above 0, the embeddings are not either.",
        unit="layers",
        at_least=0,
    )

    def decay_start(self, total_steps: int) -> int | None:
        """The updates that warmup_stable_decay makes before it decays; None for other schedules.

        Args:
          total_steps: steps of the whole run, used where `decay_steps` is 0.
        """
        if self.schedule != "warmup_stable_decay":
            return None
        steps = self.decay_steps or total_steps
        return steps - max(1, round(self.decay_share * steps))


@dataclasses.dataclass(slots=True)
class MeshConfig:
    """Devices along each axis of the mesh; one axis may be -1, for all remaining devices."""

    data: int = setting(
        -1,
        "Devices that rows are split over; each group of fsdp x tensor devices has all parameters.",
        unit="devices",
        at_least=1,
        values=_FILLS,
    )
    fsdp: int = setting(
        1,
        "Devices that rows and parameters are split over.",
        unit="devices",
        at_least=1,
        values=_FILLS,
    )
    tensor: int = setting(
        1,
        "Devices that heads, feed-forward and vocabulary are split over.",
        unit="devices",
        at_least=1,
        values=_FILLS,
    )
    shard_optimizer: bool = setting(
        False,
        "Split the optimizer's state and update over data, too: each device updates its part of "
        "the parameters, and all gather them (docs/design/mesh.md).",
    )

    def axes(self) -> dict[str, int]:
        """Devices by axis."""
        return {"data": self.data, "fsdp": self.fsdp, "tensor": self.tensor}


@dataclasses.dataclass(slots=True)
class CheckpointConfig:
    """When the run saves, and how many checkpoints it keeps."""

    every_steps: int = setting(1_000, "Steps from one save to the next.", unit="steps", at_least=1)
    every_minutes: float = setting(
        10.0,
        "Minutes from one save to the next; a save is due by steps or by minutes.",
        unit="minutes",
        above=0,
        values={0: "by steps only"},
    )
    keep: int = setting(
        3,
        "Number of newest checkpoints that are kept.",
        unit="checkpoints",
        at_least=1,
        values={0: "all"},
    )


@dataclasses.dataclass(slots=True)
class EvalConfig:
    """Evaluation on held-out rows.

    These fields, and not those of `data`, decide how held-out rows are made, so losses of runs
    with different training rows are comparable.
    """

    every_steps: int = setting(
        1_000,
        "Steps from one evaluation to the next; the last one is at the end of the run.",
        unit="steps",
        at_least=1,
        values={0: "at the end only"},
    )
    max_rows: int = setting(
        4_096,
        "Largest number of held-out rows; they are the same in every evaluation.",
        unit="rows",
        at_least=1,
        values={0: "all"},
    )
    mask_rate: float = setting(
        0.15, "Share of the tokens that are masked and predicted.", above=0, below=1
    )
    masking: Masking = setting("token", "How masked tokens are chosen.", values=_MASKINGS)
    short_row_rate: float = setting(
        0.1, "Share of the rows that are cut to a random length.", at_least=0, below=1
    )
    max_length: int = setting(
        0, "Tokens per row.", unit="tokens", at_least=8, values={0: "as in the phase"}
    )


@dataclasses.dataclass(slots=True)
class LogConfig:
    """The terminal, metrics.jsonl and TensorBoard."""

    every_steps: int = setting(
        100,
        "Steps from one line to the next; a line has means over them.",
        unit="steps",
        at_least=1,
    )
    tensorboard: bool = setting(True, "Write files for TensorBoard.")


@dataclasses.dataclass(slots=True)
class Phase:
    """A stretch of the run, phases[0], phases[1] and so on. 0 = the value in `data`."""

    num_steps: int = setting(0, "Steps of the phase; required.", unit="steps", at_least=1)
    max_length: int = setting(0, "Tokens per row.", unit="tokens", at_least=8, values=_AS_IN_DATA)
    global_batch_size: int = setting(
        0, "Rows per step.", unit="rows", at_least=1, values=_AS_IN_DATA
    )
    max_predictions: int = setting(
        0,
        "Largest number of masked positions per row.",
        unit="positions",
        at_least=1,
        values={0: "as in data, or what mask_rate needs if the phase has its own"},
    )
    packing_depth: int = setting(
        0, "Largest number of sentence pairs per row.", unit="pairs", at_least=1, values=_AS_IN_DATA
    )
    mask_rate: float = setting(
        0.0,
        "Share of the tokens that are masked and predicted.",
        above=0,
        below=1,
        values=_AS_IN_DATA,
    )


@dataclasses.dataclass(slots=True)
class Config:
    """Everything that decides a run: the same configuration and store give the same run."""

    seed: int = setting(
        0, "Seed of initial weights, rows, masks and dropout.", at_least=0, below=2**32
    )
    num_steps: int = setting(
        0,
        "Steps of a run without phases; required there. A run with phases stops early at this "
        "step, and the schedule still spans all phases.",
        unit="steps",
        at_least=1,
        values={0: "all steps of the phases"},
        may_change=True,
    )
    init_from: str = setting(
        "",
        "Initial parameters: a workdir or checkpoint (a path or gs://), or hf:FOLDER of a Hugging "
        "Face model. Heads that the source lacks are initialized from the seed.",
        may_change=True,
    )
    continue_from: str = setting(
        "",
        "Checkpoint of another run to continue from, with its optimizer state and step: a path or "
        "gs://, a workdir for the newest. Its steps must be the same in this run "
        "(docs/design/schedule.md).",
        may_change=True,
    )
    num_microbatches: int = setting(
        0,
        "Parts of a batch whose gradients are computed one after the other, to save memory.",
        unit="microbatches",
        at_least=1,
        values={0: "the fewest that fit the memory; on a CPU at most 2,048 tokens per microbatch"},
        may_change=True,
    )
    profile: str = setting(
        "",
        "Steps to trace for xprof: 100:110 traces the ten steps after step 100 "
        "(docs/design/speed.md).",
        may_change=True,
    )
    model: ModelConfig = setting(ModelConfig)
    data: DataConfig = setting(DataConfig)
    phases: tuple[Phase, ...] = setting(
        (),
        "Stretches of the run, one after the other, each with its own steps, length and batch "
        "size. () = a single phase of num_steps steps with the values of data.",
    )
    optimizer: OptimizerConfig = setting(OptimizerConfig)
    mesh: MeshConfig = setting(MeshConfig, may_change=True)
    checkpoint: CheckpointConfig = setting(CheckpointConfig, may_change=True)
    eval: EvalConfig = setting(EvalConfig, may_change=True)
    log: LogConfig = setting(LogConfig, may_change=True)

    def resolved_phases(self) -> tuple[Phase, ...]:
        """Returns the phases, zeros replaced by the values in `data`; () is one of `num_steps`."""
        return tuple(
            self._resolve(phase) for phase in self.phases or (Phase(num_steps=self.num_steps),)
        )

    def _resolve(self, phase: Phase) -> Phase:
        data = self.data
        length = phase.max_length or data.max_length
        depth = phase.packing_depth or data.packing_depth
        rate = phase.mask_rate or data.mask_rate
        # The number in `data` was chosen for the rate in `data`.
        predictions = phase.max_predictions or (0 if phase.mask_rate else data.max_predictions)
        return Phase(
            num_steps=phase.num_steps,
            max_length=length,
            global_batch_size=phase.global_batch_size or data.global_batch_size,
            max_predictions=predictions or max_predictions(rate, length, depth),
            packing_depth=depth,
            mask_rate=rate,
        )

    @property
    def total_steps(self) -> int:
        """Steps of all phases, which the schedule spans."""
        return sum(phase.num_steps for phase in self.resolved_phases())

    @property
    def last_step(self) -> int:
        """The step at which the run ends: `total_steps`, or `num_steps` where that is set."""
        return self.num_steps or self.total_steps

    def profiled_steps(self) -> range:
        """For each step that `profile` names, the number of updates before it.

        Raises:
          ConfigError: `profile` is not START:END with 0 <= START < END.
        """
        if not self.profile:
            return range(0)
        match = re.fullmatch(r"(\d+):(\d+)", self.profile)
        if match is None or int(match[1]) >= int(match[2]):
            raise ConfigError(
                f"config.profile = {self.profile!r}: expected START:END, two numbers of steps, the "
                "first the smaller one, as in 100:110"
            )
        return range(int(match[1]), int(match[2]))

    def to_json(self) -> str:
        """Returns the configuration as JSON text, fields in their written order."""
        return json.dumps(dataclasses.asdict(self), indent=2)

    @classmethod
    def from_json(cls, text: str) -> typing.Self:
        """Reads what `to_json` wrote.

        Raises:
          ConfigError: a field is unknown or has the wrong type.
        """
        config: typing.Self = _from_dict(cls, json.loads(text))
        check_types(config)
        return config


@dataclasses.dataclass(slots=True)
class TaskConfig:
    """The task of a fine-tuning; flags of `bertjax.finetune` set it.

    The task is `bertjax.tasks.registry.make_task(name, options)`.
    """

    name: str = setting("", "Name of the task.")
    options: dict[str, Any] = setting(
        dict, "Options of the task as JSON, including the names of labels."
    )
    train: str = setting("", "Files with training examples, or tfds:NAME:SPLIT.", may_change=True)
    eval: str = setting("", "Files with examples to score, or tfds:NAME:SPLIT.", may_change=True)
    max_length: int = setting(128, "Largest number of tokens per row.", unit="tokens", at_least=1)
    batch_size: int = setting(32, "Rows per step.", unit="rows", at_least=1)
    num_epochs: float = setting(3.0, "Passes over the training examples.", unit="epochs", above=0)


@dataclasses.dataclass(slots=True)
class FineTuningConfig(Config):
    """Everything that decides a run. The task is set by fine-tuning only."""

    task: TaskConfig = setting(TaskConfig)


def max_predictions(mask_rate: float, max_length: int, packing_depth: int = 1) -> int:
    """The number of masked positions that a row needs, rounded up to a multiple of 4."""
    needed = math.ceil(mask_rate * max_length)
    if packing_depth > 1:
        needed = packed_predictions(mask_rate, max_length, packing_depth)
    return 4 * math.ceil(needed / 4)


def packed_predictions(mask_rate: float, max_length: int, depth: int) -> int:
    """The largest number of masks in a row of up to `depth` pairs.

    A pair of n tokens, at least 3, has max(1, round(mask_rate * n)) masks. That exceeds
    mask_rate * n by at most max(0.5, 1 - 3 * mask_rate).
    """
    return math.ceil(mask_rate * max_length + depth * max(0.5, 1 - 3 * mask_rate))


# Fields that were renamed: the old dotted name, without the index of a phase, and the new name in
# the same section. So configurations of earlier versions can be read. None was renamed so far.
RENAMED: dict[str, str] = {}


def section_type(annotation: Any) -> Any:
    """The dataclass of a field that is a section or a tuple of sections, else None."""
    kind = (*typing.get_args(annotation), annotation)[0]
    return kind if dataclasses.is_dataclass(kind) else None


def choices_of(annotation: Any, said: Setting) -> tuple[str, ...]:
    """The choices of a field in their order; () unless it is a Literal or a name of a registry."""
    if said.names is not None:
        return tuple(said.names)
    return typing.get_args(annotation) if typing.get_origin(annotation) is Literal else ()


def walk(node: Any, prefix: str = "") -> Iterator[tuple[str, Any, dataclasses.Field[Any]]]:
    """Yields each field of a configuration: dotted name, the section that has it, the field.

    A section comes before its fields; those of the first phase are `phases[0].num_steps` and so on.
    """
    for field in dataclasses.fields(node):
        name, value = f"{prefix}{field.name}", getattr(node, field.name)
        yield name, node, field
        if dataclasses.is_dataclass(value):
            yield from walk(value, f"{name}.")
        elif section_type(field.type):
            for i, part in enumerate(value):
                yield from walk(part, f"{name}[{i}].")


def _from_dict(cls: Any, values: Any, where: str = "") -> Any:
    """A section of the type `cls` from JSON; `where` is its dotted name."""
    place = "config" + (where and f".{where}")
    if not isinstance(values, dict):
        raise ConfigError(f"{place}: expected the fields of {cls.__name__}, found {values!r}")
    annotations = {field.name: field.type for field in dataclasses.fields(cls)}
    arguments = {}
    for given, value in values.items():
        dotted = f"{where}.{given}".lstrip(".")
        name = RENAMED.get(re.sub(r"\[\d+\]", "", dotted), str(given))
        if name not in annotations:
            raise ConfigError(f"{place}.{name} does not exist; {closest(name, annotations)}")
        if section := section_type(annotations[name]):
            if section is annotations[name]:
                value = _from_dict(section, value, dotted)
            else:
                value = tuple(_from_dict(section, v, f"{dotted}[{i}]") for i, v in enumerate(value))
        arguments[name] = value
    return cls(**arguments)


def check_types(config: Any) -> None:
    """Checks that every field holds a value of its annotated type; an int may stand for a float.

    Raises:
      ConfigError: naming the field, the value found and the type or the choices expected.
    """
    for name, section, field in walk(config):
        name, value, kind = f"config.{name}", getattr(section, field.name), field.type
        part = section_type(kind)
        said = setting_of(field)
        if choices := choices_of(kind, said):
            _expect(name, value, str)
            if value not in choices:
                advice = said.names.advice(value) if said.names else closest(value, choices)
                raise ConfigError(f"{name} = {value!r} is not known; {advice}")
        elif kind is float and type(value) is int:
            setattr(section, field.name, float(value))  # 1 and 1.0 are the same configuration
        elif part not in (None, kind):
            _expect(name, value, tuple)
            for i, item in enumerate(value):
                _expect(f"{name}[{i}]", item, part)
        else:
            _expect(name, value, typing.get_origin(kind) or kind)


def _expect(where: str, value: Any, expected: Any) -> None:
    is_section = dataclasses.is_dataclass(expected)
    if not (isinstance(value, expected) if is_section else type(value) is expected):
        found = type(value).__name__
        raise ConfigError(f"{where} = {value!r} is of type {found}; expected {expected.__name__}")


def may_change(root: type[Config], name: str) -> bool:
    """Whether a run may be resumed with another value of a field.

    Args:
      root: `Config` or `FineTuningConfig`.
      name: dotted, as `differences` gives it: `model.dtype`, `phases[0].num_steps`.
    """
    node: Any = root
    for part in name.split("."):
        if node is None:
            break  # inside a field that holds JSON
        found = [f for f in dataclasses.fields(node) if f.name == part.partition("[")[0]]
        if any(setting_of(field).may_change for field in found):
            return True
        node = section_type(found[0].type) if found else None
    return False


def is_within(name: str, fields: Iterable[str]) -> bool:
    """Whether a dotted name is one of `fields`, or lies in a section that is one of them."""
    parts = name.replace("[", ".[").split(".")
    return any(parts[: len(field := other.split("."))] == field for other in fields)


def differences(old: Config, new: Config) -> dict[str, tuple[Any, Any]]:
    """Returns {dotted field name: (old value, new value)} of the fields that differ."""
    left, right = _flatten(dataclasses.asdict(old)), _flatten(dataclasses.asdict(new))
    return {
        name: (left.get(name), right.get(name))
        for name in left | right
        if left.get(name) != right.get(name)
    }


def _flatten(node: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(node, dict):
        items = [(f"{prefix}.{k}" if prefix else k, v) for k, v in node.items()]
    elif isinstance(node, (tuple, list)):
        items = [(f"{prefix}[{i}]", v) for i, v in enumerate(node)]
    else:
        return {prefix: node}
    return {k: v for name, value in items for k, v in _flatten(value, name).items()}
