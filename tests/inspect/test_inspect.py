import gzip
import json
import random
import subprocess
import sys

import numpy as np
import pytest

from bertjax.data.corpus.duplicates import DUPLICATES
from bertjax.data.corpus.embedded import embedded_documents
from bertjax.data.corpus.fingerprints import Fingerprints
from bertjax.data.store.store import open_store
from bertjax.data.tokenizers.train_tokenizer import train_wordpiece
from bertjax.inspect.page import page
from bertjax.inspect.report import inspect_store, inspect_texts
from bertjax.prepare.build_store import prepare
from bertjax.prepare.options import PrepareOptions


@pytest.fixture(scope="module")
def documents():
    return [text for text in embedded_documents() if text.count("\n") >= 5][:150]


def write(path, documents):
    path.write_bytes(b"".join(json.dumps({"text": text}).encode() + b"\n" for text in documents))
    return path


def kinds(path, tokenizer=None):
    return {finding.kind for finding in inspect_texts(str(path), tokenizer=tokenizer).findings}


def random_bytes(text):
    return random.Random(len(text)).randbytes(len(text)).translate(None, b"\n\0").decode("latin-1")


DAMAGE = {
    "repeated_line": lambda text: "\n".join(line for line in text.split("\n") for _ in range(2)),
    "one_sentence": lambda text: text.split("\n")[0].split(". ")[0],
    "upper_case": str.upper,
    "no_capital": str.lower,
    "control": random_bytes,
    "no_sentence": lambda text: "\n".join(
        f"{len(line)} | {i}" for i, line in enumerate(text.split("\n"))
    ),
}


def test_a_clean_corpus_has_no_findings(tmp_path, documents):
    report = inspect_texts(str(write(tmp_path / "clean.jsonl", documents)))
    assert [finding.kind for finding in report.findings] == []
    assert report.works == []


@pytest.mark.parametrize("kind", DAMAGE)
def test_each_damage_is_named(tmp_path, documents, kind):
    found = kinds(write(tmp_path / "bad.jsonl", map(DAMAGE[kind], documents)))
    assert kind in found
    others = {"repeated_line", "upper_case", "no_capital", "unreadable", "control"} - {kind}
    assert not found & others


@pytest.mark.parametrize("lower_case", [True, False])
def test_casing_is_compared_with_the_vocabulary(tmp_path, documents, lower_case):
    tokenizer = train_wordpiece(documents, 2_000, lower_case)
    cased = write(tmp_path / "cased.jsonl", documents)
    assert kinds(cased, tokenizer) == set()
    for change, kind in ((str.lower, "no_capital"), (str.upper, "upper_case")):
        changed = write(tmp_path / "changed.jsonl", map(change, documents))
        assert (kind in kinds(changed, tokenizer)) == (not lower_case)


def test_languages_are_told_apart(tmp_path, documents):
    pytest.importorskip("py3langid", reason="no py3langid: pip install 'bertjax[inspect]'")
    german = "Die Kinder gingen am Morgen durch den Wald und fanden dort ein altes Haus. " * 3
    path = write(tmp_path / "mixed.jsonl", [*documents[:60], *[german] * 30])
    (found,) = inspect_texts(str(path)).languages.values()
    assert set(list(found)[:2]) == {"en", "de"}
    assert found["de"] == 30


def test_text_that_a_vocabulary_does_not_know_is_named(tmp_path, documents):
    tokenizer = train_wordpiece(documents, 2_000, True)
    greek = str.maketrans("aeiou", "αεηιω")
    path = write(tmp_path / "greek.jsonl", (text.translate(greek) for text in documents))
    finding = next(f for f in inspect_texts(str(path), tokenizer=tokenizer).findings)
    assert finding.kind == "unknown"
    assert "% of the tokens are [UNK]" in finding.found


def test_bytes_that_are_no_utf8_are_named(tmp_path, documents):
    path = tmp_path / "bad.txt"
    path.write_bytes(b"\n\n".join(bytes(random.Random(i).randbytes(200)) for i in range(50)))
    finding = next(f for f in inspect_texts(str(path)).findings if f.kind == "unreadable")
    assert f"{path}:" in finding.examples[0]
    assert "UTF-8" in finding.advice


def edited(text, every=25):
    words = text.split(" ")
    words[::every] = ["otherwise"] * len(words[::every])
    return " ".join(words)


def test_another_edition_is_found_though_it_is_cut_otherwise(tmp_path, documents):
    long = sorted(documents, key=len)[-20:]
    whole = [{"id": f"work{i}/0", "text": text} for i, text in enumerate(long)]
    parts = []
    for i, text in enumerate(long[:5]):
        lines = edited(text).split("\n")
        parts += [
            {
                "id": f"edition{i}/{k}",
                "text": "\n".join(lines[k * len(lines) // 2 : (k + 1) * len(lines) // 2]),
            }
            for k in range(2)
        ]
    for name, records in (("a", whole), ("b", parts)):
        with gzip.open(tmp_path / f"{name}.jsonl.gz", "wt") as file:
            file.writelines(json.dumps(record) + "\n" for record in records)
    report = inspect_texts(f"{tmp_path}/a.jsonl.gz,{tmp_path}/b.jsonl.gz")
    found = {(pair.first[1], pair.second[1], pair.second_found) for pair in report.works}
    assert found == {(f"work{i}", f"edition{i}", 2) for i in range(5)}
    assert "duplicates" in {finding.kind for finding in report.findings}


def test_fingerprints_stay_bounded_and_keep_the_pairs():
    values = np.random.default_rng(0).integers(0, 2**63, (40, 2000), np.uint64)
    values[30, :1000] = values[3, 500:1500]
    results = []
    for most in (2**20, 2**14):
        fingerprints = Fingerprints(most)
        for row in values:
            fingerprints.add_values(row)
        assert fingerprints.sizes().sum() <= most
        results.append(fingerprints)
    assert results[0].share > results[1].share
    for fingerprints in results:
        first, second, shared = fingerprints.pairs()
        assert (first.tolist(), second.tolist()) == ([3], [30])
        assert shared[0] / fingerprints.sizes()[30] == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize("num_workers", [1, 2])
def test_prepare_drops_duplicates_and_keeps_the_first(tmp_path, documents, num_workers):
    originals = [text for text in documents if len(text) > 2000]
    write(tmp_path / "all.jsonl", [*originals, originals[1], edited(originals[2])])
    write(tmp_path / "once.jsonl", originals)
    stores = {
        name: prepare(
            PrepareOptions(
                input=str(tmp_path / f"{name}.jsonl"),
                output=str(tmp_path / name),
                tokenizer="train:wordpiece",
                vocab_size=500,
                heldout_share=0.0,
                drop_duplicates=name == "all",
                num_workers=num_workers,
            )
        )
        for name in ("all", "once")
    }
    lines = (tmp_path / "all" / DUPLICATES).read_text().splitlines()
    dropped = [json.loads(line) for line in lines]
    n = len(originals)
    assert [(d["line"], d["kind"]) for d in dropped] == [(n + 1, "exact"), (n + 2, "near")]
    assert dropped[0]["kept"].endswith("all.jsonl:2")
    tokens = [np.concatenate(stores[name].train.token_shards) for name in ("all", "once")]
    np.testing.assert_array_equal(*tokens)
    assert stores["all"].train.num_documents == stores["once"].train.num_documents == n


def test_a_store_with_ids_out_of_range_and_unknown_words_is_named(tmp_path, documents):
    vocabulary = tmp_path / "vocab.txt"
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "a", "is"]
    vocabulary.write_text("\n".join(pieces) + "\n")
    prepare(
        PrepareOptions(
            input=str(write(tmp_path / "c.jsonl", documents)),
            output=str(tmp_path / "store"),
            tokenizer=str(vocabulary),
            num_workers=1,
        )
    )
    store = open_store(tmp_path / "store")
    assert "unknown" in {finding.kind for finding in inspect_store(store).findings}
    shard = next((tmp_path / "store" / "train").glob("tokens-*.npy"))
    tokens = np.load(shard)
    tokens[7] = 60_000
    np.save(shard, tokens)
    found = inspect_store(open_store(tmp_path / "store")).findings
    named = [finding for finding in found if finding.kind == "id_out_of_range"]
    assert len(named) == 1
    assert "60000" in named[0].found


def test_the_command_writes_a_page_and_its_status_says_what_it_found(tmp_path, documents):
    bad = write(tmp_path / "bad.jsonl", map(str.upper, documents[:30]))
    command = [sys.executable, "-m", "bertjax.inspect", str(bad), "--strict", "--json"]
    result = subprocess.run(
        [*command, f"--html={tmp_path}/page.html"], capture_output=True, text=True, check=False
    )
    assert result.returncode == 3, result.stderr
    assert json.loads(result.stdout)["findings"][0]["kind"] == "upper_case"
    assert "data:image/png;base64," in (tmp_path / "page.html").read_text()
    assert page(inspect_texts(str(bad))) == (tmp_path / "page.html").read_text()


@pytest.mark.slow
def test_works_in_both_collections_of_novels(tmp_path, shared_data):
    chosen = {
        "novels": ("Trollope_Warden_1855", "Chesterton_Thursday_1908", "Eliot_Adam_1859"),
        "novels_eltec": ("ENG18551_Trollope", "ENG19080_Chesterton", "ENG18721_Eliot"),
    }
    for name, works in chosen.items():
        with (
            gzip.open(shared_data / "corpus" / f"{name}.jsonl.gz", "rt") as source,
            open(tmp_path / f"{name}.jsonl", "w") as target,
        ):
            target.writelines(
                line for line in source if json.loads(line)["id"].rpartition("/")[0] in works
            )
    report = inspect_texts(f"{tmp_path}/novels.jsonl,{tmp_path}/novels_eltec.jsonl")
    found = {(pair.first[1], pair.second[1]): pair for pair in report.works}
    assert set(found) == {
        ("Trollope_Warden_1855", "ENG18551_Trollope"),
        ("Chesterton_Thursday_1908", "ENG19080_Chesterton"),
    }
    for pair in found.values():
        assert pair.second_found >= 0.95 * pair.second_total
