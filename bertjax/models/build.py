"""From a configuration to a model and its parameters."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from typing import Any, cast

import jax
import jax.numpy as jnp
from flax import linen as nn

from bertjax.config import Attention, ConfigError, Dtype, ModelConfig
from bertjax.heads import HEADS, resolve
from bertjax.models.rounded_product import bfloat16_instructions, speed_of_rounding
from bertjax.parallel.partition import gather_params

_LOG = logging.getLogger(__name__)


def make_model(config: ModelConfig) -> nn.Module:
    """Returns the module that `config.head` names; to call it, `config` must be resolved."""
    return cast(nn.Module, resolve(HEADS[config.head].module)(config))


def compute_dtype(config: ModelConfig, backend: str) -> Dtype:
    """Resolves `config.dtype` for a JAX backend ("cpu", "gpu", "tpu").

    Returns:
      A dtype's name; "auto" becomes float32 on CPU, which computes bfloat16 slowly, and bfloat16
      on the others.
    """
    if config.dtype != "auto":
        return config.dtype
    return "float32" if backend == "cpu" else "bfloat16"


def resolve_model(config: ModelConfig, backend: str) -> ModelConfig:
    """Replaces "auto" by what it means on a JAX backend ("cpu", "gpu", "tpu").

    Returns:
      The same model with `dtype` of `compute_dtype`. `attention` "auto" becomes pallas on GPUs and
      TPUs and xla on others, also on one CPU device: with gradients, rows are no faster there.
    """
    attention: Attention = config.attention
    if attention == "auto":
        attention = "pallas" if backend in ("gpu", "tpu") else "xla"
    dtype = compute_dtype(config, backend)
    return dataclasses.replace(config, dtype=dtype, attention=attention)


def without_gradients(config: ModelConfig, backend: str, num_devices: int) -> ModelConfig:
    """The same model, resolved, with what a backend can run and is fast without gradients."""
    config = resolve_model(config, backend)
    attention: Attention
    if backend == "cpu" and num_devices == 1:
        attention = "rows"
    elif backend in ("gpu", "tpu") and config.attention == "pallas":
        attention = "pallas"
    else:
        attention = "xla"
    layout = config.activation_layout if backend == "gpu" else "compiler"
    layer_norm = config.layer_norm if backend in ("gpu", "tpu") else "xla"
    return dataclasses.replace(
        config, attention=attention, layer_norm=layer_norm, activation_layout=layout
    )


def check_backend(config: ModelConfig, backend: str, num_devices: int) -> None:
    """Checks that a JAX backend has what the model asks for; warns where it is slow.

    Args:
      config: resolved.
      backend: "cpu", "gpu" or "tpu".
      num_devices: of all processes.

    Raises:
      ConfigError: the backend does not have it.
    """
    if config.activation_layout != "compiler" and backend != "gpu":
        raise ConfigError(
            f"config.model.activation_layout = {config.activation_layout!r} has been compiled for "
            f"GPUs alone, the backend is {backend!r}: set config.model.activation_layout=compiler"
        )
    _check_attention(config, backend, num_devices)
    _check_products(config, backend)


def _check_attention(config: ModelConfig, backend: str, num_devices: int) -> None:
    if config.attention == "rows" and (backend != "cpu" or num_devices > 1):
        raise ConfigError(
            f"config.model.attention = 'rows' takes one row after the other, for one CPU device, "
            f"found {num_devices} of {backend!r}: set config.model.attention=xla"
        )
    if config.layer_norm == "pallas" and config.hidden_size % 64:
        raise ConfigError(
            f"config.model.layer_norm = 'pallas' has a kernel for hidden sizes that are a multiple "
            f"of 64, config.model.hidden_size is {config.hidden_size}: set "
            "config.model.layer_norm=xla"
        )
    for name in ("attention", "layer_norm"):
        if getattr(config, name) != "pallas":
            continue
        if backend not in ("cpu", "gpu", "tpu"):
            raise ConfigError(
                f"config.model.{name} = 'pallas' has kernels for TPU and CUDA GPUs, the backend is "
                f"{backend!r}: set config.model.{name}=xla"
            )
        if backend == "cpu":
            _LOG.warning(
                "config.model.%s = 'pallas' is interpreted on a CPU, which is for tests and slow; "
                "config.model.%s=xla computes the same",
                name,
                name,
            )


def _check_products(config: ModelConfig, backend: str) -> None:
    if config.dtype == "bfloat16" and backend == "cpu":
        _LOG.warning(
            "config.model.dtype = 'bfloat16' on a CPU is not faster than float32 and on some much "
            "slower (docs/design/speed.md#on-a-cpu): set config.model.dtype=float32"
        )
    if config.factors == "compute":
        return
    if backend != "cpu":
        raise ConfigError(
            f"config.model.factors = {config.factors!r} is for CPUs, the backend is {backend!r}: "
            "set config.model.factors=compute; config.model.dtype=bfloat16 has such factors too"
        )
    if config.dtype != "float32":
        raise ConfigError(
            f"config.model.factors = {config.factors!r} rounds the factors of float32 products, "
            f"found config.model.dtype = {config.dtype!r}: set config.model.factors=compute, or "
            "config.model.dtype=float32"
        )
    if config.attention == "pallas":
        raise ConfigError(
            f"config.model.factors = {config.factors!r} is for CPUs, and config.model.attention = "
            "'pallas' has kernels for GPUs and TPUs: set config.model.attention=xla"
        )
    speed = speed_of_rounding()
    text, *values = (
        "config.model.factors = %r: products with rounded factors run %.2f times as fast as "
        "float32 on this processor (%s)",
        config.factors,
        speed,
        bfloat16_instructions(),
    )
    if speed < 1:
        _LOG.warning(f"{text}; config.model.factors=compute is faster and more exact", *values)
    else:
        _LOG.info(text, *values)


def apply_model(
    model: nn.Module, params: Mapping[str, Any], *inputs: Any, mutable: Any = False
) -> Any:
    """`model.apply` for parameters that may be split over `fsdp`; each layer gathers its own."""
    return model.apply({"params": gather_params(params)}, *inputs, mutable=mutable)


def init_params(config: ModelConfig, seed: int | jax.Array) -> dict[str, Any]:
    """Initializes the parameters of the model that `config.head` names.

    Each parameter has a key that depends on the seed and its own path, so other layers, heads and
    settings do not change it. Pure: may be traced, including `seed`.

    Returns:
      Nested dict of float32 arrays: kernels and tables from a normal cut at two standard
      deviations (`initializer_range`), biases 0, LayerNorm scales 1.
    """
    # The forward pass of initialization only declares shapes; one token of one row is enough.
    ids = jnp.zeros((1, 1), jnp.int32)
    model = make_model(dataclasses.replace(config, dtype="float32", attention="xla"))
    inputs = HEADS[config.head].inputs
    variables = model.init(jax.random.key(seed), *(ids for _ in inputs))
    return cast(dict[str, Any], variables["params"])


def abstract_params(config: ModelConfig) -> dict[str, Any]:
    """The tree of `init_params` with a `jax.ShapeDtypeStruct` for each array; allocates nothing."""
    return cast(dict[str, Any], jax.eval_shape(lambda: init_params(config, 0)))
