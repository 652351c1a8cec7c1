"""How parameters and activations are split over the mesh axes `data`, `fsdp` and `tensor`.

`data` splits rows, `fsdp` splits rows and, at rest, parameters, `tensor` splits heads, the
feed-forward layer and the vocabulary. `bertjax.parameters` gives every parameter its logical axes,
and rules map logical axes to mesh axes (the names are those of T5X and MaxText). Without a mesh,
every constraint here does nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import jax
from jax.sharding import PartitionSpec

from bertjax.parameters import is_of_layer, line_of

Arrays = tuple[jax.Array, ...]

AXES = ("data", "fsdp", "tensor")
ROWS = ("data", "fsdp")  # these split the first dimension of arrays of rows

RULES = {"embed": "fsdp", "heads": "tensor", "mlp": "tensor", "vocab": "tensor"}


def path_name(path: Sequence[Any]) -> str:
    """Returns a leaf's path as `encoder/layer_0/...` from JAX's key path."""
    return jax.tree_util.keystr(tuple(path), simple=True, separator="/")


def logical_axes(path: str, shape: Sequence[int]) -> tuple[str | None, ...]:
    """Returns the logical axis of each dimension of the parameter at `path`.

    Raises:
      ValueError: the table of parameters has no line for it, or one of another rank.
    """
    axes = line_of(path).axes
    if len(axes) != len(shape):
        raise ValueError(
            f"parameter {path!r} has the shape {tuple(shape)}, but its line in "
            f"bertjax.parameters.TABLE has {len(axes)} axes, {axes}"
        )
    return axes


def parameter_spec(path: str, shape: Sequence[int], mesh_sizes: Mapping[str, int]) -> PartitionSpec:
    """The sharding of the parameter at `path` between two steps.

    A vocabulary that `tensor` does not divide (30,522 by 8) is stored whole, because JAX splits
    arguments evenly only. The decoder still splits it, since the compiler pads inside a program.

    Raises:
      ValueError: as `logical_axes`.
    """
    axes = logical_axes(path, shape)
    spec = [RULES[axis] if axis else None for axis in axes]
    if "vocab" in axes:
        i = axes.index("vocab")
        if shape[i] % mesh_sizes[RULES["vocab"]]:
            spec[i] = None
    return PartitionSpec(*spec)


def update_spec(path: str, shape: Sequence[int], mesh_sizes: Mapping[str, int]) -> PartitionSpec:
    """The sharding of the parameter at `path` in its update, if that is split over `data` (ZeRO-1).

    The first dimension that is whole between steps, and that `data` divides, is split. Without one
    each device updates the whole parameter.

    Raises:
      ValueError: as `logical_axes`.
    """
    spec = [*parameter_spec(path, shape, mesh_sizes)]
    dimension = _update_dimension(path, shape, mesh_sizes)
    if dimension >= 0:
        spec[dimension] = "data"
    return PartitionSpec(*spec)


def _update_dimension(path: str, shape: Sequence[int], mesh_sizes: Mapping[str, int]) -> int:
    """The dimension that `data` splits in the update; -1 = none."""
    spec = parameter_spec(path, shape, mesh_sizes)
    for i, axis in enumerate(spec):
        whole = axis is None or mesh_sizes[axis] == 1
        if whole and shape[i] % mesh_sizes["data"] == 0:
            return i
    return -1


def split_update(tree: Any) -> Any:
    """Constrains gradients, or parameters, to the split of `update_spec`.

    What is computed of them is split then. Norms stay those of whole tensors: the compiler adds
    them up over the parts.

    Args:
      tree: of all parameters.
    """
    sizes = _mesh_sizes()
    if sizes is None or sizes["data"] == 1:
        return tree
    return jax.tree_util.tree_map_with_path(
        lambda path, x: jax.lax.with_sharding_constraint(
            x, update_spec(path_name(path), x.shape, sizes)
        ),
        tree,
    )


def gather_params(params: Any) -> Any:
    """Gathers parameters outside the layers for a step: whole over `fsdp`.

    The backward pass sums and splits the gradients again. So under fsdp a step has all-gathers and
    reduce-scatters, and activations stay with their rows.

    Args:
      params: all parameters; those of layers stay split, because each layer gathers its own.
    """
    sizes = _mesh_sizes()
    if sizes is None:
        return params

    def gather(path: Any, leaf: jax.Array) -> jax.Array:
        name = path_name(path)
        if is_of_layer(name):
            return leaf
        spec = parameter_spec(name, leaf.shape, sizes)
        whole = (None if axis == RULES["embed"] else axis for axis in spec)
        return cast(jax.Array, jax.lax.with_sharding_constraint(leaf, PartitionSpec(*whole)))

    return jax.tree_util.tree_map_with_path(gather, params)


def multiply_gathered(
    axes: Sequence[str | None],
    product: Callable[..., jax.Array] = jax.lax.dot_general,
    **checkpoint: Any,
) -> Any:
    """A product of rows [b, ...] and a kernel that is stored split over `fsdp`.

    Each device gathers the kernel for the product, and again in the backward pass. The kernel's
    gradient is summed and split at once (a reduce-scatter). The compiler alone would stack the
    whole kernels of all layers on every device in a scan, and their whole gradients. With `fsdp`
    = 1 this is the plain product: even a constraint without effect makes the scan keep a copy.

    Args:
      axes: the kernel's logical axes.
      product: of rows and the whole kernel, with the arguments of `jax.lax.dot_general`.
      **checkpoint: settings of `jax.checkpoint`.
    """
    embed = axes.index("embed")
    at_rest = PartitionSpec(*(RULES["embed"] if axis == "embed" else None for axis in axes))

    def dot_general(x: jax.Array, kernel: jax.Array, dimensions: Any, precision: Any) -> jax.Array:
        def multiply(x: jax.Array, kernel: jax.Array) -> jax.Array:
            return product(x, kernel, dimensions, precision)

        sizes = _mesh_sizes()
        # Initialization traces with one row, which is not split.
        if sizes is None or sizes["fsdp"] == 1 or not _divides(rows := _row_axes(), x):
            return multiply(x, kernel)

        def multiply_parts(x: jax.Array, part: jax.Array) -> jax.Array:
            whole = jax.lax.all_gather(part, "fsdp", axis=embed, tiled=True)
            # For a product with a gradient of its own; others do this by themselves.
            if others := tuple(axis for axis in rows if axis != "fsdp"):
                whole = jax.lax.pcast(whole, others, to="varying")
            return multiply(x, whole)

        # Manual over the axes of the rows; the compiler handles `tensor`.
        gathered: Callable[..., jax.Array] = jax.checkpoint(
            jax.shard_map(
                multiply_parts,
                in_specs=(PartitionSpec(rows), at_rest),
                out_specs=PartitionSpec(rows),
                axis_names=set(rows),
            ),
            **checkpoint,
        )
        return gathered(x, kernel)

    return dot_general


def split_rows_and_heads(function: Callable[..., Arrays]) -> Callable[..., Arrays]:
    """Makes each device run `function` on its own rows and heads.

    For kernels, which the compiler cannot split. Arguments and results are [b, t, 3, h, k],
    [b, t, h, k], [b, h, ...] of three dimensions, [b, t], or trees of these; the first is an array.
    Without a mesh, or if its devices do not divide the rows, `function` runs on the whole arrays.
    """

    def spec(x: jax.Array | jax.ShapeDtypeStruct) -> PartitionSpec:
        heads = {5: (None, None, "tensor"), 4: (None, "tensor"), 3: ("tensor",), 2: ()}[x.ndim]
        return PartitionSpec(_row_axes(), *heads)

    return _on_each_device(function, spec)


def on_own_rows(function: Callable[..., Arrays]) -> Callable[..., Arrays]:
    """Makes each device run `function` on its own rows, with whole parameters.

    For kernels, as `split_rows_and_heads`. Arguments and results with one dimension are parameters,
    the others arrays of rows [b, ...].
    """

    def spec(x: jax.Array | jax.ShapeDtypeStruct) -> PartitionSpec:
        return PartitionSpec(_row_axes()) if x.ndim > 1 else PartitionSpec()

    return _on_each_device(function, spec)


def _on_each_device(
    function: Callable[..., Arrays], spec: Callable[[Any], PartitionSpec]
) -> Callable[..., Arrays]:
    def call(*arrays: Any) -> Arrays:
        if _mesh_sizes() is None or not _divides(_row_axes(), arrays[0]):
            return function(*arrays)
        outputs = jax.eval_shape(function, *arrays)
        return jax.shard_map(
            function,
            in_specs=jax.tree.map(spec, arrays),
            out_specs=tuple(spec(x) for x in outputs),
            check_vma=False,  # pallas_call does not say how its results vary
        )(*arrays)

    return call


def sum_over_data(
    function: Callable[[Any, Any], Any], scatter_gradients: bool = False
) -> Callable[[Any, Any], Any]:
    """Makes each part of `data` run `function` on its own rows, and sums the results once.

    For gradients that add up in a loop: the compiler alone would sum them over all devices in each
    iteration.

    Args:
      function: (parameters, tree of rows [n, b, ...]) -> (gradients, tree of other sums over the
        rows). Inside it there is no axis `data`, and the other axes are as outside.
      scatter_gradients: leave each device its part of the gradients' sum, see `update_spec`.
    """

    def call(params: Any, rows: Any) -> Any:
        sizes = _mesh_sizes()
        # With all three axes XLA's partitioner aborts (jax 0.10.2), so the compiler decides then.
        if sizes is None or sizes["data"] == 1 or min(sizes["fsdp"], sizes["tensor"]) > 1:
            return function(params, rows)
        dimensions = jax.tree_util.tree_map_with_path(
            lambda path, x: (
                _update_dimension(path_name(path), x.shape, sizes) if scatter_gradients else -1
            ),
            params,
        )

        def add(gradient: jax.Array, dimension: int) -> Any:
            if dimension < 0:
                return jax.lax.psum(gradient, "data")
            return jax.lax.psum_scatter(gradient, "data", scatter_dimension=dimension, tiled=True)

        def run(params: Any, rows: Any) -> Any:
            gradients, others = function(params, rows)
            return jax.tree.map(add, gradients, dimensions), jax.lax.psum(others, "data")

        spec = jax.tree.map(lambda i: PartitionSpec(*[None] * i, *["data"] * (i >= 0)), dimensions)
        return jax.shard_map(
            run,
            in_specs=(PartitionSpec(), PartitionSpec(None, "data")),
            out_specs=(spec, PartitionSpec()),
            axis_names={"data"},
            check_vma=False,  # with it the gradients of each iteration would be summed
        )(params, rows)

    return call


def sum_over_rows(function: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """Makes each part of the rows run `function` on its own, and sums the results once.

    For losses that are computed in a loop. The compiler alone would sum the gradients of the
    parameters over all devices in each iteration of the backward pass.

    Args:
      function: (whole parameters, tree of rows [n, b, ...]) -> tree of sums over the rows.
    """

    def call(params: Any, rows: Any) -> Any:
        sizes, axes = _mesh_sizes(), _row_axes()
        if sizes is None or math.prod(sizes[axis] for axis in axes) == 1:
            return function(params, rows)
        return jax.shard_map(
            lambda params, rows: jax.lax.psum(function(params, rows), axes),
            in_specs=(PartitionSpec(), PartitionSpec(None, axes)),
            out_specs=PartitionSpec(),
            axis_names=set(axes),
            check_vma=False,  # with it the gradients of each iteration would be summed
        )(params, rows)

    return call


def is_split(axis: str) -> bool:
    """Whether there is a mesh with more than one device along the axis."""
    sizes = _mesh_sizes()
    return sizes is not None and sizes[axis] > 1


def split_rows(x: jax.Array, *others: str | None) -> jax.Array:
    """Constrains the rows of an activation [b, ...] to stay on their devices.

    Args:
      x: [b, ...].
      *others: mesh axes of the dimensions after the first; none = not split.
    """
    return constrain(x, _row_axes(), *others)


def constrain(x: jax.Array, *axes: str | tuple[str, ...] | None) -> jax.Array:
    """Constrains how `x` is split, by the mesh axes of its first dimensions."""
    if _mesh_sizes() is None:
        return x
    return cast(jax.Array, jax.lax.with_sharding_constraint(x, PartitionSpec(*axes)))


def _row_axes() -> tuple[str, ...]:
    """The axes that split rows here: inside `sum_over_data` only `fsdp`."""
    manual = jax.sharding.get_abstract_mesh().manual_axes
    return tuple(axis for axis in ROWS if axis not in manual)


def _divides(axes: Sequence[str], x: jax.Array) -> bool:
    sizes = _mesh_sizes()
    return sizes is not None and x.shape[0] % math.prod(sizes[axis] for axis in axes) == 0


def _mesh_sizes() -> Mapping[str, int] | None:
    """Sizes of the present mesh by axis; None if there is none, or it has other axes."""
    mesh = jax.sharding.get_abstract_mesh()
    return dict(mesh.shape) if set(AXES) <= set(mesh.axis_names) else None
