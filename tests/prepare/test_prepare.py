"""bertjax.prepare: the same store for any number of workers, kills and restarts."""

import hashlib
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from folders import REPOSITORY
from prepare_runs import (
    SPECIAL,
    children,
    contents,
    finish,
    options,
    random_text,
    running,
    start,
)

from bertjax.data.corpus import corpus as corpus_module
from bertjax.data.corpus.corpus import split_sentences
from bertjax.data.corpus.embedded import embedded_documents
from bertjax.data.store.store import StoreError, open_store, verify_store
from bertjax.prepare import build_store
from bertjax.prepare.build_store import prepare
from bertjax.prepare.embedded_store import prepare_embedded
from bertjax.prepare.encode_blocks import is_held_out
from bertjax.prepare.options import PrepareError
from bertjax.prepare.resume import locked
from bertjax.storage.atomic_files import write_file


@pytest.fixture(scope="session")
def whole(corpus, vocabulary, tmp_path_factory):
    """The store of an undisturbed run in one process."""
    output = tmp_path_factory.mktemp("whole") / "store"
    prepare(options(corpus, output, vocabulary))
    return output


def documents_of(store, split):
    tokens = np.concatenate([*split.token_shards, np.zeros(0, np.int64)])
    starts = split.sentence_offsets[split.document_offsets.astype(np.int64)].astype(np.int64)
    return [tuple(tokens[a:b].tolist()) for a, b in itertools.pairwise(starts)]


def test_the_store_holds_the_text(corpus, whole):
    verify_store(whole)
    store = open_store(whole)
    tokenizer = store.tokenizer()
    text = (corpus / "a.txt").read_text().strip()
    blocks = {True: [], False: []}
    for document in text.split("\n\n"):
        paragraphs = [line.strip() for line in document.split("\n") if line.strip()]
        blocks[is_held_out("\n".join(paragraphs).encode(), 0.1)].append(
            [sentence for p in paragraphs for sentence in split_sentences("en", p)]
        )
    for split, documents in ((store.train, blocks[False]), (store.heldout, blocks[True])):
        assert documents
        sentences = [sentence for document in documents for sentence in document]
        offsets = split.sentence_offsets[: len(sentences) + 1].astype(np.int64)
        rows = split.gather(offsets[:-1], np.diff(offsets), int(np.diff(offsets).max()))
        for row, length, sentence in zip(rows, np.diff(offsets), sentences, strict=True):
            assert row[:length].tolist() == tokenizer.encode(sentence)
        assert np.diff(split.document_offsets[: len(documents) + 1]).tolist() == [
            len(document) for document in documents
        ]
    manifest = store.manifest
    assert 0.06 < store.heldout.num_documents / 1000 < 0.14
    assert store.train.num_documents + store.heldout.num_documents == 1000
    assert len(store.train.token_shards) == 4
    assert manifest["problems"]["invalid_json"]["count"] == 1
    assert manifest["problems"]["invalid_json"]["examples"][0].startswith(f"{corpus}/b.jsonl:18:")
    assert [Path(s["name"]).name for s in manifest["sources"]] == ["a.txt", "b.jsonl", "c.jsonl.gz"]
    for source in manifest["sources"]:
        content = Path(source["name"]).read_bytes()
        assert (source["bytes"], source["sha256"]) == (
            len(content),
            hashlib.sha256(content).hexdigest(),
        )


@pytest.mark.slow
def test_three_workers_give_the_same_bytes(corpus, vocabulary, whole, tmp_path):
    process = start(options(corpus, tmp_path / "s", vocabulary, num_workers=3))
    finish(process, 0)
    assert contents(tmp_path / "s") == contents(whole)


def wait_for_part(process, store, number):
    file = store / "unfinished" / f"part-{number:05d}.json"
    deadline = time.monotonic() + 100
    while not file.exists():
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.002)


def is_worker(pid):
    try:
        return b"multiprocessing.spawn" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):  # it has ended
        return False


def test_kill_and_restart_give_the_same_bytes(corpus, vocabulary, whole, tmp_path):
    chosen = options(corpus, tmp_path / "s", vocabulary, num_workers=2)
    for number in (0, 1, 2):
        process = start(chosen)
        wait_for_part(process, tmp_path / "s", number)
        workers = children(process.pid)
        assert sum(map(is_worker, workers)) == 2
        process.kill()
        process.communicate()
        deadline = time.monotonic() + 30
        while any(map(running, workers)):  # no worker outlives the main process
            assert time.monotonic() < deadline
            time.sleep(0.05)
        with pytest.raises(StoreError, match="has not finished"):
            open_store(tmp_path / "s")
    first = tmp_path / "s" / "train" / "tokens-00000.npy"
    written = first.stat().st_mtime_ns
    output = finish(start(chosen), 0)
    assert "finished shards are kept" in output
    assert first.stat().st_mtime_ns == written
    assert contents(tmp_path / "s") == contents(whole)


@pytest.mark.slow
def test_damaged_shard_is_written_again(corpus, vocabulary, whole, tmp_path, caplog):
    caplog.set_level("INFO", "bertjax")
    chosen = options(corpus, tmp_path / "s", vocabulary)
    process = start(chosen)
    wait_for_part(process, tmp_path / "s", 2)
    process.kill()
    process.communicate()
    shard = tmp_path / "s" / "train" / "tokens-00001.npy"
    content = bytearray(shard.read_bytes())
    content[1000] ^= 1
    shard.write_bytes(content)
    prepare(chosen)
    assert "tokens-00001.npy: differs from its checksum" in caplog.text
    assert contents(tmp_path / "s") == contents(whole)


@pytest.mark.slow
def test_killed_at_the_very_end(corpus, vocabulary, whole, tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO", "bertjax")
    chosen = options(corpus, tmp_path / "s", vocabulary)

    class Killed(BaseException):
        pass

    def kill(*arguments, **keywords):
        raise Killed

    def kill_at_manifest(path, content):
        if path.name == "manifest.json":
            raise Killed
        write_file(path, content)

    for name, replacement in (("write_file", kill_at_manifest), ("shutil.rmtree", kill)):
        with monkeypatch.context() as patch:
            patch.setattr(f"bertjax.data.store.store_writer.{name}", replacement)
            with pytest.raises(Killed):
                prepare(chosen)
        assert (tmp_path / "s" / "unfinished").exists()
        assert (tmp_path / "s" / "manifest.json").exists() == (replacement is kill)
    prepare(chosen)
    assert "already prepared" in caplog.text
    assert contents(tmp_path / "s") == contents(whole)


@pytest.mark.slow
def test_killed_worker(corpus, vocabulary, whole, tmp_path):
    process = start(options(corpus, tmp_path / "s", vocabulary, num_workers=2))
    wait_for_part(process, tmp_path / "s", 0)
    os.kill(next(filter(is_worker, children(process.pid))), signal.SIGKILL)
    assert "a worker process died: continuing with new ones" in finish(process, 0)
    assert contents(tmp_path / "s") == contents(whole)


@pytest.mark.slow
def test_workers_that_keep_dying(corpus, vocabulary, whole, tmp_path):
    process = start(options(corpus, tmp_path / "s", vocabulary, num_workers=2))
    while process.poll() is None:
        for worker in filter(running, filter(is_worker, children(process.pid))):
            os.kill(worker, signal.SIGKILL)
        time.sleep(0.02)
    assert "error: worker processes died 4 times" in finish(process, 1)
    prepare(options(corpus, tmp_path / "s", vocabulary))
    assert contents(tmp_path / "s") == contents(whole)


@pytest.mark.slow
def test_interrupt(corpus, vocabulary, tmp_path):
    process = start(options(corpus, tmp_path / "s", vocabulary, num_workers=2))
    wait_for_part(process, tmp_path / "s", 0)
    process.send_signal(signal.SIGINT)
    assert "continues where it stopped" in finish(process, 130)


@pytest.mark.slow
def test_no_room(corpus, vocabulary, whole, tmp_path):
    """A limit on the size of files stands for a full disk: the same error at the same place."""
    chosen = options(corpus, tmp_path / "s", vocabulary)
    output = finish(start(chosen, file_size_limit=200_000), 1)
    assert f"error: {tmp_path / 's'}: cannot be written: File too large" in output
    assert not list((tmp_path / "s").rglob("*.tmp"))
    prepare(chosen)
    assert contents(tmp_path / "s") == contents(whole)


def test_output_that_cannot_be(corpus, vocabulary, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(PrepareError, match="Not a directory"):
        prepare(options(corpus, tmp_path / "file" / "s", vocabulary))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("")
    with pytest.raises(PrepareError, match=r"neither empty nor a store, it holds thesis\.tex"):
        prepare(options(corpus, tmp_path / "mine", vocabulary))
    assert [file.name for file in (tmp_path / "mine").iterdir()] == ["thesis.tex"]
    with (
        locked(tmp_path / "busy"),
        pytest.raises(PrepareError, match="another run is preparing it"),
    ):
        prepare(options(corpus, tmp_path / "busy", vocabulary))


def small_corpus(folder, texts):
    folder.mkdir(exist_ok=True)
    (folder / "a.txt").write_text("\n\n".join(texts))
    return folder


def test_finished_store_is_not_overwritten(vocabulary, tmp_path, caplog):
    caplog.set_level("INFO", "bertjax")
    folder = small_corpus(tmp_path / "in", [random_text(s, 50) for s in range(30)])
    chosen = options(folder, tmp_path / "s", vocabulary)
    prepare(chosen)
    before = contents(tmp_path / "s")
    caplog.clear()
    os.utime(folder / "a.txt", (1, 1))  # the content counts, not the time
    prepare(chosen)
    assert "already prepared" in caplog.text
    with pytest.raises(PrepareError, match=r"heldout_share was 0\.1 and is 0\.2 now"):
        prepare(options(folder, tmp_path / "s", vocabulary, heldout_share=0.2))
    with vocabulary.open("a") as file:
        file.write("more\n")
    try:
        with pytest.raises(PrepareError, match="tokenizer_hash was"):
            prepare(chosen)
    finally:
        vocabulary.write_text(vocabulary.read_text().removesuffix("more\n"))
    small_corpus(folder, [random_text(s, 50) for s in range(31)])
    with pytest.raises(PrepareError, match=r"a\.txt is new or has changed"):
        prepare(chosen)
    assert contents(tmp_path / "s") == before


def test_unfinished_store_of_another_command_is_refused(corpus, vocabulary, tmp_path):
    process = start(options(corpus, tmp_path / "s", vocabulary))
    wait_for_part(process, tmp_path / "s", 0)
    process.kill()
    process.communicate()
    with pytest.raises(PrepareError, match="language was en and is zh now; run that command"):
        prepare(options(corpus, tmp_path / "s", vocabulary, language="zh"))


def test_input_that_changes_meanwhile(vocabulary, tmp_path, monkeypatch):
    folder = small_corpus(tmp_path / "in", [random_text(1, 50), random_text(2, 50)])
    real = build_store.encode_blocks

    def grow_while_encoding(*arguments):
        with (folder / "a.txt").open("a") as file:
            file.write("\n\nMore.")
        return real(*arguments)

    monkeypatch.setattr(build_store, "encode_blocks", grow_while_encoding)
    with pytest.raises(PrepareError, match="the input changed while it was read"):
        prepare(options(folder, tmp_path / "s", vocabulary, heldout_share=0.0))


def test_strict(vocabulary, tmp_path):
    folder = small_corpus(tmp_path / "in", ["One. Two.", "Fine. Then\0 NUL."])
    with pytest.raises(PrepareError, match=r"--strict: .*a\.txt:3: 1 of them \(nul\)"):
        prepare(options(folder, tmp_path / "s", vocabulary, strict=True))
    with pytest.raises(StoreError):
        open_store(tmp_path / "s")
    small_corpus(folder, ["One. Two.", "Fine. Then no NUL."])
    prepare(options(folder, tmp_path / "s", vocabulary, strict=True, heldout_share=0.0))


def test_what_a_strict_run_finished_is_kept_by_one_that_is_not(vocabulary, tmp_path, caplog):
    caplog.set_level("INFO", "bertjax")
    folder = small_corpus(tmp_path / "in", [f"One is {i}. It is fine." for i in range(30)])
    (folder / "b.txt").write_text("Fine. Then\0 NUL.")

    def run(strict):
        chosen = options(folder, tmp_path / "s", vocabulary, strict=strict, shard_tokens=100)
        return prepare(chosen)

    with pytest.raises(PrepareError, match=r"--strict: .*b\.txt:1: 1 of them \(nul\)"):
        run(strict=True)
    assert list((tmp_path / "s").rglob("part-*.json"))
    caplog.clear()
    run(strict=False)
    assert "finished shards are kept" in caplog.text
    with pytest.raises(PrepareError, match=r"--strict: .*b\.txt:1: 1 of them \(nul\)"):
        run(strict=True)


def test_every_finding_is_counted(vocabulary, tmp_path):
    texts = ["One sentence", "\u200b\u200b", "Two. Sentences."]
    texts += [f"Here it is\0 {'be' * (i + 2)}. And more." for i in range(10)]
    folder = small_corpus(tmp_path / "in", texts)
    problems = prepare(options(folder, tmp_path / "s", vocabulary, heldout_share=0.0)).manifest[
        "problems"
    ]
    assert {kind: entry["count"] for kind, entry in problems.items()} == {
        "empty_document": 1,
        "nul": 10,
        "one_sentence": 1,
    }
    assert problems["one_sentence"]["examples"] == [f"{folder}/a.txt:1"]
    assert problems["empty_document"]["examples"] == [f"{folder}/a.txt:3"]
    assert len(problems["nul"]["examples"]) == 3


def test_nothing_to_prepare(vocabulary, tmp_path):
    folder = small_corpus(tmp_path / "in", [])
    with pytest.raises(PrepareError, match="no document with text in it; see the findings"):
        prepare(options(folder, tmp_path / "s", vocabulary))
    small_corpus(folder, ["Not. Enough."])
    with pytest.raises(PrepareError, match="all 1 documents were held out"):
        prepare(options(folder, tmp_path / "s", vocabulary, heldout_share=1 - 1e-9))
    store = prepare(options(folder, tmp_path / "s", vocabulary, heldout_share=0.0))
    assert store.train.num_documents == 1


def test_held_out_documents_stay_held_out(vocabulary, tmp_path):
    texts = [random_text(seed, 40) for seed in range(400)]
    small = prepare(
        options(small_corpus(tmp_path / "in", texts[100:200]), tmp_path / "small", vocabulary)
    )
    large = prepare(
        options(small_corpus(tmp_path / "in", texts[::-1]), tmp_path / "large", vocabulary)
    )
    for name in ("train", "heldout"):
        few = documents_of(small, getattr(small, name))
        many = documents_of(large, getattr(large, name))
        assert 0 < len(few) < len(many)
        assert set(few) <= set(many)


@pytest.mark.parametrize(
    ("language", "text"),
    [
        ("zh", "今天下雨。我们不去公园了！你呢？"),
        ("ja", "吾輩は猫である。名前はまだ無い。ドコで生れたか？"),
    ],
)
def test_chinese_and_japanese(tmp_path, language, text):
    vocabulary = tmp_path / "vocab.txt"
    kana = [prefix + c for c in sorted(set(text)) for prefix in ("", "##")]
    vocabulary.write_text("\n".join([*SPECIAL, *kana]) + "\n", encoding="utf-8")
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.jsonl").write_text(json.dumps({"text": text}) + "\n")
    store = prepare(
        options(
            folder,
            tmp_path / "s",
            vocabulary,
            language=language,
            lower_case=False,
            heldout_share=0.0,
        )
    )
    assert store.train.num_sentences == 3
    tokenizer = store.tokenizer()
    (document,) = documents_of(store, store.train)
    assert "".join(tokenizer.id_to_piece(i).removeprefix("##") for i in document) == text
    assert tokenizer.unk_id not in document


@pytest.mark.parametrize("kind", ["train:wordpiece", "train:sentencepiece"])
def test_vocabulary_is_trained_on_training_documents_only(tmp_path, kind):
    letters = "abcdefghijklmnop"
    words = ["".join(letters[(i >> shift) & 15] for shift in (8, 4, 0)) * 2 for i in range(300)]
    texts = [f"{word} {word}. {word} {word} {word}." for word in words]
    folder = small_corpus(tmp_path / "in", texts)
    store = prepare(options(folder, tmp_path / "s", kind, vocab_size=600, heldout_share=0.3))
    pieces = {store.tokenizer().id_to_piece(i).strip("#▁") for i in range(600)}
    held_out = {w for w, text in zip(words, texts, strict=True) if is_held_out(text.encode(), 0.3)}
    assert 50 < len(held_out) == store.heldout.num_documents
    assert not pieces & held_out
    assert len(pieces & set(words)) > 50
    assert store.vocab_size == 600


def test_vocabulary_of_a_large_corpus_is_trained_on_a_part(vocabulary, tmp_path, monkeypatch):
    folder = tmp_path / "in"
    folder.mkdir()
    for index in range(4):  # a block each
        (folder / f"{index}.txt").write_text(f"{'abcd'[index] * 4} word. " * 50)
    monkeypatch.setattr(build_store, "TRAINING_SAMPLE_BYTES", 1300)  # half of the input
    store = prepare(
        options(folder, tmp_path / "s", "train:wordpiece", vocab_size=200, heldout_share=0.0)
    )
    pieces = set(store.tokenizer().pieces)
    assert {"bbbb", "dddd"} <= pieces
    assert not {"aaaa", "cccc"} & pieces


@pytest.mark.slow
def test_memory_does_not_grow_with_the_input(vocabulary, tmp_path):
    """Peak of the whole process; benchmarks/prepare.py measures it on 160 MB."""
    peaks = []
    for copies in (2, 8):
        path = tmp_path / f"{copies}.txt"
        with path.open("w") as file:
            for seed in range(copies):
                file.write(random_text(seed, 200_000) + "\n\n")
        chosen = options(tmp_path, tmp_path / f"s{copies}", vocabulary, input=str(path))
        process = start(chosen)
        process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.stdout.close()
        process.returncode = os.waitstatus_to_exitcode(status)
        assert process.returncode == 0
        peaks.append(usage.ru_maxrss)
    assert peaks[1] < 1.2 * peaks[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heldout_share": 1.0}, "expected a share from 0 to below 1"),
        ({"language": "English"}, "expected an ISO 639 code"),
        ({"num_workers": -1}, "must be 0 or more"),
    ],
)
def test_options_that_cannot_work(corpus, vocabulary, tmp_path, changes, message):
    with pytest.raises(PrepareError, match=message):
        prepare(options(corpus, tmp_path / "s", vocabulary, **changes))
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--input=missing*.txt", "--output=s", "--tokenizer=v.txt"], "matches no file"),
        (["--input=x", "--output=s", "--tokenizer=v.txt", "b.txt"], "is a glob not quoted?"),
        (["--output=s", "--tokenizer=v.txt"], "error: --input is missing: Texts: globs"),
        (["--input=x", "--output=s", "--tokenizers=v.txt"], "did you mean 'tokenizer'?"),
    ],
)
def test_command_line_errors(arguments, message):
    found = subprocess.run(
        [sys.executable, "-m", "bertjax.prepare", *arguments],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    assert found.returncode == 2
    assert message in found.stderr
    assert found.stderr.count("\n") == 1


@pytest.mark.slow
def test_embedded_corpus(tmp_path, caplog):
    caplog.set_level("INFO", "bertjax")
    documents = list(embedded_documents())
    text = "\n".join(documents)
    assert 1e6 < len(text) < 4e6
    assert len(set(text.split("\n"))) == text.count("\n") + 1
    assert ">>>" not in text
    assert "``" not in text
    store = prepare_embedded(tmp_path / "s", 4096)
    assert "embedded corpus" in caplog.text
    assert store.vocab_size == store.tokenizer().vocab_size == 4096
    assert 0.02 < store.heldout.num_documents / len(documents) < 0.08
    assert store.train.num_tokens > 250_000
    verify_store(tmp_path / "s")
    assert corpus_module._embedded_texts() == documents  # what was prepared, collected anew
    before = contents(tmp_path / "s")
    prepare_embedded(tmp_path / "s", 4096)
    assert contents(tmp_path / "s") == before
    with pytest.raises(StoreError, match="with 4096 pieces, expected embedded:python with 300"):
        prepare_embedded(tmp_path / "s", 300)
