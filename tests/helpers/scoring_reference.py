"""Scores of texts by a plain program: one row at a time, no padding, log-softmax in float64."""

import functools

import jax
import numpy as np


def log_softmax(logits):
    x = np.asarray(logits, np.float64)
    x = x - x.max(axis=-1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=-1, keepdims=True))


@functools.cache
def compiled(bert):
    def logits(*inputs):
        outputs = bert.model.apply({"params": bert.params}, *inputs)
        return outputs[0] if isinstance(outputs, tuple) else outputs  # without next sentence

    return jax.jit(logits)


def logits_at(bert, ids, types, places):
    """Float64 log-probabilities [m, v] at places of one row."""
    inputs = [np.array([x], np.int32) for x in (ids, types, np.ones(len(ids)), places)]
    return log_softmax(compiled(bert)(*inputs)[0])


def row(bert, text):
    """Ids and token types of a text or pair, and where its scored tokens begin."""
    tokenizer = bert.tokenizer
    if isinstance(text, str):
        ids = [tokenizer.cls_id, *tokenizer.encode(text), tokenizer.sep_id]
        return ids, [0] * len(ids), 1
    first, second = map(tokenizer.encode, text)
    middle = [tokenizer.sep_id] if bert.config.next_sentence else []
    before = [tokenizer.cls_id, *first, *middle]
    after = [*second, tokenizer.sep_id]
    return before + after, [0] * len(before) + [len(middle)] * len(after), len(before)


def masked_scores(bert, text, mask_rest_of_word=True):
    """Log-probabilities of the tokens of a text, each masked in turn."""
    tokenizer = bert.tokenizer
    ids, types, begin = row(bert, text)
    found = []
    for place in range(begin, len(ids) - 1):
        copy, after = list(ids), place + 1
        copy[place] = tokenizer.mask_id
        while mask_rest_of_word and after < len(ids) - 1 and not tokenizer.word_starts[ids[after]]:
            copy[after] = tokenizer.mask_id
            after += 1
        found.append(logits_at(bert, copy, types, [place])[0, ids[place]])
    return found


def next_scores(bert, text):
    """Log-probabilities of the tokens of a text and of its end, by a left-to-right model."""
    ids, types, begin = row(bert, text)
    found = logits_at(bert, ids, types, range(len(ids)))
    return [found[place - 1, ids[place]] for place in range(begin, len(ids))]
