"""The blocks of a corpus encoded by Apache Beam instead of by processes of our own.

    sources ─▶ cut into blocks ─▶ reshuffle ─▶ encode, stage ─▶ (files in STORE/.unfinished/blocks)

Cutting and encoding are the functions of the local engine, and `build_store` appends what was
staged in the order of the input, so the store has the same bytes whoever encoded it. Beam may run a
block twice; the same file then appears twice under one name.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bertjax.data.blocks import Block, Source
from bertjax.data.corpus import read_blocks
from bertjax.data.encode import Encoder, make_encoder
from bertjax.data.prepare_options import PrepareError, PrepareOptions
from bertjax.data.staged_blocks import block_path, stage_block

EXTRA = "pip install 'bertjax[beam]'"
_KNOWS_ALL_OPTIONS = ("DirectRunner", "DataflowRunner")  # others have job servers with their own


@dataclasses.dataclass(frozen=True)
class Cut:
    """Cuts a source into the blocks that are not staged yet."""

    folder: str  # of the staged blocks

    def __call__(self, numbered: tuple[int, Source]) -> Iterator[tuple[int, int, Block]]:
        """(number of the source, number of the block in it, block)."""
        source_number, source = numbered
        for block_number, block in enumerate(read_blocks(source)):
            if not block_path(Path(self.folder), source_number, block_number).exists():
                yield source_number, block_number, block


@dataclasses.dataclass
class Encode:
    """Encodes blocks and stages them; a worker loads the tokenizer once."""

    folder: str  # of the staged blocks
    tokenizer: str  # folder
    language: str
    heldout_share: float

    def __post_init__(self) -> None:
        self._encoder: Encoder | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_encoder": None}  # it does not travel

    def __call__(self, numbered: tuple[int, int, Block]) -> None:
        """Stages one block of `Cut`."""
        if self._encoder is None:
            self._encoder = make_encoder(Path(self.tokenizer), self.language, self.heldout_share)
        source_number, block_number, block = numbered
        path = block_path(Path(self.folder), source_number, block_number)
        stage_block(path, block, self._encoder(block))


def pipeline_options(options: PrepareOptions) -> Any:
    """The options of the pipeline: `--runner`, `--beam_options`, and for Beam's direct runner as
    many processes as `--num_workers` says.

    Raises:
        PrepareError: Beam is not installed, or does not know an option or the runner.
    """
    try:
        from apache_beam.options.pipeline_options import PipelineOptions
        from apache_beam.runners import create_runner
    except ImportError:
        raise PrepareError(f"--runner={options.runner} needs Apache Beam: {EXTRA}") from None
    arguments = [f"--runner={options.runner}", *options.beam_options.split()]
    if options.runner == "DirectRunner":
        arguments = [
            "--direct_running_mode=multi_processing",
            "--default_sdk_harness_log_level=WARNING",
            f"--direct_num_workers={options.num_workers}",  # 0 = one a core, for Beam too
            *arguments,
        ]
    try:
        create_runner(options.runner)
        chosen = PipelineOptions(arguments)
        given = chosen.get_all_options(retain_unknown_options=True)
    except (SystemExit, Exception) as error:  # argparse exits
        reason = str(error).partition("\n")[0]
        raise PrepareError(f"--runner={options.runner}: {reason}") from error
    unknown = sorted(given.keys() - PipelineOptions([]).get_all_options().keys())
    if unknown and options.runner in _KNOWS_ALL_OPTIONS:
        raise PrepareError(
            f"--beam_options={options.beam_options!r}: {options.runner} has no option "
            f"--{unknown[0]}"
        )
    return chosen


def stage_blocks(
    sources: Sequence[Source], folder: Path, tokenizer: Path, options: PrepareOptions
) -> None:
    """Runs the pipeline until every block of every source is staged in `folder`.

    Args:
        sources: of the corpus.
        folder: made if missing; on storage that all workers see.
        tokenizer: STORE/tokenizer, on the same.
        options: of `prepare`.

    Raises:
        PrepareError: the pipeline failed; what was staged stays.
    """
    import apache_beam as beam

    folder.mkdir(parents=True, exist_ok=True)
    encode = Encode(
        str(folder.absolute()), str(tokenizer.absolute()), options.language, options.heldout_share
    )
    try:
        with beam.Pipeline(options=pipeline_options(options)) as pipeline:
            _ = (
                pipeline
                | "sources" >> beam.Create(list(enumerate(sources)))
                | "spread sources" >> beam.Reshuffle()
                | "cut into blocks" >> beam.FlatMap(Cut(str(folder.absolute())))
                | "spread blocks" >> beam.Reshuffle()
                | "encode and stage" >> beam.Map(encode)
            )
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        raise PrepareError(
            f"--runner={options.runner}: the pipeline failed ({type(error).__name__}: {reason}); "
            f"{len(list(folder.glob('*.npz')))} encoded blocks stay: run the same command again"
        ) from error
