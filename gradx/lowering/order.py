"""Orders writes so that XLA overwrites arrays in place, without a copy of the old value.

Which one to take, by what has to wait for what:

* a new array of the state, for others that are made of its old value: `write_after`;
* a new array that is not calculated from the old one: `in_place`;
* a new array, for a number that is calculated from the old one: `once_known`;
* the updates, for work on the parameters under a condition: `once_stored`; a gate: `known_after`;
* sums, over arrays that were just written: `under_condition`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp

from gradx.lowering.policy import by_target
from gradx.lowering.reading import at_arrays
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


def under_condition(needed: Array, calculate: Callable[[], T], otherwise: Callable[[], T]) -> T:
    """`calculate()`; where it is not `needed` it must give what `otherwise()` gives.

    For sums over arrays that the step has just written. On CPUs they run under a conditional; else
    XLA would keep a copy of the written part for them.
    """
    acting = functools.partial(jax.lax.cond, needed, calculate, otherwise)
    return by_target("under_condition", acting, calculate)


def known_after(gate: Array) -> Array:
    """`gate`, as a result of work in some steps that reads arrays of the state (`in_some_steps`).

    What is gated by the result overwrites these arrays after that work. Else XLA could write them
    first, and would copy the old ones.
    """
    passed: Array = jax.lax.optimization_barrier(gate)
    return passed


def once_known(number: Array) -> Array:
    """True; on some targets as a predicate that XLA has to calculate from the number.

    If the number is calculated from an array, what this predicate chooses is written later, and
    overwrites the array without a copy.
    """
    return by_target("once_known", _compared, _true, number)


def once_stored(values: T, number: Array) -> T:
    """The same arrays, for work that begins when `number` is known.

    If it comes from work on the parameters under a conditional, that work is done before the
    updates overwrite the parameters. XLA does not see this order, and copies the parameters in
    every step, also in those in which the conditional does nothing.
    """

    def waiting(arrays: list[Array]) -> list[Array]:
        return by_target("once_stored", _if_known, _all_at_once, arrays, number)

    made: T = at_arrays(waiting, values)
    return made


def _if_known(values: list[Array], number: Array) -> list[Array]:
    known = _compared(number.real)
    return [jnp.where(known, x, jnp.zeros((), x.dtype)) if _is_number(x) else x for x in values]


def _is_number(x: Array) -> bool:
    return jnp.issubdtype(x.dtype, jnp.inexact)  # not a random key, or a `float0`


def _all_at_once(values: list[Array], number: Array) -> list[Array]:
    axes = varies_over(number)
    return [vary(x, varies_over(x) | axes) if _is_number(x) else x for x in values]


def _compared(number: Array) -> Array:
    return (number <= jnp.inf) | jnp.isnan(number)


def _true(number: Array) -> Array:
    return vary(jnp.array(True), varies_over(number))
