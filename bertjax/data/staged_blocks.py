"""Encoded blocks in the work folder of an unfinished store, each a file that appears whole.

Where blocks are encoded by processes that the one that writes the store does not feed itself (see
`beam_engine`), this is what lies between. A file is named by the numbers of its source and of the
block in it, so a block that is there is never encoded again, by whomever.
"""

from __future__ import annotations

import dataclasses
import io
import json
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from bertjax.data.blocks import Block, Problem
from bertjax.data.encode import EncodedBlock, EncodedSplit
from bertjax.data.store import SPLITS

_FIELDS = tuple(field.name for field in dataclasses.fields(EncodedSplit))


def block_path(folder: Path, source_number: int, block_number: int) -> Path:
    """Where a block is staged."""
    return folder / f"{source_number:05d}-{block_number:07d}.npz"


def stage_block(path: Path, block: Block, encoded: EncodedBlock) -> None:
    """Writes a block, without its text, and what became of it."""
    header = {
        "block": dataclasses.asdict(dataclasses.replace(block, data=b"")) | {"data": ""},
        "problems": [dataclasses.asdict(problem) for problem in encoded.problems],
        "text_bytes": encoded.text_bytes,
    }
    arrays = {
        f"{split}_{name}": getattr(part, name)
        for split, part in encoded.splits.items()
        for name in _FIELDS
    }
    buffer = io.BytesIO()
    np.savez(buffer, header=np.frombuffer(json.dumps(header).encode(), np.uint8), **arrays)
    # Two workers may have been given the same block: each has a file of its own until it is whole.
    temporary = path.with_suffix(f".{uuid.uuid4().hex}.tmp")
    temporary.write_bytes(buffer.getvalue())
    os.replace(temporary, path)


def read_staged(path: Path) -> tuple[Block, EncodedBlock]:
    """Reads what `stage_block` wrote."""
    with np.load(path, allow_pickle=False) as file:
        header = json.loads(file["header"].tobytes())
        splits = {
            split: EncodedSplit(**{name: file[f"{split}_{name}"] for name in _FIELDS})
            for split in SPLITS
        }
    fields = header["block"] | {"data": b""}
    fields["problems"] = tuple(Problem(**problem) for problem in fields["problems"])
    problems = [Problem(**problem) for problem in header["problems"]]
    return Block(**fields), EncodedBlock(splits, problems, header["text_bytes"])


def read_staged_source(folder: Path, source_number: int) -> Iterator[tuple[Block, EncodedBlock]]:
    """The blocks of a source in order, up to its last.

    Raises:
        FileNotFoundError: one of them is not there.
    """
    block_number, ended = 0, False
    while not ended:
        block, encoded = read_staged(block_path(folder, source_number, block_number))
        ended = bool(block.sha256)  # the last block of a source has its hash
        yield block, encoded
        block_number += 1
