"""Scales the updates by norms: of the whole tree, of a parameter, or by a ratio of norms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import jax.numpy as jnp
import optax

from gradx import core
from gradx.core import Transform
from gradx.core import trees as gtree
from gradx.core.calls import checked
from gradx.core.meaning import Number
from gradx.core.roots import sqrt
from gradx.core.trees import abs_sq
from gradx.lift import mapped
from gradx.lift.leafwise import leafwise
from gradx.lift.stages import Decided, LeafState, Numbers, Sums
from gradx.lowering.exact import root_or_zero
from gradx.numbers.sources import Array, Hyper

__all__ = [
    "NormalizeState",
    "ScaleByTrustRatioState",
    "global_norm",
    "normalize",
    "normalize_by_update_norm",
    "scale_by_param_block_norm",
    "scale_by_param_block_rms",
    "scale_by_trust_ratio",
]

NormalizeState = optax.EmptyState
ScaleByTrustRatioState = optax.EmptyState


# ---------------------------------------------------------------- of the whole tree


@checked
def global_norm(updates: Any, *, axis_name: Any = None) -> Array:
    r"""The Euclidean norm of a whole tree, as if its leaves were one vector.

    .. math:: \lVert u \rVert = \sqrt{\textstyle\sum_i |u_i|^2}

    Args:
      updates: a tree of arrays, real or complex; `None` leaves do not count.
      axis_name: the mapped axis over which the tree is sharded, inside `shard_map` or `pmap`, or
        several, or `sharded`: the squares are summed over it, so that every device sees the norm of
        the whole. Leaves that are the same on all devices count once.

    Returns:
      A scalar, float32 or wider. (Optax sums half-precision leaves in half precision.)

    Raises:
      ValueError: there is no such axis; a mask of `sharded` does not fit, or contradicts the types.

    Example:
      >>> import gradx, jax.numpy as jnp
      >>> gradx.global_norm({"a": jnp.array([3.0]), "b": jnp.array([4.0])})
      Array(5., dtype=float32)
    """
    with core.inside("global_norm"):
        over = mapped.axes(axis_name)
    return norm_over(updates, over, "global_norm")


def norm_over(updates: Any, over: mapped.Axes, where: str) -> Array:
    """`global_norm`, for a part that has checked its axes."""
    if not over:
        return sqrt(gtree.sum_of_squares(updates))
    flat = gtree.flatten(updates)
    spans = mapped.spans(over, flat, None, where)
    pairs = [(x, span) for x, span in zip(flat.values, spans, strict=True) if x is not None]
    parts = [jnp.zeros((), jnp.float32), *(gtree.square(jnp.asarray(x)) for x, _ in pairs)]
    return sqrt(mapped.sum_over(parts, [None, *(span for _, span in pairs)]))


def by_factor(g: Array, s: LeafState, p: Any, h: Numbers) -> tuple[Array, LeafState]:
    """The rule that multiplies by what was decided for the leaf or the tree: ``h.factor``."""
    return g * h.factor, s


def squares(g: Array, s: LeafState, p: Any, h: Numbers) -> Mapping[str, Array]:
    """Measures what a rule needs for the norm of all updates: ``sums["squares"]``."""
    return {"squares": jnp.sum(abs_sq(g))}


def squares_at_init(p: Array) -> Mapping[str, Array]:
    """Measures what a rule needs to begin with the norm: ``sums["squares"]``."""
    return {"squares": jnp.sum(abs_sq(p))}


def quotient(x: Array, y: Array) -> Array:
    """`x / y`, and 0 where `y` is not positive: all was zero so far, and eps is 0."""
    return jnp.where(y > 0, x / jnp.where(y > 0, y, 1.0), 0.0)


@core.recorded
def normalize(*, axis_name: Any = None) -> Transform:
    r"""Divides all updates by their global norm.

    .. math:: u \leftarrow u / \lVert u \rVert, \qquad
              \lVert u \rVert = \sqrt{\textstyle\sum_i |u_i|^2}

    Updates that are all zero stay zero; in Optax they become NaN. The squares are added in float32
    (or wider): norms above 1.8e19 count as infinite, and give zeros.

    Example:
      >>> import gradx, jax.numpy as jnp
      >>> tx = gradx.normalize()
      >>> tx.update(jnp.array([3.0, 4.0]), tx.init(jnp.ones(2)))[0]
      Array([0.6, 0.8], dtype=float32)

    Reference: the ascent step of Foret et al., *Sharpness-aware minimization*,
    https://arxiv.org/abs/2010.01412.
    """
    return leafwise(by_factor, measure=squares, per_tree=_by_norm, axis_name=axis_name)


def _by_norm(h: Numbers, sums: Sums) -> Decided:
    norm = sqrt(sums["squares"])
    return {"factor": 1 / jnp.where(norm > 0, norm, 1.0)}, {}


@core.recorded
def normalize_by_update_norm(
    scale_factor: Annotated[Hyper, Number("(-inf, inf)", "c")] = 1.0,
    eps: Hyper = 1e-6,
    *,
    axis_name: Any = None,
) -> Transform:
    r"""Scales all updates by one factor, so that they have a given global norm.

    .. math:: u \leftarrow \frac{c\,u}{\lVert u \rVert + \epsilon}

    Args:
      scale_factor: the norm that the updates get.

    Example:
      >>> import gradx, jax.numpy as jnp
      >>> tx = gradx.normalize_by_update_norm(10.0, eps=0.0)
      >>> tx.update(jnp.array([3.0, 4.0]), tx.init(jnp.ones(2)))[0]
      Array([6., 8.], dtype=float32)

    Reference: Hazan et al., *Beyond convexity: stochastic quasi-convex optimization*,
    https://arxiv.org/abs/1507.02030.
    """
    return leafwise(
        by_factor,
        measure=squares,
        per_tree=_to_norm,
        hypers={"scale_factor": scale_factor, "eps": eps},
        axis_name=axis_name,
    )


def _to_norm(h: Numbers, sums: Sums) -> Decided:
    norm = sqrt(sums["squares"]) + h.eps
    return {"factor": quotient(h.scale_factor, norm)}, {}


# ---------------------------------------------------------------- of a parameter


def norm(x: Array, span: mapped.Span | None = None) -> Array:
    r"""\(\lVert x \rVert\) of one leaf."""
    return _root(mapped.total(jnp.sum(abs_sq(x)), span))


def rms(x: Array, span: mapped.Span | None = None) -> Array:
    """The root of the mean square; 0 for a leaf without elements."""
    return _root(mapped.total(jnp.sum(abs_sq(x)), span) / max(mapped.size(x, span), 1))


def _root(square: Array) -> Array:
    return root_or_zero(square, sqrt(square))


@core.recorded
def scale_by_param_block_norm(
    min_scale: Annotated[Hyper, Number("[0, inf)", "c")] = 1e-3, *, axis_name: Any = None
) -> Transform:
    r"""Multiplies each leaf's update by the norm of its parameter.

    .. math:: u_i \leftarrow u_i \max(\lVert \theta_i \rVert, c)

    Args:
      min_scale: the least norm, so that parameters that begin at zero can move.

    Raises:
      ValueError: `update` is called without the parameters.

    Example:
      >>> import gradx, jax.numpy as jnp
      >>> tx = gradx.scale_by_param_block_norm()
      >>> p = jnp.array([3.0, 4.0])
      >>> tx.update(jnp.array([1.0, -1.0]), tx.init(p), p)[0]
      Array([ 5., -5.], dtype=float32)

    Reference: Bernstein et al., *On the distance between two neural networks and the stability of
    learning*, https://arxiv.org/abs/2002.03432, which makes every step relative to its parameter.
    """
    return _by_param(_param_norm, min_scale, axis_name)


@core.recorded
def scale_by_param_block_rms(
    min_scale: Annotated[Hyper, Number("[0, inf)", "c")] = 1e-3, *, axis_name: Any = None
) -> Transform:
    r"""Multiplies each leaf's update by the root of its parameter's mean square.

    .. math:: u_i \leftarrow u_i \max(\mathrm{RMS}(\theta_i), c)

    Args:
      min_scale: the least root mean square, so that parameters that begin at zero can move.

    Raises:
      ValueError: `update` is called without the parameters.

    Example:
      >>> import gradx, jax.numpy as jnp
      >>> tx = gradx.scale_by_param_block_rms()
      >>> p = jnp.array([2.0, -2.0])
      >>> tx.update(jnp.array([1.0, -1.0]), tx.init(p), p)[0]
      Array([ 2., -2.], dtype=float32)

    Reference: Shazeer and Stern, *Adafactor*, https://arxiv.org/abs/1804.04235, section 8.
    """
    return _by_param(_param_rms, min_scale, axis_name)


def _by_param(size: Any, min_scale: Hyper, axis_name: Any) -> Transform:
    return leafwise(
        by_factor,
        per_leaf=size,
        hypers={"min_scale": min_scale},
        axis_name=axis_name,
        needs_params=True,
    )


def _param_norm(g: Any, s: LeafState, p: Any, h: Numbers) -> Mapping[str, Array]:
    return {"factor": jnp.maximum(norm(p, h.span), h.min_scale)}


def _param_rms(g: Any, s: LeafState, p: Any, h: Numbers) -> Mapping[str, Array]:
    return {"factor": jnp.maximum(rms(p, h.span), h.min_scale)}


# ---------------------------------------------------------------- a ratio of norms


@core.recorded
def scale_by_trust_ratio(
    min_norm: Annotated[Hyper, Number("[0, inf)", "m")] = 0.0,
    trust_coefficient: Annotated[Hyper, Number("(0, inf)", "c")] = 1.0,
    eps: Hyper = 0.0,
    *,
    axis_name: Any = None,
) -> Transform:
    r"""Scales each leaf's update to a given share of its parameter's norm, as LARS and LAMB do.

    .. math:: u_i \leftarrow c\,u_i\,\frac{\max(\lVert \theta_i \rVert, m)}
              {\max(\lVert u_i \rVert, m) + \epsilon}

    Where one of the two (bounded) norms is 0, the update stays as it is.

    Args:
      min_norm: the least value of a norm. Smaller ones count as this.
      trust_coefficient: the step of a layer relative to its norm.

    Raises:
      ValueError: `update` is called without the parameters.

    Example:
      >>> import gradx, jax.numpy as jnp
      >>> tx = gradx.scale_by_trust_ratio(trust_coefficient=0.1)
      >>> p = jnp.array([3.0, 4.0])
      >>> tx.update(jnp.array([0.0, 200.0]), tx.init(p), p)[0]
      Array([0. , 0.5], dtype=float32)

    Reference: You et al., *Large batch training of convolutional networks*,
    https://arxiv.org/abs/1708.03888.
    """
    return leafwise(
        by_factor,
        per_leaf=_trust,
        hypers={"min_norm": min_norm, "trust_coefficient": trust_coefficient, "eps": eps},
        axis_name=axis_name,
        needs_params=True,
    )


def _trust(g: Any, s: LeafState, p: Any, h: Numbers) -> Mapping[str, Array]:
    of_p = jnp.maximum(norm(p, h.span), h.min_norm)
    of_g = jnp.maximum(norm(g, h.span), h.min_norm)
    both = (of_p > 0) & (of_g > 0)
    ratio = h.trust_coefficient * of_p / jnp.where(both, of_g + h.eps, 1.0)
    return {"factor": jnp.where(both, ratio, 1.0)}
