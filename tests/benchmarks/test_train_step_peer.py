"""The contenders of benchmarks.train_step: equal losses and gradients, and their own operations."""

import runpy

import numpy as np
import pytest
from folders import GOLDENS

from bertjax.config import Config, ModelConfig

for package in ("torch", "transformers"):
    pytest.importorskip(
        package,
        reason=f"{package} is not installed; the extra `peer` brings it: "
        'pip install "bertjax[peer]"',
    )

import torch  # noqa: E402
from torch.nn.attention import SDPBackend, sdpa_kernel  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

from benchmarks import train_step, train_step_peer  # noqa: E402

pytestmark = pytest.mark.peer

SIZES = {
    "vocab_size": 1009,
    "hidden_size": 96,
    "num_layers": 2,
    "num_heads": 6,
    "intermediate_size": 200,
    "max_positions": 64,
}
NO_DROPOUT = ModelConfig(**SIZES, dropout_rate=0.0, attention_dropout_rate=0.0)


@pytest.fixture(scope="module")
def batch():
    """Rows with padding and with slots that hold no prediction, as many as each row likes."""
    script = GOLDENS / "make_transformers_goldens.py"
    make_batch = runpy.run_path(str(script))["make_batch"]
    return make_batch(SIZES, rows=6, length=64, max_predictions=10, seed=3)


def make_modules():
    """Both contenders' modules, on one model in float64 whose parameters are all drawn."""
    model = train_step_peer.make_training(NO_DROPOUT).model.double()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return {name: module(model) for name, (module, _) in train_step_peer.WAYS.items()}


def loss_and_gradients(module, model, inputs):
    model.zero_grad()
    loss = module(**train_step_peer.tensors(inputs, torch.device("cpu"))).loss
    loss.backward()
    return loss.item(), {name: p.grad.numpy().copy() for name, p in model.named_parameters()}


@pytest.mark.parametrize("compiled", [False, True])
def test_masked_positions_only_have_the_loss_and_the_gradients_of_all(batch, compiled):
    modules = make_modules()
    model = modules["all"]
    masked = modules["masked"]
    if compiled:  # traced as for a fast program, which this environment may have no compiler for
        masked = torch.compile(masked, backend="aot_eager", fullgraph=True)
    inputs = {name: make(batch) for name, (_, make) in train_step_peer.WAYS.items()}
    loss, gradients = loss_and_gradients(model, model, inputs["all"])
    equal_loss, equal_gradients = loss_and_gradients(masked, model, inputs["masked"])
    assert equal_loss == pytest.approx(loss, rel=1e-13)
    assert gradients.keys() == equal_gradients.keys()
    for name, gradient in gradients.items():
        # The gradient of a key's bias is 0 but for rounding: see test_model_goldens.
        scale = np.abs(gradients[name.replace("key.bias", "key.weight")]).max()
        assert scale > 0, name
        np.testing.assert_allclose(
            equal_gradients[name], gradient, rtol=0, atol=1e-12 * scale, err_msg=name
        )


@pytest.mark.parametrize("logits", train_step.LOGITS)
def test_operations_are_those_that_torch_counts(batch, logits):
    modules = make_modules()
    _, make = train_step_peer.WAYS[logits]
    # Attention as products that are counted one by one.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        loss_and_gradients(modules[logits], modules["all"], make(batch))
    ours = train_step.step_flops(Config(model=NO_DROPOUT), {"mlm_logits": logits}, batch)
    assert counter.get_total_flops() == ours


def test_contenders_take_steps_of_one_model(batch):
    """In turns: each sees what the other learned, and says which logits it computes."""
    contenders = train_step_peer.make_contenders(
        NO_DROPOUT, batch, train_step.LOGITS, train_step.DTYPES, compiled=False
    )
    names = [train_step.PEER + logits for logits in train_step.LOGITS]
    assert [*contenders] == names + [f"{name}, bfloat16" for name in names]
    assert [c.settings["mlm_logits"] for c in contenders.values()] == 2 * [*train_step.LOGITS]
    dtypes = [c.settings["dtype"] for c in contenders.values()]
    assert dtypes == 2 * ["float32"] + 2 * ["bfloat16 autocast"]
    losses = [c.run(1) for _ in range(4) for c in contenders.values()]
    assert losses == sorted(losses, reverse=True)
