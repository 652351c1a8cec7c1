"""The blocks of a corpus encoded by Apache Beam instead of by processes of our own.

    sources ─▶ cut into blocks ─▶ reshuffle ─▶ encode, stage ─▶ (files in STORE/unfinished/blocks)

Cutting and encoding are the functions of the local engine, and `build_store` appends what was
staged in the order of the input, so the store has the same bytes whoever encoded it. Beam may run a
block twice; the same file then appears twice under one name.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import logging
import os
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from bertjax.data.blocks import Source
from bertjax.data.corpus import read_blocks
from bertjax.data.encode import STARTS, Encoder, make_encoder
from bertjax.data.prepare_options import PrepareError, PrepareOptions
from bertjax.data.staged_blocks import (
    BLOCKS,
    SUFFIX,
    NumberedBlock,
    block_path,
    stage_block,
    staged_bytes,
)
from bertjax.data.watched_group import GroupError, GroupKilled, run_watched

_EXTRA = "pip install 'bertjax[beam]'"
_KNOWS_ALL_OPTIONS = ("DirectRunner", "DataflowRunner")  # others have job servers with their own


@dataclasses.dataclass(frozen=True)
class Cut:
    """Cuts a source into the blocks that are not staged yet."""

    folder: str  # of the staged blocks

    def __call__(self, source_number: int, source: Source) -> Iterator[NumberedBlock]:
        """The blocks of a source."""
        position = 0
        for number, block in enumerate(read_blocks(source)):
            if not block_path(Path(self.folder), source_number, number).exists():
                yield NumberedBlock(source_number, number, block.position - position, block)
            position = block.position


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

    def __call__(self, numbered: NumberedBlock) -> None:
        """Stages one block of `Cut`."""
        if self._encoder is None:
            self._encoder = make_encoder(Path(self.tokenizer), self.language, self.heldout_share)
        stage_block(Path(self.folder), numbered, self._encoder(numbered.block))


def pipeline_options(options: PrepareOptions) -> Any:
    """The options of the pipeline: `--runner`, `--beam_options`, and for Beam's direct runner as
    many processes as `--num_workers` says.

    Raises:
        PrepareError: Beam is not installed, or does not know an option or the runner.
    """
    logging.disable(logging.WARNING)  # of Beam's modules for services that nobody uses here
    try:
        from apache_beam.options.pipeline_options import PipelineOptions
        from apache_beam.options.pipeline_options_validator import PipelineOptionsValidator
        from apache_beam.runners import create_runner
    except ImportError:
        raise PrepareError(f"--runner={options.runner} needs Apache Beam: {_EXTRA}") from None
    finally:
        logging.disable(logging.NOTSET)
    arguments = [f"--runner={options.runner}", *options.beam_options.split()]
    if options.runner == "DirectRunner":
        arguments = [
            "--direct_running_mode=multi_processing",
            f"--direct_num_workers={options.num_workers}",  # 0 = one a core, for Beam too
            "--allow_unsafe_triggers",  # there are none; without it a runner is downloaded: Prism
            *arguments,
        ]
    usage = io.StringIO()
    try:
        runner = create_runner(options.runner)
        with contextlib.redirect_stderr(usage):
            chosen = PipelineOptions(arguments)
            given = chosen.get_all_options(retain_unknown_options=True)
        wrong = PipelineOptionsValidator(chosen, runner).validate()
    except SystemExit:  # by argparse, which printed
        wrong = [usage.getvalue().strip().rpartition("error: ")[2]]
    except Exception as error:
        wrong = [str(error).partition("\n")[0]]
    if wrong:
        raise PrepareError(
            f"--runner={options.runner} --beam_options={options.beam_options!r}: {wrong[0]}"
        )
    unknown = sorted(given.keys() - PipelineOptions([]).get_all_options().keys())
    if unknown and options.runner in _KNOWS_ALL_OPTIONS:
        raise PrepareError(
            f"--beam_options={options.beam_options!r}: {options.runner} has no option "
            f"--{unknown[0]}"
        )
    return chosen


def stage_blocks(
    sources: Sequence[Source], work: Path, tokenizer: Path, options: PrepareOptions
) -> Path:
    """Runs the pipeline until every block of every source is staged; returns their folder.

    The direct runner is started again when a worker of it dies; other runners do that themselves.

    Args:
        sources: of the corpus.
        work: folder of the unfinished store; on storage that all workers see.
        tokenizer: STORE/tokenizer, on the same.
        options: of `prepare`.

    Raises:
        PrepareError: the pipeline failed; what was staged stays.
    """
    folder = work.absolute() / BLOCKS
    folder.mkdir(parents=True, exist_ok=True)
    log = work / "beam.log"
    encode = Encode(str(folder), str(tokenizer.absolute()), options.language, options.heldout_share)
    arguments = list(sources), str(folder), encode, options
    stay = "the encoded blocks stay: run the same command again"
    try:
        with _progress(folder, sum(source.num_bytes for source in sources)) as progress:
            if options.runner == "DirectRunner":

                def told() -> None:
                    progress.write("a worker process died: going on after the encoded blocks")

                run_watched(_run_pipeline, arguments, STARTS, log, told)
            else:
                logging.getLogger("apache_beam").setLevel(logging.WARNING)
                # It says where the job can be watched.
                logging.getLogger("apache_beam.runners.dataflow").setLevel(logging.INFO)
                _run_pipeline(*arguments)
    except GroupKilled:
        raise PrepareError(
            f"worker processes of {options.runner} died {STARTS} times, most often for want of "
            f"memory; {stay}, with fewer --num_workers if there is little memory ({log})"
        ) from None
    except GroupError as error:
        raise PrepareError(f"--runner={options.runner}: {_reason(error)}; {stay} ({log})") from None
    except Exception as error:
        raise PrepareError(f"--runner={options.runner}: {_reason(error)}; {stay}") from error
    return folder


def _run_pipeline(
    sources: list[Source], folder: str, encode: Encode, options: PrepareOptions
) -> None:
    import apache_beam as beam

    with beam.Pipeline(options=pipeline_options(options)) as pipeline:
        _ = (
            pipeline
            | "sources" >> beam.Create(list(enumerate(sources)))
            | "spread sources" >> beam.Reshuffle()
            | "cut into blocks" >> beam.FlatMapTuple(Cut(folder))
            | "spread blocks" >> beam.Reshuffle()
            | "encode and stage" >> beam.Map(encode)
        )


def _reason(error: Exception) -> str:
    """What went wrong: Beam's messages are tracebacks of workers, which end with it."""
    lines = [line for line in str(error).split("\n") if line.strip()]
    traceback = [n for n, line in enumerate(lines) if line.startswith("Traceback")]
    if not traceback:
        return lines[0] if lines else type(error).__name__
    reason = next(line for line in lines[traceback[0] + 1 :] if not line.startswith(" "))
    return reason.removeprefix("RuntimeError: ")


@contextlib.contextmanager
def _progress(folder: Path, total: int) -> Iterator[tqdm]:
    """Shows how much of the input is staged while the block runs.

    Args:
        folder: of the staged blocks.
        total: bytes of the sources.
    """
    seen: set[str] = set()
    ended = threading.Event()
    terminal = sys.stderr.isatty()

    def count() -> int:
        names = {entry.name for entry in os.scandir(folder) if entry.name.endswith(SUFFIX)} - seen
        seen.update(names)
        return sum(staged_bytes(folder / name) for name in names)

    def follow() -> None:
        while not ended.wait(0.5 if terminal else 10):
            show()

    def show() -> None:
        num_bytes = count()
        progress.set_postfix_str(f"{len(seen)} blocks", refresh=False)
        progress.update(num_bytes)

    with tqdm(
        desc="encode",
        total=total,
        initial=count(),
        unit="B",
        unit_scale=True,
        mininterval=0.5 if terminal else 30,
    ) as progress:
        thread = threading.Thread(target=follow, daemon=True)
        thread.start()
        try:
            yield progress
        finally:
            ended.set()
            thread.join()
            show()
