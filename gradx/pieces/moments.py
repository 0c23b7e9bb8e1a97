"""Averages of updates: momentum (`trace`), their moving average (`ema`), and both (`grokfast`)."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any, NamedTuple

import jax.numpy as jnp

from gradx import core
from gradx.core import Count, Transform, Updates
from gradx.core.meaning import Number
from gradx.lift.averages import average, storage, weight_so_far, zeros
from gradx.lift.leafwise import leafwise
from gradx.lift.stages import Numbers
from gradx.numbers.sources import Array, Hyper

__all__ = ["EmaState", "GrokFastState", "TraceState", "ema", "grokfast", "trace"]


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


class GrokFastState(NamedTuple):
    """The state of `grokfast`.

    Attributes:
      count: the updates done so far, int32 ().
      ema: the average of updates, like the parameters; it begins with the first one.
    """

    count: Count
    ema: Updates


@core.recorded
def grokfast(
    decay: Hyper = 0.98,
    amplification: Annotated[
        Hyper, Number("[0, inf)", r"\lambda", "the weight of the average")
    ] = 2.0,
    accumulator_dtype: Any = None,
) -> Transform:
    r"""Amplifies what changes slowly in the gradients, so that a model generalises (groks) earlier.

    .. math::
        m &\leftarrow \beta m + (1 - \beta) g \quad (m = g \text{ in the first step}) \\
        u &= g + \lambda m

    Place it before the optimizer. The gradients become up to \(1 + \lambda\) times as large, so
    a clip belongs before it. The authors also raise the weight decay.

    Example:
      >>> import gradx, jax.numpy as jnp
      >>> tx = gradx.chain(gradx.grokfast(decay=0.5, amplification=2.0), gradx.sgd(1.0))
      >>> state = tx.init(jnp.ones(1))
      >>> for g in (1.0, -1.0):
      ...     updates, state = tx.update(jnp.array([g]), state)
      ...     print(updates)
      [-3.]
      [1.]

    Reference: Lee et al., *Grokfast: accelerated grokking by amplifying slow gradients*,
    https://arxiv.org/abs/2405.20233: the filter of the authors' code
    (https://github.com/ironjr/grokfast), with its defaults, where \(\beta\) is called alpha.
    """
    return leafwise(
        _grokfast,
        init={"ema": partial(zeros, dtype=storage("accumulator_dtype", accumulator_dtype))},
        state=GrokFastState,
        hypers={"decay": decay, "amplification": amplification},
        per_step=_first_decay,
    )


def _first_decay(h: Numbers, t: Array) -> Mapping[str, Any]:
    return {"kept": jnp.where(t > 1, h.decay, 0.0)}


def _grokfast(g: Array, s: GrokFastState, p: None, h: Numbers) -> tuple[Array, GrokFastState]:
    m = average(s.ema, g, h.kept)
    return g + h.amplification * m, s._replace(ema=m)
