"""What benchmarks.train_step makes of times and operations, and what its page says of them."""

import json
import statistics

import pytest

from benchmarks import train_step

STORED = json.loads(train_step.RESULT.read_text())


def run(step_seconds, flops, tokens=1_000):
    best = min(step_seconds)
    return {
        "sequences_per_second": 8 / best,
        "rows_per_second": 8 / best,
        "rows_per_second_median": 8 / statistics.median(step_seconds),
        "real_tokens_per_second": tokens / best,
        "flops_per_step": flops,
        "peak_gigabytes": None,
        "seconds_to_start": 1.0,
        "step_seconds": step_seconds,
    }


def test_shares_and_ratios_are_of_the_operations_and_times_of_each():
    result = train_step.with_shares_and_ratios(
        {
            "case": "base:128:8",
            "peer_mode": "compiled",
            "peak_flops": 100.0,
            "measured_matmul_flops": 50.0,
            "products_queued": True,
            "runs": {
                "bertjax, xla": run([1.0, 2.0, 3.0], 20.0),
                "transformers, all": run([2.0, 6.0, 7.0], 60.0),
                "transformers, masked": run([1.5, 4.0, 5.0], 21.0, tokens=500),
            },
        }
    )
    ours, all_, masked = result["runs"].values()
    assert (ours["mfu_of_peak"], ours["share_of_measured_matmul"]) == (0.2, 0.4)
    assert (all_["mfu_of_peak"], all_["share_of_measured_matmul"]) == (0.3, 0.6)
    assert (masked["mfu_of_peak"], masked["share_of_measured_matmul"]) == (0.14, 0.28)
    assert ours["ratios"] == {
        "all": {"fastest": 2.0, "median": 3.0},
        "masked": {"fastest": pytest.approx(3.0), "median": pytest.approx(4.0)},
    }
    assert masked["ratios"]["all"] == {
        "fastest": pytest.approx(2 / 3),
        "median": pytest.approx(0.75),
    }
    cells = train_step.lines([result])
    assert [row[1] for row in cells] == [
        "bertjax, xla",
        "transformers, compiled, all positions",
        "transformers, compiled, masked positions",
    ]
    assert cells[0][-2:] == ("2.00 (3.00)", "3.00 (4.00)")


def test_results_with_one_peer_get_the_operations_that_it_performed():
    """The shares that were stored are by bertjax's operations, for both."""
    old = [result for result in STORED if "transformers" in result["runs"]]
    assert old
    for stored in old:
        result = train_step.with_shares_and_ratios(stored)
        for name, before in stored["runs"].items():
            all_positions = name == "transformers"
            after = result["runs"]["transformers, all" if all_positions else name]
            factor = after["share_of_measured_matmul"] / before["share_of_measured_matmul"]
            assert factor == pytest.approx(1.22 if all_positions else 1, abs=0.005)
            assert after["ratios"]["all"]["fastest"] == pytest.approx(before["ratio_to_peer"])
            assert "masked" not in after["ratios"]


def test_slots_are_more_than_the_masked_positions_and_fewer_than_all():
    config, batch, _ = train_step.make_case("base:128:8")
    slots, masked, all_ = (
        train_step.step_flops(config, settings, batch)
        for settings in ({}, {"mlm_logits": "masked"}, {"mlm_logits": "all"})
    )
    assert slots / masked == pytest.approx(1.002, abs=0.0005)  # 20 slots, 19 of them filled
    assert all_ / masked == pytest.approx(1.225, abs=0.0005)


def test_page_shows_the_stored_results():
    page = train_step.PAGE.read_text()
    for row in train_step.lines(STORED):
        assert "| " + " | ".join(row) + " |" in page
