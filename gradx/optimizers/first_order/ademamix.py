"""AdEMAMix: Adam with a fast and a slow average of gradients; and its simplified form with one."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import jax.numpy as jnp

from gradx import core
from gradx.combinators.chain import chain
from gradx.core import Count, Transform, Updates
from gradx.core.roots import sqrt
from gradx.core.trees import abs_sq
from gradx.lift.averages import average, real_zeros, storage, weight_so_far, zeros
from gradx.lift.leafwise import leafwise
from gradx.lift.stages import Numbers
from gradx.numbers.sources import Array, Hyper
from gradx.pieces.weight_decay import DecayKind, scale_and_decay

__all__ = [
    "ScaleByAdemamixState",
    "ScaleBySimplifiedAdEMAMixState",
    "ademamix",
    "scale_by_ademamix",
    "scale_by_simplified_ademamix",
    "simplified_ademamix",
]


# ---------------------------------------------------------------- one sum of gradients


class ScaleBySimplifiedAdEMAMixState(NamedTuple):
    """The state of the simplified AdEMAMix.

    Attributes:
      t: the updates done so far, int32 ().
      m: the decaying sum of gradients, like the parameters.
      n: the second moment, like the parameters, real.
    """

    t: Count
    m: Updates
    n: Updates


@core.recorded
def scale_by_simplified_ademamix(
    b1: Hyper = 0.99,
    b2: Hyper = 0.95,
    alpha: Hyper = 0.0,
    eps: Hyper = 1e-8,
    eps_root: Hyper = 0.0,
) -> Transform:
    r"""Rescales the updates by the rule of the simplified AdEMAMix.

    .. math::
        m &\leftarrow \beta_1 m + g, \qquad n \leftarrow \beta_2 n + (1 - \beta_2) |g|^2 \\
        u &= (m + \alpha g) / (\sqrt{\hat n + \epsilon_\mathrm{root}} + \epsilon), \qquad
             \hat n = n / (1 - \beta_2^t)

    The sum \(m\) is \(1 / (1 - \beta_1)\) times an average, so learning rates are that much smaller
    than Adam's.

    Args:
      alpha: the additional weight of the newest gradient.
      eps: With 0 an element that has had no gradient yet gives NaN.
      eps_root: With 0 one can still differentiate through the update.

    Example:
      >>> import gradx, jax.numpy as jnp
      >>> tx = gradx.scale_by_simplified_ademamix(alpha=2.0)
      >>> tx.update(jnp.array([-10.0]), tx.init(jnp.ones(1)))[0]
      Array([-3.], dtype=float32)

    Reference: Morwani et al., *Connections between schedule-free optimizers, AdEMAMix, and
    accelerated SGD variants*, https://arxiv.org/abs/2502.02431.
    """
    return leafwise(
        _simplified,
        init={"m": zeros, "n": real_zeros},
        state=ScaleBySimplifiedAdEMAMixState,
        hypers={"b1": b1, "b2": b2, "alpha": alpha, "eps": eps, "eps_root": eps_root},
        per_step=_correction,
        count="t",
    )


def _correction(h: Numbers, t: Array) -> Mapping[str, Array]:
    return {"correct_n": 1 / weight_so_far(h.b2, t)}


def _simplified(
    g: Array, s: ScaleBySimplifiedAdEMAMixState, p: None, h: Numbers
) -> tuple[Array, ScaleBySimplifiedAdEMAMixState]:
    m = h.b1 * s.m + g
    n = average(s.n, abs_sq(g), h.b2)
    u = (m + h.alpha * g) / (sqrt(n * h.correct_n + h.eps_root) + h.eps)
    u = jnp.where(jnp.isinf(n), 0.0, u)  # m may be infinite too, and inf / inf is NaN
    return u, s._replace(m=m, n=n)


@core.recorded
def simplified_ademamix(
    learning_rate: Hyper,
    b1: Hyper = 0.99,
    b2: Hyper = 0.95,
    alpha: Hyper = 0.0,
    eps: Hyper = 1e-8,
    eps_root: Hyper = 0.0,
    weight_decay: Hyper = 0.0,
    mask: Any = None,
    *,
    decay: DecayKind = "learning_rate",
) -> Transform:
    r"""Simplified AdEMAMix: Adam with one long sum of gradients, and more weight on the newest.

    .. math:: u = -\eta_t \left(\frac{m + \alpha g}
              {\sqrt{\hat n + \epsilon_\mathrm{root}} + \epsilon} + \lambda \theta\right)

    The moments are as in `scale_by_simplified_ademamix`. For \(\alpha = 0\) it is Adam with \(m\)
    and the learning rate on other scales, and without the bias correction of \(m\).

    Args:
      learning_rate: It is about \(1 - \beta_1\) times Adam's.
      alpha: the additional weight of the newest gradient.

    Raises:
      ValueError: `update` is called without the parameters, and there is weight decay.

    Example:
      >>> import gradx, jax.numpy as jnp
      >>> tx = gradx.simplified_ademamix(0.01)
      >>> tx.update(jnp.array([-10.0]), tx.init(jnp.ones(1)), jnp.ones(1))[0]
      Array([0.01], dtype=float32)

    Reference: Morwani et al., *Connections between schedule-free optimizers, AdEMAMix, and
    accelerated SGD variants*, https://arxiv.org/abs/2502.02431.
    """
    return chain(
        scale_by_simplified_ademamix(b1, b2, alpha, eps, eps_root),
        *scale_and_decay(learning_rate, weight_decay, mask, decay),
    )


# ---------------------------------------------------------------- two averages of gradients


class ScaleByAdemamixState(NamedTuple):
    """The state of AdEMAMix.

    Attributes:
      count: the updates done so far, int32 ().
      count_m2: the same number, as Optax's state has it, int32 ().
      m1: the fast average of gradients, like the parameters.
      m2: the slow average of gradients, like the parameters.
      nu: the second moment, like the parameters, real.
    """

    count: Count
    count_m2: Count
    m1: Updates
    m2: Updates
    nu: Updates


@core.recorded
def scale_by_ademamix(
    b1: Hyper = 0.9,
    b2: Hyper = 0.999,
    b3: Hyper = 0.9999,
    alpha: Hyper = 6.0,
    eps: Hyper = 1e-8,
    eps_root: Hyper = 0.0,
    mu_dtype: Any = None,
) -> Transform:
    r"""Rescales the updates by AdEMAMix's rule, Adam with a second, slow average of gradients.

    .. math::
        m_1 &\leftarrow \beta_1 m_1 + (1 - \beta_1) g, \qquad
        m_2 \leftarrow \beta_3 m_2 + (1 - \beta_3) g, \qquad
        \nu \leftarrow \beta_2 \nu + (1 - \beta_2) |g|^2 \\
        u &= \frac{\hat m_1 + \alpha m_2}{\sqrt{\hat\nu + \epsilon_\mathrm{root}} + \epsilon}

    The hats are bias corrections, as in `scale_by_adam`. \(m_2\) has none, so that it fills slowly.

    Args:
      b3: The authors let it grow in the first part of a long run.
      alpha: It should grow in the first part of a long run, too.
      eps: With 0 an element that has had no gradient yet gives NaN.
      eps_root: With 0 one can still differentiate through the update.
      mu_dtype: the dtype to keep \(m_1\) and \(m_2\) in; by default the parameter's, at least
        float32.

    Example:
      >>> import gradx, jax.numpy as jnp
      >>> tx = gradx.scale_by_ademamix(b3=0.5, alpha=2.0)
      >>> tx.update(jnp.array([-10.0]), tx.init(jnp.ones(1)))[0]
      Array([-2.], dtype=float32)

    Reference: Pagliardini et al., *The AdEMAMix optimizer: better, faster, older*,
    https://arxiv.org/abs/2409.03137. Deviation from Optax: `mu_dtype` is for \(m_1\) and \(m_2\)
    alone; in Optax \(\nu\) has it, too, until the first update.
    """
    zero_mean = partial(zeros, dtype=storage("mu_dtype", mu_dtype))
    return leafwise(
        _ademamix,
        init={"m1": zero_mean, "m2": zero_mean, "nu": real_zeros},
        state=ScaleByAdemamixState,
        hypers={
            "b1": b1, "b2": b2, "b3": b3, "alpha": alpha, "eps": eps, "eps_root": eps_root,
        },
        per_step=_corrections,
        count=("count", "count_m2"),
    )  # fmt: skip


def _corrections(h: Numbers, t: Array) -> Mapping[str, Array]:
    return {"correct_m1": 1 / weight_so_far(h.b1, t), "correct_nu": 1 / weight_so_far(h.b2, t)}


def _ademamix(
    g: Array, s: ScaleByAdemamixState, p: None, h: Numbers
) -> tuple[Array, ScaleByAdemamixState]:
    m1 = average(s.m1, g, h.b1)
    m2 = average(s.m2, g, h.b3)
    nu = average(s.nu, abs_sq(g), h.b2)
    mixed = h.correct_m1 * m1 + h.alpha * m2
    u = mixed / (sqrt(nu * h.correct_nu + h.eps_root) + h.eps)
    return u, s._replace(m1=m1, m2=m2, nu=nu)


@core.recorded
def ademamix(
    learning_rate: Hyper,
    b1: Hyper = 0.9,
    b2: Hyper = 0.999,
    b3: Hyper = 0.9999,
    alpha: Hyper = 5.0,
    eps: Hyper = 1e-8,
    eps_root: Hyper = 0.0,
    mu_dtype: Any = None,
    weight_decay: Hyper = 0.0,
    mask: Any = None,
    *,
    decay: DecayKind = "learning_rate",
) -> Transform:
    r"""AdEMAMix: AdamW that also remembers gradients of ten thousand steps ago.

    .. math:: u = -\eta_t \left(\frac{\hat m_1 + \alpha m_2}
              {\sqrt{\hat\nu + \epsilon_\mathrm{root}} + \epsilon} + \lambda \theta\right)

    The moments are as in `scale_by_ademamix`.

    Args:
      mu_dtype: the dtype to keep both averages of gradients in.

    Raises:
      ValueError: `update` is called without the parameters, and there is weight decay.

    Example:
      >>> import gradx, jax.numpy as jnp
      >>> alpha = gradx.linear_schedule(0.0, 5.0, 10_000)
      >>> b3 = gradx.half_life_schedule(0.9, 0.9999, 10_000)
      >>> tx = gradx.ademamix(0.1, b3=b3, alpha=alpha)
      >>> tx.update(jnp.array([-10.0]), tx.init(jnp.ones(1)), jnp.ones(1))[0]
      Array([0.1], dtype=float32)

    Reference: Pagliardini et al., *The AdEMAMix optimizer: better, faster, older*,
    https://arxiv.org/abs/2409.03137.
    """
    return chain(
        scale_by_ademamix(b1, b2, b3, alpha, eps, eps_root, mu_dtype),
        *scale_and_decay(learning_rate, weight_decay, mask, decay),
    )
