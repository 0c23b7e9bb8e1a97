"""RAdam, AdaBelief and Yogi: Adam with another estimate of the variance of gradients."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Annotated, NamedTuple

import jax.numpy as jnp

from gradx import core
from gradx.combinators.chain import chain
from gradx.core import Count, Transform, Updates
from gradx.core.meaning import Number
from gradx.core.ranges import as_float
from gradx.core.roots import sqrt
from gradx.core.trees import abs_sq
from gradx.lift.averages import (
    average,
    bias_corrections,
    full,
    unbiased_mu,
    weight_so_far,
    zero_moments,
)
from gradx.lift.leafwise import leafwise
from gradx.lift.stages import Numbers
from gradx.numbers.sources import Array, Hyper
from gradx.optimizers.first_order.adam import ScaleByAdamState
from gradx.pieces.scaling import descend

__all__ = [
    "ScaleByBeliefState",
    "adabelief",
    "radam",
    "scale_by_belief",
    "scale_by_radam",
    "scale_by_yogi",
    "yogi",
]


class ScaleByBeliefState(NamedTuple):
    """The state of AdaBelief.

    Attributes:
      count: the updates done so far, int32 ().
      mu: the first moment, like the parameters.
      nu: the second moment around the mean, like the parameters, real.
    """

    count: Count
    mu: Updates
    nu: Updates


@core.recorded
def scale_by_radam(
    b1: Hyper = 0.9,
    b2: Hyper = 0.999,
    eps: Hyper = 1e-8,
    eps_root: Hyper = 0.0,
    threshold: Annotated[Hyper, Number("(4, inf)", r"\rho_\mathrm{min}")] = 5.0,
    *,
    nesterov: bool = False,
) -> Transform:
    r"""Rescales the updates by RAdam's rule, Adam that rectifies its uncertain early steps.

    .. math::
        \rho_\infty &= \tfrac{2}{1 - \beta_2} - 1, \qquad
        \rho_t = \rho_\infty - \frac{2 t \beta_2^t}{1 - \beta_2^t} \\
        r_t &= \sqrt{\frac{(\rho_t - 4)(\rho_t - 2)\rho_\infty}
                          {(\rho_\infty - 4)(\rho_\infty - 2)\rho_t}} \\
        u &= r_t\, \hat\mu / (\sqrt{\hat\nu + \epsilon_\mathrm{root}} + \epsilon)
             \text{ if } \rho_t \ge \rho_\mathrm{min}, \text{ else } \hat\mu

    The moments are as in `scale_by_adam`.

    Args:
      threshold: the number of effective steps from which the variance is used. Up to 4 its
        rectification is not defined.

    Example:
      >>> import gradx, jax.numpy as jnp
      >>> tx = gradx.scale_by_radam()
      >>> tx.update(jnp.array([0.5]), tx.init(jnp.ones(1)))[0]
      Array([0.5], dtype=float32)

    Reference: Liu et al., *On the variance of the adaptive learning rate and beyond*,
    https://arxiv.org/abs/1908.03265.
    """
    return leafwise(
        _radam,
        init=zero_moments(),
        state=ScaleByAdamState,
        hypers={"b1": b1, "b2": b2, "eps": eps, "eps_root": eps_root, "threshold": threshold},
        flags={"nesterov": nesterov},
        per_step=_rectification,
    )


def _rectification(h: Numbers, t: Array) -> Mapping[str, Array]:
    t = as_float(t)
    b2t = h.b2**t
    weight = weight_so_far(h.b2, t)
    rho_inf = 2 / (1 - h.b2) - 1
    rho = rho_inf - 2 * t * b2t / weight
    ratio = (rho - 4) * (rho - 2) * rho_inf / ((rho_inf - 4) * (rho_inf - 2) * rho)
    tractable = rho >= h.threshold
    r = jnp.sqrt(jnp.where(tractable, ratio, 0.0))
    return {**bias_corrections(h, t), "r": r, "tractable": tractable}


def _radam(g: Array, s: ScaleByAdamState, p: None, h: Numbers) -> tuple[Array, ScaleByAdamState]:
    mu = average(s.mu, g, h.b1)
    nu = average(s.nu, abs_sq(g), h.b2)
    rectified = h.r / (sqrt(nu * h.correct_nu + h.eps_root) + h.eps)
    u = unbiased_mu(mu, g, h) * jnp.where(h.tractable, rectified, 1.0)
    return u, s._replace(mu=mu, nu=nu)


@core.recorded
def radam(
    learning_rate: Hyper,
    b1: Hyper = 0.9,
    b2: Hyper = 0.999,
    eps: Hyper = 1e-8,
    eps_root: Hyper = 0.0,
    threshold: Annotated[Hyper, Number("(4, inf)", r"\rho_\mathrm{min}")] = 5.0,
    *,
    nesterov: bool = False,
) -> Transform:
    r"""RAdam: Adam that is plain momentum until its second moment can be trusted.

    .. math:: u = -\eta\, r_t\, \hat\mu / (\sqrt{\hat\nu + \epsilon_\mathrm{root}} + \epsilon)
              \text{ if } \rho_t \ge \rho_\mathrm{min}, \text{ else } -\eta\,\hat\mu

    The rectification \(r_t\) is as in `scale_by_radam`.

    Args:
      threshold: the number of effective steps from which the variance is used.

    Example:
      >>> import gradx, jax.numpy as jnp
      >>> tx = gradx.radam(0.1)
      >>> tx.update(jnp.array([0.5]), tx.init(jnp.ones(1)))[0]
      Array([-0.05], dtype=float32)

    Reference: Liu et al., *On the variance of the adaptive learning rate and beyond*,
    https://arxiv.org/abs/1908.03265.
    """
    return chain(
        scale_by_radam(b1, b2, eps, eps_root, threshold, nesterov=nesterov),
        descend(learning_rate),
    )


@core.recorded
def scale_by_belief(
    b1: Hyper = 0.9,
    b2: Hyper = 0.999,
    eps: Hyper = 1e-16,
    eps_root: Hyper = 1e-16,
    *,
    nesterov: bool = False,
) -> Transform:
    r"""Rescales the updates by AdaBelief's rule, Adam with the variance around the mean.

    .. math::
        \mu &\leftarrow \beta_1 \mu + (1 - \beta_1) g \\
        \nu &\leftarrow \beta_2 \nu + (1 - \beta_2) |g - \mu|^2 + \epsilon_\mathrm{root} \\
        u &= \hat\mu / (\sqrt{\hat\nu} + \epsilon)

    The bias corrections are as in `scale_by_adam`.

    Args:
      eps_root: a small number added to \(\nu\) in every step.

    Example:
      >>> import gradx, jax.numpy as jnp
      >>> tx = gradx.scale_by_belief()
      >>> tx.update(jnp.array([0.9]), tx.init(jnp.ones(1)))[0]
      Array([1.1111], dtype=float32)

    Reference: Zhuang et al., *AdaBelief optimizer*, https://arxiv.org/abs/2010.07468.
    """
    return leafwise(
        _belief,
        init=zero_moments(),
        state=ScaleByBeliefState,
        hypers={"b1": b1, "b2": b2, "eps": eps, "eps_root": eps_root},
        flags={"nesterov": nesterov},
        per_step=bias_corrections,
    )


def _belief(
    g: Array, s: ScaleByBeliefState, p: None, h: Numbers
) -> tuple[Array, ScaleByBeliefState]:
    mu = average(s.mu, g, h.b1)
    # The last addition joins two arrays, so that nu is formed once (docs/lowering.md).
    nu = h.b2 * s.nu + ((1 - h.b2) * abs_sq(g - mu) + h.eps_root)
    u = unbiased_mu(mu, g, h) / (sqrt(nu * h.correct_nu) + h.eps)
    return u, s._replace(mu=mu, nu=nu)


@core.recorded
def adabelief(
    learning_rate: Hyper,
    b1: Hyper = 0.9,
    b2: Hyper = 0.999,
    eps: Hyper = 1e-16,
    eps_root: Hyper = 1e-16,
    *,
    nesterov: bool = False,
) -> Transform:
    r"""AdaBelief: long steps where gradients agree with their average.

    .. math:: u = -\eta\, \hat\mu / (\sqrt{\hat\nu} + \epsilon), \qquad
              \nu \leftarrow \beta_2 \nu + (1 - \beta_2) |g - \mu|^2 + \epsilon_\mathrm{root}

    Args:
      eps_root: a small number added to \(\nu\) in every step.

    Example:
      >>> import gradx, jax.numpy as jnp
      >>> tx = gradx.adabelief(0.1)
      >>> tx.update(jnp.array([0.9]), tx.init(jnp.ones(1)))[0]
      Array([-0.1111], dtype=float32)

    Reference: Zhuang et al., *AdaBelief optimizer*, https://arxiv.org/abs/2010.07468.
    """
    return chain(
        scale_by_belief(b1, b2, eps, eps_root, nesterov=nesterov),
        descend(learning_rate),
    )


@core.recorded
def scale_by_yogi(
    b1: Hyper = 0.9,
    b2: Hyper = 0.999,
    eps: Hyper = 1e-3,
    eps_root: Hyper = 0.0,
    initial_accumulator_value: Annotated[float, Number("[0, inf)")] = 1e-6,
) -> Transform:
    r"""Rescales the updates by Yogi's rule, Adam with a second moment that moves additively.

    .. math::
        \mu &\leftarrow \beta_1 \mu + (1 - \beta_1) g \\
        \nu &\leftarrow \nu - (1 - \beta_2)\, \mathrm{sign}(\nu - |g|^2)\, |g|^2 \\
        u &= \hat\mu / (\sqrt{\hat\nu + \epsilon_\mathrm{root}} + \epsilon)

    The bias corrections are as in `scale_by_adam`.

    Args:
      initial_accumulator_value: where both moments begin, as in Optax. In the paper only the second
        begins there.

    Example:
      >>> import gradx, jax.numpy as jnp
      >>> tx = gradx.scale_by_yogi()
      >>> tx.update(jnp.array([10.0]), tx.init(jnp.ones(1)))[0]
      Array([0.9999], dtype=float32)

    Reference: Zaheer et al., *Adaptive methods for nonconvex optimization*, 2018.
    """
    return leafwise(
        _yogi,
        init={
            "mu": partial(jnp.full_like, fill_value=initial_accumulator_value),
            "nu": partial(full, value=initial_accumulator_value),
        },
        state=ScaleByAdamState,
        hypers={"b1": b1, "b2": b2, "eps": eps, "eps_root": eps_root},
        per_step=bias_corrections,
    )


def _yogi(g: Array, s: ScaleByAdamState, p: None, h: Numbers) -> tuple[Array, ScaleByAdamState]:
    mu = average(s.mu, g, h.b1)
    nu = s.nu - (1 - h.b2) * jnp.sign(s.nu - abs_sq(g)) * abs_sq(g)
    u = mu * h.correct_mu / (sqrt(nu * h.correct_nu + h.eps_root) + h.eps)
    return u, s._replace(mu=mu, nu=nu)


@core.recorded
def yogi(learning_rate: Hyper, b1: Hyper = 0.9, b2: Hyper = 0.999, eps: Hyper = 1e-3) -> Transform:
    r"""Yogi: Adam whose second moment follows the squares in bounded steps.

    .. math:: u = -\eta\, \hat\mu / (\sqrt{\hat\nu} + \epsilon), \qquad
              \nu \leftarrow \nu - (1 - \beta_2)\, \mathrm{sign}(\nu - |g|^2)\, |g|^2

    Example:
      >>> import gradx, jax.numpy as jnp
      >>> tx = gradx.yogi(0.1)
      >>> tx.update(jnp.array([10.0]), tx.init(jnp.ones(1)))[0]
      Array([-0.1], dtype=float32)

    Reference: Zaheer et al., *Adaptive methods for nonconvex optimization*, 2018.
    """
    return chain(scale_by_yogi(b1, b2, eps), descend(learning_rate))
