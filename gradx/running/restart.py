"""Lets an inner state begin anew every so many steps, so that what a spike left in it is gone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp

from gradx import core
from gradx.combinators.chain import Contract
from gradx.combinators.predicated import AsGiven, afresh, check_inner
from gradx.core import Count, Params, State, Transform, Updates
from gradx.core import trees as gtree
from gradx.core.known import METRICS
from gradx.core.meaning import Option
from gradx.core.ranges import as_float, check_number
from gradx.core.updates import safe_increment
from gradx.lift.passes import widen
from gradx.lift.states import check_state, need_params
from gradx.numbers.counting import steps
from gradx.numbers.sources import Array

__all__ = ["RestartMomentsState", "restart_moments"]

_FIRST = 0.01  # of the step size, in the step of a restart, as in the authors' code


class RestartMomentsState(NamedTuple):
    """The state of `restart_moments`.

    Attributes:
      count: the updates since the inner state began, int32 ().
      restarts: how often it began anew, int32 ().
      inner_state: the inner state.
    """

    count: Count
    restarts: Array
    inner_state: Any


@METRICS.of(RestartMomentsState)
def _metrics(state: RestartMomentsState) -> Mapping[str, Array]:
    return {"restarts": state.restarts}


@core.recorded
def restart_moments(
    inner: Contract,
    every: Annotated[int, Option("after how many updates the inner state begins anew")],
    *,
    warmup: Annotated[
        int, Option("\\(w\\), the steps after a restart until updates have their full size again")
    ] = 0,
) -> Transform:
    r"""Lets the state of a transformation begin anew every so many steps, against lasting spikes.

    A spike stays in Adam's second moment for a thousand steps; a restart ends this. After a restart
    the updates are scaled, so that the first ones, made of hardly any history, are small:

    .. math:: u = s_k\, T(g), \qquad
              s_k = 1 - 0.99\, \frac{1 + \cos(\pi k / (w + 1))}{2} \text{ for } k < w, \qquad
              s_k = 1 \text{ elsewhere}

    where \(k\) counts the updates since the last restart. There is no warm-up before the first.

    Args:
      inner: \(T\), gradx's or Optax's.
      every: SPAM has 500.
      warmup: At most `every`; SPAM has 150.

    Raises:
      ValueError: `inner` is not a transformation; a number of steps out of its range; `update` is
        called without the parameters.

    Example:
      >>> import gradx, jax.numpy as jnp
      >>> tx = gradx.restart_moments(gradx.sgd(1.0, momentum=0.5), every=2)
      >>> state, p = tx.init(jnp.ones(1)), jnp.ones(1)
      >>> for _ in range(3):
      ...     updates, state = tx.update(jnp.ones(1), state, p)
      ...     print(updates)
      [-1.]
      [-1.5]
      [-1.]

    The state begins as `init` makes it of the present parameters. Live values stay. Counts begin
    anew, and with them bias corrections, but also a schedule inside `inner`: put it outside,
    ``chain(restart_moments(scale_by_adam(), 500, warmup=150), scale_by_learning_rate(schedule))``.

    Reference: Huang et al., *SPAM: spike-aware Adam with momentum reset for stable LLM training*,
    https://arxiv.org/abs/2501.06842, and https://github.com/TianjinYellow/SPAM-Optimizer for the
    warm-up. Deviations: the authors' bias corrections go on as if the moments were old, so that
    their first updates are three times as large; their first restart comes one step earlier. Their
    clip of single elements is not a part of this.
    """
    where = core.where()
    check_inner(inner, where)
    period, rising = steps("every", every, 1), steps("warmup", warmup, 0)
    check_number(rising, f"[0, {period}]", "warmup", where)
    wrapped = core.with_extra_args(inner)

    def init(params: Params) -> RestartMomentsState:
        inner_state = inner.init(params)  # first: it raises for what cannot be optimized
        return RestartMomentsState(jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32), inner_state)

    def update(
        updates: Updates, state: State, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, RestartMomentsState]:
        check_state(state, RestartMomentsState, where)
        need_params(params, where)
        gtree.flatten_like(gtree.flatten(updates), params, "the parameters", where)
        due = state.count >= period
        inner_state = afresh(inner, params, state.inner_state, where, when=due)
        age = jnp.where(due, 0, state.count)
        restarts = jnp.where(due, safe_increment(state.restarts), state.restarts)
        if rising:
            updates = jax.tree.map(gtree.as_number, updates)
            wide = jax.tree.map(lambda g: widen(g) if gtree.is_inexact(g) else g, updates)
            new, inner_state = wrapped.update(wide, inner_state, params, **extra)
            turn = jnp.cos(jnp.pi * as_float(age) / (rising + 1))
            share = 1 - (1 - _FIRST) * (1 + turn) / 2
            share = jnp.where((restarts > 0) & (age < rising), share, 1.0)
            new = gtree.map_numbers(lambda u, g: _scaled(u, g, share), new, updates)
        else:
            new, inner_state = wrapped.update(updates, inner_state, params, **extra)
        return new, type(state)(safe_increment(age), restarts, inner_state)

    return Transform(init, update, parts=AsGiven(inner))


@jax.jit  # one trace per shape and dtype, instead of one per leaf
@gtree.mixing
def _scaled(u: Array, g: Array, share: Array) -> Array:
    wide = widen(u)
    return (wide * share.astype(wide.real.dtype)).astype(jnp.result_type(g))
