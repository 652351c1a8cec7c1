"""Make the rows of all questions of SQuAD v1.1 and recover every answer from them.

    python -m benchmarks.squad_features --data=../shared/data [--load="busy machine"]

For both files: seconds to read and to make the rows (length 384, stride 128), rows, peak memory, and
how many answers come back from the task's own search when the logits point at the rows' positions:
the same text, or the same after the official normalisation. Writes
benchmarks/results/squad_features.json. One process.
"""

import argparse
import datetime
import json
import platform
import resource
import time
from pathlib import Path

import numpy as np

from benchmarks.hardware import cpu_name
from bertjax.data.tokenizer import from_argument
from bertjax.tasks.registry import make_task
from bertjax.tasks.squad_metrics import normalize

REPOSITORY = Path(__file__).resolve().parents[1]
MAX_LENGTH = 384
SEARCHED = 4096  # questions searched at once


def peak_megabytes() -> int:
    """Most memory that this process has had so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def measure(path: Path, tokenizer) -> dict:
    """Read a file, make its rows and count what is recovered."""
    task = make_task("squad")
    clock = [time.perf_counter()]
    questions = task.read(str(path), needs_labels=True)
    clock.append(time.perf_counter())
    arrays = task.features(questions, tokenizer, MAX_LENGTH)
    clock.append(time.perf_counter())
    peak = peak_megabytes()
    rows_of = arrays["example_index"]
    in_a_row = np.zeros(len(questions), bool)
    in_a_row[rows_of[arrays["start_positions"] > 0]] = True
    exact = same = 0
    different = []
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
            text = question.answers[0].text
            exact += record["text"] == text
            same += normalize(record["text"]) == normalize(text)
            if normalize(record["text"]) != normalize(text) and len(different) < 10:
                different.append([question.id, text, record["text"]])
    clock.append(time.perf_counter())
    read, features, search = np.diff(clock).tolist()
    return {
        "file": path.name,
        "questions": len(questions),
        "rows": len(rows_of),
        "seconds": {
            "read": round(read, 1),
            "features": round(features, 1),
            "search": round(search, 1),
        },
        "peak_megabytes": peak,
        "array_megabytes": sum(array.nbytes for array in arrays.values()) >> 20,
        "answers_in_a_row": int(in_a_row.sum()),
        "recovered_exactly": exact,
        "recovered_normalized": same,
        "first_different": different,
    }


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, default=REPOSITORY.parent / "shared" / "data")
    parser.add_argument("--load", default="quiet machine", help="what else the machine does")
    arguments = parser.parse_args()
    tokenizers = {
        "wordpiece": "bert-base-uncased-vocab.txt",
        "sentencepiece": "sentencepiece_test_model.model",
    }
    results = {}
    for kind, name in tokenizers.items():
        tokenizer = from_argument(str(arguments.data / "vocab" / name))
        results[kind] = [
            measure(arguments.data / "squad" / file, tokenizer)
            for file in ("dev-v1.1.json.gz", "train-v1.1.json.gz")
        ]
    report = {
        "what": "rows of SQuAD v1.1 and the answers recovered from them",
        "date": datetime.date.today().isoformat(),
        "python": platform.python_version(),
        "cpu": cpu_name(),
        "machine": arguments.load,
        "max_length": MAX_LENGTH,
        "doc_stride": make_task("squad").settings()["options"]["doc_stride"],
        "vocabularies": tokenizers,
        "results": results,
    }
    output = REPOSITORY / "benchmarks" / "results" / "squad_features.json"
    output.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n")
    print(json.dumps(results, indent=2, ensure_ascii=False))


if __name__ == "__main__":
    main()
