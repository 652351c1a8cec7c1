"""Predicts with a trained model: fill-mask, next-sentence, score, classify, answer, tag, embed.

    python -m bertjax.predict --model=runs/mine "Paris is the [MASK] of France."
    python -m bertjax.predict --model=runs/cola --input=sentences.txt --format=json
    cat words.txt | python -m bertjax.predict --model=runs/entities
    python -m bertjax.predict --model=runs/squad --examples=test.json --format=json

The model's head decides what can be predicted; --do chooses among it. One line is one text. A tab
separates two texts (a pair, or a question and its paragraph). Empty lines are skipped.
Lines of a file that ends in .jsonl are objects with "text" and "text_pair". --examples reads the
files of fine-tuning: a table, SQuAD's JSON, CoNLL. docs/predict.md shows each with its output.
Exit codes: 0; 2 something that cannot work, in one line.
"""

from __future__ import annotations

import contextlib
import functools
import io
import itertools
import json
import logging
import os
import sys
import typing
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TextIO

from absl import flags

from bertjax.cli import command_line
from bertjax.data.texts import Text, TextError
from bertjax.errors import EXIT_FINISHED, EXIT_REFUSED, BertjaxError
from bertjax.heads import EMBED, FILL_MASK, HEADS, NEXT_SENTENCE, SCORE

if TYPE_CHECKING:
    import numpy as np

    from bertjax.encoder import Encoder, Prediction
    from bertjax.scoring import Score

_TWO = "two texts (a tab between them, or text and text_pair in JSON lines)"
_NO_TEXTS = (".json", ".csv", ".gz", ".bz2", ".xz", ".zst", ".zip")
_CHUNK = 1_024  # texts read, predicted and written at a time


class Input(NamedTuple):
    """A text or a pair; `where` says in an error which one it is."""

    text: Text
    where: str

    def fields(self) -> dict[str, str]:
        """As records have it."""
        names = ("text", "text_pair")
        texts = self.text if isinstance(self.text, tuple) else (self.text,)
        return dict(zip(names, texts, strict=False))


Predict = Callable[[list[Any]], Iterator[dict[str, Any]]]  # of texts or examples
Line = Callable[[dict[str, Any]], str]  # of a record, for people


class InputError(BertjaxError, ValueError):
    """A text that the model cannot take; says which line."""


def main(argv: Sequence[str] | None = None) -> typing.NoReturn:
    """Runs the command; see `command_line.run`."""
    command_line.run(_define, _predict, __doc__ or "", argv, exit_code=EXIT_REFUSED)


def _define(values: flags.FlagValues) -> None:
    flags.DEFINE_string(
        "model",
        None,
        "A workdir or checkpoint of bertjax (also gs://), a Hugging Face folder of a BERT, or a "
        "TF1 checkpoint.",
        required=True,
        flag_values=values,
    )
    flags.DEFINE_enum(
        "do",
        None,
        [*dict.fromkeys(verb for head in HEADS.values() for verb in head.verbs), EMBED],
        "What to predict. Default: fill-mask for a pre-trained model, score for a left-to-right "
        "one, the task of a fine-tuned model, else embed.",
        flag_values=values,
    )
    flags.DEFINE_string(
        "input",
        None,
        "File of texts. Default: the arguments, else standard input.",
        flag_values=values,
    )
    flags.DEFINE_string(
        "examples",
        None,
        "In place of texts: files of the model's own task, as --eval of bertjax.finetune reads "
        "them, with or without labels; or tfds:NAME:SPLIT.",
        flag_values=values,
    )
    flags.DEFINE_string(
        "output", None, "File to write. Default: standard output.", flag_values=values
    )
    flags.DEFINE_enum(
        "format", "text", ["text", "json"], "What each line of the output is.", flag_values=values
    )
    flags.DEFINE_integer(
        "top_k", 5, "Predictions of fill-mask for each [MASK].", 1, flag_values=values
    )
    flags.DEFINE_bool(
        "mask_rest_of_word",
        None,
        "Whether score, for each token, also masks the rest of its word, of a masked model. "
        "Default: true.",
        flag_values=values,
    )
    flags.DEFINE_bool(
        "score_end",
        False,
        "Whether score also scores the end of the text, [SEP], of a left-to-right model.",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "max_length",
        None,
        "Tokens per row of classify, answer and tag. Default: that of the fine-tuning; of a model "
        "whose fine-tuning is not known, all its positions, 384 for answer.",
        lower_bound=1,
        flag_values=values,
    )


def _predict(values: flags.FlagValues, arguments: list[str]) -> int:
    """Predicts; returns 0."""
    command_line.show_log(level=logging.WARNING)
    with contextlib.suppress(BrokenPipeError):  # as `| head` does
        _run(values, arguments)
        return EXIT_FINISHED
    sys.stderr.close()
    return EXIT_FINISHED


def _run(values: flags.FlagValues, arguments: list[str]) -> None:
    _check_files(values, arguments)
    from bertjax.encoder import load

    encoder = load(values.model)
    kind = values.do or encoder.can[0]
    if kind not in encoder.can:
        raise InputError(
            f"--do={kind}: the head of {values.model} is {encoder.config.head!r}, which can "
            f"{' and '.join(encoder.can)}"
        )
    inputs: Iterator[Any]
    if values.examples:
        inputs, predict, line = _open_examples(values, kind, encoder)
    else:
        texts = _texts(values.input, arguments)
        first = next(texts)
        inputs = itertools.chain([first], texts)
        predict, line = _predictor(values, kind, encoder, paired=isinstance(first.text, tuple))
    if values.format == "json":
        line = functools.partial(json.dumps, ensure_ascii=False)
    with _output(values.output) as out:
        while chunk := list(itertools.islice(inputs, _CHUNK)):
            for record in predict(chunk):
                print(line(_rounded(record)), file=out)
            out.flush()


def _check_files(values: flags.FlagValues, arguments: list[str]) -> None:
    """Refuses paths that cannot be, before a model is loaded."""
    source, target = values.input or "", values.output
    given = {"texts as arguments": arguments, "--input": source, "--examples": values.examples}
    if len(several := [name for name, value in given.items() if value]) > 1:
        raise InputError(f"{' and '.join(several)}: give one of them")
    if source and (not Path(source).exists() or Path(source).is_dir()):
        raise InputError(f"--input={source}: no such file; expected texts, one per line")
    if Path(source).suffix.lower() in _NO_TEXTS:
        raise InputError(
            f"--input={source}: expected texts, one per line, or JSON lines in a file that ends in "
            ".jsonl, not compressed; the files of a task are read by --examples"
        )
    if target and (Path(target).is_dir() or not Path(target).absolute().parent.is_dir()):
        raise InputError(f"--output={target}: expected a file in a folder that exists")
    if target and Path(target).exists():
        for path in filter(os.path.exists, [source, *(values.examples or "").split(",")]):
            if os.path.samefile(path, target):
                raise InputError(f"--output={target}: is the input; name another file")


def _texts(source: str | None, arguments: list[str]) -> Iterator[Input]:
    """The texts to predict for, read as they are asked for."""
    if arguments:
        for text in arguments:
            yield _split(text, repr(text[:60]))
        return
    path = source or "stdin"
    is_empty, read = True, _record if path.lower().endswith(".jsonl") else _split
    with open(path, "rb") if source else contextlib.nullcontext(sys.stdin.buffer) as lines:
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
                yield read(line, f"{path}:{number}")
    if is_empty:
        raise InputError(f"{path}: has no texts; expected one per line")


def _record(line: str, where: str) -> Input:
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
    return Input(text if pair is None else (text, pair), where)


def _split(line: str, where: str) -> Input:
    text, tab, pair = line.partition("\t")
    return Input((text, pair) if tab else text, where)


@contextlib.contextmanager
def _output(name: str | None) -> Iterator[TextIO]:
    """Where the answers go; a file gets its name when they are all there."""
    if not name:
        if isinstance(sys.stdout, io.TextIOWrapper):  # half of a surrogate pair is no UTF-8
            sys.stdout.reconfigure(errors="backslashreplace")
        yield sys.stdout
        return
    path = Path(name)
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


def _predictor(
    values: flags.FlagValues, kind: str, encoder: Encoder, paired: bool
) -> tuple[Predict, Line]:
    """The function that turns texts into records, which begin with the text, and these into lines.

    Args:
      values: the flags.
      kind: what to predict, of `encoder.can`.
      encoder: the model.
      paired: whether the first text is two, as all are then.
    """
    say: Callable[[list[Text]], Iterable[dict[str, Any]]]
    if kind == FILL_MASK:
        line, say = (
            _masks_line,
            lambda texts: map(
                _masks, encoder.fill_mask(typing.cast(list[str], texts), values.top_k)
            ),
        )
    elif kind == NEXT_SENTENCE:
        line, say = _pair_line, functools.partial(_next_sentences, encoder)
    elif kind == SCORE:
        line, say = (
            _score_line,
            lambda texts: map(
                _score, encoder.score(texts, values.mask_rest_of_word, values.score_end)
            ),
        )
    elif kind == EMBED:
        line, say = _vector_line, lambda texts: map(_vector, encoder.embed(texts))
    else:
        task, max_length = encoder.open_task(paired, values.max_length)
        line, say = task.line, functools.partial(encoder.answer_texts, task, max_length)

    def predict(inputs: list[Input]) -> Iterator[dict[str, Any]]:
        try:
            for source, record in zip(inputs, say([x.text for x in inputs]), strict=True):
                yield {**source.fields(), **record}
        except TextError as error:
            raise InputError(f"{inputs[error.index].where}: {error.reason}") from error

    return predict, line


def _masks(masks: list[list[Prediction]]) -> dict[str, Any]:
    return {"masks": [[{"piece": p.piece, "probability": p.probability} for p in m] for m in masks]}


def _next_sentences(encoder: Encoder, texts: list[Text]) -> Iterator[dict[str, Any]]:
    for i, text in enumerate(texts):
        if not isinstance(text, tuple):
            raise TextError(i, f"next-sentence takes {_TWO}, found one")
        yield {"probability": encoder.next_sentence(*text)}


def _score(score: Score) -> dict[str, Any]:
    """The fields of a `Score`, its mean after the sum; null if there are no tokens."""
    fields = score._asdict()
    total = {"log_likelihood": fields.pop("log_likelihood")}
    return total | {"per_token": score.per_token if score.num_tokens else None} | fields


def _vector(vector: np.ndarray) -> dict[str, Any]:
    return {"embedding": vector.tolist()}


def _open_examples(
    values: flags.FlagValues, kind: str, encoder: Encoder
) -> tuple[Iterator[Any], Predict, Line]:
    """The examples of --examples, and what turns them into records and these into lines."""
    if not encoder.task:
        raise InputError(
            f"--examples={values.examples}: {values.model} does not say what its task's files look "
            "like, as a workdir of bertjax.finetune does; give texts"
        )
    if kind != encoder.can[0]:
        raise InputError(f"--examples={values.examples}: --do={kind} takes texts")
    task, max_length = encoder.open_task(max_length=values.max_length)

    def predict(examples: list[Any]) -> Iterator[dict[str, Any]]:
        answers = encoder.answer_examples(task, max_length, examples)
        for example, answer in zip(examples, answers, strict=True):
            yield {**task.inputs(example), **answer}

    return iter(task.read(values.examples, needs_labels=False)), predict, task.line


def _rounded(value: Any) -> Any:
    """A value of a record, its numbers to six places as those of the other kinds."""
    if isinstance(value, dict):
        return {name: _rounded(x) for name, x in value.items()}
    if isinstance(value, list):
        return [_rounded(x) for x in value]
    return round(value, 6) if isinstance(value, float) else value


def _masks_line(record: dict[str, Any]) -> str:
    from bertjax.tasks.task import on_a_line

    masks = ["  ".join(f"{p['piece']} {p['probability']:.3f}" for p in m) for m in record["masks"]]
    return "\t".join([on_a_line(record["text"]), *masks])


def _pair_line(record: dict[str, Any]) -> str:
    from bertjax.tasks.task import on_a_line

    texts = map(on_a_line, (record["text"], record["text_pair"]))
    return "\t".join([f"{record['probability']:.4f}", *texts])


def _score_line(record: dict[str, Any]) -> str:
    from bertjax.tasks.task import on_a_line

    mean = "-" if record["per_token"] is None else f"{record['per_token']:.4f}"
    texts = [on_a_line(record[name]) for name in ("text", "text_pair") if name in record]
    return "\t".join([f"{record['log_likelihood']:.4f}", mean, str(record["num_tokens"]), *texts])


def _vector_line(record: dict[str, Any]) -> str:
    return " ".join(f"{value:.6f}" for value in record["embedding"])


if __name__ == "__main__":
    main()
