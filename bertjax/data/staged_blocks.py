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
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from bertjax.data.blocks import Block, Problem
from bertjax.data.encode import EncodedBlock, EncodedSplit
from bertjax.data.prepare_options import PrepareError
from bertjax.data.store import SPLITS

BLOCKS = "blocks"  # the folder, in the work folder
SUFFIX = ".npz"
_FIELDS = tuple(field.name for field in dataclasses.fields(EncodedSplit))


@dataclasses.dataclass(frozen=True)
class NumberedBlock:
    """A block and where it stands in the corpus."""

    source_number: int
    number: int  # in the source, from 0
    num_bytes: int  # of the source that it stands for, in units of Source.num_bytes
    block: Block


def block_path(folder: Path, source_number: int, number: int) -> Path:
    """Where a block is staged."""
    return folder / f"{source_number:05d}-{number:07d}{SUFFIX}"


def stage_block(folder: Path, numbered: NumberedBlock, encoded: EncodedBlock) -> None:
    """Writes a block, without its text, and what became of it."""
    block = dataclasses.replace(numbered.block, data=b"")
    header = {
        "block": dataclasses.asdict(block) | {"data": ""},
        "num_bytes": numbered.num_bytes,
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
    path = block_path(folder, numbered.source_number, numbered.number)
    # Two workers may have been given the same block: each has a file of its own until it is whole.
    temporary = path.with_suffix(f".{uuid.uuid4().hex}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(buffer.getbuffer())
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)  # a full disk has no room for it


def read_staged(path: Path) -> tuple[Block, EncodedBlock]:
    """Reads what `stage_block` wrote.

    Raises:
        PrepareError: the file is damaged.
        FileNotFoundError: there is none.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            header = _header(file)
            splits = {
                split: EncodedSplit(**{name: file[f"{split}_{name}"] for name in _FIELDS})
                for split in SPLITS
            }
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise PrepareError(
            f"{path}: is damaged ({error}): delete this file and run the same command again"
        ) from error
    fields = header["block"] | {"data": b""}
    fields["problems"] = tuple(Problem(**problem) for problem in fields["problems"])
    problems = [Problem(**problem) for problem in header["problems"]]
    return Block(**fields), EncodedBlock(splits, problems, header["text_bytes"])


def staged_bytes(path: Path) -> int:
    """Bytes of the source that a staged block stands for; reads little of the file."""
    with np.load(path, allow_pickle=False) as file:
        return _header(file)["num_bytes"]


def read_staged_source(folder: Path, source_number: int) -> Iterator[tuple[Block, EncodedBlock]]:
    """The blocks of a source in order, up to its last.

    Raises:
        PrepareError: one of them is damaged or not there.
    """
    number, ended = 0, False
    while not ended:
        path = block_path(folder, source_number, number)
        try:
            block, encoded = read_staged(path)
        except FileNotFoundError:
            raise PrepareError(
                f"{path}: the runner ended well, but this block is not there: --output must lie "
                "on storage that its workers and this machine share"
            ) from None
        ended = bool(block.sha256)  # the last block of a source has its hash
        yield block, encoded
        number += 1


def _header(file: Any) -> dict[str, Any]:
    return json.loads(file["header"].tobytes())
