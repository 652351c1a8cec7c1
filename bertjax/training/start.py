"""Where a run starts from, which is logged first.

The first that is there of:

1. the newest intact checkpoint in the workdir;
2. else the checkpoint of `config.continue_from`, with its optimizer state and step;
3. else the parameters of `config.init_from` (see `initial_params`);
4. else parameters initialized from `config.seed`.
"""

from __future__ import annotations

import json
import logging
import platform
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from bertjax.checkpoints.checkpoint import (
    Checkpoint,
    CheckpointError,
    CheckpointStore,
    resolve,
)
from bertjax.config import (
    Config,
    ConfigError,
    FineTuningConfig,
    ModelConfig,
    differences,
    is_within,
    may_change,
)
from bertjax.models import abstract_params, init_params
from bertjax.parallel.compile_once import compile_once
from bertjax.parallel.sharding import parameter_shardings, replicated, state_shardings
from bertjax.training.job import Source
from bertjax.training.optimizer import Optimizer
from bertjax.training.shared_steps import check_shared_steps, concerns_steps
from bertjax.training.step import TrainState
from bertjax.version import __version__
from bertjax.weights.initial_params import initial_params

_LOG = logging.getLogger(__name__)

# What a checkpoint's progress knows by a hash, and what messages call it in each kind of run.
_PRETRAINING = {
    "tokenizer_hash": "the tokenizer",
    "store_hash": "the text (config.data.store or stores)",
}
_FINE_TUNING = {
    "tokenizer_hash": "the tokenizer",
    "store_hash": "the training examples (--train)",
    "evaluation_hash": "the evaluation examples (--eval)",
    "initial_hash": "the weights that it began with (--init_from)",
}

# What decides which held-out rows a loss is of.
_SCALE = (
    "eval.max_rows",
    "eval.mask_rate",
    "eval.masking",
    "eval.short_row_rate",
    "eval.max_length",
)

# What decides how many microbatches the memory needs, beside the devices.
_MEMORY = ("num_microbatches", "mesh", "model")


class Start(NamedTuple):
    """Where a run starts.

    Attributes:
      state: laid out on the mesh.
      seconds: that the run took before this start.
      num_microbatches: {phase: parts} of the program that the checkpoint was made with, where
        the settings and devices are those of then; other parts would add up with other rounding.
      since_logged: see `SinceLogged`.
      predicted_tokens: see `SinceLogged`; None if the checkpoint does not say.
      continued: the checkpoint of another run that this run continues, in its first start.
    """

    state: TrainState
    seconds: float
    num_microbatches: dict[int, int]
    since_logged: dict[str, float]
    predicted_tokens: int | None
    continued: Checkpoint | None = None


def start(
    config: Config,
    model: ModelConfig,
    source: Source,
    optimizer: Optimizer,
    checkpoints: CheckpointStore,
    mesh: Mesh,
) -> Start:
    """Makes the first state, laid out on the mesh.

    Args:
      config: the recipe.
      model: `config.model`, resolved.
      source: what must be as it was for the run to resume.
      optimizer: whose state is restored or initialized.
      checkpoints: of the run.
      mesh: of the devices.

    Raises:
      CheckpointError: the workdir has checkpoints but no intact one; `init_from` is corrupt.
      ConfigError: the workdir's run, or the steps of `continue_from`, had other settings or another
        store; `init_from` is another model or has another vocabulary.
    """
    abstract = abstract_state(model, optimizer, mesh, config.mesh.shard_optimizer)
    newest, continued = checkpoints.latest(), None
    if newest is None and config.continue_from:
        newest = continued = _open_continued(config.continue_from)
    if newest is not None:
        changed = check_same_run(newest, config, source, is_other=continued is not None)
        words = "resuming" if continued is None else "continuing another run"
        _LOG.info("%s from step %d: %s", words, newest.step, newest.path)
        params = newest.restore_params(abstract.params)
        opt_state = newest.restore_opt_state(abstract.opt_state)
        step = jax.device_put(jnp.int32(newest.step), replicated(mesh))
        progress, parts = newest.progress, {}
        same = not any(is_within(name, _MEMORY) for name in changed)
        same &= progress["devices"] == devices_in_words()
        if same and "num_microbatches" in progress:  # earlier checkpoints do not say it
            parts = {progress["phase"]: progress["num_microbatches"]}
        return Start(
            TrainState(step, params, opt_state),
            progress["seconds"],
            parts,
            progress.get("since_logged", {}),
            progress.get("predicted_tokens"),
            continued,
        )
    if config.init_from:
        params = initial_params(
            config.init_from,
            model,
            abstract.params,
            seed=config.seed,
            tokenizer_hash=source.tokenizer.hash,
            labels=source.labels,
        )
    else:
        _LOG.info("starting at step 0 with parameters drawn from seed %d", config.seed)
        params = jax.jit(
            lambda: init_params(model, config.seed),
            out_shardings=jax.tree.map(lambda x: x.sharding, abstract.params),
        )()
    init = jax.jit(
        optimizer.transformation.init,
        out_shardings=jax.tree.map(lambda x: x.sharding, abstract.opt_state),
    )
    opt_state = compile_once(init.lower(params), mesh)(params)
    state = TrainState(jax.device_put(jnp.int32(0), replicated(mesh)), params, opt_state)
    return Start(state, 0.0, {}, {}, 0)


def abstract_state(
    model: ModelConfig, optimizer: Optimizer, mesh: Mesh, shard_optimizer: bool = False
) -> TrainState:
    """A state of `jax.ShapeDtypeStruct` with shardings; allocates nothing."""
    return lay_out_state(abstract_params(model), optimizer, mesh, shard_optimizer)


def lay_out_state(
    params: Any, optimizer: Optimizer, mesh: Any, shard_optimizer: bool = False
) -> TrainState:
    """The same, from the parameters' shapes: nested dicts, or one dict by path."""
    opt_state = jax.eval_shape(optimizer.transformation.init, params)
    return TrainState(
        step=jax.ShapeDtypeStruct((), jnp.int32, sharding=replicated(mesh)),
        params=with_shardings(params, mesh),
        opt_state=_lay_out(opt_state, state_shardings(opt_state, params, mesh, shard_optimizer)),
    )


def with_shardings(tree: Any, mesh: Any) -> Any:
    """A tree of parameters or their shapes as `jax.ShapeDtypeStruct`, laid out on the mesh."""
    return _lay_out(tree, parameter_shardings(tree, mesh))


def _lay_out(tree: Any, shardings: Any) -> Any:
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        tree,
        shardings,
    )


def progress_record(
    step: int,
    phase: int,
    position: int,
    num_microbatches: int,
    seconds: float,
    since_logged: dict[str, float],
    predicted_tokens: int | None,
    source: Source,
) -> dict[str, Any]:
    """What a checkpoint says of the run beside its arrays.

    Args:
      step: updates made.
      phase: index of the phase that the step belongs to.
      position: rows of the phase that were read; with the seed, the whole state of the input.
      num_microbatches: parts that a batch of the phase is run in.
      seconds: time spent in the run, over all restarts.
      since_logged: see `SinceLogged`.
      predicted_tokens: see `SinceLogged`.
      source: whose hashes are kept.
    """
    packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
    return {
        "step": step,
        "phase": phase,
        "position": position,
        "num_microbatches": num_microbatches,
        "seconds": seconds,
        "since_logged": since_logged,
        "predicted_tokens": predicted_tokens,
        **_hashes(source),
        "devices": devices_in_words(),
        "versions": {
            "bertjax": __version__,
            "python": platform.python_version(),
            **{name: version(name) for name in packages},
        },
    }


def _hashes(source: Source) -> dict[str, str]:
    return {
        "tokenizer_hash": source.tokenizer.hash,
        "store_hash": source.data_hash,
        "evaluation_hash": source.evaluation_hash,
        "initial_hash": source.initial_hash,
    }


def devices_in_words() -> str:
    """Devices of all processes: number and kind, such as "8 x TPU v5 lite"."""
    return f"{jax.device_count()} x {jax.devices()[0].device_kind}"


def _open_continued(path: str) -> Checkpoint:
    """The checkpoint that `config.continue_from` names."""
    try:
        checkpoint = resolve(path)
    except CheckpointError as error:
        raise ConfigError(f"config.continue_from={path}: {error}") from error
    if "converted_from" in checkpoint.progress:
        origin = checkpoint.progress["converted_from"]
        raise ConfigError(
            f"config.continue_from={path}: was converted from {origin} and has no optimizer state: "
            "start from its parameters with config.init_from"
        )
    return checkpoint


def check_same_run(
    checkpoint: Checkpoint, config: Config, source: Source, *, is_other: bool = False
) -> dict[str, tuple[Any, Any]]:
    """Returns the settings that changed since a checkpoint: {dotted name: (old, new)}.

    Args:
      checkpoint: to start from.
      config: of this run.
      source: of this run.
      is_other: whether the checkpoint is of another run, of which this run has only the first
        steps: lengths and rates of later steps may differ.

    Raises:
      ConfigError: a setting changed that must not, or the run reads something else.
    """
    if ("task" in checkpoint.config) != isinstance(config, FineTuningConfig):
        kind = "fine-tuning" if "task" in checkpoint.config else "pre-training"
        raise ConfigError(
            f"{checkpoint.path} belongs to a {kind} run: "
            + (
                "start from its parameters with config.init_from, not continue_from"
                if is_other
                else "choose another --workdir (what a run starts from is said with init_from)"
            )
        )
    saved = type(config).from_json(json.dumps(checkpoint.config))
    if "mask_rate" not in checkpoint.config["eval"]:  # held-out rows followed the training rows
        for name in ("mask_rate", "masking", "short_row_rate"):
            setattr(saved.eval, name, getattr(saved.data, name))
    changed = differences(saved, config)
    refused = {}
    for name, (old, new) in changed.items():
        if is_other and name == "continue_from":
            continue  # said already
        if may_change(type(config), name):
            _LOG.info("config.%s changed since the checkpoint: %r, now %r", name, old, new)
        elif not (is_other and concerns_steps(name)):
            refused[f"config.{name}"] = (old, new)
    without_phases = not config.phases and not config.optimizer.decay_steps
    if "num_steps" in changed and without_phases and not is_other:
        refused["config.num_steps"] = changed["num_steps"]  # without phases it is the schedule
    hashes = _hashes(source)
    names = _FINE_TUNING if isinstance(config, FineTuningConfig) else _PRETRAINING
    for name, what in names.items():
        new = hashes[name]
        old = checkpoint.progress.get(name, new)  # earlier ones do not have all of them
        unknown = name == "initial_hash" and "" in (old, new)
        if old != new and not unknown:
            refused[what] = (old[:12], new[:12])
    if refused:
        raise ConfigError(
            f"{checkpoint.path} belongs to a run with other settings ({_listed(refused)}): "
            + (
                "use the same settings to continue it, or init_from to start from its parameters"
                if is_other
                else "use the same settings to resume it, or another --workdir (with init_from to "
                "start from its parameters, or continue_from for another length)"
            )
        )
    if is_other:
        check_shared_steps(checkpoint, saved, config)
    if scale := [name for name in changed if is_within(name, _SCALE)]:
        _LOG.warning(
            "the held-out losses from here on do not compare with those before; to keep the scale: "
            "%s",
            " ".join(f"--config.{name}={changed[name][0]}" for name in scale),
        )
    if config.num_steps and config.num_steps < checkpoint.step:
        _LOG.warning(
            "the checkpoint is at step %d, past config.num_steps = %d: nothing is left to train",
            checkpoint.step,
            config.num_steps,
        )
    return changed


def _listed(refused: Mapping[str, tuple[Any, Any]]) -> str:
    return "; ".join(
        f"{name}: {_short(old)} there, {_short(new)} here" for name, (old, new) in refused.items()
    )


def _short(value: Any) -> str:
    """A value in a message: label lists can be long."""
    text = repr(value)
    return text if len(text) <= 120 else f"{text[:100]}... ({len(text):,} characters)"
