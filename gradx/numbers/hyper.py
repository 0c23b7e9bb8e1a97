"""The numbers of a rule: what a user may give, checked where it is given, resolved in each step."""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gradx import core
from gradx.core import trees as gtree
from gradx.core.binding import is_tree
from gradx.core.calls import kept
from gradx.numbers.sources import (
    REQUIRED,
    Array,
    ByPath,
    Constant,
    Number,
    Scaled,
    Schedule,
    Scheduled,
    Source,
    Step,
    Tunable,
    as_float,
    is_real,
)

# ---------------------------------------------------------------- ranges


@dataclass(frozen=True)
class Interval:
    """A range of numbers, written as in mathematics: ``[0, 1)``, ``(0, inf]``."""

    text: str

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[\[(][^,]+,[^,]+[\])]", self.text):
            raise ValueError(f"a range reads like '[0, 1)' or '(0, inf]', got {self.text!r}.")

    def __contains__(self, x: float) -> bool:
        low, high = (float(part) for part in self.text[1:-1].split(","))
        above = x >= low if self.text[0] == "[" else x > low
        below = x <= high if self.text[-1] == "]" else x < high
        return above and below


# The field's names, each with the range in which it makes sense. A rule that means something
# else by a name gives its own range.
RANGES: dict[str, str] = {
    "learning_rate": "[0, inf)",
    "weight_decay": "[0, inf)",
    "eps": "[0, inf)",
    "eps_root": "[0, inf)",
    "decay": "[0, 1)",
    "momentum": "[0, 1)",
    "b1": "[0, 1)",
    "b2": "[0, 1)",
    "rho": "[0, 1)",
    "max_norm": "(0, inf]",
    "max_delta": "(0, inf]",
    "threshold": "(0, inf]",
    "clipping": "(0, inf]",
}
ANY = "(-inf, inf)"

# What Optax means by numbers below these ranges, and how to get it.
BELOW = {
    "learning_rate": " To climb, put scale(-1.0) behind it in a chain.",
    "weight_decay": " add_decayed_weights takes any number.",
}

HOW_TO_GIVE = (
    "Give a number, a schedule (count -> number), tunable(…), by_path(…), from_call(…) or a "
    "product scaled(…)."
)


def used(ranges: Mapping[str, str], numbers: Collection[str]) -> dict[str, str]:
    """Those of the ranges for which there is a number; a rule may have some only if asked for."""
    return {name: interval for name, interval in ranges.items() if name in numbers}


_of_the_run: ContextVar[bool] = ContextVar("_of_the_run", default=False)


@contextlib.contextmanager
def of_the_run() -> Iterator[None]:
    """Numbers in here are a schedule's, which may reach any value, as under `jit`."""
    token = _of_the_run.set(True)
    try:
        yield
    finally:
        _of_the_run.reset(token)


def check_number(value: float, interval: str, name: str, where: str) -> None:
    """Raises ValueError unless the number lies in its range."""
    if value not in Interval(interval) and not _of_the_run.get():
        remedy = BELOW.get(name, "") if -math.inf < value < 0 else ""
        raise ValueError(f"{where}: {name} must be in {interval}, got {value!r}.{remedy}")


# ---------------------------------------------------------------- taking a source


def as_source(value: Any, name: str, interval: str, where: str) -> Source:
    """Checks what a user gave for a number, and turns it into a bound source.

    Raises:
      ValueError: it is no number or source, out of range, or a schedule of the wrong shape.
    """
    match value:
        case Tunable():
            _check_constant(value.initial, interval, name, where)
            if not isinstance(value.initial, jax.core.Tracer):
                check_number(in_float32(float(value.initial)), interval, name, where)
            return replace(
                value,
                name=value.name or name,
                intervals=tuple(dict.fromkeys([*value.intervals, interval])),
            )
        case ByPath():
            rules = {
                pattern: as_source(v, f"{name}[{pattern}]", interval, where)
                for pattern, v in value.rules.items()
            }
            default = value.default
            if default is not REQUIRED:
                default = as_source(default, f"{name}[default]", interval, where)
            return replace(value, rules=rules, default=default)
        case Scaled():
            factors = tuple(
                as_source(f, f"{name}.factor{i}", factor_range(interval), where)
                for i, f in enumerate(value.factors)
            )
            numbers = [f.number for f in factors if isinstance(f, Constant)]
            if len(numbers) == len(factors):  # else only the run knows the product
                _check_constant(math.prod(numbers), interval, name, where)
            return replace(value, factors=factors)
        case Source():
            return value
        case _ if callable(value):
            _check_schedule(value, name, where)
            return Scheduled(value)
        case _ if is_real(value):
            return Constant(_check_constant(value, interval, name, where))
    if is_tree(value):
        raise ValueError(
            f"{where}: {name} must be one real number, got a tree, a {type(value).__name__}. "
            f"An optimizer is made without the parameters, which tx.init(params) is given; numbers "
            f"that differ from leaf to leaf are by_path(…)."
        )
    raise ValueError(
        f"{where}: {name} must be one real number, got {core.show(value)}. {HOW_TO_GIVE}"
    )


def factor_range(interval: str) -> str:
    """The range of a factor of a number: only its sign can be said."""
    return ANY if -1.0 in Interval(interval) else "[0, inf)"


def checked(name: str, value: Any) -> Any:
    """A number of an optimizer that hands it on to a part with a wider range.

    Its live values remember the narrower one.
    """
    Hypers({name: value}, core.where())
    return _within(value, RANGES[name])


def _within(value: Any, interval: str) -> Any:
    match value:
        case Tunable():
            return replace(value, intervals=(*value.intervals, interval))
        case ByPath():
            rules = {pattern: _within(v, interval) for pattern, v in value.rules.items()}
            return replace(value, rules=rules, default=_within(value.default, interval))
        case Scaled():
            return replace(
                value, factors=tuple(_within(f, factor_range(interval)) for f in value.factors)
            )
    return value


def constant(name: str, value: Any, interval: str = ANY) -> Number:
    """Checks a number where only a number makes sense: a start value, a schedule's argument.

    Raises:
      ValueError: it is no real number, or out of range. A traced number shows its type alone.
    """
    return _check_constant(value, interval, name, core.where())


def _check_constant(value: Any, interval: str, name: str, where: str) -> Number:
    if not is_real(value):
        raise ValueError(f"{where}: {name} must be one real number, got {core.show(value)}.")
    if isinstance(value, jax.core.Tracer):
        return as_float(value)
    number = float(value)
    check_number(number, interval, name, where)
    if math.isinf(in_float32(number)):  # too large for the arithmetic
        check_number(in_float32(number), interval, name, where)
    # An array stays an argument of the program: a loop over arrays compiles once.
    return as_float(kept(value)) if isinstance(value, jax.Array) else number


def in_float32(value: float) -> float:
    """The number as a live value holds it: 1 - 1e-12 is 1 there, and 1e39 infinite."""
    with np.errstate(over="ignore"):
        return float(np.float32(value))


def _check_schedule(schedule: Schedule, name: str, where: str) -> None:
    """A schedule is asked for its type only, so that nothing is computed or printed twice."""
    try:
        try:
            made: Any = jax.eval_shape(schedule, jax.ShapeDtypeStruct((), jnp.int32))
        except (jax.errors.ConcretizationTypeError, jax.errors.TracerArrayConversionError):
            made = schedule(0)  # it branches on the count: it works outside jit only, as in Optax
        dtype = jnp.result_type(made)
        real = jnp.issubdtype(dtype, jnp.floating) or jnp.issubdtype(dtype, jnp.integer)
    except Exception as error:
        raise ValueError(
            f"{where}: {name} is the function {core.show(schedule)}, which does not work as a "
            f"schedule, count -> number: {type(error).__name__}: {str(error).partition(chr(10))[0]}"
        ) from error
    if made is None or jnp.shape(made) != () or not real:
        raise ValueError(
            f"{where}: {name} is the schedule {core.show(schedule)}, which must return one real "
            f"number for a count, but returns {core.show(made)}."
        )


class Hypers:
    """The numbers of one rule: checked at construction, resolved once a step and group of leaves.

    Args:
      values: name to what the user gave.
      where: the rule, for error messages.
      ranges: of the names for which `RANGES` has none, or another one.
    """

    def __init__(
        self, values: Mapping[str, Any], where: str, ranges: Mapping[str, str] | None = None
    ):
        self.where = where
        intervals = {**RANGES, **(ranges or {})}
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


def resolve(sources: Mapping[str, Source], step: Step) -> dict[str, Number]:
    """Floats where a number is known now, scalars where it is known only in the run."""
    return {name: source.value(step) for name, source in sources.items()}
