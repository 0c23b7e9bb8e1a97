"""AdaGrad and AdaDelta: steps divided by the root of a sum, or average, of squared gradients."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any, NamedTuple

import jax.numpy as jnp

from gradx import core
from gradx.combinators.chain import chain
from gradx.core import Transform, Updates
from gradx.core.meaning import Number
from gradx.core.roots import sqrt
from gradx.core.trees import abs_sq, finite_sq
from gradx.lift.averages import average, full, real_zeros
from gradx.lift.leafwise import leafwise
from gradx.lift.stages import Numbers
from gradx.numbers.sources import Array, Hyper
from gradx.pieces.scaling import descend, scale_by_learning_rate
from gradx.pieces.weight_decay import add_decayed_weights

__all__ = [
    "ScaleByAdaDeltaState",
    "ScaleByRssState",
    "adadelta",
    "adagrad",
    "scale_by_adadelta",
    "scale_by_rss",
]


class ScaleByRssState(NamedTuple):
    """The state of `scale_by_rss`.

    Attributes:
      sum_of_squares: the sum of squared updates, like the parameters, real.
    """

    sum_of_squares: Updates


@core.recorded
def scale_by_rss(
    initial_accumulator_value: Annotated[float, Number("[0, inf)")] = 0.1, eps: Hyper = 1e-7
) -> Transform:
    r"""Divides the updates by the root of the sum of all their squares so far.

    .. math:: s \leftarrow s + |g|^2, \qquad u = g / \sqrt{s + \epsilon}
              \quad (0 \text{ where } s = 0)

    Args:
      initial_accumulator_value: where \(s\) begins.

    Example:
      >>> import gradx, jax.numpy as jnp
      >>> tx = gradx.scale_by_rss(0.0, eps=0.0)
      >>> tx.update(jnp.array([3.0, 0.0]), tx.init(jnp.ones(2)))[0]
      Array([1., 0.], dtype=float32)

    Reference: Duchi et al., *Adaptive subgradient methods*, JMLR 12, 2011.
    """
    return leafwise(
        _rss,
        init={"sum_of_squares": partial(full, value=initial_accumulator_value)},
        state=ScaleByRssState,
        hypers={"eps": eps},
    )


def _rss(g: Array, s: ScaleByRssState, p: None, h: Numbers) -> tuple[Array, ScaleByRssState]:
    total = s.sum_of_squares + abs_sq(g)
    u = g * jnp.where(total > 0, 1 / sqrt(total + h.eps), 0.0)
    return u, s._replace(sum_of_squares=total)


@core.recorded
def adagrad(
    learning_rate: Hyper,
    initial_accumulator_value: Annotated[float, Number("[0, inf)")] = 0.1,
    eps: Hyper = 1e-7,
) -> Transform:
    r"""AdaGrad: each element's step shrinks as its squared gradients add up; for sparse gradients.

    .. math:: s \leftarrow s + |g|^2, \qquad u = -\eta\, g / \sqrt{s + \epsilon}

    Args:
      initial_accumulator_value: where \(s\) begins.

    Example:
      >>> import gradx, jax.numpy as jnp
      >>> tx = gradx.adagrad(0.1, 0.0)
      >>> tx.update(jnp.array([3.0]), tx.init(jnp.ones(1)))[0]
      Array([-0.1], dtype=float32)

    Reference: Duchi et al., *Adaptive subgradient methods*, JMLR 12, 2011.
    """
    return chain(scale_by_rss(initial_accumulator_value, eps), descend(learning_rate))


class ScaleByAdaDeltaState(NamedTuple):
    """The state of AdaDelta.

    Attributes:
      e_g: the average of squared gradients, like the parameters, real.
      e_x: the average of squared updates, likewise.
    """

    e_g: Updates
    e_x: Updates


@core.recorded
def scale_by_adadelta(
    rho: Annotated[Hyper, Number("(0, 1)")] = 0.9, eps: Annotated[Hyper, Number("(0, inf)")] = 1e-6
) -> Transform:
    r"""Rescales the updates by AdaDelta's rule; `adadelta` also applies the learning rate.

    .. math::
        e_g &\leftarrow \rho\, e_g + (1 - \rho) |g|^2 \\
        u &= g \sqrt{(e_x + \epsilon) / (e_g + \epsilon)} \\
        e_x &\leftarrow \rho\, e_x + (1 - \rho) |u|^2

    Example:
      >>> import gradx, jax.numpy as jnp
      >>> tx = gradx.scale_by_adadelta(eps=1e-2)
      >>> tx.update(jnp.array([1.0]), tx.init(jnp.ones(1)))[0]
      Array([0.3015], dtype=float32)

    Reference: Zeiler, *ADADELTA*, https://arxiv.org/abs/1212.5701. Deviation from Optax: the same
    update is calculated from the new averages, so that the old ones can be overwritten in place.
    """
    return leafwise(
        _adadelta,
        init={"e_g": real_zeros, "e_x": real_zeros},
        state=ScaleByAdaDeltaState,
        hypers={"rho": rho, "eps": eps},
    )


def _adadelta(
    g: Array, s: ScaleByAdaDeltaState, p: None, h: Numbers
) -> tuple[Array, ScaleByAdaDeltaState]:
    square = finite_sq(g)
    e_g = average(s.e_g, square, h.rho)
    e_x = average(s.e_x, (s.e_x + h.eps) * square / (e_g + h.eps), h.rho)
    # Solves the line above for the old e_x + eps, and divides that by e_g + eps.
    old_ratio = (e_x + h.rho * h.eps) / average(e_g + h.eps, square, h.rho)
    return g * sqrt(old_ratio), s._replace(e_g=e_g, e_x=e_x)


@core.recorded
def adadelta(
    learning_rate: Hyper | None = None,
    rho: Annotated[Hyper, Number("(0, 1)")] = 0.9,
    eps: Annotated[Hyper, Number("(0, inf)")] = 1e-6,
    weight_decay: Hyper = 0.0,
    weight_decay_mask: Any = None,
) -> Transform:
    r"""AdaDelta: AdaGrad with averages in place of sums, and steps scaled by earlier steps.

    .. math:: u = -\eta\, g' \sqrt{(e_x + \epsilon) / (e_g + \epsilon)}, \qquad
              g' = g + \lambda \theta

    The averages are as in `scale_by_adadelta`.

    Args:
      learning_rate: With `None` updates are neither scaled nor negated, so they point uphill, as in
        Optax. Give 1.0 for the paper's method.
      weight_decay: The decay is added to the gradient.

    Raises:
      ValueError: `update` is called without the parameters, and there is weight decay.

    Example:
      >>> import gradx, jax.numpy as jnp
      >>> tx = gradx.adadelta(1.0, eps=1e-2)
      >>> tx.update(jnp.array([1.0]), tx.init(jnp.ones(1)), jnp.ones(1))[0]
      Array([-0.3015], dtype=float32)

    Reference: Zeiler, *ADADELTA*, https://arxiv.org/abs/1212.5701.
    """
    return chain(
        add_decayed_weights(weight_decay, weight_decay_mask),
        scale_by_adadelta(rho, eps),
        scale_by_learning_rate(learning_rate),
    )
