"""Matrices of one shape: one after the other, or as a stack, and how many of a stack at a time."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from gradx.lowering.conditional import rarely
from gradx.lowering.policy import by_target

Array = jax.Array
T = TypeVar("T")

# As many elements of matrices as a CPU's cache holds, together with a rule's temporaries.
_CACHED = 2**16
# So large a matrix keeps an accelerator busy for longer than it takes to begin with the next.
_BUSY = 2**20


def alone_or_stacked(
    size: int, alone: Callable[..., T], stacked: Callable[..., T], *arrays: Any, renewed: bool
) -> T:
    """The faster way for matrices of `size` elements: `stacked(*arrays)`, or one after the other,
    `alone(begin, *arrays)`, where the input x of each is `begin(x, before)` of the result before.

    Into a stack and out again takes four passes through memory: on the H200 Muon moves 139 bytes a
    parameter with stacks and 114 without, SOAP 457 and 408. But many small matrices are one
    product, and one program to compile. On CPUs a stack is multiplied a third slower than its
    matrices, so only the smallest are stacked there. Matrices that are `renewed` are decomposed,
    which is a long program on TPUs, so there they share one.
    """
    if size < _CACHED:
        return stacked(*arrays)
    in_turn, at_will = (partial(alone, begin) for begin in (_begun_after, _begun))
    if size < _BUSY:
        return by_target("alone", in_turn, stacked, *arrays)
    return by_target("in_turn", in_turn, stacked if renewed else at_will, *arrays)


def _begun_after(x: Array, before: Array) -> Array:
    """`x`, behind a predicate that XLA has to calculate from `before`, so that its use comes later.

    Else the temporaries of all leaves are alive at a time. Muon's on the H200 are 4.8 bytes a
    parameter then, and 1.3 if each leaf waits for the one before. On TPUs XLA does so by itself.
    """
    return jnp.where(_never(before), 0, x) if before.size else x


def _begun(x: Array, before: Array) -> Array:
    return x


def some_at_a_time(
    count: int, size: int, some: Callable[..., T], all_of_them: Callable[..., T], *stacks: Any
) -> T:
    """`some(n, *stacks)` on CPUs, for as many of the matrices as a cache holds; else all at once.

    `count` is the number of matrices, and `size` the elements of the largest array of one of them.
    """
    most = max(_CACHED // max(size, 1), 1)
    if count <= most:
        return all_of_them(*stacks)
    # A divisor, since a remainder would be compiled a second time; but not one that is too small.
    few = next((n for n in range(most, most // 4, -1) if count % n == 0), most)
    return by_target("some_at_a_time", partial(some, few), all_of_them, *stacks)


def unknown_places(places: list[int], value: Array) -> list[Array]:
    """The places; on CPUs behind a predicate that is always false, so that XLA cannot fold them.

    If XLA knows at which place each leaf is cut out of a stack, it compiles one kernel for each
    leaf, else one for all leaves of a shape. The predicate is calculated from `value`.
    """

    def known() -> list[Array]:
        return [jnp.int32(place) for place in places]

    def unknown(value: Array) -> list[Array]:
        zeros = [jnp.int32(0)] * len(places)
        made: list[Array] = rarely(_never(value), lambda: zeros, known, value)
        return made

    return by_target("unknown_places", unknown, lambda _: known(), value)


def _never(value: Array) -> Array:
    """A predicate that is always false, which XLA has to calculate from `value`."""
    return value.ravel()[0].real.astype(jnp.float32) > jnp.inf
