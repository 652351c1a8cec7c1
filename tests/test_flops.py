"""FLOPs of a row against published figures, MFU against its definition, rates by a set clock."""

import pytest

from bertjax.config import Config, ModelConfig, Phase
from bertjax.flops import flops_per_row, mfu, peak_flops
from bertjax.reports.throughput import Throughput
from bertjax.training.phases import Phases

BASE = ModelConfig()
LARGE = ModelConfig(hidden_size=1_024, num_layers=24, num_heads=16, intermediate_size=4_096)


@pytest.mark.parametrize(
    ("model", "length", "max_predictions", "gigaflops", "tolerance"),
    [
        (BASE, 128, 20, 69.9, 0.05),
        (BASE, 512, 76, 300.9, 0.05),
        (LARGE, 128, 20, 240.6, 0.05),
        (LARGE, 512, 76, 1_020, 1),
    ],
)
def test_flops_of_the_published_sizes(model, length, max_predictions, gigaflops, tolerance):
    found = flops_per_row(model, length, max_predictions) / 1e9
    assert found == pytest.approx(gigaflops, abs=tolerance)


def test_flops_are_those_of_the_matrix_products():
    """Counted product by product, 2 * rows * inner * columns each, for a size with f != 4d."""
    model = ModelConfig(
        vocab_size=97, hidden_size=6, num_layers=3, num_heads=2, intermediate_size=10
    )
    length, predictions = 7, 4
    products = [(predictions, 6, 6), (predictions, 6, 97)]  # MLM head
    for _ in range(model.num_layers):
        products += [(length, 6, 6)] * 4  # query, key, value, output
        products += [(length, 3, length), (length, length, 3)] * model.num_heads
        products += [(length, 6, 10), (length, 10, 6)]
    forward = sum(2 * rows * inner * columns for rows, inner, columns in products)
    model.next_sentence = False
    assert flops_per_row(model, length, predictions) == 3 * forward
    model.next_sentence = True
    assert flops_per_row(model, length, predictions) == 3 * (forward + 2 * 6 * (6 + 2))


def test_a_model_that_predicts_the_next_token_does_so_at_every_position():
    causal = {"head": "causal", "direction": "left_to_right", "next_sentence": False}
    left_to_right, masked = ModelConfig(**causal), ModelConfig(next_sentence=False)
    assert flops_per_row(left_to_right, 128, 20) == flops_per_row(masked, 128, 128)
    # Both halves of the scores are computed where a row is one block, and count.
    packed = flops_per_row(left_to_right, 128, 20, num_pairs=3)
    assert packed == flops_per_row(left_to_right, 128, 20)


def test_vocabulary_at_every_position_would_cost_a_fifth_more():
    assert flops_per_row(BASE, 128, 128) / flops_per_row(BASE, 128, 20) == pytest.approx(
        1.22, abs=0.005
    )


def test_mfu_counts_real_tokens_only():
    settings = {
        "sequences_per_second": 4_000.0,
        "length": 128,
        "row_flops": 70e9,
        "device_kind": "TPU v4",
        "num_devices": 2,
    }
    full = mfu(real_tokens_per_second=4_000 * 128, **settings)
    assert full == pytest.approx(4_000 * 70e9 / (2 * 275e12))
    assert mfu(real_tokens_per_second=4_000 * 96, **settings) == pytest.approx(0.75 * full)


def test_a_device_that_is_not_known_has_no_mfu():
    settings = {"length": 128, "row_flops": 70e9, "num_devices": 1}
    for kind in ("cpu", "NVIDIA H100 of a later year", "TPU"):
        assert peak_flops(kind) is None
        rates = {"sequences_per_second": 10.0, "real_tokens_per_second": 1_000.0}
        assert mfu(device_kind=kind, **rates, **settings) is None
    assert peak_flops("NVIDIA H100 80GB HBM3") == 989.5e12
    assert peak_flops("NVIDIA H200") == 989.5e12


class Clock:
    def __init__(self):
        self.now = 1_000.0

    def __call__(self):
        return self.now


def test_rates_leave_out_compilation_and_pauses():
    clock = Clock()
    throughput = Throughput(clock)
    assert throughput.measure() is None
    clock.now += 90  # compiling the first step
    throughput.add(rows=32, real_tokens=3_000, flops=32e9)
    assert throughput.measure() is None  # it only starts the clock
    assert throughput.seconds_left(1e12) is None
    for _ in range(4):
        clock.now += 0.5
        throughput.add(rows=32, real_tokens=3_000, flops=32e9)
    with throughput.paused():
        clock.now += 60  # evaluation
    assert throughput.measure() == (4 * 32 / 2.0, 4 * 3_000 / 2.0)
    assert throughput.measure() is None  # nothing since
    for _ in range(2):
        clock.now += 0.25
        throughput.add(rows=32, real_tokens=2_000, flops=32e9)
    assert throughput.measure() == (64 / 0.5, 4_000 / 0.5)
    # 192e9 FLOPs in 62.5 s: the time left counts on pauses like those so far.
    assert throughput.seconds_left(192e10) == pytest.approx(625.0)


def test_a_restart_forgets_the_pace():
    clock = Clock()
    throughput = Throughput(clock)
    for _ in range(2):
        clock.now += 1
        throughput.add(rows=8, real_tokens=100, flops=1e9)
    throughput.restart()
    with throughput.paused():
        clock.now += 5
    clock.now += 60  # compiling the longer step
    throughput.add(rows=8, real_tokens=400, flops=4e9)
    clock.now += 2
    throughput.add(rows=8, real_tokens=400, flops=4e9)
    assert throughput.measure() == (4.0, 200.0)
    assert throughput.seconds_left(8e9) == pytest.approx(4.0)


def test_a_pause_ends_when_its_block_fails():
    clock = Clock()
    throughput = Throughput(clock)
    throughput.add(rows=1, real_tokens=1)

    def evaluate():
        clock.now += 3
        raise OSError("disk")

    with pytest.raises(OSError, match="disk"), throughput.paused():
        evaluate()
    clock.now += 1
    throughput.add(rows=10, real_tokens=1)
    assert throughput.measure().sequences_per_second == 10


def test_work_left_counts_each_phase_by_its_own_rows():
    phases = (Phase(num_steps=10, global_batch_size=4), Phase(num_steps=5, global_batch_size=2))
    found = Phases(Config(phases=phases))
    assert found.flops_left(7, [3.0, 100.0]) == 3 * 4 * 3.0 + 5 * 2 * 100.0
    assert found.flops_left(11, [3.0, 100.0]) == 4 * 2 * 100.0
    stopped = Phases(Config(phases=phases, num_steps=12))
    assert stopped.flops_left(7, [3.0, 100.0]) == 3 * 4 * 3.0 + 2 * 2 * 100.0
