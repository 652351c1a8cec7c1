"""prepare on Apache Beam's direct runner: the local engine's bytes, through kills and errors."""

import contextlib
import os
import signal
import sys
import time
from pathlib import Path

import pytest
from prepare_runs import contents, finish, options, random_text, running, start
from tfds_data import write_tfds

from bertjax.data.corpus.blocks import Block
from bertjax.data.corpus.corpus import find_sources
from bertjax.prepare.beam_engine import Cut, Encode, _run_pipeline
from bertjax.prepare.build_store import prepare
from bertjax.prepare.encode_blocks import make_encoder
from bertjax.prepare.options import PrepareError
from bertjax.prepare.staged_blocks import NumberedBlock, StagedBlocks, staged_bytes

pytest.importorskip("apache_beam", reason="no Apache Beam: pip install 'bertjax[beam]'")


@pytest.fixture(scope="module")
def expected(corpus, vocabulary, tmp_path_factory):
    """Files of the local engine's store."""
    output = tmp_path_factory.mktemp("local") / "store"
    prepare(options(corpus, output, vocabulary))
    return contents(output)


def on_beam(corpus, output, vocabulary, **changes):
    both = {"runner": "DirectRunner", "num_workers": 2} | changes
    return options(corpus, output, vocabulary, **both)


def descendants(pid):
    found = []
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has ended
        for children in Path(f"/proc/{pid}/task").glob("*/children"):
            for child in map(int, children.read_text().split()):
                found += [child, *descendants(child)]
    return found


def is_beam_worker(pid):
    try:
        arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except (FileNotFoundError, ProcessLookupError):  # it has ended
        return False
    return arguments[1:3] == [b"-m", b"apache_beam.runners.worker.sdk_worker_main"]


def wait_for_staged(process, store):
    deadline = time.monotonic() + 100
    while not list(store.glob("unfinished/blocks/*.npz")):
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.002)


@pytest.mark.processes
@pytest.mark.slow
def test_killed_worker(corpus, vocabulary, expected, tmp_path):
    process = start(on_beam(corpus, tmp_path / "s", vocabulary))
    wait_for_staged(process, tmp_path / "s")
    workers = list(filter(is_beam_worker, descendants(process.pid)))
    assert len(workers) == 2
    os.kill(workers[0], signal.SIGKILL)
    output = finish(process, 0)
    assert "a worker process died: continuing after the encoded blocks" in output
    assert "encode: 100%" in output
    assert "severity" not in output  # of a log record
    assert contents(tmp_path / "s") == expected


@pytest.mark.processes
@pytest.mark.slow
def test_killed_launcher(corpus, vocabulary, expected, tmp_path):
    process = start(on_beam(corpus, tmp_path / "s", vocabulary))
    wait_for_staged(process, tmp_path / "s")
    processes = descendants(process.pid)
    process.kill()
    process.communicate()
    deadline = time.monotonic() + 30
    while any(map(running, processes)):  # none outlives the launcher
        assert time.monotonic() < deadline
        time.sleep(0.05)
    staged = StagedBlocks(tmp_path / "s" / "unfinished" / "blocks")
    there = staged.names()
    assert there
    sources = list(enumerate(find_sources(f"{corpus}/*")))
    cut = {numbered.file_name for source in sources for numbered in Cut(staged)(*source)}
    assert cut
    assert not cut & there
    assert sum(map(staged_bytes, cut | there)) == sum(source.num_bytes for _, source in sources)
    with pytest.raises(PrepareError, match="language was en and is zh now; run that command"):
        prepare(on_beam(corpus, tmp_path / "s", vocabulary, language="zh"))
    prepare(on_beam(corpus, tmp_path / "s", vocabulary))
    assert contents(tmp_path / "s") == expected


@pytest.mark.slow
def test_tfds(vocabulary, tmp_path):
    texts = [random_text(seed, 2000) for seed in range(100)]
    paragraphs = (text.replace("\n", "_NEWLINE_") for text in texts)
    articles = [f"\n_START_ARTICLE_\nTitle\n_START_PARAGRAPH_\n{text}" for text in paragraphs]
    write_tfds(tmp_path, "wiki40b/en", articles)
    data_set = {"input": "tfds:wiki40b/en:train", "data_dir": str(tmp_path)}
    local = prepare(options(tmp_path, tmp_path / "local", vocabulary, **data_set))
    prepare(on_beam(tmp_path, tmp_path / "beam", vocabulary, **data_set))
    assert contents(tmp_path / "beam") == contents(tmp_path / "local")
    (tmp_path / "texts.txt").write_text("\n\n".join(texts))
    plain = prepare(
        options(tmp_path, tmp_path / "s", vocabulary, input=str(tmp_path / "texts.txt"))
    )
    assert local.train.num_documents == plain.train.num_documents
    assert local.train.num_tokens == plain.train.num_tokens  # in another order


@pytest.mark.slow
def test_no_other_runner_is_downloaded(corpus, vocabulary, tmp_path, monkeypatch):
    """Where Beam finds the network it would hand the pipeline to Prism, in one process."""
    from apache_beam.runners.portability.prism_runner import PrismRunner

    asked = []
    monkeypatch.setattr(PrismRunner, "run_pipeline", lambda *_: asked.append(1) or 1 / 0)
    prepare(options(corpus, tmp_path / "s", vocabulary))
    (tmp_path / "blocks").mkdir()
    staged = StagedBlocks(tmp_path / "blocks")
    encode = Encode(staged, tmp_path / "s" / "tokenizer", "en", 0.1)
    sources = find_sources(f"{corpus}/*")[:1]
    chosen = on_beam(corpus, tmp_path / "s", vocabulary, num_workers=1)
    _run_pipeline(sources, staged, encode, chosen)
    assert not asked
    assert sum(map(staged_bytes, staged.names())) == sources[0].num_bytes


@pytest.mark.slow
def test_error_in_a_worker(corpus, vocabulary, tmp_path):
    output = finish(start(on_beam(corpus, tmp_path / "s", vocabulary), 100_000), 1)
    assert "error: --runner=DirectRunner: OSError: [Errno 27] File too large" in output
    assert "stay: run the same command again" in output
    assert "Traceback" not in output
    assert "File too large" in (tmp_path / "s" / "unfinished" / "beam.log").read_text()
    assert not list((tmp_path / "s").rglob("*.tmp"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"runner": "NoRunner"}, "Unexpected pipeline runner: NoRunner. Valid values are"),
        ({"runner": "DataflowRunner"}, "Missing GCS path option: temp_location"),
        (
            {"runner": "DirectRunner", "beam_options": "--direct_num_workers=x"},
            "argument --direct_num_workers: invalid int value: 'x'",
        ),
        (
            {"runner": "DirectRunner", "beam_options": "--regoin=x"},
            "DirectRunner has no option --regoin",
        ),
        ({"beam_options": "--region=x"}, "without Beam: name a --runner"),
    ],
)
def test_options_that_cannot_work(corpus, vocabulary, tmp_path, capfd, changes, message):
    with pytest.raises(PrepareError, match=message) as raised:
        prepare(options(corpus, tmp_path / "s", vocabulary, **changes))
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "s").exists()
    assert capfd.readouterr() == ("", "")


def test_without_beam_the_extra_is_named(corpus, vocabulary, tmp_path, monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "apache_beam"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    with pytest.raises(PrepareError, match=r"needs Apache Beam: pip install 'bertjax\[beam\]'"):
        prepare(options(corpus, tmp_path / "s", vocabulary, runner="DirectRunner"))
    assert not (tmp_path / "s").exists()


def test_staged_blocks(vocabulary, corpus, tmp_path):
    prepare(options(corpus, tmp_path / "s", vocabulary))
    encoder = make_encoder(tmp_path / "s" / "tokenizer", "en", 0.5)
    staged = StagedBlocks(tmp_path)
    ends = {(0, 1): "hash", (1, 0): "another"}
    for source, number in ((0, 0), (0, 1), (1, 0)):
        text = f"{random_text(number, 30)}\n\n\0\n\n{random_text(number + 5, 30)}".encode()
        sha256 = ends.get((source, number), "")
        block = Block(f"{source}.txt", 7, False, text, number + 5, (), sha256)
        numbered = NumberedBlock(source, number, 1000 + number, block)
        assert not staged.has(numbered)
        staged.write(numbered, encoder(block))
        staged.write(numbered, encoder(block))  # Beam may run it twice
        assert staged.has(numbered)
    assert sorted(map(staged_bytes, staged.names())) == [1000, 1000, 1001]
    found = list(staged.read(2))
    assert [(block.source, block.sha256) for block, _ in found] == [
        ("0.txt", ""),
        ("0.txt", "hash"),
        ("1.txt", "another"),
    ]
    assert all(block.data == b"" and block.first_line == 7 for block, _ in found)
    assert {problem.kind for problem in found[0][1].problems} >= {"nul"}
    again = encoder(block)
    assert found[2][1].problems == again.problems
    assert found[2][1].text_bytes == again.text_bytes
    for split, part in again.splits.items():
        for name in ("tokens", "sentence_lengths", "document_lengths"):
            there = getattr(found[2][1].splits[split], name)
            assert there.dtype == getattr(part, name).dtype
            assert there.tolist() == getattr(part, name).tolist()
    first = tmp_path / min(staged.names())
    first.write_bytes(first.read_bytes()[:500])
    with pytest.raises(PrepareError, match=rf"{first.name}: is damaged .*: delete it and run"):
        list(staged.read(2))
    first.unlink()
    with pytest.raises(PrepareError, match=r"block 0 of input 0 is not there: --output must lie"):
        list(staged.read(2))
