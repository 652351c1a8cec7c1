"""Readers of text: every format, every kind of bad input, bounded memory."""

import bz2
import gzip
import json
import lzma
import os
import time
import tracemalloc

import pytest
from tfds_data import write_tfds

from bertjax.data.corpus.blocks import BLOCK_BYTES, MAX_LINE_BYTES, PROBLEMS, CorpusError, Source
from bertjax.data.corpus.corpus import find_sources, read_blocks, read_documents, split_sentences
from bertjax.data.corpus.wiki40b import wiki40b_text


def read(pattern, data_dir=None):
    """Documents and problems of an input, as (line, paragraphs) and (kind, line)."""
    documents, problems = [], []
    for source in find_sources(str(pattern), data_dir):
        last = None
        for block in read_blocks(source):
            assert last is None or not last.sha256
            problems += block.problems
            documents += [(d.line, d.paragraphs) for d in read_documents(block, problems)]
            last = block
        assert last.sha256
        assert last.position == source.num_bytes
        assert {problem.source for problem in problems} <= {source.name}
    assert {problem.kind for problem in problems} <= set(PROBLEMS)
    return documents, [(problem.kind, problem.line) for problem in problems]


DOCUMENTS = [["One. Two.", "Three."], ["中文。", "日本語。"], ["naïve"]]


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_text_and_json_lines(tmp_path, compress, end):
    text = "\ufeff" + f"{end}  \t{end}{end}".join(end.join(d) for d in DOCUMENTS)
    lines = end.join(json.dumps({"id": 1, "text": "\n\n".join(d)}) for d in DOCUMENTS)
    for name, content, starts in (("a.txt", text, [1, 5, 9]), ("a.jsonl", lines, [1, 2, 3])):
        data = content.encode()
        path = tmp_path / (name + ".gz" * compress)
        path.write_bytes(gzip.compress(data) if compress else data)
        assert read(path) == (list(zip(starts, DOCUMENTS, strict=True)), [])


def test_gzip_under_another_name(tmp_path):
    (tmp_path / "a.txt").write_bytes(gzip.compress(b"Hello.\n"))
    assert read(tmp_path / "a.txt") == ([(1, ["Hello."])], [])


def test_many_blocks_give_the_same_documents(tmp_path):
    documents = [[f"Document {i}.", "x" * (i % 700)] for i in range(1, 9000)]
    (tmp_path / "a.txt").write_text("\n\n".join("\n".join(filter(None, d)) for d in documents))
    (tmp_path / "a.jsonl").write_text(
        "".join(json.dumps({"text": "\n".join(d)}) + "\n" for d in documents)
    )
    expected = [[paragraph for paragraph in document if paragraph] for document in documents]
    for name in ("a.txt", "a.jsonl"):
        assert len(list(read_blocks(find_sources(str(tmp_path / name))[0]))) > 2
        found, problems = read(tmp_path / name)
        assert [paragraphs for _, paragraphs in found] == expected
        lines = (tmp_path / name).read_text().split("\n")
        assert all(f"Document {i}." in lines[line - 1] for i, (line, _) in enumerate(found, 1))
        assert not problems


def test_bad_text(tmp_path):
    (tmp_path / "a.txt").write_bytes(
        b"good one\n\xff\xfe not utf-8\ngood two\n\nwith\0nul\0\n\n\0\n\nlast\n"
    )
    assert read(tmp_path / "a.txt") == (
        [(1, ["good one", "good two"]), (5, ["withnul"]), (9, ["last"])],
        [("not_utf8", 2), ("nul", 5), ("nul", 7)],
    )


def test_bad_json(tmp_path):
    lines = [
        b'{"text": "good"}',
        b'{"text": "cut',
        b'{"txt": "other field"}',
        b'["text"]',
        b'{"text": 3}',
        b'{"text": " \\n "}',
        b'{"text": "nul \\u0000 here"}',
        b'{"text": "half \\ud83d pair"}',
        b'{"text": "latin-1 \xe9"}',
        b"[" * 100_000,
        b"",
        b'{"text": "whole pair \\ud83d\\ude00"}',
    ]
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(lines))
    documents, problems = read(tmp_path / "a.jsonl")
    assert documents == [
        (1, ["good"]),
        (7, ["nul  here"]),
        (8, ["half  pair"]),
        (12, ["whole pair 😀"]),
    ]
    assert problems == [
        ("invalid_json", 2),
        ("no_text", 3),
        ("no_text", 4),
        ("no_text", 5),
        ("empty_document", 6),
        ("nul", 7),
        ("surrogate", 8),
        ("not_utf8", 9),
        ("invalid_json", 10),
    ]


def test_utf16_is_recognised(tmp_path):
    (tmp_path / "a.txt").write_bytes("Hello.\n".encode("utf-16"))
    (source,) = find_sources(str(tmp_path / "a.txt"))
    problems = []
    for block in read_blocks(source):
        assert not [d for d in read_documents(block, problems) if d.line == 1]
    assert "UTF-16" in problems[0].detail


def test_empty_files(tmp_path):
    for content in (b"", b"\n \n\n", gzip.compress(b"")):
        (tmp_path / "a.txt").write_bytes(content)
        assert read(tmp_path / "a.txt") == ([], [("empty_file", 1)])


def test_broken_gzip(tmp_path):
    lines = [json.dumps({"text": os.urandom(40).hex()}) for _ in range(30_000)]
    whole = gzip.compress("\n".join(lines).encode())
    damaged = bytearray(whole)
    damaged[-5] ^= 1  # in the checksum
    for content, least in ((whole[: len(whole) // 2], 10_000), (bytes(damaged), 29_999)):
        (tmp_path / "a.jsonl.gz").write_bytes(content)
        documents, problems = read(tmp_path / "a.jsonl.gz")
        assert len(documents) >= least
        assert [json.dumps({"text": p[0]}) for _, p in documents] == lines[: len(documents)]
        assert problems == [("bad_gzip", len(documents) + 1)]
    few = b'{"text": "good"}\n' * 5  # less than a block
    for content in (gzip.compress(few)[:-8], gzip.compress(few) + b"garbage"):
        (tmp_path / "a.jsonl.gz").write_bytes(content)
        documents, problems = read(tmp_path / "a.jsonl.gz")
        assert (len(documents), problems) == (5, [("bad_gzip", 6)])
    (tmp_path / "a.jsonl.gz").write_bytes(b"not gzip at all")
    assert read(tmp_path / "a.jsonl.gz") == ([], [("bad_gzip", 1)])


@pytest.mark.parametrize(("name", "last"), [("a.txt", False), ("a.jsonl", True)])
def test_a_line_of_100_mb(tmp_path, name, last):
    """Counted and left out; neither it nor its compressed form may fill the memory."""
    good = b'{"text": "good"}'
    with gzip.open(tmp_path / f"{name}.gz", "wb", compresslevel=1) as file:
        file.write(good + b"\n")
        for _ in range(100):
            file.write(b"word " * 2**20)
        if not last:
            file.write(b"\n" + good + b"\n")
    tracemalloc.start()
    try:
        documents, problems = read(tmp_path / f"{name}.gz")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert [line for line, _ in documents] == [1] if last else [1, 3]
    assert problems == [("long_line", 2)]
    assert peak < 4 * MAX_LINE_BYTES


def test_longest_line_that_is_read(tmp_path):
    for extra, expected in ((0, 2), (1, 1)):
        (tmp_path / "a.txt").write_bytes(b"x" * (MAX_LINE_BYTES + extra) + b"\n\nshort\n")
        documents, problems = read(tmp_path / "a.txt")
        assert len(documents) == expected
        assert problems == [("long_line", 1)] * extra


def test_text_without_blank_lines_is_cut(tmp_path):
    line = b"A sentence of some length.\n"
    count = 3 * MAX_LINE_BYTES // len(line)
    (tmp_path / "a.txt").write_bytes(line * count)
    documents, problems = read(tmp_path / "a.txt")
    assert sum(len(paragraphs) for _, paragraphs in documents) == count
    assert problems == [("long_document", start) for start, _ in documents[1:]]
    assert len(documents) == 3
    assert MAX_LINE_BYTES < len(documents[0][1]) * len(line) < MAX_LINE_BYTES + 2 * BLOCK_BYTES


def test_patterns(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("b.txt", "a.txt", "c.jsonl"):
        (tmp_path / name).write_text("{}")
    assert [s.name for s in find_sources("c.*, *.txt,./a.txt")] == ["c.jsonl", "a.txt", "b.txt"]
    (tmp_path / "part[1].txt").write_text("x")
    (tmp_path / "folder.d").mkdir()
    assert [s.name for s in find_sources("part[1].txt")] == ["part[1].txt"]
    assert [s.name for s in find_sources("**")] == ["a.txt", "b.txt", "c.jsonl", "part[1].txt"]
    with pytest.raises(CorpusError, match=rf"missing-\*.gz matches no file.*{tmp_path}"):
        find_sources("*.txt,missing-*.gz")
    with pytest.raises(CorpusError, match="is no regular file"):
        find_sources(str(tmp_path))
    with pytest.raises(CorpusError, match="names nothing"):
        find_sources(" ,")


def test_sentences():
    assert split_sentences("en", "Dr. Smith left.  He was late!") == [
        "Dr. Smith left.",
        "He was late!",
    ]
    for language in ("zh", "en"):
        assert split_sentences(language, "今天下雨。我们不去了。") == ["今天下雨。", "我们不去了。"]
    assert split_sentences("ja", "吾輩は猫である。名前はまだ無い。") == [
        "吾輩は猫である。",
        "名前はまだ無い。",
    ]


@pytest.mark.parametrize("space", ["\u00a0", "\u3000", " \u2009", "\u0085"])
def test_text_that_makes_the_splitter_panic_is_split(space):
    """A capital, a space of several bytes and a full stop: sentencex 1.0 panics in Rust."""
    text = f"Doctors speak of vitamin A{space}. It is needed. Yes{space}."
    for language in ("en", "fr", "de"):
        pieces = split_sentences(language, text)
        assert "".join("".join(pieces).split()) == "".join(text.split())
        assert pieces[0].startswith("Doctors speak of vitamin A")
        assert len(pieces) > 1


def test_files_in_another_format_are_refused(tmp_path):
    for module, kind in ((bz2, "bzip2"), (lzma, "xz")):
        path = tmp_path / "a.jsonl"
        path.write_bytes(module.compress(b'{"text": "good"}'))
        with pytest.raises(CorpusError, match=f"a.jsonl: is {kind}; expected plain text"):
            find_sources(str(path))
        with pytest.raises(CorpusError, match=f"a.jsonl: is {kind}"):
            list(read_blocks(Source(str(path), 9)))  # of a bucket this is the first look


def test_suffixes_of_any_case(tmp_path):
    (tmp_path / "A.JSONL").write_text('{"text": "good"}')
    assert read(tmp_path / "A.JSONL")[0] == [(1, ["good"])]


def test_long_paragraphs_are_split_in_windows():
    sentence = "The cat sat on the mat and looked at the dog. "
    assert split_sentences("en", sentence * 5000) == [sentence.strip()] * 5000
    words = "word " * 50_000
    pieces = split_sentences("en", words)
    assert " ".join(pieces) == words.strip()
    assert "".join(split_sentences("zh", "字" * 70_000)) == "字" * 70_000


def test_no_text_stalls_the_splitter():
    begin = time.monotonic()
    assert split_sentences("en", "“a. B " * 50_000)
    assert time.monotonic() - begin < 30  # half an hour without windows


def test_tfds(tmp_path):
    import tensorflow_datasets as tfds

    class TinyText(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = tfds.features.FeaturesDict({"text": tfds.features.Text()})
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for i in range(5):
                yield i, {"text": f"Document {i}.\nIt ends here." if i != 3 else b"bad \xff byte"}

    TinyText(data_dir=tmp_path).download_and_prepare()
    documents, problems = read("tfds:tiny_text:train", str(tmp_path))
    assert sorted(paragraphs for _, paragraphs in documents) == [
        *([f"Document {i}.", "It ends here."] for i in (0, 1, 2, 4)),
        ["bad  byte"],
    ]
    assert [kind for kind, _ in problems] == ["surrogate"]
    assert read("tfds:tiny_text:train", str(tmp_path))[0] == documents
    for name, message in (
        ("tfds:tiny_text", "expected tfds:NAME"),
        ("tfds:tiny_text:validation", "cannot open it"),
        ("tfds:no_such_data_set:train", "cannot open it"),
    ):
        with pytest.raises(CorpusError, match=message):
            find_sources(name, str(tmp_path))


@pytest.mark.parametrize("name", ["wiki40b/en", "c4/en", "lm1b", "wikipedia/20230601.simple"])
def test_tfds_by_name(tmp_path, name):
    """The real data sets' features, with texts of our own."""
    texts = [f"Text {i}.\nIt ends." for i in range(3)]
    write_tfds(tmp_path, name, texts)
    documents, problems = read(f"tfds:{name}:train", str(tmp_path))
    assert sorted(paragraphs for _, paragraphs in documents) == [
        [f"Text {i}.", "It ends."] for i in range(3)
    ]
    assert not problems


@pytest.mark.parametrize(
    ("markup", "lines"),
    [
        (
            "\n_START_ARTICLE_\nA title\n_START_SECTION_\nA section\n_START_PARAGRAPH_\n"
            "One. Two._NEWLINE_Three.\n_START_SECTION_\nMore\n_START_PARAGRAPH_\nFour.",
            ["One. Two.", "Three.", "Four."],
        ),
        ("_START_ARTICLE_ A title\n_START_PARAGRAPH_ One.\nTwo.", [" One.", "Two."]),
        ("_START_ARTICLE_\n_START_SECTION_\n_START_PARAGRAPH_\nOne.", ["One."]),
        ("_START_ARTICLE_\nA title", []),
        ("No markup.\nAt all.", ["No markup.", "At all."]),
    ],
)
def test_wiki40b(markup, lines):
    assert wiki40b_text(markup).split("\n") == (lines or [""])
