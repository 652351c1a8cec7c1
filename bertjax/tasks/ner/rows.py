"""Rows of tagged sentences: each word's first piece carries its tag, long sentences take several.

A sentence that is too long is cut between words into windows that share no word, so each word is in
exactly one row. A word with more pieces than fit a row keeps its first ones.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bertjax.data.tokenizers.vocabulary import Tokenizer
from bertjax.tasks.ner.data import Sentence
from bertjax.tasks.task import Arrays, TaskError
from bertjax.tasks.text_rows import empty_rows


def tagged_rows(
    sentences: Sequence[Sentence],
    tokenizer: Tokenizer,
    max_length: int,
    label_names: Sequence[str],
) -> Arrays:
    """Makes the rows of sentences: one for each window, in order.

    Beside the arrays of every task, `tag_ids` (missing if a sentence has no tags) and
    `tag_weights`:

    - `example_index` int32 [n]: the row's sentence.
    - `word_index` int32 [n, t]: which word of the sentence begins at this piece; -1 elsewhere.

    Raises:
        TaskError: no piece fits `max_length`, or a tag is not in `label_names`.
    """
    if max_length < 3:
        raise TaskError(f"max_length = {max_length} has no room for a row; give at least 3")
    words = [word for sentence in sentences for word in sentence.words]
    flat, lengths = tokenizer.encode_sentences(words)
    pieces = np.split(flat, np.cumsum(lengths)[:-1])
    has_tags = all(sentence.tags for sentence in sentences)
    tags = _tag_ids(sentences, label_names) if has_tags else np.zeros(len(words), np.int32)
    room = max_length - 2
    # A word that the tokenizer drops (control characters) still needs a place for its tag.
    sizes = np.clip(lengths, 1, room).tolist()
    windows: list[tuple[int, int, int]] = []  # sentence, first word, end, counted over all words
    begins = np.cumsum([0, *(len(sentence.words) for sentence in sentences)]).tolist()
    for number in range(len(sentences)):
        first, used = begins[number], 0
        for word in range(first, begins[number + 1]):
            if used + sizes[word] > room:
                windows.append((number, first, word))
                first, used = word, 0
            used += sizes[word]
        windows.append((number, first, begins[number + 1]))
    rows = empty_rows(len(windows), max_length, tokenizer)
    rows["tag_weights"] = np.zeros((len(windows), max_length), np.float32)
    rows["word_index"] = np.full((len(windows), max_length), -1, np.int32)
    rows["example_index"] = np.array([number for number, _, _ in windows], np.int32)
    if has_tags:
        rows["tag_ids"] = np.zeros((len(windows), max_length), np.int32)
    for row, (number, first, end) in enumerate(windows):
        ids = rows["input_ids"][row]
        ids[0] = tokenizer.cls_id
        at = 1
        for word in range(first, end):
            ids[at : at + sizes[word]] = pieces[word][:room] if lengths[word] else tokenizer.unk_id
            rows["word_index"][row, at] = word - begins[number]
            rows["tag_weights"][row, at] = 1
            if has_tags:
                rows["tag_ids"][row, at] = tags[word]
            at += sizes[word]
        ids[at] = tokenizer.sep_id
        rows["attention_mask"][row, : at + 1] = 1
    return rows


def _tag_ids(sentences: Sequence[Sentence], label_names: Sequence[str]) -> np.ndarray:
    ids = {name: id for id, name in enumerate(label_names)}
    found = []
    for sentence in sentences:
        for tag in sentence.tags:
            if tag not in ids:
                known = ", ".join(label_names) or "not set: call with_labels first"
                raise TaskError(
                    f"{sentence.source}, sentence at line {sentence.line}: unknown tag {tag!r}; "
                    f"the tags are {known}"
                )
            found.append(ids[tag])
    return np.array(found, np.int32)
