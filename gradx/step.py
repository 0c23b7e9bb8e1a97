"""What a step needs beside the transformation: adding updates, counting."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from gradx import tree as gtree
from gradx.core import Params, Updates

__all__ = ["apply_updates", "safe_increment"]


def apply_updates(params: Params, updates: Updates) -> Params:
    r"""Adds the updates to the parameters, in the parameters' dtypes.

    .. math:: \theta \leftarrow \theta + u

    Args:
      params: a tree of arrays; `None` leaves stay `None`.
      updates: a tree of the same structure and shapes; a `None` leaf leaves its parameter as it
        is. Additions are done in the wider of the two dtypes.

    Returns:
      The new parameters, each with the dtype of the old one.

    Raises:
      ValueError: the trees or two shapes do not match; the message names the path.

    Example:
      >>> import gradx, jax.numpy as jnp
      >>> gradx.apply_updates({"w": jnp.ones(2)}, {"w": jnp.full(2, -0.5)})
      {'w': Array([0.5, 0.5], dtype=float32)}

    Donate the parameters and the state to the jitted step, and return them in the order in which
    it takes them, `step(params, state, …) -> (params, state)`: then XLA updates them in place.
    """
    leaves = gtree.flatten(params)
    others = gtree.flatten_like(leaves, updates, "apply_updates: the updates")
    new = []
    for i, (p, u) in enumerate(zip(leaves.values, others, strict=True)):
        if p is None or u is None:
            new.append(p)
            continue
        if jnp.shape(p) != jnp.shape(u):
            raise ValueError(
                f"apply_updates: at {leaves.paths[i]!r} the parameter has shape {jnp.shape(p)} "
                f"and the update {jnp.shape(u)}."
            )
        new.append(_add(p, u))
    return leaves.unflatten(new)


@jax.jit  # one trace per shape and dtype, instead of one per leaf
def _add(p: jax.Array, u: jax.Array) -> jax.Array:
    return (p + u).astype(p.dtype)


def safe_increment(count: jax.Array) -> jax.Array:
    """`count + 1`, staying at the dtype's maximum instead of wrapping around.

    Args:
      count: an integer or float array of any shape, usually an int32 scalar.

    Example:
      >>> import gradx, jax.numpy as jnp
      >>> gradx.safe_increment(jnp.asarray(2**31 - 1, jnp.int32))
      Array(2147483647, dtype=int32)
    """
    count = jnp.asarray(count)
    info = jnp.iinfo if jnp.issubdtype(count.dtype, jnp.integer) else jnp.finfo
    top = jnp.asarray(info(count.dtype).max, count.dtype)
    return jnp.where(count < top, count + jnp.ones((), count.dtype), top)
