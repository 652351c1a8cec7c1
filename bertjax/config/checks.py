"""What makes a configuration impossible, as far as it can be known without devices and data."""

import dataclasses

from bertjax.config import (
    MASKINGS,
    Config,
    ConfigError,
    check_types,
    closest,
    packed_predictions,
)
from bertjax.config.store_list import store_list
from bertjax.heads import HEADS


def validate(config: Config) -> None:
    """Checks everything that can be known without devices and without the store.

    Raises:
      ConfigError: naming the fields, what was found, what was expected and what to do.
    """
    check_types(config)
    model, data, optimizer = config.model, config.data, config.optimizer
    choices = (
        ("model.gelu", model.gelu, ("tanh", "erf")),
        ("model.dtype", model.dtype, ("auto", "float32", "bfloat16")),
        ("model.attention", model.attention, ("xla", "pallas", "rows")),
        ("model.activation_layout", model.activation_layout, ("compiler", "row_major")),
        ("model.remat", model.remat, ("none", "attention", "layer")),
        ("model.head", model.head, tuple(HEADS)),
        ("data.masking", data.masking, MASKINGS),
        ("eval.masking", config.eval.masking, MASKINGS),
        ("optimizer.name", optimizer.name, ("bert_adamw", "adamw", "lamb")),
        (
            "optimizer.schedule",
            optimizer.schedule,
            ("linear", "polynomial", "cosine", "constant"),
        ),
    )
    for name, value, known in choices:
        _require(value in known, f"config.{name} = {value!r} is not known; {closest(value, known)}")
    for section, positive in (
        ("model", "vocab_size hidden_size num_layers num_heads intermediate_size max_positions"),
        ("model", "num_token_types layer_norm_eps initializer_range"),
        ("data", "global_batch_size max_length prefetch_batches packing_depth"),
        ("optimizer", "learning_rate eps power layer_decay"),
        ("checkpoint", "every_steps"),
        ("log", "every_steps"),
    ):
        for name in positive.split():
            value = getattr(getattr(config, section), name)
            _require(value > 0, f"config.{section}.{name} = {value} must be greater than 0")
    for section, not_negative in (
        ("data", "max_predictions num_threads"),
        ("optimizer", "warmup_steps decay_steps end_learning_rate weight_decay max_grad_norm"),
        ("optimizer", "frozen_layers"),
        ("checkpoint", "every_minutes keep"),
        ("eval", "every_steps max_rows max_length"),
    ):
        for name in not_negative.split():
            value = getattr(getattr(config, section), name)
            _require(value >= 0, f"config.{section}.{name} = {value} must not be negative")
    store_list(data)
    _require(
        data.shuffle_window in (-1, 0) or data.shuffle_window >= 256,
        f"config.data.shuffle_window = {data.shuffle_window}: expected a number of rows, 256 at "
        "least, 0 for all, or -1 for what the size of the store asks for",
    )
    _require(0 <= config.seed < 2**32, f"config.seed = {config.seed} is not in [0, 2**32)")
    for name, rate in (
        ("model.dropout_rate", model.dropout_rate),
        ("model.attention_dropout_rate", model.attention_dropout_rate),
        ("data.short_row_rate", data.short_row_rate),
        ("eval.short_row_rate", config.eval.short_row_rate),
        ("optimizer.b1", optimizer.b1),
        ("optimizer.b2", optimizer.b2),
    ):
        _require(0 <= rate < 1, f"config.{name} = {rate} is not in [0, 1)")
    for name, rate in (
        ("data.mask_rate", data.mask_rate),
        ("eval.mask_rate", config.eval.mask_rate),
    ):
        _require(0 < rate < 1, f"config.{name} = {rate} is not between 0 and 1")
    _require(
        model.hidden_size % model.num_heads == 0,
        f"config.model.hidden_size = {model.hidden_size} is not divisible by "
        f"config.model.num_heads = {model.num_heads}",
    )
    _require(
        not model.next_sentence or model.num_token_types >= 2,
        f"config.model.num_token_types = {model.num_token_types}: sentence pairs need 2; raise it "
        "or set config.model.next_sentence=false",
    )
    head = HEADS[model.head]
    _require(
        model.pooler or not head.reads_pooled(model.next_sentence),
        f"config.model.pooler = False, but config.model.head = {model.head!r} "
        "reads the pooled output" + ("" if head.pooled == "always" else f", {head.pooled}"),
    )
    _require(
        model.num_labels >= head.fewest_labels,
        f"config.model.num_labels = {model.num_labels}: {model.head} needs {head.fewest_labels} "
        "at least",
    )
    _require(
        optimizer.frozen_layers <= model.num_layers,
        f"config.optimizer.frozen_layers = {optimizer.frozen_layers} is more than "
        f"config.model.num_layers = {model.num_layers}",
    )
    length = config.eval.max_length
    _require(
        length == 0 or 8 <= length <= model.max_positions,
        f"config.eval.max_length = {length}: expected 8 to config.model.max_positions = "
        f"{model.max_positions} tokens, or 0 for rows as long as those of the phase",
    )
    _validate_phases(config)
    axes = dataclasses.asdict(config.mesh)
    for name, size in axes.items():
        _require(
            size == -1 or size > 0,
            f"config.mesh.{name} = {size}: expected a number of devices, or -1 to fill",
        )
    _require(
        list(axes.values()).count(-1) <= 1,
        f"config.mesh = {axes}: only one axis can be -1 (filled with the remaining devices)",
    )


def _validate_phases(config: Config) -> None:
    _require(
        bool(config.phases) or config.num_steps > 0,
        "the run has no length: set config.num_steps, or config.phases",
    )
    _require(config.num_steps >= 0, f"config.num_steps = {config.num_steps} must not be negative")
    _require(config.num_microbatches >= 0, "config.num_microbatches must not be negative")
    for i, phase in enumerate(config.resolved_phases()):
        name = f"config.phases[{i}]" if config.phases else "config.data"
        _require(phase.num_steps > 0, f"{name}.num_steps = {phase.num_steps} must be positive")
        _require(
            phase.max_length <= config.model.max_positions,
            f"{name}.max_length = {phase.max_length} is beyond config.model.max_positions = "
            f"{config.model.max_positions}; shorten the rows or raise the positions",
        )
        _require(phase.max_length >= 8, f"{name}.max_length = {phase.max_length} is below 8 tokens")
        _require(
            phase.max_predictions < phase.max_length,
            f"{name}.max_predictions = {phase.max_predictions} is not below its max_length = "
            f"{phase.max_length}",
        )
        depth = phase.packing_depth
        _require(
            depth > 0,
            f"{name}.packing_depth = {depth}: expected the pairs in a row at most; 1 or more",
        )
        _require(
            depth == 1 or HEADS[config.model.head].can_pack,
            f"{name}.packing_depth = {depth}: only rows of pre-training can be packed",
        )
        needed = packed_predictions(config.data.mask_rate, phase.max_length, depth)
        _require(
            depth == 1 or phase.max_predictions >= needed,
            f"{name}.max_predictions = {phase.max_predictions}, but a row of {depth} pairs may "
            f"have {needed} masks: raise it, or leave it 0",
        )
        _require(
            phase.global_batch_size > 0,
            f"{name}.global_batch_size = {phase.global_batch_size} must be positive",
        )
        parts = config.num_microbatches or 1
        _require(
            phase.global_batch_size % parts == 0,
            f"{name}.global_batch_size = {phase.global_batch_size} is not divisible by "
            f"config.num_microbatches = {config.num_microbatches}",
        )
    total = config.total_steps
    _require(
        config.num_steps <= total,
        f"config.num_steps = {config.num_steps} is more than the {total} steps of config.phases; "
        "num_steps only stops a run early: raise "
        f"config.phases[{len(config.phases) - 1}].num_steps",
    )
    profiled = config.profiled_steps()
    _require(
        not profiled or profiled.stop <= config.last_step,
        f"config.profile = {config.profile!r}: the run ends at step {config.last_step}",
    )
    horizon = config.optimizer.decay_steps or total
    _require(
        config.optimizer.warmup_steps <= horizon,
        f"config.optimizer.warmup_steps = {config.optimizer.warmup_steps} is beyond the schedule's "
        f"{horizon} steps",
    )


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise ConfigError(message)
