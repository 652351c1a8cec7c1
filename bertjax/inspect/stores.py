"""Checks of a store: its ids, its documents, casing and [UNK]."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from bertjax.data.store.store import Split, Store
from bertjax.data.tokenizers.wordpiece import WordPieceTokenizer, guess_casing
from bertjax.inspect.findings import Finding
from bertjax.inspect.texts import UNKNOWN

ONE_SENTENCE_LIMIT = 0.2


def unknown_share(split: Split, unk_id: int) -> float:
    """Share of [UNK] among the tokens."""
    return float(split.unigrams[unk_id] / max(1, split.num_tokens))


def store_findings(store: Store) -> Iterator[Finding]:
    """Findings about ids, casing, [UNK] and documents, split by split."""
    tokenizer = store.tokenizer()
    if isinstance(tokenizer, WordPieceTokenizer):
        uncased = guess_casing(tokenizer.pieces)
        if uncased is not None and uncased != tokenizer.lower_case:
            yield Finding(
                "casing",
                str(store.path),
                f"text that is {'lowered' if tokenizer.lower_case else 'not lowered'} with "
                f"{'an uncased' if uncased else 'a cased'} vocabulary",
                "the casing of the vocabulary",
                f"prepare again with --lower_case={str(uncased).lower()}",
            )
    for split in (store.train, store.heldout):
        where = str(split.folder)
        for number, shard in enumerate(split.token_shards):
            for begin in range(0, len(shard), 2**24):
                largest = int(shard[begin : begin + 2**24].max())
                if largest >= store.vocab_size:
                    yield Finding(
                        "id_out_of_range",
                        where,
                        f"id {largest} in shard {number}, token {begin} or after",
                        f"ids below {store.vocab_size}",
                        "the shard is damaged: copy the store again or prepare it again",
                    )
                    break
        share = unknown_share(split, tokenizer.unk_id)
        if share > UNKNOWN.share:
            yield Finding(
                "unknown",
                where,
                f"{share:.2%} {UNKNOWN.what}",
                f"at most {UNKNOWN.share:.0%}",
                UNKNOWN.advice,
            )
        ones = np.mean(np.diff(split.document_offsets) == 1) if split.num_documents else 0
        if ones > ONE_SENTENCE_LIMIT:
            yield Finding(
                "one_sentence",
                where,
                f"{ones:.1%} documents of one sentence",
                f"at most {ONE_SENTENCE_LIMIT:.0%}",
                "such a document makes no sentence pair: join what belongs together into documents",
            )
