"""ACProp and ADOPT: Adam that divides by the second moment of the steps before."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax.numpy as jnp

from gradx import core
from gradx.combinators.chain import chain
from gradx.core import Transform
from gradx.core.ranges import as_float
from gradx.core.roots import sqrt
from gradx.core.trees import abs_sq
from gradx.lift.averages import average, storage, weight_so_far, zero_moments
from gradx.lift.leafwise import leafwise
from gradx.lift.stages import Numbers
from gradx.lowering.order import write_after
from gradx.numbers.sources import Array, Hyper
from gradx.optimizers.first_order.adabelief_radam_yogi import ScaleByBeliefState
from gradx.optimizers.first_order.adam import ScaleByAdamState
from gradx.pieces.scaling import descend
from gradx.pieces.weight_decay import DecayKind, scale_and_decay

__all__ = ["acprop", "adopt", "fourth_root", "scale_by_acprop", "scale_by_adopt"]


# ---------------------------------------------------------------- ACProp


@core.recorded
def scale_by_acprop(
    b1: Hyper = 0.9,
    b2: Hyper = 0.999,
    eps: Hyper = 1e-16,
    eps_root: Hyper = 1e-16,
) -> Transform:
    r"""Rescales the updates by ACProp's rule, AdaBelief with the variance of the step before.

    .. math::
        \mu_t &= \beta_1 \mu_{t-1} + (1 - \beta_1) g_t \\
        \nu_t &= \beta_2 \nu_{t-1} + (1 - \beta_2) |g_t - \mu_{t-1}|^2 + \epsilon_\mathrm{root} \\
        u_t &= g_t / (\sqrt{\hat\nu_{t-1}} + \epsilon), \qquad
               \hat\nu_t = \nu_t / (1 - \beta_2^t), \qquad \hat\nu_0 = 1

    Args:
      eps_root: a small number added to \(\nu\) in every step. If this and `eps` are 0, an element
        that has had no gradient yet gives NaN.

    Example:
      >>> import gradx, jax.numpy as jnp
      >>> tx = gradx.scale_by_acprop()
      >>> tx.update(jnp.array([0.5]), tx.init(jnp.ones(1)))[0]
      Array([0.5], dtype=float32)

    Reference: Zhuang et al., *Momentum centering and asynchronous update for adaptive gradient
    methods*, https://arxiv.org/abs/2110.05454. As in Optax, the variance is around \(\mu_{t-1}\);
    in the paper it is around \(\mu_t\), which makes it \(\beta_1^2\) times as large.
    """
    return leafwise(
        _acprop,
        init=zero_moments(),
        state=ScaleByBeliefState,
        hypers={"b1": b1, "b2": b2, "eps": eps, "eps_root": eps_root},
        per_step=_last_correction,
    )


def _last_correction(h: Numbers, t: Array) -> Mapping[str, Array]:
    first = t == 1
    correct = 1 / weight_so_far(h.b2, jnp.maximum(t - 1, 1))
    # The first step has no variance yet, so it divides by the root of 0 nu + 1.
    return {"correct_nu": jnp.where(first, 0.0, correct), "instead": jnp.where(first, 1.0, 0.0)}


def _acprop(
    g: Array, s: ScaleByBeliefState, p: None, h: Numbers
) -> tuple[Array, ScaleByBeliefState]:
    nu = h.b2 * s.nu + ((1 - h.b2) * abs_sq(g - s.mu) + h.eps_root)
    mu = h.b1 * s.mu + write_after((1 - h.b1) * g, nu)
    u = g / (sqrt(s.nu * h.correct_nu + h.instead) + h.eps)
    return u, s._replace(mu=mu, nu=nu)


@core.recorded
def acprop(
    learning_rate: Hyper,
    b1: Hyper = 0.9,
    b2: Hyper = 0.999,
    eps: Hyper = 1e-16,
    eps_root: Hyper = 1e-16,
    weight_decay: Hyper = 0.0,
    mask: Any = None,
    *,
    decay: DecayKind = "learning_rate",
) -> Transform:
    r"""ACProp: the gradient, divided by the deviation of the gradients before it.

    .. math:: u_t = -\eta_t \left(g_t / (\sqrt{\hat\nu_{t-1}} + \epsilon)
              + \lambda \theta\right)

    The variance is as in `scale_by_acprop`.

    Args:
      eps_root: a small number added to the variance in every step.

    Raises:
      ValueError: `update` is called without the parameters, and there is weight decay.

    Example:
      >>> import gradx, jax.numpy as jnp
      >>> tx = gradx.acprop(0.1)
      >>> tx.update(jnp.array([0.5]), tx.init(jnp.ones(1)), jnp.ones(1))[0]
      Array([-0.05], dtype=float32)

    Reference: Zhuang et al., *Momentum centering and asynchronous update for adaptive gradient
    methods*, https://arxiv.org/abs/2110.05454.
    """
    return chain(
        scale_by_acprop(b1, b2, eps, eps_root),
        *scale_and_decay(learning_rate, weight_decay, mask, decay),
    )


# ---------------------------------------------------------------- ADOPT


@core.registered
def fourth_root(count: Array) -> Array:
    """The default bound of ADOPT's normalized gradients: the count of updates to the power 1/4.

    Args:
      count: the updates done so far.

    Example:
      >>> import gradx
      >>> gradx.fourth_root(16)
      Array(2., dtype=float32)
    """
    return as_float(count) ** 0.25


@core.recorded
def scale_by_adopt(
    b1: Hyper = 0.9,
    b2: Hyper = 0.9999,
    eps: Hyper = 1e-6,
    mu_dtype: Any = None,
    *,
    nesterov: bool = False,
    use_clipping: bool = True,
    clip_value_fn: Callable[[Array], Array] = fourth_root,
) -> Transform:
    r"""Rescales the updates by ADOPT's rule, which normalizes gradients before it averages them.

    .. math::
        d_t &= g_t / \max(\sqrt{\nu_{t-1}}, \epsilon), \qquad
               c_t = d_t \min(1, C(t - 1) / |d_t|) \\
        \mu_t &= \beta_1 \mu_{t-1} + (1 - \beta_1) c_t, \qquad
        \nu_t = \beta_2 \nu_{t-1} + (1 - \beta_2) |g_t|^2 \\
        u_t &= \mu_t \quad\text{or, with nesterov,}\quad \beta_1 \mu_t + (1 - \beta_1) c_t

    The first step only sets \(\nu_1 = |g_1|^2\), and \(u_1 = 0\).

    Args:
      eps: With 0 an element that has had no gradient yet gives NaN.
      use_clipping: bound the normalized gradients; else \(c_t = d_t\).
      clip_value_fn: the bound \(C\), a function of the updates done so far. Decorate your own with
        `gradx.registered` to use it in configs.

    Example:
      >>> import gradx, jax.numpy as jnp
      >>> tx = gradx.scale_by_adopt()
      >>> state = tx.init(jnp.ones(1))
      >>> for g in (2.0, 4.0):
      ...     updates, state = tx.update(jnp.array([g]), state)
      >>> updates
      Array([0.1], dtype=float32)

    Reference: Taniguchi et al., *ADOPT: modified Adam can converge with any \(\beta_2\)*,
    https://arxiv.org/abs/2411.02853. A complex number is bounded in its modulus.
    """
    return leafwise(
        _adopt,
        init=zero_moments(storage("mu_dtype", mu_dtype)),
        state=ScaleByAdamState,
        hypers={"b1": b1, "b2": b2, "eps": eps},
        flags={"nesterov": nesterov, "bounded": use_clipping},
        per_step=partial(_bounds, clip_value_fn=clip_value_fn),
    )


def _bounds(h: Numbers, t: Array, *, clip_value_fn: Callable[[Array], Array]) -> Mapping[str, Any]:
    first = t == 1
    return {
        # The first step divides by infinity: it averages a zero, which leaves mu at 0.
        "floor": jnp.where(first, jnp.inf, h.eps),
        "new": jnp.where(first, 1.0, 1 - h.b2),
        "bound": clip_value_fn(t - 1) if h.bounded else None,
    }


def _adopt(g: Array, s: ScaleByAdamState, p: None, h: Numbers) -> tuple[Array, ScaleByAdamState]:
    c = g / jnp.maximum(sqrt(s.nu), h.floor)
    if h.bounded and jnp.iscomplexobj(c):
        size = jnp.abs(c)
        c = c * jnp.where(size > h.bound, h.bound / size, 1.0)
    elif h.bounded:
        c = jnp.clip(c, -h.bound, h.bound)
    mu = average(s.mu, c, h.b1)
    nu = h.b2 * s.nu + write_after(h.new * abs_sq(g), mu).real
    u = average(mu, c, h.b1) if h.nesterov else mu
    return u, s._replace(mu=mu, nu=nu)


@core.recorded
def adopt(
    learning_rate: Hyper,
    b1: Hyper = 0.9,
    b2: Hyper = 0.9999,
    eps: Hyper = 1e-6,
    mu_dtype: Any = None,
    *,
    nesterov: bool = False,
    use_clipping: bool = True,
    clip_value_fn: Callable[[Array], Array] = fourth_root,
) -> Transform:
    r"""ADOPT: Adam that normalizes each gradient by those before it.

    .. math:: u_t = -\eta_t\, \mu_t, \qquad \mu_t = \beta_1 \mu_{t-1} + (1 - \beta_1)\,
              \frac{g_t}{\max(\sqrt{\nu_{t-1}}, \epsilon)}

    The fraction is bounded as in `scale_by_adopt`. The first step moves nothing.

    Args:
      use_clipping: bound the normalized gradients, as the authors recommend.
      clip_value_fn: the bound, a function of the updates done so far.

    Example:
      >>> import gradx, jax.numpy as jnp
      >>> tx = gradx.adopt(0.1)
      >>> state = tx.init(jnp.ones(1))
      >>> for g in (2.0, 4.0):
      ...     updates, state = tx.update(jnp.array([g]), state)
      >>> updates
      Array([-0.01], dtype=float32)

    Reference: Taniguchi et al., *ADOPT: modified Adam can converge with any \(\beta_2\)*,
    https://arxiv.org/abs/2411.02853.
    """
    return chain(
        scale_by_adopt(
            b1, b2, eps, mu_dtype,
            nesterov=nesterov, use_clipping=use_clipping, clip_value_fn=clip_value_fn,
        ),
        descend(learning_rate),
    )  # fmt: skip
