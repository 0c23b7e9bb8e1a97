"""Updates times a number: a constant, the learning rate, a schedule."""

from __future__ import annotations

from typing import Annotated, Any, NamedTuple

import optax

from gradx import core
from gradx.combinators.chain import identity
from gradx.core import Count, Transform
from gradx.core.meaning import Number
from gradx.lift.leafwise import leafwise
from gradx.lift.stages import LeafState, Numbers
from gradx.numbers import sources
from gradx.numbers.sources import Array, Hyper, Schedule

__all__ = ["ScaleByScheduleState", "scale", "scale_by_learning_rate", "scale_by_schedule"]


class ScaleByScheduleState(NamedTuple):
    """The state of a scaling by schedule.

    Attributes:
      count: the updates done so far, int32 ().
    """

    count: Count


@core.recorded
def scale(step_size: Annotated[Hyper, Number("(-inf, inf)", "c")]) -> Transform:
    r"""Multiplies the updates by a number.

    .. math:: u \leftarrow c\,u

    Args:
      step_size: what the updates are multiplied by.

    Example:
      >>> import gradx, jax.numpy as jnp
      >>> tx = gradx.scale(-0.5)
      >>> tx.update(jnp.ones(2), tx.init(jnp.ones(2)))[0]
      Array([-0.5, -0.5], dtype=float32)
    """
    return _scaling("step_size", step_size, _scale)


@core.recorded
def scale_by_learning_rate(
    learning_rate: Hyper | None = None, *, flip_sign: bool = True
) -> Transform:
    r"""Multiplies the updates by the negative learning rate, at the end of most optimizers.

    .. math:: u \leftarrow -\eta\,u

    Args:
      learning_rate: With `None` it neither scales nor negates.
      flip_sign: whether to negate, as gradient descent does.

    Example:
      >>> import gradx, jax.numpy as jnp
      >>> tx = gradx.scale_by_learning_rate(lambda count: 1.0 / (1 + count))
      >>> state = tx.init(jnp.ones(1))
      >>> for _ in range(2):
      ...     updates, state = tx.update(jnp.ones(1), state)
      >>> updates
      Array([-0.5], dtype=float32)
    """
    if learning_rate is None:
        return identity()
    return _scaling("learning_rate", learning_rate, _descend if flip_sign else _ascend)


def descend(learning_rate: Hyper) -> Transform:
    """`scale_by_learning_rate` where a learning rate is required: `None` would ascend."""
    if learning_rate is None:
        raise ValueError(f"{core.where()}: learning_rate must be given, got None.")
    return scale_by_learning_rate(learning_rate)


@core.recorded
def scale_by_schedule(step_size_fn: Schedule) -> Transform:
    r"""Multiplies the updates by the value of a schedule.

    .. math:: u \leftarrow c(t)\,u, \qquad t = 0, 1, 2, \ldots

    Args:
      step_size_fn: count to number; the count is 0 in the first update.

    Example:
      >>> import gradx, jax.numpy as jnp
      >>> tx = gradx.scale_by_schedule(lambda count: -0.1 * 0.5**count)
      >>> tx.update(jnp.ones(1), tx.init(jnp.ones(1)))[0]
      Array([-0.1], dtype=float32)
    """
    return _scaling("step_size", step_size_fn, _scale)


def _scaling(name: str, number: Hyper, rule: Any) -> Transform:
    state = ScaleByScheduleState if sources.is_scheduled(number) else optax.EmptyState
    return leafwise(rule, state=state, hypers={name: number})


def _scale(g: Array, s: LeafState, p: None, h: Numbers) -> tuple[Array, LeafState]:
    return h.step_size * g, s


def _descend(g: Array, s: LeafState, p: None, h: Numbers) -> tuple[Array, LeafState]:
    return -h.learning_rate * g, s


def _ascend(g: Array, s: LeafState, p: None, h: Numbers) -> tuple[Array, LeafState]:
    return h.learning_rate * g, s
