"""Runs of `bertjax.prepare`: a corpus, commands, and what they leave."""

import gzip
import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from folders import REPOSITORY

from bertjax.prepare.options import PrepareOptions

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
SHARD_TOKENS = 150_000  # four shards of the corpus below: a shard ends with a block of 1 MiB


def random_text(seed, num_words):
    """Words of one to three syllables, in sentences and paragraphs."""
    rng = np.random.default_rng(seed)
    syllables = np.array([c + v for c in "bdfgklmnprst" for v in "aeiou"])
    words = syllables[rng.integers(0, 60, num_words)].astype(object)
    for _ in range(2):
        more = syllables[rng.integers(0, 60, num_words)].astype(object)
        words += np.where(rng.random(num_words) < 0.5, more, "")
    ends = rng.random(num_words)
    marks = np.select([ends < 0.01, ends < 0.1, ends < 0.15], [".\n", ". ", ", "], " ")
    capitals = np.concatenate([[True], ends[:-1] < 0.1])
    words = np.where(capitals, [word.capitalize() for word in words], words)
    return "".join((words + marks.astype(object)).tolist())


@pytest.fixture(scope="session")
def vocabulary(tmp_path_factory):
    letters = [prefix + letter for letter in "abcdefghijklmnopqrstuvwxyz" for prefix in ("", "##")]
    syllables = [prefix + c + v for c in "bdfgklmnprst" for v in "aeiou" for prefix in ("", "##")]
    path = tmp_path_factory.mktemp("vocabulary") / "vocab.txt"
    path.write_text("\n".join([*SPECIAL, ".", ",", *letters, *syllables]) + "\n")
    return path


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    """About 6 MB in three files and formats, with some bad input on the way."""
    folder = tmp_path_factory.mktemp("corpus")
    texts = [random_text(seed, 1 + seed % 37 * 60) for seed in range(1000)]
    (folder / "a.txt").write_text("\n\n".join(texts[:200]))
    lines = [json.dumps({"text": text}) for text in texts[200:]]
    lines.insert(17, "not JSON")
    (folder / "b.jsonl").write_text("\n".join(lines[:300]))
    (folder / "c.jsonl.gz").write_bytes(gzip.compress("\n".join(lines[300:]).encode()))
    return folder


def options(folder, output, vocabulary, **changes):
    chosen = {
        "input": f"{folder}/*",
        "output": str(output),
        "tokenizer": str(vocabulary),
        "heldout_share": 0.1,
        "shard_tokens": SHARD_TOKENS,
        "num_workers": 1,
    }
    return PrepareOptions(**(chosen | changes))


def command(chosen):
    flags = {name: value for name, value in vars(chosen).items() if value not in (None, False, "")}
    return [sys.executable, "-m", "bertjax.prepare", *(f"--{n}={v}" for n, v in flags.items())]


# Not `preexec_fn`, which would fork this process with the threads that other tests have started.
LAUNCH = """
import os, resource, signal, sys
signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell's background job ignores it
if limit := int(sys.argv[1]):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
os.execv(sys.executable, [sys.executable, *sys.argv[2:]])
"""


def start(chosen, file_size_limit=0):
    return subprocess.Popen(
        [sys.executable, "-c", LAUNCH, str(file_size_limit), *command(chosen)[1:]],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def finish(process, code):
    output = process.communicate(timeout=120)[0].decode()
    assert process.returncode == code, output
    return output


def contents(store):
    return {
        str(file.relative_to(store)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in Path(store).rglob("*")
        if file.is_file()
    }


def children(pid):
    return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
