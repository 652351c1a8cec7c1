"""Tokenizers: WordPiece and SentencePiece behind one interface.

tokenizer = from_argument("wordpiece:vocab.txt")       # the value of prepare --tokenizer
ids, lengths = tokenizer.encode_sentences(["A sentence.", "Another."])
tokenizer.save(folder)
tokenizer = load_tokenizer(folder)
"""

from __future__ import annotations

import json
import string
from collections.abc import Iterable
from pathlib import Path

from bertjax.data.tokenizers.hugging_face_tokenizer import load_hugging_face
from bertjax.data.tokenizers.sentence_piece import SentencePieceTokenizer, load_sentencepiece
from bertjax.data.tokenizers.train_tokenizer import train_sentencepiece, train_wordpiece
from bertjax.data.tokenizers.vocabulary import (
    FORMAT_VERSION,
    METADATA_FILE,
    Tokenizer,
    TokenizerError,
)
from bertjax.data.tokenizers.wordpiece import WordPieceTokenizer, guess_casing, load_wordpiece
from bertjax.registry import Registry

__all__ = [
    "SentencePieceTokenizer",
    "Tokenizer",
    "TokenizerError",
    "WordPieceTokenizer",
    "from_argument",
    "load_folder",
    "load_tokenizer",
    "register_tokenizer",
    "train_sentencepiece",
    "train_wordpiece",
]

DEFAULT_VOCAB_SIZE = 30_522  # of a trained vocabulary; BERT's uncased English one
ARGUMENT_FORMS = (
    "wordpiece:PATH/vocab.txt, sentencepiece:PATH.model, hf:FOLDER of a Hugging Face model, the "
    "folder of a saved tokenizer such as STORE/tokenizer, train:wordpiece or train:sentencepiece"
)

TOKENIZERS: Registry[type[Tokenizer]] = Registry(
    "tokenizer",
    "register_tokenizer",
    {kind.kind: kind for kind in (WordPieceTokenizer, SentencePieceTokenizer)},
)


def register_tokenizer(kind: type[Tokenizer], *, replace: bool = False) -> None:
    """Adds a kind of tokenizer, so that folders that it has saved can be loaded.

    `build_store(..., tokenizer=FOLDER)` takes the folder that `kind(...).save` has written.

    Args:
        kind: the class; its `kind` is the name.
        replace: whether it may replace another class that you have registered under its name.

    Raises:
        ConfigError: the name is taken.
    """
    TOKENIZERS.add(kind.kind, kind, replace=replace)


def load_tokenizer(folder: str | Path) -> Tokenizer:
    """Load what `Tokenizer.save` wrote.

    Raises:
        TokenizerError: a file is missing, broken or not the one that was saved.
    """
    folder = Path(folder)
    description = folder / METADATA_FILE
    try:
        metadata = json.loads(description.read_text("utf-8"))
        version, kind, vocab_size = (
            metadata[key] for key in ("format_version", "kind", "vocab_size")
        )
        lower_case, expected, path = (
            metadata["lower_case"],
            metadata["hash"],
            folder / metadata["file"],
        )
    except OSError as error:
        raise TokenizerError(
            f"{description}: cannot be read ({error.strerror}); expected a folder that "
            "Tokenizer.save wrote, such as STORE/tokenizer"
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise TokenizerError(f"{description}: not a tokenizer's description: {error!r}") from error
    if version != FORMAT_VERSION:
        raise TokenizerError(
            f"{description}: format_version {version}, expected {FORMAT_VERSION}; it was written "
            "by another version of bertjax"
        )
    if kind not in TOKENIZERS:
        module = metadata.get("module")
        where = f" (the module {module})" if module else ""
        raise TokenizerError(
            f"{description}: kind {kind!r} is not known; {TOKENIZERS.advice(kind)}{where}"
        )
    tokenizer = TOKENIZERS[kind].from_file(path, lower_case=lower_case, vocab_size=vocab_size)
    if tokenizer.hash != expected:
        raise TokenizerError(
            f"{path}: the tokenizer's hash is {tokenizer.hash} but {description} says {expected}: "
            "one of the two files was changed; restore them or prepare the store again"
        )
    return tokenizer


def load_folder(folder: str | Path) -> Tokenizer:
    """Load the tokenizer of a folder: one that `Tokenizer.save` wrote, or a Hugging Face model.

    Raises:
        TokenizerError: as `load_tokenizer` and `load_hugging_face`.
    """
    if (Path(folder) / METADATA_FILE).is_file():
        return load_tokenizer(folder)
    return load_hugging_face(folder)


def from_argument(
    argument: str,
    *,
    lower_case: bool | None = None,
    vocab_size: int | None = None,
    lines: Iterable[str] = (),
) -> Tokenizer:
    """Make the tokenizer that `prepare --tokenizer=...` names.

    Args:
        argument: `wordpiece:PATH` (or a path that ends in .txt), `sentencepiece:PATH` (or a path
            that ends in .model), `hf:FOLDER` (a Hugging Face model), the folder of a saved
            tokenizer, `train:wordpiece` or `train:sentencepiece`.
        lower_case: None = True for WordPiece, False for training SentencePiece, and as it is for a
            SentencePiece model, a Hugging Face model or a saved tokenizer.
        vocab_size: of a trained vocabulary, 30,522 if None. A given one is filled up to this size
            with `[unusedN]`, or as it is if None.
        lines: the text to train on; not touched for a given vocabulary.

    Raises:
        TokenizerError: the argument has another form, the file is of another kind, or its casing or
            size contradicts the arguments.
    """
    form, _, path = argument.partition(":")
    if argument == "train:wordpiece":
        return train_wordpiece(lines, vocab_size or DEFAULT_VOCAB_SIZE, lower_case is not False)
    if argument == "train:sentencepiece":
        return train_sentencepiece(lines, vocab_size or DEFAULT_VOCAB_SIZE, lower_case is True)
    if not path and argument.endswith(".txt"):
        form, path = "wordpiece", argument
    elif not path and argument.endswith(".model"):
        form, path = "sentencepiece", argument
    if form == "wordpiece" and path:
        lower = lower_case is not False
        wordpiece = load_wordpiece(path, lower_case=lower, vocab_size=vocab_size)
        _check_casing(wordpiece, path)
        return wordpiece
    if form == "sentencepiece" and path:
        tokenizer: Tokenizer = load_sentencepiece(path, vocab_size=vocab_size)
    elif (form == "hf" and path) or (argument and Path(argument).is_dir()):
        tokenizer = load_folder(path if form == "hf" else argument)
        if vocab_size not in (None, tokenizer.vocab_size):
            raise TokenizerError(
                f"{argument}: this tokenizer has {tokenizer.vocab_size} pieces, which "
                f"--vocab_size={vocab_size} contradicts; leave the flag out"
            )
    else:
        raise TokenizerError(f"--tokenizer={argument}: expected {ARGUMENT_FORMS}")
    if lower_case not in (None, tokenizer.lower_case):
        does = "lowers" if tokenizer.lower_case else "keeps"
        raise TokenizerError(
            f"{path or argument}: this tokenizer {does} the case of its text, which "
            f"--lower_case={str(lower_case).lower()} contradicts; leave the flag out"
        )
    return tokenizer


def _check_casing(tokenizer: WordPieceTokenizer, path: str) -> None:
    """Refuse a casing that would silently waste or miss the vocabulary."""
    uncased = guess_casing(tokenizer.pieces)
    if tokenizer.lower_case and uncased is False:
        capitals = len(set(tokenizer.pieces).intersection(string.ascii_uppercase))
        raise TokenizerError(
            f"{path}: {capitals} of the capitals A-Z are pieces, so this is a cased vocabulary; "
            "lowered text would never use them: give --lower_case=false"
        )
    if not tokenizer.lower_case and uncased is True:
        raise TokenizerError(
            f"{path}: none of the capitals A-Z is a piece, so this is an uncased vocabulary; every "
            "word with a capital would be [UNK]: give --lower_case=true"
        )
