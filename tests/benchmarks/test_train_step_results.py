"""What benchmarks.train_step makes of times and operations, and what its page says of them."""

import json
import statistics

import pytest

from benchmarks import pages, train_step

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
                "transformers, masked, bfloat16": run([1.0, 1.0], 21.0),
            },
        }
    )
    ours, all_, masked, _ = result["runs"].values()
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
        "transformers, compiled, masked positions, bfloat16",
    ]
    assert cells[0][-2:] == ("2.00 (3.00)", "3.00 (4.00)")


def test_results_with_one_peer_get_the_operations_that_it_performed():
    """The shares that were stored are by bertjax's operations, for both: a result of an H200."""
    runs = {
        "bertjax, xla": run([0.117804, 0.118791], None) | {"share_of_measured_matmul": 0.46448},
        "transformers": run([0.120090, 0.120400], None) | {"share_of_measured_matmul": 0.45564},
    }
    for old in runs.values():
        del old["flops_per_step"]
        old |= {"settings": {}, "ratio_to_peer": 0.0}
    stored = {
        "case": "base:128:512",
        "peer_mode": "compiled",
        "peak_flops": 989.5e12,
        "measured_matmul_flops": 654.332e12,
        "runs": runs,
    }
    ours, peer = train_step.with_shares_and_ratios(stored)["runs"].values()
    assert ours["share_of_measured_matmul"] == pytest.approx(0.46448, abs=1e-5)
    assert peer["share_of_measured_matmul"] == pytest.approx(1.2226 * 0.45564, abs=1e-4)
    assert ours["ratios"].keys() == {"all"}
    assert ours["ratios"]["all"]["fastest"] == pytest.approx(0.120090 / 0.117804)
    assert [row[1] for row in train_step.lines([stored])][1].endswith("compiled, all positions")
    assert train_step.lines([stored])[0][8] == "46.4% *"  # of a product that was not queued


def test_slots_are_more_than_the_masked_positions_and_fewer_than_all():
    config, batch, _ = train_step.make_case("base:128:8")
    slots, masked, all_ = (
        train_step.step_flops(config, settings, batch)
        for settings in ({}, {"mlm_logits": "masked"}, {"mlm_logits": "all"})
    )
    assert slots / masked == pytest.approx(1.002, abs=0.0005)  # 20 slots, 19 of them filled
    assert all_ / masked == pytest.approx(1.225, abs=0.0005)


def test_page_shows_the_stored_results():
    page = (pages.PAGES / "train_step.md").read_text()
    for row in train_step.lines(STORED):
        assert "| " + " | ".join(row) + " |" in page
