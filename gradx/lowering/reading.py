"""Values that are to be read or calculated twice, where a compiler would rather keep them."""

from __future__ import annotations

from typing import Any

import jax

from gradx.lowering.policy import by_target
from gradx.lowering.varying import varies_over, vary

Array = jax.Array


def reread(tree: Any) -> Any:
    """The same arrays, to be read from memory once more; what is no array stays.

    What two consumers calculate of an array alike (its square, its value in float32), XLA
    calculates once, and for CPUs it puts it aside in an array of its own. It does not know that the
    two read the same, if one reads this. Ask for all arrays of a pass at once: that is one choice.
    """
    structure: Any
    leaves, structure = jax.tree.flatten(tree)
    places = [i for i, x in enumerate(leaves) if isinstance(x, jax.Array)]
    arrays = [leaves[i] for i in places]
    if not arrays:
        return tree
    again = by_target("reread", _behind_barriers, _as_they_are, arrays)
    for i, x in zip(places, again, strict=True):
        leaves[i] = x
    return structure.unflatten(leaves)


def _behind_barriers(arrays: list[Array]) -> list[Array]:
    return [jax.lax.optimization_barrier(x) for x in arrays]


def _as_they_are(arrays: list[Array]) -> list[Array]:
    return arrays


def unshared(x: Array, leaf: Array) -> Array:
    """The same number or array, for this use alone.

    What two consumers share, an expensive value or a square of the gradient, XLA for CPUs stores
    for them; and a number that the sums of several leaves share it makes an array of. `leaf` is any
    array of the leaf: without one, all leaves would share it again. Inside `shard_map` the result
    varies over the axes that the leaf varies over.
    """
    return by_target("unshared", _behind_one_barrier, _varying, x, leaf)


def _behind_one_barrier(x: Array, leaf: Array) -> Array:
    return _varying(jax.lax.optimization_barrier((x, leaf))[0], leaf)


def _varying(x: Array, leaf: Array) -> Array:
    return vary(x, varies_over(leaf))
