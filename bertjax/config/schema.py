"""The configuration of a run: typed dataclasses, checked before any work starts.

A recipe (a file in `configs/`) fills a `Config`; the command line overrides fields by dotted name
(`--config.optimizer.learning_rate=2e-4`, see `bertjax.cli`); `Config.to_json` travels with every
checkpoint. Rows are sequences: one row is one sentence pair of at most `max_length` tokens.
"""

import dataclasses
import json
import math
import re
import typing
from collections.abc import Iterable, Iterator
from typing import Any, Literal

from bertjax.config.setting import setting, setting_of
from bertjax.errors import ConfigError, closest
from bertjax.heads import HeadName

# The choices that other rooms pass on; those of one field alone stand at the field.
Attention = Literal["xla", "pallas", "rows"]
Dtype = Literal["auto", "float32", "bfloat16"]
Gelu = Literal["tanh", "erf"]
Masking = Literal["token", "whole_word", "span"]
MASKINGS: tuple[Masking, ...] = typing.get_args(Masking)
OptimizerName = Literal["bert_adamw", "adamw", "lamb", "lion", "adafactor"]
Remat = Literal["none", "attention", "layer"]  # the less memory, the later
REMATS: tuple[Remat, ...] = typing.get_args(Remat)

_MASKINGS = {
    "token": "each by itself",
    "whole_word": "whole words",
    "span": "spans (Joshi et al. 2020)",
}
_AS_IN_DATA = {0: "as in data"}
_FILLS = {-1: "the remaining devices"}


@dataclasses.dataclass
class ModelConfig:
    """The encoder and what stands on it (Devlin et al. 2019, section 3)."""

    vocab_size: int = setting(
        30_522, "Entries of the word table; must equal the store's vocabulary.", at_least=1
    )
    hidden_size: int = setting(768, "Width of the hidden states.", at_least=1)
    num_layers: int = setting(12, "Layers of the encoder.", unit="layers", at_least=1)
    num_heads: int = setting(
        12, "Attention heads per layer; must divide hidden_size.", unit="heads", at_least=1
    )
    intermediate_size: int = setting(3_072, "Inner width of the feed-forward sublayer.", at_least=1)
    max_positions: int = setting(512, "The longest sequence.", unit="tokens", at_least=1)
    num_token_types: int = setting(2, "Token types: sentence A and sentence B.", at_least=1)
    dropout_rate: float = setting(
        0.1,
        "Dropout of the embeddings and of both sublayers' outputs.",
        at_least=0,
        below=1,
        not_of_encoder=True,
    )
    attention_dropout_rate: float = setting(
        0.1, "Dropout of the attention probabilities.", at_least=0, below=1, not_of_encoder=True
    )
    gelu: Gelu = setting(
        "tanh",
        "Form of the GELU.",
        values={"tanh": "the reference's code at HEAD", "erf": "Hugging Face's weights"},
    )
    layer_norm_eps: float = setting(1e-12, "Added to the variance in LayerNorm.", above=0)
    initializer_range: float = setting(
        0.02,
        "Standard deviation of initial weights, which are truncated at two of it.",
        above=0,
        not_of_encoder=True,
    )
    next_sentence: bool = setting(
        True,
        "Predict whether the second sentence follows the first (NSP).",
        values={False: "no NSP head, no NSP loss, rows of running sentences"},
        not_of_encoder=True,
    )
    pooler: bool = setting(
        True,
        "Pool the output, which NSP, classification and regression need.",
        not_of_encoder=True,
    )
    head: HeadName = setting(
        "pretraining",
        "What stands on the encoder; fine-tuning sets it.",
        values={"encoder": "nothing"},
        not_of_encoder=True,
    )
    num_labels: int = setting(
        0,
        "Labels of classification and tagging; 1 for regression.",
        unit="labels",
        at_least=0,
        not_of_encoder=True,
    )
    dtype: Dtype = setting(
        "auto",
        "Precision of the computation.",
        values={"auto": "float32 on CPUs, bfloat16 elsewhere"},
        may_change=True,
    )
    scan_layers: bool = setting(
        False, "Compile one layer and loop over it, which is faster to compile.", may_change=True
    )
    attention: Attention = setting(
        "xla",
        "How attention is computed (docs/design/attention.md).",
        values={
            "pallas": "kernels of our own, for TPUs and CUDA GPUs",
            "rows": "row by row, for one CPU device",
        },
        may_change=True,
    )
    activation_layout: Literal["compiler", "row_major"] = setting(
        "compiler",
        "Memory layout of hidden states.",
        values={"compiler": "the compiler chooses", "row_major": "pinned, for GPUs"},
        may_change=True,
    )
    remat: Remat = setting(
        "none", "What the backward pass computes again, to save memory.", may_change=True
    )


@dataclasses.dataclass
class DataConfig:
    """Where rows come from and what they look like."""

    store: str = setting(
        "",
        "Store that bertjax.prepare wrote: a folder or gs://.",
        values={"": "the embedded corpus"},
        may_change=True,
    )
    stores: str = setting(
        "",
        "Several stores in place of one: a:0.7,b:0.3 by weights, a,b by sizes, a@0.1 for a share "
        "of the documents (docs/design/stream.md).",
        may_change=True,
    )
    eval_store: str = setting(
        "",
        "Store to evaluate on.",
        values={"": "the held-out documents of store or of all stores"},
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
        "Masked positions per row at most.",
        unit="positions",
        at_least=1,
        values={
            0: "ceil(mask_rate * max_length), or what packed pairs can have, rounded up to a "
            "multiple of 4: 20 at length 128, 80 at 512"
        },
    )
    mask_rate: float = setting(0.15, "Share of the tokens that are predicted.", above=0, below=1)
    masking: Masking = setting("token", "How masked tokens are chosen.", values=_MASKINGS)
    short_row_rate: float = setting(
        0.1,
        "Share of the rows that are cut to a random length (short_seq_prob of BERT).",
        at_least=0,
        below=1,
    )
    shuffle_window: int = setting(
        -1,
        "Rows that are read and shuffled together (docs/design/stream.md).",
        unit="rows",
        at_least=256,
        values={0: "all", -1: "all, or 2**18 of a store with more than 32 GiB of tokens"},
    )
    num_threads: int = setting(
        0,
        "Threads of tf.data.",
        unit="threads",
        at_least=1,
        values={0: "one per core, at most 16"},
        may_change=True,
    )
    prefetch_batches: int = setting(
        4, "Batches that are kept ready.", unit="batches", at_least=1, may_change=True
    )
    packing_depth: int = setting(
        1,
        "Sentence pairs per row at most, which do not see each other (docs/design/packing.md).",
        unit="pairs",
        at_least=1,
        values={1: "a row is one pair"},
    )


@dataclasses.dataclass
class OptimizerConfig:
    """The optimiser and its schedule."""

    name: OptimizerName = setting(
        "bert_adamw",
        "The optimiser (bertjax/training/optimizer.py has the formulas).",
        values={"bert_adamw": "AdamW without bias correction"},
    )
    learning_rate: float = setting(1e-4, "Learning rate at the peak.", above=0)
    warmup_steps: int = setting(
        10_000, "Steps in which the rate rises linearly from 0.", unit="steps", at_least=0
    )
    schedule: Literal["linear", "polynomial", "cosine", "constant"] = setting(
        "linear", "How the rate falls after the warm-up."
    )
    decay_steps: int = setting(
        0,
        "Step at which the end rate is reached.",
        unit="steps",
        at_least=1,
        values={0: "the sum of the phases"},
    )
    end_learning_rate: float = setting(0.0, "Learning rate at the end of the schedule.", at_least=0)
    power: float = setting(1.0, "Exponent of the polynomial schedule.", above=0)
    weight_decay: float = setting(
        0.01, "Weight decay, which biases and LayerNorm do not have.", at_least=0
    )
    b1: float = setting(0.9, "Decay of the first moment.", at_least=0, below=1)
    b2: float = setting(0.999, "Decay of the second moment.", at_least=0, below=1)
    eps: float = setting(1e-6, "Added to the root of the second moment.", above=0)
    max_grad_norm: float = setting(
        1.0, "Gradients are clipped to this global norm.", above=0, values={0: "no clipping"}
    )
    layer_decay: float = setting(
        1.0, "Learning rate of a layer, divided by that of the layer above it.", above=0
    )
    frozen_layers: int = setting(
        0,
        "Lowest layers that are not trained, nor are the embeddings then.",
        unit="layers",
        at_least=0,
    )


@dataclasses.dataclass
class MeshConfig:
    """Devices along each axis; one of them may be -1, which fills."""

    data: int = setting(
        -1,
        "Devices that rows are split over; each has all parameters.",
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


@dataclasses.dataclass
class CheckpointConfig:
    """When to save, and how many checkpoints to keep."""

    every_steps: int = setting(1_000, "Steps from one save to the next.", unit="steps", at_least=1)
    every_minutes: float = setting(
        10.0,
        "Minutes from one save to the next; the earlier of the two counts.",
        unit="minutes",
        above=0,
        values={0: "by steps only"},
    )
    keep: int = setting(
        3, "Newest checkpoints that are kept.", unit="checkpoints", at_least=1, values={0: "all"}
    )


@dataclasses.dataclass
class EvalConfig:
    """Evaluation on the held-out rows: the same ones, however the training rows are made.

    Rows are made as these fields say, and not as those of `data` do, so that runs compare.
    """

    every_steps: int = setting(
        1_000,
        "Steps from one evaluation to the next; there is always one at the end.",
        unit="steps",
        at_least=1,
        values={0: "at the end only"},
    )
    max_rows: int = setting(
        4_096,
        "Held-out rows that are read, the same ones every time.",
        unit="rows",
        at_least=1,
        values={0: "all"},
    )
    mask_rate: float = setting(0.15, "Share of the tokens that are predicted.", above=0, below=1)
    masking: Masking = setting("token", "How masked tokens are chosen.", values=_MASKINGS)
    short_row_rate: float = setting(
        0.1, "Share of the rows that are cut to a random length.", at_least=0, below=1
    )
    max_length: int = setting(
        0, "Tokens per row.", unit="tokens", at_least=8, values={0: "as in the phase"}
    )


@dataclasses.dataclass
class LogConfig:
    """The terminal, metrics.jsonl and TensorBoard."""

    every_steps: int = setting(
        100, "Steps from one line to the next; a line is their mean.", unit="steps", at_least=1
    )
    tensorboard: bool = setting(True, "Write files for TensorBoard.")


@dataclasses.dataclass
class Phase:
    """A stretch of the run; zero means "as in `data`"."""

    num_steps: int = setting(0, "Steps of the phase; must be given.", unit="steps", at_least=1)
    max_length: int = setting(0, "Tokens per row.", unit="tokens", at_least=8, values=_AS_IN_DATA)
    global_batch_size: int = setting(
        0, "Rows per step.", unit="rows", at_least=1, values=_AS_IN_DATA
    )
    max_predictions: int = setting(
        0, "Masked positions per row at most.", unit="positions", at_least=1, values=_AS_IN_DATA
    )
    packing_depth: int = setting(
        0, "Pairs per row at most.", unit="pairs", at_least=1, values=_AS_IN_DATA
    )


@dataclasses.dataclass
class Config:
    """Everything that decides a run. The same config and store give the same run."""

    seed: int = setting(
        0, "Seed of initial weights, rows, masks and dropout.", at_least=0, below=2**32
    )
    num_steps: int = setting(
        0,
        "Step at which the run stops early; the schedule stays that of the phases.",
        unit="steps",
        at_least=1,
        values={0: "the sum of the phases"},
        may_change=True,
    )
    init_from: str = setting(
        "",
        "Where parameters are taken from: a workdir or checkpoint (a path or gs://), or hf:FOLDER "
        "of a Hugging Face model. Heads that are not there are drawn from the seed.",
        may_change=True,
    )
    num_microbatches: int = setting(
        0,
        "Parts of a batch, computed one after the other.",
        unit="parts",
        at_least=1,
        values={0: "as few as fit the memory; on a CPU of at most 2,048 tokens each"},
        may_change=True,
    )
    profile: str = setting(
        "",
        "Steps to trace for xprof: 100:110 traces those after the first 100, up to 110 "
        "(docs/design/speed.md).",
        may_change=True,
    )
    model: ModelConfig = setting(ModelConfig)
    data: DataConfig = setting(DataConfig)
    phases: tuple[Phase, ...] = setting(
        (), "Stretches of the run, one after the other; () = one of num_steps."
    )
    optimizer: OptimizerConfig = setting(OptimizerConfig)
    mesh: MeshConfig = setting(MeshConfig, may_change=True)
    checkpoint: CheckpointConfig = setting(CheckpointConfig, may_change=True)
    eval: EvalConfig = setting(EvalConfig, may_change=True)
    log: LogConfig = setting(LogConfig, may_change=True)

    def resolved_phases(self) -> tuple[Phase, ...]:
        """Returns the phases with every zero filled in; without phases, one of `num_steps`."""
        phases = self.phases or (Phase(num_steps=self.num_steps),)
        return tuple(
            Phase(
                num_steps=phase.num_steps,
                max_length=(length := phase.max_length or self.data.max_length),
                global_batch_size=phase.global_batch_size or self.data.global_batch_size,
                max_predictions=phase.max_predictions
                or self.data.max_predictions
                or max_predictions(
                    self.data.mask_rate, length, phase.packing_depth or self.data.packing_depth
                ),
                packing_depth=phase.packing_depth or self.data.packing_depth,
            )
            for phase in phases
        )

    @property
    def total_steps(self) -> int:
        """Steps of all phases: what the schedule spans."""
        return sum(phase.num_steps for phase in self.resolved_phases())

    @property
    def last_step(self) -> int:
        """The step at which the run ends: `total_steps`, or `num_steps` where that is set."""
        return self.num_steps or self.total_steps

    def profiled_steps(self) -> range:
        """Updates made before each of the steps that `profile` names.

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


@dataclasses.dataclass
class TaskConfig:
    """What is fine-tuned for; flags of `bertjax.finetune` set it.

    The task is `bertjax.tasks.registry.make_task(name, options)`.
    """

    name: str = setting("", "Name of the task.")
    options: dict[str, Any] = setting(
        dict, "Options of the task as JSON, names of labels among them."
    )
    train: str = setting("", "Files of the training examples, or tfds:NAME:SPLIT.", may_change=True)
    eval: str = setting("", "Files of the examples to score, or tfds:NAME:SPLIT.", may_change=True)
    max_length: int = setting(128, "Tokens per row at most.", unit="tokens", at_least=1)
    batch_size: int = setting(32, "Rows per step.", unit="rows", at_least=1)
    num_epochs: float = setting(3.0, "Times each example is seen.", unit="epochs", above=0)


@dataclasses.dataclass
class FineTuningConfig(Config):
    """Everything that decides a run; one of fine-tuning has a task too."""

    task: TaskConfig = setting(TaskConfig)


def max_predictions(mask_rate: float, max_length: int, packing_depth: int = 1) -> int:
    """Places for masks that a row needs, rounded up to a multiple of 4."""
    needed = math.ceil(mask_rate * max_length)
    if packing_depth > 1:
        needed = packed_predictions(mask_rate, max_length, packing_depth)
    return 4 * math.ceil(needed / 4)


def packed_predictions(mask_rate: float, max_length: int, depth: int) -> int:
    """Masks that a row of up to `depth` pairs can have.

    A pair of n tokens, at least 3, has max(1, round(mask_rate * n)): at most so much more than
    mask_rate * n as half a mask, or as one is above 3 * mask_rate.
    """
    return math.ceil(mask_rate * max_length + depth * max(0.5, 1 - 3 * mask_rate))


# Of configurations that earlier versions wrote: the dotted name of a field, without the index of a
# phase, and what the field is called now in that section. No field was renamed so far.
RENAMED: dict[str, str] = {}


def section_type(annotation: Any) -> Any:
    """The dataclass of a field that is a section, or a tuple of sections; None for any other."""
    kind = (*typing.get_args(annotation), annotation)[0]
    return kind if dataclasses.is_dataclass(kind) else None


def choices_of(annotation: Any) -> tuple[str, ...]:
    """The choices of a field, in their written order; none where it is no Literal."""
    return typing.get_args(annotation) if typing.get_origin(annotation) is Literal else ()


def walk(node: Any, prefix: str = "") -> Iterator[tuple[str, Any, dataclasses.Field[Any]]]:
    """Every field of a configuration: its dotted name, the section that has it, and the field.

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
        if choices := choices_of(kind):
            _expect(name, value, str)
            if value not in choices:
                raise ConfigError(f"{name} = {value!r} is not known; {closest(value, choices)}")
        elif kind is float and type(value) is int:
            setattr(section, field.name, float(value))  # so that 1 and 1.0 are one configuration
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
    """Whether a dotted name is one of some fields, or lies in one of them that is a section."""
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
