"""Initial parameters: those of another model as far as they fit, the rest from the seed.

Pre-training (`config.init_from`) and fine-tuning start here.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from bertjax.checkpoints.checkpoint import Checkpoint, resolve
from bertjax.checkpoints.loadable_workdir import LABELS
from bertjax.config import Config, ConfigError, ModelConfig, may_change
from bertjax.config.setting import setting_of
from bertjax.errors import BertjaxError
from bertjax.heads import HEADS
from bertjax.models import abstract_params, init_params
from bertjax.parallel.compile_once import compile_once
from bertjax.parameters import part
from bertjax.storage.bucket import is_bucket_path
from bertjax.weights.bertjax_checkpoint import (
    best_path,
    model_config,
    read_labels,
    workdir_of,
)
from bertjax.weights.hugging_face_folder import is_hugging_face, read_folder
from bertjax.weights.weights import flatten, unflatten

_LOG = logging.getLogger(__name__)

HUGGING_FACE_PREFIX = "hf:"


def initial_params(
    init_from: str,
    model: ModelConfig,
    abstract: Mapping[str, Any],
    *,
    seed: int,
    tokenizer_hash: str,
    labels: tuple[str, ...] = (),
) -> dict[str, Any]:
    """Takes the parameters of another model; initializes heads that it does not have.

    The encoder is taken over. A pooler or head of `model` that the source lacks, or has for other
    labels, is initialized from the seed as in `init_params`, and a warning names it. A head for the
    same labels in another order is taken over with reordered outputs. Heads that `model` lacks are
    ignored.

    Args:
      init_from: a workdir (its best checkpoint after a finished fine-tuning, else the newest) or a
        checkpoint of bertjax, or `hf:FOLDER` for a Hugging Face folder.
      model: the model that is trained.
      abstract: its parameters as `jax.ShapeDtypeStruct` with shardings.
      seed: for initialized parameters.
      tokenizer_hash: of the training text.
      labels: of the outputs of `model`'s head, in their order; () = none.

    Returns:
      A tree like `abstract`, of arrays with its shardings.

    Raises:
      ConfigError: the source is another model (each field is named), was trained with another
        tokenizer, or is not a folder or not an intact checkpoint of a model.
      CheckpointError: the checkpoint is corrupt in a way that shows only when it is restored.
    """
    wanted = flatten(abstract)
    is_folder = init_from.startswith(HUGGING_FACE_PREFIX)
    source = _open_hugging_face(init_from) if is_folder else _open_checkpoint(init_from)
    _check_same_model(init_from, source.config, model)
    if source.tokenizer_hash != tokenizer_hash:
        raise ConfigError(
            f"config.init_from={init_from} has the tokenizer {source.tokenizer_hash[:12]}, the "
            f"text was encoded with {tokenizer_hash[:12]}: prepare the corpus with "
            + (f"--tokenizer={init_from}" if is_folder else "the tokenizer of that run")
        )
    _check_same_encoder(init_from, source.shapes, wanted)
    taken = _in_order_of(labels, source.labels, source.take(wanted))
    left = sorted({part(path) for path in source.shapes.keys() - taken.keys()})
    _LOG.info(
        "starting at step 0 with the parameters of %s%s",
        source.name,
        f", without its {', '.join(left)}" if left else "",
    )
    if source.config.direction != model.direction:
        _LOG.info(
            "it was trained %s, and is trained %s from now on (config.model.direction)",
            source.config.direction,
            model.direction,
        )
    return _with_drawn(taken, model, wanted, seed)


class _Source(NamedTuple):
    """Another model: its configuration and shapes, and `take(wanted)` for fitting parameters."""

    name: str
    config: ModelConfig
    tokenizer_hash: str
    labels: tuple[str, ...]
    shapes: dict[str, tuple[int, ...]]
    take: Callable[[dict[str, Any]], dict[str, jax.Array]]


def _open_hugging_face(init_from: str) -> _Source:
    try:
        weights = read_folder(init_from.removeprefix(HUGGING_FACE_PREFIX))
    except BertjaxError as error:
        raise ConfigError(f"config.init_from={init_from}: {error}") from error
    assert weights.tokenizer is not None
    theirs = flatten(weights.params)

    def take(wanted: dict[str, Any]) -> dict[str, jax.Array]:
        return {
            path: _on_devices(theirs[path], leaf)
            for path, leaf in wanted.items()
            if path in theirs and theirs[path].shape == leaf.shape
        }

    tokenizer_hash = weights.tokenizer.hash
    their_shapes = {path: array.shape for path, array in theirs.items()}
    return _Source(init_from, weights.config, tokenizer_hash, weights.labels, their_shapes, take)


def _open_checkpoint(init_from: str) -> _Source:
    try:
        checkpoint = resolve(best_path(init_from))
        config = model_config(checkpoint)
        workdir = workdir_of(checkpoint)
        labels = read_labels(workdir / LABELS, config) if workdir else ()
    except BertjaxError as error:
        advice = ""
        if not is_bucket_path(init_from) and is_hugging_face(Path(init_from)):
            advice = f"; for a Hugging Face folder write {HUGGING_FACE_PREFIX}{init_from}"
        raise ConfigError(f"config.init_from={init_from}: {error}{advice}") from error
    theirs = flatten(abstract_params(config))
    return _Source(
        str(checkpoint.path),
        config,
        checkpoint.progress["tokenizer_hash"],
        labels,
        {path: leaf.shape for path, leaf in theirs.items()},
        functools.partial(_restore, checkpoint, theirs),
    )


def _restore(
    source: Checkpoint, theirs: dict[str, Any], wanted: dict[str, Any]
) -> dict[str, jax.Array]:
    """Restores a whole checkpoint, and returns the wanted parameters with their shardings."""
    shared = {p for p, leaf in theirs.items() if p in wanted and wanted[p].shape == leaf.shape}
    target = theirs | {path: wanted[path] for path in shared}
    restored = flatten(source.restore_params(unflatten(target)))
    return {path: restored[path] for path in shared}


def _in_order_of(
    labels: tuple[str, ...], theirs: tuple[str, ...], taken: dict[str, jax.Array]
) -> dict[str, jax.Array]:
    """`taken` with the head's outputs in the order of `labels`; without a head of other labels."""
    of_labels = {
        layer for head in HEADS.values() if head.labels_have_names for layer in head.layers
    }
    heads = [path for path in taken if part(path) in of_labels]
    if labels == theirs or not heads:
        return taken
    if set(labels) != set(theirs):
        _LOG.warning(
            "its %s is left: it is for %s, not for %s",
            part(heads[0]),
            ", ".join(theirs) or "labels without names",
            ", ".join(labels) or "labels without names",
        )
        return {path: array for path, array in taken.items() if path not in heads}
    order = np.array([theirs.index(label) for label in labels])
    _LOG.info("the outputs of its %s are put into another order: %s", part(heads[0]), labels)
    return taken | {
        path: jax.jit(lambda x: x[..., order], out_shardings=taken[path].sharding)(taken[path])
        for path in heads
    }


def _with_drawn(
    taken: dict[str, Any], model: ModelConfig, wanted: dict[str, Any], seed: int
) -> dict[str, Any]:
    """A tree of `taken` and, initialized from the seed, the missing parameters of `wanted`."""
    missing = [path for path in wanted if path not in taken]
    if missing:
        _LOG.warning(
            "initialized from seed %d, because the source lacks them: %s",
            seed,
            ", ".join(sorted({part(path) for path in missing})),
        )

        def draw(seed: jax.Array) -> dict[str, jax.Array]:
            params = flatten(init_params(model, seed))
            return {path: params[path] for path in missing}

        shardings = {path: wanted[path].sharding for path in missing}
        given = np.uint32(seed)  # an argument, so that another seed is no other program
        lowered = jax.jit(draw, out_shardings=shardings).lower(given)
        taken = taken | compile_once(lowered, shardings[missing[0]].mesh)(given)
    return unflatten({path: taken[path] for path in wanted})


def _on_devices(array: np.ndarray, leaf: Any) -> jax.Array:
    """A host array with the sharding of `leaf`; each process puts its part."""
    return jax.make_array_from_callback(leaf.shape, leaf.sharding, lambda index: array[index])


def _check_same_model(init_from: str, theirs: ModelConfig, ours: ModelConfig) -> None:
    """Refuses another model, and names the flags that make this model like it."""
    changed = [
        field.name
        for field in dataclasses.fields(ours)
        if not setting_of(field).not_of_encoder
        and not may_change(Config, f"model.{field.name}")
        and getattr(theirs, field.name) != getattr(ours, field.name)
    ]
    if changed:
        listed = "; ".join(
            f"model.{name}: {getattr(theirs, name)!r} there, {getattr(ours, name)!r} here"
            for name in changed
        )
        flags = " ".join(f"--config.model.{name}={getattr(theirs, name)}" for name in changed)
        raise ConfigError(f"config.init_from={init_from} is another model ({listed}). Set {flags}")


def _check_same_encoder(
    init_from: str, theirs: Mapping[str, tuple[int, ...]], wanted: Mapping[str, Any]
) -> None:
    """Refuses an encoder with other parameters: only pooler and heads may differ."""
    encoders = [
        {path: shape for path, shape in shapes if part(path) in ("embeddings", "encoder")}
        for shapes in (theirs.items(), ((path, leaf.shape) for path, leaf in wanted.items()))
    ]
    if encoders[0] != encoders[1]:
        differing = sorted(dict(encoders[0].items() ^ encoders[1].items()))
        there, here = (encoder.get(differing[0], "missing") for encoder in encoders)
        raise ConfigError(
            f"config.init_from={init_from} has another encoder: {len(differing)} parameters "
            f"differ, such as {differing[0]} ({there} there, {here} here): set config.model as "
            "there, or start without init_from"
        )
