"""Encoded blocks between encoding and the store, each an atomic file or object.

Beam's workers (see `beam_engine`) stage blocks here, and the process that writes the store reads
them. A file is named by the numbers of its source and of the block in it, so a staged block is
never encoded again.
"""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import io
import itertools
import json
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from bertjax.data.corpus.blocks import Block, Problem
from bertjax.data.store.store import SPLITS
from bertjax.prepare.encode_blocks import EncodedBlock, EncodedSplit
from bertjax.prepare.options import PrepareStoppedError
from bertjax.storage.atomic_files import write_file
from bertjax.storage.bucket import BucketPath

BLOCKS = "blocks"  # the folder, in the work folder
SUFFIX = ".npz"
_READ_AHEAD = 8  # files; one comes from a bucket in a fraction of a second
_FIELDS = tuple(field.name for field in dataclasses.fields(EncodedSplit))


@dataclasses.dataclass(frozen=True)
class NumberedBlock:
    """A block and its place in the corpus."""

    source_number: int
    number: int  # in the source, from 0
    num_bytes: int  # bytes of the source in this block, in units of Source.num_bytes
    block: Block

    @property
    def file_name(self) -> str:
        """The file name of the staged block; the same input has the same name."""
        return f"{self.source_number:05d}-{self.number:07d}-{self.num_bytes}{SUFFIX}"


@dataclasses.dataclass(frozen=True)
class StagedBlocks:
    """The staged blocks in a folder."""

    folder: Path | BucketPath

    def names(self) -> set[str]:
        """The file names of the staged blocks."""
        if isinstance(self.folder, BucketPath):
            return {name for name in self.folder.files() if name.endswith(SUFFIX)}
        return {entry.name for entry in os.scandir(self.folder) if entry.name.endswith(SUFFIX)}

    def has(self, numbered: NumberedBlock) -> bool:
        """Whether a block is staged."""
        return (self.folder / numbered.file_name).is_file()

    def write(self, numbered: NumberedBlock, encoded: EncodedBlock) -> None:
        """Stages the result of a block, without its text."""
        block = dataclasses.replace(numbered.block, data=b"")
        header = {
            "block": dataclasses.asdict(block) | {"data": ""},
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
        path = self.folder / numbered.file_name
        if isinstance(path, BucketPath):
            path.write_bytes(buffer.getvalue())
        else:
            write_file(path, buffer.getbuffer())

    def read(self, num_sources: int) -> Iterator[tuple[Block, EncodedBlock]]:
        """All blocks in the order of the input.

        Raises:
            PrepareStoppedError: one of them is corrupt or missing.
        """
        names = {tuple(map(int, name.split("-")[:2])): name for name in self.names()}
        places = iter(sorted(names))
        coming: collections.deque[
            tuple[tuple[int, ...], concurrent.futures.Future[tuple[Block, EncodedBlock]]]
        ] = collections.deque()
        with concurrent.futures.ThreadPoolExecutor(_READ_AHEAD) as pool:
            for source_number in range(num_sources):
                number, ended = 0, False
                while not ended:
                    for place in itertools.islice(places, _READ_AHEAD - len(coming)):
                        coming.append((place, pool.submit(_read, self.folder / names[place])))
                    if not coming or coming[0][0] != (source_number, number):
                        raise PrepareStoppedError(
                            f"{self.folder}: the runner ended well, but block {number} of input "
                            f"{source_number} is not there: --output must lie on storage that its "
                            "workers and this machine share, or in a bucket"
                        )
                    block, encoded = coming.popleft()[1].result()
                    ended = bool(block.sha256)  # the last block of a source has its hash
                    yield block, encoded
                    number += 1


def staged_bytes(name: str) -> int:
    """Bytes of the source in a staged block, by its file name."""
    return int(name.removesuffix(SUFFIX).split("-")[2])


def _read(path: Path | BucketPath) -> tuple[Block, EncodedBlock]:
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
            header = json.loads(file["header"].tobytes())
            splits = {
                split: EncodedSplit(**{name: file[f"{split}_{name}"] for name in _FIELDS})
                for split in SPLITS
            }
    except OSError as error:
        raise PrepareStoppedError(
            f"{path}: cannot be read: {error}; run the same command again to continue"
        ) from error
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise PrepareStoppedError(
            f"{path}: is damaged ({error}): delete it and run the same command again"
        ) from error
    fields = header["block"] | {"data": b""}
    fields["problems"] = tuple(Problem(**problem) for problem in fields["problems"])
    problems = [Problem(**problem) for problem in header["problems"]]
    return Block(**fields), EncodedBlock(splits, problems, header["text_bytes"])
