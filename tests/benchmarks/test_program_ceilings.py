"""benchmarks.program_ceilings: what is compared, on counts given here."""

import json

import pytest

from benchmarks import program_ceilings
from benchmarks.harness import RESULTS
from benchmarks.step_case import step_config

COUNTS = {"gigabytes": 40.0, "kernels": 300, "activation_transposes": 0}


@pytest.mark.parametrize(
    ("change", "above", "below"),
    [
        ({}, [], []),
        ({"gigabytes": 41.1}, [], []),
        ({"gigabytes": 41.3}, ["x: gigabytes 41.3, ceiling 40"], []),
        ({"kernels": 310}, ["x: kernels 310, ceiling 300"], []),
        ({"activation_transposes": 1}, ["x: activation_transposes 1, ceiling 0"], []),
        ({"kernels": 290}, [], ["x: kernels 290, ceiling 300"]),
    ],
)
def test_a_count_may_be_three_percent_larger(change, above, below):
    assert program_ceilings.compare("x", COUNTS | change, COUNTS) == (above, below)


def test_ends_with_one_above_a_ceiling_and_update_takes_the_counts(tmp_path, monkeypatch, capsys):
    counts = dict(COUNTS)
    monkeypatch.setattr(program_ceilings, "compiled_for_h100", lambda *case: dict(counts))
    output = f"--output={tmp_path / 'ceilings.json'}"
    run = program_ceilings.BENCHMARK.main
    with pytest.raises(SystemExit) as refused:
        run([output])
    assert refused.value.code == 2
    assert "has no ceilings for h100; --update" in capsys.readouterr().err
    run([output, "--update"])
    run([output])
    assert "ABOVE" not in capsys.readouterr().out
    counts["kernels"] = 400
    with pytest.raises(SystemExit, match="larger than it was"):
        run([output])
    assert "ABOVE ITS CEILING by more than 3%" in capsys.readouterr().out


def test_the_stored_ceilings_are_of_the_cases():
    stored = json.loads((RESULTS / "program_ceilings.json").read_text())
    assert set(stored["h100"]["ceilings"]) == set(program_ceilings.H100_CASES)
    assert set(stored["v5e:1x1"]["ceilings"]) == set(program_ceilings.TPU_CASES)
    for fields, _ in program_ceilings.H100_CASES.values():
        assert step_config(program_ceilings.CASES["h100"], fields, "gpu").model.dtype == "bfloat16"
