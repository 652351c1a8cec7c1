"""The pages of docs/results: what is committed is what `python -m benchmarks.pages` writes."""

import json
import re

import pytest

from benchmarks import harness, pages
from benchmarks.tables import base_on_a_cpu, measurements, runs, values

PAGES = sorted(pages.PAGES.glob("*.md"))


@pytest.fixture
def files(tmp_path, monkeypatch):
    """A folder in the place of those that blocks read."""
    monkeypatch.setattr(values, "_FOLDERS", (tmp_path,))
    return tmp_path


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_a_page_is_what_its_files_make_it(path):
    text = path.read_text()
    assert pages.render(text, path.name) == text, "run `python -m benchmarks.pages`"


def test_every_kind_of_block_is_on_a_page():
    text = "".join(path.read_text() for path in PAGES)
    assert set(re.findall(r"<!-- begin (\w+)", text)) == pages.BLOCKS.keys()


def test_what_a_page_says_follows_its_files(files):
    (files / "x.json").write_text(json.dumps({"a": {"b c": [1.25, {"k": 7, "v": "seven"}]}}))
    page = "It is <!-- begin value x.json a 'b c' 0 .1f -->9.9<!-- end -->."
    assert pages.render(page, "p") == page.replace("9.9", "1.2")
    assert values.value("x.json", "a", "b c", "1", "v", "s") == "seven"
    assert values.count("x.json", "a", "b c") == "2"
    steps = [{"step": step, "rate": rate} for step, rate in ((1, 5.0), (2, 1.0), (3, 3.0))]
    (files / "x.jsonl").write_text("\n".join(map(json.dumps, steps)))
    assert values.mean("x.jsonl", "rate", "2", ".2f") == "2.00"
    assert values.rate("x.jsonl", "rate", "2", ".2f") == "1.50"  # 2 stretches in 1 + 1/3 seconds
    assert values.value("x.jsonl", "step=3", "rate", "g") == "3"
    (files / "x.log").write_text("one\ntwo\n")
    page = pages.render("<!-- begin log x.log --><!-- end -->\n", "p")
    assert page == "<!-- begin log x.log -->\n\n```\none\ntwo\n```\n\n<!-- end -->\n"
    assert pages.render(page, "p") == page


@pytest.mark.parametrize(
    ("page", "said"),
    [
        ("a <!-- begin valu x.json d --><!-- end -->", "p: no block `valu`; there are value"),
        ("a <!-- begin value none.json d --><!-- end -->", "none.json: neither in docs/results"),
        ("a <!-- begin value x.json b d --><!-- end -->", "cannot be filled: KeyError: 'b'"),
        ("a <!-- begin value x.json a .1f -->", "p: a block has no <!-- end -->"),
        (
            "a <!-- begin value x.json a d -->1\n<!-- begin value x.json a d -->1<!-- end -->",
            "`value x.json a d` has no <!-- end --> before the next begins",
        ),
        ("a\n<!-- begin value x.json a d -->1<!-- end -->", "put a word of the sentence before"),
        ("<!-- begin evaluations x 3 --><!-- end -->", "does not have all of the steps 3"),
    ],
)
def test_a_block_that_cannot_be_filled_says_why(files, page, said):
    (files / "x.json").write_text('{"a": 1}')
    (files / "x_evals.jsonl").write_text('{"step": 1, "heldout_mlm_loss": 2.0}')
    with pytest.raises(pages.PageError, match=re.escape(said)):
        pages.render(page, "p")


def test_a_run_has_its_last_and_its_best_evaluation(files):
    evals = [
        {"step": 1, "phase": 0, "heldout_mlm_loss": 1.0, "heldout_nsp_accuracy": 0.9},
        {"step": 2, "phase": 1, "heldout_mlm_loss": 2.0, "heldout_nsp_accuracy": 0.5},
        {"step": 1000, "phase": 1, "heldout_mlm_loss": 3.0, "heldout_nsp_accuracy": 0.6},
    ]
    (files / "r_evals.jsonl").write_text("\n".join(map(json.dumps, evals)))
    (files / "r_summary.json").write_text('{"steps": 1000, "heldout_mlm_loss": 3.0}')
    assert runs.summary("r").splitlines()[2:] == [
        "| steps | 1,000 |",
        "| held-out MLM loss, final, nats | 3.000 |",
        "| lowest held-out MLM loss of the last phase | 2.000 at step 2 |",
        "| highest held-out NSP accuracy of the last phase | 0.600 at step 1,000 |",
    ]
    assert runs.evaluations("r", "1000").splitlines()[2:] == ["| 1,000 | 3.000 | 0.600 |"]


def test_a_log_without_the_line_that_a_table_needs_is_an_error(files):
    for name in ("base_on_a_cpu_first.log", "base_on_a_cpu_second.log"):
        (files / name).write_text("nothing\n")
    (files / "base_on_a_cpu_notes.json").write_text('{"starts": {}}')
    with pytest.raises(ValueError, match=r"base_on_a_cpu_first.log has no line like compiled"):
        base_on_a_cpu.starts()


def test_every_file_of_results_is_on_the_page_of_measurements():
    table = measurements.files().splitlines()[2:]
    paths = sorted(harness.RESULTS.glob("*.json"))
    assert len(table) == len(paths)
    for path, line in zip(paths, table, strict=True):
        cells = line.strip("| ").split(" | ")
        assert cells[0].startswith(f"[{path.name}]")
        assert int(cells[1]) > 0, f"{path.name} has no record with a date"
        assert re.match(r"20\d\d-\d\d-\d\d", cells[2])
