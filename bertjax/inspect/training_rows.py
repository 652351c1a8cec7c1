"""A few training rows as text, with masked tokens marked."""

from __future__ import annotations

import dataclasses

import numpy as np

from bertjax.data.store.store import Store
from bertjax.data.stream.reader import RowReader
from bertjax.data.stream.rows import RowSpec


@dataclasses.dataclass(frozen=True)
class Piece:
    """A token of a row; `original` is the token before masking, else empty."""

    text: str
    original: str


def training_rows(store: Store, count: int = 3) -> list[list[Piece]]:
    """The first rows of epoch 0 with seed 0, of 128 tokens, without padding."""
    tokenizer = store.tokenizer()
    reader = RowReader(store.train, tokenizer, RowSpec(max_length=128), seed=0, stream_id=0)
    batch = reader.rows(np.arange(min(count, reader.num_rows)))
    rows = []
    for i, ids in enumerate(batch["input_ids"]):
        used = batch["masked_weights"][i] > 0
        masked = dict(
            zip(batch["masked_positions"][i][used], batch["masked_ids"][i][used], strict=True)
        )
        rows.append(
            [
                Piece(
                    tokenizer.id_to_piece(int(token)),
                    tokenizer.id_to_piece(int(masked[at])) if at in masked else "",
                )
                for at, token in enumerate(ids[: batch["attention_mask"][i].sum()])
            ]
        )
    return rows
