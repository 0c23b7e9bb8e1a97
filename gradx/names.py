"""`h`: what a rule reads by name, its numbers, flags and scalars. No name hides another."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from gradx import core
from gradx.sources import Array

Static: TypeAlias = tuple[tuple[str, Any, str], ...]

RESERVED = ("before", "gate", "made", "span")  # what the lift itself hands to calls


class _Names(SimpleNamespace):
    def __getattr__(self, name: str) -> Any:  # only asked for what there is not
        if name.startswith("__"):  # what Python and its tools look for
            raise AttributeError(name)
        there = sorted(set(vars(self)) - set(RESERVED))
        raise AttributeError(f"h has no {name!r}; it has {there}.")


def named(h: Mapping[str, Any]) -> Any:
    """`h` as a rule sees it."""
    return _Names(**h)


def namespace(static: Sequence[tuple[str, Any, str]], traced: Mapping[str, Array]) -> Any:
    return named({**{name: value for name, value, _ in static}, **traced})


def split(h: Mapping[str, Any], where: str) -> tuple[Static, dict[str, Array]]:
    """What is known now and becomes part of the program, and what is known only in the run."""
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
    """Raises ValueError for a name with two meanings, and for a range of no number."""
    place_of: dict[str, str] = dict.fromkeys(RESERVED, "what the lift gives")
    for place, names in places.items():
        for name in names or ():
            if name in place_of:
                raise _twice(where, name, place_of[name], place)
            place_of[name] = place
    if unknown := sorted(set(ranges or {}) - set(places["hypers"] or {})):
        raise ValueError(
            f"{where}: ranges has {unknown}, which hypers has not; it has "
            f"{sorted(places['hypers'] or {})}."
        )


def joined_names(
    h: Mapping[str, Any], further: Mapping[str, Any], place: str, where: str
) -> dict[str, Any]:
    """Both; raises ValueError for a name in both."""
    for name in further:
        if name in h or name in RESERVED:
            raise _twice(where, name, "hypers, flags, scalars or an earlier function", place)
    return {**h, **further}


def _twice(where: str, name: str, first: str, second: str) -> ValueError:
    return ValueError(
        f"{where}: h.{name} would be two things: {name!r} is a name in {first} and in {second}. "
        f"Rename one of them."
    )
