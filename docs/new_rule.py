"""QHAdam, a rule that gradx does not have: the skeleton that `new_rule.md` explains piece by piece.

Copy it, put your maths in its place, and run its examples with `pytest --doctest-modules`.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any, NamedTuple, TypeAlias

from gradx import core
from gradx.combinators.chain import chain
from gradx.core import Count, Transform, Updates
from gradx.core.meaning import Number
from gradx.core.roots import sqrt
from gradx.core.trees import finite_sq
from gradx.lift.averages import average, real_zeros, weight_so_far, zeros
from gradx.lift.leafwise import leafwise
from gradx.lift.stages import Numbers
from gradx.numbers.sources import Array, Hyper
from gradx.pieces.weight_decay import DecayKind, scale_and_decay

__all__ = ["ScaleByQHAdamState", "qhadam", "scale_by_qhadam"]

_SHARE = r"how much of the {} moment is \({}\)"
ShareMu: TypeAlias = Annotated[Hyper, Number("[0, 1]", "s_1", _SHARE.format("first", r"\mu"))]
ShareNu: TypeAlias = Annotated[Hyper, Number("[0, 1]", "s_2", _SHARE.format("second", r"\nu"))]


class ScaleByQHAdamState(NamedTuple):
    """The state of QHAdam.

    Attributes:
      count: the updates done so far, int32 ().
      mu: the average of gradients, like the parameters.
      nu: the average of their squares, like the parameters, real.
    """

    count: Count
    mu: Updates
    nu: Updates


@core.recorded
def scale_by_qhadam(
    b1: Hyper = 0.995,
    b2: Hyper = 0.999,
    eps: Hyper = 1e-8,
    share_mu: ShareMu = 0.7,
    share_nu: ShareNu = 1.0,
    mu_dtype: Any = None,
) -> Transform:
    r"""Rescales the updates by QHAdam's rule, Adam with the newest gradient mixed into its moments.

    .. math::
        \mu &\leftarrow \beta_1 \mu + (1 - \beta_1) g, \qquad
        \nu \leftarrow \beta_2 \nu + (1 - \beta_2) |g|^2 \\
        \hat\mu &= \mu / (1 - \beta_1^t), \qquad \hat\nu = \nu / (1 - \beta_2^t) \\
        u &= \frac{(1 - s_1)\, g + s_1 \hat\mu}
                  {\sqrt{(1 - s_2) |g|^2 + s_2 \hat\nu} + \epsilon}

    Args:
      eps: With 0 an element that has had no gradient yet gives NaN.

    Example:
      >>> import jax.numpy as jnp
      >>> tx = scale_by_qhadam(b1=0.5, b2=0.5, share_mu=0.25)
      >>> state = tx.init(jnp.ones(1))
      >>> for g in (1.0, 3.0):
      ...     updates, state = tx.update(jnp.array([g]), state)
      >>> updates.round(4)
      Array([1.1259], dtype=float32)

    Reference: Ma and Yarats, *Quasi-hyperbolic momentum and Adam for deep learning*,
    https://arxiv.org/abs/1810.06801. The defaults are what the authors recommend trying first.
    """
    return leafwise(
        _qhadam,
        init={"mu": partial(zeros, dtype=mu_dtype), "nu": real_zeros},
        state=ScaleByQHAdamState,
        hypers={"b1": b1, "b2": b2, "eps": eps, "share_mu": share_mu, "share_nu": share_nu},
        per_step=_factors,
    )


def _factors(h: Numbers, t: Array) -> Mapping[str, Array]:
    return {
        "of_mu": h.share_mu / weight_so_far(h.b1, t),
        "of_nu": h.share_nu / weight_so_far(h.b2, t),
    }


def _qhadam(
    g: Array, s: ScaleByQHAdamState, p: None, h: Numbers
) -> tuple[Array, ScaleByQHAdamState]:
    mu = average(s.mu, g, h.b1)
    nu = average(s.nu, finite_sq(g), h.b2)
    first = (1 - h.share_mu) * g + h.of_mu * mu
    second = (1 - h.share_nu) * finite_sq(g) + h.of_nu * nu
    return first / (sqrt(second) + h.eps), s._replace(mu=mu, nu=nu)


@core.recorded
def qhadam(
    learning_rate: Hyper,
    b1: Hyper = 0.995,
    b2: Hyper = 0.999,
    eps: Hyper = 1e-8,
    share_mu: ShareMu = 0.7,
    share_nu: ShareNu = 1.0,
    mu_dtype: Any = None,
    weight_decay: Hyper = 0.0,
    mask: Any = None,
    *,
    decay: DecayKind = "learning_rate",
) -> Transform:
    r"""QHAdam with decoupled weight decay.

    .. math:: u = -\eta_t \left(\frac{(1 - s_1)\, g + s_1 \hat\mu}
              {\sqrt{(1 - s_2) |g|^2 + s_2 \hat\nu} + \epsilon} + \lambda \theta\right)

    with the moments of `scale_by_qhadam`.

    Raises:
      ValueError: `update` is called without the parameters, and there is weight decay.

    Example:
      >>> import jax.numpy as jnp
      >>> tx = qhadam(0.1, weight_decay=0.5)
      >>> tx.update(jnp.array([-3.0]), tx.init(jnp.ones(1)), jnp.ones(1))[0].round(4)
      Array([0.05], dtype=float32)

    Reference: Ma and Yarats, *Quasi-hyperbolic momentum and Adam for deep learning*,
    https://arxiv.org/abs/1810.06801.
    """
    return chain(
        scale_by_qhadam(b1, b2, eps, share_mu, share_nu, mu_dtype),
        *scale_and_decay(learning_rate, weight_decay, mask, decay),
    )
