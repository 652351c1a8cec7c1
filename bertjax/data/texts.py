"""Texts and pairs of texts as rows of tokens: special tokens, truncation, padding."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from bertjax.data.stream.pairs import truncated_lengths
from bertjax.data.tokenizers.vocabulary import Tokenizer
from bertjax.errors import BertjaxError

Text = str | tuple[str, str]  # one text, or a pair


class TextError(BertjaxError, ValueError):
    """A text that the model cannot take.

    Attributes:
      index: of the text in the list.
      reason: what is wrong with it, and what was expected.
    """

    def __init__(self, index: int, reason: str):
        super().__init__(f"text {index}: {reason}")
        self.index, self.reason = index, reason


@dataclasses.dataclass(frozen=True)
class Row:
    """`[CLS] A [SEP]` or `[CLS] A [SEP] B [SEP]`.

    Attributes:
      ids: int32 [n].
      num_first: tokens of segment 0: `[CLS] A [SEP]`.
      is_cut: whether the texts were longer.
    """

    ids: np.ndarray
    num_first: int
    is_cut: bool


def make_row(
    tokenizer: Tokenizer, first: Sequence[int], second: Sequence[int] | None, max_length: int
) -> Row:
    """Joins the ids of one text or two, cut to `max_length` tokens with the special ones.

    One text is cut at its end. From two texts, tokens are removed one by one from the longer one,
    the second if they are equally long (google-research/bert, run_classifier.py).
    """
    if second is None:
        a, b = min(len(first), max_length - 2), 0
        is_cut = a < len(first)
        ids = [tokenizer.cls_id, *first[:a], tokenizer.sep_id]
    else:
        lengths = np.array([len(first)]), np.array([len(second)])
        a, b = (int(kept[0]) for kept in truncated_lengths(*lengths, max_length - 3))
        is_cut = a + b < len(first) + len(second)
        ids = [tokenizer.cls_id, *first[:a], tokenizer.sep_id, *second[:b], tokenizer.sep_id]
    return Row(np.array(ids, np.int32), a + 2, is_cut)


def encode_text(tokenizer: Tokenizer, text: Text, max_length: int) -> Row:
    """The row of a text or of a pair of texts.

    Raises:
      TypeError: the argument is neither.
    """
    if isinstance(text, str):
        return make_row(tokenizer, tokenizer.encode(text), None, max_length)
    if isinstance(text, tuple) and len(text) == 2 and all(isinstance(part, str) for part in text):
        first, second = text
        return make_row(tokenizer, tokenizer.encode(first), tokenizer.encode(second), max_length)
    raise TypeError(f"expected a text or a tuple of two texts, found {text!r}")


def encode_masked(tokenizer: Tokenizer, text: str) -> list[int]:
    """The ids of a text in which [MASK] means a masked token; no other text is special.

    Text that follows a mask without a space continues the word.
    """
    ids = tokenizer.encode((parts := text.split("[MASK]"))[0])
    for part in parts[1:]:
        follows = part and not part[0].isspace()
        ids.append(tokenizer.mask_id)
        ids += tokenizer.encode_within(part) if follows else tokenizer.encode(part)
    return ids


def pad_rows(
    rows: Sequence[Row], num_rows: int, length: int, pad_id: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows as one batch, filled up with padding and with rows of padding.

    Returns:
      input_ids, token_type_ids and attention_mask, each int32 [num_rows, length].
    """
    input_ids = np.full((num_rows, length), pad_id, np.int32)
    token_type_ids = np.zeros((num_rows, length), np.int32)
    attention_mask = np.zeros((num_rows, length), np.int32)
    for i, row in enumerate(rows):
        input_ids[i, : len(row.ids)] = row.ids
        token_type_ids[i, row.num_first : len(row.ids)] = 1
        attention_mask[i, : len(row.ids)] = 1
    return input_ids, token_type_ids, attention_mask
