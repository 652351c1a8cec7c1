"""Make the rows of all questions of SQuAD v1.1 and recover every answer from them.

    python -m benchmarks.squad_features --data=../shared/data [--load="busy machine"]

For both files: seconds to read and to make the rows (length 384, stride 128), rows, peak memory,
and how many answers come back, as the same text or the same after the official normalisation:

- spans: the text of the pieces that hold the answer (an answer may end inside a word);
- searched: what the task's own search finds when the logits point at these pieces (it also has to
  have at most 30 pieces, and all of it in the window that gives its first one most context).

Writes benchmarks/results/squad_features.json. One process.
"""

from __future__ import annotations

import argparse
import resource
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness import DATA, Benchmark
from bertjax.data.tokenizers.offsets import OffsetEncoder
from bertjax.data.tokenizers.tokenizer import from_argument
from bertjax.tasks.registry import make_task
from bertjax.tasks.squad.metrics import normalize
from bertjax.tasks.squad.windows import answer_pieces

MAX_LENGTH = 384
STEPS = ("read", "features", "spans", "search")
SEARCHED = 4096  # questions searched at once


def peak_megabytes() -> int:
    """Most memory that this process has had so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


class Recovered:
    """How many answers came back."""

    def __init__(self):
        self.exact = self.normalized = self.wider = self.other = 0

    def count(self, answer: str, found: str) -> None:
        """Compare one; wider is one that holds the answer, which ends inside a word then."""
        self.exact += found == answer
        same = normalize(found) == normalize(answer)
        self.normalized += same
        self.wider += not same and answer in found
        self.other += not same and answer not in found


def measure_file(path: Path, tokenizer) -> dict:
    """Read a file, make its rows and count what is recovered."""
    task = make_task("squad")
    clock, processor = [time.perf_counter()], [time.process_time()]

    def tick() -> None:
        clock.append(time.perf_counter())
        processor.append(time.process_time())

    questions = task.read(str(path), needs_labels=True)
    tick()
    arrays = task.features(questions, tokenizer, MAX_LENGTH)
    tick()
    peak = peak_megabytes()
    rows_of = arrays["example_index"]
    in_a_row = np.zeros(len(questions), bool)
    in_a_row[rows_of[arrays["start_positions"] > 0]] = True
    spans, searched = Recovered(), Recovered()
    encoder = OffsetEncoder(tokenizer)
    context, paragraph = "", encoder.encode("")
    for question in questions:
        if question.context != context:
            context, paragraph = question.context, encoder.encode(question.context)
        held = answer_pieces(paragraph, question)
        text = context[paragraph.starts[held[0]] : paragraph.ends[held[1]]] if held else ""
        spans.count(question.answers[0].text, text)
    tick()
    for first in range(0, len(questions), SEARCHED):
        part = questions[first : first + SEARCHED]
        begin, end = np.searchsorted(rows_of, [first, first + len(part)])
        rows = {name: array[begin:end] for name, array in arrays.items()}
        rows["example_index"] = rows["example_index"] - first
        outputs = {}
        for name in ("start", "end"):
            logits = np.zeros((end - begin, MAX_LENGTH), np.float32)
            logits[np.arange(end - begin), rows[f"{name}_positions"]] = 10.0
            outputs[f"{name}_logits"] = logits
        for question, record in zip(part, task.predictions(part, rows, outputs), strict=True):
            searched.count(question.answers[0].text, record["text"])
    tick()
    return {
        "file": path.name,
        "questions": len(questions),
        "rows": len(rows_of),
        "seconds": dict(zip(STEPS, np.diff(clock).round(1).tolist(), strict=True)),
        "cpu_seconds": dict(zip(STEPS, np.diff(processor).round(1).tolist(), strict=True)),
        "peak_megabytes": peak,
        "array_megabytes": sum(array.nbytes for array in arrays.values()) >> 20,
        "answers_in_a_row": int(in_a_row.sum()),
        "spans": vars(spans),
        "searched": vars(searched),
    }


def options(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    parser.add_argument("--data", type=Path, default=DATA)


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measures both files with both tokenizers."""
    tokenizers = {
        "wordpiece": "bert-base-uncased-vocab.txt",
        "sentencepiece": "sentencepiece_test_model.model",
    }
    results = {}
    for kind, name in tokenizers.items():
        tokenizer = from_argument(str(arguments.data / "vocab" / name))
        results[kind] = [
            measure_file(arguments.data / "squad" / file, tokenizer)
            for file in ("dev-v1.1.json.gz", "train-v1.1.json.gz")
        ]
    return {
        "what": "rows of SQuAD v1.1 and the answers recovered from them",
        "max_length": MAX_LENGTH,
        "doc_stride": make_task("squad").settings()["options"]["doc_stride"],
        "vocabularies": tokenizers,
        "results": results,
    }


BENCHMARK = Benchmark(measure, "squad_features.json", options, device="none")

if __name__ == "__main__":
    BENCHMARK.main()
