"""WordPiece written from the published rules, slow and plain: what the tokenizer must equal.

Source: google-research/bert, tokenization.py (BasicTokenizer, WordpieceTokenizer and the functions
below them). Nothing is shared with bertjax, one character at a time, no tables and no caches.
"""

import unicodedata


def is_white_space(character):
    return character in (" ", "\t", "\n", "\r") or unicodedata.category(character) == "Zs"


def is_control(character):
    if character in ("\t", "\n", "\r"):
        return False
    return unicodedata.category(character) in ("Cc", "Cf")


def is_punctuation(character):
    code = ord(character)
    if 33 <= code <= 47 or 58 <= code <= 64 or 91 <= code <= 96 or 123 <= code <= 126:
        return True
    return unicodedata.category(character)[0] == "P"


def is_cjk(character):
    code = ord(character)
    return (
        0x4E00 <= code <= 0x9FFF
        or 0x3400 <= code <= 0x4DBF
        or 0x20000 <= code <= 0x2A6DF
        or 0x2A700 <= code <= 0x2B73F
        or 0x2B740 <= code <= 0x2B81F
        or 0x2B820 <= code <= 0x2CEAF
        or 0xF900 <= code <= 0xFAFF
        or 0x2F800 <= code <= 0x2FA1F
    )


def clean(text):
    kept = []
    for character in text:
        if ord(character) == 0 or ord(character) == 0xFFFD or is_control(character):
            continue
        kept.append(" " if is_white_space(character) else character)
    return "".join(kept)


def space_cjk(text):
    return "".join(" " + c + " " if is_cjk(c) else c for c in text)


def strip_accents(token):
    decomposed = unicodedata.normalize("NFD", token)
    return "".join(c for c in decomposed if unicodedata.category(c) != "Mn")


def split_on_punctuation(token):
    parts = []
    start_new_word = True
    for character in token:
        if is_punctuation(character):
            parts.append(character)
            start_new_word = True
        else:
            if start_new_word:
                parts.append("")
            start_new_word = False
            parts[-1] += character
    return parts


def basic_tokenize(text, lower_case):
    parts = []
    for token in space_cjk(clean(text)).split():
        if lower_case:
            token = strip_accents(token.lower())
        parts.extend(split_on_punctuation(token))
    return " ".join(parts).split()


def word_pieces(word, vocabulary):
    if len(word) > 200:
        return ["[UNK]"]
    pieces = []
    start = 0
    while start < len(word):
        end = len(word)
        found = None
        while start < end:
            candidate = word[start:end]
            if start > 0:
                candidate = "##" + candidate
            if candidate in vocabulary:
                found = candidate
                break
            end -= 1
        if found is None:
            return ["[UNK]"]
        pieces.append(found)
        start = end
    return pieces


def encode(text, vocabulary, lower_case):
    """Return the ids of `text`; `vocabulary` maps each piece to its id."""
    ids = []
    for word in basic_tokenize(text, lower_case):
        for piece in word_pieces(word, vocabulary):
            ids.append(vocabulary[piece])
    return ids
