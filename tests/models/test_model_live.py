"""The comparison of test_model_goldens.py, live, on a larger model with random weights."""

import runpy

import pytest
from folders import GOLDENS
from test_model_goldens import (
    assert_same_causal_loss_and_gradients,
    assert_same_loss_and_gradients,
)

pytestmark = pytest.mark.peer

for package in ("torch", "transformers"):
    pytest.importorskip(
        package,
        reason=f"{package} is not installed; the extra `peer` brings it: "
        'pip install "bertjax[peer]"',
    )

SIZES = {
    "vocab_size": 1009,
    "hidden_size": 96,
    "num_layers": 4,
    "num_heads": 6,
    "intermediate_size": 200,
    "max_positions": 64,
}


CHECKS = {  # by kind of model: how its loss and gradients are made and compared
    "pretraining": ("loss_and_gradients", assert_same_loss_and_gradients),
    "causal": ("causal_loss_and_gradients", assert_same_causal_loss_and_gradients),
}


@pytest.fixture(scope="module", params=CHECKS)
def peer(request):
    """Batch, weights, losses and gradients, by the functions that write the goldens; the check."""
    script = GOLDENS / "make_transformers_goldens.py"
    functions = runpy.run_path(str(script))
    batch = functions["make_batch"](SIZES, rows=6, length=64, max_predictions=10, seed=3)
    model = functions["make_model"](SIZES, seed=4, kind=request.param)
    compute, check = CHECKS[request.param]
    return (batch, functions["weights"](model), *functions[compute](model, batch)), check


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("float64", 1e-10)])
def test_loss_and_gradients_equal_transformers(peer, dtype, tolerance):
    arrays, check = peer
    check(SIZES, *arrays, dtype=dtype, tolerance=tolerance)
