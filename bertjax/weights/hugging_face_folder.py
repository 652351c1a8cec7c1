"""Reads and writes a Hugging Face folder: config.json, safetensors, tokenizer files."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from bertjax.data.tokenizers.hugging_face_tokenizer import hugging_face_files
from bertjax.data.tokenizers.tokenizer import load_folder
from bertjax.data.tokenizers.vocabulary import Tokenizer, TokenizerError
from bertjax.weights.hugging_face import BUFFERS, from_bertjax, to_bertjax
from bertjax.weights.hugging_face_config import from_model_config, to_model_config
from bertjax.weights.weights import Weights, WeightsError

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"


def is_hugging_face(path: Path) -> bool:
    """Whether a folder looks like one that transformers wrote, for any model."""
    if not (path / CONFIG).is_file():
        return False
    return any(path.glob("*.safetensors*")) or any(path.glob("pytorch_model*.bin*"))


def read_folder(path: str | Path, tokenizer: Tokenizer | None = None) -> Weights:
    """Reads a folder that transformers wrote.

    Args:
      path: the folder: config.json, model.safetensors or its index and shards, tokenizer files.
      tokenizer: None = the one in the folder.

    Returns:
      The weights in float32; float16 and bfloat16 tensors are widened, which is exact.

    Raises:
      WeightsError: a file is missing or broken, bertjax does not have the model, or its tensors do
        not fit config.json.
      TokenizerError: the tokenizer is not a BERT tokenizer, or does not fit the word table.
    """
    path = Path(path)
    values = read_json(path / CONFIG)
    files = _tensor_files(path)
    config, labels = to_model_config(values, files, str(path / CONFIG))
    if tokenizer is None:
        tokenizer = load_folder(path)
        recorded = (values.get("bertjax") or {}).get("tokenizer_hash", tokenizer.hash)
        if recorded != tokenizer.hash:
            raise TokenizerError(
                f"{path}: the tokenizer's hash is {tokenizer.hash}, but {CONFIG} says that the "
                f"weights were trained with {recorded}; its files were changed"
            )
    if tokenizer.vocab_size != config.vocab_size:
        raise TokenizerError(
            f"{path}: the vocabulary has {tokenizer.vocab_size} pieces, the word table "
            f"{config.vocab_size} (vocab_size in {CONFIG})"
        )
    params = to_bertjax(_read_tensors(path, files), config, str(path))
    return Weights(str(path), config, params, tokenizer, labels)


def write_folder(weights: Weights, path: Path) -> None:
    """Writes a folder that transformers' `AutoModel` and `AutoTokenizer` open.

    Args:
      weights: with a tokenizer.
      path: an empty folder.

    Raises:
      TokenizerError: the tokenizer has no Hugging Face form.
      OSError: a file cannot be written.
    """
    tokenizer = weights.tokenizer
    assert tokenizer is not None
    config = weights.config
    tokenizer.save(path)
    for name, text in hugging_face_files(tokenizer, config.max_positions).items():
        (path / name).write_text(text, "utf-8")
    values = from_model_config(config, weights.labels, tokenizer.hash, tokenizer.pad_id)
    (path / CONFIG).write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", "utf-8")
    tensors = from_bertjax(weights.params, config, weights.source)
    try:
        save_file(tensors, path / WEIGHTS, metadata={"format": "pt"})
    except SafetensorError as error:  # also for a full disk
        raise OSError(str(error)) from error


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
      WeightsError: there is none.
    """
    try:
        values = json.loads(path.read_text("utf-8"))
    except FileNotFoundError as error:
        raise WeightsError(
            f"{path}: no such file; expected a Hugging Face folder with {CONFIG}, {WEIGHTS} and "
            "the tokenizer's files"
        ) from error
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path}: cannot be read as JSON: {error}") from error
    if not isinstance(values, dict):
        raise WeightsError(f"{path}: expected a JSON object, found {type(values).__name__}")
    return values


def _tensor_files(path: Path) -> dict[str, Path]:
    """The file that holds each tensor, by its name."""
    if (path / INDEX).is_file():
        table = read_json(path / INDEX).get("weight_map")
        if not isinstance(table, dict):
            raise WeightsError(f"{path / INDEX}: has no weight_map; copy the folder again")
        files = {name: path / file for name, file in table.items()}
        for file in sorted(set(files.values())):
            with _opened(file) as tensors:
                absent = {n for n, f in files.items() if f == file} - set(tensors.keys())
            if absent:
                raise WeightsError(
                    f"{file}: {INDEX} says that it holds {', '.join(sorted(absent)[:5])}, but it "
                    "does not; copy the folder again"
                )
        return files
    if not (path / WEIGHTS).is_file():
        pickles = sorted(path.glob("pytorch_model*.bin"))
        if pickles:
            raise _is_pickle(pickles[0])
        raise WeightsError(f"{path}: has no {WEIGHTS} and no {INDEX}")
    with _opened(path / WEIGHTS) as tensors:
        return dict.fromkeys(tensors.keys(), path / WEIGHTS)


def _read_tensors(path: Path, files: dict[str, Path]) -> dict[str, np.ndarray]:
    """All tensors as float32."""
    result = {}
    for file in sorted(set(files.values())):
        with _opened(file) as tensors:
            for name in (name for name, holder in files.items() if holder == file):
                if name in BUFFERS:
                    continue
                dtype = tensors.get_slice(name).get_dtype()
                if dtype not in ("F32", "F16", "BF16"):
                    raise WeightsError(
                        f"{file}: {name} is of the type {dtype}; expected F32, F16 or BF16, which "
                        "float32 holds exactly"
                    )
                result[name] = tensors.get_tensor(name).astype(np.float32, copy=False)
    return result


@contextlib.contextmanager
def _opened(file: Path) -> Iterator[Any]:
    try:
        with safe_open(file, framework="np") as tensors:
            yield tensors
    except (SafetensorError, OSError) as error:
        if file.is_file() and _begins_as_pickle(file):
            raise _is_pickle(file) from error
        raise WeightsError(
            f"{file}: not a whole safetensors file: {error}; copy or download it again"
        ) from error


def _begins_as_pickle(file: Path) -> bool:
    """Whether a file begins like those of torch.save: a zip archive, or a pickle before 1.6."""
    with file.open("rb") as opened:
        start = opened.read(4)
    return start == b"PK\x03\x04" or (start[:1] == b"\x80" and start[1:2] in b"\2\3\4\5")


def _is_pickle(file: Path) -> WeightsError:
    old = file.with_name("pytorch_model.bin")
    rename = "" if file.suffix == ".bin" else f"rename it to {old} and "
    return WeightsError(
        f"{file}: is a pickle, which can run any code when it is opened; expected safetensors. "
        f"Where you trust it, {rename}write it again with transformers: python -c 'import "
        f'transformers; transformers.AutoModelForPreTraining.from_pretrained("{file.parent}")'
        ".save_pretrained(\"NEW_FOLDER\", safe_serialization=True)' and copy the tokenizer's files"
    )
