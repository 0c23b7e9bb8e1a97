"""Schedules one after the other: joins, warmups, warm restarts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np

from gradx import core
from gradx.core.meaning import Number
from gradx.core.ranges import Scalar, as_float
from gradx.numbers.counting import Length, duration, is_before, is_beyond, odd, power_of, since
from gradx.numbers.sources import Array, Schedule, Source
from gradx.schedules.curves import checked_exponential, cosine, level, ramp
from gradx.schedules.schedule_fn import ScheduleFn, borders_of

__all__ = [
    "join_schedules",
    "sgdr_schedule",
    "warmup_constant_schedule",
    "warmup_cosine_decay_schedule",
    "warmup_exponential_decay_schedule",
]


def joined(schedules: Sequence[Schedule], boundaries: Sequence[Any]) -> Schedule:
    """Each schedule from its boundary on, counting from there; the first counts from 0."""

    def value(count: Any) -> Array:
        if isinstance(count, np.integer):
            count = int(count)
        made = schedules[0](count)
        for boundary, schedule in zip(boundaries, schedules[1:], strict=True):
            if is_beyond(boundary, count):
                break
            made = jnp.where(is_before(count, boundary), made, schedule(since(count, boundary)))
        return as_float(made)

    return value


def warmed_up(init: Scalar, peak: Scalar, length: Length, rest: Schedule) -> Schedule:
    """A straight line to where the rest begins; no steps of warmup leave the rest alone."""
    return joined([ramp(init, peak, 1, length), rest], [length]) if length else rest


@core.recorded
def join_schedules(schedules: Sequence[Schedule], boundaries: Sequence[int | Array]) -> ScheduleFn:
    r"""Schedules one after the other, each counting from where it begins.

    .. math:: s(t) = s_k(t - b_k), \quad b_k \le t < b_{k+1}, \quad b_0 = 0

    Args:
      schedules: \(s_0, \ldots, s_n\), any functions of the count. All are evaluated for every
        count, and one whose turn has not come sees the count 0.
      boundaries: \(b_1 \le \ldots \le b_n\), steps, whole or not. One below 0 is that of a schedule
        that has begun before. They may be traced.

    Example:
      >>> import gradx
      >>> schedule = gradx.join_schedules(
      ...     [gradx.linear_schedule(0.0, 1.0, 4), lambda count: 1 / (1 + count)], [4]
      ... )
      >>> [float(schedule(t)) for t in (0, 2, 4, 5, 7)]
      [0.0, 0.5, 1.0, 0.5, 0.25]

    Too few or many boundaries, and descending ones, are errors (Optax ignores what is too much).
    """
    for name, given in (("schedules", schedules), ("boundaries", boundaries)):
        _check_sequence(name, given, "one or more functions" if name == "schedules" else "steps")
    for i, schedule in enumerate(schedules):
        if not callable(schedule) or isinstance(schedule, Source):
            raise ValueError(
                f"{core.where()}: schedules[{i}] must be a function of the count, got "
                f"{core.show(schedule)}; for a number there is constant_schedule(…)."
            )
    if not len(schedules) or len(boundaries) != len(schedules) - 1:
        raise ValueError(
            f"{core.where()}: boundaries must be one fewer than schedules, of which there is at "
            f"least one; got {len(boundaries)} boundaries and {len(schedules)} schedules."
        )
    at = [
        b if isinstance(b, jax.core.Tracer) else duration(f"boundaries[{i}]", b)
        for i, b in enumerate(boundaries)
    ]
    known = [b for b in at if isinstance(b, int | float)]
    if any(a > b for a, b in pairwise(known)):
        raise ValueError(f"{core.where()}: boundaries must not descend, got {known}.")
    return ScheduleFn(joined(list(schedules), at), borders=_joined_borders(schedules, at))


def _joined_borders(schedules: Sequence[Schedule], begins: Sequence[Any]) -> list[Length]:
    """Where one schedule follows another, and the borders that each of them reaches before that."""
    begins = [0, *begins]
    if not all(isinstance(b, int | float) for b in begins):
        return []
    ends = [*begins[1:], math.inf]
    inner = [
        begin + border
        for begin, end, schedule in zip(begins, ends, schedules, strict=True)
        for border in borders_of(schedule)
        if begin + border < end
    ]
    return sorted({*begins, *inner})


def _check_sequence(name: str, given: Any, what: str) -> None:
    # An iterator could be read only once, but repr and configs read it again.
    if not isinstance(given, list | tuple) and getattr(given, "ndim", 0) != 1:
        raise ValueError(
            f"{core.where()}: {name} must be a list of {what}, got {core.show(given)}."
        )


@core.recorded
def warmup_constant_schedule(
    init_value: Scalar, peak_value: Scalar, warmup_steps: int
) -> ScheduleFn:
    r"""A straight line to a peak, which is kept.

    .. math:: s(t) = I + (P - I) \min(1, t / W)

    Args:
      warmup_steps: \(W\) in [0, inf), steps, whole or not; 0 is no warmup: \(s(t) = P\).

    Example:
      >>> import gradx
      >>> schedule = gradx.warmup_constant_schedule(0.0, 1.0, warmup_steps=4)
      >>> [float(schedule(t)) for t in (0, 1, 4, 99)]
      [0.0, 0.25, 1.0, 1.0]

    With `warmup_steps` 0, Optax keeps `init_value` for ever.
    """
    warmup = duration("warmup_steps", warmup_steps, 0)
    made = warmed_up(init_value, peak_value, warmup, level(peak_value))
    return ScheduleFn(made, borders=(warmup,))


@core.recorded
def warmup_cosine_decay_schedule(
    init_value: Scalar,
    peak_value: Scalar,
    warmup_steps: int,
    decay_steps: int,
    end_value: Scalar = 0.0,
    exponent: Scalar = 1.0,
) -> ScheduleFn:
    r"""A straight line to a peak, then half a cosine wave down.

    .. math::
        s(t) = \begin{cases}
        I + (P - I)\, t / W & t < W \\
        E + (P - E) \left(\frac{1 + \cos(\pi \min(1, (t - W) / (T - W)))}{2}\right)^p & t \ge W
        \end{cases}

    Args:
      peak_value: the value at count \(W\). 0 is a schedule that is off:
        it stays 0, with a warning if there is another `end_value`.
      warmup_steps: \(W\) in [0, inf), steps, whole or not; 0 is no warmup.
      decay_steps: \(T\) in (W, inf), the steps of both phases together.
      end_value: the value from count \(T\) on.
      exponent: \(p\) in [0, inf); 1 by default, and 0 is constant at the peak.

    Example:
      >>> import gradx
      >>> schedule = gradx.warmup_cosine_decay_schedule(0.0, 1.0, 10, 110, end_value=0.1)
      >>> print([f"{schedule(t):.2f}" for t in (0, 5, 10, 60, 110, 999)])
      ['0.00', '0.50', '1.00', '0.55', '0.10', '0.10']

    Goyal et al., `Accurate, Large Minibatch SGD <https://arxiv.org/abs/1706.02677>`_, 2017, for
    the warmup; `cosine_decay_schedule` for the rest.
    """
    init, peak = init_value, peak_value
    warmup = duration("warmup_steps", warmup_steps, 0)
    total = duration("decay_steps", decay_steps, 1)
    if total <= warmup:
        raise ValueError(
            f"{core.where()}: decay_steps must be more than warmup_steps, which it includes; got "
            f"decay_steps {total} and warmup_steps {warmup}."
        )
    end, power = end_value, power_of("exponent", exponent)
    if isinstance(peak, float) and peak == 0.0:
        if end != 0.0:
            odd(f"peak_value is 0, so the schedule stays there, and end_value {end} is ignored")
        end = 0.0
    made = warmed_up(init, peak, warmup, cosine(peak, end, total - warmup, power))
    return ScheduleFn(made, borders=(warmup, total))


@core.recorded
def warmup_exponential_decay_schedule(
    init_value: Scalar,
    peak_value: Scalar,
    warmup_steps: int,
    transition_steps: int,
    decay_rate: Annotated[Scalar, Number("[0, inf)", "r")],
    transition_begin: int = 0,
    staircase: bool = False,
    end_value: Scalar | None = None,
) -> ScheduleFn:
    r"""A straight line to a peak, then `exponential_decay` from there.

    .. math::
        s(t) = \begin{cases}
        I + (P - I)\, t / W & t < W \\
        P\, r^{\max(0, t - W - B) / T} & t \ge W
        \end{cases}

    Args:
      peak_value: the value at count \(W\).
      warmup_steps: \(W\) in [0, inf), steps, whole or not; 0 is no warmup.
      transition_steps: \(T\), the steps, whole or not, in which the value is multiplied by \(r\)
        once; see `exponential_decay` for 0 or less, here and below.
      decay_rate: the factor of so many steps.
      transition_begin: \(B\), steps at the peak; 0 by default.
      staircase: whether the exponent is rounded down.
      end_value: a bound for the decaying value: the least one for a rate below 1, the greatest
        one otherwise. By default there is none.

    Example:
      >>> import gradx
      >>> schedule = gradx.warmup_exponential_decay_schedule(0.0, 1.0, 4, 10, 0.5, staircase=True)
      >>> [float(schedule(t)) for t in (0, 2, 4, 13, 14, 24)]
      [0.0, 0.5, 1.0, 1.0, 0.5, 0.25]
    """
    init, peak = init_value, peak_value
    warmup = duration("warmup_steps", warmup_steps, 0)
    decay = checked_exponential(
        "peak_value",
        peak_value,
        transition_steps,
        decay_rate,
        transition_begin,
        staircase,
        end_value,
    )
    begin = warmup + max(transition_begin, 0)
    return ScheduleFn(warmed_up(init, peak, warmup, decay), borders=(warmup, begin))


@core.recorded
def sgdr_schedule(cosine_kwargs: Sequence[Mapping[str, Any]]) -> ScheduleFn:
    r"""Warm restarts: one `warmup_cosine_decay_schedule` after the other.

    .. math:: s(t) = s_k(t - b_k), \quad b_k \le t < b_{k+1} = b_k + T_k, \quad b_0 = 0

    Args:
      cosine_kwargs: for each cycle the arguments of `warmup_cosine_decay_schedule`, as a dict; its
        ``decay_steps`` is the length \(T_k\) of the cycle, in steps. The last cycle's end value
        is kept.

    Example:
      >>> import gradx
      >>> cycle = dict(init_value=0.0, peak_value=1.0, warmup_steps=2)
      >>> schedule = gradx.sgdr_schedule([dict(cycle, decay_steps=10), dict(cycle, decay_steps=20)])
      >>> print([f"{schedule(t):.2f}" for t in (0, 2, 6, 10, 12, 21, 30)])
      ['0.00', '1.00', '0.50', '0.00', '1.00', '0.50', '0.00']

    Loshchilov, Hutter, `SGDR: Stochastic Gradient Descent with Warm Restarts
    <https://arxiv.org/abs/1608.03983>`_, 2017.

    A list or tuple is needed, where Optax takes any iterable.
    """
    _check_sequence("cosine_kwargs", cosine_kwargs, "dicts")
    if not cosine_kwargs:
        raise ValueError(f"{core.where()}: cosine_kwargs must have at least one cycle, got [].")
    cycles: list[Schedule] = []
    begins: list[Length] = [0]
    for i, kwargs in enumerate(cosine_kwargs):
        try:
            cycles.append(warmup_cosine_decay_schedule(**kwargs))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{core.where()}: cosine_kwargs[{i}]: {error}") from error
        begins.append(begins[-1] + duration("decay_steps", kwargs["decay_steps"]))
    borders = [*_joined_borders(cycles, begins[1:-1]), begins[-1]]
    return ScheduleFn(joined(cycles, begins[1:-1]), borders=borders)
