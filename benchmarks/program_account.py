"""What a compiled step makes of a GPU: kernels, bytes, arithmetic and transposes, from its text.

Counted from the optimised HLO (`compiled.as_text()`) by the rules of bertjax.planning: every
instruction outside a fusion is one kernel that reads its operands and writes its results once. So
bytes and arithmetic are facts of the program and no measurement; caches can make it less. The
arithmetic of kernels of our own is not in the text of a GPU's program, and not counted.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from benchmarks.step_profile import direction_of, part_of
from bertjax.plan import hlo, work
from bertjax.plan.hlo import Array, Instruction, Module

_KINDS = (  # what else a kernel does is told by the first of these that is in it
    ("scatter", "scatter"),
    ("reduce", "reductions"),
    ("sort", "sorts"),
)


@dataclasses.dataclass(frozen=True)
class Kernel:
    """One instruction that a GPU runs as a kernel, a copy or a call of a library.

    Attributes:
      name: in the HLO.
      kind: products, own kernels, transposes, scatter, reductions, sorts or other.
      part: of the model that it stems from, as benchmarks.step_profile has them.
      direction: forward or backward.
      times: a step runs it so often.
      num_bytes: read and written, each time.
      flops: of matrix products, each time.
      transposes: of activations that are inside it.
    """

    name: str
    kind: str
    part: str
    direction: str
    times: int
    num_bytes: float
    flops: float
    transposes: int


def account(text: str, tokens: int, width: int) -> list[Kernel]:
    """Reads the kernels of a step.

    Args:
      text: of the optimised program.
      tokens: of a batch, rows x length.
      width: hidden size. An array counts as an activation where its elements are a multiple of
        `tokens` and no fewer than tokens x width: parameters are smaller or no such multiple.
    """
    module = hlo.parse(text)
    kernels = []
    for name, instructions in module.computations.items():
        times = module.executions[name]
        if not times or name in module.fused:
            continue
        for instruction in instructions.values():
            if not work.is_free(instruction):
                kernels.append(_kernel(instruction, instructions, module, times, tokens, width))
    return kernels


def totals(kernels: Iterable[Kernel]) -> dict[str, float]:
    """Sums of one step: kernels, gigabytes, teraflop and transposes of activations."""
    kernels = list(kernels)
    return {
        "kernels": sum(x.times for x in kernels),
        "gigabytes": round(sum(x.times * x.num_bytes for x in kernels) / 1e9, 2),
        "teraflop": round(sum(x.times * x.flops for x in kernels) / 1e12, 3),
        "activation_transposes": sum(x.times * x.transposes for x in kernels),
    }


def grouped(kernels: Iterable[Kernel], key: Callable[[Kernel], str]) -> dict[str, dict[str, float]]:
    """Totals of the kernels of each key, those that move most first."""
    groups: dict[str, list[Kernel]] = {}
    for kernel in kernels:
        groups.setdefault(key(kernel), []).append(kernel)
    sums = {name: totals(group) for name, group in groups.items()}
    return dict(sorted(sums.items(), key=lambda item: -item[1]["gigabytes"]))


def by_kind(kernel: Kernel) -> str:
    """The key of a table by kind."""
    return kernel.kind


def by_part(kernel: Kernel) -> str:
    """The key of a table by part of the model, direction and kind."""
    return f"{kernel.part}, {kernel.direction}: {kernel.kind}"


def table(groups: dict[str, dict[str, float]]) -> str:
    """For the terminal."""
    lines = [f"{'':60}{'kernels':>8}{'GB':>9}{'TFLOP':>8}{'transposes':>12}"]
    for name, sums in groups.items():
        lines.append(
            f"{name:60}{sums['kernels']:>8,}{sums['gigabytes']:>9,.2f}{sums['teraflop']:>8.3f}"
            f"{sums['activation_transposes']:>12}"
        )
    return "\n".join(lines)


def _kernel(
    instruction: Instruction,
    around: dict[str, Instruction],
    module: Module,
    times: int,
    tokens: int,
    width: int,
) -> Kernel:
    inside = list(_inside(instruction, around, module))
    flops = sum(work.instruction_flops(x, others) for x, others in inside)
    transposes = sum(
        _moves(x, others) and _is_activation(x.arrays[0], tokens, width) for x, others in inside
    )
    origin = _origin(instruction) or next(filter(None, (_origin(x) for x, _ in inside[::-1])), "")
    return Kernel(
        name=instruction.name,
        kind=_kind(instruction, [x.opcode for x, _ in inside], flops, transposes),
        part=part_of(origin) if origin else "unnamed",
        direction=direction_of(origin),
        times=times,
        num_bytes=work.instruction_bytes(instruction, around, module),
        flops=flops,
        transposes=transposes,
    )


def _kind(instruction: Instruction, opcodes: list[str], flops: float, transposes: int) -> str:
    if work.is_kernel(instruction):
        return "own kernels"
    if flops:
        return "products"
    if transposes:
        return "transposes"
    return next((kind for opcode, kind in _KINDS if opcode in opcodes), "other")


def _inside(
    instruction: Instruction, around: dict[str, Instruction], module: Module
) -> Iterator[tuple[Instruction, dict[str, Instruction]]]:
    """What runs in one kernel, each with its computation: what was fused, or itself."""
    if instruction.opcode != "fusion":
        yield instruction, around
        return
    for name in instruction.called:
        for x in module.computations[name].values():
            yield from _inside(x, module.computations[name], module)


def _origin(instruction: Instruction) -> str:
    found = re.search(r'op_name="([^"]*)"', instruction.attributes)
    return found[1] if found else ""


def _is_activation(array: Array, tokens: int, width: int) -> bool:
    size = math.prod(array.dims)
    return size >= tokens * width and size % tokens == 0


def _moves(instruction: Instruction, around: dict[str, Instruction]) -> bool:
    """Whether an instruction brings the elements of an array into another order in memory."""
    if instruction.opcode not in ("transpose", "copy") or instruction.operands[0] not in around:
        return False
    source, target = around[instruction.operands[0]].arrays[0], instruction.arrays[0]
    axes: Any = range(len(source.dims))
    if instruction.opcode == "transpose":
        axes = [int(x) for x in (instruction.attribute("dimensions") or "").split(",") if x]
    # The dimensions of the source in the order of their strides, before and after.
    before = [axis for axis in _major_to_minor(source) if source.dims[axis] > 1]
    after = [axes[axis] for axis in _major_to_minor(target) if target.dims[axis] > 1]
    return before != after


def _major_to_minor(array: Array) -> list[int]:
    order = [int(x) for x in array.layout.partition(":")[0].split(",") if x]
    return order[::-1] if order else list(range(len(array.dims)))
