"""Orders writes so that XLA overwrites arrays in place, without a copy of the old value."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from gradx.lowering.policy import by_target
from gradx.lowering.varying import varies_over, vary

T = TypeVar("T")

Array = jax.Array


def write_after(value: Array, *done: Array) -> Array:
    """`value`, for an array of the state; it is written after `done`, made of the old value.

    XLA does not see that it could calculate these first and then write in place: it copies the old
    array, or the new one, in a separate kernel. `done` are arrays that are stored anyway. Where one
    of them is NaN the value is, too, on the targets where this acts.
    """
    return by_target("write_after", _waiting, _at_once, value, *done)


def _waiting(value: Array, *done: Array) -> Array:
    for x in done:
        value = jnp.where(jnp.isnan(x), x, value)
    return value


def _at_once(value: Array, *done: Array) -> Array:
    axes: frozenset[str] = frozenset().union(*map(varies_over, (value, *done)))
    return vary(value.astype(jnp.result_type(value, *done)), axes)


def in_place(new: Array, old: Array) -> Array:
    """`new`, written over `old` in the state, although it is not calculated from it.

    On GPUs and TPUs XLA writes over an array only what is made of it. Anything else it writes
    elsewhere, and copies in a separate kernel. So `old` is chosen behind a predicate that is always
    false, which XLA does not see. An update that continues from the new value should read this one.
    """
    return by_target("in_place", _never_old, _new, new, old)


def _never_old(new: Array, old: Array) -> Array:
    never = (old.real < 0) & (old.real > 0)
    return jnp.where(never, old.astype(new.dtype), new)


def _new(new: Array, old: Array) -> Array:
    return vary(new, varies_over(new) | varies_over(old))


def once_measured(size: Array, tree: Any) -> Any:
    """The same floating-point arrays, for work that begins when `size`, never negative, is known.

    A conditional before it can then read arrays that this work overwrites. XLA does not see the
    order otherwise, and on CPUs and GPUs copies them in every step, also with a closed gate. It
    does not see either that this predicate is always false, and chooses in the loops that read the
    arrays.
    """
    never = size < 0

    def chosen(x: Any) -> Any:
        floating = isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jnp.inexact)
        return jnp.where(never, jnp.zeros((), x.dtype), x) if floating else x

    return jax.tree.map(chosen, tree)


def under_condition(needed: Array, calculate: Callable[[], T], otherwise: Callable[[], T]) -> T:
    """`calculate()`; where it is not `needed` it must give what `otherwise()` gives.

    For sums over arrays that the step has just written. On CPUs they run under a conditional; else
    XLA would keep a copy of the written part for them.
    """
    acting = functools.partial(jax.lax.cond, needed, calculate, otherwise)
    return by_target("under_condition", acting, calculate)


def once_known(number: Array) -> Array:
    """True; on some targets as a predicate that XLA has to calculate from the number.

    If the number is calculated from an array, what this predicate chooses is written later, and
    overwrites the array without a copy.
    """
    return by_target("once_known", _compared, _true, number)


def once_stored(value: Array, element: Array) -> Array:
    """`value`, made after the array that `element` is of.

    For work on the parameters that stands under a condition. The parameters are overwritten when
    the update is known. XLA may do this first, and copies them for the other work.
    """
    return by_target("once_stored", _if_known, _at_once, value, element)


def _if_known(value: Array, element: Array) -> Array:
    return jnp.where(_compared(element), value, jnp.zeros_like(value))


def _compared(number: Array) -> Array:
    return (number <= jnp.inf) | jnp.isnan(number)


def _true(number: Array) -> Array:
    return vary(jnp.array(True), varies_over(number))
