"""Moving averages: `trace`, `ema`, `scale_by_rms`, `scale_by_adam`, and what their kin share."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import jax.numpy as jnp

from gradx import core, hyper
from gradx.core import Count, Transform, Updates
from gradx.leafwise import leafwise
from gradx.powers import sqrt
from gradx.sources import Array, Hyper, as_float
from gradx.stage import Numbers, Slots
from gradx.step import safe_increment
from gradx.trees import abs_sq, wide

__all__ = [
    "EmaState",
    "ScaleByAdamState",
    "ScaleByBeliefState",
    "ScaleByRmsState",
    "ScaleByRmsWithCountState",
    "TraceState",
    "ema",
    "scale_by_adam",
    "scale_by_rms",
    "trace",
]


# ---------------------------------------------------------------- arithmetic


def average(old: Array, new: Array, decay: float | Array) -> Array:
    r"""One step of an exponential moving average, \(\beta m + (1 - \beta) x\)."""
    return decay * old + (1 - decay) * new


def weight_so_far(decay: float | Array, t: Array) -> Array:
    r"""The weight \(1 - \beta^t\) that an average has gathered after `t` updates.

    Through `expm1`, since the difference itself loses four digits of float32 to a decay of 0.999.
    """
    t = as_float(t)
    if isinstance(decay, float):
        log = math.log(decay) if decay > 0 else -math.inf
        return -jnp.expm1(log * t)
    return -jnp.expm1(jnp.log1p(decay - 1) * t)


def bias_corrections(h: Numbers, t: Array) -> Mapping[str, Array]:
    """What undoes the averages' start at zero, as factors: leaves multiply, they do not divide."""
    return {
        "correct_mu": 1 / weight_so_far(h.b1, t),
        "correct_next_mu": 1 / weight_so_far(h.b1, safe_increment(t)),
        "correct_nu": 1 / weight_so_far(h.b2, t),
    }


def unbiased_mu(mu: Array, g: Array, h: Numbers) -> Array:
    """The first moment without its bias; with `h.nesterov` looking one step ahead (Dozat)."""
    if h.nesterov:
        return h.b1 * h.correct_next_mu * mu + (1 - h.b1) * h.correct_mu * g
    return h.correct_mu * mu


def storage(name: str, dtype: Any) -> Any:
    """Checks a dtype to keep an average in; `None` stays, for that of the parameter.

    Raises:
      ValueError: it is no floating-point dtype.
    """
    if dtype is None:
        return None
    kept = dtype_of(dtype, jnp.inexact)
    if kept is None:
        raise ValueError(
            f"{core.where()}: {name} must be a floating-point dtype, got {core.show(dtype)}."
        )
    return kept


def dtype_of(given: Any, kind: Any) -> Any:
    """The dtype that is meant, if it is of this kind (`jnp.inexact`, say); else None."""
    try:
        dtype = jnp.dtype(given)
    except TypeError:
        return None
    return dtype if jnp.issubdtype(dtype, kind) else None


def zeros(p: Array, *, dtype: Any = None) -> Slots:
    """One slot like the parameter, complex where it is."""
    kept = p.dtype if dtype is None else dtype
    return (jnp.zeros_like(p, wide(kept, p.dtype) if jnp.iscomplexobj(p) else kept),)


def full(p: Array, *, value: float | Array) -> Slots:
    """One real slot that begins at a number."""
    return (jnp.full_like(p.real, value),)


def zero_moments(p: Array, *, mu_dtype: Any = None) -> Slots:
    """First moment like the parameter; second moment real, since it averages squares."""
    return (*zeros(p, dtype=mu_dtype), jnp.zeros_like(p.real))


class ScaleByAdamState(NamedTuple):
    """The state of Adam, and of the rules that keep the same two averages.

    Attributes:
      count: the updates done so far, int32 ().
      mu: the first moment, like the parameters.
      nu: the second moment, like the parameters, real.
    """

    count: Count
    mu: Updates
    nu: Updates


class ScaleByBeliefState(NamedTuple):
    """The state of AdaBelief.

    Attributes:
      count: the updates done so far, int32 ().
      mu: the first moment, like the parameters.
      nu: the second moment around the first, like the parameters, real.
    """

    count: Count
    mu: Updates
    nu: Updates


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


# ---------------------------------------------------------------- pieces


MOMENTUM = "[-1, 1]"  # of a sum, which nothing divides by what is left of 1


class TraceState(NamedTuple):
    """The state of `trace`.

    Attributes:
      trace: the decaying sum of updates, like the parameters.
    """

    trace: Updates


@core.recorded
def trace(decay: Hyper, nesterov: bool = False, accumulator_dtype: Any = None) -> Transform:
    r"""Momentum: adds up the updates, the old ones decayed.

    .. math::
        m &\leftarrow \beta m + g \\
        u &= m \quad\text{or, with nesterov,}\quad \beta m + g

    Args:
      decay: how much of the sum is kept each step; \(\beta\) in [-1, 1], where 1 is a plain sum.
      nesterov: look one step ahead.
      accumulator_dtype: the dtype to keep \(m\) in; by default the parameter's, at least float32.

    Example:
      >>> import gradx, jax.numpy as jnp
      >>> tx = gradx.trace(0.5)
      >>> state = tx.init(jnp.ones(1))
      >>> for _ in range(2):
      ...     updates, state = tx.update(jnp.ones(1), state)
      >>> updates
      Array([1.5], dtype=float32)

    Reference: Polyak, *Some methods of speeding up the convergence of iteration methods*, 1964;
    Sutskever et al., *On the importance of initialization and momentum in deep learning*, 2013.
    """
    return leafwise(
        _trace,
        init=partial(zeros, dtype=storage("accumulator_dtype", accumulator_dtype)),
        state=TraceState,
        hypers={"decay": decay},
        ranges={"decay": MOMENTUM},
        flags={"nesterov": nesterov},
    )


def _trace(g: Array, slots: Slots, p: None, h: Numbers) -> tuple[Array, Slots]:
    m = h.decay * slots[0] + g
    return (h.decay * m + g if h.nesterov else m), (m,)


class EmaState(NamedTuple):
    """The state of `ema`.

    Attributes:
      count: the updates done so far, int32 ().
      ema: the average of updates, like the parameters, not yet corrected for its start at zero.
    """

    count: Count
    ema: Updates


@core.recorded
def ema(decay: Hyper, debias: bool = True, accumulator_dtype: Any = None) -> Transform:
    r"""Replaces the updates by their exponential moving average.

    .. math::
        m &\leftarrow \beta m + (1 - \beta) g \\
        u &= m / (1 - \beta^t) \quad\text{or, without debias,}\quad m

    Args:
      decay: \(\beta\) in [0, 1).
      debias: correct for the start at zero.
      accumulator_dtype: the dtype to keep \(m\) in; by default the parameter's, at least float32.

    Example:
      >>> import gradx, jax.numpy as jnp
      >>> tx = gradx.ema(0.5)
      >>> tx.update(jnp.ones(1), tx.init(jnp.ones(1)))[0]
      Array([1.], dtype=float32)

    Reference: Kingma and Ba, *Adam*, https://arxiv.org/abs/1412.6980, section 3.
    """
    return leafwise(
        _ema,
        init=partial(zeros, dtype=storage("accumulator_dtype", accumulator_dtype)),
        state=EmaState,
        hypers={"decay": decay},
        flags={"debias": debias},
        per_step=_ema_correction,
    )


def _ema_correction(h: Numbers, t: Array) -> Mapping[str, Any]:
    return {"correct": 1 / weight_so_far(h.decay, t) if h.debias else 1.0}


def _ema(g: Array, slots: Slots, p: None, h: Numbers) -> tuple[Array, Slots]:
    m = average(slots[0], g, h.decay)
    return (m * h.correct if h.debias else m), (m,)


@core.recorded
def scale_by_adam(
    b1: Hyper = 0.9,
    b2: Hyper = 0.999,
    eps: Hyper = 1e-8,
    eps_root: Hyper = 0.0,
    mu_dtype: Any = None,
    *,
    nesterov: bool = False,
) -> Transform:
    r"""Rescales the updates by Adam's rule.

    .. math::
        \mu &\leftarrow \beta_1 \mu + (1 - \beta_1) g, \qquad
        \nu \leftarrow \beta_2 \nu + (1 - \beta_2) |g|^2 \\
        \hat\mu &= \mu / (1 - \beta_1^t), \qquad \hat\nu = \nu / (1 - \beta_2^t) \\
        u &= \hat\mu / (\sqrt{\hat\nu + \epsilon_\mathrm{root}} + \epsilon)

    With `nesterov`, \(\hat\mu = \beta_1 \mu / (1 - \beta_1^{t+1}) + (1 - \beta_1) g /
    (1 - \beta_1^t)\).

    Args:
      b1: \(\beta_1\) in [0, 1).
      b2: \(\beta_2\) in [0, 1).
      eps: \(\epsilon\) in [0, inf). With 0 an element that has had no gradient yet gives NaN.
      eps_root: in [0, inf), inside the root. Derivatives of the update need none.
      mu_dtype: the dtype to keep \(\mu\) in; by default the parameter's, at least float32.
      nesterov: look one step ahead.

    Example:
      >>> import gradx, jax.numpy as jnp
      >>> tx = gradx.scale_by_adam()
      >>> tx.update(jnp.array([-10.0]), tx.init(jnp.ones(1)))[0]
      Array([-1.0], dtype=float32)

    Reference: Kingma and Ba, *Adam*, https://arxiv.org/abs/1412.6980; Dozat, *Incorporating
    Nesterov momentum into Adam*, 2016 (of which, like Optax, it does not take the further factor
    \(\beta_2\) of \(\hat\nu\)).
    """
    return leafwise(
        _adam,
        init=partial(zero_moments, mu_dtype=storage("mu_dtype", mu_dtype)),
        state=ScaleByAdamState,
        hypers={"b1": b1, "b2": b2, "eps": eps, "eps_root": eps_root},
        flags={"nesterov": nesterov},
        per_step=bias_corrections,
    )


def _adam(g: Array, slots: Slots, p: None, h: Numbers) -> tuple[Array, Slots]:
    mu, nu = slots
    mu = average(mu, g, h.b1)
    nu = average(nu, abs_sq(g), h.b2)
    u = unbiased_mu(mu, g, h) / (sqrt(nu * h.correct_nu + h.eps_root) + h.eps)
    return u, (mu, nu)


@core.recorded
def scale_by_rms(
    decay: Hyper = 0.9,
    eps: Hyper = 1e-8,
    initial_scale: float = 0.0,
    eps_in_sqrt: bool = True,
    bias_correction: bool = False,
) -> Transform:
    r"""Divides the updates by the root of an average of their squares.

    .. math:: \nu \leftarrow \beta \nu + (1 - \beta) |g|^2, \qquad u = g / \sqrt{\nu + \epsilon}

    Args:
      decay: \(\beta\) in [0, 1).
      eps: \(\epsilon\) in [0, inf).
      initial_scale: where \(\nu\) begins, in [0, inf).
      eps_in_sqrt: False for \(u = g / (\sqrt\nu + \epsilon)\).
      bias_correction: replace \(\nu\) in \(u\) by \(\nu / (1 - \beta^t)\).

    Example:
      >>> import gradx, jax.numpy as jnp
      >>> tx = gradx.scale_by_rms(0.75)
      >>> tx.update(jnp.array([4.0]), tx.init(jnp.ones(1)))[0]
      Array([2.], dtype=float32)

    Reference: Tieleman and Hinton, *Lecture 6.5: rmsprop*, 2012; with `decay=b2,
    eps_in_sqrt=False, bias_correction=True` it is Adam without momentum.
    """
    start = hyper.constant("initial_scale", initial_scale, "[0, inf)")
    return leafwise(
        _rms,
        init=partial(full, value=start),
        state=ScaleByRmsWithCountState if bias_correction else ScaleByRmsState,
        hypers={"decay": decay, "eps": eps},
        flags={"eps_in_sqrt": eps_in_sqrt, "bias_correction": bias_correction},
        per_step=nu_correction,
    )


def nu_correction(h: Numbers, t: Array) -> Mapping[str, Any]:
    """What undoes the start of one average at zero, as a factor."""
    return {"correct": 1 / weight_so_far(h.decay, t) if h.bias_correction else 1.0}


def root(variance: Array, h: Numbers) -> Array:
    """What `scale_by_rms` and `scale_by_stddev` divide by."""
    return sqrt(variance + h.eps) if h.eps_in_sqrt else sqrt(variance) + h.eps


def _rms(g: Array, slots: Slots, p: None, h: Numbers) -> tuple[Array, Slots]:
    nu = average(slots[0], abs_sq(g), h.decay)
    return g / root(nu * h.correct, h), (nu,)
