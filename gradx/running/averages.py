r"""Averages of the parameters, to evaluate in place of the last ones.

They are parts of a chain that pass the updates on. All are one mean with weights,
\(\bar\theta \leftarrow \bar\theta + w\,(\theta - \bar\theta)\), and differ in \(w\). A part sees
the parameters that `update` is given, as the last step, its rounding and all projections left them.
So it may stand anywhere in a chain. The newest parameters are added by `eval_params`, which is
given them; the state knows with which weight.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp

from gradx import core
from gradx.core import Count, Params, Part, State, Transform, Updates
from gradx.core import trees as gtree
from gradx.core.known import AVERAGES, Averaged
from gradx.core.meaning import Number
from gradx.core.ranges import as_float
from gradx.lift.averages import storage
from gradx.lift.leafwise import leafwise
from gradx.lift.passes import staged, widen
from gradx.lift.sequence import NO_OLD_STATE, InSequence
from gradx.lift.stages import Call, Decided, LeafState, Leaves, Numbers, Sums
from gradx.lift.states import check_state
from gradx.lift.tree_first import TreeFirst
from gradx.lowering.conditional import in_some_steps
from gradx.lowering.order import once_stored
from gradx.numbers.counting import steps
from gradx.numbers.live import own_state, with_own
from gradx.numbers.sources import Array, Hyper
from gradx.running.beside import after, beside_params, first_beside

__all__ = [
    "EmaParamsState",
    "SwaParamsState",
    "TailEmaParamsState",
    "ema_params",
    "swa_params",
    "tail_ema_params",
]


class EmaParamsState(NamedTuple):
    """The state of `ema_params`; `swa_params` and `tail_ema_params` have the same fields.

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
    """The state of `swa_params`, with the fields of `EmaParamsState`."""


class TailEmaParamsState(EmaParamsState):
    """The state of `tail_ema_params`, with the fields of `EmaParamsState`."""


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
    return _averaged(EmaParamsState, {**hypers, "mix": mix}, flags, start, accumulator_dtype)


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
    return _averaged(SwaParamsState, {"mix": 1.0}, flags, start, accumulator_dtype)


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
    return _averaged(
        TailEmaParamsState, {"decay": decay, "mix": mix}, flags, start, accumulator_dtype
    )


# ---------------------------------------------------------------- the weights


def _decide(h: Numbers, sums: Sums) -> Decided:
    """The weight of the parameters that this step makes, in an average of those before."""
    since = h.t - h.start
    before = since // h.every - (h.start == 0)  # averaged so far; those of `init` do not count
    kept, new = _weights(h, as_float(before))
    total = kept * h.total + new
    due = since % h.every == 0
    weight = jnp.where(due, new / total, 0.0)
    # Until the first average it is the parameters themselves.
    none_yet = (since <= 0) | (h.total == 0)
    return {}, {
        "total": jnp.where(due & (since >= 0), total, h.total),
        "weight": jnp.where(none_yet, 1.0, weight),
        "share": jnp.asarray(h.mix),
    }


def _weights(h: Numbers, before: Array) -> tuple[Any, Any]:
    """What the weights of earlier parameters are multiplied by, and the weight of the new ones."""
    if hasattr(h, "decay"):
        decay = h.decay
    elif hasattr(h, "half_life"):
        decay = jnp.exp2(-h.every / as_float(h.half_life))
    else:
        return 1.0, 1.0
    if h.warmup:
        decay = jnp.minimum(decay, (1 + before) / (10 + before))
    return decay, 1 - decay


def _clock(h: Numbers, t: Array) -> Mapping[str, Any]:
    return {"t": t}


# ---------------------------------------------------------------- the average


def _averaged(
    state_class: Any, hypers: Mapping[str, Any], flags: Mapping[str, Any], start: int, dtype: Any
) -> Transform:
    seldom = flags["every"] > 1
    first = {"average": partial(_start, dtype=storage("accumulator_dtype", dtype))}
    rule = leafwise(
        _pass if seldom else _average,
        init=None if seldom else first,
        state=_Weights if seldom else state_class,
        hypers=hypers,
        flags={**flags, "start": steps("start", start, 0)},
        per_step=_clock,
        per_tree=_decide,
        scalars={
            "total": 0.0 if flags["debias"] else 1.0,
            "weight": 0.0,
            "share": hypers["mix"] if isinstance(hypers["mix"], float) else 1.0,
        },
        needs_params=not seldom,
    )
    return _in_some_steps(state_class, rule, first["average"]) if seldom else rule


def _start(p: Array, *, dtype: Any) -> Array:
    return jnp.array(p if dtype is None else p.astype(dtype))


def _average(g: Array, s: EmaParamsState, p: Array, h: Numbers) -> tuple[Array, EmaParamsState]:
    mean = s.average + h.weight * (p - s.average)
    return once_stored(g, mean), s._replace(average=mean)


def _pass(g: Array, s: LeafState, p: None, h: Numbers) -> tuple[Array, LeafState]:
    return g, s


# ---------------------------------------------------------------- in every k-th step


class _Weights(NamedTuple):
    """The scalars of an `EmaParamsState`."""

    count: Count
    total: Array
    weight: Array
    share: Array


class _Trees(NamedTuple):
    """The rest of it, with the weight of the parameters that `update` is given."""

    weight: Array
    average: Updates


def _in_some_steps(state_class: Any, rule: Transform, first: Callable[[Array], Array]) -> Transform:
    """The scalars in every step, and the average under a real conditional."""
    where = core.where()

    def init(params: Params) -> State:
        return _Trees(jnp.zeros(()), first_beside(first, params, where))

    def prepare(
        leaves: Leaves, state: State, extra: Mapping[str, Any]
    ) -> tuple[Sequence[Call | None], State]:
        takes = state.weight > 0
        takes = takes if leaves.gate is None else takes & leaves.gate

        def change(old: Updates, given: Any) -> Updates:
            params, weight = given
            return beside_params(partial(_toward, weight), params, old, where=where)

        params = leaves.visible_params
        new = in_some_steps(change, takes, state.average, (params, state.weight))
        return after(leaves, new), state._replace(average=new)

    def unpack(state: State) -> list[State]:
        inner = own_state(state)
        check_state(inner, state_class, where)
        own = with_own(state, _Weights(inner.count, inner.total, inner.weight, inner.share))
        return [own, _Trees(inner.weight, inner.average)]

    def pack(states: Sequence[State], old: State) -> State:
        own, trees = states
        made: Any = state_class if old is NO_OLD_STATE else type(own_state(old))
        return with_own(own, made(*own_state(own), trees.average))

    def described(params: Params, state: State) -> list[Part]:
        return [Part("", rule, params, unpack(state)[0])]

    stages = [rule.stage, TreeFirst(init, prepare, sees_tree=False)]
    return staged(InSequence(stages, pack, unpack, where), where, described)


@jax.jit  # one trace per shape and dtype, instead of one per leaf
@gtree.mixing
def _toward(weight: Array, p: Array, average: Array) -> Array:
    wide = widen(average)
    return (wide + weight * (widen(p) - wide)).astype(average.dtype)


# ---------------------------------------------------------------- evaluation


def _evaluated(p: Array, arrays: Sequence[Array], state: EmaParamsState) -> Array:
    return _between(p, arrays[0], state.weight, state.share)


@jax.jit
@gtree.mixing
def _between(p: Array, average: Array, weight: Array, share: Array) -> Array:
    wide, mean = widen(p), widen(average)
    mean = mean + weight * (wide - mean)
    return (wide + share * (mean - wide)).astype(p.dtype)


for _class, _name in (
    (EmaParamsState, "ema_params"),
    (SwaParamsState, "swa_params"),
    (TailEmaParamsState, "tail_ema_params"),
):
    AVERAGES.add(_class, Averaged(_name, lambda state: [state.average], _evaluated))
