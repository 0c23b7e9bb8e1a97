"""The averaging and interpolation of iterates that make an optimizer schedule-free.

There are three sequences. The base optimizer moves z; x is the average of z, and is evaluated; y
lies between the two, and gradients are taken there. The parameters are y, the state holds z, and x
follows from them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gradx import core
from gradx.combinators.chain import Contract
from gradx.combinators.predicated import check_inner
from gradx.core import Count, Params, Part, State, Transform, Updates, ranges
from gradx.core import trees as gtree
from gradx.core.calls import checked
from gradx.core.known import AVERAGES, Averaged
from gradx.lift.averages import storage
from gradx.lift.evaluation import columns, evaluated
from gradx.lift.leafwise import leafwise
from gradx.lift.passes import staged, widen
from gradx.lift.sequence import NO_OLD_STATE, InSequence, stage_of
from gradx.lift.stages import Decided, Numbers, Sums
from gradx.lift.states import check_state
from gradx.numbers import sources
from gradx.numbers.live import own_state, with_own
from gradx.numbers.sources import Array, Hyper

__all__ = ["ScheduleFreeState", "schedule_free_eval_params"]


class ScheduleFreeState(NamedTuple):
    """The state of `schedule_free`.

    Attributes:
      b1: the share of x in the parameters, as of the last update, float32 ().
      weight_sum: the weights of the average so far, added up, float32 ().
      step_count: the updates done so far, int32 (); in Optax one more.
      max_lr: the largest learning rate so far, float32 ().
      base_optimizer_state: the state of the base optimizer.
      z: where the base optimizer is, like the parameters.
    """

    b1: Array
    weight_sum: Array
    step_count: Count
    max_lr: Array
    base_optimizer_state: Any
    z: Updates


# ---------------------------------------------------------------- the rule


class _Averaging(NamedTuple):
    """The part of the state that is not the base optimizer's."""

    last_b1: Array
    weight_sum: Array
    step_count: Count
    max_lr: Array
    z: Updates


def averaging(
    learning_rate: Hyper, b1: Hyper, weight_lr_power: Hyper, state_dtype: Any, *, scaled: bool
) -> Transform:
    """The part after the base optimizer; with `scaled` it applies the learning rate as well."""
    return leafwise(
        interpolate,
        init={"z": partial(start, dtype=storage("state_dtype", state_dtype))},
        state=_Averaging,
        hypers={"learning_rate": learning_rate, "b1": b1, "weight_lr_power": weight_lr_power},
        flags={"scaled": scaled},
        per_tree=_decide,
        # At first x, y and z are equal, so any b1 describes them; the given one reads better.
        scalars={"last_b1": first_b1(b1), "weight_sum": 0.0, "max_lr": 0.0},
        count="step_count",
        needs_params=True,
    )


def first_b1(number: Hyper) -> Any:
    number = number.initial if isinstance(number, sources.Tunable) else number
    return number if ranges.is_real(number) else 1.0


def start(p: Array, *, dtype: Any) -> Array:
    stored = p.dtype if dtype is None else dtype
    return p.astype(gtree.wide(stored, p.dtype) if jnp.iscomplexobj(p) else stored)


def _decide(h: Numbers, sums: Sums) -> Decided:
    max_lr = jnp.maximum(h.max_lr, h.learning_rate)
    weight = max_lr**h.weight_lr_power
    total = h.weight_sum + weight
    share = weight / jnp.where(total == 0, 1.0, total)  # of z in x; none while the rate is 0
    numbers, b1 = turned(share, h.b1, h.last_b1)
    return numbers, {"last_b1": b1, "weight_sum": total, "max_lr": max_lr}


def turned(share: Array, b1: Any, last_b1: Array) -> tuple[Mapping[str, Array], Array]:
    """How y moves, if x takes this share of z, and if b1 was another one before."""
    # In the state's dtype: otherwise rounding would look like a b1 that changes in every step.
    b1 = jnp.asarray(b1, last_b1.dtype)
    # By which part of its distance y moves to z. It is the share, unless b1 has changed.
    turn = share + (1 - share) * (last_b1 - b1) / last_b1
    return {"turn": turn, "follow": (1 - turn) * (1 - last_b1)}, b1


def interpolate(g: Array, s: Any, p: Array, h: Numbers) -> tuple[Array, Any]:
    # x is replaced by (y - (1 - b1) z) / b1, and then no division by b1 is left.
    step = -h.learning_rate * g if h.scaled else g
    z = s.z + step
    return h.turn * (z - p) + h.follow * step, s._replace(z=z)


# ---------------------------------------------------------------- the base optimizer, then the rule


def _opened(state: State, where: str) -> list[State]:
    """The base optimizer's state, and that of the rule."""
    inner = own_state(state)
    check_state(inner, ScheduleFreeState, where)
    own = _Averaging(inner.b1, inner.weight_sum, inner.step_count, inner.max_lr, inner.z)
    return [inner.base_optimizer_state, with_own(state, own)]


def _closed(states: Sequence[State], old: State) -> State:
    base, own = states
    inner = own_state(own)
    # A state of Optax's class stays one.
    state_class = ScheduleFreeState if old is NO_OLD_STATE else type(own_state(old))
    return with_own(
        own,
        state_class(inner.last_b1, inner.weight_sum, inner.step_count, inner.max_lr, base, inner.z),
    )


def with_averaging(
    base: Contract,
    rule: Transform,
    opened: Callable[[State, str], list[State]] = _opened,
    closed: Callable[[Sequence[State], State], State] = _closed,
) -> Transform:
    """The base optimizer, and `averaging` or another such rule after it, with one state."""
    where = core.where()
    check_inner(base, where, "base_optimizer")

    def described(params: Params, state: State) -> list[Part]:
        inner, own = opened(state, where)
        return [Part("base_optimizer", base, params, inner), Part("", rule, params, own)]

    stages = [stage_of(base), stage_of(rule)]
    stage = InSequence(stages, closed, lambda state: opened(state, where), where, needs_params=True)
    return staged(stage, where, described)


# ---------------------------------------------------------------- where to evaluate


@checked
def schedule_free_eval_params(state: State, params: Params) -> Params:
    r"""The parameters to evaluate in a schedule-free run, the average \(x\).

    .. math:: x = \frac{y - (1 - \beta_1)\, z}{\beta_1}

    Args:
      state: the state of `schedule_free`, or of a chain, groups or wrappers that contain it.
        Leaves without a schedule-free optimizer are returned as they are.
      params: the parameters \(y\) that are trained.

    Returns:
      A tree like `params`, in its dtypes.

    Raises:
      ValueError: there is no `ScheduleFreeState` in the state, or two of them have the same leaf.

    Example:
      >>> import gradx, jax.numpy as jnp
      >>> tx = gradx.chain(gradx.clip_by_global_norm(1.0), gradx.schedule_free_adamw(0.1))
      >>> params = jnp.ones(2)
      >>> updates, state = tx.update(jnp.array([-0.3, 0.2]), tx.init(params), params)
      >>> params = gradx.apply_updates(params, updates)
      >>> gradx.schedule_free_eval_params(state, params).round(2)
      Array([1.1, 0.9], dtype=float32)
    """
    where = "schedule_free_eval_params"
    found = [one for one in AVERAGES.find(state) if one.known is _SCHEDULE_FREE]
    if not found:
        raise ValueError(
            f"{where}: there is no ScheduleFreeState in the state, a {type(state).__name__}."
        )
    flat = gtree.flatten(params)
    return evaluated(
        flat,
        [(one, columns(flat, one, where)) for one in found],
        lambda path: ValueError(f"{where}: two states have the leaf {path!r}."),
    )


def averaged(y: Array, arrays: Sequence[Array], state: Any) -> Array:
    """x, from a state with b1 and z."""
    return _average(y, arrays[0], state.b1)


_SCHEDULE_FREE = Averaged("schedule_free", lambda state: [state.z], averaged)
AVERAGES.add(ScheduleFreeState, _SCHEDULE_FREE)


@jax.jit  # one trace per shape and dtype, instead of one per leaf
def _average(y: Array, z: Array, b1: Array) -> Array:
    x = (widen(y) - (1 - widen(b1)) * widen(z)) / widen(b1)
    return x.astype(y.dtype)
