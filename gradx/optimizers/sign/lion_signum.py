"""SignSGD, Signum and Lion: every element moves by the same length, along a sign."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any, Literal, NamedTuple

import jax.numpy as jnp

from gradx import core
from gradx.combinators.chain import chain
from gradx.core import Count, Transform, Updates
from gradx.core.meaning import Number
from gradx.lift.averages import average, storage, zeros
from gradx.lift.leafwise import leafwise
from gradx.lift.stages import LeafState, Numbers
from gradx.numbers.sources import Array, Hyper
from gradx.pieces.moments import ema
from gradx.pieces.scaling import descend
from gradx.pieces.weight_decay import DecayKind, scale_and_decay

__all__ = ["ScaleByLionState", "lion", "scale_by_lion", "scale_by_sign", "sign_sgd", "signum"]


@core.recorded
def scale_by_sign() -> Transform:
    r"""Replaces every element by its sign.

    .. math:: u = \mathrm{sign}(g)

    The sign of zero is zero; that of a complex number is \(g / |g|\).

    Example:
      >>> import gradx, jax.numpy as jnp
      >>> tx = gradx.scale_by_sign()
      >>> tx.update(jnp.array([-3.0, 0.0]), tx.init(jnp.ones(2)))[0]
      Array([-1.,  0.], dtype=float32)

    Reference: Bernstein et al., *signSGD*, https://arxiv.org/abs/1802.04434.
    """
    return leafwise(_sign)


def _sign(g: Array, s: LeafState, p: None, h: Numbers) -> tuple[Array, LeafState]:
    return jnp.sign(g), s


@core.recorded
def sign_sgd(learning_rate: Hyper) -> Transform:
    r"""SignSGD: descent along the sign of the gradient.

    .. math:: u = -\eta\, \mathrm{sign}(g)

    Example:
      >>> import gradx, jax.numpy as jnp
      >>> tx = gradx.sign_sgd(0.1)
      >>> tx.update(jnp.array([-3.0]), tx.init(jnp.ones(1)))[0]
      Array([0.1], dtype=float32)

    Reference: Bernstein et al., *signSGD*, https://arxiv.org/abs/1802.04434.
    """
    return chain(scale_by_sign(), descend(learning_rate))


@core.recorded
def signum(learning_rate: Hyper, beta: Hyper = 0.9, accumulator_dtype: Any = None) -> Transform:
    r"""Signum: descent along the sign of an average of gradients, signSGD with momentum.

    .. math:: m \leftarrow \beta m + (1 - \beta) g, \qquad u = -\eta\, \mathrm{sign}(m)

    Example:
      >>> import gradx, jax.numpy as jnp
      >>> tx = gradx.signum(0.1)
      >>> tx.update(jnp.array([-3.0]), tx.init(jnp.ones(1)))[0]
      Array([0.1], dtype=float32)

    Reference: Bernstein et al., *signSGD*, https://arxiv.org/abs/1802.04434, section 5.
    """
    return chain(
        ema(beta, debias=False, accumulator_dtype=accumulator_dtype),
        scale_by_sign(),
        descend(learning_rate),
    )


class ScaleByLionState(NamedTuple):
    """The state of Lion.

    Attributes:
      count: the updates done so far, int32 ().
      mu: the average of gradients, like the parameters.
    """

    count: Count
    mu: Updates


@core.recorded
def scale_by_lion(
    b1: Hyper = 0.9,
    b2: Annotated[Hyper, Number("[0.01, 1)")] = 0.99,
    mu_dtype: Any = None,
    *,
    mode: Literal["hard", "smooth", "refined"] = "hard",
    smooth_beta: Annotated[Hyper, Number("(0, inf)", "s")] = 1.0,
) -> Transform:
    r"""Replaces the updates by the sign of a mixture of gradient and momentum.

    .. math::
        c &= \beta_1 \mu + (1 - \beta_1) g, \qquad u = \mathrm{sign}(c) \\
        \mu &\leftarrow \beta_2 \mu + (1 - \beta_2) g

    Args:
      b1: the weight of the momentum in the update.
      b2: how much of the momentum is kept each step.
      mode: how \(c\) becomes \(u\): ``"hard"``, the sign; ``"smooth"``, \(\tanh(s\,c)\);
        ``"refined"``, \(c\) where \(|c| < 1\) and its sign elsewhere.
      smooth_beta: the steepness of the smooth mode.

    Example:
      >>> import gradx, jax.numpy as jnp
      >>> tx = gradx.scale_by_lion()
      >>> tx.update(jnp.array([-3.0]), tx.init(jnp.ones(1)))[0]
      Array([-1.], dtype=float32)

    Reference: Chen et al., *Symbolic discovery of optimization algorithms*,
    https://arxiv.org/abs/2302.06675. Deviation from Optax: \(c\) is calculated from the new
    \(\mu\), so that the old one can be overwritten in place; the values agree to rounding.
    """
    return leafwise(
        _lion,
        init={"mu": partial(zeros, dtype=storage("mu_dtype", mu_dtype))},
        state=ScaleByLionState,
        # b2 is at least 0.01: `_mixture` divides by it, and smaller ones cost digits.
        hypers={"b1": b1, "b2": b2, "smooth_beta": smooth_beta},
        flags={"mode": mode},
        per_step=_mixture,
    )


_MODES: Mapping[str, Any] = {
    "hard": lambda c, s: jnp.sign(c),
    "smooth": lambda c, s: jnp.tanh(s * c),
    "refined": lambda c, s: jnp.where(jnp.abs(c) < 1, c, jnp.sign(c)),
}


def _mixture(h: Numbers, t: Array) -> Mapping[str, Any]:
    # The weights of c after the old mu is replaced by (mu - (1 - b2) g) / b2.
    share = h.b1 / h.b2
    return {"share_of_mu": share, "share_of_g": (1 - h.b1) - share * (1 - h.b2)}


def _lion(g: Array, s: ScaleByLionState, p: None, h: Numbers) -> tuple[Array, ScaleByLionState]:
    mu = average(s.mu, g, h.b2)
    c = h.share_of_mu * mu + h.share_of_g * g
    return _MODES[h.mode](c, h.smooth_beta), s._replace(mu=mu)


@core.recorded
def lion(
    learning_rate: Hyper,
    b1: Hyper = 0.9,
    b2: Annotated[Hyper, Number("[0.01, 1)")] = 0.99,
    mu_dtype: Any = None,
    weight_decay: Hyper = 1e-3,
    mask: Any = None,
    *,
    decay: DecayKind = "learning_rate",
) -> Transform:
    r"""Lion: sign descent with momentum and decoupled weight decay.

    .. math:: u = -\eta_t \left(\mathrm{sign}(\beta_1 \mu + (1 - \beta_1) g) + \lambda\theta\right)

    The momentum is as in `scale_by_lion`. Learning rates are a third to a tenth of Adam's, decay
    is three to ten times Adam's.

    Args:
      b1: the weight of the momentum in the update.
      b2: how much of the momentum is kept each step.

    Raises:
      ValueError: `update` is called without the parameters.

    Example:
      >>> import gradx, jax.numpy as jnp
      >>> tx = gradx.lion(0.1, weight_decay=0.5)
      >>> tx.update(jnp.array([-3.0]), tx.init(jnp.ones(1)), jnp.ones(1))[0]
      Array([0.05], dtype=float32)

    Reference: Chen et al., *Symbolic discovery of optimization algorithms*,
    https://arxiv.org/abs/2302.06675.
    """
    return chain(
        scale_by_lion(b1, b2, mu_dtype),
        *scale_and_decay(learning_rate, weight_decay, mask, decay),
    )
