"""MADGRAD and COCOB: sums of all gradients decide how far to go from the initial parameters."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any, NamedTuple

import jax.numpy as jnp

from gradx import core
from gradx.combinators.chain import chain
from gradx.core import Count, Params, Transform, Updates
from gradx.core.meaning import Number
from gradx.core.ranges import as_float
from gradx.core.roots import cbrt
from gradx.core.trees import abs_sq
from gradx.lift.averages import full, real_zeros
from gradx.lift.leafwise import leafwise
from gradx.lift.stages import Numbers
from gradx.numbers.sources import Array, Hyper
from gradx.pieces.scaling import scale_by_learning_rate
from gradx.pieces.weight_decay import add_decayed_weights

__all__ = ["COCOBState", "MadgradState", "cocob", "madgrad", "scale_by_cocob", "scale_by_madgrad"]


# ---------------------------------------------------------------- MADGRAD


class MadgradState(NamedTuple):
    """The state of MADGRAD.

    Attributes:
      count: the updates done so far, int32 ().
      grad_sum_sq: the weighted sum of squared gradients, like the parameters, real.
      s: the weighted sum of gradients, like the parameters.
      x0: the parameters at `init`, like the parameters.
    """

    count: Count
    grad_sum_sq: Updates
    s: Updates
    x0: Params


@core.recorded
def scale_by_madgrad(learning_rate: Hyper, momentum: Hyper = 0.9, eps: Hyper = 1e-6) -> Transform:
    r"""Moves the parameters as MADGRAD does; the learning rate and its sign are part of it.

    .. math::
        \lambda_t &= (\eta_t + \epsilon) \sqrt t, \qquad
        \nu \leftarrow \nu + \lambda_t |g|^2, \qquad s \leftarrow s + \lambda_t g \\
        u &= (1 - \beta) \left(\theta_0 - \frac{s}{\sqrt[3]{\nu} + \epsilon} - \theta\right)

    Args:
      momentum: how much of the parameters is kept each step.

    Raises:
      ValueError: `update` is called without the parameters.

    Example:
      >>> import gradx, jax.numpy as jnp
      >>> tx = gradx.scale_by_madgrad(1.0, momentum=0.5, eps=0.0)
      >>> params = jnp.array([5.0])
      >>> tx.update(jnp.array([8.0]), tx.init(params), params)[0]
      Array([-1.], dtype=float32)

    Reference: Defazio and Jelassi, *Adaptivity without compromise: a momentumized, adaptive, dual
    averaged gradient method*, https://arxiv.org/abs/2101.11075, 2021. As in the authors' code
    and Optax, \(\epsilon\) is added to the learning rate, too.
    """
    return leafwise(
        _madgrad,
        init=_from_here,
        state=MadgradState,
        hypers={"learning_rate": learning_rate, "momentum": momentum, "eps": eps},
        per_step=_growing_rate,
        needs_params=True,
    )


def _from_here(p: Array) -> Mapping[str, Array]:
    return {"grad_sum_sq": jnp.zeros_like(p.real), "s": jnp.zeros_like(p), "x0": p}


def _growing_rate(h: Numbers, t: Array) -> Mapping[str, Array]:
    return {"rate": (h.learning_rate + h.eps) * jnp.sqrt(as_float(t))}


def _madgrad(g: Array, s: MadgradState, p: Array, h: Numbers) -> tuple[Array, MadgradState]:
    nu = s.grad_sum_sq + h.rate * abs_sq(g)
    total = s.s + h.rate * g
    root = cbrt(nu) + h.eps
    # With eps = 0, an element that has had no gradient yet stays where it began.
    goal = s.x0 - total / jnp.where(root > 0, root, 1.0)
    return (1 - h.momentum) * (goal - p), s._replace(grad_sum_sq=nu, s=total)


@core.recorded
def madgrad(
    learning_rate: Hyper,
    momentum: Hyper = 0.9,
    weight_decay: Hyper = 0.0,
    eps: Hyper = 1e-6,
) -> Transform:
    r"""MADGRAD: dual averaging with a cube root in place of Adam's square root.

    .. math:: u = (1 - \beta) \left(\theta_0 - \frac{s}{\sqrt[3]{\nu} + \epsilon} - \theta\right)

    The sums are as in `scale_by_madgrad`.

    Args:
      momentum: how much of the parameters is kept each step.
      weight_decay: The decay is added to the gradient.

    Raises:
      ValueError: `update` is called without the parameters.

    Example:
      >>> import gradx, jax.numpy as jnp
      >>> tx = gradx.madgrad(1.0, momentum=0.5, eps=0.0)
      >>> params = jnp.array([5.0])
      >>> tx.update(jnp.array([8.0]), tx.init(params), params)[0]
      Array([-1.], dtype=float32)

    Reference: Defazio and Jelassi, *Adaptivity without compromise: a momentumized, adaptive, dual
    averaged gradient method*, https://arxiv.org/abs/2101.11075, 2021.
    """
    return chain(add_decayed_weights(weight_decay), scale_by_madgrad(learning_rate, momentum, eps))


# ---------------------------------------------------------------- COCOB


class COCOBState(NamedTuple):
    """The state of COCOB.

    Attributes:
      init_particles: the parameters at `init`, like the parameters.
      cumulative_gradients: the sum of the negative gradients, like the parameters.
      scale: the largest gradient so far, like the parameters, real.
      subgradients: the sum of the gradients' sizes, like the parameters, real.
      reward: what the bets have won so far, like the parameters, real.
    """

    init_particles: Params
    cumulative_gradients: Updates
    scale: Updates
    subgradients: Updates
    reward: Updates


@core.recorded
def scale_by_cocob(
    alpha: Hyper = 100.0, eps: Annotated[float, Number("(0, inf)")] = 1e-8
) -> Transform:
    r"""Moves the parameters as COCOB does: each element bets on the sign of its next gradient.

    .. math::
        L &\leftarrow \max(L, |g|), \qquad G \leftarrow G + |g|, \qquad
        R \leftarrow \max(R - g (\theta - \theta_0), 0), \qquad C \leftarrow C - g \\
        u &= \theta_0 + \frac{C (L + R)}{L \max(G + L, \alpha L)} - \theta, \qquad
        L = \epsilon \text{ at first}

    Args:
      alpha: the larger it is, the smaller the first steps are.
      eps: where \(L\), the largest gradient so far, begins.

    Raises:
      ValueError: `update` is called without the parameters.

    Example:
      >>> import gradx, jax.numpy as jnp
      >>> tx = gradx.scale_by_cocob()
      >>> params = jnp.array([5.0])
      >>> tx.update(jnp.array([8.0]), tx.init(params), params)[0].round(4)
      Array([-0.01], dtype=float32)

    Reference: Orabona and Tommasi, *Training deep networks without learning rates through coin
    betting*, https://arxiv.org/abs/1705.07795, 2017, Algorithm 2. A complex number is one element
    here, and \(g (\theta - \theta_0)\) is the inner product of two vectors.
    """
    return leafwise(
        _cocob,
        init=partial(_no_bets, eps=eps),
        state=COCOBState,
        hypers={"alpha": alpha},
        needs_params=True,
    )


def _no_bets(p: Array, *, eps: Any) -> Mapping[str, Array]:
    return {
        "init_particles": p,
        "cumulative_gradients": jnp.zeros_like(p),
        "scale": full(p, value=eps),
        "subgradients": real_zeros(p),
        "reward": real_zeros(p),
    }


def _cocob(g: Array, s: COCOBState, p: Array, h: Numbers) -> tuple[Array, COCOBState]:
    x0 = s.init_particles
    scale = jnp.maximum(s.scale, jnp.abs(g))
    size = s.subgradients + jnp.abs(g)
    won = (g.conj() * (p - x0)).real if jnp.iscomplexobj(g) else g * (p - x0)
    # max(reward - won, 0), as a difference of two arrays (docs/lowering.md).
    reward = s.reward - jnp.minimum(won, s.reward)
    total = s.cumulative_gradients - g
    # Two quotients of moderate size: their common denominator overflows for gradients of 1e19.
    bet = (total / scale) * ((scale + reward) / jnp.maximum(size + scale, h.alpha * scale))
    return x0 - p + bet, s._replace(
        cumulative_gradients=total, scale=scale, subgradients=size, reward=reward
    )


@core.recorded
def cocob(
    learning_rate: Hyper = 1.0,
    alpha: Hyper = 100.0,
    eps: Annotated[float, Number("(0, inf)")] = 1e-8,
    weight_decay: Hyper = 0.0,
    mask: Any = None,
) -> Transform:
    r"""COCOB: learning-rate-free gradient descent, by betting on coins.

    .. math:: u = \theta_0 + \frac{C (L + R)}{L \max(G + L, \alpha L)} - \theta

    The sums are as in `scale_by_cocob`, of gradients times \(\eta\).

    Args:
      learning_rate: A constant changes next to nothing. A schedule weighs the gradients: if it ends
        at 0 the parameters settle.
      alpha: the larger it is, the smaller the first steps are.
      eps: where \(L\), the largest gradient so far, begins.
      weight_decay: The decay is added to the gradient.

    Raises:
      ValueError: `update` is called without the parameters.

    Example:
      >>> import gradx, jax.numpy as jnp
      >>> tx = gradx.cocob()
      >>> params = jnp.array([5.0])
      >>> tx.update(jnp.array([8.0]), tx.init(params), params)[0].round(4)
      Array([-0.01], dtype=float32)

    Reference: Orabona and Tommasi, *Training deep networks without learning rates through coin
    betting*, https://arxiv.org/abs/1705.07795, 2017, Algorithm 2.
    """
    return chain(
        add_decayed_weights(weight_decay, mask),
        scale_by_learning_rate(learning_rate, flip_sign=False),
        scale_by_cocob(alpha, eps),
    )
