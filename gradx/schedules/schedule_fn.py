"""A schedule that describes itself: how it reads, where its phases begin, and its arithmetic."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp

from gradx import core
from gradx.core.ranges import Scalar, as_float, is_real
from gradx.core.table import table
from gradx.numbers.hyper import constant
from gradx.numbers.sources import Array, Schedule, Source, scaled

__all__ = ["ScheduleFn", "product_schedule", "sum_schedule"]

Steps = int | float


@dataclass(frozen=True, eq=False, repr=False)
class ScheduleFn(core.Described):
    """A schedule whose `repr` is the code that made it.

    Schedules made by the same factory from equal arguments are equal and hash alike, so
    transforms that hold them can be static arguments of `jax.jit`; they can be pickled too.
    ``schedule * 0.5`` and ``schedule + other`` are schedules, and `print` shows the phases.

    Args:
      function: `count -> value`.
      spec: the factory and arguments it was made from.
      borders: the steps at which a phase ends and another one begins.

    Example:
      >>> import gradx
      >>> schedule = gradx.warmup_cosine_decay_schedule(0.0, 1.0, 10, 100)
      >>> schedule
      warmup_cosine_decay_schedule(0.0, 1.0, 10, 100)
      >>> schedule == gradx.warmup_cosine_decay_schedule(0.0, 1.0, 10, 100)
      True
      >>> print(schedule)
      steps      first value  last value
      ─────────  ───────────  ──────────
      0 to 10    0            1
      10 to 100  1            0
      from 100   0
      >>> print(f"{(schedule * 0.5)(10)}")
      0.5
    """

    function: Schedule
    spec: core.Spec | None = None
    borders: Sequence[Steps] = ()

    def __post_init__(self) -> None:
        plain = tuple(int(b) if float(b).is_integer() else float(b) for b in self.borders)
        object.__setattr__(self, "borders", plain)

    def __call__(self, count: Any) -> Array:
        return self.function(count)

    def with_spec(self, spec: core.Spec) -> ScheduleFn:
        return replace(self, spec=spec)

    def __repr__(self) -> str:
        return core.show(self.function) if self.spec is None else repr(self.spec)

    def __format__(self, spec: str) -> str:
        return format(repr(self), spec)  # a table would break the line of a log

    def __str__(self) -> str:
        try:
            return self._phases()
        except jax.errors.ConcretizationTypeError:  # its numbers are known in the run only
            return repr(self)

    def _phases(self) -> str:
        """The phases as a table: the steps, and the values where each begins and ends."""
        ends = sorted({0, *(math.ceil(b) for b in self.borders if b > 0)})
        rows = [("steps", "first value", "last value")]
        for begin, end in pairwise(ends):
            rows.append((f"{begin} to {end}", self._shown(begin), self._shown(end, begin)))
        rows.append((f"from {ends[-1]}", self._shown(ends[-1]), ""))
        return table(rows, [("", "")] * len(rows))

    def _shown(self, count: int, begin: int | None = None) -> str:
        """The value at a step; at the end of a phase what it goes to, not what the next one is."""
        value = float(self(count))
        if begin is not None and count - begin > 2:
            before, last = (float(self(count - n)) for n in (2, 1))
            if abs(value - last) > 2 * abs(last - before) + 1e-6 * abs(last):  # it jumps there
                value = last
        return f"{value:.4g}"

    def __mul__(self, other: Any) -> Any:
        return scaled(self, other) if isinstance(other, Source) else product_schedule(self, other)

    def __add__(self, other: Any) -> ScheduleFn:
        return sum_schedule(self, other)

    __rmul__, __radd__ = __mul__, __add__


def borders_of(*parts: Any) -> tuple[Steps, ...]:
    """The borders of several schedules that count the same steps."""
    return tuple(sorted({b for part in parts for b in getattr(part, "borders", ())}))


@core.recorded
def product_schedule(*parts: Schedule | Scalar) -> ScheduleFn:
    r"""The product of schedules and numbers, which ``schedule * 0.5`` writes shorter.

    .. math:: s(t) = \prod_i s_i(t)

    Args:
      *parts: schedules or numbers, at least one. For a product with a live number, or with one that
        goes by path, there is `scaled`.

    Example:
      >>> import gradx
      >>> warmup = gradx.warmup_constant_schedule(0.0, 1.0, warmup_steps=4)
      >>> schedule = warmup * gradx.cosine_decay_schedule(1.0, 10) * 0.1
      >>> print([f"{schedule(t):.3f}" for t in (0, 2, 5, 10)])
      ['0.000', '0.045', '0.050', '0.000']
    """
    factors = _checked(parts)

    def value(count: Any) -> Array:
        product: Any = 1.0
        for factor in factors:
            product = product * (as_float(factor(count)) if callable(factor) else factor)
        return jnp.broadcast_to(as_float(product), jnp.shape(count))

    return ScheduleFn(value, borders=borders_of(*parts))


@core.recorded
def sum_schedule(*parts: Schedule | Scalar) -> ScheduleFn:
    r"""The sum of schedules and numbers, which ``schedule + 0.1`` writes shorter.

    .. math:: s(t) = \sum_i s_i(t)

    Args:
      *parts: schedules or numbers, at least one.

    Example:
      >>> import gradx
      >>> schedule = gradx.linear_schedule(1.0, 0.0, 4) + 0.5
      >>> [float(schedule(t)) for t in (0, 2, 4)]
      [1.5, 1.0, 0.5]
    """
    terms = _checked(parts)

    def value(count: Any) -> Array:
        total: Any = 0.0
        for term in terms:
            total = total + (as_float(term(count)) if callable(term) else term)
        return jnp.broadcast_to(as_float(total), jnp.shape(count))

    return ScheduleFn(value, borders=borders_of(*parts))


def _checked(parts: Sequence[Any]) -> list[Any]:
    if not parts:
        raise ValueError(f"{core.where()}: needs at least one schedule or number.")
    for i, part in enumerate(parts):
        if isinstance(part, Source) or not (callable(part) or is_real(part)):
            raise ValueError(
                f"{core.where()}: parts[{i}] must be a schedule or a number, got "
                f"{core.show(part)}. A number that is live or by path can be multiplied, by "
                f"scaled(…), but not added."
            )
    return [
        part if callable(part) else constant(f"parts[{i}]", part) for i, part in enumerate(parts)
    ]
