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
        result = schedules[0](count)
        for boundary, schedule in zip(boundaries, schedules[1:], strict=True):
            if is_beyond(boundary, count):
                break
            result = jnp.where(is_before(count, boundary), result, schedule(since(count, boundary)))
        return as_float(result)

    return value


def warmed_up(init: Scalar, peak: Scalar, length: Length, after: Schedule) -> Schedule:
    """A straight line to a peak, where another schedule begins; without steps that one alone."""
    return joined([ramp(init, peak, 1, length), after], [length]) if length else after


@core.recorded
def join_schedules(schedules: Sequence[Schedule], boundaries: Sequence[int | Array]) -> ScheduleFn:
    r"""Joins schedules one after the other; each counts from where it begins.

    .. math:: s(t) = s_k(t - b_k), \quad b_k \le t < b_{k+1}, \quad b_0 = 0

    Args:
      schedules: any functions of the count, \(s_0, \ldots, s_n\). All are evaluated for every
        count, and one whose turn has not come sees the count 0.
      boundaries: the steps at which the next one begins, \(b_1 \le \ldots \le b_n\), whole or not.
        A schedule with one below 0 has begun before. They may be traced.

    Raises:
      ValueError: too few or too many boundaries (Optax ignores those that are too many), or
        descending ones.

    Example:
      >>> import gradx
      >>> schedule = gradx.join_schedules(
      ...     [gradx.linear_schedule(0.0, 1.0, 4), lambda count: 1 / (1 + count)], [4]
      ... )
      >>> [float(schedule(t)) for t in (0, 2, 4, 5, 7)]
      [0.0, 0.5, 1.0, 0.5, 0.25]
    """
    for name, sequence in (("schedules", schedules), ("boundaries", boundaries)):
        _check_sequence(name, sequence, "one or more functions" if name == "schedules" else "steps")
    for i, schedule in enumerate(schedules):
        if not callable(schedule) or isinstance(schedule, Source):
            raise ValueError(
                f"{core.where()}: schedules[{i}] must be a function of the count, got "
                f"{core.show(schedule)}; for a number there is constant_schedule(…)."
            )
    if not len(schedules) or len(boundaries) != len(schedules) - 1:
        raise ValueError(
            f"{core.where()}: boundaries must be one fewer than schedules, and there must be at "
            f"least one schedule; got {len(boundaries)} boundaries and {len(schedules)} schedules."
        )
    at = [
        b if isinstance(b, jax.core.Tracer) else duration(f"boundaries[{i}]", b)
        for i, b in enumerate(boundaries)
    ]
    constants = [b for b in at if isinstance(b, int | float)]
    if any(a > b for a, b in pairwise(constants)):
        raise ValueError(f"{core.where()}: boundaries must not descend, got {constants}.")
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


def _check_sequence(name: str, sequence: Any, what: str) -> None:
    # An iterator could be read only once, but repr and configs read it again.
    if not isinstance(sequence, list | tuple) and getattr(sequence, "ndim", 0) != 1:
        raise ValueError(
            f"{core.where()}: {name} must be a list of {what}, got {core.show(sequence)}."
        )


@core.recorded
def warmup_constant_schedule(
    init_value: Scalar, peak_value: Scalar, warmup_steps: int
) -> ScheduleFn:
    r"""Linear warmup to a peak, which is then kept.

    .. math:: s(t) = I + (P - I) \min(1, t / W)

    Args:
      warmup_steps: how many steps the warmup takes, \(W\) in [0, inf), whole or not; 0 is no
        warmup: \(s(t) = P\).

    Example:
      >>> import gradx
      >>> schedule = gradx.warmup_constant_schedule(0.0, 1.0, warmup_steps=4)
      >>> [float(schedule(t)) for t in (0, 1, 4, 99)]
      [0.0, 0.25, 1.0, 1.0]

    Deviation from Optax: with `warmup_steps` 0, Optax keeps `init_value` for ever.
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
    r"""Linear warmup to a peak, then cosine decay.

    .. math::
        s(t) = \begin{cases}
        I + (P - I)\, t / W & t < W \\
        E + (P - E) \left(\frac{1 + \cos(\pi \min(1, (t - W) / (T - W)))}{2}\right)^p & t \ge W
        \end{cases}

    Args:
      peak_value: the value at count \(W\). With 0 the schedule stays 0, with a warning if
        `end_value` is another number.
      warmup_steps: how many steps the warmup takes, \(W\) in [0, inf), whole or not; 0 is no
        warmup.
      decay_steps: how many steps both phases take together, \(T\) in (W, inf).
      end_value: the value from count \(T\) on.
      exponent: the power of the wave, \(p\) in [0, inf); 1 by default, and 0 is constant at the
        peak.

    Example:
      >>> import gradx
      >>> schedule = gradx.warmup_cosine_decay_schedule(0.0, 1.0, 10, 110, end_value=0.1)
      >>> print([f"{schedule(t):.2f}" for t in (0, 5, 10, 60, 110, 999)])
      ['0.00', '0.50', '1.00', '0.55', '0.10', '0.10']

    Reference: Goyal et al., *Accurate, large minibatch SGD*, https://arxiv.org/abs/1706.02677,
    2017, for the warmup; that of `cosine_decay_schedule` for the decay.
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
    r"""Linear warmup to a peak, then `exponential_decay` from there.

    .. math::
        s(t) = \begin{cases}
        I + (P - I)\, t / W & t < W \\
        P\, r^{\max(0, t - W - B) / T} & t \ge W
        \end{cases}

    Args:
      peak_value: the value at count \(W\).
      warmup_steps: how many steps the warmup takes, \(W\) in [0, inf), whole or not; 0 is no
        warmup.
      transition_steps: how many steps multiply the value by \(r\) once, \(T\), whole or not; see
        `exponential_decay` for 0 or less, here and below.
      decay_rate: the factor of \(T\) steps.
      transition_begin: how many steps stay at the peak, \(B\); 0 by default.
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
    r"""Warm restarts (SGDR): one `warmup_cosine_decay_schedule` after the other.

    .. math:: s(t) = s_k(t - b_k), \quad b_k \le t < b_{k+1} = b_k + T_k, \quad b_0 = 0

    Args:
      cosine_kwargs: the arguments of `warmup_cosine_decay_schedule` for each cycle, as dicts; their
        ``decay_steps`` is the length \(T_k\) of the cycle, in steps. The end value of the last
        cycle is kept.

    Example:
      >>> import gradx
      >>> cycle = dict(init_value=0.0, peak_value=1.0, warmup_steps=2)
      >>> schedule = gradx.sgdr_schedule([dict(cycle, decay_steps=10), dict(cycle, decay_steps=20)])
      >>> print([f"{schedule(t):.2f}" for t in (0, 2, 6, 10, 12, 21, 30)])
      ['0.00', '1.00', '0.50', '0.00', '1.00', '0.50', '0.00']

    Reference: Loshchilov and Hutter, *SGDR: stochastic gradient descent with warm restarts*,
    https://arxiv.org/abs/1608.03983, 2017.
    Deviation from Optax: the cycles must be a list or tuple; Optax takes any iterable.
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
