"""AMSGrad and AdaMax: Adam with the largest second moment so far, or a maximum in its place."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp

from gradx import core
from gradx.combinators.chain import chain
from gradx.core import Count, Transform, Updates
from gradx.core.roots import sqrt
from gradx.core.trees import abs_sq
from gradx.lift.averages import average, bias_corrections, real_zeros, storage, zero_moments
from gradx.lift.leafwise import leafwise
from gradx.lift.stages import Numbers
from gradx.numbers.sources import Array, Hyper
from gradx.optimizers.first_order.adam import ScaleByAdamState
from gradx.pieces.scaling import descend
from gradx.pieces.weight_decay import DecayKind, scale_and_decay

__all__ = [
    "ScaleByAmsgradState",
    "adamax",
    "adamaxw",
    "amsgrad",
    "scale_by_adamax",
    "scale_by_amsgrad",
]


@core.recorded
def scale_by_adamax(b1: Hyper = 0.9, b2: Hyper = 0.999, eps: Hyper = 1e-8) -> Transform:
    r"""Rescales the updates by AdaMax's rule, Adam with an infinity norm for the second moment.

    .. math::
        \mu &\leftarrow \beta_1 \mu + (1 - \beta_1) g, \qquad
        \nu \leftarrow \max(\beta_2 \nu, |g| + \epsilon) \\
        u &= \frac{\mu}{(1 - \beta_1^t)\, \nu}

    Args:
      eps: With 0 an element that has had no gradient yet gives NaN.

    Example:
      >>> import gradx, jax.numpy as jnp
      >>> tx = gradx.scale_by_adamax()
      >>> tx.update(jnp.array([-10.0]), tx.init(jnp.ones(1)))[0]
      Array([-1.0], dtype=float32)

    Reference: Kingma and Ba, *Adam*, https://arxiv.org/abs/1412.6980, section 7.1.
    """
    return leafwise(
        _adamax,
        init=zero_moments(),
        state=ScaleByAdamState,
        hypers={"b1": b1, "b2": b2, "eps": eps},
        per_step=bias_corrections,
    )


def _adamax(g: Array, s: ScaleByAdamState, p: None, h: Numbers) -> tuple[Array, ScaleByAdamState]:
    mu = average(s.mu, g, h.b1)
    nu = jnp.maximum(h.b2 * s.nu, jnp.abs(g) + h.eps)
    return mu * h.correct_mu / nu, s._replace(mu=mu, nu=nu)


@core.recorded
def adamax(
    learning_rate: Hyper, b1: Hyper = 0.9, b2: Hyper = 0.999, eps: Hyper = 1e-8
) -> Transform:
    r"""AdaMax: Adam with a decaying maximum (an infinity norm) in place of the second moment.

    .. math:: u = -\eta\, \mu / ((1 - \beta_1^t)\, \nu), \qquad
              \nu \leftarrow \max(\beta_2 \nu, |g| + \epsilon)

    Example:
      >>> import gradx, jax.numpy as jnp
      >>> tx = gradx.adamax(0.1)
      >>> tx.update(jnp.array([-10.0]), tx.init(jnp.ones(1)))[0]
      Array([0.1], dtype=float32)

    Reference: Kingma and Ba, *Adam*, https://arxiv.org/abs/1412.6980, section 7.1.
    """
    return chain(scale_by_adamax(b1, b2, eps), descend(learning_rate))


@core.recorded
def adamaxw(
    learning_rate: Hyper,
    b1: Hyper = 0.9,
    b2: Hyper = 0.999,
    eps: Hyper = 1e-8,
    weight_decay: Hyper = 1e-4,
    mask: Any = None,
    *,
    decay: DecayKind = "learning_rate",
) -> Transform:
    r"""AdaMax with decoupled weight decay.

    .. math:: u = -\eta_t \left(\mu / ((1 - \beta_1^t)\, \nu) + \lambda \theta\right)

    Raises:
      ValueError: `update` is called without the parameters.

    Example:
      >>> import gradx, jax.numpy as jnp
      >>> tx = gradx.adamaxw(0.1, weight_decay=0.5)
      >>> tx.update(jnp.array([2.0]), tx.init(jnp.ones(1)), jnp.ones(1))[0]
      Array([-0.15], dtype=float32)

    Reference: Kingma and Ba, https://arxiv.org/abs/1412.6980, section 7.1; Loshchilov and Hutter,
    https://arxiv.org/abs/1711.05101.
    """
    return chain(
        scale_by_adamax(b1, b2, eps), *scale_and_decay(learning_rate, weight_decay, mask, decay)
    )


class ScaleByAmsgradState(NamedTuple):
    """The state of AMSGrad.

    Attributes:
      count: the updates done so far, int32 ().
      mu: the first moment, like the parameters.
      nu: the second moment, like the parameters, real.
      nu_max: the largest second moment so far, like `nu`.
    """

    count: Count
    mu: Updates
    nu: Updates
    nu_max: Updates


@core.recorded
def scale_by_amsgrad(
    b1: Hyper = 0.9,
    b2: Hyper = 0.999,
    eps: Hyper = 1e-8,
    eps_root: Hyper = 0.0,
    mu_dtype: Any = None,
    bias_correction_mu: bool = True,
    bias_correction_nu: bool = True,
) -> Transform:
    r"""Rescales the updates by AMSGrad's rule, Adam with a second moment that never falls.

    .. math::
        \nu_\mathrm{max} &\leftarrow \max(\nu_\mathrm{max}, \hat\nu) \\
        u &= \hat\mu / (\sqrt{\nu_\mathrm{max} + \epsilon_\mathrm{root}} + \epsilon)

    The moments are as in `scale_by_adam`.

    Args:
      bias_correction_mu: correct the first moment; the paper does not.
      bias_correction_nu: correct the second moment before the maximum; the paper does not, and
        PyTorch corrects the maximum.

    Example:
      >>> import gradx, jax.numpy as jnp
      >>> tx = gradx.scale_by_amsgrad()
      >>> tx.update(jnp.array([-10.0]), tx.init(jnp.ones(1)))[0]
      Array([-1.0], dtype=float32)

    Reference: Reddi et al., *On the convergence of Adam and beyond*,
    https://openreview.net/forum?id=ryQu7f-RZ.
    """
    return leafwise(
        _amsgrad,
        init={**zero_moments(storage("mu_dtype", mu_dtype)), "nu_max": real_zeros},
        state=ScaleByAmsgradState,
        hypers={"b1": b1, "b2": b2, "eps": eps, "eps_root": eps_root},
        flags={"correct_mu_bias": bias_correction_mu, "correct_nu_bias": bias_correction_nu},
        per_step=bias_corrections,
    )


def _amsgrad(
    g: Array, s: ScaleByAmsgradState, p: None, h: Numbers
) -> tuple[Array, ScaleByAmsgradState]:
    mu = average(s.mu, g, h.b1)
    nu = average(s.nu, abs_sq(g), h.b2)
    nu_max = jnp.maximum(s.nu_max, nu * h.correct_nu if h.correct_nu_bias else nu)
    mu_hat = mu * h.correct_mu if h.correct_mu_bias else mu
    u = mu_hat / (sqrt(nu_max + h.eps_root) + h.eps)
    return u, s._replace(mu=mu, nu=nu, nu_max=nu_max)


@core.recorded
def amsgrad(
    learning_rate: Hyper,
    b1: Hyper = 0.9,
    b2: Hyper = 0.999,
    eps: Hyper = 1e-8,
    eps_root: Hyper = 0.0,
    mu_dtype: Any = None,
    bias_correction_mu: bool = True,
    bias_correction_nu: bool = True,
) -> Transform:
    r"""AMSGrad: Adam with a second moment that never falls.

    .. math:: u = -\eta\, \hat\mu / (\sqrt{\nu_\mathrm{max} + \epsilon_\mathrm{root}} + \epsilon),
              \qquad \nu_\mathrm{max} \leftarrow \max(\nu_\mathrm{max}, \hat\nu)

    Args:
      bias_correction_mu: correct the first moment (see `scale_by_amsgrad`).
      bias_correction_nu: correct the second moment before the maximum.

    Example:
      >>> import gradx, jax.numpy as jnp
      >>> tx = gradx.amsgrad(0.1)
      >>> tx.update(jnp.array([-10.0]), tx.init(jnp.ones(1)))[0]
      Array([0.1], dtype=float32)

    Reference: Reddi et al., *On the convergence of Adam and beyond*,
    https://openreview.net/forum?id=ryQu7f-RZ.
    """
    scale_by = scale_by_amsgrad(
        b1, b2, eps, eps_root, mu_dtype, bias_correction_mu, bias_correction_nu
    )
    return chain(scale_by, descend(learning_rate))
