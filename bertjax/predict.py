"""Predicts with a trained model: fill-mask, next-sentence, classify, answer, tag, embed.

    python -m bertjax.predict --model=runs/mine "Paris is the [MASK] of France."
    python -m bertjax.predict --model=runs/cola --input=sentences.txt --format=json
    cat words.txt | python -m bertjax.predict --model=runs/entities
    python -m bertjax.predict --model=runs/squad --examples=test.json --format=json

What is predicted depends on the model's head; --do chooses among what it can do. One line is one
text; where two belong together (a pair, a question and its paragraph) a tab stands between them;
empty lines are passed over.
Lines of a file that ends in .jsonl are objects with "text" and "text_pair". --examples takes what
fine-tuning takes: a table, SQuAD's JSON, CoNLL. docs/predict.md has each of them with its output.
Exit codes: 0; 2 something that cannot work, in one line.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import logging
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from absl import flags

from bertjax.cli import command_line
from bertjax.errors import EXIT_FINISHED, EXIT_REFUSED, BertjaxError
from bertjax.heads import EMBED, FILL_MASK, HEADS, NEXT_SENTENCE, resolve

_MODEL = flags.DEFINE_string(
    "model",
    None,
    "A workdir or checkpoint of bertjax (also gs://), a Hugging Face folder of a BERT, or a TF1 "
    "checkpoint.",
    required=True,
)
_DO = flags.DEFINE_enum(
    "do",
    None,
    [*dict.fromkeys(verb for head in HEADS.values() for verb in head.verbs), EMBED],
    "What to predict. Default: fill-mask for a pre-trained model, what it was fine-tuned for, else "
    "embed.",
)
_INPUT = flags.DEFINE_string(
    "input", None, "File of texts. Default: the arguments, else standard input."
)
_EXAMPLES = flags.DEFINE_string(
    "examples",
    None,
    "In place of texts: files of the model's own task, as --eval of bertjax.finetune reads them, "
    "with or without labels; or tfds:NAME:SPLIT.",
)
_OUTPUT = flags.DEFINE_string("output", None, "File to write. Default: standard output.")
_FORMAT = flags.DEFINE_enum("format", "text", ["text", "json"], "What each line of the output is.")
_TOP_K = flags.DEFINE_integer("top_k", 5, "Predictions of fill-mask for each [MASK].", 1)
_MAX_LENGTH = flags.DEFINE_integer(
    "max_length",
    None,
    "Tokens a row of classify, answer and tag. Default: that of the fine-tuning; of a model whose "
    "fine-tuning is not known, all its positions, 384 for answer.",
    lower_bound=1,
)

_ONE = "one text, without tab"
_TWO = "two texts (a tab between them, or text and text_pair in JSON lines)"
_NO_TEXTS = (".json", ".csv", ".gz", ".bz2", ".xz", ".zst", ".zip")
_CHUNK = 1_024  # texts read, predicted and written at a time


class Text(NamedTuple):
    """A text, and the second one of a pair; `where` says in an error which one it is."""

    text: str
    pair: str | None
    where: str


Predict = Callable[[list[Any]], Iterator[dict[str, Any]]]  # of texts or examples
Line = Callable[[dict[str, Any]], str]  # of a record, for people


class InputError(BertjaxError, ValueError):
    """A text that the model cannot take; says which line."""


def main(argv: list[str]) -> int:
    """Predicts; returns 0."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING, force=True)
    try:
        _run(argv[1:])
    except BrokenPipeError:  # as `| head` does
        sys.stderr.close()
    return EXIT_FINISHED


def _run(arguments: list[str]) -> None:
    _check_files(arguments)
    from bertjax.encoder import load

    encoder = load(_MODEL.value)
    kind = _DO.value or _can(encoder)[0]
    inputs: Iterator[Any]
    if _EXAMPLES.value:
        inputs, predict, line = _open_examples(kind, encoder)
    else:
        texts = _texts(arguments)
        first = next(texts)
        inputs = itertools.chain([first], texts)
        predict, line = _predictor(kind, encoder, paired=first.pair is not None)
    with _output() as out:
        while chunk := list(itertools.islice(inputs, _CHUNK)):
            for record in predict(chunk):
                is_json = _FORMAT.value == "json"
                print(json.dumps(record, ensure_ascii=False) if is_json else line(record), file=out)
            out.flush()


def _check_files(arguments: list[str]) -> None:
    """Refuses paths that cannot be, before a model is loaded."""
    given = {"texts as arguments": arguments} | {
        f"--{x.name}": x.value for x in (_INPUT, _EXAMPLES)
    }
    if len(several := [name for name, value in given.items() if value]) > 1:
        raise InputError(f"{' and '.join(several)}: give one of them")
    if _INPUT.value and (not Path(_INPUT.value).exists() or Path(_INPUT.value).is_dir()):
        raise InputError(f"--input={_INPUT.value}: no such file; expected texts, one a line")
    if Path(_INPUT.value or "").suffix.lower() in _NO_TEXTS:
        raise InputError(
            f"--input={_INPUT.value}: expected texts, one a line, or JSON lines in a file that "
            "ends in .jsonl, not compressed; the files of a task are read by --examples"
        )
    if _OUTPUT.value and (
        Path(_OUTPUT.value).is_dir() or not Path(_OUTPUT.value).absolute().parent.is_dir()
    ):
        raise InputError(f"--output={_OUTPUT.value}: expected a file in a folder that exists")
    sources = [_INPUT.value or "", *(_EXAMPLES.value or "").split(",")]
    if _OUTPUT.value and Path(_OUTPUT.value).exists():
        for path in filter(os.path.exists, sources):
            if os.path.samefile(path, _OUTPUT.value):
                raise InputError(f"--output={_OUTPUT.value}: is the input; name another file")


def _texts(arguments: list[str]) -> Iterator[Text]:
    """The texts to predict for, read as they are asked for."""
    if arguments:
        for text in arguments:
            yield _split(text, repr(text[:60]))
        return
    path = _INPUT.value or "stdin"
    is_empty, read = True, _record if path.lower().endswith(".jsonl") else _split
    with open(path, "rb") if _INPUT.value else contextlib.nullcontext(sys.stdin.buffer) as lines:
        for number, encoded in enumerate(lines, 1):
            try:
                line = encoded.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
            except UnicodeDecodeError as error:
                found = encoded[error.start]
                raise InputError(
                    f"{path}:{number}: not UTF-8 (byte 0x{found:02x}); convert the file to UTF-8"
                ) from error
            if line.strip():
                is_empty = False
                where = f"{path}:{number}"
                yield read(line, where)
    if is_empty:
        raise InputError(f"{path}: has no texts; expected one a line")


def _record(line: str, where: str) -> Text:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        record = None
    found = record if isinstance(record, dict) else {}
    text, pair = found.get("text"), found.get("text_pair")
    if not isinstance(text, str) or not isinstance(pair, str | None):
        raise InputError(
            f"{where}: expected a JSON object with a string text, and for pairs a string "
            f"text_pair; found {line[:60]!r}"
        )
    return Text(text, pair, where)


def _split(line: str, where: str) -> Text:
    text, tab, pair = line.partition("\t")
    return Text(text, pair if tab else None, where)


@contextlib.contextmanager
def _output() -> Iterator[TextIO]:
    """Where the answers go; a file gets its name when they are all there."""
    if not _OUTPUT.value:
        if isinstance(sys.stdout, io.TextIOWrapper):  # half of a surrogate pair is no UTF-8
            sys.stdout.reconfigure(errors="backslashreplace")
        yield sys.stdout
        return
    path = Path(_OUTPUT.value)
    is_special = path.exists() and not path.is_file()  # such as a pipe: written as it is
    target = path if is_special else Path(f"{path}.unfinished")
    try:
        with target.open("w", encoding="utf-8", errors="backslashreplace") as out:
            yield out
        if not is_special:
            target.replace(path)
    finally:
        if not is_special:
            target.unlink(missing_ok=True)


def _can(encoder: Any) -> tuple[str, ...]:
    """What --do may be for a model, the default first."""
    return HEADS[encoder.config.head].can(encoder.config.next_sentence)


def _predictor(kind: str, encoder: Any, paired: bool) -> tuple[Predict, Line]:
    """The function that turns texts into records, which begin with the text, and these into lines.

    Args:
      paired: whether the first text is two, as all are then.
    """
    if kind == FILL_MASK:
        return lambda texts: (_fill_mask(encoder, text) for text in texts), _masks_line
    if kind == NEXT_SENTENCE:
        return lambda texts: (_next_sentence(encoder, text) for text in texts), _pair_line
    if kind == EMBED:
        return lambda texts: _embed(encoder, texts), _vector_line
    if kind not in _can(encoder):
        raise InputError(
            f"--do={kind}: the head of {_MODEL.value} is {encoder.config.head!r}, which can "
            f"{' and '.join(_can(encoder))}"
        )
    task, max_length = _open_task(encoder, paired)
    return lambda texts: _run_task(encoder, task, max_length, texts), task.line


def _fill_mask(encoder: Any, text: Text) -> dict[str, Any]:
    if text.pair is not None:
        raise InputError(f"{text.where}: fill-mask takes one text, found two")
    try:
        masks = encoder.fill_mask(text.text, _TOP_K.value)
    except ValueError as error:
        raise InputError(f"{text.where}: {error}") from error
    return {
        "text": text.text,
        "masks": [
            [{"piece": p.piece, "probability": round(p.probability, 6)} for p in mask]
            for mask in masks
        ],
    }


def _next_sentence(encoder: Any, text: Text) -> dict[str, Any]:
    if text.pair is None:
        raise InputError(f"{text.where}: next-sentence takes {_TWO}, found one")
    probability = encoder.next_sentence(text.text, text.pair)
    return {**_inputs(text), "probability": round(probability, 6)}


def _embed(encoder: Any, texts: list[Text]) -> Iterator[dict[str, Any]]:
    vectors = encoder.embed(
        [text.text if text.pair is None else (text.text, text.pair) for text in texts]
    )
    for text, vector in zip(texts, vectors, strict=True):
        yield {**_inputs(text), "embedding": [round(float(value), 6) for value in vector]}


def _inputs(text: Text) -> dict[str, str]:
    return {"text": text.text} | ({} if text.pair is None else {"text_pair": text.pair})


def _open_examples(kind: str, encoder: Any) -> tuple[Iterator[Any], Predict, Line]:
    """The examples of --examples, and what turns them into records and these into lines."""
    if not encoder.task:
        raise InputError(
            f"--examples={_EXAMPLES.value}: {_MODEL.value} does not say what its task's files look "
            "like, as a workdir of bertjax.finetune does; give texts"
        )
    if kind != _can(encoder)[0]:
        raise InputError(f"--examples={_EXAMPLES.value}: --do={kind} takes texts")
    task, max_length = _open_task(encoder, paired=False)

    def predict(examples: list[Any]) -> Iterator[dict[str, Any]]:
        answers = _answers(encoder, task, max_length, examples)
        for example, answer in zip(examples, answers, strict=True):
            yield {**task.inputs(example), **answer}

    return iter(task.read(_EXAMPLES.value, needs_labels=False)), predict, task.line


def _run_task(
    encoder: Any, task: Any, max_length: int, texts: list[Text]
) -> Iterator[dict[str, Any]]:
    examples = []
    for number, (text, pair, where) in enumerate(texts):
        if task.takes_pairs != (pair is not None):
            raise InputError(f"{where}: this model takes {_TWO if task.takes_pairs else _ONE}")
        examples.append(task.example(text, pair, number))
    answers = _answers(encoder, task, max_length, examples)
    for source, answer in zip(texts, answers, strict=True):
        yield {**_inputs(source), **answer}


def _answers(
    encoder: Any, task: Any, max_length: int, examples: list[Any]
) -> Iterator[dict[str, Any]]:
    """What the task predicts for each example, without the example."""
    arrays = task.features(examples, encoder.tokenizer, max_length)
    for record in task.predictions(examples, arrays, encoder.outputs(arrays)):
        yield _rounded(task.answer(record))


def _rounded(value: Any) -> Any:
    """A value of a record, its numbers to six places as those of the other kinds."""
    if isinstance(value, dict):
        return {name: _rounded(x) for name, x in value.items()}
    if isinstance(value, list):
        return [_rounded(x) for x in value]
    return round(value, 6) if isinstance(value, float) else value


def _open_task(encoder: Any, paired: bool) -> tuple[Any, int]:
    """The task that the model was fine-tuned for, or one that fits its head, and its row length."""
    from bertjax.tasks.registry import make_task

    config, settings = encoder.config, encoder.task
    if (_MAX_LENGTH.value or 0) > config.max_positions:
        raise InputError(
            f"--max_length={_MAX_LENGTH.value} is beyond the {config.max_positions} positions of "
            f"{_MODEL.value}: set --max_length={config.max_positions} or less"
        )
    if settings:
        length = _MAX_LENGTH.value or settings["max_length"]
        return make_task(settings["name"], settings["options"]), length
    kind, most = resolve(HEADS[config.head].task), config.max_positions
    length = _MAX_LENGTH.value or min(kind.length_of_texts or most, most)
    labels = encoder.labels or tuple(map(str, range(config.num_labels)))
    return kind.for_texts(config.head, labels, paired, length), length


def _masks_line(record: dict[str, Any]) -> str:
    from bertjax.tasks.task import on_a_line

    masks = ["  ".join(f"{p['piece']} {p['probability']:.3f}" for p in m) for m in record["masks"]]
    return "\t".join([on_a_line(record["text"]), *masks])


def _pair_line(record: dict[str, Any]) -> str:
    from bertjax.tasks.task import on_a_line

    texts = map(on_a_line, (record["text"], record["text_pair"]))
    return "\t".join([f"{record['probability']:.4f}", *texts])


def _vector_line(record: dict[str, Any]) -> str:
    return " ".join(f"{value:.6f}" for value in record["embedding"])


if __name__ == "__main__":
    command_line.run(main, exit_code=EXIT_REFUSED)
