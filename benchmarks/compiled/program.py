"""Counts the cost of a compiled program in its text.

Bytes are those that the instructions of the entry computation read and write in main memory. If a
fusion only takes or replaces a slice of an array, only the slice counts. A loop or a conditional
counts once, with its arguments and results. On TPUs an array whose layout says `S(1)` is on the
chip (VMEM), and does not count.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

# Instructions that move nothing by themselves. The ends of asynchronous ones move nothing either.
_NAMES = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "opt-barrier", "after-all",
    "partition-id", "replica-id", "optimization-barrier", "add-dependency", "domain", "iota",
}  # fmt: skip
_ENTRY = "ENTRY"
_ENDS = ("-done", "-update")
_STARTS = {"copy-start", "slice-start", "dynamic-slice-start"}

COLLECTIVES = (
    "all-gather", "all-reduce", "all-to-all", "collective-permute", "reduce-scatter",
    "ragged-all-to-all",
)  # fmt: skip

_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?([\w.\-]+) = ")
_ARRAY = re.compile(r"([a-z]+\d*(?:e\d+m\d+\w*)?)\[([\d,<=]*)\](?:\{([^{}]*)\})?")
_OPERAND = re.compile(r"%([\w.\-]+)")


@dataclass(frozen=True)
class Instruction:
    """An instruction: its name, its result (with layouts), its operation, and its operands.

    A parameter has its number as its only operand.
    """

    name: str
    result: str
    operation: str
    operands: list[str]
    rest: str


@dataclass(frozen=True)
class Cost:
    """What one step costs.

    Attributes:
      moved: bytes through main memory.
      kernels: instructions of the entry computation that do work.
      collectives: by operation, the bytes that a device receives in the whole program.
    """

    moved: int
    kernels: int
    collectives: dict[str, int] = field(default_factory=dict)


def cost(text: str) -> Cost:
    """Counts in the text of a compiled program (`compiled.as_text()`)."""
    computations = _computations(text)
    work = _moving(_ENTRY, computations)
    return Cost(sum(moved for _, moved in work), len(work), _collectives(text))


def conditionals(text: str) -> tuple[int, int]:
    """Bytes that `cost` counts for the conditionals, which only hand arrays over; and bytes that
    their branches move, of each conditional the branch that moves most."""
    computations = _computations(text)
    found = [x for x in _moving(_ENTRY, computations) if x[0].operation == "conditional"]
    branches = sum(
        max(sum(moved for _, moved in _moving(name, computations)) for name in _branches(i))
        for i, _ in found
    )
    return sum(moved for _, moved in found), branches


def _branches(i: Instruction) -> list[str]:
    """The computations of a conditional, of which there are two or, by index, several."""
    several = re.search(r"branch_computations=\{([^}]*)\}", i.rest)
    named = (
        several[1] if several else " ".join(re.findall(r"(?:true|false)_computation=\S+", i.rest))
    )
    return _OPERAND.findall(named)


def _moving(name: str, computations: dict[str, list[Instruction]]) -> list[tuple[Instruction, int]]:
    """The instructions of a computation that do work, with the bytes that each moves."""
    inside = computations[name]
    results = {i.name: i.result for i in inside}
    work = [i for i in inside if i.operation not in _NAMES and not i.operation.endswith(_ENDS)]
    return [(i, _moved(i, results) - _untouched(i, results, computations)) for i in work]


def _computations(text: str) -> dict[str, list[Instruction]]:
    """The instructions of each computation by its name, the entry's as `ENTRY`."""
    found: dict[str, list[Instruction]] = {}
    for block in re.split(r"\n(?=\S)", text):  # a heading, and indented lines
        heading = re.match(rf"({_ENTRY})?\s*%?([\w.\-]+) \(", block)
        if heading is not None:
            found[heading[1] or heading[2]] = list(_instructions(block))
    return found


def _instructions(text: str) -> Iterator[Instruction]:
    for line in text.splitlines():
        match = _INSTRUCTION.match(line)
        if match is None:
            continue
        result, rest = _until_space(line[match.end() :])
        operation, _, rest = rest.partition("(")
        inside, rest = _until_closed(rest)
        operands = [inside] if operation == "parameter" else _OPERAND.findall(inside)
        yield Instruction(match[1], result, operation.strip(), operands, rest)


def _until_space(text: str) -> tuple[str, str]:
    """A type, which may be a tuple of types, and what follows."""
    depth = 0
    for i, c in enumerate(text):
        depth += (c in "({[") - (c in ")}]")
        if c == " " and depth == 0:
            return text[:i], text[i + 1 :]
    return text, ""


def _until_closed(text: str) -> tuple[str, str]:
    depth = 1
    for i, c in enumerate(text):
        depth += (c == "(") - (c == ")")
        if depth == 0:
            return text[:i], text[i + 1 :]
    return text, ""


def _moved(i: Instruction, results: dict[str, str]) -> int:
    if i.operation in _STARTS:  # as much is read as is written
        source, arrays = results.get(i.operands[0], ""), list(_arrays(i.result))
        target = arrays[0 if i.operation == "copy-start" else 1]
        sides = [x for x in (source, target) if "S(1)" not in x]
        return size(target, everywhere=True) * len(sides)
    read = sum(size(results.get(x, "")) for x in i.operands)
    if i.operation.endswith("-start") and i.operation != "all-reduce-start":
        read = 0  # the result is (operands, results, …)
    return read + size(i.result)


def _untouched(
    i: Instruction, results: dict[str, str], computations: dict[str, list[Instruction]]
) -> int:
    """Bytes of a fusion's operands and results outside the slices that it reads and writes."""
    called = re.search(r"calls=%([\w.\-]+)", i.rest)
    if i.operation != "fusion" or called is None:
        return 0
    body = {x.name: x for x in computations.get(called[1], [])}
    parameters = [x for x in body.values() if x.operation == "parameter"]
    return sum(
        _beside_slices(x.name, results.get(i.operands[int(x.operands[0])], ""), body)
        for x in parameters
    )


def _beside_slices(name: str, whole: str, body: dict[str, Instruction]) -> int:
    users = list(_users(name, body))
    if not size(whole) or not users or any(use.operands[0] != x for use, x in users):
        return 0
    if all(use.operation in ("slice", "dynamic-slice") for use, _ in users):
        return max(0, size(whole) - sum(size(use.result, everywhere=True) for use, _ in users))
    if [use.operation for use, _ in users] == ["dynamic-update-slice"]:  # in place
        ((use, _),) = users
        written = size(body[use.operands[1]].result, everywhere=True)
        return 2 * size(whole) - written  # the rest is neither read nor written
    return 0


def _users(name: str, body: dict[str, Instruction]) -> Iterator[tuple[Instruction, str]]:
    """The readers of a value, and the name that each reads: a bitcast of it has another name."""
    for user in body.values():
        if name in user.operands:
            if user.operation == "bitcast":
                yield from _users(user.name, body)
            else:
                yield user, name


def _arrays(text: str) -> Iterator[str]:
    for match in _ARRAY.finditer(text):
        yield match[0]


def size(text: str, *, everywhere: bool = False) -> int:
    """The bytes of a type in main memory; for a tuple, their sum."""
    total = 0
    for kind, shape, layout in _ARRAY.findall(text):
        if everywhere or "S(1)" not in (layout or ""):
            total += _bits(kind) * math.prod(int(n.strip("<=")) for n in shape.split(",") if n) // 8
    return total


def _bits(kind: str) -> int:
    if kind == "pred":
        return 8
    digits = re.search(r"\d+", kind)
    return 0 if kind in ("token", "opaque") or digits is None else int(digits[0])


def _collectives(text: str) -> dict[str, int]:
    """The bytes that each operation gives. One with a start and an end counts at its end.

    On TPUs one gather may be in several fusions, each of which does a part of it. They have the
    same channel number, and count once.
    """
    totals: dict[str, int] = {}
    channels = set()
    for i in _instructions(text):
        name = i.operation.removesuffix("-done")
        if name in COLLECTIVES:
            channel = re.search(r"channel_id=\d+", i.rest)
            if channel is None or channel[0] not in channels:
                totals[name] = totals.get(name, 0) + size(i.result, everywhere=True)
            channels.add(channel and channel[0])
    return totals


def temporaries(compiled: Any) -> int:
    """Bytes that the program needs beside its arguments and results."""
    memory = compiled.memory_analysis()
    return int(memory.temp_size_in_bytes)


def operations(compiled: Any) -> float:
    """Floating-point operations of a device in a step; those of products if XLA counts none."""
    counted = compiled.cost_analysis()
    if isinstance(counted, list):
        counted = counted[0] if counted else None
    return float(counted["flops"]) if counted else products(compiled.as_text())


def products(text: str) -> float:
    """2 m n k of each product in the text: `dot`s, fused or not, and calls of cuBLAS."""
    results, total = {}, 0.0
    for i in _instructions(text):
        results[i.name] = i.result
        if i.operation == "dot" or (i.operation == "custom-call" and "__cublas$" in i.rest):
            left = _shape(results[i.operands[0]])
            axes = re.search(r'lhs_contracting_dim(?:ension)?s"?[=:][{\[]([\d",]*)', i.rest)
            contracted = [left[int(axis)] for axis in re.findall(r"\d+", axes[1])] if axes else []
            result = next(_arrays(i.result))
            total += 2.0 * math.prod(_shape(result)) * math.prod(contracted)
    return total


def _shape(text: str) -> list[int]:
    match = _ARRAY.search(text)
    return [int(n.strip("<=")) for n in match[2].split(",") if n] if match else []
