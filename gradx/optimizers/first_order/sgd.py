"""Gradient descent, with momentum or noise: the shortest example of an optimizer."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any, NamedTuple

import jax.numpy as jnp

from gradx import core
from gradx.combinators.chain import chain, identity
from gradx.core import Count, Transform, Updates, ranges
from gradx.core.calls import renamed
from gradx.core.meaning import Number
from gradx.lift.averages import storage, zeros
from gradx.lift.leafwise import leafwise
from gradx.lift.stages import Numbers
from gradx.numbers.sources import Array, Hyper
from gradx.pieces.moments import trace
from gradx.pieces.preprocessing import add_noise
from gradx.pieces.scaling import descend

__all__ = ["DampenedTraceState", "noisy_sgd", "sgd"]


@core.recorded
def sgd(
    learning_rate: Hyper,
    momentum: Annotated[Hyper | None, Number("[-1, 1]", r"\mu")] = None,
    nesterov: bool = False,
    accumulator_dtype: Any = None,
    *,
    dampening: Annotated[Hyper | None, Number("[0, 1)", r"\tau")] = None,
) -> Transform:
    r"""Stochastic gradient descent, plain or with momentum.

    .. math::
        m &\leftarrow \mu m + (1 - \tau)\, g, \qquad m_1 = g_1 \\
        u &= -\eta\, m \quad\text{or, with nesterov,}\quad -\eta\,(\mu m + g)

    Args:
      momentum: how much of the sum of gradients is kept each step. Without it \(m = g\), and
        there is no state.
      nesterov: Only with momentum, and without dampening.
      dampening: how much of each gradient but the first is left out of the sum, as in PyTorch; 0 by
        default. It needs momentum; with a momentum of 0 it does nothing.

    Raises:
      ValueError: nesterov or dampening is given without a momentum, where it would do nothing; or
        both are given.

    Example:
      >>> import gradx, jax.numpy as jnp
      >>> tx = gradx.sgd(0.1, momentum=0.9)
      >>> params = jnp.array([1.0, -1.0])
      >>> updates, state = tx.update(2 * params, tx.init(params), params)
      >>> gradx.apply_updates(params, updates)
      Array([ 0.8, -0.8], dtype=float32)

    Reference: Sutskever et al., *On the importance of initialization and momentum in deep
    learning*, 2013.
    """
    damped = dampening is not None and not ranges.is_zero(dampening)
    if momentum is None and (nesterov or damped):
        name = "nesterov" if nesterov else "dampening"
        raise ValueError(f"{core.where()}: {name} needs a momentum.")
    if damped and nesterov:
        raise ValueError(
            f"{core.where()}: nesterov looks ahead without dampening, as in PyTorch; got "
            f"dampening {core.show(dampening)}. Leave one of them out."
        )
    if momentum is None:
        step = identity()
    elif damped and not ranges.is_zero(momentum):
        step = _dampened_trace(momentum, dampening, accumulator_dtype)
    else:
        step = trace(momentum, nesterov, accumulator_dtype)
    return chain(step, descend(learning_rate))


class DampenedTraceState(NamedTuple):
    """The state of `sgd` with dampening.

    Attributes:
      count: the updates done so far, int32 (): the first gradient is not dampened.
      trace: the sum of gradients, like the parameters.
    """

    count: Count
    trace: Updates


def _dampened_trace(momentum: Hyper, dampening: Hyper | None, dtype: Any) -> Transform:
    return leafwise(
        _add_dampened,
        init={"trace": partial(zeros, dtype=storage("accumulator_dtype", dtype))},
        state=DampenedTraceState,
        hypers={"decay": momentum, "dampening": dampening},
        ranges={"decay": ranges.ANY},  # `sgd` has checked the range
        per_step=_share_of_gradient,
    )


def _share_of_gradient(h: Numbers, t: Array) -> Mapping[str, Array]:
    return {"share": jnp.where(t == 1, 1.0, 1 - h.dampening)}


def _add_dampened(
    g: Array, s: DampenedTraceState, p: None, h: Numbers
) -> tuple[Array, DampenedTraceState]:
    m = h.decay * s.trace + h.share * g
    return m, s._replace(trace=m)


@core.recorded
@renamed(seed="key")
def noisy_sgd(
    learning_rate: Annotated[Hyper, Number(symbol=r"\alpha")],
    eta: Annotated[float, Number("[0, inf)", r"\eta")] = 0.01,
    gamma: Annotated[float, Number("[0, inf)", r"\gamma")] = 0.55,
    key: Array | int | None = None,
) -> Transform:
    r"""Gradient descent with Gaussian noise that fades.

    .. math:: u_t = -\alpha_t \left(g_t + \mathcal N(0, \eta / t^\gamma)\right),
              \qquad t = 1, 2, \ldots

    Args:
      eta: the variance at the first update.
      gamma: how fast the variance falls.
      key: See `add_noise`.

    Example:
      >>> import gradx, jax.numpy as jnp
      >>> tx = gradx.noisy_sgd(0.1, key=0)
      >>> updates, state = tx.update(jnp.ones(3), tx.init(jnp.ones(3)))
      >>> bool(jnp.all(jnp.abs(updates + 0.1) < 0.05))
      True

    Reference: Neelakantan et al., *Adding gradient noise improves learning for very deep
    networks*, https://arxiv.org/abs/1511.06807.
    """
    return chain(add_noise(eta, gamma, key), descend(learning_rate))
