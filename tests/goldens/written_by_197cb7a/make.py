"""Writes written.json: what 197cb7a reads in the store and the workdir beside it.

Run by README.md with the code of 197cb7a; the imports are that commit's.
"""

import hashlib
import json
import sys
from pathlib import Path

import jax
import numpy as np
from bertjax.data.packed_rows import PackedRows
from bertjax.data.reader import RowReader
from bertjax.data.rows import RowSpec
from bertjax.training.checkpoint import resolve

import bertjax
from bertjax.data.store import open_store

TEXT = "The café was full of people. Nobody heard the naïve question."
POSITIONS = np.concatenate([np.arange(40), 10**9 + np.arange(40)])


def sha256_of(array) -> str:
    """Dtype, shape and little-endian bytes in C order."""
    array = np.asarray(array)
    head = f"{array.dtype.name} {array.shape} ".encode()
    return hashlib.sha256(head + array.astype(array.dtype.newbyteorder("<")).tobytes()).hexdigest()


def sha256_of_batch(batch) -> str:
    """Of the hashes of its arrays, in the order of their names."""
    lines = [f"{name} {sha256_of(array)}" for name, array in sorted(batch.items())]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def main(workdir: Path, finished: Path, store_path: Path, output: Path):
    store = open_store(store_path)
    tokenizer = store.tokenizer()
    rows = {}
    for split in ("train", "heldout"):
        for masking in ("token", "whole_word", "span"):
            for pairs in (True, False):
                for depth in (1, 3):
                    spec = RowSpec(
                        max_length=192, max_predictions=36, masking=masking, next_sentence=pairs
                    )
                    part = getattr(store, split)
                    reader = RowReader(part, tokenizer, spec, seed=3, stream_id=1)
                    if depth > 1:
                        reader = PackedRows(reader, depth)
                    name = f"{split} {masking} {'pairs' if pairs else 'sentences'} {depth}"
                    rows[name] = sha256_of_batch(reader.rows(POSITIONS))
    checkpoint = resolve(workdir)
    arrays = {
        f"{tree}/{jax.tree_util.keystr(path, simple=True, separator='/')}": sha256_of(leaf)
        for tree, leaves in (
            ("params", checkpoint.restore_params()),
            ("opt_state", checkpoint.restore_opt_state()),
        )
        for path, leaf in jax.tree_util.tree_leaves_with_path(leaves)
    }
    lines = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    steps = [
        {name: line[name] for name in ("step", "phase", "position", "rows_sha256", "loss")}
        for line in lines
    ]
    values = {
        "ids": [int(i) for i in tokenizer.encode(TEXT)],
        "mean_pooled": [float(x) for x in bertjax.load(workdir).embed(TEXT)[0]],
        "arrays": arrays,
        "rows": rows,
        "steps": steps,
    }
    output.write_text(json.dumps(values, indent=1) + "\n")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
