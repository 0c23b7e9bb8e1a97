"""`h`: the numbers, flags and scalars that a rule reads by name. No name hides another."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from gradx import core
from gradx.core.suggestions import hint
from gradx.numbers.sources import Array

Static: TypeAlias = tuple[tuple[str, Any, str], ...]

RESERVED = ("before", "gate", "span")  # what the lift itself hands to calls


class _Names(SimpleNamespace):
    __slots__ = ("_reader",)  # not among the names

    def __getattr__(self, name: str) -> Any:  # only called for a missing name
        if name.startswith("_"):  # what Python and its tools look for
            raise AttributeError(name)
        there = sorted(set(vars(self)) - set(RESERVED))
        raise AttributeError(
            f"the function {core.show(self._reader)} of a rule reads h.{name}, which is missing; "
            f"h has {there}.{hint(name, there)} Give the lift a number as hypers={{{name!r}: …}}, "
            f"an option as flags={{{name!r}: …}}, and make what depends on the step in per_step."
        )


def _named(h: Mapping[str, Any], reader: Any) -> Any:
    names = _Names(**h)
    names._reader = reader
    return names


def ask(function: Callable[..., Any], h: Mapping[str, Any], *further: Any) -> Any:
    """Calls a function of a rule with its `h`, with JAX's promotion of dtypes.

    The numbers of a step, from schedules and from the state, have several widths. A leaf gets them
    in its own width (see `suited`).
    """
    with jax.numpy_dtype_promotion("standard"):
        return function(_named(h, function), *further)


def namespace(
    static: Sequence[tuple[str, Any, str]], traced: Mapping[str, Array], reader: Any
) -> Any:
    """`h` for a function of a rule, `reader`, which errors name."""
    return _named({**{name: value for name, value, _ in static}, **traced}, reader)


@contextlib.contextmanager
def reading(rule: Any, p: Any) -> Iterator[None]:
    """Turns the error of a rule that reads parameters without needs_params into advice."""
    try:
        yield
    except (AttributeError, TypeError, ValueError) as error:
        if p is not None or not re.search(r"\bNone(Type)?\b", str(error)):
            raise
        raise TypeError(
            f"the function {core.show(rule)} of a rule failed ({error}). Its p is None, since the "
            f"lift was not told that it reads the parameters: give needs_params=True."
        ) from error


def suited(traced: Mapping[str, Array], x: Array) -> dict[str, Array]:
    """The numbers in the width of a leaf's arrays, which they must neither widen nor round."""
    if not jnp.issubdtype(x.dtype, jnp.inexact):
        return dict(traced)
    real = jnp.finfo(x.dtype).dtype

    def suits(v: Any) -> bool:  # a Python number always does
        floating = isinstance(v, jax.Array) and jnp.issubdtype(v.dtype, jnp.floating)
        return not floating or v.dtype == real

    return {name: v if suits(v) else v.astype(real) for name, v in traced.items()}


def split(h: Mapping[str, Any], where: str) -> tuple[Static, dict[str, Array]]:
    """The part of `h` that is known now, part of the program, and the part known in the run."""
    arrays_of = jax.Array | np.ndarray | np.generic
    traced = {k: jnp.asarray(v) for k, v in h.items() if isinstance(v, arrays_of)}
    # Equal values of different kinds (True and 1.0, 0.0 and -0.0) are different programs.
    static = tuple((k, v, f"{type(v)}{v}") for k, v in h.items() if k not in traced)
    for name, value, _ in static:
        if not isinstance(value, Hashable):
            raise ValueError(
                f"{where}: h.{name} is {core.show(value)}; flags and numbers must be hashable (a "
                f"tuple, not a list) or arrays."
            )
    return static, traced


def check_names(
    where: str, ranges: Mapping[str, str] | None, **places: Collection[str] | None
) -> None:
    """Raises ValueError for a name with two meanings, and for a range without a number."""
    place_of: dict[str, str] = dict.fromkeys(RESERVED, "what the lift gives")
    for place, names in places.items():
        for name in names or ():
            if name in place_of:
                raise _twice(where, name, place_of[name], place)
            place_of[name] = place
    if unknown := sorted(set(ranges or {}) - set(places["hypers"] or {})):
        raise ValueError(
            f"{where}: ranges has {unknown}, but hypers has only {sorted(places['hypers'] or {})}."
        )


def joined_names(
    h: Mapping[str, Any], further: Mapping[str, Any], place: str, where: str
) -> dict[str, Any]:
    """Both mappings in one; raises ValueError for a name in both."""
    for name in further:
        if name in h or name in RESERVED:
            raise _twice(where, name, "hypers, flags, scalars or an earlier function", place)
    return {**h, **further}


def _twice(where: str, name: str, first: str, second: str) -> ValueError:
    return ValueError(
        f"{where}: h.{name} would be two things: {name!r} is a name in {first} and in {second}. "
        f"Rename one of them."
    )
