"""Layer normalization (Ba et al. 2016), in 16 bits with a backward pass of its own."""

from __future__ import annotations

import functools
from typing import Any, cast

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from bertjax.config import ModelConfig
from bertjax.models.dropout import dropout
from bertjax.models.layers import is_narrow


class LayerNorm(nn.Module):
    """Layer normalization over the last axis, returned in the compute dtype.

    Always computed in float32: in bfloat16 an epsilon of 1e-12 would vanish.
    """

    config: ModelConfig

    @nn.compact
    def parameters(self, size: int) -> tuple[jax.Array, jax.Array]:
        """Scale and bias, [size] each."""
        scale = self.param("scale", nn.initializers.ones_init(), (size,), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros_init(), (size,), jnp.float32)
        return scale, bias

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps x [..., d] to an array of the same shape."""
        parameters = self.parameters(x.shape[-1])
        epsilon, dtype = self.config.layer_norm_eps, self.config.dtype
        if is_narrow(self.config):
            return normalise(epsilon, dtype, x, *parameters)

        # So that a scan over layers keeps x alone.
        @functools.partial(jax.checkpoint, prevent_cse=False)
        def plain(*arrays: jax.Array) -> jax.Array:
            return _forward(epsilon, dtype, *arrays)[0]

        return cast(jax.Array, plain(x, *parameters))


class ResidualNorm(LayerNorm):
    """LayerNorm(x + dropout(y)), the end of a sublayer; the parameters are those of LayerNorm."""

    def __call__(  # type: ignore[override]
        self, x: jax.Array, y: jax.Array, row_keys: jax.Array | None
    ) -> jax.Array:
        """Maps x and y [b, t, d] to an array of their shape; `row_keys` [b], None = no dropout."""
        config, rate = self.config, self.config.dropout_rate
        if config.layer_norm == "xla" or self.is_initializing():
            return super().__call__(x + dropout(y, rate, row_keys))
        from bertjax.models.kernels.residual_norm import residual_norm  # imports Pallas, 0.2 s

        parameters = self.parameters(x.shape[-1])
        return residual_norm(x, y, *parameters, row_keys, rate, config.layer_norm_eps)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def normalise(
    epsilon: float, dtype: DTypeLike, x: jax.Array, scale: jax.Array, bias: jax.Array
) -> jax.Array:
    """Layer normalization of x [..., d], in `dtype`, with fewer passes over memory for gradients.

    Args:
      epsilon: added to the variance.
      dtype: of the result.
      x: [..., d].
      scale: float32 [d].
      bias: float32 [d].

    Returns:
      [..., d] in `dtype`.
    """
    return _forward(epsilon, dtype, x, scale, bias)[0]


def _forward(
    epsilon: float, dtype: DTypeLike, x: jax.Array, scale: jax.Array, bias: jax.Array
) -> tuple[jax.Array, Any]:
    wide = x.astype(jnp.promote_types(dtype, jnp.float32))
    mean = jnp.mean(wide, axis=-1, keepdims=True)
    centred = wide - mean
    variance = jnp.mean(jnp.square(centred), axis=-1, keepdims=True)
    inverse = jax.lax.rsqrt(variance + epsilon)
    output = (centred * inverse * scale + bias).astype(dtype)
    return output, (x, scale, mean, inverse)


def _backward(
    epsilon: float, dtype: DTypeLike, residuals: Any, gradient: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    x, scale, mean, inverse = residuals
    wide = inverse.dtype
    if jnp.dtype(dtype) != wide:
        # Otherwise XLA computes both again from x in a kernel by rows, and writes what the sums
        # over all rows read in float32.
        mean, inverse = jax.lax.optimization_barrier((mean, inverse))
    gradient = gradient.astype(wide)
    normalised = (x.astype(wide) - mean) * inverse
    of_normalised = gradient * scale
    along = jnp.mean(of_normalised * normalised, axis=-1, keepdims=True)
    of_centred = of_normalised - normalised * along
    of_x = (of_centred - jnp.mean(of_normalised, axis=-1, keepdims=True)) * inverse
    rows = tuple(range(x.ndim - 1))
    of_scale = jnp.sum(gradient * normalised, rows).astype(scale.dtype)
    return of_x.astype(x.dtype), of_scale, jnp.sum(gradient, rows).astype(scale.dtype)


normalise.defvjp(_forward, _backward)
