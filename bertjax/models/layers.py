"""The pieces that the encoder and the heads are made of: dense layer, LayerNorm, GELU."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from bertjax.config import ModelConfig
from bertjax.models.partition import multiply_gathered

# What is cheap to compute is computed again in the backward pass, from its input alone: a scan over
# layers would keep every array in between (half of BASE's activations). Unrolled, XLA decides.
_recomputed = functools.partial(jax.checkpoint, prevent_cse=False)


def truncated_normal(config: ModelConfig) -> nn.initializers.Initializer:
    """The initialiser of every kernel and table: a normal cut at two standard deviations.

    Not rescaled, as in `tf.truncated_normal_initializer` (google-research/bert, modeling.py), so
    the standard deviation that comes out is 0.88 times `initializer_range`.
    """
    return nn.initializers.truncated_normal(config.initializer_range, lower=-2.0, upper=2.0)


def dense(
    config: ModelConfig,
    features: int,
    name: str | None = None,
    kernel_axes: tuple[str, str] | None = None,
) -> nn.Dense:
    """A dense layer with bias, in the compute dtype: kernel [in, out] and bias [out] in float32.

    Args:
      kernel_axes: of a layer of the encoder: the logical axes of its kernel, which it gathers.
    """
    multiply = kernel_axes and multiply_gathered(kernel_axes, prevent_cse=not config.scan_layers)
    return nn.Dense(
        features,
        dtype=jnp.dtype(config.dtype),
        param_dtype=jnp.float32,
        kernel_init=truncated_normal(config),
        precision=product_precision(config.dtype),
        dot_general=multiply,
        name=name,
    )


def output_layer(config: ModelConfig, features: int) -> nn.Dense:
    """The last layer of a head: as `dense`, but float32, so that logits are not rounded before."""
    return dense(dataclasses.replace(config, dtype=wide_dtype(config).name), features)


def wide_dtype(config: ModelConfig) -> jnp.dtype:
    """The dtype of LayerNorm, softmax and logits: float32 or wider."""
    return jnp.promote_types(config.dtype, jnp.float32)


def product_precision(dtype: DTypeLike) -> jax.lax.Precision | None:
    """How the matrix products of a dtype are computed: those of float32 in float32.

    By default a GPU rounds their factors to TF32 and a TPU to bfloat16. None = the default.
    """
    return jax.lax.Precision.HIGHEST if jnp.dtype(dtype).itemsize >= 4 else None


class LayerNorm(nn.Module):
    """Layer normalisation over the last axis, returned in the compute dtype.

    Always computed in float32: in bfloat16 an epsilon of 1e-12 would vanish.
    """

    config: ModelConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps x [..., d] to an array of the same shape."""
        size = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones_init(), (size,), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros_init(), (size,), jnp.float32)

        @_recomputed
        def normalise(x: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
            x = x.astype(wide_dtype(self.config))
            centred = x - jnp.mean(x, axis=-1, keepdims=True)
            variance = jnp.mean(jnp.square(centred), axis=-1, keepdims=True)
            normalised = centred * jax.lax.rsqrt(variance + self.config.layer_norm_eps)
            return (normalised * scale + bias).astype(self.config.dtype)

        return normalise(x, scale, bias)


def gelu(config: ModelConfig, x: jax.Array) -> jax.Array:
    """GELU (Hendrycks & Gimpel 2016), the form that `config.gelu` names.

    "tanh" is google-research/bert at HEAD, "erf" its first release and Hugging Face.
    """
    return _recomputed(functools.partial(jax.nn.gelu, approximate=config.gelu == "tanh"))(x)
