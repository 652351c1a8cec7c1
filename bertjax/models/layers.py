"""Parts of the encoder and the heads: dense layer, LayerNorm, GELU, layout."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.experimental.layout import Layout, with_layout_constraint
from jax.typing import DTypeLike

from bertjax.config import ModelConfig
from bertjax.models.rounded_product import rounded_product
from bertjax.parallel.partition import multiply_gathered, split_rows

# Cheap functions are computed again in the backward pass, from their input. Otherwise a scan over
# layers would keep every intermediate array (half of BASE's activations). Unrolled, XLA decides.
_recomputed = functools.partial(jax.checkpoint, prevent_cse=False)


def truncated_normal(config: ModelConfig) -> nn.initializers.Initializer:
    """The initializer of every kernel and table: a normal truncated at two standard deviations.

    Not rescaled, as in `tf.truncated_normal_initializer` (google-research/bert, modeling.py), so
    the resulting standard deviation is 0.88 times `initializer_range`.
    """
    return nn.initializers.truncated_normal(config.initializer_range, lower=-2.0, upper=2.0)


class Dense(nn.Module):
    """A dense layer with bias: kernel [in, out] and bias [out] in float32, the product in `dtype`.

    Unlike `flax.linen.Dense` it sums the gradient of the bias in float32. A sum over 65,536 tokens
    in bfloat16 is off by 2 to 5 % of its norm.

    Attributes:
      features: columns of the output.
      dtype: of the computation and the output.
      dot_general: of rows and kernel, in place of `jax.lax.dot_general`.
    """

    features: int
    dtype: DTypeLike
    kernel_init: nn.initializers.Initializer
    dot_general: Callable[..., jax.Array] = jax.lax.dot_general

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps x [..., in] to [..., out]."""
        shape = (x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros_init(), (self.features,), jnp.float32)
        y = self.dot_general(
            x.astype(self.dtype),
            kernel.astype(self.dtype),
            (((x.ndim - 1,), (0,)), ((), ())),
            precision=product_precision(self.dtype),
        )
        return _add_bias(y, bias)


@jax.custom_vjp
def _add_bias(x: jax.Array, bias: jax.Array) -> jax.Array:
    """X [..., d] + bias [d], in the dtype of x; the gradient of bias is summed in float32."""
    return x + bias.astype(x.dtype)


def _add_bias_backward(bias: jax.Array, gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    if gradient.dtype != bias.dtype:
        # Otherwise XLA cancels the cast to float32 against the cast before it, and writes the
        # whole gradient in float32 too, just for this sum.
        gradient = jax.lax.optimization_barrier(gradient)
    axes = tuple(range(gradient.ndim - 1))
    return gradient, jnp.sum(gradient, axes, dtype=bias.dtype)


_add_bias.defvjp(lambda x, bias: (_add_bias(x, bias), bias), _add_bias_backward)


def dense(
    config: ModelConfig,
    features: int,
    name: str | None = None,
    kernel_axes: tuple[str, str] | None = None,
) -> Dense:
    """A dense layer with bias, in the compute dtype.

    Args:
      config: compute dtype, range of the initializer, and whether layers are scanned.
      features: columns of the output.
      name: of the layer's parameters; None = Flax numbers them.
      kernel_axes: for a layer of the encoder, the logical axes of its kernel, which it gathers.
    """
    multiply = rounded_product if config.factors == "bfloat16" else jax.lax.dot_general
    if kernel_axes:
        multiply = multiply_gathered(kernel_axes, multiply, prevent_cse=not config.scan_layers)
    return Dense(
        features,
        dtype=jnp.dtype(config.dtype),
        kernel_init=truncated_normal(config),
        dot_general=multiply,
        name=name,
    )


def output_layer(config: ModelConfig, features: int) -> Dense:
    """The last layer of a head: like `dense`, but in float32, so that logits are not rounded."""
    wide: Any = wide_dtype(config).name
    return dense(dataclasses.replace(config, dtype=wide, factors="compute"), features)


def wide_dtype(config: ModelConfig) -> jnp.dtype:
    """The dtype of LayerNorm, softmax and logits: float32 or wider."""
    return jnp.promote_types(config.dtype, jnp.float32)


def product_precision(dtype: DTypeLike) -> jax.lax.Precision | None:
    """The precision of matrix products in a dtype: products of float32 are computed in float32.

    By default a GPU rounds their factors to TF32 and a TPU to bfloat16. None = the default.
    """
    return jax.lax.Precision.HIGHEST if jnp.dtype(dtype).itemsize >= 4 else None


class LayerNorm(nn.Module):
    """Layer normalization over the last axis, returned in the compute dtype.

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

        return cast(jax.Array, normalise(x, scale, bias))


def gelu(config: ModelConfig, x: jax.Array) -> jax.Array:
    """GELU (Hendrycks & Gimpel 2016), the form that `config.gelu` names, computed in float32.

    "tanh" is google-research/bert at HEAD, "erf" its first release and Hugging Face.
    """

    def activate(x: jax.Array) -> jax.Array:
        wide = x.astype(wide_dtype(config))
        return jax.nn.gelu(wide, approximate=config.gelu == "tanh").astype(x.dtype)

    # In 16 bits XLA would reuse the tanh of the forward pass and keep it in float32. (A scan keeps
    # the passes apart anyway.)
    apart = x.dtype != wide_dtype(config) and not config.scan_layers
    return cast(jax.Array, jax.checkpoint(activate, prevent_cse=apart)(x))


def hidden_rows(config: ModelConfig, x: jax.Array) -> jax.Array:
    """Constrains hidden states [b, t, d]: each row on its device, with its values in order.

    The compiler chooses the order unless `config.activation_layout` is "row_major". For GPUs XLA
    may lay padded rows out as [t, d, b], and then transposes them before every product.
    """
    x = split_rows(x)
    if config.activation_layout == "row_major":
        x = with_layout_constraint(x, Layout(major_to_minor=tuple(range(x.ndim))))
    return x
