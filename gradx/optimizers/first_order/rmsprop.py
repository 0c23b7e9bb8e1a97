"""RMSProp: gradients divided by their root mean square, or by their standard deviation."""

from __future__ import annotations

from functools import partial
from typing import Annotated, NamedTuple

import jax.numpy as jnp

from gradx import core
from gradx.combinators.chain import chain, identity
from gradx.core import Count, Transform, Updates
from gradx.core.meaning import Number
from gradx.core.trees import abs_sq
from gradx.lift.averages import average, full, nu_correction, root
from gradx.lift.leafwise import leafwise
from gradx.lift.stages import LeafState, Numbers
from gradx.numbers.sources import Array, Hyper
from gradx.pieces.moments import trace
from gradx.pieces.scaling import descend

__all__ = [
    "ScaleByRStdDevState",
    "ScaleByRStdDevWithCountState",
    "ScaleByRmsState",
    "ScaleByRmsWithCountState",
    "rmsprop",
    "scale_by_rms",
    "scale_by_stddev",
]


class ScaleByRmsState(NamedTuple):
    """The state of `scale_by_rms`.

    Attributes:
      nu: the average of squares, like the parameters, real.
    """

    nu: Updates


class ScaleByRmsWithCountState(NamedTuple):
    """The state of `scale_by_rms` with bias correction.

    Attributes:
      count: the updates done so far, int32 ().
      nu: the average of squares, like the parameters, real.
    """

    count: Count
    nu: Updates


@core.recorded
def scale_by_rms(
    decay: Hyper = 0.9,
    eps: Hyper = 1e-8,
    initial_scale: Annotated[float, Number("[0, inf)")] = 0.0,
    eps_in_sqrt: bool = True,
    bias_correction: bool = False,
) -> Transform:
    r"""Divides the updates by the root of an average of their squares.

    .. math:: \nu \leftarrow \beta \nu + (1 - \beta) |g|^2, \qquad u = g / \sqrt{\nu + \epsilon}

    Args:
      initial_scale: where \(\nu\) begins.
      eps_in_sqrt: whether \(\epsilon\) is inside the root; False gives
        \(u = g / (\sqrt\nu + \epsilon)\).
      bias_correction: divide \(\nu\) by \(1 - \beta^t\) in \(u\), since it began at zero.

    Example:
      >>> import gradx, jax.numpy as jnp
      >>> tx = gradx.scale_by_rms(0.75)
      >>> tx.update(jnp.array([4.0]), tx.init(jnp.ones(1)))[0]
      Array([2.], dtype=float32)

    Reference: Tieleman and Hinton, *Lecture 6.5: rmsprop*, 2012. With `decay=b2,
    eps_in_sqrt=False, bias_correction=True` it is Adam without momentum.
    """
    return leafwise(
        _rms,
        init={"nu": partial(full, value=initial_scale)},
        state=ScaleByRmsWithCountState if bias_correction else ScaleByRmsState,
        hypers={"decay": decay, "eps": eps},
        flags={"eps_in_sqrt": eps_in_sqrt, "bias_correction": bias_correction},
        per_step=nu_correction,
    )


def _rms(g: Array, s: LeafState, p: None, h: Numbers) -> tuple[Array, LeafState]:
    nu = average(s.nu, abs_sq(g), h.decay)
    return g / root(nu * h.correct, h), s._replace(nu=nu)


class ScaleByRStdDevState(NamedTuple):
    """The state of `scale_by_stddev`.

    Attributes:
      mu: the average of updates, like the parameters.
      nu: the average of squares, like the parameters, real.
    """

    mu: Updates
    nu: Updates


class ScaleByRStdDevWithCountState(NamedTuple):
    """The state of `scale_by_stddev` with bias correction.

    Attributes:
      count: the updates done so far, int32 ().
      mu: the average of updates, like the parameters.
      nu: the average of squares, like the parameters, real.
    """

    count: Count
    mu: Updates
    nu: Updates


@core.recorded
def scale_by_stddev(
    decay: Hyper = 0.9,
    eps: Hyper = 1e-8,
    initial_scale: Annotated[float, Number("[0, inf)")] = 0.0,
    eps_in_sqrt: bool = True,
    bias_correction: bool = False,
) -> Transform:
    r"""Divides the updates by an estimate of their standard deviation.

    .. math::
        \mu &\leftarrow \beta \mu + (1 - \beta) g, \qquad
        \nu \leftarrow \beta \nu + (1 - \beta) |g|^2 \\
        u &= g / \sqrt{\max(\nu - |\mu|^2, 0) + \epsilon}

    Args:
      initial_scale: where \(\nu\) begins.
      eps_in_sqrt: whether \(\epsilon\) is inside the root; False adds it to the root.
      bias_correction: divide \(\mu\) and \(\nu\) by \(1 - \beta^t\) in \(u\), since they began at
        zero.

    Example:
      >>> import gradx, jax.numpy as jnp
      >>> tx = gradx.scale_by_stddev(0.5)
      >>> tx.update(jnp.array([4.0]), tx.init(jnp.ones(1)))[0]
      Array([2.], dtype=float32)

    Reference: Graves, *Generating sequences with recurrent neural networks*,
    https://arxiv.org/abs/1308.0850. Deviation from Optax: a variance that rounding makes negative
    counts as zero; in Optax its root is NaN. With `bias_correction` the variance of the first step
    is zero by definition, so \(u = g / \sqrt\epsilon\): choose \(\epsilon\) accordingly.
    """
    return leafwise(
        _stddev,
        init={"mu": jnp.zeros_like, "nu": partial(full, value=initial_scale)},
        state=ScaleByRStdDevWithCountState if bias_correction else ScaleByRStdDevState,
        hypers={"decay": decay, "eps": eps},
        flags={"eps_in_sqrt": eps_in_sqrt, "bias_correction": bias_correction},
        per_step=nu_correction,
    )


def _stddev(g: Array, s: LeafState, p: None, h: Numbers) -> tuple[Array, LeafState]:
    mu = average(s.mu, g, h.decay)
    nu = average(s.nu, abs_sq(g), h.decay)
    variance = jnp.maximum(nu * h.correct - abs_sq(mu * h.correct), 0.0)
    variance = jnp.where(jnp.isinf(nu), jnp.inf, variance)  # inf - inf is NaN
    return g / root(variance, h), s._replace(mu=mu, nu=nu)


@core.recorded
def rmsprop(
    learning_rate: Hyper,
    decay: Hyper = 0.9,
    eps: Hyper = 1e-8,
    initial_scale: Annotated[float, Number("[0, inf)")] = 0.0,
    eps_in_sqrt: bool = True,
    centered: bool = False,
    momentum: Annotated[Hyper | None, Number("[-1, 1]")] = None,
    nesterov: bool = False,
    bias_correction: bool = False,
) -> Transform:
    r"""RMSProp: gradients divided by their root mean square, with or without momentum.

    .. math:: u = -\eta\, g / \sqrt{\nu + \epsilon}, \qquad
              \nu \leftarrow \beta \nu + (1 - \beta) |g|^2

    With `centered`, \(\nu - |\mu|^2\) takes the place of \(\nu\), as in `scale_by_stddev`. Momentum
    (`trace`) comes after the learning rate, so a schedule does not rescale what it has summed up.

    Args:
      initial_scale: where \(\nu\) begins; 1 in some older implementations.
      eps_in_sqrt: whether \(\epsilon\) is inside the root; False adds it to the root, as PyTorch
        does.
      centered: divide by the standard deviation instead of the root mean square.
      momentum: how much of the sum of updates is kept each step. There is none by default.
      nesterov: Only with momentum.
      bias_correction: correct the averages for their start at zero.

    Raises:
      ValueError: nesterov is given without a momentum.

    Example:
      >>> import gradx, jax.numpy as jnp
      >>> tx = gradx.rmsprop(0.1, decay=0.75)
      >>> tx.update(jnp.array([4.0]), tx.init(jnp.ones(1)))[0]
      Array([-0.2], dtype=float32)

    Reference: Tieleman and Hinton, *Lecture 6.5: rmsprop*, 2012; Graves,
    https://arxiv.org/abs/1308.0850.
    """
    if momentum is None and nesterov:
        raise ValueError(f"{core.where()}: nesterov needs a momentum.")
    scale_by = scale_by_stddev if centered else scale_by_rms
    return chain(
        scale_by(decay, eps, initial_scale, eps_in_sqrt, bias_correction),
        descend(learning_rate),
        identity() if momentum is None else trace(momentum, nesterov),
    )
