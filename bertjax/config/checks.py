"""Checks of a configuration that need neither devices nor data."""

from bertjax.config import (
    Config,
    ConfigError,
    ModelConfig,
    OptimizerConfig,
    check_types,
    packed_predictions,
)
from bertjax.config.schema import walk
from bertjax.config.setting import setting_of
from bertjax.config.store_list import store_list
from bertjax.heads import HEADS, NEXT_SENTENCE


def validate(config: Config) -> None:
    """Checks everything that needs neither devices nor the store.

    Raises:
      ConfigError: naming the fields, what was found, what was expected and what to do.
    """
    check_types(config)
    for name, section, field in walk(config):
        setting, value = setting_of(field), getattr(section, field.name)
        if not setting.accepts(value):
            raise ConfigError(f"config.{name} = {value}: expected {setting.expected()}")
    store_list(config.data)
    model, optimizer = config.model, config.optimizer
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
        not model.next_sentence or head.trained_on != "store" or NEXT_SENTENCE in head.verbs,
        f"config.model.next_sentence = True, but config.model.head = {model.head!r} does not learn "
        "from it: set config.model.next_sentence=false, for rows of consecutive sentences",
    )
    _require(
        model.direction == "left_to_right" or not head.predicts_next,
        f"config.model.head = {model.head!r} predicts the next token, which a model with "
        f"config.model.direction = {model.direction!r} sees: set "
        "config.model.direction=left_to_right",
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
    _require_positions("config.eval", config.eval.max_length, model)
    _validate_phases(config)
    axes = config.mesh.axes()
    _require(
        list(axes.values()).count(-1) <= 1,
        f"config.mesh = {axes}: only one axis can be -1 (filled with the remaining devices)",
    )


def _validate_phases(config: Config) -> None:
    _require(
        bool(config.phases) or config.num_steps > 0,
        "the run has no length: set config.num_steps, or config.phases",
    )
    head = HEADS[config.model.head]
    for i, phase in enumerate(config.resolved_phases()):
        name = f"config.phases[{i}]" if config.phases else "config.data"
        _require_positions(name, phase.max_length, config.model)
        _require(
            phase.max_predictions < phase.max_length,
            f"{name}.max_predictions = {phase.max_predictions} (unless set, what a mask_rate of "
            f"{phase.mask_rate:g} needs) is not below its max_length = {phase.max_length}",
        )
        depth = phase.packing_depth
        _require(
            depth == 1 or head.can_pack,
            f"{name}.packing_depth = {depth}: only rows of pre-training can be packed",
        )
        needed = packed_predictions(phase.mask_rate, phase.max_length, depth)
        _require(
            depth == 1 or head.predicts_next or phase.max_predictions >= needed,
            f"{name}.max_predictions = {phase.max_predictions}, but a row of {depth} pairs may "
            f"have {needed} masks: raise it, or leave it 0",
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
    _validate_schedule(config.optimizer, total)


def _validate_schedule(optimizer: OptimizerConfig, total_steps: int) -> None:
    horizon = optimizer.decay_steps or total_steps
    _require(
        optimizer.warmup_steps <= horizon,
        f"config.optimizer.warmup_steps = {optimizer.warmup_steps} is beyond the schedule's "
        f"{horizon} steps",
    )
    decay_start = optimizer.decay_start(total_steps)
    _require(
        decay_start is None or optimizer.warmup_steps <= decay_start,
        f"config.optimizer.warmup_steps = {optimizer.warmup_steps}, but the decay begins at step "
        f"{decay_start}, the last {optimizer.decay_share:g} of {horizon} steps: shorten the "
        "warm-up or lower config.optimizer.decay_share",
    )


def _require_positions(name: str, max_length: int, model: ModelConfig) -> None:
    _require(
        max_length <= model.max_positions,
        f"{name}.max_length = {max_length} is beyond config.model.max_positions = "
        f"{model.max_positions}; shorten the rows or raise the positions",
    )


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise ConfigError(message)
