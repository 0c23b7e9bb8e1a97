r"""Schedules: numbers as functions of the step count.

A schedule is any function `count -> value`. Wherever gradx takes a number it takes a schedule, and
**a schedule sees count 0 for the first update**, so a warmup from 0 makes the first update zero.

The schedules of gradx take Python numbers and arrays of counts of any shape (a count below 0 is 0),
and return JAX's default float type, float32 unless x64 is enabled. Numbers such as `init_value` may
be traced; numbers of steps must be known when the schedule is made. Here are single curves.
`piecewise` has curves through given points, `sequences` joins several schedules.
"""

from __future__ import annotations

import math
from typing import Annotated, Any

import jax.numpy as jnp

from gradx import core
from gradx.core.meaning import Number
from gradx.core.ranges import ANY, Scalar, as_float
from gradx.numbers.counting import (
    Length,
    as_count,
    beginning,
    duration,
    is_beyond,
    odd,
    power_of,
    shares,
    since,
)
from gradx.numbers.sources import Array, Schedule
from gradx.schedules.schedule_fn import ScheduleFn, Steps

__all__ = [
    "constant_schedule",
    "cosine_decay_schedule",
    "exponential_decay",
    "half_life_schedule",
    "linear_schedule",
    "polynomial_schedule",
]


# ---------------------------------------------------------------- curves


def level(value: Scalar) -> Schedule:
    return lambda count: jnp.broadcast_to(as_float(value), jnp.shape(count))


def level_for_ever(name: str, value: Scalar, reason: str) -> Schedule:
    """A constant with a warning, as in Optax, for numbers that make no curve."""
    odd(f"{reason}, so the schedule is constant at {name}")
    return level(value)


def between(init: Any, end: Any, left: Array, done: Array) -> Array:
    """`init * left + end * done` for two weights that sum to 1, by way of the smaller one.

    So a value near 0 is a product with a small weight, not a difference of large numbers. Both ends
    are exact, and a constant stays constant.
    """
    return jnp.where(left > done, init + (end - init) * done, end + (init - end) * left)


def ramp(init: Scalar, end: Scalar, power: Scalar, length: Length, begin: Length = 0) -> Schedule:
    """From `init` to `end` along a power of the share of the steps that is left."""
    return lambda count: between(init, end, *to_power(*shares(count, length, begin), power))


def cosine(init: Scalar, end: Scalar, length: Length, exponent: Scalar) -> Schedule:
    """From `init` to `end` along a power of half a cosine wave."""
    return lambda count: between(init, end, *to_power(*wave(*shares(count, length)), exponent))


def wave(left: Array, done: Array) -> tuple[Array, Array]:
    """The weights of half a cosine wave: the squares of a sine that is exact where it is small."""
    return jnp.sin(jnp.pi / 2 * left) ** 2, jnp.sin(jnp.pi / 2 * done) ** 2


def to_power(left: Array, done: Array, power: Scalar) -> tuple[Array, Array]:
    """The weights `left**power` and 1 minus it, the second where it is the smaller one."""
    if isinstance(power, int | float) and power == 1:
        return left, done
    logarithm = jnp.where(done < 0.5, jnp.log1p(-done), jnp.log(jnp.where(left > 0, left, 1.0)))
    return left**power, -jnp.expm1(power * logarithm)


def exponential(
    init: Scalar, rate: Scalar, length: Length, begin: Length, staircase: bool, end: Scalar | None
) -> Schedule:
    """`init` times a power of the rate, bounded by `end`."""

    def value(count: Any) -> Array:
        done = since(as_count(count), begin)
        if not staircase:
            periods = as_float(done) / float(length)
        elif is_beyond(length, done):
            periods = jnp.zeros_like(done)
        elif isinstance(length, float):
            periods = as_float(done) // length
        else:  # in integers: the floor of a quotient of floats may come one step late
            periods = done // length
        decayed = init * rate ** as_float(periods)
        if end is None:
            return decayed
        return jnp.where(rate < 1.0, jnp.maximum(decayed, end), jnp.minimum(decayed, end))

    return value


def _log(value: Scalar) -> Any:
    # float32 loses half a thousandth of the logarithm of 0.9999.
    return math.log(value) if isinstance(value, float) else jnp.log(value)


def half_life(init: Scalar, end: Scalar, length: Length, begin: Length) -> Schedule:
    """From `init` to `end`, so that the half-life ln(1/2) / ln(value) makes a straight line."""

    def value(count: Any) -> Array:
        left, done = shares(count, length, begin)
        return jnp.exp(1 / (left / _log(init) + done / _log(end)))

    return value


# ---------------------------------------------------------------- the schedules


@core.recorded
def constant_schedule(value: Annotated[Scalar, Number(ANY, "c", "the value")]) -> ScheduleFn:
    r"""The same number for every count.

    .. math:: s(t) = c

    Args:
      value: any finite number.

    Example:
      >>> import gradx
      >>> gradx.constant_schedule(0.5)(1000)
      Array(0.5, dtype=float32)

    Deviation from Optax: it returns an array of the count's shape; Optax returns `value` itself.
    """
    return ScheduleFn(level(value))


@core.recorded
def linear_schedule(
    init_value: Scalar, end_value: Scalar, transition_steps: int, transition_begin: int = 0
) -> ScheduleFn:
    r"""A straight line from one number to another, which is then kept.

    .. math:: s(t) = I + (E - I)\,\min\left(1, \frac{\max(0, t - B)}{T}\right)

    Args:
      end_value: the value from count \(B + T\) on.
      transition_steps: how many steps the line takes, \(T\), whole or not; for 0 or less the
        schedule is constant at `init_value`, with a warning.
      transition_begin: how many steps stay at `init_value` first, \(B\); 0 by default, and for less
        than 0, with a warning.

    Example:
      >>> import gradx
      >>> schedule = gradx.linear_schedule(1.0, 0.0, transition_steps=4, transition_begin=1)
      >>> [float(schedule(t)) for t in (0, 1, 2, 5, 9)]
      [1.0, 1.0, 0.75, 0.0, 0.0]
    """
    return ScheduleFn(
        _checked_ramp(init_value, end_value, 1, transition_steps, transition_begin),
        borders=_phase(transition_steps, transition_begin),
    )


def _phase(length: Steps, begin: Steps) -> tuple[Steps, ...]:
    """Where a curve begins and ends; a constant has no borders."""
    begin = max(begin, 0)
    return (begin, begin + length) if length > 0 else ()


def _checked_ramp(init: Any, end: Any, power: Any, steps: Any, begin: Any) -> Schedule:
    power = power_of("power", power)
    length, begin = duration("transition_steps", steps), beginning("transition_begin", begin)
    if length <= 0:
        return level_for_ever("init_value", init, f"transition_steps is {length}")
    return ramp(init, end, power, length, begin)


@core.recorded
def half_life_schedule(
    init_value: Annotated[Scalar, Number("(0, 1)")],
    end_value: Annotated[Scalar, Number("(0, 1)")],
    transition_steps: int,
    transition_begin: int = 0,
) -> ScheduleFn:
    r"""The decay of an average whose half-life grows, or shrinks, along a straight line.

    .. math:: \frac{1}{\ln s(t)} = \frac{1 - x}{\ln I} + \frac{x}{\ln E}, \qquad
              x = \min\left(1, \frac{\max(0, t - B)}{T}\right)

    If the decay itself followed a straight line, the half-life would stay short for nearly all of
    the steps: half way from 0.9 to 0.9999 it would be 14 steps; here it is 3,469.

    Args:
      end_value: the value from count \(B + T\) on.
      transition_steps: how many steps the change takes, \(T\) in [1, inf).
      transition_begin: how many steps stay at `init_value` first, \(B\) in [0, inf); 0 by default.

    Example:
      >>> import gradx
      >>> schedule = gradx.half_life_schedule(0.5, 0.5**0.25, transition_steps=3)
      >>> [round(float(schedule(t)), 4) for t in (0, 1, 2, 3, 9)]  # half-lives of 1, 2, 3, 4
      [0.5, 0.7071, 0.7937, 0.8409, 0.8409]

    Reference: Pagliardini et al., *The AdEMAMix optimizer: better, faster, older*,
    https://arxiv.org/abs/2409.03137, appendix A.1, for \(\beta_3\).
    """
    return ScheduleFn(
        half_life(
            init_value,
            end_value,
            duration("transition_steps", transition_steps, 1),
            duration("transition_begin", transition_begin, 0),
        ),
        borders=_phase(transition_steps, transition_begin),
    )


@core.recorded
def polynomial_schedule(
    init_value: Scalar,
    end_value: Scalar,
    power: Scalar,
    transition_steps: int,
    transition_begin: int = 0,
) -> ScheduleFn:
    r"""From one number to another along a power of the time that is left.

    .. math:: s(t) = E + (I - E)\left(1 - \min\left(1, \frac{\max(0, t - B)}{T}\right)\right)^p

    Args:
      end_value: the value from count \(B + T\) on.
      power: the exponent, \(p\) in [0, inf); 1 is a straight line, above 1 the change slows down,
        and with 0 it never begins.
      transition_steps: how many steps the change takes, \(T\), whole or not; for 0 or less the
        schedule is constant at `init_value`, with a warning.
      transition_begin: how many steps stay at `init_value` first, \(B\); 0 by default, and for less
        than 0, with a warning.

    Example:
      >>> import gradx
      >>> schedule = gradx.polynomial_schedule(1.0, 0.0, power=2, transition_steps=4)
      >>> [float(schedule(t)) for t in (0, 2, 4, 9)]
      [1.0, 0.25, 0.0, 0.0]
    """
    return ScheduleFn(
        _checked_ramp(init_value, end_value, power, transition_steps, transition_begin),
        borders=_phase(transition_steps, transition_begin),
    )


@core.recorded
def cosine_decay_schedule(
    init_value: Scalar,
    decay_steps: int,
    alpha: Annotated[Scalar, Number(ANY)] = 0.0,
    exponent: Scalar = 1.0,
) -> ScheduleFn:
    r"""Cosine decay: half a cosine wave, from a number down to a share of it.

    .. math::
        s(t) = I\left[\alpha + (1 - \alpha)
        \left(\frac{1 + \cos(\pi \min(t, T) / T)}{2}\right)^p\right]

    Args:
      decay_steps: how many steps the decay takes, \(T\) in [1, inf), whole or not.
      alpha: the share of `init_value` at the end.
      exponent: the power of the wave, \(p\) in [0, inf); 1 by default, and 0 is constant at
        `init_value`.

    Example:
      >>> import gradx
      >>> schedule = gradx.cosine_decay_schedule(1.0, decay_steps=10, alpha=0.1)
      >>> print([f"{schedule(t):.2f}" for t in (0, 5, 10, 99)])
      ['1.00', '0.55', '0.10', '0.10']

    Reference: Loshchilov and Hutter, *SGDR: stochastic gradient descent with warm restarts*,
    https://arxiv.org/abs/1608.03983, 2017, eq. 5.
    """
    return ScheduleFn(
        cosine(
            init_value,
            init_value * alpha,
            duration("decay_steps", decay_steps, 1),
            power_of("exponent", exponent),
        ),
        borders=(decay_steps,),
    )


@core.recorded
def exponential_decay(
    init_value: Scalar,
    transition_steps: int,
    decay_rate: Annotated[Scalar, Number("[0, inf)", "r")],
    transition_begin: int = 0,
    staircase: bool = False,
    end_value: Scalar | None = None,
) -> ScheduleFn:
    r"""Exponential decay, or growth: a number times a power of the rate.

    .. math:: s(t) = I\,r^{\max(0, t - B) / T}

    Args:
      transition_steps: how many steps multiply the value by \(r\) once, \(T\), whole or not; for 0
        or less the schedule is constant at `init_value`, with a warning.
      decay_rate: the factor of \(T\) steps. Below 1 the value decays, above 1 it grows; for 0 the
        schedule is constant at `init_value`, with a warning.
      transition_begin: how many steps stay at `init_value` first, \(B\); 0 by default, and for less
        than 0, with a warning.
      staircase: whether the exponent is rounded down, so that the value changes every \(T\)
        steps only.
      end_value: a bound for the value: the least one for a rate below 1, the greatest one
        otherwise. By default there is none. If `init_value` is beyond it, the schedule is constant
        at `end_value`, with a warning.

    Example:
      >>> import gradx
      >>> schedule = gradx.exponential_decay(1.0, 10, 0.5, end_value=0.2)
      >>> [round(float(schedule(t)), 3) for t in (0, 5, 10, 20, 30)]
      [1.0, 0.707, 0.5, 0.25, 0.2]

    Deviation from Optax: the stairs count in integers. Optax, jitted for CPU, comes one step late
    for some `transition_steps` (41, 47, 55, …).
    """
    return ScheduleFn(
        checked_exponential(
            "init_value",
            init_value,
            transition_steps,
            decay_rate,
            transition_begin,
            staircase,
            end_value,
        ),
        borders=(max(transition_begin, 0),),
    )


def checked_exponential(
    name: str, init: Any, length: Any, rate: Any, begin: Any, staircase: bool, end: Any
) -> Schedule:
    """The curve of `exponential_decay`; `name` is what its first number is called."""
    length, begin = duration("transition_steps", length), beginning("transition_begin", begin)
    if length <= 0:
        return level_for_ever(name, init, f"transition_steps is {length}")
    if isinstance(rate, float) and rate == 0.0:
        return level_for_ever(name, init, "decay_rate is 0")
    constants = isinstance(init, float) and isinstance(rate, float) and isinstance(end, float)
    if constants and (end > init if rate < 1 else end < init):
        odd(
            f"{name} {init} is beyond end_value {end} from the first count on, with "
            f"decay_rate {rate}, so the schedule is constant at end_value"
        )
    return exponential(init, rate, length, begin, staircase, end)
