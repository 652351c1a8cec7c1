"""Compares the stream's fixed anchors with the reference's sequential walk, on a real store.

    python -m bertjax.prepare --input='../shared/data/corpus/novels.jsonl.gz,../shared/data/corpus/wiki_train.jsonl.gz' \
        --output=STORE --tokenizer=wordpiece:../shared/data/vocab/bert-base-uncased-vocab.txt
    python -m benchmarks.stream_statistics --store=STORE

`walk_document` is `create_instances_from_document` of google-research/bert written plainly over
token ranges: a chunk's unused sentences go back to the document, and a short target holds for the
whole document. Writes benchmarks/results/stream_statistics.json.
"""  # noqa: E501

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness import Benchmark
from bertjax.data.counter_rng import keys_at
from bertjax.data.store.store import Split, open_store
from bertjax.data.stream.pairs import draw_segments
from bertjax.data.stream.reader import RowReader
from bertjax.data.stream.rows import RowSpec

Row = tuple[int, int, int, int, bool, bool]  # A and B: start, length; random?; one sentence?


def options(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--max_length", type=int, nargs="+", default=[128, 512])
    parser.add_argument("--epochs", type=int, default=4)


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Walks the store both ways."""
    store = open_store(arguments.store)
    split = store.train
    runs = []
    for max_length in arguments.max_length:
        spec = RowSpec(max_length=max_length, max_predictions=20)
        reader = RowReader(split, store.tokenizer(), spec, seed=0, stream_id=0)
        walked = [walk(split, spec, epoch) for epoch in range(arguments.epochs)]
        drawn: list[np.ndarray] = []
        while num_tokens(drawn) < num_tokens(walked):  # as many tokens, so more epochs
            drawn.append(anchored(reader, len(drawn)))
        for name, epochs in (("reference", walked), ("bertjax", drawn)):
            runs.append({"max_length": max_length, "rows_from": name} | statistics(split, epochs))
            print(json.dumps(runs[-1]))
    return {
        "store": {
            "documents": split.num_documents,
            "sentences": split.num_sentences,
            "tokens": split.num_tokens,
        },
        "runs": runs,
    }


def walk(split: Split, spec: RowSpec, seed: int) -> np.ndarray:
    """One pass of the reference over all documents: int64 [rows, 6], see `Row`."""
    offsets = split.sentence_offsets.tolist()
    documents = split.document_offsets.tolist()
    rng = random.Random(seed)
    rows = [
        row
        for document in range(split.num_documents)
        for row in walk_document(offsets, documents, document, spec, rng)
    ]
    return np.array(rows, np.int64)


def walk_document(
    offsets: list[int], documents: list[int], document: int, spec: RowSpec, rng: random.Random
) -> Iterator[Row]:
    """The reference's rows of one document."""
    room = spec.room
    target = rng.randint(2, room) if rng.random() < spec.short_row_rate else room
    begin, end = documents[document], documents[document + 1]
    first = at = begin
    while at < end:
        at += 1
        if offsets[at] - offsets[first] < target and at < end:
            continue
        num_sentences = at - first
        a_end = first + (rng.randint(1, num_sentences - 1) if num_sentences >= 2 else 1)
        a_length = offsets[a_end] - offsets[first]
        is_random = num_sentences == 1 or rng.random() < 0.5
        if is_random:
            for _ in range(10):
                other = rng.randint(0, len(documents) - 2)
                if other != document:
                    break
            b_first = b_end = rng.randint(documents[other], documents[other + 1] - 1)
            while b_end < documents[other + 1]:
                b_end += 1
                if offsets[b_end] - offsets[b_first] >= target - a_length:
                    break
            at = a_end  # the unused sentences go back
        else:
            b_first, b_end = a_end, at
        a = [offsets[first], offsets[a_end]]
        b = [offsets[b_first], offsets[b_end]]
        while a[1] - a[0] + b[1] - b[0] > room:
            longer = a if a[1] - a[0] > b[1] - b[0] else b
            if rng.random() < 0.5:
                longer[0] += 1
            else:
                longer[1] -= 1
        yield a[0], a[1] - a[0], b[0], b[1] - b[0], is_random, num_sentences == 1
        first = at


def anchored(reader: RowReader, epoch: int) -> np.ndarray:
    """One epoch of the stream's rows: int64 [rows, 6], the last column -1 (not known)."""
    keys = keys_at(epoch, np.arange(reader.num_rows))
    segments = draw_segments(reader.split, reader.starts[:-1], reader.starts[1:], keys, reader.spec)
    return np.stack([*segments, np.full(reader.num_rows, -1)], axis=1)


def statistics(split: Split, epochs: list[np.ndarray]) -> dict[str, Any]:
    """Means over the epochs; shares of the split's tokens that were in a row at least once."""
    a_length, b_length, is_random = (np.concatenate([e[:, i] for e in epochs]) for i in (1, 3, 4))
    one_sentence = np.concatenate([e[:, 5] for e in epochs])
    length = a_length + b_length + 3
    seen = np.zeros(split.num_tokens, bool)
    own = np.zeros(split.num_tokens, bool)  # leaving random second segments out
    shares = []
    for rows in epochs:
        a_start, a, b_start, b, random_b, _ = rows.T
        real = random_b == 0
        own |= covered(split.num_tokens, [(a_start, a), (b_start[real], b[real])])
        seen |= own | covered(split.num_tokens, [(b_start, b)])
        shares.append([own.mean(), seen.mean()])
    return {
        "epochs": len(epochs),
        "rows_per_epoch": round(len(length) / len(epochs)),
        "tokens_per_epoch": round(num_tokens(epochs) / len(epochs)),
        "random_share": round(is_random.mean(), 4),
        # Random pairs are half of the rows with several sentences and all of the others.
        "one_sentence_share": round(
            one_sentence.mean() if one_sentence[0] >= 0 else 2 * is_random.mean() - 1, 4
        ),
        "mean_length": round(length.mean(), 2),
        "full_share": round((length == length.max()).mean(), 4),
        "padding_share": round(1 - length.mean() / length.max(), 4),
        "mean_a_length": round(a_length.mean(), 2),
        "mean_b_length": round(b_length.mean(), 2),
        "mean_random_b_length": round(b_length[is_random == 1].mean(), 2),
        "mean_real_b_length": round(b_length[is_random == 0].mean(), 2),
        "tokens_seen_as_own_text": [round(float(own), 4) for own, _ in shares],
        "tokens_seen": [round(float(seen), 4) for _, seen in shares],
    }


def num_tokens(epochs: list[np.ndarray]) -> int:
    """Tokens of text in all rows."""
    return sum(int(rows[:, 1].sum() + rows[:, 3].sum()) for rows in epochs)


def covered(num_tokens: int, ranges: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Bool [num_tokens], True inside any of the (starts, lengths)."""
    change = np.zeros(num_tokens + 1, np.int32)
    for starts, lengths in ranges:
        np.add.at(change, starts, 1)
        np.add.at(change, starts + lengths, -1)
    return np.cumsum(change[:-1]) > 0


BENCHMARK = Benchmark(measure, "stream_statistics.json", options, device="none")

if __name__ == "__main__":
    BENCHMARK.main()
