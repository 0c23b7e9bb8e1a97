"""Transformations that act only in some steps: on finite updates, or where a condition says so.

In the other steps the inner state stays as it is, bit for bit, with its counts: a schedule inside
sees only the steps in which it acted.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from gradx import core
from gradx.combinators.chain import Contract
from gradx.combinators.predicated import (
    AsGiven,
    all_finite,
    as_gate,
    check_agreement,
    check_inner,
    gated_update,
)
from gradx.core import Params, State, Transform, Updates
from gradx.core.known import METRICS
from gradx.core.updates import safe_increment
from gradx.lift import mapped
from gradx.lift.states import check_state
from gradx.numbers.counting import steps
from gradx.numbers.sources import Array

__all__ = [
    "ApplyIfFiniteState",
    "ConditionallyMaskState",
    "ConditionallyTransformState",
    "apply_if_finite",
    "conditionally_mask",
    "conditionally_transform",
]


# ---------------------------------------------------------------- a condition on the step


class ConditionallyTransformState(NamedTuple):
    """The state of `conditionally_transform`.

    Attributes:
      inner_state: the inner state, which changes only in the steps that count.
      step: the calls so far, whether they counted or not, int32 ().
    """

    inner_state: Any
    step: Array


class ConditionallyMaskState(NamedTuple):
    """The state of `conditionally_mask`.

    Attributes:
      step: the calls so far, whether they counted or not, int32 ().
      inner_state: the inner state, which changes only in the steps that count.
    """

    step: Array
    inner_state: Any


@core.recorded
def conditionally_transform(
    inner: Contract,
    should_transform_fn: Callable[..., Any],
    forward_extra_args: bool = False,
) -> Transform:
    r"""Applies a transformation in some steps, and passes the updates on as they are in the others.

    .. math:: u = T(g) \text{ where } c(t), \qquad u = g \text{ elsewhere}, \qquad t = 0, 1, \ldots

    Where the condition is False the inner state stays as it is.

    Args:
      inner: the transformation, gradx's or Optax's.
      should_transform_fn: the condition, `step -> bool`; the step is 0 in the first update. With
        `forward_extra_args` it is called as `should_transform_fn(step, **extra_args)`.
      forward_extra_args: whether the condition gets the extra arguments of `update`.

    Raises:
      ValueError: `inner` is not a transformation; the condition is no function, or gives no bool.

    Example:
      >>> import gradx, jax.numpy as jnp
      >>> tx = gradx.conditionally_transform(gradx.scale(10.0), lambda step: step >= 1)
      >>> state = tx.init(jnp.ones(1))
      >>> for _ in range(2):
      ...     updates, state = tx.update(jnp.ones(1), state)
      ...     print(updates)
      [1.]
      [10.]
    """
    return _conditionally(
        ConditionallyTransformState, inner, should_transform_fn, forward_extra_args, "pass"
    )


@core.recorded
def conditionally_mask(
    inner: Contract,
    should_transform_fn: Callable[..., Any],
    forward_extra_args: bool = False,
) -> Transform:
    r"""Applies a transformation in some steps, and gives zero updates in the others.

    .. math:: u = T(g) \text{ where } c(t), \qquad u = 0 \text{ elsewhere}, \qquad t = 0, 1, \ldots

    Where the condition is False the inner state stays as it is. Around a whole optimizer it
    trains in some steps only.

    Args:
      inner: the transformation, gradx's or Optax's.
      should_transform_fn: the condition, `step -> bool`; the step is 0 in the first update. With
        `forward_extra_args` it is called as `should_transform_fn(step, **extra_args)`.
      forward_extra_args: whether the condition gets the extra arguments of `update`.

    Raises:
      ValueError: `inner` is not a transformation; the condition is no function, or gives no bool.

    Example:
      >>> import gradx, jax.numpy as jnp
      >>> tx = gradx.conditionally_mask(gradx.sgd(0.5), lambda step: step % 2 == 0)
      >>> state = tx.init(jnp.ones(1))
      >>> for _ in range(2):
      ...     updates, state = tx.update(jnp.ones(1), state)
      ...     print(updates)
      [-0.5]
      [0.]
    """
    return _conditionally(
        ConditionallyMaskState, inner, should_transform_fn, forward_extra_args, "zero"
    )


def _conditionally(
    state_type: Any,
    inner: Contract,
    condition: Callable[..., Any],
    forward_extra_args: bool,
    rejected: Literal["zero", "pass"],
) -> Transform:
    where = core.where()
    check_inner(inner, where)

    def init(params: Params) -> State:
        return state_type(inner_state=inner.init(params), step=jnp.zeros((), jnp.int32))

    def update(
        updates: Updates, state: State, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, State]:
        check_state(state, state_type, where)
        answer = condition(state.step, **(extra if forward_extra_args else {}))
        gate = as_gate(answer, f"{where}: should_transform_fn")
        updates, inner_state = gated_update(
            inner, where, gate, updates, state.inner_state, params, extra, rejected=rejected
        )
        step = safe_increment(state.step)
        return updates, type(state)(inner_state=inner_state, step=step)

    return Transform(init, update, parts=AsGiven(inner))


# ---------------------------------------------------------------- a condition on the updates


class ApplyIfFiniteState(NamedTuple):
    """The state of `apply_if_finite`.

    Attributes:
      notfinite_count: the steps since the last finite one, int32 ().
      last_finite: whether the last step's updates were finite, bool ().
      total_notfinite: all steps that were not finite, int32 ().
      inner_state: the inner state, which changes only in the steps that are applied.
    """

    notfinite_count: Array
    last_finite: Array
    total_notfinite: Array
    inner_state: Any


@METRICS.of(ApplyIfFiniteState)
def _told(state: ApplyIfFiniteState) -> dict[str, Array]:
    names = ("notfinite_count", "last_finite", "total_notfinite")
    return {name: getattr(state, name) for name in names}


@core.recorded
def apply_if_finite(
    inner: Contract,
    max_consecutive_errors: int,
    *,
    after_limit: Literal["skip", "apply"] = "skip",
    axis_name: Any = None,
) -> Transform:
    r"""Applies a transformation, but skips the steps whose updates have an infinity or a NaN.

    .. math:: u = T(g) \text{ where } g \text{ is finite}, \qquad u = 0 \text{ elsewhere}

    In a step that is skipped the inner state stays as it is.

    Args:
      inner: the transformation, gradx's or Optax's.
      max_consecutive_errors: how many steps in a row may fail, at least 0. `after_limit` says
        what happens then.
      after_limit: ``"skip"`` skips later failures, too, so that training stands still: check on the
        host whether `state.notfinite_count > max_consecutive_errors`. ``"apply"`` applies them, as
        Optax does, and makes the parameters NaN.
      axis_name: the mapped axis, or several, over which the updates differ, inside `shard_map` or
        `pmap`: one device's failure makes all of them skip. Place `pmean` before instead if you use
        it; a mean is finite on all devices or on none.

    Raises:
      ValueError: `inner` is not a transformation, or combines gradients over an axis that is not
        named; a limit that is negative or not a whole number.

    Example:
      >>> import gradx, jax.numpy as jnp
      >>> tx = gradx.apply_if_finite(gradx.sgd(0.5), max_consecutive_errors=3)
      >>> updates, state = tx.update(jnp.array([jnp.nan, 1.0]), tx.init(jnp.ones(2)))
      >>> updates, int(state.total_notfinite)
      (Array([0., 0.], dtype=float32), 1)

    Deviation from Optax: Optax applies updates that are not finite once the limit is passed.
    """
    where = core.where()
    check_inner(inner, where)
    limit = steps("max_consecutive_errors", max_consecutive_errors, 0)
    over = mapped.axes(axis_name)
    check_agreement(inner, over, where)

    def init(params: Params) -> ApplyIfFiniteState:
        return ApplyIfFiniteState(
            notfinite_count=jnp.zeros((), jnp.int32),
            last_finite=jnp.array(True),
            total_notfinite=jnp.zeros((), jnp.int32),
            inner_state=inner.init(params),
        )

    def update(
        updates: Updates, state: State, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, ApplyIfFiniteState]:
        check_state(state, ApplyIfFiniteState, where)
        finite = all_finite(updates)
        if over:
            finite = mapped.everywhere(jax.lax.pmin, finite.astype(jnp.int32), over, where) == 1
        failures = jnp.where(finite, 0, safe_increment(state.notfinite_count))
        gate = finite if after_limit == "skip" else finite | (failures > limit)
        updates, inner_state = gated_update(
            inner, where, gate, updates, state.inner_state, params, extra
        )
        return updates, type(state)(
            notfinite_count=failures,
            last_finite=finite,
            total_notfinite=jnp.where(
                finite, state.total_notfinite, safe_increment(state.total_notfinite)
            ),
            inner_state=inner_state,
        )

    return Transform(init, update, parts=AsGiven(inner))
