"""Updates scaled by norms: of the whole tree, of a parameter, of the two against each other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import optax

from gradx import core
from gradx.core import Transform
from gradx.leafwise import leafwise
from gradx.sources import Array, Hyper
from gradx.stage import Decided, Numbers, Slots, Sums
from gradx.tree import abs_sq

__all__ = [
    "NormalizeState",
    "normalize",
    "normalize_by_update_norm",
]

NormalizeState = optax.EmptyState


# ---------------------------------------------------------------- of the whole tree


def squares(g: Array, slots: Slots, p: Any, h: Numbers) -> Mapping[str, Array]:
    """What a rule measures that needs the norm of all updates: ``sums["squares"]``."""
    return {"squares": jnp.sum(abs_sq(g))}


@core.recorded
def normalize(*, axis_name: Any = None) -> Transform:
    r"""Divides all updates by their common norm.

    .. math:: u \leftarrow u / \lVert u \rVert, \qquad
              \lVert u \rVert = \sqrt{\textstyle\sum_i |u_i|^2}

    Updates that are all zero stay zero; in Optax they become NaN.

    Args:
      axis_name: the mapped axis over which the updates are sharded, inside `shard_map` or `pmap`.

    Example:
      >>> import gradx, jax.numpy as jnp
      >>> tx = gradx.normalize()
      >>> tx.update(jnp.array([3.0, 4.0]), tx.init(jnp.ones(2)))[0]
      Array([0.6, 0.8], dtype=float32)

    Reference: the ascent step of Foret et al., *Sharpness-aware minimization*,
    https://arxiv.org/abs/2010.01412.
    """
    return leafwise(_shrink, measure=squares, per_tree=_by_norm, axis_name=axis_name)


def _by_norm(h: Numbers, sums: Sums) -> Decided:
    norm = jnp.sqrt(sums["squares"])
    return {"factor": jnp.where(norm > 0, 1 / norm, 1.0)}, {}


@core.recorded
def normalize_by_update_norm(
    scale_factor: Hyper = 1.0, eps: Hyper = 1e-6, *, axis_name: Any = None
) -> Transform:
    r"""Gives all updates together one norm.

    .. math:: u \leftarrow \frac{c\,u}{\lVert u \rVert + \epsilon}

    Args:
      scale_factor: \(c\), any finite number.
      eps: \(\epsilon\) in [0, inf).
      axis_name: the mapped axis over which the updates are sharded, inside `shard_map` or `pmap`.

    Example:
      >>> import gradx, jax.numpy as jnp
      >>> tx = gradx.normalize_by_update_norm(10.0, eps=0.0)
      >>> tx.update(jnp.array([3.0, 4.0]), tx.init(jnp.ones(2)))[0]
      Array([6., 8.], dtype=float32)

    Reference: Hazan et al., *Beyond convexity: stochastic quasi-convex optimization*,
    https://arxiv.org/abs/1507.02030.
    """
    return leafwise(
        _shrink,
        measure=squares,
        per_tree=_to_norm,
        hypers={"scale_factor": scale_factor, "eps": eps},
        ranges={"scale_factor": "(-inf, inf)"},
        axis_name=axis_name,
    )


def _to_norm(h: Numbers, sums: Sums) -> Decided:
    norm = jnp.sqrt(sums["squares"]) + h.eps
    return {"factor": jnp.where(norm > 0, h.scale_factor / norm, 0.0)}, {}


def _shrink(g: Array, slots: Slots, p: None, h: Numbers) -> tuple[Array, Slots]:
    return g * h.factor, slots
