"""The device mesh, and where each parameter lies on it.

Three mesh axes: `data` splits rows, `fsdp` splits rows and parameters, `tensor` splits heads, the
feed-forward layer and the vocabulary. Of several slices each takes its part of `data`, the axis
that talks least. A table gives every parameter path its logical axes, and rules map logical axes to
mesh axes (the names are those of T5X and MaxText).
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from bertjax.config import Config, ConfigError, MeshConfig

AXES = ("data", "fsdp", "tensor")
ROWS = PartitionSpec(("data", "fsdp"))  # of every array whose first dimension is rows

# Path pattern -> logical axis of each dimension. Every parameter matches exactly one line.
PARAMETER_AXES: tuple[tuple[str, tuple[str | None, ...]], ...] = (
    (r"embeddings/word/embedding", ("vocab", "embed")),
    (r"embeddings/(position|token_type)/embedding", (None, "embed")),
    (r"embeddings/layer_norm/(scale|bias)", (None,)),
    (r"encoder/layer_\d+/attention/(query|key|value)/kernel", ("embed", "heads")),
    (r"encoder/layer_\d+/attention/(query|key|value)/bias", ("heads",)),
    (r"encoder/layer_\d+/attention/output/kernel", ("heads", "embed")),
    (r"encoder/layer_\d+/attention/output/bias", (None,)),
    (r"encoder/layer_\d+/mlp/intermediate/kernel", ("embed", "mlp")),
    (r"encoder/layer_\d+/mlp/intermediate/bias", ("mlp",)),
    (r"encoder/layer_\d+/mlp/output/kernel", ("mlp", "embed")),
    (r"encoder/layer_\d+/mlp/output/bias", (None,)),
    (r"encoder/layer_\d+/(attention|mlp)_layer_norm/(scale|bias)", (None,)),
    (r"(pooler|mlm_head/dense|nsp_head)/kernel", ("embed", None)),
    (r"(pooler|mlm_head/dense|nsp_head)/bias", (None,)),
    (r"mlm_head/layer_norm/(scale|bias)", (None,)),
    (r"mlm_head/output/bias", ("vocab",)),
)
RULES = {"embed": "fsdp", "heads": "tensor", "mlp": "tensor", "vocab": "tensor", None: None}


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Arranges the devices (default: all) as `config` says; -1 takes what the others leave.

    Raises:
      ConfigError: the axes do not multiply to the number of devices, or `data` does not divide
        over the slices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = dataclasses.asdict(config)
    fixed = 1
    for size in sizes.values():
        fixed *= 1 if size == -1 else size
    shape = [len(devices) // fixed if sizes[axis] == -1 else sizes[axis] for axis in AXES]
    if shape[0] * shape[1] * shape[2] != len(devices):
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
    """Checks that batches, heads, feed-forward, width and vocabulary divide over the mesh.

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
        ("vocab_size", model.vocab_size, "tensor"),
        ("hidden_size", model.hidden_size, "fsdp"),
    ):
        if value % sizes[axis]:
            raise ConfigError(
                f"config.model.{name} = {value} is not divisible by mesh.{axis} = {sizes[axis]}"
            )


def path_name(path: Sequence[Any]) -> str:
    """Returns a parameter's path as `encoder/layer_0/...` from JAX's key path."""
    return "/".join(str(key.key) for key in path)


def logical_axes(path: str, shape: Sequence[int]) -> tuple[str | None, ...]:
    """Returns the logical axis of each dimension of the parameter at `path`.

    Raises:
      ValueError: no line of the table matches, or several do, or the rank differs.
    """
    found = [axes for pattern, axes in PARAMETER_AXES if re.fullmatch(pattern, path)]
    if len(found) != 1 or len(found[0]) != len(shape):
        raise ValueError(
            f"parameter {path!r} of shape {tuple(shape)} matches {len(found)} lines of "
            f"sharding.PARAMETER_AXES ({found}); exactly one of its rank is needed"
        )
    return found[0]


def parameter_shardings(params: Any, mesh: Mesh) -> Any:
    """Returns a tree like `params` (arrays or shapes) with a `NamedSharding` at each leaf."""

    def sharding(path, leaf):
        axes = logical_axes(path_name(path), leaf.shape)
        return NamedSharding(mesh, PartitionSpec(*(RULES[axis] for axis in axes)))

    return jax.tree_util.tree_map_with_path(sharding, params)


def row_sharding(mesh: Mesh) -> NamedSharding:
    """Rows over (data, fsdp); everything else of a batch is whole on each device."""
    return NamedSharding(mesh, ROWS)


def local_rows(mesh: Mesh, global_batch_size: int) -> np.ndarray:
    """Which rows of a global batch lie on the devices of this process, int64 [b], ascending.

    Processes that share rows (a tensor axis that spans them) each get all of theirs.
    """
    places = row_sharding(mesh).addressable_devices_indices_map((global_batch_size,))
    rows = np.arange(global_batch_size)
    return np.unique(np.concatenate([rows[index] for index in places.values()]))


def replicated(mesh: Mesh) -> NamedSharding:
    """The same on every device."""
    return NamedSharding(mesh, PartitionSpec())
