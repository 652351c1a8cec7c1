"""What all tokenizers have: pieces, special ids, word starts, a hash, and a folder on disk.

`tokenizer.py` is the entry point; `wordpiece.py` and `sentence_piece.py` are the two
kinds that bertjax has; `register_tokenizer` adds others.
"""

from __future__ import annotations

import abc
import hashlib
import itertools
import json
import sys
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np

from bertjax.errors import BertjaxError

METADATA_FILE = "bertjax_tokenizer.json"
FORMAT_VERSION = 1
SPECIAL_PIECES = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def token_dtype(vocab_size: int) -> np.dtype:
    """The dtype of stored ids: uint16 if it holds every id, else uint32."""
    return np.dtype(np.uint16 if vocab_size <= 1 << 16 else np.uint32)


class TokenizerError(BertjaxError, ValueError):
    """A vocabulary, model or tokenizer folder that cannot be used; says which and why."""


class Tokenizer(abc.ABC):
    """Text to ids and back. No special tokens are added, and text never becomes one.

    A class of your own defines `kind`, `content_file`, `from_file`, `encode` and `decode`.

    Attributes:
        kind: the name of the class in a saved folder.
        content_file: the name of the vocabulary or model in a saved folder.
        pieces: the piece of each id.
        vocab_size: number of ids.
        pad_id, unk_id, cls_id, sep_id, mask_id: ids of the special pieces.
        special_ids: ids that are never candidates for masking: [PAD], [CLS], [SEP], [MASK]. An
            [UNK] is a word of the text and a candidate, as in the reference
            (google-research/bert, create_pretraining_data.py).
        lower_case: True if upper and lower case give the same ids.
        word_starts: bool [v], True where a piece begins a word; special pieces count as words.
        dtype: of stored ids: uint16 for up to 65,536 ids, else uint32.
        content: the bytes of the vocabulary or model.
        hash: sha256, hexadecimal, over everything that decides the ids of a text.
    """

    kind: ClassVar[str]
    content_file: ClassVar[str]

    def __init__(
        self,
        pieces: Sequence[str],
        *,
        special_ids: dict[str, int],
        word_starts: np.ndarray,
        lower_case: bool,
        content: bytes,
    ):
        self.pieces = tuple(pieces)
        self.vocab_size = len(self.pieces)
        self.pad_id, self.unk_id, self.cls_id, self.sep_id, self.mask_id = (
            special_ids[piece] for piece in SPECIAL_PIECES
        )
        self.special_ids = (self.pad_id, self.cls_id, self.sep_id, self.mask_id)
        self.lower_case = lower_case
        self.word_starts = word_starts
        self.word_starts.flags.writeable = False
        self.dtype = token_dtype(self.vocab_size)
        self.content = content
        behaviour = {"kind": self.kind, "lower_case": lower_case, "vocab_size": self.vocab_size}
        self.hash = hashlib.sha256(
            json.dumps(behaviour, sort_keys=True).encode() + b"\n" + content
        ).hexdigest()

    @classmethod
    @abc.abstractmethod
    def from_file(cls, path: Path, *, lower_case: bool, vocab_size: int) -> Self:
        """Load what `save` wrote.

        Args:
            path: of `content_file`, which has the bytes of `content`.
            lower_case: of the tokenizer that was saved.
            vocab_size: likewise.

        Raises:
            TokenizerError: the file cannot be used.
        """

    @abc.abstractmethod
    def encode(self, text: str) -> list[int]:
        """Return the ids of `text`."""

    def encode_within(self, text: str) -> list[int]:
        """Return the ids of `text` that follows another piece without a space."""
        return self.encode(text)

    def encode_sentences(self, sentences: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Encode many sentences at once: the fast path of `prepare`.

        Args:
            sentences: texts, each encoded on its own. Call it with many (a document or more).

        Returns:
            The ids of all sentences one after the other, in `dtype`, and int64 [len(sentences)],
            the number of ids of each; a sentence without any (white space only) has 0.
        """
        encoded = [self.encode(sentence) for sentence in sentences]
        lengths = np.fromiter(map(len, encoded), np.int64, len(encoded))
        ids = itertools.chain.from_iterable(encoded)
        return np.fromiter(ids, self.dtype, int(lengths.sum())), lengths

    def encode_with_offsets(self, text: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the ids of `text`, and int32 start and end of each piece in it, in characters.

        White space before a word may be part of the word's first piece.

        Raises:
            TokenizerError: tokenizers of this kind cannot say it.
        """
        raise TokenizerError(
            f"tokenizers of kind {self.kind!r} do not say where in the text a piece is, which "
            "squad and ner need: define encode_with_offsets in the class"
        )

    @abc.abstractmethod
    def decode(self, ids: Iterable[int]) -> str:
        """Return readable text; characters that the tokenizer dropped are lost."""

    def id_to_piece(self, id: int) -> str:
        """Return the piece of an id.

        Raises:
            IndexError: the id is not in [0, vocab_size).
        """
        if id < 0:
            raise IndexError(f"id {id} is negative")
        return self.pieces[id]

    def save(self, folder: str | Path) -> None:
        """Write the vocabulary or model and, last, `bertjax_tokenizer.json` that describes it."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / self.content_file).write_bytes(self.content)
        metadata: dict[str, Any] = {
            "format_version": FORMAT_VERSION,
            "kind": self.kind,
            "file": self.content_file,
            "lower_case": self.lower_case,
            "vocab_size": self.vocab_size,
            "special_pieces": {
                "pad": self.pad_id,
                "unk": self.unk_id,
                "cls": self.cls_id,
                "sep": self.sep_id,
                "mask": self.mask_id,
            },
            "hash": self.hash,
            # Not in the hash: a later Unicode only adds characters that had no meaning before.
            "unicode_version": unicodedata.unidata_version,
        }
        if module := _module_of_user(type(self)):
            metadata["module"] = module  # to be imported before the folder can be loaded
        (folder / METADATA_FILE).write_text(json.dumps(metadata, indent=2) + "\n")


def _module_of_user(kind: type) -> str:
    """The module of a class that is not of bertjax, of a script by its file; "" if not known."""
    module = kind.__module__
    if module == "__main__":
        return Path(getattr(sys.modules[module], "__file__", None) or "").stem
    return "" if module.startswith("bertjax.") else module


def check_word_table(num_pieces: int, table_size: int, source: str) -> None:
    """Checks that a vocabulary fits a model whose word table has this many rows.

    Tables have the size of the vocabulary, or that rounded up to a multiple of a power of two.

    Raises:
        TokenizerError: it is not.
    """
    multiples = (2**n for n in range(11))  # 1 to 1,024
    if table_size not in {-(-num_pieces // n) * n for n in multiples}:
        raise TokenizerError(
            f"{source}: has {num_pieces:,} pieces, but the model's word table {table_size:,} rows, "
            "which is not that number rounded up either; the file is cut short or belongs to "
            "another model"
        )


def with_filler(pieces: Sequence[str], vocab_size: int | None, source: str) -> list[str]:
    """Return `pieces` filled up to `vocab_size` with `[unusedN]`, N counting names not yet taken.

    None leaves the size as it is.

    Raises:
        TokenizerError: there are more pieces than that.
    """
    filled = list(pieces)
    if vocab_size is None:
        return filled
    if len(filled) > vocab_size:
        raise TokenizerError(
            f"{source}: has {len(filled)} pieces, more than the vocabulary size of {vocab_size} "
            f"that was asked for; leave out --vocab_size or give at least {len(filled)}"
        )
    taken = set(filled)
    names = (name for i in itertools.count() if (name := f"[unused{i}]") not in taken)
    return [*filled, *itertools.islice(names, vocab_size - len(filled))]
