"""Count the lines on which our WordPiece ids differ from the published rules: it must be none.

    python -m benchmarks.tokenizer_equality --data=../shared/data

Reads every line of corpus/*.jsonl.gz with every vocab/*-vocab.txt and compares with the test oracle
(tests/helpers/wordpiece_oracle.py), then every code point between two letters, in both casings.
Documents are encoded whole, by `encode_sentences`, as `prepare` does. Writes
benchmarks/results/tokenizer_equality.json. Two processes; about ten minutes for 166 MB.
"""

from __future__ import annotations

import argparse
import gzip
import json
import multiprocessing
import sys
import time
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.harness import DATA, ROOT, Benchmark, UsageError

sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "helpers")]

import wordpiece_oracle  # noqa: E402

from bertjax.data.tokenizers.basic_tokenizer import basic_tokenize, fine_chunks  # noqa: E402
from bertjax.data.tokenizers.wordpiece import WordPieceTokenizer, load_wordpiece  # noqa: E402

PARTS = 8  # of a corpus, each the documents with one remainder, so that two processes share it


def compare_corpus(task: tuple[Path, int, list[Path]]) -> dict:
    """Compare one part of one corpus with all vocabularies (uncased, as these are)."""
    corpus, part, vocabularies = task
    tokenizers = {path.name: load_wordpiece(path, lower_case=True) for path in vocabularies}
    ids_of = {
        name: {piece: id for id, piece in enumerate(tokenizer.pieces)}
        for name, tokenizer in tokenizers.items()
    }
    lines = num_bytes = 0
    tokens, differing = dict.fromkeys(ids_of, 0), dict.fromkeys(ids_of, 0)
    first_differing: list[list] = []
    with gzip.open(corpus, "rt", encoding="utf-8") as file:
        for number, document in enumerate(file):
            if number % PARTS != part:
                continue
            texts = json.loads(document)["text"].split("\n")
            encoded = {name: ids_by_line(tokenizers[name], texts) for name in tokenizers}
            for index, line in enumerate(texts):
                lines += 1
                num_bytes += len(line.encode())
                # The words do not depend on the vocabulary.
                words = wordpiece_oracle.basic_tokenize(line, True)
                for name, vocabulary in ids_of.items():
                    expected = [
                        vocabulary[piece]
                        for word in words
                        for piece in wordpiece_oracle.word_pieces(word, vocabulary)
                    ]
                    tokens[name] += len(expected)
                    if encoded[name][index] != expected:
                        differing[name] += 1
                        first_differing.append([name, number, line[:200]])
    return {
        "lines": lines,
        "bytes": num_bytes,
        "tokens": tokens,
        "differing": differing,
        "first_differing": first_differing[:5],
    }


def ids_by_line(tokenizer: WordPieceTokenizer, lines: list[str]) -> list[list[int]]:
    """The ids of each line, all encoded at once."""
    ids, lengths = tokenizer.encode_sentences(lines)
    ends = lengths.cumsum()
    return [ids[end - length : end].tolist() for end, length in zip(ends, lengths, strict=True)]


def words_of(text: str, lower_case: bool) -> list[str]:
    """The words that the tokenizer looks up, by way of `fine_chunks`."""
    chunks = fine_chunks([text], lower_case)
    return [
        word
        for chunk in chunks
        for word in basic_tokenize(chunk.decode("utf-8", "surrogatepass"), lower_case)
    ]


def compare_code_points(lower_case: bool) -> dict:
    """Compare the words of every code point, surrogates included, between two letters."""
    differing = [
        f"U+{code:04X}"
        for code in range(sys.maxunicode + 1)
        if words_of(text := f"x{chr(code)}y", lower_case)
        != wordpiece_oracle.basic_tokenize(text, lower_case)
    ]
    return {
        "lower_case": lower_case,
        "code_points": sys.maxunicode + 1,
        "differing": len(differing),
        "first_differing": differing[:5],
    }


def add_up(corpus: Path, parts: list[dict]) -> dict:
    """Sum the parts of one corpus."""
    names = parts[0]["differing"]
    return {
        "file": corpus.name,
        "lines": sum(part["lines"] for part in parts),
        "bytes": sum(part["bytes"] for part in parts),
        "tokens": {name: sum(part["tokens"][name] for part in parts) for name in names},
        "differing": {name: sum(part["differing"][name] for part in parts) for name in names},
        "first_differing": [line for part in parts for line in part["first_differing"]][:5],
    }


def options(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    parser.add_argument("--data", type=Path, default=DATA)


def measure(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Compares; an error if any line differs."""
    corpora = sorted((arguments.data / "corpus").glob("*.jsonl.gz"))
    vocabularies = sorted((arguments.data / "vocab").glob("*-vocab.txt"))
    if not corpora or not vocabularies:
        raise UsageError(
            f"--data={arguments.data}: no corpus/*.jsonl.gz or no vocab/*-vocab.txt in it"
        )
    start = time.perf_counter()
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        code_points = pool.map(compare_code_points, [True, False])
        tasks = [(corpus, part, vocabularies) for corpus in corpora for part in range(PARTS)]
        parts = pool.map(compare_corpus, tasks, chunksize=1)
    results = [
        add_up(corpus, parts[n * PARTS : (n + 1) * PARTS]) for n, corpus in enumerate(corpora)
    ]
    yield {
        "what": "lines whose WordPiece ids differ from tests/helpers/wordpiece_oracle.py",
        "unicode": unicodedata.unidata_version,
        "seconds": round(time.perf_counter() - start),
        "vocabularies": {
            path.name: load_wordpiece(path, lower_case=True).hash for path in vocabularies
        },
        "corpora": results,
        "code_points": code_points,
    }
    differing = sum(n for entry in results for n in entry["differing"].values())
    differing += sum(entry["differing"] for entry in code_points)
    lines = sum(entry["lines"] for entry in results)
    print(
        f"{lines} lines, {len(vocabularies)} vocabularies: {differing} differ; "
        f"see {arguments.output}"
    )
    sys.exit(differing > 0)


BENCHMARK = Benchmark(measure, "tokenizer_equality.json", options, device="none")


if __name__ == "__main__":
    BENCHMARK.main()
