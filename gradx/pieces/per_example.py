"""Per-example gradients, each clipped by its norm before they are summed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from gradx import core
from gradx.core import Updates
from gradx.core import trees as gtree
from gradx.core.calls import checked
from gradx.core.roots import sqrt
from gradx.lowering.reading import reread, unshared
from gradx.numbers import hyper
from gradx.numbers.sources import Array

__all__ = ["per_example_global_norm_clip", "per_example_layer_norm_clip"]


# ---------------------------------------------------------------- a tree with a batch axis


def examples(grads: Updates, where: str) -> tuple[gtree.Flat, int]:
    """The flattened tree, and how many examples there are: the length of every first axis.

    Raises:
      ValueError: a leaf is not a numeric array, has no first axis, or one of another length.
    """
    flat = gtree.flatten(grads)
    arrays = [i for i, g in enumerate(flat.values) if g is not None]
    for i in arrays:
        g = flat.values[i]
        dtype = getattr(g, "dtype", None)
        if dtype is None or not jnp.issubdtype(dtype, jnp.number):
            raise ValueError(
                f"{where}: the gradient at {flat.paths[i]!r} must be a numeric array, got "
                f"{core.show(g)}."
            )
        if not g.ndim:
            raise ValueError(
                f"{where}: the gradient at {flat.paths[i]!r} is a single number: it has no first "
                f"axis over the examples. jax.vmap(jax.grad(loss), (None, 0)) makes one."
            )
    if not arrays:
        return flat, 0
    first, size = arrays[0], len(flat.values[arrays[0]])
    for i in arrays:
        if len(flat.values[i]) != size:
            raise ValueError(
                f"{where}: the first axis of every gradient goes over the examples, but at "
                f"{flat.paths[first]!r} there are {size}, and {len(flat.values[i])} at "
                f"{flat.paths[i]!r}."
            )
    if not size:
        raise ValueError(f"{where}: there are no examples: the first axes have length 0.")
    return flat, size


def factors(leaves: Sequence[Array], bound: Any) -> Array:
    """The factor of each example, so that its norm over these leaves is in bounds.

    It is 1 for an example that is zero, and for one with a NaN, which then shows in the sum.
    """
    norms = sqrt(sum(_squares(g) for g in leaves))
    above = norms > bound
    return jnp.where(above, bound / jnp.where(above, norms, 1.0), 1.0)


@jax.jit  # one trace per shape and dtype, instead of one per leaf
def _squares(g: Array) -> Array:
    return jnp.sum(gtree.abs_sq(g.astype(gtree.wide(g.dtype))), axis=tuple(range(1, g.ndim)))


@jax.jit
def weighted_sum(weights: Array, g: Array) -> Array:
    """The sum of all examples, each times its weight, in float32 or wider."""
    if g.dtype != gtree.wide(g.dtype):
        # No product of matrices as below, and nothing shared with the norms: for either, a widened
        # copy of all examples would be stored.
        weights, g = unshared(weights, g), reread(g)
        wide = g.astype(gtree.wide(g.dtype))
        return jnp.sum(wide * weights.reshape(-1, *[1] * (g.ndim - 1)), axis=0)
    # In full precision also on accelerators, since rounding would put examples out of bounds.
    return jnp.tensordot(weights, g, axes=1, precision=jax.lax.Precision.HIGHEST)


def _as_stored(total: Array, g: Array) -> Array:
    return total.astype(g.dtype) if jnp.issubdtype(g.dtype, jnp.inexact) else total


# ---------------------------------------------------------------- the public functions


@checked
def per_example_global_norm_clip(grads: Updates, l2_norm_clip: float) -> tuple[Updates, Array]:
    r"""Clips each example's gradient by its norm, and sums over the examples, as in DP-SGD.

    .. math:: s = \sum_{b=1}^{B} g_b \min(1, c / \lVert g_b \rVert), \qquad
              \lVert g_b \rVert = \sqrt{\textstyle\sum_i |g_{b,i}|^2}

    Args:
      grads: a tree of gradients with a first axis over the examples, as
        `jax.vmap(jax.grad(loss), (None, 0))` makes them; `None` leaves stay.
      l2_norm_clip: \(c\) in [0, inf]. The norm is that over all leaves.

    Returns:
      The sum over the examples, a tree like the parameters in the gradients' dtypes; and how many
      examples were out of bounds, int32 ().

    Raises:
      ValueError: a leaf has no first axis, or first axes differ; the message names the path.

    Example:
      >>> import gradx, jax.numpy as jnp
      >>> grads = {"w": jnp.array([[3.0, 4.0], [0.0, 1.0], [0.0, 0.0]])}
      >>> gradx.per_example_global_norm_clip(grads, 2.5)
      ({'w': Array([1.5, 3. ], dtype=float32)}, Array(1, dtype=int32))

    Reference: Abadi et al., *Deep learning with differential privacy*,
    https://arxiv.org/abs/1607.00133. Sums are added up in float32 or wider; Optax adds half
    precision in half precision.
    """
    where = "per_example_global_norm_clip"
    with core.inside(where):
        bound = hyper.constant("l2_norm_clip", l2_norm_clip, "[0, inf]")
    flat, _ = examples(grads, where)
    leaves = [g for g in flat.values if g is not None]
    if not leaves:
        return grads, jnp.zeros((), jnp.int32)
    weights = factors(leaves, bound)
    sums = [None if g is None else _as_stored(weighted_sum(weights, g), g) for g in flat.values]
    return flat.unflatten(sums), jnp.sum(weights < 1.0, dtype=jnp.int32)


@checked
def per_example_layer_norm_clip(
    grads: Updates, global_l2_norm_clip: float, uniform: bool = True
) -> tuple[Updates, Updates]:
    r"""Clips each leaf of each example's gradient by its own norm, and sums over the examples.

    .. math:: s_i = \sum_{b=1}^{B} g_{b,i} \min(1, c_i / \lVert g_{b,i} \rVert), \qquad
              c_i = c \sqrt{1 / K} \quad\text{or, not uniform,}\quad c \sqrt{D_i / D}

    There are \(K\) leaves, with \(D_i\) elements in a leaf and \(D\) in all of them. Then the norm
    of the whole is at most \(c\).

    Args:
      grads: a tree of gradients with a first axis over the examples; `None` leaves stay.
      global_l2_norm_clip: \(c\) in [0, inf].
      uniform: give every leaf the same bound; else one that grows with its size.

    Returns:
      The sum over the examples, a tree like the parameters; and a tree of how many examples were
      out of bounds at each leaf, int32 ().

    Raises:
      ValueError: a leaf has no first axis, or first axes differ; the message names the path.

    Example:
      >>> import gradx, jax.numpy as jnp
      >>> grads = {"b": jnp.array([[5.0], [0.5]]), "w": jnp.array([[3.0, 4.0], [0.0, 1.0]])}
      >>> gradx.per_example_layer_norm_clip(grads, 2**0.5)[0]
      {'b': Array([1.5], dtype=float32), 'w': Array([0.6, 1.8], dtype=float32)}

    Reference: McMahan et al., *Learning differentially private recurrent language models*,
    https://arxiv.org/abs/1710.06963.
    """
    where = "per_example_layer_norm_clip"
    with core.inside(where):
        bound = hyper.constant("global_l2_norm_clip", global_l2_norm_clip, "[0, inf]")
    flat, size = examples(grads, where)
    leaves = [g for g in flat.values if g is not None]
    total = sum(g.size // size for g in leaves)
    sums: list[Any] = []
    counts: list[Any] = []
    for g in flat.values:
        if g is None:
            sums.append(None)
            counts.append(None)
            continue
        share = 1 / len(leaves) if uniform else g.size // size / total
        weights = factors([g], bound * math.sqrt(share))
        sums.append(_as_stored(weighted_sum(weights, g), g))
        counts.append(jnp.sum(weights < 1.0, dtype=jnp.int32))
    return flat.unflatten(sums), flat.unflatten(counts)
