"""Where a number comes from: a constant, a schedule, the state, the leaf's path, or the call.

A rule accepts each of these wherever it takes a number:

=====================  =======================================  =================================
source                 written                                  resolved
=====================  =======================================  =================================
constant               ``3e-4``                                 folded into the program
schedule               ``cosine_decay_schedule(…)``             from the step count, first 0
live value             ``tunable(3e-4)``                        an f32 scalar in the state
by path                ``by_path({"bias": 0.0}, default=0.1)``  once per leaf
the call               ``from_call("learning_rate")``           ``update(…, learning_rate=…)``
product                ``scaled(schedule, by_path(…))``         all of the above, multiplied
=====================  =======================================  =================================
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Self, TypeAlias, get_args, get_origin

import jax

from gradx import core
from gradx.core import meaning
from gradx.core.annotations import members
from gradx.core.ranges import (
    ANY,
    Scalar,
    as_float,
    check_constant,
    check_in_float32,
    factor_range,
    is_real,
)
from gradx.core.suggestions import MissingArgument, nearest

__all__ = ["Hyper", "from_call", "scaled"]


Array = jax.Array
Schedule: TypeAlias = Callable[[Any], Any]


@dataclass(frozen=True)
class Step:
    """What a source reads in a step: the count, the live values, the call's arguments."""

    count: Array | None
    live: Mapping[str, Array]
    extra: Mapping[str, Any]
    where: str


@dataclass(frozen=True, eq=False, repr=False)
class Source(core.Described):
    """Where one number comes from."""

    spec: core.Spec | None = field(default=None, kw_only=True)

    def with_spec(self, spec: core.Spec) -> Self:
        return replace(self, spec=spec)

    @property
    def parts(self) -> Sequence[Any]:
        """The numbers and sources that it is made of."""
        return ()

    @property
    def children(self) -> Sequence[Source]:
        """Those of its parts that are sources."""
        return [part for part in self.parts if isinstance(part, Source)]

    def at(self, path: str) -> Source:
        """The source for the leaf at this path, free of `ByPath`."""
        return self

    def within(self, interval: str, name: str, where: str) -> Source:
        """The source, checked as far as its numbers are known now (see `within`)."""
        return self

    def value(self, step: Step) -> Scalar:
        raise NotImplementedError

    def walk(self) -> Iterator[Source]:
        yield self
        for child in self.children:
            yield from child.walk()


@dataclass(frozen=True, eq=False, repr=False)
class Constant(Source):
    number: Scalar

    def value(self, step: Step) -> Scalar:
        return self.number

    def __repr__(self) -> str:
        return core.show(self.number)


@dataclass(frozen=True, eq=False, repr=False)
class Scheduled(Source):
    schedule: Schedule

    def value(self, step: Step) -> Scalar:
        return as_float(self.schedule(step.count))

    def __repr__(self) -> str:
        return core.show(self.schedule)


@dataclass(frozen=True, eq=False, repr=False)
class Tunable(Source):
    initial: Scalar
    name: str | None = None  # the key in the state; set when a rule takes the source
    intervals: tuple[str, ...] = ()  # its ranges: one from each factory that passes it on

    def within(self, interval: str, name: str, where: str) -> Tunable:
        check_constant(self.initial, interval, name, where)
        if not isinstance(self.initial, jax.core.Tracer):
            check_in_float32(float(self.initial), interval, name, where)
        if self.intervals and interval == ANY:
            return self
        return replace(self, intervals=tuple(dict.fromkeys([*self.intervals, interval])))

    def value(self, step: Step) -> Scalar:
        assert self.name is not None
        return step.live[self.name]


@dataclass(frozen=True, eq=False, repr=False)
class FromCall(Source):
    name: str

    def given(self, step: Step) -> Any:
        """What the call gave, whatever it is."""
        if self.name not in step.extra:
            near = nearest(self.name, step.extra)
            hint = f" Did you mean {self.name!r} where the call says {near!r}?" if near else ""
            raise MissingArgument(
                f"{step.where}: needs the extra argument {self.name!r}: call "
                f"update(updates, state, params, {self.name}=…); the call gave "
                f"{sorted(step.extra) or 'none'}.{hint}"
            )
        return step.extra[self.name]

    def value(self, step: Step) -> Scalar:
        given = self.given(step)
        if not is_real(given):
            raise ValueError(
                f"{step.where}: the extra argument {self.name!r} must be one real number, got "
                f"{core.show(given)}."
            )
        return as_float(given)


@dataclass(frozen=True, eq=False, repr=False)
class Scaled(Source):
    factors: tuple[Any, ...]

    @property
    def parts(self) -> Sequence[Any]:
        return self.factors

    def at(self, path: str) -> Source:
        return replace(self, factors=tuple(f.at(path) for f in self.factors), spec=None)

    def within(self, interval: str, name: str, where: str) -> Scaled:
        of_each = factor_range(interval)
        factors = tuple(
            within(f, of_each, f"{name}.factor{i}", where) for i, f in enumerate(self.factors)
        )
        if all(map(is_real, factors)):  # else only the run knows the product
            check_constant(math.prod(factors), interval, name, where)
        return replace(self, factors=factors)

    def __repr__(self) -> str:
        return f"scaled({', '.join(core.show(f) for f in self.factors)})"

    def value(self, step: Step) -> Scalar:
        product: Scalar = 1.0
        for factor in self.factors:
            product = product * factor.value(step)
        return product


Hyper: TypeAlias = float | Array | Schedule | Source
"""What a rule accepts where it takes a number."""

Fixed: TypeAlias = Annotated[float, meaning.Number(fixed=True)]
"""A number that decides shapes: it is never injected or traced."""


def takes_number(annotation: Any) -> bool:
    """Whether an argument is a number from any source; `annotation` is evaluated, not a text."""
    return Source in members(annotation)


def takes_numbers(annotation: Any) -> bool:
    """Whether it is a tuple of them, such as Adam's two averages in one argument."""
    pairs = [get_args(kind) for kind in members(annotation) if get_origin(kind) is tuple]
    return any(takes_number(kind) for kinds in pairs for kind in kinds)


def within(value: Any, interval: str, name: str, where: str) -> Any:
    """A number or source, checked as far as it is known now; live values remember the range.

    Raises:
      ValueError: a number is out of the range.
    """
    if isinstance(value, Source):
        return value.within(interval, name, where)
    if is_real(value):
        check_constant(value, interval, name, where)
    return value


def is_scheduled(value: Any) -> bool:
    """Whether a rule that takes this number has to count its steps."""
    if isinstance(value, Source):
        return isinstance(value, Scheduled) or any(map(is_scheduled, value.parts))
    return callable(value)


# ---------------------------------------------------------------- what users write


@core.recorded
def from_call(name: str) -> FromCall:
    """Takes a number from the call: `update(updates, state, params, name=…)`.

    Args:
      name: the keyword under which `update` is given the number.

    Raises:
      ValueError: in `update`, if the call does not give it; a name that looks like a misspelling
        of it is pointed out. Extra arguments that no rule asks for are ignored, as in Optax.

    Example:
      >>> import gradx, jax.numpy as jnp
      >>> tx = gradx.sgd(gradx.from_call("learning_rate"))
      >>> tx.update(jnp.ones(1), tx.init(jnp.ones(1)), learning_rate=0.5)[0]
      Array([-0.5], dtype=float32)
    """
    if not isinstance(name, str) or not name.isidentifier():
        raise ValueError(f"from_call: name must be a Python identifier, got {name!r}.")
    return FromCall(name)


@core.recorded
def scaled(*factors: Hyper) -> Scaled:
    """The product of several sources: a schedule times a factor by path, say.

    Args:
      *factors: numbers or other sources, at least one.
        A `tunable` among them is called ``learning_rate.factor0`` and so on in the state, unless
        it brings a name.

    Example:
      >>> import gradx, jax.numpy as jnp
      >>> factor = gradx.by_path({"b": 2.0}, default=1.0)
      >>> rate = gradx.scaled(lambda count: 0.1 / (1 + count), factor)
      >>> tx = gradx.sgd(rate)
      >>> params = {"a": jnp.ones(()), "b": jnp.ones(())}
      >>> tx.update(params, tx.init(params))[0]
      {'a': Array(-0.1, dtype=float32), 'b': Array(-0.2, dtype=float32)}
    """
    if not factors:
        raise ValueError("scaled: needs at least one factor.")
    return Scaled(factors)
