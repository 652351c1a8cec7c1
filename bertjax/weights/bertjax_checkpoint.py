"""Weights from a bertjax workdir or checkpoint, and a workdir with one checkpoint from weights."""

from __future__ import annotations

import dataclasses
import json
import platform
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np

from bertjax.checkpoints.checkpoint import Checkpoint, CheckpointStore, resolve
from bertjax.checkpoints.loadable_workdir import LABELS, SCORES, TOKENIZER_FOLDER, keep_labels
from bertjax.config import Config, ConfigError, ModelConfig
from bertjax.data.tokenizers.tokenizer import load_tokenizer
from bertjax.data.tokenizers.vocabulary import Tokenizer, TokenizerError
from bertjax.storage.bucket import BucketPath, as_path
from bertjax.version import __version__
from bertjax.weights.weights import Weights, WeightsError


def model_config(checkpoint: Checkpoint) -> ModelConfig:
    """The model's configuration in a checkpoint."""
    try:
        return Config.from_json(json.dumps({"model": checkpoint.config["model"]})).model
    except ConfigError as error:
        raise ConfigError(f"{checkpoint.path}: {error}") from error


def read_checkpoint(path: str | Path, tokenizer: Tokenizer | None = None) -> Weights:
    """Reads the parameters of a workdir's newest intact checkpoint, or of one checkpoint.

    For a finished fine-tuning it is the best checkpoint, which scores.json names.

    Args:
      path: see `bertjax.checkpoints.checkpoint.resolve`; also gs://.
      tokenizer: None = the copy in the workdir.

    Raises:
      CheckpointError: there is no intact checkpoint.
      TokenizerError: the workdir has no tokenizer, or it is not the one of the run.
      WeightsError: labels.json does not fit the head, or it or scores.json is broken.
    """
    checkpoint = resolve(best_path(path))
    workdir = workdir_of(checkpoint)
    if isinstance(workdir, BucketPath):
        with tempfile.TemporaryDirectory() as copy:
            for name in workdir.files():
                if name.startswith(f"{TOKENIZER_FOLDER}/") or name == LABELS:
                    (Path(copy) / name).parent.mkdir(exist_ok=True)
                    (Path(copy) / name).write_bytes((workdir / name).read_bytes())
            return _read(checkpoint, Path(copy), tokenizer)
    return _read(checkpoint, workdir, tokenizer)


def workdir_of(checkpoint: Checkpoint) -> Path | BucketPath | None:
    """The workdir of a checkpoint; None if it is in none."""
    folder = checkpoint.path.parent
    return folder.parent if folder.name == "checkpoints" else None


def best_path(path: str | Path) -> Path | BucketPath:
    """The best checkpoint of a workdir that names one, else the path.

    Raises:
      WeightsError: its scores.json is broken.
    """
    where = as_path(path)
    scores = where / SCORES
    if scores.is_file():
        try:
            best = json.loads(scores.read_text()).get("best_step")
        except (OSError, ValueError, AttributeError) as error:
            raise WeightsError(
                f"{scores}: cannot be read as JSON: {error}; run the fine-tuning again, which "
                "writes it anew, or name one of the checkpoints"
            ) from error
        if best is not None:
            return where / "checkpoints" / f"step_{best:08d}"
    return where


def _read(checkpoint: Checkpoint, workdir: Path | None, tokenizer: Tokenizer | None) -> Weights:
    """Reads a checkpoint, and the tokenizer and labels of its workdir."""
    config, path = model_config(checkpoint), checkpoint.path
    if tokenizer is None:
        if workdir is None or not (workdir / TOKENIZER_FOLDER).is_dir():
            where = f"no folder {workdir / TOKENIZER_FOLDER}" if workdir else "it is in no workdir"
            raise TokenizerError(
                f"{checkpoint.path}: its tokenizer is not there ({where}); name it, for example "
                "the folder tokenizer of the store that the run was trained on: "
                f'bertjax.load("{path}", tokenizer="STORE/tokenizer"), or --tokenizer'
            )
        tokenizer = load_tokenizer(workdir / TOKENIZER_FOLDER)
    expected = checkpoint.progress["tokenizer_hash"]
    if tokenizer.hash != expected:
        raise TokenizerError(
            f"{checkpoint.path} was trained with the tokenizer {expected[:12]}, but the one given "
            f"is {tokenizer.hash[:12]}; give the tokenizer of that run"
        )
    labels = read_labels(workdir / LABELS, config) if workdir else ()
    params, task = checkpoint.restore_params(), checkpoint.config.get("task")
    return Weights(str(checkpoint.path), config, params, tokenizer, labels, task)


def write_checkpoint(weights: Weights, path: Path) -> None:
    """Writes a workdir with one checkpoint, of step 0 and without optimizer state.

    `config.init_from` and `bertjax.load` open it.

    Args:
      weights: with a tokenizer.
      path: an empty folder.
    """
    assert weights.tokenizer is not None
    progress = {
        "step": 0,
        "phase": 0,
        "position": 0,
        "seconds": 0.0,
        "tokenizer_hash": weights.tokenizer.hash,
        "store_hash": "",  # no store
        "devices": "",
        "versions": {"bertjax": __version__, "python": platform.python_version()},
        "converted_from": weights.source,
    }
    config = dataclasses.asdict(Config(model=weights.config))
    with CheckpointStore(path, keep=0) as checkpoints:
        params = jax.tree.map(np.ascontiguousarray, weights.params)
        checkpoints.save(0, params, {}, progress, config)
    weights.tokenizer.save(path / TOKENIZER_FOLDER)
    keep_labels(path, weights.labels)


def read_labels(path: Path | BucketPath, config: ModelConfig) -> tuple[str, ...]:
    """The labels of a workdir's labels.json; () if there is none.

    Raises:
      WeightsError: the file is broken or does not fit the head.
    """
    if not path.is_file():
        return ()
    try:
        labels: Any = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path}: cannot be read as JSON: {error}") from error
    if not isinstance(labels, list) or len(labels) != config.num_labels:
        raise WeightsError(
            f"{path}: expected a list of {config.num_labels} names, as many as the head "
            f"{config.head!r} has labels"
        )
    return tuple(map(str, labels))
