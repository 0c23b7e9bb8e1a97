"""Which mechanisms a row of `cases.py` uses, and which rows stand for them all.

A mechanism is one implementation of the protocol (a class of stages, or an `update` that uses the
contract directly), one feature of the lift that it is told to use, such as `Rule(per_leaf)`, or two
features that it has to use together, `Rule(count, per_leaf)`. Rows with the same mechanisms run the
same code around their arithmetic. So a law about a mechanism runs on a few rows that together use
all of them, their representatives, and on all others under ``-m full``.
`python tests/mechanisms.py` prints them.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
import pytest
from cases import CASES, OPTIMIZERS, Case, each
from problems import params

from gradx.lift.rule import Rule

# What the lift does only where a rule asks for it.
OF_A_RULE = (
    *("first", "per_step", "measure", "measure_init", "per_tree", "per_leaf", "facts"),
    *("scalars", "whole_tree"),
)
OF_A_MATRIX_RULE = ("either_way", "like_leaf")
OF_RENEWAL = ("renew", "start", "gather", "staggered")
# What is the rule's own, or what only `test_collectives.py` and `test_matrixwise.py` can ask.
OF_NEITHER = (
    *("update", "state_class", "hypers", "flags", "count", "needs_params", "where", "axes"),
    *("any_kind", "choice", "name", "how", "chunk", "share", "batches", "every"),
)


@functools.cache
def mechanisms(case: Case) -> frozenset[str]:
    """All mechanisms that a row is built of, by name."""
    return frozenset(_of_transform(case.make(), params(), set()))


def _of_transform(tx: Any, p: Any, seen: set[int]) -> Iterator[str]:
    stage = getattr(tx, "stage", None)
    if stage is not None:
        yield from _of_stage(stage, seen)
        return
    update = tx.update.__qualname__.replace(".<locals>", "")
    yield f"{tx.update.__module__.removeprefix('gradx.')}.{update}"
    if getattr(tx, "parts", None) is not None:
        for part in tx.parts(p, jax.eval_shape(tx.init, p)):
            yield from _of_transform(part.transform, part.params, seen)


def _of_stage(stage: Any, seen: set[int]) -> Iterator[str]:
    if id(stage) in seen:
        return
    seen.add(id(stage))
    kind = type(stage).__name__
    if isinstance(stage, Rule):
        used = [name for name in (*OF_A_RULE, *OF_A_MATRIX_RULE) if getattr(stage, name, None)]
        how = getattr(stage, "how", None)
        used += [name for name in OF_RENEWAL if getattr(how, name, None)]
        used = sorted(used + ["count"] * bool(stage.count_fields))
        yield kind
        for some in (*itertools.combinations(used, 1), *itertools.combinations(used, 2)):
            yield f"{kind}({', '.join(some)})"
        return
    yield kind
    for field in dataclasses.fields(stage):
        for part in _each(getattr(stage, field.name)):
            if module := _module_of(part):  # what it does is said by this function
                yield f"{kind} of {module}"
            if hasattr(part, "begin"):
                yield from _of_stage(part, seen)
            elif hasattr(part, "init") and hasattr(part, "update"):
                yield from _of_transform(part, params(), seen)


def _module_of(part: Any) -> str | None:
    """The module of a function, or of the rule of a `Call`."""
    function = getattr(part, "rule", part)
    function = getattr(function, "func", function)  # of a partial
    return getattr(function, "__module__", None) if inspect.isroutine(function) else None


def _each(value: Any) -> Iterable[Any]:
    if isinstance(value, Mapping):
        return value.values()
    return value if type(value) in (list, tuple) else [value]


@functools.cache
def table() -> dict[str, list[str]]:
    """Mechanism to the rows that use it, in the order of the table."""
    found: dict[str, list[str]] = {}
    for case in CASES:
        for mechanism in sorted(mechanisms(case)):
            found.setdefault(mechanism, []).append(case.id)
    return found


@functools.cache
def representatives() -> frozenset[str]:
    """Few rows that together use all mechanisms: always the next that adds the most."""
    used = {case.id: mechanisms(case) for case in CASES if case.represents}
    missing, chosen = {mechanism for row in used.values() for mechanism in row}, []
    while missing:
        chosen.append(max(used, key=lambda row: len(used[row] & missing)))
        missing -= used[chosen[-1]]
    return frozenset(chosen)


def each_mechanism(rows: Iterable[Case]) -> Any:
    """Marks a test to run over the representatives, and under ``-m full`` over the other rows."""
    marked = [
        pytest.param(case, marks=[] if case.id in representatives() else pytest.mark.full)
        for case in rows
    ]
    return pytest.mark.parametrize("case", marked, ids=lambda row: row.id)


every_mechanism = each_mechanism(CASES)
every_optimizer_mechanism = each_mechanism(OPTIMIZERS)
every_case = each(CASES)


if __name__ == "__main__":
    for mechanism, rows in table().items():
        shown = ", ".join(rows[:3]) + f" and {len(rows) - 3} more" * (len(rows) > 3)
        print(f"{mechanism}: {shown}")
    print(f"{len(table())} mechanisms, {len(representatives())} representatives")
