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
from collections.abc import Iterable
from typing import Any

from bertjax.errors import ConfigError, closest

# On a field or a whole section: it may differ between the run that saved a checkpoint and the run
# that resumes from it. It says how to compute the same numbers, when to stop, to save, to evaluate
# and to report. A field without it may not differ.
_MAY_CHANGE = {"may_change": True}


def _free(default: Any) -> Any:
    """A field that may change when a run is resumed."""
    return dataclasses.field(default=default, metadata=_MAY_CHANGE)


@dataclasses.dataclass
class ModelConfig:
    """The encoder and what stands on it (Devlin et al. 2019, section 3)."""

    vocab_size: int = 30_522  # entries of the word table; must equal the store's vocabulary
    hidden_size: int = 768
    num_layers: int = 12
    num_heads: int = 12  # must divide hidden_size
    intermediate_size: int = 3_072  # inner width of the feed-forward sublayer
    max_positions: int = 512  # longest sequence, in tokens
    num_token_types: int = 2  # sentence A and sentence B
    dropout_rate: float = 0.1  # embeddings and both sublayer outputs
    attention_dropout_rate: float = 0.1  # attention probabilities
    gelu: str = "tanh"  # "tanh": the reference's code at HEAD; "erf": Hugging Face's weights
    layer_norm_eps: float = 1e-12
    initializer_range: float = 0.02  # standard deviation, truncated at two of it
    next_sentence: bool = True  # False: no NSP head, no NSP loss, rows of running sentences
    pooler: bool = True  # False: no pooled output; NSP and classification need it
    head: str = "pretraining"  # or "encoder" (none), "classification", "regression", "span" or
    # "tagging": fine-tuning sets it
    num_labels: int = 0  # of classification and tagging; 1 for regression
    dtype: str = _free("auto")  # of the computation: "float32" or "bfloat16"; "auto": float32 on
    # CPU only
    scan_layers: bool = _free(False)  # one compiled layer in a loop: faster to compile
    attention: str = _free("xla")  # "pallas": kernels for TPU and GPU; "rows": for one CPU device
    activation_layout: str = _free("compiler")  # of hidden states; "row_major": pinned, for GPUs
    remat: str = _free("none")  # recompute in the backward pass: "none", "attention" or "layer"


MASKINGS = ("token", "whole_word", "span")  # "span": Joshi et al. 2020


@dataclasses.dataclass
class DataConfig:
    """Where rows come from and what they look like."""

    store: str = _free("")  # folder or gs:// of bertjax.prepare; "" = the embedded corpus
    stores: str = _free("")  # several in its place: "a:0.7,b:0.3" by weights, "a,b" by sizes,
    # "a@0.1" for a share of the documents (docs/design/stream.md)
    eval_store: str = _free("")  # "" = the held-out documents of `store` or of all `stores`
    global_batch_size: int = 256  # rows a step, over all devices and microbatches
    max_length: int = 128  # tokens a row, special tokens included
    max_predictions: int = 0  # masked positions a row at most; 0 = ceil(mask_rate * max_length),
    # (or what packed pairs can have), rounded up to a multiple of 4 (20 at length 128, 80 at 512)
    mask_rate: float = 0.15  # share of the tokens that are predicted
    masking: str = "token"  # one of MASKINGS
    short_row_rate: float = 0.1  # share of rows cut to a random length (short_seq_prob)
    shuffle_window: int = -1  # rows that are read and shuffled together, at least 256; 0 = all;
    # -1 = all, or 2**18 of a store with more than 32 GiB of tokens (docs/design/stream.md)
    num_threads: int = _free(0)  # tf.data workers; 0 = one a core, at most 16
    prefetch_batches: int = _free(4)
    packing_depth: int = 1  # pairs in a row at most; 1 = a row is one pair (docs/design/packing.md)


@dataclasses.dataclass
class OptimizerConfig:
    """The optimiser and its schedule."""

    name: str = "bert_adamw"  # "bert_adamw" (no bias correction), "adamw" or "lamb"
    learning_rate: float = 1e-4  # at the peak
    warmup_steps: int = 10_000  # linear from 0
    schedule: str = "linear"  # "linear", "polynomial", "cosine" or "constant" after the warm-up
    decay_steps: int = 0  # step at which the end rate is reached; 0 = the sum of the phases
    end_learning_rate: float = 0.0
    power: float = 1.0  # of the polynomial
    weight_decay: float = 0.01  # not on biases and LayerNorm
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-6
    max_grad_norm: float = 1.0  # clip by the global norm; 0 = do not clip
    layer_decay: float = 1.0  # learning rate of a layer / that of the one above it
    frozen_layers: int = 0  # the embeddings and so many of the lowest layers are not trained


@dataclasses.dataclass
class MeshConfig:
    """Devices along each axis; one of them may be -1, which fills."""

    data: int = -1  # rows are split, parameters replicated
    fsdp: int = 1  # rows and parameters are split
    tensor: int = 1  # heads, feed-forward and vocabulary are split


@dataclasses.dataclass
class CheckpointConfig:
    """When to save, and how many checkpoints to keep."""

    every_steps: int = 1_000
    every_minutes: float = 10.0  # whichever comes first; 0 = by steps only
    keep: int = 3  # newest ones kept; 0 = all


@dataclasses.dataclass
class EvalConfig:
    """Evaluation on the held-out rows: the same ones, however the training rows are made."""

    every_steps: int = 1_000  # and always at the end; 0 = at the end only
    max_rows: int = 4_096  # the same rows every time; 0 = all held-out rows
    # The next three mean what they mean in `data` but do not follow it: runs compare.
    mask_rate: float = 0.15
    masking: str = "token"
    short_row_rate: float = 0.1
    max_length: int = 0  # tokens a row; 0 = as in the phase


@dataclasses.dataclass
class LogConfig:
    """The terminal, metrics.jsonl and TensorBoard."""

    every_steps: int = 100
    tensorboard: bool = True


@dataclasses.dataclass
class Phase:
    """A stretch of the run; zero means "as in `data`"."""

    num_steps: int = 0
    max_length: int = 0
    global_batch_size: int = 0
    max_predictions: int = 0
    packing_depth: int = 0


@dataclasses.dataclass
class Config:
    """Everything that decides a run. The same config and store give the same run."""

    seed: int = 0
    num_steps: int = _free(0)  # stops the whole run early; 0 = the sum of the phases
    init_from: str = _free("")  # a workdir or checkpoint (a path or gs://) to take the parameters
    # from, or hf:FOLDER of a Hugging Face model; heads that are not there are drawn from the seed
    num_microbatches: int = _free(0)  # parts of a batch, one after the other; 0 = by the memory
    profile: str = _free("")  # "100:110" traces the steps after the first 100, up to 110, for xprof
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    phases: tuple[Phase, ...] = ()
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig, metadata=_MAY_CHANGE)
    checkpoint: CheckpointConfig = dataclasses.field(
        default_factory=CheckpointConfig, metadata=_MAY_CHANGE
    )
    eval: EvalConfig = dataclasses.field(default_factory=EvalConfig, metadata=_MAY_CHANGE)
    log: LogConfig = dataclasses.field(default_factory=LogConfig, metadata=_MAY_CHANGE)

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
        config = _from_dict(cls, json.loads(text), "config")
        check_types(config)
        return config


@dataclasses.dataclass
class TaskConfig:
    """What is fine-tuned for: `bertjax.tasks.registry.make_task(name, options)`."""

    name: str = ""
    options: dict = dataclasses.field(default_factory=dict)  # JSON; label names among them
    train: str = _free("")  # files of the training examples, or tfds:NAME:SPLIT
    eval: str = _free("")  # the same of the examples that are scored
    max_length: int = 128  # tokens a row
    batch_size: int = 32  # rows a step
    num_epochs: float = 3.0


@dataclasses.dataclass
class FineTuningConfig(Config):
    """Everything that decides a fine-tuning run."""

    task: TaskConfig = dataclasses.field(default_factory=TaskConfig)


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


def _from_dict(cls: type, values: Any, where: str) -> Any:
    if not isinstance(values, dict):
        raise ConfigError(f"{where}: expected the fields of {cls.__name__}, found {values!r}")
    hints = typing.get_type_hints(cls)
    for name in values:
        if name not in hints:
            raise ConfigError(f"{where}.{name} does not exist; {closest(name, hints)}")
    arguments = {}
    for name, value in values.items():
        if dataclasses.is_dataclass(hints[name]):
            value = _from_dict(typing.cast(type, hints[name]), value, f"{where}.{name}")
        elif name == "phases":
            value = tuple(_from_dict(Phase, v, f"{where}.phases[{i}]") for i, v in enumerate(value))
        arguments[name] = value
    return cls(**arguments)


def check_types(node: Any, where: str = "config") -> None:
    """Checks that every field holds a value of its annotated type; an int may stand for a float.

    Raises:
      ConfigError: naming the field, the value found and the type expected.
    """
    for name, hint in typing.get_type_hints(type(node)).items():
        value = getattr(node, name)
        if dataclasses.is_dataclass(hint):
            _expect(isinstance(value, typing.cast(type, hint)), f"{where}.{name}", value, hint)
            check_types(value, f"{where}.{name}")
        elif name == "phases":
            _expect(isinstance(value, tuple), f"{where}.phases", value, tuple)
            for i, phase in enumerate(value):
                _expect(isinstance(phase, Phase), f"{where}.phases[{i}]", phase, Phase)
                check_types(phase, f"{where}.phases[{i}]")
        elif hint is float:
            if isinstance(value, int) and not isinstance(value, bool):
                setattr(node, name, float(value))  # so that 1 and 1.0 are one configuration
            else:
                _expect(isinstance(value, float), f"{where}.{name}", value, hint)
        else:
            _expect(type(value) is hint, f"{where}.{name}", value, hint)


def _expect(holds: bool, where: str, value: Any, expected: Any) -> None:
    if not holds:
        name = getattr(expected, "__name__", str(expected))
        raise ConfigError(f"{where} = {value!r} is of type {type(value).__name__}; expected {name}")


def may_change(root: type[Config], name: str) -> bool:
    """Whether a run may be resumed with another value of a field.

    Args:
      root: `Config` or `FineTuningConfig`.
      name: dotted, as `differences` gives it: `model.dtype`, `phases[0].num_steps`.
    """
    node: Any = root
    for part in name.split("."):
        if not dataclasses.is_dataclass(node):
            break  # inside a field that holds JSON
        part = part.partition("[")[0]
        found = [field for field in dataclasses.fields(node) if field.name == part]
        if any(field.metadata.get("may_change") for field in found):
            return True
        node = Phase if part == "phases" else typing.get_type_hints(node).get(part)
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
