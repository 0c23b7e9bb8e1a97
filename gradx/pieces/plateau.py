"""What follows when the loss stops falling: a smaller learning rate, or the end of the run."""

from __future__ import annotations

from typing import Annotated, Any, NamedTuple, TypeAlias

import jax.numpy as jnp
import numpy as np

from gradx import core
from gradx.core import Count, Transform
from gradx.core.known import METRICS
from gradx.core.meaning import Number
from gradx.lift.leafwise import leafwise
from gradx.lift.stages import Decided, LeafState, Numbers, Sums
from gradx.numbers.counting import steps
from gradx.numbers.sources import Array, Hyper, from_call

__all__ = ["EarlyStoppingState", "ReduceLROnPlateauState", "early_stopping", "reduce_on_plateau"]

Rtol: TypeAlias = Annotated[
    Hyper, Number("[0, 1)", r"\rho", "by how much a value must be better, relative to the best")
]
Atol: TypeAlias = Annotated[
    Hyper, Number("[0, inf)", r"\alpha", "by how much a value must be better")
]


# ---------------------------------------------------------------- shared: a value and the best

_ZERO = np.zeros((), np.int32)


class _Seen(NamedTuple):
    full: Array  # whether this call completed a value
    better: Array  # whether that value is better than the best one
    kept: dict[str, Array]  # the scalars of the state that remember values


def _with_value(h: Numbers) -> _Seen:
    """The value of this call, averaged with those before it, and compared with the best."""
    count = h.count + 1
    dtype = h.avg_value.dtype
    total = h.count.astype(dtype) * h.avg_value + h.value.astype(dtype)
    mean = total / count.astype(dtype)
    full = count == h.accumulation_size

    # Below the best value, whatever its sign. Infinity stays infinity.
    bound = (1 - h.rtol * jnp.sign(h.best_value)) * h.best_value - h.atol
    better = mean < bound
    kept = {
        "best_value": jnp.where(full & better, mean, h.best_value),
        "count": jnp.where(full, 0, count),
        "avg_value": jnp.where(full, 0.0, mean),
    }
    return _Seen(full, better, kept)


# ---------------------------------------------------------------- a smaller rate


class ReduceLROnPlateauState(NamedTuple):
    """The state of `reduce_on_plateau`.

    Attributes:
      scale: what the updates are multiplied by, float32 or wider ().
      best_value: the best value so far, float32 or wider ().
      plateau_count: the values since then that were no better, int32 ().
      cooldown_count: the values still to come before counting begins again, int32 ().
      count: the calls since the last value was completed, int32 ().
      avg_value: the mean of the values in those calls, float32 or wider ().
    """

    scale: Array
    best_value: Array
    plateau_count: Array
    cooldown_count: Array
    count: Count
    avg_value: Array


@core.recorded
def reduce_on_plateau(
    factor: Annotated[Hyper, Number("(0, 1)", r"\gamma")] = 0.1,
    patience: int = 10,
    rtol: Rtol = 1e-4,
    atol: Atol = 0.0,
    cooldown: int = 0,
    accumulation_size: int = 1,
    min_scale: Annotated[Hyper, Number("[0, 1]", r"c_\mathrm{min}")] = 0.0,
) -> Transform:
    r"""Multiplies the updates by a scale, and reduces it when a value (a loss) stops falling.

    .. math:: u \leftarrow c\,u, \qquad c \leftarrow \max(\gamma c, c_\mathrm{min})
              \text{ after } n \text{ values } f \not< f_\mathrm{best}
              - \rho\,|f_\mathrm{best}| - \alpha

    The value is given to `update` as the extra argument `value`: a loss of the batch, or the last
    one on validation data. Place this after the optimizer, in one `chain` with it.

    Args:
      factor: what the scale is multiplied by at a plateau.
      patience: \(n\), a whole number of at least 1.
      cooldown: how many values after a reduction are not counted.
      accumulation_size: how many calls are averaged to one value; more than 1 for a noisy loss.
      min_scale: the smallest scale.

    Raises:
      ValueError: `rtol` and `atol` are both 0; `update` is called without `value`.

    Example:
      >>> import gradx, jax.numpy as jnp
      >>> tx = gradx.chain(gradx.sgd(1.0), gradx.reduce_on_plateau(factor=0.5, patience=2))
      >>> state = tx.init(jnp.ones(1))
      >>> for value in (3.0, 3.0, 3.0):
      ...     updates, state = tx.update(jnp.ones(1), state, value=value)
      ...     print(updates)
      [-1.]
      [-1.]
      [-0.5]

    Deviations from Optax: a negative value, too, must fall to improve relatively. In Optax a value
    of -1 is better than a best one of -1, and nothing is ever reduced. The scale is float32 also
    for half-precision parameters.
    """
    where = core.where()
    if all(isinstance(x, int | float) and x == 0 for x in (rtol, atol)):
        raise ValueError(f"{where}: rtol and atol are both 0; one of them must be positive.")
    return leafwise(
        _scale,
        state=ReduceLROnPlateauState,
        hypers={
            "factor": factor,
            "rtol": rtol,
            "atol": atol,
            "min_scale": min_scale,
            "value": from_call("value"),
        },
        flags={
            "patience": steps("patience", patience, 1),
            "cooldown": steps("cooldown", cooldown, 0),
            "accumulation_size": steps("accumulation_size", accumulation_size, 1),
        },
        per_tree=_reduce,
        scalars={
            "scale": 1.0,
            "best_value": np.inf,
            "plateau_count": _ZERO,
            "cooldown_count": _ZERO,
            "count": _ZERO,
            "avg_value": 0.0,
        },
        count="",  # the field `count` counts something other than updates
    )


def _reduce(h: Numbers, sums: Sums) -> Decided:
    seen = _with_value(h)
    worse = jnp.where(seen.better, 0, h.plateau_count + 1)
    cooling = h.cooldown_count > 0
    reduces = ~cooling & (worse >= h.patience)
    scale = jnp.where(reduces, jnp.maximum(h.scale * h.factor, h.min_scale), h.scale)
    cooldown = jnp.where(cooling, h.cooldown_count - 1, jnp.where(reduces, h.cooldown, 0))
    bad = jnp.where(cooling | reduces, 0, worse)
    new = {
        "scale": jnp.where(seen.full, scale, h.scale),
        "plateau_count": jnp.where(seen.full, bad, h.plateau_count),
        "cooldown_count": jnp.where(seen.full, cooldown, h.cooldown_count),
    }
    return {"factor_now": new["scale"]}, {**new, **seen.kept}


def _scale(g: Array, s: LeafState, p: Any, h: Numbers) -> tuple[Array, LeafState]:
    return h.factor_now * g, s


# ---------------------------------------------------------------- the end of the run


class EarlyStoppingState(NamedTuple):
    """The state of `early_stopping`.

    Attributes:
      stop: whether the run should end, bool (); once True it stays True.
      best_value: the best value so far, float32 or wider ().
      plateau_count: the values since then that were no better, int32 ().
      count: the calls since the last value was completed, int32 ().
      avg_value: the mean of the values in those calls, float32 or wider ().
    """

    stop: Array
    best_value: Array
    plateau_count: Array
    count: Count
    avg_value: Array


@core.recorded
def early_stopping(
    patience: int,
    *,
    rtol: Rtol = 0.0,
    atol: Atol = 0.0,
    accumulation_size: int = 1,
) -> Transform:
    r"""Raises a flag in its state when a value (a loss) stops falling, so that the run can end.

    .. math:: u = g, \qquad \text{stop after } n \text{ values in a row with }
              f \not< f_\mathrm{best} - \rho\,|f_\mathrm{best}| - \alpha

    The value is given to `update` as the extra argument `value`, as for `reduce_on_plateau`; of
    something that should grow, such as an accuracy, give the negative. Read the flag on the host as
    often as you like: it stays raised, and until the run ends the updates pass as they are.

    Args:
      patience: \(n\), a whole number of at least 1. A value that is NaN is no better.
      accumulation_size: how many calls are averaged to one value; for a loss of batches, say, the
        number of batches of an epoch.

    Raises:
      ValueError: `update` is called without `value`.

    Example:
      >>> import gradx, jax.numpy as jnp
      >>> tx = gradx.chain(gradx.sgd(1.0), gradx.early_stopping(patience=2))
      >>> state = tx.init(jnp.ones(1))
      >>> for value in (3.0, 2.0, 2.5, 2.0):
      ...     updates, state = tx.update(jnp.ones(1), state, value=value)
      ...     print(state[1].stop)
      False
      False
      False
      True

    Reference: Goodfellow et al., *Deep learning*, 2016, algorithm 7.1.
    """
    return leafwise(
        _as_it_is,
        state=EarlyStoppingState,
        hypers={"rtol": rtol, "atol": atol, "value": from_call("value")},
        flags={
            "patience": steps("patience", patience, 1),
            "accumulation_size": steps("accumulation_size", accumulation_size, 1),
        },
        per_tree=_stop,
        scalars={
            "stop": np.zeros((), bool),
            "best_value": np.inf,
            "plateau_count": _ZERO,
            "count": _ZERO,
            "avg_value": 0.0,
        },
        count="",  # as in `reduce_on_plateau`
    )


def _stop(h: Numbers, sums: Sums) -> Decided:
    seen = _with_value(h)
    worse = jnp.where(seen.better, 0, h.plateau_count + 1)
    bad = jnp.where(seen.full, worse, h.plateau_count)
    return {}, {"stop": h.stop | (bad >= h.patience), "plateau_count": bad, **seen.kept}


def _as_it_is(g: Array, s: LeafState, p: Any, h: Numbers) -> tuple[Array, LeafState]:
    return g, s


METRICS.add(EarlyStoppingState, lambda s: {"stop": s.stop, "best_value": s.best_value})
METRICS.add(ReduceLROnPlateauState, lambda s: {"plateau_scale": s.scale})
