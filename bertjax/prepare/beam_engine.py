"""Encodes the blocks of a corpus with Apache Beam instead of local processes.

    sources ─▶ cut into blocks ─▶ reshuffle ─▶ encode, stage ─▶ (files in STORE/unfinished/blocks)
                                                             or in gs://OUTPUT/unfinished

Cutting and encoding are the functions of the local engine, and `build_store` appends what was
staged in the order of the input, so the store has the same bytes with either engine. Beam may run a
block twice; the same file then appears twice under one name.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import logging
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from bertjax.data.corpus.blocks import Source
from bertjax.data.corpus.corpus import read_blocks
from bertjax.data.corpus.duplicates import DUPLICATES
from bertjax.prepare.encode_blocks import STARTS, Encoder, make_encoder
from bertjax.prepare.options import PrepareError, PrepareOptions, PrepareStoppedError
from bertjax.prepare.resume import COMMAND
from bertjax.prepare.staged_blocks import BLOCKS, NumberedBlock, StagedBlocks, staged_bytes
from bertjax.prepare.watched_group import GroupError, GroupKilled, run_watched
from bertjax.storage.bucket import BucketPath

_EXTRA = "pip install 'bertjax[beam]'"
_KNOWS_ALL_OPTIONS = ("DirectRunner", "DataflowRunner")  # others have job servers


@dataclasses.dataclass(frozen=True)
class Cut:
    """Cuts a source into the blocks that are not staged yet."""

    staged: StagedBlocks

    def __call__(self, source_number: int, source: Source) -> Iterator[NumberedBlock]:
        """The blocks of a source."""
        position = 0
        for number, block in enumerate(read_blocks(source)):
            numbered = NumberedBlock(source_number, number, block.position - position, block)
            if not self.staged.has(numbered):
                yield numbered
            position = block.position


@dataclasses.dataclass
class Encode:
    """Encodes blocks and stages them; a worker loads the tokenizer once."""

    staged: StagedBlocks
    tokenizer: Path | BucketPath  # folder, with the list of duplicates beside it, if any
    language: str
    heldout_share: float

    def __post_init__(self) -> None:
        self._encoder: Encoder | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_encoder": None}  # not pickled

    def __call__(self, numbered: NumberedBlock) -> None:
        """Stages one block of `Cut`."""
        if self._encoder is None:
            self._encoder = self._make_encoder()
        self.staged.write(numbered, self._encoder(numbered.block))

    def _make_encoder(self) -> Encoder:
        if isinstance(self.tokenizer, Path):
            return make_encoder(self.tokenizer, self.language, self.heldout_share)
        with tempfile.TemporaryDirectory() as folder:
            for name in self.tokenizer.parent.files():
                if not name.startswith(f"{BLOCKS}/"):
                    target = Path(folder) / name
                    target.parent.mkdir(exist_ok=True)
                    target.write_bytes((self.tokenizer.parent / name).read_bytes())
            copied = Path(folder) / self.tokenizer.name
            return make_encoder(copied, self.language, self.heldout_share)


def pipeline_options(options: PrepareOptions) -> Any:
    """The options of the pipeline: those of `--runner` and `--beam_options`.

    Beam's direct runner gets as many processes as `--num_workers` says.

    Raises:
        PrepareError: Beam is not installed, or does not know an option or the runner.
    """
    logging.disable(logging.WARNING)  # of Beam's modules for unused services
    try:
        from apache_beam.options.pipeline_options import PipelineOptions
        from apache_beam.options.pipeline_options_validator import PipelineOptionsValidator
        from apache_beam.runners.runner import create_runner
    except ImportError:
        raise PrepareError(f"--runner={options.runner} needs Apache Beam: {_EXTRA}") from None
    finally:
        logging.disable(logging.NOTSET)
    arguments = [f"--runner={options.runner}", *options.beam_options.split()]
    if options.runner == "DirectRunner":
        arguments = [
            "--direct_running_mode=multi_processing",
            f"--direct_num_workers={options.num_workers}",  # 0 = one per core, for Beam too
            "--allow_unsafe_triggers",  # none; else Beam downloads Prism
            *arguments,
        ]
    usage = io.StringIO()
    try:
        runner = create_runner(options.runner)
        with contextlib.redirect_stderr(usage):
            chosen = PipelineOptions(arguments)
            given = chosen.get_all_options(retain_unknown_options=True)
        wrong = PipelineOptionsValidator(chosen, runner).validate()
    except SystemExit:  # by argparse, which has printed the error
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
    sources: Sequence[Source], store: Path, work: Path, options: PrepareOptions
) -> StagedBlocks:
    """Runs the pipeline until every block of every source is staged.

    The direct runner is started again if one of its workers dies; other runners do that themselves.

    Args:
        sources: of the corpus.
        store: the unfinished store, with its tokenizer.
        work: its work folder; blocks are staged there, unless `options.staging` names a bucket.
        options: of `prepare`.

    Raises:
        PrepareStoppedError: the pipeline failed; what was staged stays.
    """
    log = work / "beam.log"
    stay = "the encoded blocks stay: run the same command again"
    try:
        staged, tokenizer = _staging_folders(store.absolute(), work.absolute(), options)
        encode = Encode(staged, tokenizer, options.language, options.heldout_share)
        arguments = list(sources), staged, encode, options
        with _progress(staged, sum(source.num_bytes for source in sources)) as progress:
            if options.runner == "DirectRunner":

                def told() -> None:
                    progress.write("a worker process died: continuing after the encoded blocks")

                run_watched(_run_pipeline, arguments, STARTS, log, told)
            else:
                logging.getLogger("apache_beam").setLevel(logging.WARNING)
                # It says where the job can be watched.
                logging.getLogger("apache_beam.runners.dataflow").setLevel(logging.INFO)
                _run_pipeline(*arguments)
    except GroupKilled:
        raise PrepareStoppedError(
            f"worker processes of {options.runner} died {STARTS} times, most often for lack of "
            f"memory; {stay}, with fewer --num_workers if there is little memory ({log})"
        ) from None
    except GroupError as error:
        raise PrepareStoppedError(
            f"--runner={options.runner}: {_reason(error)}; {stay} ({log})"
        ) from None
    except Exception as error:
        raise PrepareStoppedError(f"--runner={options.runner}: {_reason(error)}; {stay}") from error
    return staged


def _staging_folders(
    store: Path, work: Path, options: PrepareOptions
) -> tuple[StagedBlocks, Path | BucketPath]:
    """Where blocks are staged, and where workers find the tokenizer."""
    if not options.staging:
        (work / BLOCKS).mkdir(exist_ok=True)
        return StagedBlocks(work / BLOCKS), store / "tokenizer"
    # Another command, on any machine, has another folder.
    command = hashlib.sha256((work / COMMAND).read_bytes()).hexdigest()[:16]
    folder = BucketPath(options.staging) / command
    for file in [*(store / "tokenizer").iterdir(), store / DUPLICATES]:
        if file.exists():
            (folder / file.relative_to(store).as_posix()).upload(file)
    return StagedBlocks(folder / BLOCKS), folder / "tokenizer"


def _run_pipeline(
    sources: list[Source], staged: StagedBlocks, encode: Encode, options: PrepareOptions
) -> None:
    import apache_beam as beam

    with beam.Pipeline(options=pipeline_options(options)) as pipeline:
        _ = (
            pipeline
            | "sources" >> beam.Create(list(enumerate(sources)))
            | "spread sources" >> beam.Reshuffle()
            | "cut into blocks" >> beam.FlatMapTuple(Cut(staged))
            | "spread blocks" >> beam.Reshuffle()
            | "encode and stage" >> beam.Map(encode)
        )


def _reason(error: Exception) -> str:
    """The error: Beam's messages are tracebacks of workers, whose last line has it."""
    lines = [line for line in str(error).split("\n") if line.strip()]
    traceback = [n for n, line in enumerate(lines) if line.startswith("Traceback")]
    if not traceback:
        return lines[0] if lines else type(error).__name__
    reason = next(line for line in lines[traceback[0] + 1 :] if not line.startswith(" "))
    return reason.removeprefix("RuntimeError: ")


@contextlib.contextmanager
def _progress(staged: StagedBlocks, total: int) -> Iterator[tqdm]:
    """Shows how much of the input is staged while the block runs.

    Args:
        staged: the blocks.
        total: bytes of the sources.
    """
    ended = threading.Event()
    terminal = sys.stderr.isatty()
    in_bucket = isinstance(staged.folder, BucketPath)  # a listing takes a while
    names = staged.names()
    with tqdm(
        desc="encode",
        total=total,
        initial=sum(map(staged_bytes, names)),
        unit="B",
        unit_scale=True,
        mininterval=0.5 if terminal else 30,
    ) as progress:

        def show() -> None:
            names = staged.names()
            progress.set_postfix_str(f"{len(names)} blocks", refresh=False)
            progress.update(sum(map(staged_bytes, names)) - progress.n)

        def follow() -> None:
            while not ended.wait(0.5 if terminal and not in_bucket else 10):
                with contextlib.suppress(OSError):  # the next listing may work
                    show()

        thread = threading.Thread(target=follow, daemon=True)
        thread.start()
        try:
            yield progress
        finally:
            ended.set()
            thread.join()
        show()
