"""The lists of benchmarks.gpu_variants, and what it makes of parts that end, fail or do not fit."""

import dataclasses
import json
import re
import time

import pytest

from benchmarks import gpu_variants
from benchmarks.gpu_variants import NO_TRITON_GEMM, NORM, PINNED, Part
from benchmarks.step_case import step_config

BEST = {"from": "prediction", "fields": [PINNED, NORM], "flags": [NO_TRITON_GEMM]}
PARTS = [part for parts in gpu_variants.leases().values() for part in parts]


def timed(name: str, milliseconds: float, *fields: str, flags: tuple = (), **part) -> dict:
    result = {
        "fields": list(fields),
        "milliseconds": milliseconds,
        "rows_per_second": 1.0,
        "mfu_of_peak": 0.5,
        "peak_gigabytes": 20.0,
        "gigabytes": 200.0,
        "kernels": 1_000,
        "activation_transposes": 7,
        "same_to_the_bit": None,
    }
    told = {"name": name, "flags": list(flags), "prediction": "", "against": "", "said": "done"}
    return told | part | {"result": result}


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.name)
def test_every_step_of_the_lists_exists_and_has_a_small_one(part):
    fields = [x.removeprefix("--set=") for x in part.arguments if x.startswith("--set=")]
    if part.case:
        assert step_config(part.case, fields, backend="gpu").model.dtype == "bfloat16"
        assert step_config(gpu_variants.small(part).case, fields).model.num_layers == 2


@pytest.mark.parametrize("lease", [1, 2])
def test_a_lease_is_no_longer_than_its_time_and_names_what_it_compares(lease):
    parts = gpu_variants.leases()[lease]
    names = [part.name for part in parts]
    assert len(set(names)) == len(names)
    assert all(part.against in ("", *names) for part in parts)
    files = {name for part in parts for name in part.files.values()}
    assert len(files) + 2 <= 8  # with the result and its table: what a borrowed machine gives back
    if lease == 1:
        assert sum(part.seconds for part in parts) <= 590


def test_the_best_variant_is_measured_here_else_before_else_predicted(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_variants, "RESULTS", tmp_path)
    assert gpu_variants.best_of([]) == BEST
    before = [timed("base", 100, "attention=pallas", flags=("--a",)), timed("base_both", 101)]
    (tmp_path / "gpu_variants_lease1.json").write_text(json.dumps({"parts": before}))
    assert gpu_variants.best_of([]) == {"from": "base", "fields": [], "flags": ["--a"]}
    row_major = timed("base_row_major", 90, "attention=pallas", "activation_layout=row_major")
    others = [timed("fine_tuning", 1), {"name": "base", "said": "failed", "flags": []}]
    found = gpu_variants.best_of([*others, row_major])
    assert found == {"from": "base_row_major", "fields": [PINNED], "flags": []}
    part = Part("x", "step_variant", "base:128:512", ("--repeat",), ("--b",), best=True)
    assert gpu_variants.settings(part, BEST) == (
        ["--case=base:128:512", "--repeat", PINNED, NORM],
        [NO_TRITON_GEMM, "--b"],
    )


@pytest.mark.slow
def test_a_part_runs_with_its_flags_or_is_left_out(tmp_path):
    rates = Part("rates", "device_rates", flags=("--xla_cpu_use_onednn=false",), seconds=100)
    done = gpu_variants.run(rates, BEST, tmp_path, time.monotonic() + 300, [])
    assert done["said"] == "done"
    assert done["result"]["product_flops"] > 1e6
    assert done["result"]["copy_bytes_per_second"] > 1e6

    late = gpu_variants.run(rates, BEST, tmp_path, time.monotonic() + 50, [])
    assert re.fullmatch(r"left out: \d+ s were left, it takes about 100", late["said"])
    lacking = dataclasses.replace(rates, needs=("numpy", "no_such_package"))
    said = gpu_variants.run(lacking, BEST, tmp_path, time.monotonic() + 300, [])["said"]
    assert said == "left out: no_such_package not installed"

    broken = dataclasses.replace(rates, arguments=("--no_such_flag",))
    failed = gpu_variants.run(broken, BEST, tmp_path, time.monotonic() + 300, [])
    assert failed["said"] == "failed: exit code 2"
    assert "--no_such_flag" in failed["log"]
    assert "result" not in failed


def test_predictions_stand_beside_what_came_out():
    parts = [
        timed("base", 106.6, prediction="as before"),
        timed("base_row_major", 96.0, prediction="8 to 12 ms less", against="base"),
        {"name": "large_128", "prediction": "150 ms", "against": "", "said": "left out: 3 s"},
    ]
    outcome = {"lease": 1, "device": "a GPU", "date": "today", "parts": parts}
    header, base, pinned, *rest = gpu_variants.table(outcome).splitlines()
    assert header.split()[:3] == ["part", "ms", "less"]
    assert base.split()[:4] == ["base", "106.60", "as", "before"]
    assert pinned.split()[:3] == ["base_row_major", "96.00", "+10.60"]
    assert "8 to 12 ms less" in pinned
    assert "large_128: left out: 3 s" in rest
    assert "large_128: predicted 150 ms" in rest
