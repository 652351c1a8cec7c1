"""FLOPs per row, peak FLOP/s of devices, and MFU."""

from __future__ import annotations

from bertjax.config import ModelConfig
from bertjax.parameters import products

# Dense bfloat16 FLOP/s of one jax device, by its `device_kind`. Other devices have no MFU, because
# a guess would be worse.
_PEAK_FLOPS: dict[str, float] = {
    # cloud.google.com/tpu/docs/v3, /v4, /v5e, /v5p, /v6e; v2: 180e12 per board of four chips. The
    # names are those in jax/_src/pallas/mosaic/tpu_info.py. Up to v3 a jax device is one of a
    # chip's two cores.
    "TPU v2": 45e12 / 2,
    "TPU v3": 123e12 / 2,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    # NVIDIA Tesla V100 data sheet (2018), tensor cores, which have float16 and no bfloat16.
    "Tesla V100-PCIE-16GB": 112e12,
    "Tesla V100-PCIE-32GB": 112e12,
    "Tesla V100-SXM2-16GB": 125e12,
    "Tesla V100-SXM2-32GB": 125e12,
    # NVIDIA T4 data sheet (2019); float16 as well.
    "Tesla T4": 65e12,
    # NVIDIA A100 data sheet (2021).
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA A100-PCIE-40GB": 312e12,
    "NVIDIA A100 80GB PCIe": 312e12,
    # NVIDIA H100 data sheet (2024), half of the figures with sparsity.
    "NVIDIA H100 80GB HBM3": 989.5e12,
    "NVIDIA H100 PCIe": 756.5e12,
    "NVIDIA H100 NVL": 835.5e12,
    # NVIDIA H200 data sheet (2024), half of the figures with sparsity.
    "NVIDIA H200": 989.5e12,
    "NVIDIA H200 NVL": 835.5e12,
}


def flops_per_row(
    model: ModelConfig, length: int, max_predictions: int, num_pairs: int = 1
) -> float:
    """Floating-point operations to train on one row: three times the forward pass.

    Only matrix products count: those of the parameters (see `bertjax.parameters`) and the two of
    attention, 4 t d per token and layer. Recomputation by remat does not. With L layers, t tokens,
    d hidden, f the inner width, m predictions, v the vocabulary and p the largest number of pairs
    (1 unless rows are packed), a row of pre-training has

        forward = L * t * (8 d^2 + 4 d f + 4 t d) + m * (2 d^2 + 2 d v) + p * (2 d^2 + 4 d)

    (projections, feed-forward, attention; MLM head; pooler and NSP head). `length` and
    `max_predictions` are those of the row's array, padding included. Attention is counted between
    all of its tokens, also between different pairs, and in a left-to-right model (as Chowdhery et
    al. 2022, appendix B, do). Where each token predicts the next one, m = t. For BERT-BASE and t =
    128, 69.9e9.
    """
    attention = model.num_layers * 4 * length * length * model.hidden_size
    return 3.0 * (2 * products(model, length, max_predictions, num_pairs) + attention)


def peak_flops(device_kind: str) -> float | None:
    """Dense bfloat16 FLOP/s of one device, by `jax.Device.device_kind`; None if not known."""
    return _PEAK_FLOPS.get(device_kind)


def mfu(
    *,
    sequences_per_second: float,
    real_tokens_per_second: float,
    length: int,
    row_flops: float,
    device_kind: str,
    num_devices: int,
) -> float | None:
    """Model FLOP utilisation: the share of the devices' peak that goes into real tokens.

        mfu = sequences_per_second * row_flops * real / (num_devices * peak)
        real = real_tokens_per_second / (sequences_per_second * length)

    `real` is the share of tokens that are not padding, so padding does not raise the figure. The
    peak is that of bfloat16, for any dtype of the computation.

    Args:
      sequences_per_second: rows, over all devices.
      real_tokens_per_second: tokens that are not padding, over all devices.
      length: tokens of a row, padding included.
      row_flops: see `flops_per_row`, for this length.
      device_kind: `jax.Device.device_kind`.
      num_devices: devices that share the work.

    Returns:
      A number from 0 to 1; None if the peak of the device is not known.
    """
    peak = peak_flops(device_kind)
    if peak is None or not sequences_per_second:
        return None
    real = real_tokens_per_second / (sequences_per_second * length)
    return sequences_per_second * row_flops * real / (num_devices * peak)
