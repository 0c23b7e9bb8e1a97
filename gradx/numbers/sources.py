"""Where a number comes from: a constant, a schedule, the state, the leaf's path, or the call.

Every rule takes its numbers so, and all of these work wherever a number does:

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

import contextlib
import re
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Self, TypeAlias, get_args, get_origin

import jax
import jax.numpy as jnp
import numpy as np

from gradx import core
from gradx.core import trees as gtree
from gradx.core.calls import members
from gradx.core.suggestions import MissingArgument, nearest

__all__ = ["Hyper", "by_path", "from_call", "scaled"]


Array = jax.Array
Number: TypeAlias = float | Array
Schedule: TypeAlias = Callable[[Any], Any]


@dataclass(frozen=True)
class Step:
    """What is known when a number is wanted: the count, the live values, the call's arguments."""

    count: Array | None
    live: Mapping[str, Array]
    extra: Mapping[str, Any]
    where: str


@dataclass(frozen=True, eq=False, repr=False)
class Source(core.Described):
    """Where one number comes from. `children` are the sources that it is made of."""

    spec: core.Spec | None = field(default=None, kw_only=True)

    def with_spec(self, spec: core.Spec) -> Self:
        return replace(self, spec=spec)

    @property
    def children(self) -> Sequence[Source]:
        return ()

    def at(self, path: str) -> Source:
        """The source for the leaf at this path, free of `ByPath`."""
        return self

    def value(self, step: Step) -> Number:
        raise NotImplementedError

    def walk(self) -> Iterator[Source]:
        yield self
        for child in self.children:
            yield from child.walk()


@dataclass(frozen=True, eq=False, repr=False)
class Constant(Source):
    number: Number

    def value(self, step: Step) -> Number:
        return self.number

    def __repr__(self) -> str:
        return core.show(self.number)


@dataclass(frozen=True, eq=False, repr=False)
class Scheduled(Source):
    schedule: Schedule

    def value(self, step: Step) -> Number:
        return as_float(self.schedule(step.count))

    def __repr__(self) -> str:
        return core.show(self.schedule)


@dataclass(frozen=True, eq=False, repr=False)
class Tunable(Source):
    initial: Number
    name: str | None = None  # the key in the state; set when a rule takes the source
    intervals: tuple[str, ...] = ()  # in which it has to lie, as the factories on the way say

    def value(self, step: Step) -> Number:
        assert self.name is not None
        return step.live[self.name]


@dataclass(frozen=True, eq=False, repr=False)
class FromCall(Source):
    name: str

    def value(self, step: Step) -> Number:
        if self.name not in step.extra:
            near = nearest(self.name, step.extra)
            hint = f" Did you mean {self.name!r} where the call says {near!r}?" if near else ""
            raise MissingArgument(
                f"{step.where}: needs the extra argument {self.name!r}: call "
                f"update(updates, state, params, {self.name}=…); the call gave "
                f"{sorted(step.extra) or 'none'}.{hint}"
            )
        given = step.extra[self.name]
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
    def children(self) -> Sequence[Source]:
        return self.factors

    def at(self, path: str) -> Source:
        return replace(self, factors=tuple(f.at(path) for f in self.factors), spec=None)

    def __repr__(self) -> str:
        return f"scaled({', '.join(core.show(f) for f in self.factors)})"

    def value(self, step: Step) -> Number:
        product: Number = 1.0
        for factor in self.factors:
            product = product * factor.value(step)
        return product


@dataclass(frozen=True, eq=False, repr=False)
class ByPath(Source):
    """Values by pattern; numbers when a rule takes it, anything (a label, a bool) as it is made."""

    rules: Mapping[str, Any]
    default: Any
    optional: bool | Collection[str]

    @property
    def children(self) -> Sequence[Source]:
        values = [*self.rules.values(), *([] if self.default is REQUIRED else [self.default])]
        return [v for v in values if isinstance(v, Source)]

    def pattern_at(self, path: str) -> str | None:
        return next((p for p in self.rules if re.search(p, path)), None)

    def pick(self, path: str) -> Any:
        pattern = self.pattern_at(path)
        return self.default if pattern is None else self.rules[pattern]

    def at(self, path: str) -> Source:
        picked: Source = self.pick(path)
        return picked.at(path)

    def check(self, paths: Sequence[str], where: str) -> None:
        """Raises ValueError for a pattern that claims no leaf, and for a leaf without a value."""
        claimed = {self.pattern_at(path) for path in paths}
        beside = {self.pattern_at(path) for path in _BESIDE.get()}
        idle = [p for p in self.rules if p not in claimed | beside and not self._may_idle(p)]
        if idle:
            raise ValueError(
                f"{where}: the pattern {idle[0]!r} claims no leaf: "
                f"{self._why_idle(idle[0], paths)} "
                f"If that is meant, say optional=[{idle[0]!r}]."
            )
        if None in claimed and self.default is REQUIRED:
            lost = [path for path in paths if self.pattern_at(path) is None]
            raise ValueError(
                f"{where}: no pattern matches {gtree.listed(lost)} and there is no "
                f"default. Give default=…, or a pattern for them."
            )

    def _why_idle(self, pattern: str, paths: Sequence[str]) -> str:
        claimed: dict[Any, list[str]] = {}
        for path in paths:
            if re.search(pattern, path):
                claimed.setdefault(self.pattern_at(path), []).append(path)
        if not claimed:
            return f"it is found in none of the paths {gtree.listed(list(paths), 20)}."
        told = [f"{earlier!r} claims {gtree.listed(of)}" for earlier, of in claimed.items()]
        return f"the first match wins, and {', '.join(told)}. Put {pattern!r} before it."

    def _may_idle(self, pattern: str) -> bool:
        return self.optional if isinstance(self.optional, bool) else pattern in self.optional

    def __call__(self, tree: Any, where: str = "by_path") -> Any:
        """The value at every leaf, as a tree: a mask or labels for anything that takes these."""
        flat = gtree.flatten(tree)
        paths = gtree.array_paths(flat)
        if paths:
            self.check(paths, where)
        pairs = zip(flat.paths, flat.values, strict=True)
        return flat.unflatten([None if x is None else self.pick(path) for path, x in pairs])


REQUIRED = object()

# What an optimizer has split among its parts: a pattern for one part's leaves is known in all.
_BESIDE: ContextVar[Collection[str]] = ContextVar("paths beside", default=())


@contextlib.contextmanager
def beside(paths: Collection[str]) -> Iterator[None]:
    """In this block a pattern of `by_path` may also be for one of these leaves only."""
    token = _BESIDE.set(paths)
    try:
        yield
    finally:
        _BESIDE.reset(token)


Hyper: TypeAlias = float | Array | Schedule | Source
"""What a rule accepts where it takes a number."""

Fixed: TypeAlias = Annotated[float, "known before the run"]
"""A number that decides over shapes: nothing injects or traces it."""


def takes_number(annotation: Any) -> bool:
    """Whether an argument is a number from any source; `annotation` is evaluated, not a text."""
    return Source in members(annotation)


def takes_numbers(annotation: Any) -> bool:
    """Whether it is a tuple of them, such as Adam's two averages in one argument."""
    pairs = [get_args(kind) for kind in members(annotation) if get_origin(kind) is tuple]
    return any(takes_number(kind) for kinds in pairs for kind in kinds)


def is_real(value: Any) -> bool:
    """One integer or floating-point number, of Python, NumPy or JAX; no bool."""
    kinds = int | float | np.generic | np.ndarray | jax.Array
    if isinstance(value, bool) or not isinstance(value, kinds) or np.shape(value) != ():
        return False
    dtype = jnp.result_type(value)
    return jnp.issubdtype(dtype, jnp.integer) or jnp.issubdtype(dtype, jnp.floating)


def is_zero(value: Any) -> bool:
    """Whether a number is the constant 0, known now."""
    return isinstance(value, int | float) and is_real(value) and value == 0


def as_float(value: Any) -> Array:
    """A strongly typed float array of at least float32, whatever kind of number it was."""
    value = jnp.asarray(value)
    floating = jnp.issubdtype(value.dtype, jnp.floating)
    return value.astype(gtree.wide(value.dtype) if floating else float)


def is_scheduled(value: Any) -> bool:
    """Whether a rule that takes this number has to count its steps."""
    match value:
        case ByPath():
            return any(is_scheduled(v) for v in (*value.rules.values(), value.default))
        case Scaled():
            return any(is_scheduled(f) for f in value.factors)
        case Source():
            return isinstance(value, Scheduled)
    return callable(value)


# ---------------------------------------------------------------- what users write


@core.recorded
def by_path(
    rules: Mapping[str, Any],
    default: Any = REQUIRED,
    *,
    optional: bool | Collection[str] = False,
) -> ByPath:
    """Chooses a value for each leaf by its path.

    Paths are the keys joined by ``/``, as in ``encoder/layers_0/attn/kernel`` (for Flax NNX
    without the last ``value``). Each pattern is a regular expression that is *searched* in the
    path; the first pattern that is found decides.

    Args:
      rules: pattern to value. Where a rule takes a number, a value is a number or any other
        source (a schedule, `tunable`, `from_call`, `scaled`); as a mask it is a bool, as a label
        for `partition` a string.
      default: the value of the leaves that no pattern matches; without it such a leaf is an error.
      optional: patterns that may claim no leaf, or True for all of them.

    Raises:
      ValueError: a pattern is no regular expression (at construction), claims no leaf, or a leaf
        has no value (at `init`).

    Example:
      >>> import gradx, jax.numpy as jnp
      >>> tx = gradx.sgd(gradx.by_path({"bias": 1.0}, default=0.1))
      >>> params = {"kernel": jnp.ones(1), "bias": jnp.ones(1)}
      >>> updates, _ = tx.update(params, tx.init(params), params)
      >>> updates
      {'bias': Array([-1.], dtype=float32), 'kernel': Array([-0.1], dtype=float32)}

    It is a function of a tree as well, so it serves wherever a mask or labels are asked for:

      >>> gradx.by_path({"bias": False}, default=True)(params)
      {'bias': False, 'kernel': True}
    """
    for pattern in rules:
        try:
            re.compile(pattern)
        except (re.error, TypeError) as error:
            raise ValueError(
                f"by_path: {pattern!r} is not a regular expression: {error}."
            ) from error
    check_optional(optional, rules, "by_path")
    return ByPath(dict(rules), default, optional)


def check_optional(optional: Any, names: Collection[Any], where: str) -> None:
    """Raises ValueError unless `optional` is a bool or names some of the patterns or labels."""
    if isinstance(optional, bool):
        return
    known = list(names)
    if isinstance(optional, str) or any(
        not isinstance(name, Hashable) or name not in known for name in optional
    ):
        raise ValueError(
            f"{where}: optional must be a list of some of {known}, or True; got "
            f"{core.show(optional)}."
        )


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
