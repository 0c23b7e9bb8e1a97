r"""Averages of the parameters, to evaluate in place of the last ones.

They are parts of a chain that pass the updates on. All are one mean with weights,
\(\bar\theta \leftarrow \bar\theta + w\,(\theta - \bar\theta)\), and differ in \(w\). A part sees
the parameters that `update` is given, as the last step, its rounding and all projections left them.
So it may stand anywhere in a chain. The newest parameters are added by `eval_params`, which is
given them; the state knows with which weight.
"""

from __future__ import annotations

from typing import Annotated, Any, NamedTuple

from gradx import core
from gradx.core import Count, Transform, Updates
from gradx.core.known import AVERAGES, Averaged
from gradx.core.meaning import Number
from gradx.numbers.counting import steps
from gradx.numbers.sources import Array, Hyper
from gradx.running.weighted_mean import averaged, evaluated

__all__ = [
    "EmaParamsState",
    "SwaParamsState",
    "TailEmaParamsState",
    "ema_params",
    "swa_params",
    "tail_ema_params",
]


class EmaParamsState(NamedTuple):
    """The state of `ema_params`.

    Attributes:
      count: the updates done so far, int32 ().
      total: the weights of the average so far, added up, float32 ().
      weight: the weight of the parameters as they are now, which are not in the average yet,
        float32 ().
      share: the share of the average in the parameters to evaluate, float32 ().
      average: the average, like the parameters.
    """

    count: Count
    total: Array
    weight: Array
    share: Array
    average: Updates


class SwaParamsState(EmaParamsState):
    __doc__ = str(EmaParamsState.__doc__).replace("ema_params", "swa_params")


class TailEmaParamsState(EmaParamsState):
    __doc__ = str(EmaParamsState.__doc__).replace("ema_params", "tail_ema_params")


Mix = Annotated[
    Hyper, Number("[0, 1]", "s", "the share of the average in the parameters to evaluate")
]
HalfLife = Annotated[
    Hyper | None, Number("(0, inf]", "h", "the steps after which a parameter's weight has halved")
]


@core.recorded
def ema_params(
    decay: Hyper | None = None,
    *,
    half_life: HalfLife = None,
    debias: bool = True,
    warmup: bool = False,
    every: int = 1,
    start: int = 0,
    mix: Mix = 1.0,
    accumulator_dtype: Any = None,
) -> Transform:
    r"""Keeps an exponential moving average of the parameters, which often generalises better.

    .. math::
        \bar\theta \leftarrow \bar\theta + w_t (\theta_t - \bar\theta), \qquad
        w_t = \frac{1 - \beta}{1 - \beta^n} \text{ with debias, else } 1 - \beta

    for the \(n\)-th parameters that are averaged. `eval_params(tx, state, params)` gives them.

    Args:
      decay: commonly 0.99 to 0.9999. Give this or `half_life`.
      half_life: in place of `decay`: \(\beta = 2^{-k/h}\), so it means the same for any `every`.
      debias: begin with the first parameters that are averaged, as if the average had always been
        one of these only. Without it the average begins at the parameters of `init`, and needs
        \(1 / (1 - \beta)\) steps to forget them.
      warmup: use \(\min(\beta, (1 + m) / (10 + m))\) after \(m\) averaged parameters, so that the
        average follows quickly at first.
      every: average in every \(k\)-th step only, \(k \ge 1\). Other steps cost nothing.
      start: the number of updates before the first average; until then the parameters themselves
        are evaluated.
      mix: Below 1 the average is mixed with the parameters, as in `tail_ema_params`. A live one
        counts from the next update on.
      accumulator_dtype: the dtype to keep the average in; by default the parameter's, at least
        float32. In half precision a slow average stands still.

    Returns:
      A part of a chain that passes the updates on, with an `EmaParamsState`. Around it,
      `masked` says which parameters are averaged.

    Raises:
      ValueError: both or none of `decay` and `half_life` are given; `update` is called without the
        parameters.

    Example:
      >>> import gradx, jax.numpy as jnp
      >>> tx = gradx.chain(gradx.sgd(1.0), gradx.ema_params(0.5))
      >>> params = jnp.zeros(1)
      >>> state = tx.init(params)
      >>> for _ in range(2):
      ...     updates, state = tx.update(jnp.array([-3.0]), state, params)
      ...     params = gradx.apply_updates(params, updates)
      >>> params, gradx.eval_params(tx, state, params)
      (Array([6.], dtype=float32), Array([5.], dtype=float32))

    Reference: Polyak and Juditsky, *Acceleration of stochastic approximation by averaging*, SIAM J.
    Control Optim. 30 (1992); for this form Morales-Brotons et al., *Exponential moving average of
    weights in deep learning*, https://arxiv.org/abs/2411.18704. The warm-up is TensorFlow's.
    """
    where = core.where()
    if (decay is None) == (half_life is None):
        raise ValueError(f"{where}: give decay or half_life, one of them.")
    hypers = {"decay": decay} if half_life is None else {"half_life": half_life}
    flags = {"debias": debias, "warmup": warmup, "every": steps("every", every, 1)}
    return averaged(EmaParamsState, {**hypers, "mix": mix}, flags, start, accumulator_dtype)


@core.recorded
def swa_params(start: int = 0, every: int = 1, *, accumulator_dtype: Any = None) -> Transform:
    r"""Keeps the mean of the parameters from some step on: stochastic weight averaging (SWA).

    .. math:: \bar\theta = \text{the mean of } \theta_t \text{ over the steps } t \ge \max(s, 1)
              \text{ with } k \mid t - s

    It goes with a learning rate that stays constant, or is cyclic, while parameters are averaged.
    `eval_params(tx, state, params)` gives the mean, and until there is one the parameters
    themselves. Statistics of batch norms belong to other
    parameters; gather them anew.

    Args:
      start: \(s\), the number of updates before the first parameters that are averaged; commonly
        three quarters of the run. It counts the updates of this part: after `transfer_state` from a
        chain without it, those from there on.
      every: \(k \ge 1\), the steps between averaged parameters: one epoch in the paper, or the
        length of a cycle. Other steps cost nothing.
      accumulator_dtype: the dtype to keep the mean in; by default the parameter's, at least
        float32.

    Returns:
      A part of a chain that passes the updates on, with a `SwaParamsState`.

    Raises:
      ValueError: a number of steps is out of range; `update` is called without the parameters.

    Example:
      >>> import gradx, jax.numpy as jnp
      >>> tx = gradx.chain(gradx.sgd(1.0), gradx.swa_params(start=1))
      >>> params = jnp.zeros(1)
      >>> state = tx.init(params)
      >>> for _ in range(3):
      ...     updates, state = tx.update(jnp.array([-1.0]), state, params)
      ...     params = gradx.apply_updates(params, updates)
      >>> gradx.eval_params(tx, state, params)
      Array([2.], dtype=float32)

    Reference: Izmailov et al., *Averaging weights leads to wider optima and better generalization*,
    https://arxiv.org/abs/1803.05407.
    """
    flags = {"debias": True, "warmup": False, "every": steps("every", every, 1)}
    return averaged(SwaParamsState, {"mix": 1.0}, flags, start, accumulator_dtype)


@core.recorded
def tail_ema_params(
    start: int,
    decay: Hyper = 1 - 1 / 150,
    *,
    mix: Mix = 0.6,
    every: int = 1,
    accumulator_dtype: Any = None,
) -> Transform:
    r"""Averages the parameters of the last part of a run, and evaluates between them and the last.

    .. math::
        \bar\theta \leftarrow \beta \bar\theta + (1 - \beta)\, \theta, \qquad
        \theta_\mathrm{eval} = (1 - s)\, \theta + s\, \bar\theta

    A full average lags behind parameters that still move; a share of it does so less. The average
    begins at the parameters of step `start`.

    Args:
      start: the number of updates before the average begins, commonly where the learning rate has
        begun to fall.
      every: average in every \(k\)-th step only, \(k \ge 1\). Other steps cost nothing.
      accumulator_dtype: the dtype to keep the average in; by default the parameter's, at least
        float32.

    Returns:
      A part of a chain that passes the updates on, with a `TailEmaParamsState`.

    Raises:
      ValueError: a number of steps is out of range; `update` is called without the parameters.

    Example:
      >>> import gradx, jax.numpy as jnp
      >>> tx = gradx.chain(gradx.sgd(1.0), gradx.tail_ema_params(start=1, decay=0.5, mix=0.5))
      >>> params = jnp.zeros(1)
      >>> state = tx.init(params)
      >>> for _ in range(2):
      ...     updates, state = tx.update(jnp.array([-4.0]), state, params)
      ...     params = gradx.apply_updates(params, updates)
      >>> params, gradx.eval_params(tx, state, params)  # the average is 6
      (Array([8.], dtype=float32), Array([7.], dtype=float32))

    The numbers are those of the optimizer track of modded-nanogpt
    (https://github.com/KellerJordan/modded-nanogpt), where the embedding is left out (`masked`).
    """
    flags = {"debias": False, "warmup": False, "every": steps("every", every, 1)}
    return averaged(
        TailEmaParamsState, {"decay": decay, "mix": mix}, flags, start, accumulator_dtype
    )


for _class, _name in (
    (EmaParamsState, "ema_params"),
    (SwaParamsState, "swa_params"),
    (TailEmaParamsState, "tail_ema_params"),
):
    AVERAGES.add(_class, Averaged(_name, lambda state: [state.average], evaluated))
