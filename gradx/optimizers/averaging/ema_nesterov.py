"""Nesterov momentum on the moving average of a whole optimizer's steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, NamedTuple

import jax

from gradx import core
from gradx.core import Transform, Updates
from gradx.core.known import AVERAGES, Averaged
from gradx.core.meaning import Number
from gradx.lift.averages import average, zeros
from gradx.lift.leafwise import leafwise
from gradx.lift.passes import widen
from gradx.lift.stages import Decided, Numbers, Sums
from gradx.numbers.sources import Array, Hyper
from gradx.optimizers.averaging.interpolation import first_b1

__all__ = ["EmaNesterovState", "ema_nesterov"]


class EmaNesterovState(NamedTuple):
    """The state of `ema_nesterov`.

    Attributes:
      ahead: how many average steps the parameters are ahead, as of the last update, float32 ().
      trend: the average of the steps, like the parameters.
    """

    ahead: Array
    trend: Updates


@core.recorded
def ema_nesterov(
    lookahead: Annotated[
        Hyper, Number("[0, inf)", r"\beta", "how many average steps to look ahead")
    ] = 0.3,
    decay: Annotated[Hyper, Number("[0, 1)", r"\gamma")] = 0.99,
) -> Transform:
    r"""Takes gradients a little ahead, in the direction of the average step of any optimizer.

    .. math::
        \theta^+ &= y + u, \qquad y = \theta + \beta m \\
        m &\leftarrow \gamma m + (1 - \gamma)(\theta^+ - \theta) \\
        \theta &\leftarrow \theta^+, \qquad y \leftarrow \theta + \beta m

    Place it at the end of a chain, after the learning rate and the weight decay: \(u\) is the
    step of the optimizer. The parameters of the run are \(y\), where gradients are taken; evaluate
    \(\theta\), which is `eval_params(tx, state, params)`.

    Args:
      lookahead: The authors let it follow the learning rate, `schedule * (0.6 / peak)`, and rest at
        0 in the first and in the last steps, so that the two meet at the end. One number for the
        whole tree.

    Example:
      >>> import gradx, jax.numpy as jnp
      >>> tx = gradx.chain(gradx.sgd(1.0), gradx.ema_nesterov(lookahead=1.0, decay=0.5))
      >>> params = jnp.zeros(1)
      >>> state = tx.init(params)
      >>> updates, state = tx.update(jnp.array([-2.0]), state, params)
      >>> params = gradx.apply_updates(params, updates)
      >>> params, gradx.eval_params(tx, state, params)
      (Array([3.], dtype=float32), Array([2.], dtype=float32))

    Reference: Yau et al., *EMA-Nesterov: stabilizing Nesterov's lookahead for accelerated deep
    learning optimization*, https://arxiv.org/abs/2605.25395. The numbers are those of a record of
    modded-nanogpt's optimizer track (https://github.com/KellerJordan/modded-nanogpt). The authors
    keep the parameters before the step; here they follow from \(y\) and \(m\), which saves a copy.
    """
    return leafwise(
        _ahead,
        init={"trend": zeros},
        state=EmaNesterovState,
        hypers={"lookahead": lookahead, "decay": decay},
        per_tree=_decide,
        scalars={"ahead": first_b1(lookahead)},
        whole_tree=("lookahead",),
    )


def _decide(h: Numbers, sums: Sums) -> Decided:
    return {}, {"ahead": h.lookahead}


def _ahead(u: Array, s: EmaNesterovState, p: None, h: Numbers) -> tuple[Array, EmaNesterovState]:
    trend = average(s.trend, u + h.ahead * s.trend, h.decay)
    return u + h.lookahead * trend, s._replace(trend=trend)


def _behind(y: Array, arrays: Sequence[Array], state: EmaNesterovState) -> Array:
    return _back(y, arrays[0], state.ahead)


@jax.jit
def _back(y: Array, trend: Array, ahead: Array) -> Array:
    return (widen(y) - widen(ahead) * widen(trend)).astype(y.dtype)


AVERAGES.add(EmaNesterovState, Averaged("ema_nesterov", lambda state: [state.trend], _behind))
