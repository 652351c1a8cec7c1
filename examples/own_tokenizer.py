"""A tokenizer of your own: UTF-8 bytes, with no vocabulary to train.

It makes a store with 261 token ids from a text and trains on it for 60 steps; see own_tokenizer.md.

    python examples/own_tokenizer.py embedded:python runs/own_tokenizer
"""

import sys
from pathlib import Path

import numpy as np

import bertjax
from bertjax.data.tokenizers.vocabulary import SPECIAL_PIECES, Tokenizer

FIRST = len(SPECIAL_PIECES)  # id of byte 0


class ByteTokenizer(Tokenizer):
    kind = "bytes"
    content_file = "bytes.txt"

    def __init__(self):
        pieces = [*SPECIAL_PIECES, *(f"<{byte:02x}>" for byte in range(256))]
        word_starts = np.arange(len(pieces)) < FIRST
        word_starts[FIRST + ord(" ")] = True  # a word begins with the space before it
        super().__init__(
            pieces,
            special_ids={piece: id for id, piece in enumerate(SPECIAL_PIECES)},
            word_starts=word_starts,
            lower_case=False,
            content=b"ids 5 to 260 are the bytes of UTF-8\n",
        )

    @classmethod
    def from_file(cls, path, *, lower_case, vocab_size):
        return cls()  # load_tokenizer compares the hash with that of the folder

    def encode(self, text):
        return self.encode_within("".join(f" {word}" for word in text.split()))

    def encode_within(self, text):
        return [FIRST + byte for byte in text.encode("utf-8", "replace")]

    def decode(self, ids):
        data = bytes(id - FIRST for id in ids if id >= FIRST)
        return data.decode("utf-8", "replace").strip()


bertjax.register_tokenizer(ByteTokenizer)

if __name__ == "__main__":
    text, folder = sys.argv[1], Path(sys.argv[2])
    ByteTokenizer().save(folder / "tokenizer")
    store = bertjax.build_store(text, folder / "store", folder / "tokenizer")
    base = {"data.store": store.path, "model.vocab_size": 261, "optimizer.warmup_steps": 10}
    size = {"data.max_length": 64, "data.global_batch_size": 16, "phases[0].num_steps": 60}
    run = bertjax.pretrain("tiny", folder / "run", {**base, **size})
    bert = bertjax.load(run.workdir)
    ids = bert.tokenizer.encode("naïve bytes")
    print(store.train.num_tokens, run.metrics["heldout_mlm_loss"], bert)
    print(ids, bert.tokenizer.decode(ids), bert.embed("naïve bytes").shape)
