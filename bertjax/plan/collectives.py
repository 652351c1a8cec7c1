"""The communication of the devices in one step, read from the optimized program.

Sizes are of the whole array that a collective works on, on one device: the operand of an
all-reduce, a reduce-scatter, an all-to-all or a permute, the result of an all-gather. In a ring of
n devices each of them then sends 2 (n - 1) / n of it for an all-reduce, (n - 1) / n for the others
(Thakur et al. 2005, "Optimization of Collective Communication Operations in MPICH"), and all of it
for a permute.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Sequence
from typing import cast

import numpy as np

from bertjax.plan.hlo import Array, Instruction, Module

KINDS = ("all-reduce", "reduce-scatter", "all-gather", "all-to-all", "collective-permute")


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective of the program.

    Attributes:
      kind: one of KINDS.
      axes: mesh axes that its groups span; empty if each device is alone.
      group_size: devices in one group.
      count: executions in one step.
      bytes_each: of the whole array, see the top of this file.
      across_slices: whether a group has devices of several slices.
      arrays: its operands, as on one device.
    """

    kind: str
    axes: tuple[str, ...]
    group_size: int
    count: int
    bytes_each: float
    across_slices: bool
    arrays: tuple[Array, ...]

    @property
    def sent_bytes(self) -> float:
        """Bytes that one device sends in one step."""
        n = self.group_size
        share = 1.0 if self.kind == "collective-permute" else (n - 1) / n
        return self.count * self.bytes_each * share * (2 if self.kind == "all-reduce" else 1)


def read_collectives(
    module: Module,
    mesh_shape: dict[str, int],
    slice_of_device: Sequence[int] | None = None,
) -> list[Collective]:
    """Finds the collectives of a program, each with its count over all loops.

    A TPU program runs one collective in pieces, inside several fusions. Pieces share a channel and
    are counted once. The compiler writes a reduce-scatter as an all-reduce of which each device
    keeps its slice; this counts as a reduce-scatter. Between slices there is no collective: each
    chip passes its share to the runtime ("megascale") as a send that names the operation.

    Args:
      module: the compiled program of one device.
      mesh_shape: axis -> size, in the order of the mesh.
      slice_of_device: slice number of each device in mesh order; None = one slice.

    Returns:
      One entry per collective; those of one device are left out.
    """
    owners = _owners(module)
    found: dict[tuple[str, ...], Collective] = {}
    for name, instruction in module.executed():
        kind = instruction.opcode.removesuffix("-start")
        between_slices = re.search(r'_megascale_transfer_type="(\w+)"', instruction.attributes)
        if kind == "send" and between_slices:
            kind = between_slices[1].lower().replace("_", "-")
            groups = _fellows(slice_of_device or [])
        elif kind in KINDS:
            groups = _groups(instruction, math.prod(mesh_shape.values()))
        else:
            continue
        if max(len(group) for group in groups) < 2:
            continue
        collective = _read(instruction, kind, groups, module, name, mesh_shape, slice_of_device)
        key: tuple[str, ...] = (name, instruction.name)
        if name in module.fused and (channel := instruction.attribute("channel_id")):
            # The pieces of one collective agree in everything else.
            key = (owners[name], collective.kind, channel, str(collective.arrays))
        found.setdefault(key, collective)
    return list(found.values())


def _read(
    instruction: Instruction,
    kind: str,
    groups: list[list[int]],
    module: Module,
    computation: str,
    mesh_shape: dict[str, int],
    slice_of_device: Sequence[int] | None,
) -> Collective:
    arrays, around = instruction.arrays, module.computations[computation]
    if kind == "all-gather":
        if instruction.opcode.endswith("-start"):
            arrays = arrays[len(arrays) // 2 :]  # (operands, results)
    elif instruction.opcode == "send":
        arrays = arrays[:1]  # the data, a context and a token
    elif kind != "all-reduce":
        arrays = tuple(a for x in instruction.operands for a in around[x].arrays)
    sliced = any(x.opcode == "dynamic-slice" for x in around.values())
    if kind == "all-reduce" and computation in module.fused and sliced:
        kind = "reduce-scatter"  # each device keeps the slice of its number
    slices = [{slice_of_device[i] for i in group} for group in groups] if slice_of_device else []
    return Collective(
        kind=kind,
        axes=_axes(groups, mesh_shape),
        group_size=max(len(group) for group in groups),
        count=module.executions[computation],
        bytes_each=sum(array.num_bytes for array in arrays),
        across_slices=any(len(group) > 1 for group in slices),
        arrays=tuple(dataclasses.replace(array, layout="") for array in arrays),
    )


def _fellows(slice_of_device: Sequence[int]) -> list[list[int]]:
    """The devices at the same place in each slice, which communicate between slices."""
    slices: dict[int, list[int]] = {}
    for device, slice_number in enumerate(slice_of_device):
        slices.setdefault(slice_number, []).append(device)
    return [list(group) for group in zip(*slices.values(), strict=True)]


def _owners(module: Module) -> dict[str, str]:
    """Which computation outside any fusion each computation belongs to."""
    owners = {name: name for name in module.computations} | {
        called: name
        for name, instructions in module.computations.items()
        for instruction in instructions.values()
        if instruction.opcode == "fusion"
        for called in instruction.called
    }

    def outermost(name: str) -> str:
        return name if owners[name] == name else outermost(owners[name])

    return {name: outermost(name) for name in owners}


def _groups(instruction: Instruction, num_devices: int) -> list[list[int]]:
    """Device numbers, in mesh order, of each group.

    Understands lists {{0,1},{2,3}}, XLA's iota form [2,2]<=[2,2]T(1,0), and its mesh form
    mesh['x'=2,'y'=2], device_ids=(...) {'y'}.
    """
    text = instruction.attributes
    pairs = re.search(r"source_target_pairs=\{(\{.*?\})\}", text)
    if pairs:
        return [[int(x) for x in pair.split(",")] for pair in re.findall(r"\{([\d,]+)\}", pairs[1])]
    lists = re.search(r"replica_groups=\{((?:\{[\d,]*\},?)*)\}", text)
    if lists:
        groups = [[int(x) for x in g.split(",")] for g in re.findall(r"\{([\d,]+)\}", lists[1])]
        return groups or [list(range(num_devices))]
    iota = re.search(r"replica_groups=(\[[\d,]+\]<=\[[\d,]+\](?:T\([\d,]+\))?)", text)
    if iota:
        return cast(list[list[int]], _iota(iota[1]).tolist())
    mesh = re.search(
        r"replica_groups=mesh\[([^\]]*)\]"
        r"(?:, device_ids=\((.*?\]?(?:T\([\d,]+\))?)\))? \{([^}]*)\}",
        text,
    )
    if mesh:
        axes = re.findall(r"'(\w+)'=(\d+)", mesh[1])
        sizes = [int(size) for _, size in axes]
        devices = np.arange(math.prod(sizes)).reshape(sizes)
        if mesh[2]:
            devices = _device_ids(mesh[2]).reshape(sizes)
        chosen = [[name for name, _ in axes].index(x) for x in re.findall(r"'(\w+)'", mesh[3])]
        others = [i for i in range(len(sizes)) if i not in chosen]
        grouped = devices.transpose(*others, *chosen)
        return grouped.reshape(-1, math.prod(sizes[i] for i in chosen)).tolist()
    return [list(range(num_devices))]


def _device_ids(text: str) -> np.ndarray:
    """The devices of a mesh: a list, [2,2]<=[4], or [2,2]T(1,0), short for [4]<=[2,2]T(1,0)."""
    if "T(" in text and "<=" not in text:
        shape, _, order = text.partition("T")
        text = f"[{math.prod(int(x) for x in re.findall(r'[0-9]+', shape))}]<={shape}T{order}"
    if "<=" in text:
        return _iota(text)
    return np.array([int(x) for x in re.findall(r"\d+", text)])


def _iota(text: str) -> np.ndarray:
    """[2,4]<=[4,2]T(1,0): numbers counted up in the shape on the right, transposed, reshaped."""
    match = re.fullmatch(r"\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", text)
    if match is None:
        raise ValueError(f"replica groups {text!r} are in a form that is not known here")
    target, source = ([int(x) for x in match[i].split(",")] for i in (1, 2))
    numbers = np.arange(math.prod(source)).reshape(source)
    if match[3]:
        numbers = numbers.transpose([int(x) for x in match[3].split(",")])
    return numbers.reshape(target)


def _axes(groups: list[list[int]], mesh_shape: dict[str, int]) -> tuple[str, ...]:
    """Names of the axes along which the devices of some group differ."""
    places = [np.unravel_index(group, tuple(mesh_shape.values())) for group in groups]
    return tuple(
        axis for i, axis in enumerate(mesh_shape) if any(np.ptp(place[i]) for place in places)
    )
