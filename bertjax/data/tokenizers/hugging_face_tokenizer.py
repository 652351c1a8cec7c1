"""Reads the tokenizer files of a Hugging Face BERT folder, and writes bertjax's in that form.

It reads vocab.txt or the WordPiece model of tokenizer.json, with the casing of
tokenizer_config.json, and SentencePiece models. A setting with which a text would have other ids is
refused by name. docs/design/weights.md lists the remaining differences (words of 101 to 200
characters, rare characters).
"""

from __future__ import annotations

import base64
import json
from collections.abc import Collection
from itertools import zip_longest
from pathlib import Path
from typing import Any

from bertjax.data.tokenizers.sentence_piece import SentencePieceTokenizer, load_sentencepiece
from bertjax.data.tokenizers.sentence_piece_model import (
    BYTE,
    NORMAL,
    UNIGRAM,
    USER_DEFINED,
    read_model,
)
from bertjax.data.tokenizers.vocabulary import (
    SPECIAL_PIECES,
    Tokenizer,
    TokenizerError,
    check_word_table,
    with_filler,
)
from bertjax.data.tokenizers.wordpiece import (
    MAX_WORD_CHARACTERS,
    WordPieceTokenizer,
    guess_casing,
    read_vocabulary,
)

_MODEL_FILES = ("spm.model", "spiece.model", "sentencepiece.bpe.model", "tokenizer.model")
_FAST = ("PreTrainedTokenizerFast", "TokenizersBackend")  # all is in tokenizer.json
_SPECIAL_NAMES = dict(
    zip(
        ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"),
        SPECIAL_PIECES,
        strict=True,
    )
)
# Keys of settings that name tokens which are cut out of text before it is split.
_ADDED = (
    *("added_tokens_decoder", "additional_special_tokens", "extra_special_tokens"),
    *("bos_token", "eos_token"),
)


def load_hugging_face(folder: str | Path) -> Tokenizer:
    """Loads the tokenizer of a Hugging Face BERT folder.

    The vocabulary is filled up with `[unusedN]` to the vocab_size of config.json, so that it is as
    large as the word table.

    Raises:
        TokenizerError: there is none, it is not a BERT tokenizer, or a setting is not supported.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise TokenizerError(f"{folder}: no such folder; expected one with vocab.txt")
    vocab_size = _read_json(folder / "config.json").get("vocab_size")
    settings = _read_json(folder / "tokenizer_config.json")
    description = _read_json(folder / "tokenizer.json")
    for name in _MODEL_FILES:
        if (folder / name).is_file():
            _check_class(folder, settings, _FAST)  # before sizes, which it explains
            if vocab_size is not None:
                num_pieces = load_sentencepiece(folder / name).vocab_size
                check_word_table(num_pieces, vocab_size, str(folder / name))
            tokenizer = load_sentencepiece(folder / name, vocab_size=vocab_size)
            _check_model(folder, settings, tokenizer)
            _check_added(folder, description, _special_names(tokenizer).values())
            return tokenizer
    _check_settings(folder, settings)
    _check_description(folder, description)
    if (folder / "vocab.txt").is_file():
        source = folder / "vocab.txt"
        pieces = read_vocabulary(source)
    elif description:
        source = folder / "tokenizer.json"
        pieces = _pieces_of(source, description["model"]["vocab"])
    else:
        raise TokenizerError(
            f"{folder}: no vocab.txt, tokenizer.json or {' or '.join(_MODEL_FILES)}; copy the "
            "tokenizer's files there"
        )
    _check_added(folder, description, SPECIAL_PIECES)
    if vocab_size is not None:
        check_word_table(len(pieces), vocab_size, str(source))
    pieces = with_filler(pieces, vocab_size, str(source))
    if description and source.name == "vocab.txt":
        path = folder / "tokenizer.json"
        theirs = _pieces_of(path, description["model"]["vocab"])
        _check_same_pieces(source, pieces, with_filler(theirs, vocab_size, str(path)))
    lower_case = _casing(folder, settings, description, pieces)
    return WordPieceTokenizer(pieces, lower_case=lower_case, source=str(source))


def hugging_face_files(tokenizer: Tokenizer, max_positions: int) -> dict[str, str]:
    """The files, by name, that `AutoTokenizer.from_pretrained` needs beside a vocabulary.

    `Tokenizer.save` writes the vocabulary or model itself.
    """
    names = _special_names(tokenizer)
    settings: dict[str, Any] = {"model_max_length": max_positions, **names}
    if isinstance(tokenizer, WordPieceTokenizer):
        settings |= {
            "tokenizer_class": "BertTokenizer",
            "do_lower_case": tokenizer.lower_case,
            "strip_accents": None,
            "tokenize_chinese_chars": True,
        }
        model, normalizer, pre_tokenizer = _wordpiece_description(tokenizer)
        decoder: dict[str, Any] = {"type": "WordPiece", "prefix": "##", "cleanup": True}
    elif isinstance(tokenizer, SentencePieceTokenizer):
        settings |= {"tokenizer_class": "PreTrainedTokenizerFast"}
        model, normalizer, pre_tokenizer = _unigram_description(tokenizer)
        decoder = pre_tokenizer
    else:
        raise TokenizerError(
            f"tokenizers of kind {tokenizer.kind!r} have no Hugging Face form, so the model cannot "
            "be written as a Hugging Face folder"
        )
    cls, sep = names["cls_token"], names["sep_token"]
    description = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": id,
                "content": tokenizer.id_to_piece(id),
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
            for id in sorted({*tokenizer.special_ids, tokenizer.unk_id})
        ],
        "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [_special(cls, 0), _sequence("A", 0), _special(sep, 0)],
            "pair": [
                _special(cls, 0),
                _sequence("A", 0),
                _special(sep, 0),
                _sequence("B", 1),
                _special(sep, 1),
            ],
            "special_tokens": {
                name: {"id": name, "ids": [id], "tokens": [name]}
                for name, id in ((cls, tokenizer.cls_id), (sep, tokenizer.sep_id))
            },
        },
        "decoder": decoder,
        "model": model,
    }
    return {
        "tokenizer_config.json": json.dumps(settings, indent=2) + "\n",
        "special_tokens_map.json": json.dumps(names, indent=2) + "\n",
        "tokenizer.json": json.dumps(description, indent=1, ensure_ascii=False) + "\n",
    }


def _special_names(tokenizer: Tokenizer) -> dict[str, str]:
    """The special pieces by the keys that tokenizer_config.json has for them."""
    t = tokenizer
    ids = (t.pad_id, t.unk_id, t.cls_id, t.sep_id, t.mask_id)
    return {key: t.id_to_piece(id) for key, id in zip(_SPECIAL_NAMES, ids, strict=True)}


def _special(name: str, type_id: int) -> dict[str, Any]:
    return {"SpecialToken": {"id": name, "type_id": type_id}}


def _sequence(name: str, type_id: int) -> dict[str, Any]:
    return {"Sequence": {"id": name, "type_id": type_id}}


def _wordpiece_description(tokenizer: WordPieceTokenizer) -> tuple[dict[str, Any], ...]:
    model = {
        "type": "WordPiece",
        "unk_token": "[UNK]",
        "continuing_subword_prefix": "##",
        "max_input_chars_per_word": MAX_WORD_CHARACTERS,
        "vocab": {piece: id for id, piece in enumerate(tokenizer.pieces)},
    }
    normalizer = {
        "type": "BertNormalizer",
        "clean_text": True,
        "handle_chinese_chars": True,
        "strip_accents": None,
        "lowercase": tokenizer.lower_case,
    }
    return model, normalizer, {"type": "BertPreTokenizer"}


def _unigram_description(tokenizer: SentencePieceTokenizer) -> tuple[dict[str, Any], ...]:
    """SentencePiece's rules in the words of the `tokenizers` library."""
    proto = read_model(tokenizer.content)
    if proto.trainer_spec.model_type != UNIGRAM:
        raise TokenizerError(
            "Hugging Face's tokenizer files can be written for SentencePiece models of the type "
            "unigram; this one has another type"
        )
    silent = -1e6  # the score of pieces that text must never choose
    scores = [
        piece.score if piece.type in (NORMAL, USER_DEFINED, BYTE) else silent
        for piece in proto.pieces
    ]
    scores += [silent] * (tokenizer.vocab_size - len(scores))
    model = {
        "type": "Unigram",
        "unk_id": tokenizer.unk_id,
        "vocab": [[piece, score] for piece, score in zip(tokenizer.pieces, scores, strict=True)],
        "byte_fallback": proto.trainer_spec.byte_fallback,
    }
    steps: list[dict[str, Any]] = []
    if proto.normalizer_spec.precompiled_charsmap:
        charsmap = base64.b64encode(proto.normalizer_spec.precompiled_charsmap).decode()
        steps.append({"type": "Precompiled", "precompiled_charsmap": charsmap})
    if proto.normalizer_spec.remove_extra_whitespaces:
        steps.append({"type": "Strip", "strip_left": True, "strip_right": True})
        steps.append({"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "})
    word_starts = {
        "type": "Metaspace",
        "replacement": "▁",
        "prepend_scheme": "always" if proto.normalizer_spec.add_dummy_prefix else "never",
        "split": True,
    }
    return model, {"type": "Sequence", "normalizers": steps}, word_starts


def _read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty if there is no such file."""
    try:
        value = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise TokenizerError(f"{path}: cannot be read as JSON: {error}") from error
    if not isinstance(value, dict):
        raise TokenizerError(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value


def _check_settings(folder: Path, settings: dict[str, Any]) -> None:
    """Refuses a tokenizer_config.json that gives other ids."""
    path = folder / "tokenizer_config.json"
    _check_class(folder, settings, ("BertTokenizer", "BertTokenizerFast", *_FAST))
    _check_special(folder, settings, _SPECIAL_NAMES)
    for key in ("do_basic_tokenize", "tokenize_chinese_chars"):
        if settings.get(key, True) is not True:
            raise TokenizerError(
                f"{path}: {key} is {settings[key]!r}; bertjax splits text as BERT does, with true"
            )


def _check_class(folder: Path, settings: dict[str, Any], expected: Collection[str]) -> None:
    """Refuses a class of transformers that renumbers pieces, such as XLMRobertaTokenizer."""
    kind = settings.get("tokenizer_class")
    if kind is not None and kind not in expected:
        raise TokenizerError(
            f"{folder / 'tokenizer_config.json'}: tokenizer_class is {kind!r}; bertjax reads those "
            f"of {', '.join(expected)}: the ids of another may not be those of its files"
        )


def _check_added(folder: Path, description: dict[str, Any], special: Collection[str]) -> None:
    """Refuses tokens that were added to a vocabulary, or are in it and are cut out of text."""
    found: list[Any] = [*description.get("added_tokens", ())]
    found += _read_json(folder / "added_tokens.json")
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        values = _read_json(folder / name)
        for key in _ADDED:
            more = values.get(key) or ()  # a list, by name or by id, or one token
            if isinstance(more, dict) and "content" not in more:
                more = list(more.values())
            found += more if isinstance(more, list | tuple) else [more]
    names = {str(x.get("content") if isinstance(x, dict) else x) for x in found}
    added = sorted(names - set(special))
    if added:
        raise TokenizerError(
            f"{folder}: has added tokens ({', '.join(added[:5])}), which text could spell; "
            "bertjax reads vocabularies without any"
        )


def _check_special(folder: Path, settings: dict[str, Any], names: dict[str, str]) -> None:
    """Refuses special pieces that are not those of the vocabulary."""
    path, map_path = folder / "tokenizer_config.json", folder / "special_tokens_map.json"
    for file, values in ((path, settings), (map_path, _read_json(map_path))):
        for key, expected in names.items():
            found = values.get(key, expected)
            found = found.get("content") if isinstance(found, dict) else found
            if found != expected:
                raise TokenizerError(f"{file}: {key} is {found!r}; expected {expected!r}")


def _check_model(folder: Path, settings: dict[str, Any], tokenizer: SentencePieceTokenizer) -> None:
    """Refuses settings of a SentencePiece model that change text or special pieces."""
    path = folder / "tokenizer_config.json"
    _check_special(folder, settings, _special_names(tokenizer))
    if settings.get("do_lower_case") not in (None, tokenizer.lower_case):
        does = "lowers" if tokenizer.lower_case else "keeps"
        raise TokenizerError(
            f"{path}: do_lower_case is {settings['do_lower_case']}, but the SentencePiece model "
            f"{does} case; bertjax does what the model does"
        )


def _check_description(folder: Path, description: dict[str, Any]) -> None:
    """Refuses a tokenizer.json that is not BERT's WordPiece."""
    if not description:
        return
    path = folder / "tokenizer.json"
    expected: tuple[tuple[str, str, Any], ...] = (
        ("model", "type", "WordPiece"),
        ("model", "continuing_subword_prefix", "##"),
        ("model", "unk_token", "[UNK]"),
        ("normalizer", "type", "BertNormalizer"),
        ("normalizer", "clean_text", True),
        ("normalizer", "handle_chinese_chars", True),
        ("pre_tokenizer", "type", "BertPreTokenizer"),
    )
    for section, key, value in expected:
        found = (description.get(section) or {}).get(key, value if key != "type" else None)
        if section == "model" and key == "type" and found is None:  # old files do not say it
            continue
        if found != value:
            hint = ""
            if found == "Unigram":
                hint = f"; of a SentencePiece model copy the .model file too ({_MODEL_FILES[0]})"
            raise TokenizerError(
                f"{path}: {section}.{key} is {found!r}; bertjax reads BERT's tokenizer, with "
                f"{value!r}{hint}"
            )


def _pieces_of(path: Path, vocabulary: dict[str, int]) -> list[str]:
    pieces = sorted(vocabulary, key=vocabulary.__getitem__)
    for id, piece in enumerate(pieces):
        if vocabulary[piece] != id:
            raise TokenizerError(
                f"{path}: model.vocab has no piece with the id {id}; expected the ids 0 to "
                f"{len(pieces) - 1}, each once"
            )
    return pieces


def _check_same_pieces(source: Path, ours: list[str], theirs: list[str]) -> None:
    """Refuses a vocab.txt and a tokenizer.json with different pieces."""
    if ours == theirs:
        return
    pairs = zip_longest(ours, theirs)
    id, pair = next((id, pair) for id, pair in enumerate(pairs) if pair[0] != pair[1])
    raise TokenizerError(
        f"{source}: piece {id} is {pair[0]!r}, in tokenizer.json beside it {pair[1]!r}; one of the "
        "two belongs to another model: copy both files again"
    )


def _casing(
    folder: Path, settings: dict[str, Any], description: dict[str, Any], pieces: list[str]
) -> bool:
    """Whether text is lowered: the files must agree, and the vocabulary must not contradict."""
    normalizer = description.get("normalizer") or {}
    answers = {
        "tokenizer_config.json, do_lower_case": settings.get("do_lower_case"),
        "tokenizer.json, normalizer.lowercase": normalizer.get("lowercase"),
        "the capitals A to Z in the vocabulary": guess_casing(pieces),
    }
    said: dict[str, bool] = {name: bool(v) for name, v in answers.items() if v is not None}
    if len(set(said.values())) > 1:
        lines = "; ".join(f"{name}: {'lower' if v else 'keep'} case" for name, v in said.items())
        raise TokenizerError(f"{folder}: the casing is contradictory ({lines}); correct the files")
    lower_case = next(iter(said.values()), True)  # transformers' default
    for name, section in (("tokenizer_config.json", settings), ("tokenizer.json", normalizer)):
        accents = section.get("strip_accents")
        if accents not in (None, lower_case):
            raise TokenizerError(
                f"{folder / name}: strip_accents is {accents}, but case is "
                f"{'lowered' if lower_case else 'kept'}; bertjax does both or neither"
            )
    return lower_case
