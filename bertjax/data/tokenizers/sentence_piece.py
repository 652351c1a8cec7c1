"""SentencePiece behind the tokenizer interface. The library is imported when one is made.

A model needs [PAD], [UNK], [CLS], [SEP] and [MASK]. [UNK] is the model's own unknown piece and
[PAD] its padding piece, under any name; the others are found by name. Pieces that the model lacks
are appended after its last id, then `[unusedN]` up to the requested size.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import chain, groupby
from pathlib import Path
from typing import Any, cast

import numpy as np

from bertjax.data.tokenizers.vocabulary import (
    SPECIAL_PIECES,
    Tokenizer,
    TokenizerError,
    with_filler,
)

WORD_START = "▁"
# Scripts without spaces: Thai, Lao, Tibetan, Myanmar, Khmer, kana, Chinese characters.
_UNSPACED = re.compile(
    "[\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff"
    "\uf900-\ufaff\U00020000-\U0003ffff]"
)


def _begins_word(piece: str) -> bool:
    """True after a space, and for each piece of a script without spaces (else one huge word)."""
    return piece.startswith(WORD_START) or bool(_UNSPACED.match(piece))


class SentencePieceTokenizer(Tokenizer):
    """A SentencePiece model with special pieces.

    `lower_case` says what the model's own normalizer does.

    Args:
        model: the bytes of a .model file.
        vocab_size: fill up to this size with `[unusedN]`; None = the model and its special pieces.
        source: name of the model in errors.

    Raises:
        TokenizerError: the bytes are not a model, or it has more than `vocab_size` pieces.
    """

    kind = "sentencepiece"
    content_file = "spm.model"

    def __init__(
        self, model: bytes, *, vocab_size: int | None = None, source: str = "SentencePiece model"
    ):
        import sentencepiece

        try:
            if not model:  # the library accepts empty bytes as a model without pieces
                raise RuntimeError("it is empty")
            processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        except (RuntimeError, OSError) as error:
            raise TokenizerError(
                f"{source}: not a SentencePiece model ({error}); give a vocabulary of lines as "
                "wordpiece:PATH"
            ) from error
        size = processor.vocab_size()
        pieces = [processor.id_to_piece(id) for id in range(size)]
        special_ids = {p: id for id, p in enumerate(pieces) if p in SPECIAL_PIECES}
        special_ids["[UNK]"] = processor.unk_id()
        if processor.pad_id() >= 0:
            special_ids["[PAD]"] = processor.pad_id()
        for piece in SPECIAL_PIECES:
            if piece not in special_ids:
                special_ids[piece] = len(pieces)
                pieces.append(piece)
        pieces = with_filler(pieces, vocab_size, source)
        # Pieces without text begin a word too, so that they never join the word before.
        silent = [
            id >= size or processor.is_control(id) or processor.is_unknown(id)
            for id in range(len(pieces))
        ]
        word_starts = np.array([_begins_word(piece) for piece in pieces]) | silent
        super().__init__(
            pieces,
            special_ids=special_ids,
            word_starts=word_starts,
            lower_case=processor.normalize("A").lstrip(WORD_START) == "a",
            content=model,
        )
        self._processor = processor
        self._model_size = size
        # A model may give a special piece to text that spells it; text must not forge one.
        self._from_text = np.arange(size, dtype=self.dtype)
        for id in self.special_ids:
            if id < size:
                self._from_text[id] = self.unk_id

    @classmethod
    def from_file(cls, path: Path, *, lower_case: bool, vocab_size: int) -> SentencePieceTokenizer:
        """See `Tokenizer.from_file`; the model itself says whether it lowers its text."""
        del lower_case
        return load_sentencepiece(path, vocab_size=vocab_size)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as the model's bytes."""
        return _sentencepiece_from_pickle, (self.content, self.vocab_size)

    def encode(self, text: str) -> list[int]:
        """Return the ids of `text`."""
        return cast(list[int], self.encode_sentences([text])[0].tolist())

    def encode_within(self, text: str) -> list[int]:
        """See `Tokenizer.encode_within`: without the mark of a word's start in the first piece."""
        ids = self.encode(text)
        if ids and (piece := self.id_to_piece(ids[0])).startswith(WORD_START):
            rest = piece.removeprefix(WORD_START)
            id = self._processor.piece_to_id(rest)
            if not rest or id != self.unk_id:
                ids[:1] = [id] if rest else []
        return ids

    def encode_sentences(self, sentences: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """See `Tokenizer.encode_sentences`."""
        # Encoded here, because the library fails on half of a surrogate pair.
        texts = [sentence.encode("utf-8", "replace") for sentence in sentences]
        encoded = self._processor.encode(texts, out_type=int, num_threads=1) if texts else []
        lengths = np.fromiter(map(len, encoded), np.int64, len(encoded))
        ids = np.fromiter(chain.from_iterable(encoded), self.dtype, int(lengths.sum()))
        return self._from_text[ids], lengths

    def encode_with_offsets(self, text: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """See `Tokenizer.encode_with_offsets`."""
        known = text.encode("utf-8", "replace").decode()  # "?" for each half of a surrogate pair
        encoded = self._processor.encode(known, out_type="offset_mapping")
        offsets = np.array(encoded["offsets"], np.int32).reshape(-1, 2)
        ids = self._from_text[np.array(encoded["ids"], np.int64)]
        return ids, offsets[:, 0].copy(), offsets[:, 1].copy()

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of the pieces, special ones by name."""

        def is_special(id: int) -> bool:
            return id in self.special_ids or id == self.unk_id or id >= self._model_size

        parts: list[str] = []
        for special, group in groupby(map(int, ids), is_special):
            run = list(group)
            parts += map(self.id_to_piece, run) if special else [self._processor.decode(run)]
        return " ".join(parts)


def _sentencepiece_from_pickle(model: bytes, vocab_size: int) -> SentencePieceTokenizer:
    return SentencePieceTokenizer(model, vocab_size=vocab_size)


def load_sentencepiece(
    path: str | Path, *, vocab_size: int | None = None
) -> SentencePieceTokenizer:
    """Load a .model file, filled up to `vocab_size` if that is given.

    Raises:
        TokenizerError: the file is not a SentencePiece model, or larger than `vocab_size`.
    """
    try:
        model = Path(path).read_bytes()
    except OSError as error:
        raise TokenizerError(f"{path}: cannot be read: {error.strerror}") from error
    return SentencePieceTokenizer(model, vocab_size=vocab_size, source=str(path))
