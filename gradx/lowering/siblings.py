"""Lets a GPU work on many small arrays of one shape in one launch.

A launch takes microseconds, more than the bytes of a small leaf, and XLA makes a kernel or more for
each leaf. One of its passes joins kernels, but only siblings: kernels of one shape that read the
same array, which must not be a single number. The kernels of different leaves read no such array,
so they are given one: two flags that are always True, which XLA does not see. They choose each leaf
instead of zeros. XLA then joins leaves until a kernel has 96 operands and results: 13 leaves for
AdamW, 31 for SGD; or 8 sums. Nothing is copied, and each leaf stays where it is, so it makes no
difference how leaves are sharded.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from gradx.lowering.policy import by_target

Array = jax.Array

# Elements. The bytes that AdamW moves for a larger leaf take an H200 half a microsecond or more.
SMALL = 2**16

# No more, since XLA compares each leaf with all that read the same flags.
AT_ONCE = 128


def siblings(arrays: Sequence[Any]) -> list[Any]:
    """The same arrays, but small ones of one shape can share a kernel.

    Args:
      arrays: leaves, or anything in their place. One that is large, has a shape of its own, or is
        no part of a program (not traced) comes back as it is.
    """
    alike: dict[tuple[int, ...], list[int]] = {}
    for i, x in enumerate(arrays):
        if isinstance(x, jax.core.Tracer) and x.size <= SMALL:
            alike.setdefault(x.shape, []).append(i)
    groups = [
        places[k : k + AT_ONCE]
        for places in alike.values()
        for k in range(0, len(places) - 1, AT_ONCE)
    ]
    new = list(arrays)
    if groups:
        grouped = [[arrays[i] for i in group] for group in groups]
        chosen = by_target("siblings", _chosen_by_flags, _as_they_are, grouped)
        for group, xs in zip(groups, chosen, strict=True):
            for i, x in zip(group, xs, strict=True):
                new[i] = x
    return new


def _chosen_by_flags(groups: list[list[Array]]) -> list[list[Array]]:
    flags = jax.lax.optimization_barrier([jnp.ones(2, bool) for _ in groups])
    return [_chosen(two[0], group) for two, group in zip(flags, groups, strict=True)]


def _chosen(flag: Array, arrays: list[Array]) -> list[Array]:
    one_of = {jax.typeof(x): x for x in arrays}
    zeros = {kind: jnp.zeros_like(x) for kind, x in one_of.items()}
    return [jax.lax.select(flag, x, zeros[jax.typeof(x)]) for x in arrays]


def _as_they_are(groups: list[list[Array]]) -> list[list[Array]]:
    return groups
