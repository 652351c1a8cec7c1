"""Reads the text of an optimized XLA program: instructions, shapes, and executions of each.

XLA's own cost analysis counts the body of a loop once, but a step has loops over layers and
microbatches. So instructions are counted here, with the trip counts of the loops around them.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Iterator

_ITEM_BITS = {
    "pred": 8, "s4": 4, "u4": 4, "s8": 8, "u8": 8, "s16": 16, "u16": 16, "bf16": 16, "f16": 16,
    "s32": 32, "u32": 32, "f32": 32, "s64": 64, "u64": 64, "f64": 64, "c64": 64, "c128": 128,
    "f8e4m3fn": 8, "f8e5m2": 8, "f8e4m3b11fnuz": 8, "token": 0,
}  # fmt: skip
_SHAPE = re.compile(r"([a-z][a-z0-9]*)\[([\d,]*)\](?:\{([^}]*)\})?")
_COMPUTATION = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"\s+(ROOT )?%?([\w.\-]+) = (.*)$")
_NAME = re.compile(r"%([\w.\-]+)")
_CALLED = re.compile(r"\b(?:calls|to_apply|body|condition|branch_computations)=\{?([^,}]+)")


@dataclasses.dataclass(frozen=True)
class Array:
    """One array in the memory of a device."""

    dtype: str
    dims: tuple[int, ...]
    layout: str = ""  # minor to major, tiles and memory space, as XLA writes them

    @property
    def num_bytes(self) -> float:
        """Bytes of the elements."""
        return math.prod(self.dims) * _ITEM_BITS[self.dtype] / 8

    @property
    def padded_bytes(self) -> float:
        """Bytes with the minor dimensions rounded up to whole tiles, as on a TPU."""
        order, _, tiles = self.layout.partition(":")
        tile = re.match(r"T\(([\d,]+)\)", tiles)
        axes = [int(axis) for axis in order.split(",") if axis]  # minor first
        # A part that a gather reads may have fewer dimensions than the array.
        if tile is None or len(axes) != len(self.dims):
            return self.num_bytes
        sizes = [self.dims[axis] for axis in axes]
        for i, size in enumerate(reversed([int(x) for x in tile[1].split(",")])):
            if i == len(sizes):
                sizes.append(1)
            sizes[i] = math.ceil(sizes[i] / size) * size
        return math.prod(sizes) * _ITEM_BITS[self.dtype] / 8

    @property
    def in_main_memory(self) -> bool:
        """False if the layout names another memory space: a TPU's VMEM, SMEM or the host."""
        return re.search(r"S\(([1-9]\d*)\)", self.layout) is None


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a program."""

    name: str
    opcode: str
    shape: str
    operands: tuple[str, ...]
    arguments: str  # the text between the parentheses
    attributes: str  # the text after them
    is_root: bool

    @functools.cached_property
    def arrays(self) -> tuple[Array, ...]:
        """The arrays of the result, those of a tuple one after the other."""
        return parse_arrays(self.shape)

    @property
    def called(self) -> tuple[str, ...]:
        """Names of the computations that it refers to."""
        found = _CALLED.findall(self.attributes.split(", metadata=")[0])
        return tuple(name.strip().lstrip("%") for name in found)

    def attribute(self, name: str) -> str | None:
        """Text of `name={...}` without braces, or of `name=word`; None if it is absent."""
        match = re.search(rf"\b{name}=(?:\{{(.*?)\}}(?=,|$)|([^\s,]+))", self.attributes)
        if match is None:
            return None
        return match[1] if match[1] is not None else match[2]


@dataclasses.dataclass(frozen=True)
class Module:
    """A program.

    Attributes:
      computations: name -> its instructions by name, in their order.
      entry: name of the computation that a step runs.
      executions: name -> number of times that a step runs it; 0 for combiners of two numbers.
      fused: computations inside a fusion.
      loops_of_unknown_length: while instructions whose trip count could not be read, taken as 1.
      donated: numbers of the arguments whose memory the outputs reuse.
    """

    computations: dict[str, dict[str, Instruction]]
    entry: str
    executions: dict[str, int]
    fused: frozenset[str]
    loops_of_unknown_length: tuple[str, ...]
    donated: frozenset[int]

    def executed(self) -> Iterator[tuple[str, Instruction]]:
        """The instructions that a step runs, each with the name of its computation."""
        for name, instructions in self.computations.items():
            if self.executions[name]:
                yield from ((name, instruction) for instruction in instructions.values())


def parse_arrays(shape: str) -> tuple[Array, ...]:
    """Arrays of a shape such as `f32[2,3]{1,0:T(8,128)S(1)}` or of a tuple of them."""
    return tuple(
        Array(dtype, tuple(int(x) for x in dims.split(",") if x), layout)
        for dtype, dims, layout in _SHAPE.findall(shape)
    )


def parse(text: str) -> Module:
    """Parses `compiled.as_text()`.

    Raises:
      ValueError: there is no entry computation.
    """
    text = re.sub(r"/\*.*?\*/", "", text)
    computations: dict[str, dict[str, Instruction]] = {}
    entry, current = "", None
    for line in text.splitlines():
        if line and not line[0].isspace():
            header = _COMPUTATION.match(line)
            current = computations.setdefault(header[2], {}) if header else None
            if header and header[1]:
                entry = header[2]
        elif current is not None and (match := _INSTRUCTION.match(line)):
            instruction = _parse_instruction(match[2], match[3], bool(match[1]))
            current[instruction.name] = instruction
    if not entry:
        raise ValueError("the text has no line that begins with ENTRY: not an XLA program")
    executions, fused, unknown = _count_executions(computations, entry)
    aliases = re.search(r"input_output_alias=\{(.*?) \}", text.split("\n", 1)[0])
    donated = re.findall(r": \((\d+),", aliases[1]) if aliases else []
    return Module(
        computations, entry, executions, fused, unknown, frozenset(int(x) for x in donated)
    )


def _parse_instruction(name: str, rest: str, is_root: bool) -> Instruction:
    end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
    opening = rest.index("(", end)
    closing = _closing(rest, opening)
    arguments = rest[opening + 1 : closing]
    return Instruction(
        name=name,
        opcode=rest[end:opening].strip(),
        shape=rest[:end],
        operands=tuple(_NAME.findall(arguments)),
        arguments=arguments,
        attributes=rest[closing + 1 :],
        is_root=is_root,
    )


def _closing(text: str, start: int) -> int:
    depth = 0
    for match in re.compile(r"[()]").finditer(text, start):
        depth += 1 if match[0] == "(" else -1
        if depth == 0:
            return match.start()
    raise ValueError(f"unbalanced parentheses in {text[:80]!r}")


def _count_executions(
    computations: dict[str, dict[str, Instruction]], entry: str
) -> tuple[dict[str, int], frozenset[str], tuple[str, ...]]:
    executions = dict.fromkeys(computations, 0)
    fused: set[str] = set()
    unknown: list[str] = []

    def visit(name: str, times: int) -> None:
        executions[name] += times
        for instruction in computations[name].values():
            trips = 1
            if instruction.opcode == "while":
                length = _trip_count(instruction, computations[name], computations)
                if length is None:
                    unknown.append(instruction.name)
                trips = 1 if length is None else length
            elif instruction.opcode == "fusion":
                fused.update(instruction.called)
            elif instruction.opcode not in ("call", "conditional", "async-start"):
                continue  # reductions and the like: a few operations on scalars
            for called in instruction.called:
                visit(called, times * trips)

    visit(entry, 1)
    return executions, frozenset(fused), tuple(unknown)


def _trip_count(
    loop: Instruction,
    around: dict[str, Instruction],
    computations: dict[str, dict[str, Instruction]],
) -> int | None:
    """Trip count of a loop: as XLA annotates it, else the limit in its condition minus start."""
    known = re.search(r'known_trip_count"?[=:]\s*\{"?n"?:"?(\d+)', loop.attributes)
    if known:
        return int(known[1])
    condition = computations[(loop.attribute("condition") or "").lstrip("%")]
    root = next(x for x in condition.values() if x.is_root)
    limits = [int(x.arguments) for x in condition.values() if _is_counter(x)]
    if len(limits) != 1 or (root.opcode == "compare" and "direction=LT" not in root.attributes):
        return None
    counter = next((condition.get(x) for x in root.operands if x in condition), None)
    start = 0
    index = counter.attribute("index") if counter is not None else None
    init = around.get(loop.operands[0])
    if index is not None and init is not None and init.opcode == "tuple":
        first: Instruction | None = around.get(init.operands[int(index)])
        while first is not None and first.opcode in ("copy", "bitcast"):
            first = around.get(first.operands[0])
        if first is not None and _is_counter(first):
            start = int(first.arguments)
    return max(0, limits[0] - start)


def _is_counter(instruction: Instruction) -> bool:
    return instruction.opcode == "constant" and instruction.shape.startswith("s32[]")
