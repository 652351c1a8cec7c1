"""Arithmetic and memory traffic of one step on one device, from the optimized program."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

from bertjax.plan.hlo import Array, Instruction, Module

# These name memory and move nothing.
_FREE = {
    "parameter", "constant", "get-tuple-element", "tuple", "bitcast", "while", "conditional",
    "call", "after-all", "partition-id", "replica-id", "opt-barrier", "optimization-barrier",
    "async-start", "async-update", "async-done", "copy-done", "slice-done", "all-reduce-done",
    "all-gather-done", "collective-permute-done",
}  # fmt: skip
_FREE_CALLS = {
    "ConcatBitcast", "AllocateBuffer", "AssumeGatherIndicesInBound",
    "GatherScatterIndicesBitpacked", "Sharding",
}  # fmt: skip
_KERNELS = re.compile(r"tpu_custom_call|triton|mosaic|cudnn")
_PRODUCTS = re.compile(r"gemm|matmul")  # __cublas$gemm, __cublas$lt$matmul
_READS_A_PART = ("dynamic-slice", "slice", "gather")


def matmul_flops(module: Module) -> float:
    """Floating-point operations of matrix products on one device in one step.

    Counts products (which a TPU program writes as convolutions) times the executions of the loops
    around them, and the stated cost of kernels (see `uncounted_kernels`). Elementwise work does not
    count, because the matrix units do not do it.
    """
    flops = (
        module.executions[name] * instruction_flops(instruction, module.computations[name])
        for name, instruction in module.executed()
    )
    return sum(flops, 0.0)


def instruction_flops(instruction: Instruction, around: dict[str, Instruction]) -> float:
    """The part of one instruction in `matmul_flops`; `around` is its computation."""
    if instruction.opcode == "dot":
        contracting = instruction.attribute("lhs_contracting_dims") or ""
        return _product_flops(instruction, around, contracting)
    if instruction.opcode == "convolution":
        return _convolution_flops(instruction, around)
    if instruction.opcode == "custom-call":
        target = instruction.attribute("custom_call_target") or ""
        if _PRODUCTS.search(target):
            match = re.search(r'"lhs_contracting_dimensions":\[([^\]]*)\]', instruction.attributes)
            return _product_flops(instruction, around, match[1].replace('"', "") if match else "")
        return _kernel_flops(instruction) or 0.0
    return 0.0


def uncounted_kernels(module: Module) -> list[str]:
    """Names of the kernels whose arithmetic is not known, and so not in `matmul_flops`.

    A kernel is a separate program: only the cost that its author states can be read. XLA's text
    contains it on TPU, and leaves it out on GPU.
    """
    return sorted(
        instruction.name
        for _, instruction in module.executed()
        if is_kernel(instruction) and _kernel_flops(instruction) is None
    )


def is_kernel(instruction: Instruction) -> bool:
    """Whether it is a separate program that the compiler only calls, such as our attention."""
    target = instruction.attribute("custom_call_target") or ""
    return instruction.opcode == "custom-call" and bool(_KERNELS.search(target))


def _kernel_flops(instruction: Instruction) -> float | None:
    """The cost that the author of a kernel states; for attention see `models/kernels`."""
    if not is_kernel(instruction):
        return None
    stated = re.search(r'"cost_estimate":\{"flops":"?(\d+)', instruction.attributes)
    return float(stated[1]) if stated else None


def _product_flops(
    instruction: Instruction, around: dict[str, Instruction], contracting: str
) -> float:
    left = around[instruction.operands[0]].arrays[0].dims
    depth = math.prod(left[int(axis)] for axis in contracting.split(",") if axis)
    return 2.0 * math.prod(instruction.arrays[0].dims) * depth


def _convolution_flops(instruction: Instruction, around: dict[str, Instruction]) -> float:
    """2 * (places of the result) * (kernel elements that meet a real input there) * inputs.

    A batched product becomes a convolution over a dilated input, most of whose places are holes.
    """
    left, right = (around[name].arrays[0].dims for name in instruction.operands)
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.attributes)
    assert labels is not None, instruction.name
    left_labels, right_labels, out_labels = labels.groups()
    out = instruction.arrays[0].dims
    spatial = sorted(label for label in left_labels if label.isdigit())
    window = _window(instruction, len(spatial))
    meetings = 1
    for i, label in enumerate(spatial):
        meetings *= _meetings(
            left[left_labels.index(label)],
            right[right_labels.index(label)],
            out[out_labels.index(label)],
            *window[i],
        )
    batch = left[left_labels.index("b")]
    groups = int(instruction.attribute("batch_group_count") or 1)
    features = out[out_labels.index("f")] * right[right_labels.index("i")]
    return 2.0 * batch / groups * features * meetings


def _window(instruction: Instruction, rank: int) -> list[tuple[int, int, int, int]]:
    """(stride, padding before, input dilation, kernel dilation) of each spatial dimension."""
    fields = dict(re.findall(r"(\w+)=(\S+)", instruction.attribute("window") or ""))

    def values(name: str, default: int) -> list[int]:
        if name not in fields:
            return [default] * rank
        return [int(value.split("_")[0]) for value in fields[name].split("x")]

    sizes = values("stride", 1), values("pad", 0), values("lhs_dilate", 1), values("rhs_dilate", 1)
    return list(zip(*sizes, strict=True))


def _meetings(
    size: int, kernel: int, out: int, stride: int, pad: int, dilation: int, kernel_dilation: int
) -> int:
    """Pairs of a result place and a kernel element that meet an input element, in one dimension."""
    places = (
        place * stride + element * kernel_dilation - pad
        for element in range(kernel)
        for place in range(out)
    )
    return sum(at % dilation == 0 and 0 <= at // dilation < size for at in places)


def memory_bytes(module: Module) -> float:
    """Approximate bytes that one device reads from and writes to its main memory in one step.

    Each instruction outside a fusion reads its operands and writes its result once. Values inside a
    fusion, and arrays in VMEM, cost nothing. If an operand is only sliced or gathered from, or a
    result is updated in place, only that part counts. On a TPU the bytes include the padding of
    tiles. Caches could make the traffic smaller, spills larger.
    """
    traffic = (
        module.executions[name] * instruction_bytes(instruction, module.computations[name], module)
        for name, instruction in module.executed()
        if name not in module.fused
    )
    return sum(traffic, 0.0)


def instruction_bytes(
    instruction: Instruction, around: dict[str, Instruction], module: Module
) -> float:
    """The part of one instruction in `memory_bytes`; `around` is its computation."""
    arrays = _traffic(instruction, around, module)
    return sum(array.padded_bytes for array in arrays if array.in_main_memory)


def is_free(instruction: Instruction) -> bool:
    """Whether it only names memory or controls other instructions: nothing runs for it."""
    target = (instruction.attribute("custom_call_target") or "").strip('"')
    return instruction.opcode in _FREE or target in _FREE_CALLS


def _traffic(
    instruction: Instruction, around: dict[str, Instruction], module: Module
) -> Iterator[Array]:
    """The arrays that an instruction reads and writes."""
    opcode = instruction.opcode
    if is_free(instruction):
        return
    operands = [around[name] for name in instruction.operands if name in around]
    if opcode in ("copy-start", "slice-start"):
        # A copy between memory spaces: (to, from, context) or ((from), to, context).
        target = instruction.arrays[0 if opcode == "copy-start" else 1]
        yield target
        source = operands[0].arrays[0]
        yield Array(target.dtype, target.dims, source.layout)  # only the part that is copied
    elif opcode == "fusion":
        inside = module.computations[instruction.called[0]]
        yield from _fusion_traffic(module, inside, operands)
    elif opcode in _READS_A_PART:
        yield from (*instruction.arrays, *instruction.arrays)
    elif opcode == "dynamic-update-slice":
        yield from (*operands[1].arrays, *operands[1].arrays)
    elif opcode == "scatter":
        yield from (*operands[-1].arrays, *operands[-1].arrays, *operands[-1].arrays)
    else:
        for operand in {x.name: x for x in operands}.values():  # parts of one array, too
            yield from operand.arrays
        product = _PRODUCTS.search(instruction.attribute("custom_call_target") or "")
        # cuBLAS's workspace is among the results.
        yield from (a for a in instruction.arrays if not (product and a.dtype == "s8"))


def _fusion_traffic(
    module: Module, inside: dict[str, Instruction], operands: list[Instruction]
) -> Iterator[Array]:
    for parameter in inside.values():
        if parameter.opcode == "parameter":
            whole = operands[int(parameter.arguments)].arrays
            parts, copied = _parts_read(module, inside, parameter.name)
            if parts is None or copied:
                yield from whole
            else:
                yield from (Array(a.dtype, a.dims, whole[0].layout) for a in parts)
    yield from _written(module, inside)


def _parts_read(
    module: Module, inside: dict[str, Instruction], name: str
) -> tuple[list[Array] | None, bool]:
    """The parts of a value that a fusion reads (None = all), and whether its result is a copy."""
    parts: list[Array] = []
    copied = inside[name].is_root
    for user in inside.values():
        if name not in user.operands:
            continue
        follow = user.opcode in ("bitcast", "copy")  # computed for the requested parts
        if user.opcode in _READS_A_PART and user.operands[0] == name:
            parts += user.arrays
        elif user.opcode == "fusion":
            nested = module.computations[user.called[0]]
            number = str(user.operands.index(name))
            parameter = next(
                x for x in nested.values() if x.opcode == "parameter" and x.arguments == number
            )
            found, follow = _parts_read(module, nested, parameter.name)
            if found is None:
                return None, False
            parts += found
        elif not follow and not (
            # Updated in place: not read.
            user.opcode == "dynamic-update-slice" and user.operands[0] == name
        ):
            return None, False
        if follow:
            found, reaches = _parts_read(module, inside, user.name)
            if found is None:
                return None, False
            parts += found
            copied = copied or reaches
    return parts, copied


def _written(module: Module, inside: dict[str, Instruction]) -> Iterator[Array]:
    """Bytes that a fusion writes: its results, or the part that is updated in place."""
    root = next(x for x in inside.values() if x.is_root)
    for result in [inside[x] for x in root.operands] if root.opcode == "tuple" else [root]:
        whole = result.arrays
        while result.opcode == "bitcast" and result.operands[0] in inside:
            result = inside[result.operands[0]]
        if result.opcode == "dynamic-update-slice":
            part = inside[result.operands[1]].arrays[0]
            yield Array(part.dtype, part.dims, whole[0].layout)
        elif result.opcode == "fusion":
            for array in _written(module, module.computations[result.called[0]]):
                yield Array(array.dtype, array.dims, whole[0].layout)
        elif result.opcode != "parameter":
            yield from whole
