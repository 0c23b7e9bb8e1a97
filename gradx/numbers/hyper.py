"""The numbers of a rule: checked when a user gives them, resolved in each step."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax.numpy as jnp

from gradx import core
from gradx.core import trees as gtree
from gradx.core.calls import ranges_of_factory
from gradx.core.meaning import constant_of
from gradx.core.ranges import ANY, Scalar, check_constant, check_schedule, is_real, no_number
from gradx.core.vocabulary import RANGES
from gradx.numbers.paths import ByPath
from gradx.numbers.sources import (
    Array,
    Constant,
    Scaled,
    Scheduled,
    Source,
    Step,
    Tunable,
    within,
)

# ---------------------------------------------------------------- taking a source


def as_source(value: Any, name: str, interval: str, where: str) -> Source:
    """Checks a value that a user gave for a number, and turns it into a bound source.

    Raises:
      ValueError: it is no number or source, out of range, or a schedule of the wrong shape.
    """
    return _bound(within(value, interval, name, where), name, where)


def _bound(value: Any, name: str, where: str) -> Source:
    match value:
        case Tunable():
            return replace(value, name=value.name or name)
        case ByPath():
            return value.mapped(lambda v, at: _bound(v, f"{name}[{at}]", where))
        case Scaled():
            parts = enumerate(value.factors)
            return replace(
                value, factors=tuple(_bound(f, f"{name}.factor{i}", where) for i, f in parts)
            )
        case Source():
            return value
        case _ if callable(value):
            check_schedule(value, name, where)
            return Scheduled(value)
        case _ if is_real(value):
            return Constant(constant_of(value))
    raise no_number(value, name, where)


def constant(name: str, value: Any, interval: str = ANY) -> Scalar:
    """Checks a number where only a number makes sense, and no annotation gives its range.

    Raises:
      ValueError: it is no real number, or out of range. Of a traced number only the type counts.
    """
    check_constant(value, interval, name, core.where())
    made: Scalar = constant_of(value)
    return made


class Hypers:
    """The numbers of one rule: checked at construction, resolved once for each step and group.

    Args:
      values: name to the value that the user gave.
      where: the rule, for error messages.
      ranges: name to range, where neither the factory that is being run nor `VOCABULARY` has the
        right one.
    """

    def __init__(
        self, values: Mapping[str, Any], where: str, ranges: Mapping[str, str] | None = None
    ):
        self.where = where
        intervals = {**RANGES, **ranges_of_factory(), **(ranges or {})}
        self.sources: dict[str, Source] = {
            name: as_source(value, name, intervals.get(name, ANY), where)
            for name, value in values.items()
        }
        nodes = [node for source in self.sources.values() for node in source.walk()]
        self.tunables: dict[str, Tunable] = {}
        self.intervals: dict[str, set[str]] = {}
        for node in nodes:
            if isinstance(node, Tunable) and node.name is not None:
                if node.name == "tx":
                    raise ValueError(
                        f"{where}: no live value may be called 'tx', which set_hyperparams takes "
                        f"for the transformation; give it another name, tunable(…, name=…)."
                    )
                self.intervals.setdefault(node.name, set()).update(node.intervals)
                shared = self.tunables.setdefault(node.name, node)
                if shared.initial is not node.initial and shared.initial != node.initial:
                    raise ValueError(
                        f"{where}: two live values are called {node.name!r} and begin differently, "
                        f"with {shared.initial} and {node.initial}; give them different names."
                    )
        self.scheduled = any(isinstance(n, Scheduled) for n in nodes)
        self.varies_by_path = any(isinstance(n, ByPath) for n in nodes)
        self._by_path = [n for n in nodes if isinstance(n, ByPath)]

    def initial(self) -> dict[str, Array]:
        """The live values as they enter the state."""
        return {
            name: jnp.array(tunable.initial, jnp.float32)  # a copy, which may be donated
            for name, tunable in self.tunables.items()
        }

    def check_paths(self, paths: Sequence[str]) -> None:
        for source in self.sources.values():
            _check_paths(source, paths, f"{self.where}: by_path")

    def check_whole_tree(self, names: Collection[str] | None) -> None:
        """Raises ValueError for a number by path among these (by default all)."""
        for name in self.sources if names is None else names:
            if any(isinstance(node, ByPath) for node in self.sources[name].walk()):
                raise ValueError(
                    f"{self.where}: takes one number for the whole tree, not by_path(…); {name} is "
                    f"{core.show(self.sources[name])}."
                )

    def groups(
        self, flat: gtree.Flat, active: Sequence[int]
    ) -> tuple[dict[int, int], list[dict[str, Source]]]:
        """The group of each active leaf; for each group its sources, free of `ByPath`."""
        if not self.varies_by_path:
            return dict.fromkeys(active, 0), [self.sources]
        numbers: dict[tuple[str | None, ...], int] = {}
        groups: list[dict[str, Source]] = []
        of_leaf: dict[int, int] = {}
        for i in active:
            path = flat.paths[i]
            key = tuple(source.pattern_at(path) for source in self._by_path)
            if key not in numbers:
                numbers[key] = len(groups)
                groups.append({name: s.at(path) for name, s in self.sources.items()})
            of_leaf[i] = numbers[key]
        return of_leaf, groups


def _check_paths(source: Source, paths: Sequence[str], where: str) -> None:
    """Checks each `by_path` against the leaves that it is asked about."""
    if not isinstance(source, ByPath):
        for child in source.children:
            _check_paths(child, paths, where)
        return
    source.check(paths, where)
    for pattern, value in (*source.rules.items(), (None, source.default)):
        reached = [path for path in paths if source.pattern_at(path) == pattern]
        if isinstance(value, Source) and reached:
            _check_paths(value, reached, where)


def resolve(sources: Mapping[str, Source], step: Step) -> dict[str, Scalar]:
    """Floats where a number is known now, scalars where it is known only in the run."""
    return {name: source.value(step) for name, source in sources.items()}
