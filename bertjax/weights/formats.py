"""Which format a folder of weights has."""

from __future__ import annotations

from pathlib import Path

from bertjax.data.tokenizers.vocabulary import Tokenizer
from bertjax.storage.bucket import is_bucket_path
from bertjax.weights.hugging_face_folder import is_hugging_face, read_folder
from bertjax.weights.tf1 import is_tf1, read_tf1
from bertjax.weights.weights import Weights, WeightsError

HUGGING_FACE, TF1, BERTJAX = "huggingface", "tf1", "bertjax"


def detect_format(path: Path) -> str:
    """Names the format: "huggingface", "tf1" or "bertjax" (anything else that is a folder).

    Raises:
      WeightsError: there is no such folder.
    """
    if is_tf1(path):
        return TF1
    if not path.is_dir():
        raise WeightsError(
            f"{path}: no such folder; expected a bertjax workdir or checkpoint, a Hugging Face "
            "folder or a TF1 checkpoint of BERT"
        )
    return HUGGING_FACE if is_hugging_face(path) else BERTJAX


def read_weights(path: str | Path, tokenizer: Tokenizer | None = None) -> Weights:
    """Reads a bertjax workdir or checkpoint, a Hugging Face folder or a TF1 checkpoint.

    Args:
      path: the folder, or the prefix of a TF1 checkpoint; gs:// for a bertjax one.
      tokenizer: None = the one in the folder of the weights.

    Raises:
      WeightsError: the weights cannot be read, or bertjax does not have this model.
      TokenizerError: there is no tokenizer, or it does not belong to the weights.
      CheckpointError: a bertjax checkpoint is missing or corrupt.
    """
    if not is_bucket_path(path):
        found = detect_format(Path(path))
        if found == HUGGING_FACE:
            return read_folder(path, tokenizer)
        if found == TF1:
            return read_tf1(Path(path), tokenizer)
    from bertjax.weights.bertjax_checkpoint import read_checkpoint  # imports orbax

    return read_checkpoint(path, tokenizer)
