"""Momentum (`trace`, a decaying sum of updates) and their exponential moving average (`ema`)."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any, NamedTuple

from gradx import core
from gradx.core import Count, Transform, Updates
from gradx.core.meaning import Number
from gradx.lift.averages import average, storage, weight_so_far, zeros
from gradx.lift.leafwise import leafwise
from gradx.lift.stages import Numbers
from gradx.numbers.sources import Array, Hyper

__all__ = ["EmaState", "TraceState", "ema", "trace"]


class TraceState(NamedTuple):
    """The state of `trace`.

    Attributes:
      trace: the decaying sum of updates, like the parameters.
    """

    trace: Updates


@core.recorded
def trace(
    decay: Annotated[Hyper, Number("[-1, 1]")],
    nesterov: bool = False,
    accumulator_dtype: Any = None,
) -> Transform:
    r"""Momentum: adds up the updates, the old ones decayed.

    .. math::
        m &\leftarrow \beta m + g \\
        u &= m \quad\text{or, with nesterov,}\quad \beta m + g

    Args:
      decay: how much of the sum is kept each step. With 1 it is a plain sum.

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
        init={"trace": partial(zeros, dtype=storage("accumulator_dtype", accumulator_dtype))},
        state=TraceState,
        hypers={"decay": decay},
        flags={"nesterov": nesterov},
    )


def _trace(g: Array, s: TraceState, p: None, h: Numbers) -> tuple[Array, TraceState]:
    m = h.decay * s.trace + g
    return (h.decay * m + g if h.nesterov else m), s._replace(trace=m)


class EmaState(NamedTuple):
    """The state of `ema`.

    Attributes:
      count: the updates done so far, int32 ().
      ema: the average of updates, like the parameters, before bias correction.
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
      debias: apply bias correction, for the start at zero.

    Example:
      >>> import gradx, jax.numpy as jnp
      >>> tx = gradx.ema(0.5)
      >>> tx.update(jnp.ones(1), tx.init(jnp.ones(1)))[0]
      Array([1.], dtype=float32)

    Reference: Kingma and Ba, *Adam*, https://arxiv.org/abs/1412.6980, section 3.
    """
    return leafwise(
        _ema,
        init={"ema": partial(zeros, dtype=storage("accumulator_dtype", accumulator_dtype))},
        state=EmaState,
        hypers={"decay": decay},
        flags={"debias": debias},
        per_step=_ema_correction,
    )


def _ema_correction(h: Numbers, t: Array) -> Mapping[str, Any]:
    return {"correct": 1 / weight_so_far(h.decay, t) if h.debias else 1.0}


def _ema(g: Array, s: EmaState, p: None, h: Numbers) -> tuple[Array, EmaState]:
    m = average(s.ema, g, h.decay)
    return (m * h.correct if h.debias else m), s._replace(ema=m)
