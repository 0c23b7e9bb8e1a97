"""Step sizes from the value of the loss: Polyak's, and the momentum models MoMo and MoMo-Adam.

Each call of `update` gets the loss, at the parameters where the gradient was taken, as `value`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, NamedTuple

import jax.numpy as jnp

from gradx import core
from gradx.combinators.chain import chain
from gradx.core import Count, Transform, Updates
from gradx.core.meaning import Number
from gradx.core.roots import sqrt
from gradx.core.trees import abs_sq, finite_sq, products
from gradx.lift.averages import average, real_zeros, weight_so_far, zeros
from gradx.lift.leafwise import leafwise
from gradx.lift.stages import Decided, Numbers, Sums
from gradx.lowering.reading import unshared
from gradx.lowering.sums import sums_of
from gradx.numbers.sources import Array, Hyper, from_call
from gradx.pieces.norms import by_factor, squares
from gradx.pieces.scaling import descend

__all__ = ["MomoAdamState", "MomoState", "momo", "momo_adam", "polyak_sgd", "scale_by_polyak"]

# A squared norm up to this counts as zero, as in Optax: then there is no step.
NOTHING = 2.0**-52


# ---------------------------------------------------------------- Polyak's step size


@core.recorded
def scale_by_polyak(
    f_min: Annotated[Hyper, Number("(-inf, inf)", r"f_\mathrm{min}")] = 0.0,
    max_learning_rate: Annotated[Hyper, Number("(0, inf]", r"\gamma")] = 1.0,
    eps: Hyper = 0.0,
    variant: Literal["sps", "sps+"] = "sps",
    *,
    axis_name: Any = None,
) -> Transform:
    r"""Scales the updates by Polyak's step size, which needs the loss and its smallest value.

    .. math:: u = g \min\left(\frac{f(\theta) - f_\mathrm{min}}{\lVert g \rVert^2 + \epsilon},
              \gamma\right)

    with the norm of the whole tree; 0 if the denominator is at most \(2^{-52}\). Give the loss
    \(f(\theta)\) to `update` as the extra argument `value`.

    Args:
      f_min: the smallest possible loss. If it is too large the method ascends, unless the variant
        is ``"sps+"``.
      max_learning_rate: the largest step size.
      variant: ``"sps"``; or ``"sps+"``, where the difference of the losses is at least 0.

    Raises:
      ValueError: an unknown `variant`; `update` is called without `value`.

    Example:
      >>> import gradx, jax.numpy as jnp
      >>> tx = gradx.scale_by_polyak()
      >>> tx.update(jnp.array([3.0, 4.0]), tx.init(jnp.ones(2)), value=2.5)[0]
      Array([0.3, 0.4], dtype=float32)

    Reference: Loizou et al., *Stochastic Polyak step-size for SGD*,
    https://arxiv.org/abs/2002.10542, 2021; ``"sps+"``: Garrigos et al., *Function value learning*,
    https://arxiv.org/abs/2307.14528, 2023.
    """
    return leafwise(
        by_factor,
        measure=squares,
        per_tree=_polyak,
        hypers={
            "f_min": f_min,
            "max_learning_rate": max_learning_rate,
            "eps": eps,
            "value": from_call("value"),
        },
        flags={"positive": variant == "sps+"},
        axis_name=axis_name,
    )


def _polyak(h: Numbers, sums: Sums) -> Decided:
    gap = h.value - h.f_min
    gap = jnp.maximum(gap, 0.0) if h.positive else gap
    rate = jnp.minimum(_over(gap, sums["squares"] + h.eps), h.max_learning_rate)
    return {"factor": rate.astype(sums["squares"].dtype)}, {}


def _over(gap: Array, norm: Array) -> Array:
    some = norm > NOTHING
    return jnp.where(some, gap / jnp.where(some, norm, 1.0), 0.0)


@core.recorded
def polyak_sgd(
    max_learning_rate: Annotated[Hyper, Number("(0, inf]", r"\gamma")] = 1.0,
    scaling: Annotated[Hyper, Number("[0, inf)", "s")] = 1.0,
    f_min: Annotated[Hyper, Number("(-inf, inf)", r"f_\mathrm{min}")] = 0.0,
    eps: Hyper = 0.0,
    variant: Literal["sps", "sps+"] = "sps",
    *,
    axis_name: Any = None,
) -> Transform:
    r"""Gradient descent with Polyak's step size, for losses whose smallest value is known.

    .. math:: u = -s \min\left(\frac{f(\theta) - f_\mathrm{min}}{\lVert g \rVert^2 + \epsilon},
              \gamma\right) g

    Give the loss \(f(\theta)\) to `update` as the extra argument `value`.

    Args:
      max_learning_rate: the largest step size.
      scaling: a factor of the step size.
      f_min: the smallest possible loss (see `scale_by_polyak`).
      variant: ``"sps"`` or ``"sps+"`` (see `scale_by_polyak`).

    Raises:
      ValueError: an unknown `variant`; `update` is called without `value`.

    Example:
      >>> import gradx, jax, jax.numpy as jnp
      >>> tx = gradx.polyak_sgd()
      >>> params = jnp.array([1.0, 2.0])
      >>> value, grads = jax.value_and_grad(lambda p: jnp.sum(p**2))(params)
      >>> updates, state = tx.update(grads, tx.init(params), params, value=value)
      >>> params + updates
      Array([0.5, 1. ], dtype=float32)

    Reference: Loizou et al., *Stochastic Polyak step-size for SGD*,
    https://arxiv.org/abs/2002.10542, 2021. Deviation from Optax: \(s\) multiplies the step. In
    Optax it multiplies the gradient, and so divides the step unless \(\gamma\) bounds it.
    """
    return chain(
        scale_by_polyak(f_min, max_learning_rate, eps, variant, axis_name=axis_name),
        descend(scaling),
    )


# ---------------------------------------------------------------- MoMo


def _with_loss(
    rule: Any, *, hypers: Mapping[str, Hyper], bound: tuple[float, bool], **lifted: Any
) -> Transform:
    first, adapts = bound
    return leafwise(
        rule,
        hypers={**hypers, "value": from_call("value")},
        flags={"lower_bound": first, "adapt_lower_bound": adapts},
        per_tree=_decide,
        scalars={"barf": 0.0, "gamma": 0.0, "lb": first},
        needs_params=True,
        **lifted,
    )


def _shrinkage(h: Numbers) -> dict[str, Any]:
    growth = 1 + h.learning_rate * h.weight_decay
    loss = h.value.astype(h.barf.dtype)
    return {"growth": growth, "decay": h.learning_rate * h.weight_decay / growth, "loss": loss}


def _decide(h: Numbers, sums: Sums) -> Decided:
    """The step size of MoMo and MoMo-Adam: how far to go along the averaged model of the loss."""
    barf = h.keep * h.barf + h.add * h.loss
    gamma = h.keep * h.gamma + h.add * sums["slope"]
    rise = sums["height"] - h.growth * gamma  # first, since both may be large and nearly equal
    floor = h.lb
    if h.adapt_lower_bound:
        cap = h.growth * barf + rise
        lower = jnp.maximum(cap / (2 * h.growth * h.weight), h.lower_bound)
        floor = jnp.where(cap < h.growth * h.weight * h.lb, lower, h.lb)
    gap = jnp.maximum(h.growth * (barf - h.weight * floor) + rise, 0.0)
    norm = h.root * sums["norm"]
    tau = jnp.minimum(h.learning_rate / h.weight, _over(gap, norm))
    new = {"barf": barf, "gamma": gamma}
    if h.adapt_lower_bound:
        norm = jnp.minimum(norm, jnp.finfo(tau.dtype).max)  # or 0 times inf would be NaN
        least = barf + (sums["height"] - gamma) - 0.5 * tau * norm
        new["lb"] = jnp.maximum(least / h.weight, h.lower_bound)
    return {"tau": tau}, new


class MomoState(NamedTuple):
    """The state of MoMo.

    Attributes:
      exp_avg: the average of gradients, like the parameters.
      barf: the average of losses, float32 or wider ().
      gamma: the average of inner products of gradients and parameters, float32 or wider ().
      lb: the lower bound of the loss, float32 or wider ().
      count: the updates done so far, int32 ().
    """

    exp_avg: Updates
    barf: Array
    gamma: Array
    lb: Array
    count: Count


@core.recorded
def momo(
    learning_rate: Hyper = 1.0,
    beta: Hyper = 0.9,
    lower_bound: Annotated[float, Number("[-inf, inf)", "f_*")] = 0.0,
    weight_decay: Hyper = 0.0,
    adapt_lower_bound: bool = False,
    *,
    axis_name: Any = None,
) -> Transform:
    r"""MoMo: SGD with momentum whose step size comes from a model of the loss.

    .. math::
        m &\leftarrow \beta m + (1 - \beta) g, \quad
        \bar f \leftarrow \beta \bar f + (1 - \beta) f(\theta), \quad
        \gamma \leftarrow \beta \gamma + (1 - \beta) \langle g, \theta \rangle \\
        \tau &= \min\left(\eta, \frac{[(1 + \eta \lambda)(\bar f - \gamma - f_*)
                + \langle m, \theta \rangle]_+}{\lVert m \rVert^2}\right) \\
        u &= -\tau m - \frac{\eta \lambda}{1 + \eta \lambda} \theta

    In the first step \(\beta\) is 0. Norm and inner products are taken over the whole tree; a
    squared norm of at most \(2^{-52}\) means no step. Give the loss \(f(\theta)\) to `update` as
    the extra argument `value`.

    Args:
      learning_rate: the largest step size.
      lower_bound: a value that the loss cannot fall below.
      adapt_lower_bound: estimate \(f_*\) during the run, from `lower_bound` upwards.

    Raises:
      ValueError: `update` is called without the parameters or without `value`.

    Example:
      >>> import gradx, jax, jax.numpy as jnp
      >>> tx = gradx.momo()
      >>> params = jnp.array([1.0, 2.0])
      >>> value, grads = jax.value_and_grad(lambda p: jnp.sum(p**2))(params)
      >>> updates, state = tx.update(grads, tx.init(params), params, value=value)
      >>> params + updates
      Array([0.5, 1. ], dtype=float32)

    Reference: Schaipp et al., *MoMo: momentum models for adaptive learning rates*,
    https://arxiv.org/abs/2305.07583, 2023. With decay, the authors' code divides \(\tau m\) by
    \(1 + \eta \lambda\), too; Optax does not.
    """
    return _with_loss(
        _momo,
        init={"exp_avg": zeros},
        state=MomoState,
        hypers={"learning_rate": learning_rate, "beta": beta, "weight_decay": weight_decay},
        per_step=_momo_step,
        measure=_momo_sums,
        bound=(lower_bound, adapt_lower_bound),
        axis_name=axis_name,
    )


def _momo_step(h: Numbers, t: Array) -> Mapping[str, Any]:
    add = jnp.where(t == 1, 1.0, 1 - h.beta)  # all averages begin at zero
    return {**_shrinkage(h), "weight": 1.0, "root": 1.0, "keep": h.beta, "add": add}


def _momo_sums(g: Array, s: MomoState, p: Array, h: Numbers) -> Mapping[str, Array]:
    m = h.keep * s.exp_avg + h.add * g
    return sums_of(norm=abs_sq(m), height=products(m, p), slope=products(g, p))


def _momo(g: Array, s: MomoState, p: Array, h: Numbers) -> tuple[Array, MomoState]:
    m = h.keep * s.exp_avg + h.add * g
    return -h.decay * p - h.tau * m, s._replace(exp_avg=m)


class MomoAdamState(NamedTuple):
    """The state of MoMo-Adam.

    Attributes:
      exp_avg: the average of gradients, like the parameters.
      exp_avg_sq: the average of their squares, like the parameters, real.
      barf: the average of losses, float32 or wider ().
      gamma: the average of inner products of gradients and parameters, float32 or wider ().
      lb: the lower bound of the loss, float32 or wider ().
      count: the updates done so far, int32 ().
    """

    exp_avg: Updates
    exp_avg_sq: Updates
    barf: Array
    gamma: Array
    lb: Array
    count: Count


@core.recorded
def momo_adam(
    learning_rate: Hyper = 1e-2,
    b1: Hyper = 0.9,
    b2: Hyper = 0.999,
    eps: Annotated[Hyper, Number("(0, inf)")] = 1e-8,
    lower_bound: Annotated[float, Number("[-inf, inf)", "f_*")] = 0.0,
    weight_decay: Hyper = 0.0,
    adapt_lower_bound: bool = False,
    *,
    axis_name: Any = None,
) -> Transform:
    r"""MoMo-Adam: AdamW whose step size comes from a model of the loss.

    .. math::
        m &\leftarrow \beta_1 m + (1 - \beta_1) g, \qquad
        \nu \leftarrow \beta_2 \nu + (1 - \beta_2) |g|^2, \qquad
        D = \epsilon + \sqrt{\nu / (1 - \beta_2^t)} \\
        \bar f &\leftarrow \beta_1 \bar f + (1 - \beta_1) f(\theta), \qquad
        \gamma \leftarrow \beta_1 \gamma + (1 - \beta_1) \langle g, \theta \rangle, \qquad
        w = 1 - \beta_1^t \\
        \tau &= \min\left(\frac{\eta}{w}, \frac{[(1 + \eta \lambda)(\bar f - \gamma - w f_*)
                + \langle m, \theta \rangle]_+}{\langle m, m / D \rangle}\right) \\
        u &= -\tau m / D - \frac{\eta \lambda}{1 + \eta \lambda} \theta

    Inner products are taken over the whole tree; a denominator of at most \(2^{-52}\) means no
    step. Give the loss \(f(\theta)\) to `update` as the extra argument `value`.

    Args:
      learning_rate: the largest step size.
      lower_bound: a value that the loss cannot fall below.
      adapt_lower_bound: estimate \(f_*\) during the run, from `lower_bound` upwards.

    Raises:
      ValueError: `update` is called without the parameters or without `value`.

    Example:
      >>> import gradx, jax, jax.numpy as jnp
      >>> tx = gradx.momo_adam(0.1)
      >>> params = jnp.array([1.0, 2.0])
      >>> value, grads = jax.value_and_grad(lambda p: jnp.sum(p**2))(params)
      >>> updates, state = tx.update(grads, tx.init(params), params, value=value)
      >>> (params + updates).round(4)
      Array([0.9, 1.9], dtype=float32)

    Reference: Schaipp et al., *MoMo: momentum models for adaptive learning rates*,
    https://arxiv.org/abs/2305.07583, 2023.
    """
    rates = {"learning_rate": learning_rate, "weight_decay": weight_decay}
    return _with_loss(
        _momo_adam,
        init={"exp_avg": zeros, "exp_avg_sq": real_zeros},
        state=MomoAdamState,
        hypers={**rates, "b1": b1, "b2": b2, "eps": eps},
        per_step=_momo_adam_step,
        measure=_momo_adam_sums,
        bound=(lower_bound, adapt_lower_bound),
        axis_name=axis_name,
    )


def _momo_adam_step(h: Numbers, t: Array) -> Mapping[str, Any]:
    first, second = weight_so_far(h.b1, t), weight_so_far(h.b2, t)
    root = jnp.sqrt(second)
    more = {"weight": first, "keep": h.b1, "add": 1 - h.b1, "root": root, "small": h.eps * root}
    return {**_shrinkage(h), **more, "correct_nu": 1 / second}


def _momo_adam_sums(g: Array, s: MomoAdamState, p: Array, h: Numbers) -> Mapping[str, Array]:
    mu = average(s.exp_avg, g, h.b1)
    nu = average(s.exp_avg_sq, abs_sq(g), h.b2)
    # D is (root(nu) + small) / root: that of the update, but with only one scalar in the sum.
    size = finite_sq(mu) / (sqrt(nu) + unshared(h.small, g))
    return sums_of(norm=size, height=products(mu, p), slope=products(g, p))


def _momo_adam(g: Array, s: MomoAdamState, p: Array, h: Numbers) -> tuple[Array, MomoAdamState]:
    mu = average(s.exp_avg, g, h.b1)
    nu = average(s.exp_avg_sq, abs_sq(g), h.b2)
    u = -h.decay * p - h.tau * mu / (sqrt(nu * h.correct_nu) + h.eps)
    return u, s._replace(exp_avg=mu, exp_avg_sq=nu)
