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
from bertjax.parallel.partition import gather_params

_LOG = logging.getLogger(__name__)


def make_model(config: ModelConfig) -> nn.Module:
    """Returns the module that `config.head` names; `config.dtype` must be resolved to call it."""
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


def without_gradients(config: ModelConfig, backend: str, num_devices: int) -> ModelConfig:
    """The same model, with attention and layout that a backend can run without gradients."""
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
    """Checks that a JAX backend has the attention and layout; warns where they are slow.

    Raises:
      ConfigError: the backend does not have one of them.
    """
    if config.activation_layout != "compiler" and backend != "gpu":
        raise ConfigError(
            f"config.model.activation_layout = {config.activation_layout!r} has been compiled for "
            f"GPUs alone, the backend is {backend!r}: set config.model.activation_layout=compiler"
        )
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
    model = make_model(dataclasses.replace(config, dtype="float32"))
    inputs = HEADS[config.head].inputs
    variables = model.init(jax.random.key(seed), *(ids for _ in inputs))
    return cast(dict[str, Any], variables["params"])


def abstract_params(config: ModelConfig) -> dict[str, Any]:
    """The tree of `init_params` with a `jax.ShapeDtypeStruct` for each array; allocates nothing."""
    return cast(dict[str, Any], jax.eval_shape(lambda: init_params(config, 0)))
