"""D-Adaptation and Prodigy: Adam whose learning rate is a bound on the distance to the solution."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, NamedTuple

import jax.numpy as jnp

from gradx import core
from gradx.core import Count, Params, Transform, Updates
from gradx.core.meaning import Number
from gradx.core.roots import sqrt
from gradx.core.trees import abs_sq, products
from gradx.lift.averages import average, real_zeros, weight_so_far, zeros
from gradx.lift.leafwise import leafwise
from gradx.lift.stages import Decided, Numbers, Sums
from gradx.lowering.order import once_known
from gradx.lowering.reading import unshared
from gradx.lowering.sums import sums_of
from gradx.numbers import hyper
from gradx.numbers.sources import Array, Hyper
from gradx.pieces.norms import quotient

__all__ = ["DAdaptAdamWState", "ProdigyState", "dadapt_adamw", "prodigy"]


# ---------------------------------------------------------------- what they share


def _two_betas(betas: Any) -> dict[str, Hyper]:
    """The two decays of a pair, checked under the names `betas[0]` and `betas[1]`."""
    if getattr(betas, "shape", None) == (2,):
        betas = tuple(betas)
    if not isinstance(betas, tuple | list) or len(betas) != 2:
        raise ValueError(
            f"{core.where()}: betas must be a pair of numbers, got {core.show(betas)}."
        )
    named = {"betas[0]": betas[0], "betas[1]": betas[1]}
    hyper.Hypers(named, core.where(), dict.fromkeys(named, "[0, 1)"))
    return {"b1": betas[0], "b2": betas[1]}


def _step_size(h: Numbers, t: Array) -> Array:
    """The estimate times the learning rate and both bias corrections of Adam."""
    root = jnp.sqrt(weight_so_far(h.b2, t))
    return h.estim_lr * (h.learning_rate * root / weight_so_far(h.b1, t))


def _no_decay(h: Numbers) -> bool:
    return isinstance(h.weight_decay, float) and h.weight_decay == 0


# ---------------------------------------------------------------- D-Adaptation


class DAdaptAdamWState(NamedTuple):
    """The state of D-Adapted AdamW.

    Attributes:
      exp_avg: the average of steps, like the parameters.
      exp_avg_sq: the average of squared gradients, like the parameters, real.
      grad_sum: the average of gradients, each times its step size, like the parameters.
      estim_lr: the estimate of the distance, float32 or wider ().
      numerator_weighted: the numerator of the estimate, an average, float32 or wider ().
      count: the updates done so far, int32 ().
    """

    exp_avg: Updates
    exp_avg_sq: Updates
    grad_sum: Updates
    estim_lr: Array
    numerator_weighted: Array
    count: Count


@core.recorded
def dadapt_adamw(
    learning_rate: Hyper = 1.0,
    betas: tuple[Hyper, Hyper] = (0.9, 0.999),
    eps: Annotated[Hyper, Number("(0, inf)")] = 1e-8,
    estim_lr0: Annotated[float, Number("(0, inf)")] = 1e-6,
    weight_decay: Annotated[Hyper, Number(symbol="w")] = 0.0,
    *,
    axis_name: Any = None,
) -> Transform:
    r"""D-Adaptation: learning-rate-free AdamW, by an estimate of the distance to the solution.

    .. math::
        \lambda_t &= d\, \eta_t \sqrt{1 - \beta_2^t} / (1 - \beta_1^t), \qquad
        \beta = \sqrt{\beta_2} \\
        r &\leftarrow \beta r + (1 - \beta) \lambda_t
             \langle g, s / (\sqrt\nu + \epsilon) \rangle \\
        m &\leftarrow \beta_1 m + (1 - \beta_1) \lambda_t g, \quad
        \nu \leftarrow \beta_2 \nu + (1 - \beta_2) |g|^2, \quad
        s \leftarrow \beta s + (1 - \beta) \lambda_t g \\
        d &\leftarrow \max\left(d, \frac{r}{(1 - \beta) \lVert s \rVert_1}\right) \\
        u &= -m / (\sqrt\nu + \epsilon) - \lambda_t w\, \theta

    Inner product and 1-norm are taken over the whole tree. If \(s\) is zero, \(d\) stays.

    Args:
      learning_rate: a further factor of the step; a schedule should have its peak at 1.
      betas: \((\beta_1, \beta_2)\), both in [0, 1).
      estim_lr0: the first \(d\). It should be well below the right one.

    Raises:
      ValueError: `update` is called without the parameters.

    Example:
      >>> import gradx, jax, jax.numpy as jnp
      >>> tx = gradx.dadapt_adamw()
      >>> params = jnp.array([3.0])
      >>> state = tx.init(params)
      >>> for _ in range(60):
      ...     updates, state = tx.update(jax.grad(lambda p: jnp.sum(p**2))(params), state, params)
      ...     params = params + updates
      >>> bool(state.estim_lr > 1e-3)
      True

    Reference: Defazio and Mishchenko, *Learning-rate-free learning by D-Adaptation*,
    https://arxiv.org/abs/2301.07733, 2023. Deviations: as in Optax, the estimate may grow by any
    factor in a step, and steps always have bias correction; both are options of the authors' code.
    In Optax a step with \(s = 0\) (a first gradient of zero, a learning rate that begins at zero)
    makes the estimate NaN for ever.
    """
    return leafwise(
        _dadapt,
        init={"exp_avg": zeros, "exp_avg_sq": real_zeros, "grad_sum": jnp.zeros_like},
        state=DAdaptAdamWState,
        hypers={
            "learning_rate": learning_rate,
            **_two_betas(betas),
            "eps": eps,
            "weight_decay": weight_decay,
        },
        per_step=_dadapt_step,
        measure=_dadapt_sums,
        per_tree=_dadapt_estimate,
        scalars={"estim_lr": estim_lr0, "numerator_weighted": 0.0},
        axis_name=axis_name,
        needs_params=True,
    )


def _dadapt_step(h: Numbers, t: Array) -> Mapping[str, Any]:
    root = h.b2**0.5
    rest = (1 - h.b2) / (1 + root)  # 1 - root, without cancellation
    step = _step_size(h, t)
    return {"step": step, "root": root, "rest": rest, "to_sum": rest * step}


def _dadapt_sums(g: Array, s: DAdaptAdamWState, p: Array, h: Numbers) -> Mapping[str, Array]:
    gain, _, grad_sum = _dadapt_moments(g, s, h)
    return sums_of(product=gain, size=jnp.abs(grad_sum))


def _dadapt_moments(g: Array, s: DAdaptAdamWState, h: Numbers) -> tuple[Array, Array, Array]:
    """The products with the old moments, and the new moments, which overwrite the old ones last.

    The measurement and the update use these same expressions, so they are calculated once.
    """
    nu = s.exp_avg_sq
    gain = products(g, s.grad_sum / (sqrt(nu) + unshared(jnp.asarray(h.eps, nu.dtype), g)))
    then = jnp.where(once_known(jnp.sum(gain)), 1.0, 0.0)
    nu = h.b2 * nu + ((1 - h.b2) * then) * abs_sq(g)
    grad_sum = h.root * s.grad_sum + (h.to_sum * then) * g
    return gain, nu, grad_sum


def _dadapt_estimate(h: Numbers, sums: Sums) -> Decided:
    numerator = h.root * h.numerator_weighted + h.to_sum * sums["product"]
    estimate = jnp.maximum(h.estim_lr, quotient(numerator, h.rest * sums["size"]))
    return {}, {"estim_lr": estimate, "numerator_weighted": numerator}


def _dadapt(g: Array, s: DAdaptAdamWState, p: Array, h: Numbers) -> tuple[Array, DAdaptAdamWState]:
    _, nu, grad_sum = _dadapt_moments(g, s, h)
    mu = average(s.exp_avg, h.step * g, h.b1)
    u = -mu / (sqrt(nu) + h.eps)
    u = u if _no_decay(h) else u - h.step * h.weight_decay * p
    return u, s._replace(exp_avg=mu, exp_avg_sq=nu, grad_sum=grad_sum)


# ---------------------------------------------------------------- Prodigy


class ProdigyState(NamedTuple):
    """The state of Prodigy.

    Attributes:
      exp_avg: the average of gradients, each times the estimate at its step, like the parameters.
      exp_avg_sq: the average of their squares, like the parameters, real.
      grad_sum: the decaying sum of weighted gradients, like the parameters.
      params0: the parameters at `init`, like the parameters.
      estim_lr: the estimate of the distance, float32 or wider ().
      numerator_weighted: the numerator of the estimate, a decaying sum, float32 or wider ().
      count: the updates done so far, int32 ().
    """

    exp_avg: Updates
    exp_avg_sq: Updates
    grad_sum: Updates
    params0: Params
    estim_lr: Array
    numerator_weighted: Array
    count: Count


@core.recorded
def prodigy(
    learning_rate: Hyper = 1.0,
    betas: tuple[Hyper, Hyper] = (0.9, 0.999),
    beta3: Annotated[Hyper | None, Number("[0, 1)", r"\beta_3")] = None,
    eps: Hyper = 1e-8,
    estim_lr0: Annotated[float, Number("(0, inf)", "d_0")] = 1e-6,
    estim_lr_coef: Annotated[Hyper, Number("(0, inf)", "c")] = 1.0,
    weight_decay: Annotated[Hyper, Number(symbol="w")] = 0.0,
    safeguard_warmup: bool = False,
    *,
    axis_name: Any = None,
) -> Transform:
    r"""Prodigy: learning-rate-free AdamW, like D-Adaptation with a faster growing estimate.

    .. math::
        \lambda_t &= d\, \eta_t \sqrt{1 - \beta_2^t} / (1 - \beta_1^t) \\
        m &\leftarrow \beta_1 m + (1 - \beta_1)\, d g, \qquad
        \nu \leftarrow \beta_2 \nu + (1 - \beta_2)\, d^2 |g|^2 \\
        r &\leftarrow \beta_3 r + \lambda_t \tfrac{d}{d_0} \langle g, \theta_0 - \theta \rangle,
        \qquad s \leftarrow \beta_3 s + \lambda_t \tfrac{d}{d_0}\, g \\
        d &\leftarrow \max(d, c\, r / \lVert s \rVert_1) \\
        u &= -\lambda_t\, m / (\sqrt\nu + d \epsilon) - \lambda_t w\, \theta

    Inner product and 1-norm are taken over the whole tree. If \(s\) is zero, \(d\) stays.

    Args:
      learning_rate: a further factor of the step; a schedule should have its peak at 1.
      betas: \((\beta_1, \beta_2)\), both in [0, 1).
      beta3: the decay of the estimate's averages; by default \(\sqrt{\beta_2}\).
      eps: With 0 an element without a gradient so far gives NaN.
      estim_lr0: the first \(d\). It should be well below the right one.
      estim_lr_coef: how fast the estimate may grow.
      safeguard_warmup: use \(d\) in place of \(\lambda_t\) in \(s\), for a long warmup.

    Raises:
      ValueError: `update` is called without the parameters.

    Example:
      >>> import gradx, jax, jax.numpy as jnp
      >>> tx = gradx.prodigy()
      >>> params = jnp.array([3.0])
      >>> state = tx.init(params)
      >>> for _ in range(60):
      ...     updates, state = tx.update(jax.grad(lambda p: jnp.sum(p**2))(params), state, params)
      ...     params = params + updates
      >>> bool(state.estim_lr > 0.01)
      True

    Reference: Mishchenko and Defazio, *Prodigy*, https://arxiv.org/abs/2306.06101, 2023.
    Deviations: as in Optax, the estimate may grow by any factor in a step, and steps always have
    bias correction; both are options of the authors' code. In Optax a step with \(s = 0\) (a first
    gradient of zero, a learning rate that begins at zero) makes the estimate NaN for ever.
    """
    slowest = {} if beta3 is None else {"beta3": beta3}
    return leafwise(
        _prodigy,
        init=_prodigy_start,
        state=ProdigyState,
        hypers={
            "learning_rate": learning_rate,
            **_two_betas(betas),
            **slowest,
            "eps": eps,
            "estim_lr_coef": estim_lr_coef,
            "weight_decay": weight_decay,
        },
        flags={"estim_lr0": estim_lr0, "safeguard_warmup": safeguard_warmup},
        per_step=_prodigy_step,
        measure=_prodigy_sums,
        per_tree=_prodigy_estimate,
        scalars={"estim_lr": estim_lr0, "numerator_weighted": 0.0},
        axis_name=axis_name,
        needs_params=True,
    )


def _prodigy_start(p: Array) -> Mapping[str, Array]:
    return {
        "exp_avg": zeros(p),
        "exp_avg_sq": real_zeros(p),
        "grad_sum": jnp.zeros_like(p),
        "params0": p,
    }


def _prodigy_step(h: Numbers, t: Array) -> Mapping[str, Any]:
    step = _step_size(h, t)
    growth = h.estim_lr / h.estim_lr0
    return {
        "step": step,
        "decay": getattr(h, "beta3", h.b2**0.5),
        "to_numerator": growth * step,
        "to_sum": growth * (h.estim_lr if h.safeguard_warmup else step),
    }


def _prodigy_sums(g: Array, s: ProdigyState, p: Array, h: Numbers) -> Mapping[str, Array]:
    return sums_of(
        product=products(g, s.params0 - p), size=jnp.abs(h.decay * s.grad_sum + h.to_sum * g)
    )


def _prodigy_estimate(h: Numbers, sums: Sums) -> Decided:
    numerator = h.decay * h.numerator_weighted + h.to_numerator * sums["product"]
    estimate = quotient(h.estim_lr_coef * numerator, sums["size"])
    estimate = jnp.maximum(h.estim_lr, estimate)
    new = {"estim_lr": estimate, "numerator_weighted": numerator}
    return {"small": estimate * h.eps}, new


def _prodigy(g: Array, s: ProdigyState, p: Array, h: Numbers) -> tuple[Array, ProdigyState]:
    scaled = h.estim_lr * g
    mu = average(s.exp_avg, scaled, h.b1)
    nu = average(s.exp_avg_sq, abs_sq(scaled), h.b2)
    grad_sum = h.decay * s.grad_sum + h.to_sum * g
    u = -h.step * mu / (sqrt(nu) + h.small)
    u = u if _no_decay(h) else u - h.step * h.weight_decay * p
    return u, s._replace(exp_avg=mu, exp_avg_sq=nu, grad_sum=grad_sum)
