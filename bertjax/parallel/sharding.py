"""The device mesh, and the shardings of rows and parameters on it (see `parallel.partition`).

With several slices, each takes its part of `data`, the axis that communicates least.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from bertjax.config import Config, ConfigError, MeshConfig
from bertjax.parallel.partition import AXES, ROWS, parameter_spec, path_name, update_spec


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Arranges the devices (default: all) as `config` says; -1 = the remaining devices.

    Raises:
      ConfigError: the product of the axes is not the number of devices, or the slices do not
        divide `data`.
    """
    devices = jax.devices() if devices is None else devices
    sizes = config.axes()
    fixed = math.prod(size for size in sizes.values() if size != -1)
    shape = [len(devices) // fixed if sizes[axis] == -1 else sizes[axis] for axis in AXES]
    if math.prod(shape) != len(devices):
        multiple = "a multiple of " if -1 in sizes.values() else ""
        raise ConfigError(
            f"config.mesh = {sizes} needs {multiple}{fixed} devices, but there are "
            f"{len(devices)} ({devices[0].device_kind}): change an axis, or set one to -1 to fill"
        )
    # Auto: the compiler propagates shardings; stock Linen layers fail under Explicit axes.
    auto = (AxisType.Auto,) * len(AXES)
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if slices == 1:
        return jax.make_mesh(tuple(shape), AXES, auto, devices=devices)
    if shape[0] % slices:
        raise ConfigError(
            f"config.mesh.data = {shape[0]} is not divisible by the {slices} slices: each slice "
            "takes its part of the data axis, fsdp and tensor stay inside a slice"
        )
    within = (shape[0] // slices, *shape[1:])
    return Mesh(
        mesh_utils.create_hybrid_device_mesh(within, (slices, 1, 1), devices), AXES, axis_types=auto
    )


def check_fits_mesh(config: Config, mesh: Mesh) -> None:
    """Checks that batches, heads, feed-forward and width divide over the mesh.

    Raises:
      ConfigError: naming the field, the mesh axis and the divisor.
    """
    sizes = dict(mesh.shape)
    rows, parts = sizes["data"] * sizes["fsdp"], config.num_microbatches or 1
    for i, phase in enumerate(config.resolved_phases()):
        if phase.global_batch_size % (rows * parts):
            raise ConfigError(
                f"the global_batch_size {phase.global_batch_size} of phase {i} is not divisible by "
                f"{rows * parts} (mesh.data {sizes['data']} x mesh.fsdp {sizes['fsdp']} x "
                f"num_microbatches {parts})"
            )
    model = config.model
    for name, value, axis in (
        ("num_heads", model.num_heads, "tensor"),
        ("intermediate_size", model.intermediate_size, "tensor"),
        ("hidden_size", model.hidden_size, "fsdp"),
    ):
        if value % sizes[axis]:
            raise ConfigError(
                f"config.model.{name} = {value} is not divisible by mesh.{axis} = {sizes[axis]}"
            )


def parameter_shardings(params: Any, mesh: Mesh) -> Any:
    """Returns a tree like `params` (arrays or shapes) with a `NamedSharding` at each leaf."""

    def sharding(path: Any, leaf: jax.Array) -> NamedSharding:
        return NamedSharding(mesh, parameter_spec(path_name(path), leaf.shape, dict(mesh.shape)))

    return jax.tree_util.tree_map_with_path(sharding, params)


def state_shardings(state: Any, params: Any, mesh: Mesh, shard_optimizer: bool = False) -> Any:
    """Returns a tree like an optimizer state with a `NamedSharding` at each leaf.

    An array with a parameter's shape, and a path that ends with the parameter's, has its sharding,
    or with `shard_optimizer` that of its update. All others are whole on each device: counts, and
    the row and column means of factored moments, which are as small as biases.

    Args:
      state: the optimizer state for `params`: arrays or shapes, in any structure.
      params: nested dicts of arrays or shapes.
      mesh: with the axes of `partition.AXES`.
      shard_optimizer: whether the state is split over `data`, too.
    """
    spec = update_spec if shard_optimizer else parameter_spec
    shapes = {path_name(path): x.shape for path, x in jax.tree_util.tree_leaves_with_path(params)}

    def sharding(path: Any, leaf: Any) -> NamedSharding:
        words = path_name(path).split("/")
        for i in range(len(words)):
            name = "/".join(words[i:])
            if shapes.get(name) == leaf.shape:
                return NamedSharding(mesh, spec(name, leaf.shape, dict(mesh.shape)))
        return replicated(mesh)

    return jax.tree_util.tree_map_with_path(sharding, state)


def row_sharding(mesh: Mesh) -> NamedSharding:
    """Rows over (data, fsdp); everything else of a batch is whole on each device."""
    return NamedSharding(mesh, PartitionSpec(ROWS))


def local_rows(mesh: Mesh, global_batch_size: int) -> np.ndarray:
    """The rows of a global batch on the devices of this process, int64 [b], ascending.

    If processes share rows (a tensor axis spans them), each gets all of its rows.
    """
    places = row_sharding(mesh).addressable_devices_indices_map((global_batch_size,))
    rows = np.arange(global_batch_size)
    return np.unique(np.concatenate([rows[index] for index in places.values()]))


def replicated(mesh: Mesh) -> NamedSharding:
    """A sharding with the same value on every device."""
    return NamedSharding(mesh, PartitionSpec())
