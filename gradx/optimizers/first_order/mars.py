"""MARS: gradients corrected by their change, which lowers the variance between batches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, NamedTuple

import jax.numpy as jnp

from gradx import core
from gradx.combinators.chain import chain
from gradx.core import Count, Transform, Updates
from gradx.core.meaning import Number
from gradx.core.roots import sqrt
from gradx.core.trees import abs_sq
from gradx.lift.averages import average, storage, weight_so_far, zero_moments, zeros
from gradx.lift.leafwise import leafwise
from gradx.lift.stages import Numbers
from gradx.lowering.order import in_place, write_after
from gradx.lowering.reading import unshared
from gradx.numbers.sources import Array, Hyper
from gradx.pieces.norms import norm
from gradx.pieces.weight_decay import DecayKind, scale_and_decay

__all__ = ["CorrectByMarsState", "ScaleByMarsState", "correct_by_mars", "mars", "scale_by_mars"]


# ---------------------------------------------------------------- the correction


class CorrectByMarsState(NamedTuple):
    """The state of `correct_by_mars`.

    Attributes:
      grad: the last gradient, like the parameters.
    """

    grad: Updates


@core.recorded
def correct_by_mars(
    b1: Hyper = 0.95,
    gamma: Annotated[Hyper, Number("[0, inf)", r"\gamma")] = 0.025,
    max_norm: Annotated[Hyper, Number(symbol="C")] = 1.0,
    *,
    axis_name: Any = None,
) -> Transform:
    r"""Corrects gradients by their change since the last step; MARS for any optimizer after it.

    .. math:: c = g_t + \gamma \frac{\beta_1}{1 - \beta_1} (g_t - g_{t-1}), \qquad
              u = c \min(1, C / \lVert c \rVert), \qquad g_0 = 0

    The norm is that of each leaf by itself. ``chain(correct_by_mars(), muon(0.02))`` is MARS-Muon;
    ``chain(correct_by_mars(), ema(0.95, debias=False), scale_by_sign(),
    scale_by_learning_rate(1e-4))`` is the authors' MARS-Lion.

    Args:
      b1: the decay of the momentum that follows.
      gamma: how strong the correction is; 0 is none.
      max_norm: the bound of a leaf's norm.

    Example:
      >>> import gradx, jax.numpy as jnp
      >>> tx = gradx.correct_by_mars(b1=0.5, gamma=0.5, max_norm=100.0)
      >>> state = tx.init(jnp.ones(1))
      >>> for g in (2.0, 3.0):
      ...     updates, state = tx.update(jnp.array([g]), state)
      >>> updates
      Array([3.5], dtype=float32)

    Reference: Yuan et al., *MARS: unleashing the power of variance reduction for training large
    models*, https://arxiv.org/abs/2411.10438. This is the form that the paper calls approximate:
    \(g_{t-1}\) is the gradient of the last batch at the last parameters. As in the authors' code it
    is 0 before the first step.
    """
    return leafwise(
        _correct,
        init={"grad": zeros},
        state=CorrectByMarsState,
        hypers={"b1": b1, "gamma": gamma, "max_norm": max_norm},
        per_step=_weight,
        per_leaf=_bound,
        axis_name=axis_name,
    )


def _weight(h: Numbers, t: Any) -> Mapping[str, Any]:
    return {"weight": h.gamma * h.b1 / (1 - h.b1)}


def _corrected(g: Array, old: Array, weight: Any) -> Array:
    return g + weight * (g - old)


def _bound(
    g: Any, s: CorrectByMarsState | ScaleByMarsState, p: Any, h: Numbers
) -> Mapping[str, Array]:
    weight = unshared(jnp.asarray(h.weight, g.real.dtype), g)
    size = norm(_corrected(g, s.grad, weight), h.span)
    return {"factor": jnp.where(size > h.max_norm, h.max_norm / size, 1.0)}


def _correct(
    g: Array, s: CorrectByMarsState, p: None, h: Numbers
) -> tuple[Array, CorrectByMarsState]:
    return _bounded(g, s.grad, h), s._replace(grad=in_place(g, s.grad))


def _bounded(g: Array, old: Array, h: Numbers) -> Array:
    # Scales both first: where their correction overflows the factor is 0, and 0 * inf is NaN.
    return _corrected(h.factor * g, h.factor * old, h.weight)


# ---------------------------------------------------------------- with Adam's moments


class ScaleByMarsState(NamedTuple):
    """The state of MARS.

    Attributes:
      count: the updates done so far, int32 ().
      mu: the first moment of the corrected gradients, like the parameters.
      nu: the second moment, like the parameters, real.
      grad: the last gradient, like the parameters.
    """

    count: Count
    mu: Updates
    nu: Updates
    grad: Updates


@core.recorded
def scale_by_mars(
    b1: Hyper = 0.95,
    b2: Hyper = 0.99,
    eps: Hyper = 1e-8,
    gamma: Annotated[Hyper, Number("[0, inf)", r"\gamma")] = 0.025,
    max_norm: Annotated[Hyper, Number(symbol="C")] = 1.0,
    mu_dtype: Any = None,
    *,
    axis_name: Any = None,
) -> Transform:
    r"""Rescales the updates by Adam's rule, with gradients that MARS has corrected.

    .. math::
        c &= g_t + \gamma \frac{\beta_1}{1 - \beta_1} (g_t - g_{t-1}), \qquad
             c \leftarrow c \min(1, C / \lVert c \rVert) \\
        \mu &\leftarrow \beta_1 \mu + (1 - \beta_1) c, \qquad
        \nu \leftarrow \beta_2 \nu + (1 - \beta_2) |c|^2 \\
        u &= \hat\mu / (\sqrt{\hat\nu} + \epsilon)

    The hats are bias corrections, as in `scale_by_adam`.

    Args:
      eps: With 0 an element that has had no gradient yet gives NaN.
      gamma: how strong the correction is; 0 is none.
      max_norm: the bound of a leaf's norm.

    Example:
      >>> import gradx, jax.numpy as jnp
      >>> tx = gradx.scale_by_mars(b1=0.5, b2=0.5, gamma=0.5, max_norm=100.0)
      >>> state = tx.init(jnp.ones(1))
      >>> for g in (2.0, 3.0):
      ...     updates, state = tx.update(jnp.array([g]), state)
      >>> updates.round(4)
      Array([0.9975], dtype=float32)

    Reference: Yuan et al., *MARS: unleashing the power of variance reduction for training large
    models*, https://arxiv.org/abs/2411.10438, its approximate form (see `correct_by_mars`).
    `correct_by_mars` and `scale_by_adam` after it are the same, at the cost of a temporary array.
    """
    return leafwise(
        _mars,
        init={**zero_moments(storage("mu_dtype", mu_dtype)), "grad": zeros},
        state=ScaleByMarsState,
        hypers={"b1": b1, "b2": b2, "eps": eps, "gamma": gamma, "max_norm": max_norm},
        per_step=_factors,
        per_leaf=_bound,
        axis_name=axis_name,
    )


def _factors(h: Numbers, t: Array) -> Mapping[str, Any]:
    return {
        **_weight(h, t),
        "of_mu": 1 / weight_so_far(h.b1, t),
        "of_nu": 1 / weight_so_far(h.b2, t),
    }


def _mars(g: Array, s: ScaleByMarsState, p: None, h: Numbers) -> tuple[Array, ScaleByMarsState]:
    c = _bounded(g, s.grad, h)
    mu = average(s.mu, c, h.b1)
    nu = average(s.nu, abs_sq(c), h.b2)
    u = h.of_mu * mu / (sqrt(h.of_nu * nu) + h.eps)
    # Both averages read the old gradient, so it is overwritten after both of them.
    return u, s._replace(mu=mu, nu=nu, grad=in_place(write_after(g, mu, nu), s.grad))


@core.recorded
def mars(
    learning_rate: Hyper,
    b1: Hyper = 0.95,
    b2: Hyper = 0.99,
    eps: Hyper = 1e-8,
    gamma: Annotated[Hyper, Number("[0, inf)", r"\gamma")] = 0.025,
    max_norm: Annotated[Hyper, Number(symbol="C")] = 1.0,
    mu_dtype: Any = None,
    weight_decay: Hyper = 0.0,
    mask: Any = None,
    *,
    decay: DecayKind = "learning_rate",
    axis_name: Any = None,
) -> Transform:
    r"""MARS-AdamW: AdamW on gradients that are corrected by their change.

    .. math:: u = -\eta_t \left(\hat\mu / (\sqrt{\hat\nu} + \epsilon) + \lambda \theta\right)

    The moments are as in `scale_by_mars`.

    Args:
      gamma: how strong the correction is; 0 is none.
      max_norm: the bound of the norm of a leaf's corrected gradient.

    Raises:
      ValueError: `update` is called without the parameters, and there is weight decay.

    Example:
      >>> import gradx, jax.numpy as jnp
      >>> tx = gradx.mars(0.1)
      >>> tx.update(jnp.array([-10.0]), tx.init(jnp.ones(1)), jnp.ones(1))[0]
      Array([0.1], dtype=float32)

    Reference: Yuan et al., *MARS: unleashing the power of variance reduction for training large
    models*, https://arxiv.org/abs/2411.10438. Deviation: the authors' code gives leaves without two
    axes to AdamW with \(\beta = (0.9, 0.95)\) and a decay of 0.1. Here all leaves are treated
    alike; `partition` makes such groups.
    """
    return chain(
        scale_by_mars(b1, b2, eps, gamma, max_norm, mu_dtype, axis_name=axis_name),
        *scale_and_decay(learning_rate, weight_decay, mask, decay),
    )
