"""English text that every Python brings along, and tokenizers learned from it."""

from pydoc_data.topics import topics

import pytest

from bertjax.data.tokenizers.tokenizer import train_sentencepiece, train_wordpiece

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
TEXT = [line for topic in sorted(topics) for line in topics[topic].split("\n") if line.strip()]


@pytest.fixture(scope="session")
def wordpiece():
    return train_wordpiece(TEXT[:2000], 1000)


@pytest.fixture(scope="session")
def sentence_piece():
    return train_sentencepiece(TEXT[:2000], 1000)
