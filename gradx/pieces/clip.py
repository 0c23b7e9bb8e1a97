"""Bounds on the updates: by element, by leaf, by unit, and by the norm of the whole tree."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax.numpy as jnp

from gradx import core
from gradx.core import Transform
from gradx.core import trees as gtree
from gradx.core.roots import sqrt
from gradx.lift.leafwise import leafwise
from gradx.lift.passes import widen
from gradx.lift.stages import Decided, LeafState, Numbers, Sums
from gradx.numbers.sources import Array, Hyper
from gradx.pieces.norms import by_factor, rms, squares

__all__ = [
    "adaptive_grad_clip",
    "clip",
    "clip_by_block_rms",
    "clip_by_global_norm",
    "unitwise_clip",
    "unitwise_norm",
]

F = TypeVar("F", bound=Callable[..., Any])

CLIPS: set[Callable[..., Any]] = set()
"""The factories of clips, which `watch` tells apart in a chain."""


def clips(factory: F) -> F:
    """Says that what a factory makes is a clip: all that it does is to bound large updates."""
    CLIPS.add(factory)
    return factory


@clips
@core.recorded
def clip(max_delta: Hyper) -> Transform:
    r"""Clips every element of the updates.

    .. math:: u \leftarrow \min(\max(u, -c), c)

    Raises:
      ValueError: for a complex update, which has no order.

    Example:
      >>> import gradx, jax.numpy as jnp
      >>> tx = gradx.clip(1.0)
      >>> tx.update(jnp.array([-3.0, 0.5]), tx.init(jnp.ones(2)))[0]
      Array([-1. ,  0.5], dtype=float32)
    """
    return leafwise(_clip, hypers={"max_delta": max_delta})


def _clip(g: Array, s: LeafState, p: None, h: Numbers) -> tuple[Array, LeafState]:
    if jnp.iscomplexobj(g):
        raise ValueError("clip: complex updates have no order; clip_by_block_rms bounds them.")
    return jnp.clip(g, -h.max_delta, h.max_delta), s


@clips
@core.recorded
def clip_by_global_norm(max_norm: Hyper, *, axis_name: Any = None) -> Transform:
    r"""Shrinks all updates by one factor, so that their global norm does not exceed a bound.

    .. math:: u \leftarrow u \, \min(1, c / \lVert u \rVert), \qquad
              \lVert u \rVert = \sqrt{\textstyle\sum_i |u_i|^2}

    Args:
      axis_name: the mapped axis over which the updates are sharded, inside `shard_map` or `pmap`,
        or several, or `sharded`, which names the sharded leaves where types do not. Without it the
        norm there is that of the local shard. Under `jit` with sharded arrays it is not needed.

    Example:
      >>> import gradx, jax.numpy as jnp
      >>> tx = gradx.clip_by_global_norm(1.0)
      >>> grads = {"a": jnp.array([3.0]), "b": jnp.array([4.0])}
      >>> tx.update(grads, tx.init(grads))[0]
      {'a': Array([0.6], dtype=float32), 'b': Array([0.8], dtype=float32)}

    Leaves that a mask, `partition` or `freeze` keeps from this transformation have no share in the
    norm. A norm that is not finite makes the updates NaN or zero, as in Optax.

    Reference: Pascanu et al., *On the difficulty of training recurrent neural networks*,
    https://arxiv.org/abs/1211.5063. Deviation from Optax: the factor is one scalar that the leaves
    are multiplied by, where Optax divides every element; the norm is summed in float32 or wider.
    """
    return leafwise(
        by_factor,
        measure=squares,
        per_tree=_factor,
        hypers={"max_norm": max_norm},
        axis_name=axis_name,
    )


def _factor(h: Numbers, sums: Sums) -> Decided:
    return {"factor": shrinking(sqrt(sums["squares"]), h.max_norm)}, {}


def shrinking(norm: Array, bound: Any, least: float = 0.0) -> Array:
    """min(1, bound / norm), with a derivative also where the norm is 0 or the bound infinite."""
    below = norm < bound
    return jnp.where(below, 1.0, bound / jnp.maximum(jnp.where(below, 1.0, norm), least))


@clips
@core.recorded
def clip_by_block_rms(threshold: Hyper, *, axis_name: Any = None) -> Transform:
    r"""Shrinks each leaf so that the root of its mean square does not exceed a bound.

    .. math:: u_i \leftarrow u_i / \max(1, \mathrm{RMS}(u_i) / c)

    Example:
      >>> import gradx, jax.numpy as jnp
      >>> tx = gradx.clip_by_block_rms(1.0)
      >>> tx.update(jnp.array([2.0, -2.0]), tx.init(jnp.ones(2)))[0]
      Array([ 1., -1.], dtype=float32)

    Reference: Shazeer and Stern, *Adafactor*, https://arxiv.org/abs/1804.04235, section 6.
    """
    return leafwise(
        by_factor, per_leaf=_rms_factor, hypers={"threshold": threshold}, axis_name=axis_name
    )


def _rms_factor(g: Any, s: LeafState, p: Any, h: Numbers) -> Mapping[str, Array]:
    return {"factor": 1 / jnp.maximum(1.0, rms(g, h.span) / h.threshold)}


@clips
@core.recorded
def adaptive_grad_clip(
    clipping: Hyper, eps: Hyper = 1e-3, axis: int | tuple[int, ...] | None = None
) -> Transform:
    r"""Adaptive gradient clipping: bounds each unit's update by a share of the unit's norm.

    .. math:: u_j \leftarrow u_j \min\left(1,
              c\,\frac{\max(\lVert \theta_j \rVert, \epsilon)}{\lVert u_j \rVert}\right)

    Args:
      eps: the least norm of a parameter, so that parameters that begin at zero can move.
      axis: the axes that make up a unit. By default the leaf's rank decides, for kernels (…, in,
        out): all of a vector; axis 0 of rank 2 and 3; axes 0-2 of rank 4, 0-3 of rank 5.

    Raises:
      ValueError: `update` is called without the parameters; a leaf of rank 6 or more, without
        `axis`.

    Example:
      >>> import gradx, jax.numpy as jnp
      >>> tx = gradx.adaptive_grad_clip(0.1)
      >>> p = jnp.array([3.0, 4.0])
      >>> tx.update(jnp.array([0.0, 2.0]), tx.init(p), p)[0]
      Array([0. , 0.5], dtype=float32)

    Reference: Brock et al., *High-performance large-scale image recognition without
    normalization*, https://arxiv.org/abs/2102.06171.
    """
    axes = tuple(axis) if isinstance(axis, list | tuple) else axis
    return leafwise(
        _clip_units,
        hypers={"clipping": clipping, "eps": eps},
        flags={"axis": axes},
        needs_params=True,
    )


def _clip_units(g: Array, s: LeafState, p: Array, h: Numbers) -> tuple[Array, LeafState]:
    bound = h.clipping * jnp.maximum(_unit_norm(p, h.axis, "adaptive_grad_clip"), h.eps)
    return unitwise_clip(_unit_norm(g, h.axis, "adaptive_grad_clip"), bound, g), s


# ---------------------------------------------------------------- of single arrays


def unitwise_norm(x: Array, axis: int | tuple[int, ...] | None = None) -> Array:
    r"""The norm of the unit that each element belongs to.

    .. math:: y_i = \lVert x_j \rVert \text{ for the unit } j \ni i

    Args:
      x: one array, real or complex.
      axis: the axes that make up a unit. By default the rank decides, for kernels (…, in, out):
        all of a vector; axis 0 of rank 2 and 3; axes 0-2 of rank 4, 0-3 of rank 5.

    Returns:
      An array of the shape of `x`, real, float32 or wider. (Optax sums half precision in half
      precision.)

    Raises:
      ValueError: an array of rank 6 or more, without `axis`.

    Example:
      >>> import gradx, jax.numpy as jnp
      >>> gradx.unitwise_norm(jnp.array([[3.0, 0.0], [4.0, 1.0]]))
      Array([[5., 1.],
             [5., 1.]], dtype=float32)

    Reference: Brock et al., *High-performance large-scale image recognition without
    normalization*, https://arxiv.org/abs/2102.06171.
    """
    x = jnp.asarray(x)
    norm = _unit_norm(x.astype(gtree.wide(x.dtype)), axis, "unitwise_norm")
    return jnp.broadcast_to(norm, x.shape)


def unitwise_clip(g_norm: Array, max_norm: Array, grad: Array, div_eps: float = 1e-6) -> Array:
    r"""Shrinks the units of one array whose norm exceeds a bound.

    .. math:: u = g \text{ where } n < c, \qquad
              u = g\, c / \max(n, \epsilon) \text{ elsewhere}

    Args:
      g_norm: \(n\), the norm of each element's unit, as `unitwise_norm` gives it: of the shape of
        `grad`, or of length 1 in the axes that make up a unit.
      max_norm: \(c\), the bound of each element's unit, of the same shape as `g_norm`.
      grad: \(g\), one array.
      div_eps: \(\epsilon\); it only keeps the branch that is not taken finite.

    Returns:
      An array of the shape and dtype of `grad`.

    Raises:
      ValueError: the shapes do not match.

    Example:
      >>> import gradx, jax.numpy as jnp
      >>> g = jnp.array([[3.0, 0.0], [4.0, 1.0]])
      >>> gradx.unitwise_clip(gradx.unitwise_norm(g), jnp.full((2, 2), 2.0), g)
      Array([[1.2, 0. ],
             [1.6, 1. ]], dtype=float32)

    Reference: Brock et al., *High-performance large-scale image recognition without
    normalization*, https://arxiv.org/abs/2102.06171.
    """
    grad, shape = jnp.asarray(grad), jnp.shape(g_norm)
    units = all(n in (1, full) for n, full in zip(shape, grad.shape, strict=False))
    if jnp.shape(max_norm) != shape or len(shape) != grad.ndim or not units:
        raise ValueError(
            f"unitwise_clip: the norms have shape {shape} and their bounds {jnp.shape(max_norm)}; "
            f"both must have that of the array, {grad.shape}, or length 1 where it does not vary."
        )
    # One factor for each unit: the elements are multiplied, not divided.
    factor = shrinking(g_norm, max_norm, div_eps)
    if not gtree.is_inexact(grad):
        return grad * factor
    return (widen(grad) * factor).astype(grad.dtype)


def _unit_norm(x: Array, axis: int | tuple[int, ...] | None, where: str) -> Array:
    if axis is None:
        rank = jnp.ndim(jnp.squeeze(x)) if x.ndim > 1 else x.ndim
        if rank > 1 and x.ndim > 5:
            raise ValueError(
                f"{where}: which axes of a leaf of shape {x.shape} make up a unit? Say axis=(…)."
            )
        axis = None if rank <= 1 else {2: (0,), 3: (0,), 4: (0, 1, 2), 5: (0, 1, 2, 3)}[x.ndim]
    return sqrt(jnp.sum(gtree.abs_sq(x), axis=axis, keepdims=True))
