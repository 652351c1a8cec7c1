"""Parts of the encoder and the heads: dense layer, LayerNorm, GELU, layout."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.experimental.layout import Layout, with_layout_constraint
from jax.typing import DTypeLike

from bertjax.config import ModelConfig
from bertjax.models.rounded_product import rounded_product
from bertjax.parallel.partition import RULES, is_split, multiply_gathered, split_rows


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
      finish: (product [..., out], bias [out]) -> output; by default their sum.
      dot_general: of rows and kernel, in place of `jax.lax.dot_general`.
    """

    features: int
    dtype: DTypeLike
    kernel_init: nn.initializers.Initializer
    finish: Callable[[jax.Array, jax.Array], jax.Array] | None = None
    dot_general: Callable[..., jax.Array] = jax.lax.dot_general

    @nn.compact
    def parameters(self, size: int) -> tuple[jax.Array, jax.Array]:
        """The kernel [size, out] and the bias [out]."""
        kernel = self.param("kernel", self.kernel_init, (size, self.features), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros_init(), (self.features,), jnp.float32)
        return kernel, bias

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps x [..., in] to [..., out]."""
        kernel, bias = self.parameters(x.shape[-1])
        product = _times_kernel(x, kernel, self.dtype, self.dot_general)
        return (self.finish or _add_bias)(product, bias)


def _times_kernel(
    x: jax.Array, kernel: jax.Array, dtype: DTypeLike, dot_general: Callable[..., jax.Array]
) -> jax.Array:
    return dot_general(
        x.astype(dtype),
        kernel.astype(dtype),
        (((x.ndim - 1,), (0,)), ((), ())),
        precision=product_precision(dtype),
    )


@jax.custom_vjp
def _add_bias(x: jax.Array, bias: jax.Array) -> jax.Array:
    """X [..., d] + bias [d], in the dtype of x; the gradient of bias is summed in float32."""
    return x + bias.astype(x.dtype)


def _add_bias_backward(bias: jax.Array, gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    if gradient.dtype != bias.dtype:
        # Otherwise XLA cancels the cast to float32 against the cast before it, and writes the
        # whole gradient in float32 too, just for this sum.
        gradient = jax.lax.optimization_barrier(gradient)
    axes = tuple(range(gradient.ndim - bias.ndim))
    return gradient, jnp.sum(gradient, axes, dtype=bias.dtype)


_add_bias.defvjp(lambda x, bias: (_add_bias(x, bias), bias), _add_bias_backward)


def dense(
    config: ModelConfig,
    features: int,
    name: str | None = None,
    kernel_axes: tuple[str, str] | None = None,
    finish: Callable[[jax.Array, jax.Array], jax.Array] | None = None,
) -> Dense:
    """A dense layer with bias, in the compute dtype.

    Args:
      config: compute dtype, range of the initializer, and whether layers are scanned.
      features: columns of the output.
      name: of the layer's parameters; None = Flax numbers them.
      kernel_axes: for a layer of the encoder, the logical axes of its kernel, which it gathers.
      finish: (product, bias) -> output, see `Dense`.
    """
    multiply = rounded_product if config.factors == "bfloat16" else jax.lax.dot_general
    if kernel_axes:
        multiply = multiply_gathered(kernel_axes, multiply, prevent_cse=not config.scan_layers)
    return Dense(
        features,
        dtype=jnp.dtype(config.dtype),
        kernel_init=truncated_normal(config),
        finish=finish,
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


def is_narrow(config: ModelConfig) -> bool:
    """Whether the compute dtype has 16 bits, as on GPUs and TPUs, where steps wait for memory.

    Then gradients are written so that fewer arrays are read and written. In 32 bits XLA's own are
    as fast on CPUs.
    """
    return jnp.dtype(config.dtype) != wide_dtype(config)


def product_precision(dtype: DTypeLike) -> jax.lax.Precision | None:
    """The precision of matrix products in a dtype: products of float32 are computed in float32.

    By default a GPU rounds their factors to TF32 and a TPU to bfloat16. None = the default.
    """
    return jax.lax.Precision.HIGHEST if jnp.dtype(dtype).itemsize >= 4 else None


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def wide_product(equation: str, x: jax.Array, y: jax.Array) -> jax.Array:
    """`jnp.einsum` of two arrays of the compute dtype, whose result is float32 or wider.

    The gradient is rounded to the compute dtype, as any other factor. Otherwise both products of
    the backward pass would be of float32, for which GPUs take at least twice the time.

    Args:
      equation: of two factors, as for `jnp.einsum`.
      x: the first factor.
      y: the second one, in the dtype of x.

    Returns:
      The product, float32 or wider.
    """
    wide = jnp.promote_types(x.dtype, jnp.float32)
    precision = product_precision(x.dtype)
    return jnp.einsum(equation, x, y, precision=precision, preferred_element_type=wide)


def _wide_product_backward(
    equation: str, factors: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, y = factors
    gradient = gradient.astype(x.dtype)
    product = functools.partial(jnp.einsum, equation, precision=product_precision(x.dtype))
    (of_x,) = jax.linear_transpose(lambda x: product(x, y), x)(gradient)
    (of_y,) = jax.linear_transpose(lambda y: product(x, y), y)(gradient)
    return of_x, of_y


wide_product.defvjp(
    lambda equation, x, y: (wide_product(equation, x, y), (x, y)), _wide_product_backward
)


def joint_dense(
    config: ModelConfig,
    x: jax.Array,
    features: int,
    names: Sequence[str],
    kernel_axes: tuple[str, str],
) -> jax.Array:
    """Several layers `dense` of the same input, as one product: x is read once, in both passes.

    Is called in a method of the module that has the layers.

    Args:
      config: as for `dense`.
      x: [..., in].
      features: columns of each output.
      names: of the layers, n of them.
      kernel_axes: as for `dense`.

    Returns:
      [..., n, features].
    """
    layers = [dense(config, features, name).parameters(x.shape[-1]) for name in names]
    kernels, biases = zip(*layers, strict=True)
    # Side by side, so that the biases are one vector, which cuBLAS adds in the product. If a mesh
    # splits the features, they stay an axis of their own.
    join = jnp.stack if is_split(RULES[kernel_axes[1]]) else jnp.concatenate
    kernel, bias = join(kernels, axis=1), join(biases, axis=0)
    axes = [kernel_axes[0], *[None] * bias.ndim]
    multiply = multiply_gathered(axes, jax.lax.dot_general, prevent_cse=not config.scan_layers)
    product = _add_bias(_times_kernel(x, kernel, config.dtype, multiply), bias)
    return product.reshape(*x.shape[:-1], len(names), features)


def dense_gelu(
    config: ModelConfig,
    features: int,
    name: str | None = None,
    kernel_axes: tuple[str, str] | None = None,
) -> Dense:
    """`dense` with GELU after it; the arguments are those of `dense`.

    In 16 bits the backward pass keeps the product, and not its sum with the bias besides.
    """

    def finish(y: jax.Array, bias: jax.Array) -> jax.Array:
        if is_narrow(config):
            return _recomputed(config, lambda y, bias: _gelu(config, _add_bias(y, bias)))(y, bias)
        return gelu(config, _add_bias(y, bias))

    return dense(config, features, name, kernel_axes, finish)


def gelu(config: ModelConfig, x: jax.Array) -> jax.Array:
    """GELU (Hendrycks & Gimpel 2016), the form that `config.gelu` names, computed in float32.

    "tanh" is google-research/bert at HEAD, "erf" its first release and Hugging Face.
    """
    return _recomputed(config, functools.partial(_gelu, config))(x)


def _gelu(config: ModelConfig, x: jax.Array) -> jax.Array:
    wide = x.astype(wide_dtype(config))
    return jax.nn.gelu(wide, approximate=config.gelu == "tanh").astype(x.dtype)


def _recomputed(
    config: ModelConfig, function: Callable[..., jax.Array]
) -> Callable[..., jax.Array]:
    """The function, computed again in the backward pass from its arguments.

    In 16 bits XLA would reuse the tanh of the forward pass and keep it in float32. (A scan keeps
    the passes apart anyway.)
    """
    apart = is_narrow(config) and not config.scan_layers
    return cast(Callable[..., jax.Array], jax.checkpoint(function, prevent_cse=apart))


def hidden_rows(config: ModelConfig, x: jax.Array) -> jax.Array:
    """Constrains hidden states [b, t, d]: each row on its device, with its values in order.

    The compiler chooses the order unless `config.activation_layout` is "row_major". For GPUs XLA
    may lay padded rows out as [t, d, b], and then transposes them before every product.
    """
    x = split_rows(x)
    if config.activation_layout == "row_major":
        x = with_layout_constraint(x, Layout(major_to_minor=tuple(range(x.ndim))))
    return x
