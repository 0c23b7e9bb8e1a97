"""Adan: moments of the gradient and of its change from step to step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp

from gradx import core
from gradx.combinators.chain import chain
from gradx.core import Count, Transform, Updates
from gradx.core.roots import sqrt
from gradx.core.trees import abs_sq
from gradx.lift.averages import average, real_zeros, weight_so_far
from gradx.lift.leafwise import leafwise
from gradx.lift.stages import Numbers
from gradx.lowering.order import in_place, write_after
from gradx.numbers.sources import Array, Hyper
from gradx.pieces.weight_decay import DecayKind, scale_and_decay

__all__ = ["ScaleByAdanState", "adan", "scale_by_adan"]


class ScaleByAdanState(NamedTuple):
    """The state of Adan.

    Attributes:
      m: the average of gradients, like the parameters.
      v: the average of their differences from step to step, like the parameters.
      n: the second moment, like the parameters, real.
      g: the last gradient, like the parameters.
      t: the updates done so far, int32 ().
    """

    m: Updates
    v: Updates
    n: Updates
    g: Updates
    t: Count


@core.recorded
def scale_by_adan(
    b1: Hyper = 0.98,
    b2: Hyper = 0.92,
    b3: Hyper = 0.99,
    eps: Hyper = 1e-8,
    eps_root: Hyper = 0.0,
    *,
    paper: bool = False,
) -> Transform:
    r"""Rescales the updates by Adan's rule; `adan` also applies the learning rate.

    .. math::
        d &= g_t - g_{t-1} \quad (0 \text{ in the first step}) \\
        m &\leftarrow \beta_1 m + (1 - \beta_1) g_t, \qquad
        v \leftarrow \beta_2 v + (1 - \beta_2) d \\
        n &\leftarrow \beta_3 n + (1 - \beta_3) |g_t + c\,d|^2 \\
        u &= (\hat m + c\,\hat v) / (\sqrt{\hat n + \epsilon_\mathrm{root}} + \epsilon),
             \qquad c = 1 - \beta_2 \quad\text{or, with paper,}\quad \beta_2

    The hats are bias corrections, as in `scale_by_adam`.

    Args:
      b2: how much of the average of their differences is kept each step.
      b3: how much of the average of squares is kept each step.
      eps: With 0 an element that has had no gradient yet gives NaN.
      eps_root: With 0 one can still differentiate through the update.
      paper: weigh the differences by \(\beta_2\), as the authors do; else by \(1 - \beta_2\), as
        Optax does.

    Example:
      >>> import gradx, jax.numpy as jnp
      >>> tx = gradx.scale_by_adan(b1=0.5, b2=0.5, b3=0.5)
      >>> state = tx.init(jnp.ones(1))
      >>> for g in (1.0, 3.0):
      ...     updates, state = tx.update(jnp.array([g]), state)
      >>> updates.round(4)
      Array([0.9045], dtype=float32)

    Reference: Xie et al., *Adan: adaptive Nesterov momentum algorithm*,
    https://arxiv.org/abs/2208.06677. The paper writes \(1 - \beta\) for every \(\beta\) of this
    page. So its factor \(1 - \beta_2\) is \(\beta_2\) here, 0.92 and not 0.08. `paper=True` uses
    it, as the authors' code does. Without it the differences hardly count, as in Optax.
    """
    return leafwise(
        _adan,
        init={"m": jnp.zeros_like, "v": jnp.zeros_like, "n": real_zeros, "g": jnp.zeros_like},
        state=ScaleByAdanState,
        hypers={"b1": b1, "b2": b2, "b3": b3, "eps": eps, "eps_root": eps_root},
        flags={"paper": paper},
        per_step=_factors,
        count="t",
    )


def _factors(h: Numbers, t: Array) -> Mapping[str, Any]:
    weight = h.b2 if h.paper else 1 - h.b2
    return {
        "first": t == 1,
        "weight": weight,
        "of_m": 1 / weight_so_far(h.b1, t),
        "of_v": weight / weight_so_far(h.b2, t),
        "of_n": 1 / weight_so_far(h.b3, t),
    }


def _adan(g: Array, s: ScaleByAdanState, p: None, h: Numbers) -> tuple[Array, ScaleByAdanState]:
    change = jnp.where(h.first, 0.0, g - s.g)
    m = average(s.m, g, h.b1)
    v = average(s.v, change, h.b2)
    n = average(s.n, abs_sq(g + h.weight * change), h.b3)
    u = (h.of_m * m + h.of_v * v) / (sqrt(n * h.of_n + h.eps_root) + h.eps)
    # Both averages read the old gradient, so it is overwritten after both of them.
    return u, s._replace(m=m, v=v, n=n, g=in_place(write_after(g, v, n), s.g))


@core.recorded
def adan(
    learning_rate: Hyper,
    b1: Hyper = 0.98,
    b2: Hyper = 0.92,
    b3: Hyper = 0.99,
    eps: Hyper = 1e-8,
    eps_root: Hyper = 1e-8,
    weight_decay: Hyper = 0.0,
    mask: Any = None,
    *,
    paper: bool = False,
    decay: DecayKind = "learning_rate",
) -> Transform:
    r"""Adan: Adam with Nesterov momentum, estimated from the change of the gradient.

    .. math:: u = -\eta_t \left(\frac{\hat m + c\,\hat v}
              {\sqrt{\hat n + \epsilon_\mathrm{root}} + \epsilon} + \lambda \theta\right)

    The moments are as in `scale_by_adan`.

    Args:
      b2: how much of the average of their differences is kept each step.
      b3: how much of the average of squares is kept each step.
      paper: weigh the differences by \(c = \beta_2\), as the authors do; else by \(1 - \beta_2\),
        as Optax does.

    Raises:
      ValueError: `update` is called without the parameters, and there is weight decay.

    Example:
      >>> import gradx, jax.numpy as jnp
      >>> tx = gradx.adan(0.1)
      >>> tx.update(jnp.array([-10.0]), tx.init(jnp.ones(1)), jnp.ones(1))[0]
      Array([0.1], dtype=float32)

    Reference: Xie et al., *Adan: adaptive Nesterov momentum algorithm*,
    https://arxiv.org/abs/2208.06677. Deviations: `paper` is off and `eps_root` is 1e-8, as in
    Optax. The decay is AdamW's, while the paper divides the parameters by \(1 + \lambda\eta\).
    """
    return chain(
        scale_by_adan(b1, b2, b3, eps, eps_root, paper=paper),
        *scale_and_decay(learning_rate, weight_decay, mask, decay),
    )
