"""BLiMP: which pairs are read, what counts as right, and the tables."""

import gzip
import json
import math
import re
import statistics

import pytest
import scoring_reference

import bertjax
from benchmarks import blimp, harness
from benchmarks.tables import blimp as tables
from bertjax.scoring import Score
from bertjax.testing import make_workdir

UIDS = ("wh_island", "npi_present_1", "animate_subject_passive")
FIELDS = ("syntax", "syntax/semantics", "syntax")
TERMS = ("island_effects", "npi_licensing", "s-selection")


@pytest.fixture
def data(tmp_path):
    """Six pairs of each of three paradigms, whose lines alternate."""
    path = tmp_path / "pairs.jsonl.gz"
    with gzip.open(path, "wt") as file:
        for i in range(6):
            for uid, field, term in zip(UIDS, FIELDS, TERMS, strict=True):
                record = {"uid": uid, "field": field, "term": term, "good": f"good {i} of {uid}"}
                file.write(json.dumps(record | {"bad": f"bad {i} of {uid}"}) + "\n")
    return path


class Scores:
    """In the place of an encoder: the good sentence is the better one where `wins` says so."""

    def __init__(self, wins):
        self.wins = wins

    def score(self, texts, **how):
        assert how == {"mask_rest_of_word": False}
        return [self.one(*re.findall(r"(good|bad) (\d) of (\w+)", text)[0]) for text in texts]

    def one(self, which, number, uid):
        outcome = self.wins[uid][int(number)]
        value = {"right": 1.0, "wrong": -1.0}.get(outcome, 0.0) * (which == "good")
        if outcome == "same tokens":
            value = 1e-6 * (which == "good")  # as by rounding
        pieces = ["a" if outcome == "same tokens" else which]
        return Score(value - 9, 1, pieces, [value - 9])


def test_ties_are_wrong_and_means_are_over_paradigms(data):
    wins = {
        "wh_island": ["right"] * 6,
        "npi_present_1": ["right", "wrong", "wrong", "wrong", "tie", "right"],
        "animate_subject_passive": ["same tokens", "right", "right", "right", "wrong", "tie"],
    }
    found = blimp.accuracy(Scores(wins), blimp.read_pairs(data), mask_rest_of_word=False)
    assert found["paradigms"] == {
        "wh_island": 1.0,
        "npi_present_1": pytest.approx(1 / 3),
        "animate_subject_passive": 0.5,
    }
    assert found["fields"] == {"syntax": 0.75, "syntax_semantics": pytest.approx(1 / 3)}
    assert found["phenomena"] == {
        "argument_structure": 0.5,
        "island_effects": 1.0,
        "npi_licensing": pytest.approx(1 / 3),
    }
    assert found["overall"] == pytest.approx((1 + 1 / 3 + 0.5) / 3)
    assert (found["num_pairs"], found["num_ties"]) == (18, 3)


def test_pairs_are_chosen_evenly(data):
    every = blimp.read_pairs(data, 0)
    assert [pair.paradigm for pair in every] == [uid for uid in UIDS for _ in range(6)]
    assert blimp.read_pairs(data, 6) == every
    some = blimp.read_pairs(data, 3)
    assert [pair.good[:6] for pair in some] == ["good 0", "good 2", "good 4"] * 3
    assert [pair.bad[:5] for pair in some[:3]] == ["bad 0", "bad 2", "bad 4"]
    for number in (-1, 7):
        with pytest.raises(harness.UsageError, match=f"--pairs={number}: expected 0 .all., or 1"):
            blimp.read_pairs(data, number)
    with pytest.raises(harness.UsageError, match="no such file"):
        blimp.read_pairs(data.with_name("none.gz"))


def test_published_means_are_those_that_the_authors_give():
    """Of all paradigms, in the last line of their file."""
    assert len(tables.published()) == 67
    means = {"ngram": 0.6124029851, "lstm": 0.698119403, "txl": 0.6962537313, "gpt2": 0.830238806}
    for model, expected in means.items():
        found = statistics.fmean(row[model] for row in tables.published().values())
        assert math.isclose(found, expected, abs_tol=1e-9)


def test_the_command_scores_and_prints_and_keeps_a_record_for_each_way(data, tmp_path, capsys):
    make_workdir(tmp_path / "drawn")
    target = tmp_path / "result.json"
    command = [f"--model={tmp_path / 'drawn'}", f"--data={data}", "--pairs=1"]
    for more in ([], ["--no-mask_rest_of_word"]):
        blimp.BENCHMARK.main([*command, *more, f"--output={target}"])
    printed = capsys.readouterr().out
    records = json.loads(target.read_text())
    assert [record["mask_rest_of_word"] for record in records] == [True, False]
    for record in records:
        assert (record["model"], record["pairs_per_paradigm"]) == ("drawn", 1)
        assert record["paradigms"].keys() == set(UIDS)
        assert record["sentences_per_second"] > 0
        assert f"| **all** | 67 | {100 * record['overall']:.1f} | 61.2 | 69.8 | 69.6 |" in printed
    assert "| wh island | island effects |" in printed


def test_a_left_to_right_model_is_scored_too(data, tmp_path):
    make_workdir(tmp_path / "drawn", "causal")
    target = tmp_path / "result.json"
    blimp.BENCHMARK.main(
        [f"--model={tmp_path / 'drawn'}", f"--data={data}", "--pairs=1", f"--output={target}"]
    )
    [record] = json.loads(target.read_text())
    assert (record["mask_rest_of_word"], record["num_pairs"]) == (None, 3)


@pytest.mark.slow
def test_a_thousand_pairs_are_scored_as_by_a_plain_program(wordpiece, tmp_path, shared_data):
    make_workdir(tmp_path / "drawn", tokenizer=wordpiece)
    bert = bertjax.load(tmp_path / "drawn")
    pairs = blimp.read_pairs(shared_data / "blimp" / "blimp.jsonl.gz", 15)[:1_000]
    texts = [text for pair in pairs for text in (pair.good, pair.bad)]
    assert len(texts) == 2_000
    for text, score in zip(texts, bert.score(texts), strict=True):
        expected = scoring_reference.masked_scores(bert, text)
        assert score.log_likelihood == pytest.approx(sum(expected), abs=1e-4)


def test_the_files_of_the_published_figures_and_of_the_pairs_agree(shared_data):
    pairs = blimp.read_pairs(shared_data / "blimp" / "blimp.jsonl.gz")
    assert len(pairs) == 67_000
    assert {pair.paradigm: pair.phenomenon for pair in pairs} == {
        name: row["phenomenon"] for name, row in tables.published().items()
    }
    assert len({pair.field for pair in pairs}) == 4
