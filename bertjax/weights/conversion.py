"""Converts weights to another format: a new folder, written completely or not at all."""

from __future__ import annotations

import logging
from pathlib import Path

from bertjax.data.tokenizers.tokenizer import load_folder
from bertjax.data.tokenizers.vocabulary import Tokenizer
from bertjax.storage.atomic_files import whole_folder
from bertjax.storage.bucket import is_bucket_path
from bertjax.weights.formats import BERTJAX, HUGGING_FACE, detect_format, read_weights
from bertjax.weights.hugging_face_folder import write_folder
from bertjax.weights.weights import Weights, WeightsError, flatten

_LOG = logging.getLogger(__name__)


def convert_checkpoint(
    source: str | Path,
    output: str | Path,
    to: str | None = None,
    tokenizer: str | Path | Tokenizer | None = None,
) -> Weights:
    """Converts a folder of weights, heads, labels and tokenizer included.

    Args:
      source: as in `bertjax.load`, gs:// too.
      output: a new folder on this machine.
      to: "huggingface" or "bertjax"; None = the other one.
      tokenizer: a tokenizer or a folder with one; None = the one in the folder of the weights.

    Returns:
      What was converted.

    Raises:
      WeightsError: the weights cannot be read, they have the format already, or `output` exists.
      TokenizerError: there is no tokenizer, or it has no such form.
      CheckpointError: a bertjax checkpoint is corrupt, or cannot be written.
    """
    if isinstance(tokenizer, (str, Path)):
        tokenizer = load_folder(tokenizer)
    if is_bucket_path(output):
        raise WeightsError(f"{output}: is in a bucket; convert to a folder and copy that there")
    output = Path(output)
    found = BERTJAX if is_bucket_path(source) else detect_format(Path(source))
    to = to or (HUGGING_FACE if found == BERTJAX else BERTJAX)
    if to == found:
        raise WeightsError(f"{source}: has the format {found} already; nothing to convert")
    weights = read_weights(source, tokenizer)
    assert weights.tokenizer is not None
    try:
        with whole_folder(output) as folder:
            if to == HUGGING_FACE:
                write_folder(weights, folder)
            else:
                from bertjax.weights.bertjax_checkpoint import write_checkpoint  # imports orbax

                write_checkpoint(weights, folder)
    except OSError as error:
        raise WeightsError(f"{output}: cannot be written: {error}") from error
    _LOG.info(
        "%s: %s parameters, head %s, GELU %s, %s pieces, %s, tokenizer %s",
        output,
        f"{sum(leaf.size for leaf in flatten(weights.params).values()):,}",
        weights.config.head,
        weights.config.gelu,
        f"{weights.tokenizer.vocab_size:,}",
        "case lowered" if weights.tokenizer.lower_case else "case kept",
        weights.tokenizer.hash[:12],
    )
    return weights
