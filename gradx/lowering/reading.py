"""Makes XLA read or calculate a value twice, where it would store it in between."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from gradx.lowering.policy import by_target
from gradx.lowering.varying import varies_over, vary

Array = jax.Array


def reread(tree: Any) -> Any:
    """The same arrays, to be read from memory once more; what is no array stays.

    If two consumers calculate the same from an array (its square, its value in float32), XLA
    calculates it once, and on CPUs stores it. If one of them reads this instead, XLA does not know
    that both read the same. Pass all arrays of a pass at once, so that there is one choice of
    target.
    """
    return at_arrays(
        lambda arrays: by_target("reread", _behind_barriers, _as_they_are, arrays), tree
    )


def at_arrays(work: Callable[[list[Array]], list[Array]], tree: Any) -> Any:
    """The tree with its arrays replaced by what `work` makes of all of them at once."""
    structure: Any
    leaves, structure = jax.tree.flatten(tree)
    places = [i for i, x in enumerate(leaves) if isinstance(x, jax.Array)]
    if not places:
        return tree
    for i, x in zip(places, work([leaves[i] for i in places]), strict=True):
        leaves[i] = x
    return structure.unflatten(leaves)


def _behind_barriers(arrays: list[Array]) -> list[Array]:
    return [jax.lax.optimization_barrier(x) for x in arrays]


def _as_they_are(arrays: list[Array]) -> list[Array]:
    return arrays


def unshared(x: Array, leaf: Array) -> Array:
    """The same number or array, for one use alone.

    On CPUs XLA stores what two consumers share, such as an expensive value or a square of the
    gradient. A number that the sums of several leaves share becomes an array. `leaf` is any array
    of the leaf: without one, all leaves would share the value again. Inside `shard_map` the result
    varies over the axes that the leaf varies over.
    """
    return by_target("unshared", _behind_one_barrier, _varying, x, leaf)


def _behind_one_barrier(x: Array, leaf: Array) -> Array:
    return _varying(jax.lax.optimization_barrier((x, leaf))[0], leaf)


def _varying(x: Array, leaf: Array) -> Array:
    return vary(x, varies_over(leaf))
