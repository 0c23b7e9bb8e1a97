"""The one mean that all averages of parameters are: its weights, its steps, its evaluation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gradx import core
from gradx.core import Count, Params, Part, State, Transform, Updates
from gradx.core import trees as gtree
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
from gradx.numbers.sources import Array
from gradx.running.beside import after, beside_params, first_beside

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


def averaged(
    state_class: Any, hypers: Mapping[str, Any], flags: Mapping[str, Any], start: int, dtype: Any
) -> Transform:
    """The part of a chain that averages parameters.

    Args:
      state_class: with the fields `count`, `total`, `weight`, `share` and `average`.
      hypers: `mix`, and `decay` or `half_life`; without these all parameters have the same weight.
      flags: `debias`, `warmup` and `every`.
      start: the number of updates before the first average.
      dtype: that of the average.
    """
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


def _average(g: Array, s: Any, p: Array, h: Numbers) -> tuple[Array, Any]:
    mean = s.average + h.weight * (p - s.average)
    return once_stored(g, mean), s._replace(average=mean)


def _pass(g: Array, s: LeafState, p: None, h: Numbers) -> tuple[Array, LeafState]:
    return g, s


# ---------------------------------------------------------------- in every k-th step


class _Weights(NamedTuple):
    """The scalars of the public state."""

    count: Count
    total: Array
    weight: Array
    share: Array


class _Trees(NamedTuple):
    """The average, with the weight of the parameters that `update` is given."""

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


def evaluated(p: Array, arrays: Sequence[Array], state: Any) -> Array:
    """The parameter to evaluate, between the one that is given and its average."""
    return _between(p, arrays[0], state.weight, state.share)


@jax.jit
@gtree.mixing
def _between(p: Array, average: Array, weight: Array, share: Array) -> Array:
    wide, mean = widen(p), widen(average)
    mean = mean + weight * (wide - mean)
    return (wide + share * (mean - wide)).astype(p.dtype)
