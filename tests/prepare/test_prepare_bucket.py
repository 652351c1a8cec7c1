"""prepare from a bucket into a bucket, on both engines."""

import re

import pytest
from prepare_runs import contents, finish, options, start

from bertjax.data.corpus.blocks import BLOCK_BYTES, CorpusError
from bertjax.data.corpus.corpus import find_sources, read_blocks
from bertjax.data.store.bucket_copy import fetch_store
from bertjax.storage.bucket import find_objects


def test_globs_of_objects(bucket):
    names = ("a.txt", "b.txt", "c.jsonl", "deep/a.txt", "deep/er/a.txt", "deep/er/b.txt")
    for name in names:
        (bucket / name).write_text(name)
    placeholder = bucket._blob().bucket.blob(f"{bucket.key}/deep/")
    placeholder.upload_from_string(b"")  # as consoles make it for a folder
    for pattern, expected in (
        ("a.txt", ["a.txt"]),
        ("*.txt", ["a.txt", "b.txt"]),
        ("[bc].*", ["b.txt", "c.jsonl"]),
        ("?.jsonl", ["c.jsonl"]),
        ("*/a.txt", ["deep/a.txt"]),
        ("**/a.txt", ["a.txt", "deep/a.txt", "deep/er/a.txt"]),
        ("deep/**", ["deep/a.txt", "deep/er/a.txt", "deep/er/b.txt"]),
        ("none*", []),
    ):
        found = find_objects(f"{bucket}/{pattern}")
        assert found == {f"{bucket}/{name}": len(name) for name in expected}, pattern
    with pytest.raises(CorpusError, match=rf"--input={bucket}/none\* matches no object"):
        find_sources(f"{bucket}/none*")


def test_blocks_of_objects_are_those_of_files(bucket, corpus, tmp_path):
    for file in corpus.iterdir():
        (bucket / file.name).upload(file)
    there = find_sources(f"{bucket}/*")
    here = find_sources(f"{corpus}/*")
    assert [source.num_bytes for source in there] == [source.num_bytes for source in here]
    for remote, local in zip(there, here, strict=True):
        blocks = list(read_blocks(remote))
        assert len(blocks) > local.num_bytes // (2 * BLOCK_BYTES)
        assert [(b.data, b.position, b.sha256) for b in blocks] == [
            (b.data, b.position, b.sha256) for b in read_blocks(local)
        ]


@pytest.mark.slow
def test_both_engines(bucket, corpus, vocabulary):
    for file in corpus.iterdir():
        (bucket / "in" / file.name).upload(file)
    stores = []
    for runner in ("local", "DirectRunner"):
        if runner != "local":
            pytest.importorskip("apache_beam", reason="no Apache Beam: pip install 'bertjax[beam]'")
        output = bucket / runner
        chosen = options(corpus, output, vocabulary, input=f"{bucket}/in/*", runner=runner)
        printed = finish(start(chosen), 0)
        assert re.search(rf"{output}: uploaded from", printed)
        assert not any(name.startswith("unfinished") for name in output.files())
        stores.append(contents(fetch_store(output)))
    assert stores[0] == stores[1]
    assert len(stores[0]) > 10
