"""Checkpoints of google-research/bert (TensorFlow 1): bert_config.json, vocab.txt, *.ckpt.*.

Kernels are [in, out] as in bertjax, but the weights of the last layers (`output_weights`) are
[out, in]. TensorFlow is imported only when a checkpoint is read. GELU is the tanh form, as in the
reference at HEAD.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from bertjax.config import ModelConfig
from bertjax.data.tokenizers.vocabulary import (
    Tokenizer,
    TokenizerError,
    check_word_table,
    with_filler,
)
from bertjax.data.tokenizers.wordpiece import WordPieceTokenizer, guess_casing, read_vocabulary
from bertjax.heads import ENCODER_ALONE, HEADS, of_width
from bertjax.parameters import parameters
from bertjax.weights.hugging_face_config import FIELDS
from bertjax.weights.hugging_face_folder import read_json
from bertjax.weights.weights import Name, Weights, WeightsError, to_tree

CONFIG = "bert_config.json"
_OPTIMIZER = re.compile(r"global_step|.*/(adam|lamb)_[mv]|.*/Adam(_1)?|beta\d_power")


def is_tf1(path: Path) -> bool:
    """Whether a path is a folder with a TF1 checkpoint, or the prefix of one."""
    if path.is_dir():
        return (path / CONFIG).is_file() and any(path.glob("*.index"))
    return path.with_name(f"{path.name}.index").is_file()


def read_tf1(path: str | Path, tokenizer: Tokenizer | None = None) -> Weights:
    """Reads a checkpoint of google-research/bert: pre-trained, or fine-tuned by its scripts.

    Args:
      path: the folder, or the prefix of one of its checkpoints (`FOLDER/model.ckpt-1000`).
      tokenizer: None = vocab.txt beside it; its letters decide whether it lowers case.

    Raises:
      WeightsError: a file is missing or broken, or the tensors do not fit bert_config.json.
      TokenizerError: the casing of vocab.txt is not clear, or it does not fit.
    """
    path = Path(path)
    folder, prefix = (path, _find_prefix(path)) if path.is_dir() else (path.parent, path)
    values = read_json(folder / CONFIG)
    tensors = _read_tensors(prefix)
    config = _to_model_config(values, tensors, folder / CONFIG)
    if tokenizer is None:
        tokenizer = _read_tokenizer(folder / "vocab.txt", config.vocab_size)
    if tokenizer.vocab_size != config.vocab_size:
        raise TokenizerError(
            f"{folder}: the vocabulary has {tokenizer.vocab_size} pieces, the word table "
            f"{config.vocab_size} (vocab_size in {CONFIG})"
        )
    names = {
        ours: Name(line.tf1, line.tf1.endswith("output_weights"))
        for ours, line in parameters(config).items()
    }
    params = to_tree(tensors, names, config, str(prefix))
    return Weights(str(prefix), config, params, tokenizer)


def _find_prefix(folder: Path) -> Path:
    prefixes = sorted(path.with_suffix("") for path in folder.glob("*.index"))
    if len(prefixes) > 1:
        raise WeightsError(
            f"{folder}: has several checkpoints ({', '.join(p.name for p in prefixes)}); name one, "
            f"for example {prefixes[-1]}"
        )
    return prefixes[0]


def _read_tensors(prefix: Path) -> dict[str, np.ndarray]:
    """All tensors except the optimizer's."""
    import tensorflow as tf

    try:
        reader: Any = tf.train.load_checkpoint(str(prefix))
        names = [
            name for name in reader.get_variable_to_shape_map() if not _OPTIMIZER.fullmatch(name)
        ]
        tensors = {name: np.asarray(reader.get_tensor(name)) for name in names}
    except (tf.errors.OpError, RuntimeError, ValueError) as error:
        raise WeightsError(f"{prefix}: not a whole TensorFlow checkpoint: {error}") from error
    for name, tensor in tensors.items():
        if tensor.dtype != np.float32:
            raise WeightsError(f"{prefix}: {name} is of the type {tensor.dtype}; expected float32")
    return tensors


def _to_model_config(
    values: dict[str, Any], tensors: dict[str, np.ndarray], path: Path
) -> ModelConfig:
    if values.get("hidden_act", "gelu") != "gelu":
        raise WeightsError(f"{path}: hidden_act is {values['hidden_act']!r}; expected 'gelu'")
    default = ModelConfig()
    fields = {ours: values.get(theirs, getattr(default, ours)) for ours, theirs in FIELDS.items()}
    fields["layer_norm_eps"] = 1e-12  # a constant of the code
    found = [head for head in HEADS.values() if head.tf1_tensor in tensors]
    # For a fine-tuned model, those of the task.
    heads = [head for head in found if head.outputs] or found or [ENCODER_ALONE]
    num_labels = len(tensors[heads[0].tf1_tensor]) if heads[0].fewest_labels else 0
    return ModelConfig(
        **fields,
        gelu="tanh",
        head=of_width(heads, num_labels).name,
        next_sentence="cls/seq_relationship/output_weights" in tensors,
        pooler="bert/pooler/dense/kernel" in tensors,
        num_labels=num_labels,
    )


def _read_tokenizer(path: Path, vocab_size: int) -> Tokenizer:
    pieces = read_vocabulary(path)
    check_word_table(len(pieces), vocab_size, str(path))
    pieces = with_filler(pieces, vocab_size, str(path))
    lower_case = guess_casing(pieces)
    if lower_case is None:
        raise TokenizerError(
            f"{path}: its letters do not say whether text is lowered, and a TF1 checkpoint does "
            "not either; give the folder of a tokenizer that Tokenizer.save wrote (tokenizer=, "
            "--tokenizer)"
        )
    return WordPieceTokenizer(pieces, lower_case=lower_case, source=str(path))
