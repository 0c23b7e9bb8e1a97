"""Schedules without an end: cycles, restarts, stairs, and roots of the count."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, TypeAlias

import jax
import jax.numpy as jnp

from gradx import core
from gradx.core.meaning import Number, Option
from gradx.core.ranges import Scalar, as_float, check_number
from gradx.numbers.counting import as_count, duration, power_of, since, steps
from gradx.numbers.sources import Array, Fixed, Schedule
from gradx.schedules.curves import between, cosine, exponential
from gradx.schedules.schedule_fn import ScheduleFn
from gradx.schedules.sequences import joined, warmed_up

__all__ = [
    "cosine_restarts_schedule",
    "cyclic_schedule",
    "inverse_sqrt_schedule",
    "step_schedule",
]

Mode: TypeAlias = Annotated[
    Literal["triangular", "triangular2", "exp_range"],
    Option("how the cycles shrink: not at all, by half each, or by `decay_rate` each step"),
]


@core.recorded
def cyclic_schedule(
    init_value: Scalar,
    peak_value: Scalar,
    transition_steps: int,
    mode: Mode = "triangular",
    decay_rate: Annotated[Scalar, Number("(0, 1]", r"\gamma")] = 1.0,
) -> ScheduleFn:
    r"""Up to a peak and down again along straight lines, over and over.

    .. math::
        s(t) = I + (P - I)\, h \left(1 - \left|\frac{t \bmod 2S}{S} - 1\right|\right)

    with \(h = 1\) for ``"triangular"``, \(2^{-\lfloor t / 2S \rfloor}\) for ``"triangular2"`` and
    \(\gamma^t\) for ``"exp_range"``.

    Args:
      transition_steps: \(S\), the steps from the lowest to the highest value, a whole number.
      decay_rate: how much of the height is kept each step; only for ``"exp_range"``.

    Raises:
      ValueError: `decay_rate` is given for another mode.

    Example:
      >>> import gradx
      >>> schedule = gradx.cyclic_schedule(0.0, 1.0, 2, mode="triangular2")
      >>> [float(schedule(t)) for t in (0, 1, 2, 3, 4, 6, 8)]
      [0.0, 0.5, 1.0, 0.5, 0.0, 0.5, 0.0]

    Smith, `Cyclical learning rates for training neural networks
    <https://arxiv.org/abs/1506.01186>`_, 2015.
    """
    half = steps("transition_steps", transition_steps, 1)
    check_number(half, "[1, 1e9]", "transition_steps", core.where())  # twice that is an int32
    traced = isinstance(decay_rate, jax.core.Tracer)
    if mode != "exp_range" and (traced or float(decay_rate) != 1.0):
        raise ValueError(f"{core.where()}: decay_rate is for mode='exp_range', got mode={mode!r}.")

    def value(count: Any) -> Array:
        done = since(as_count(count), 0)
        cycle, at = done // (2 * half), done % (2 * half)
        up = as_float(jnp.minimum(at, 2 * half - at)) / half
        height = {
            "triangular": lambda: jnp.ones(()),
            "triangular2": lambda: 0.5 ** as_float(cycle),
            "exp_range": lambda: decay_rate ** as_float(done),
        }[mode]()
        share = height * up
        return between(init_value, peak_value, 1 - share, share)

    return ScheduleFn(value, borders=(half, 2 * half))


@core.recorded
def cosine_restarts_schedule(
    peak_value: Scalar,
    decay_steps: int,
    cycles: int,
    end_value: Scalar = 0.0,
    length_factor: Annotated[Fixed, Number("[1, inf)", "m")] = 1.0,
    peak_factor: Annotated[float, Number("(0, inf)", "q")] = 1.0,
) -> ScheduleFn:
    r"""Half a cosine wave down, and again from a lower peak.

    .. math::
        s(t) = E + (q^i P - E) \frac{1 + \cos(\pi (t - b_i) / T_i)}{2}, \qquad
        T_i = m^i T, \qquad b_{i+1} = b_i + T_i

    Args:
      peak_value: the first peak.
      decay_steps: \(T\) in [1, inf), the steps of the first cycle.
      cycles: how many there are, from 1 on. After the last one the value stays.
      length_factor: how much longer each cycle is than the one before it, rounded to whole steps.
      peak_factor: how much of the peak is left after each cycle.

    Example:
      >>> import gradx
      >>> schedule = gradx.cosine_restarts_schedule(1.0, 4, cycles=2, peak_factor=0.5)
      >>> print([f"{schedule(t):.2f}" for t in (0, 2, 4, 6, 8, 9)])
      ['1.00', '0.50', '0.50', '0.25', '0.00', '0.00']

    Loshchilov and Hutter, `SGDR: Stochastic Gradient Descent with Warm Restarts
    <https://arxiv.org/abs/1608.03983>`_, 2017; the factor of the peak is a common addition.
    """
    first = duration("decay_steps", decay_steps, 1)
    count_of_cycles = steps("cycles", cycles, 1)
    if math.log(first) + count_of_cycles * math.log(length_factor) > math.log(2**62):
        raise ValueError(
            f"{core.where()}: {count_of_cycles} cycles, each {length_factor} times as long as the "
            f"one before, have more steps than can be counted. Give fewer cycles."
        )
    lengths = [first * length_factor**i for i in range(count_of_cycles)]
    lengths = [length if length == first else round(length) for length in lengths]
    borders = [sum(lengths[: i + 1]) for i in range(count_of_cycles)]
    waves: list[Schedule] = [
        cosine(peak_value * peak_factor**i, end_value, length, 1)
        for i, length in enumerate(lengths)
    ]
    return ScheduleFn(joined(waves, borders[:-1]), borders=borders)


@core.recorded
def step_schedule(
    init_value: Scalar,
    step_size: int,
    decay_rate: Annotated[Scalar, Number("[0, inf)", r"\gamma")] = 0.1,
) -> ScheduleFn:
    r"""Multiplies a number by a factor every so many steps.

    .. math:: s(t) = I\,\gamma^{\lfloor t / n \rfloor}

    Args:
      step_size: \(n\) in [1, inf), the steps from one fall to the next.
      decay_rate: the factor.

    Example:
      >>> import gradx
      >>> schedule = gradx.step_schedule(1.0, step_size=30, decay_rate=0.5)
      >>> [float(schedule(t)) for t in (0, 29, 30, 60)]
      [1.0, 1.0, 0.5, 0.25]

    It is PyTorch's ``StepLR``, and `exponential_decay` with ``staircase=True``.
    """
    length = duration("step_size", step_size, 1)
    made = exponential(init_value, decay_rate, length, 0, staircase=True, end=None)
    return ScheduleFn(made, borders=(length, 2 * length))


@core.recorded
def inverse_sqrt_schedule(
    init_value: Scalar,
    peak_value: Scalar,
    warmup_steps: int,
    exponent: Scalar = 0.5,
) -> ScheduleFn:
    r"""A straight line to a peak, then falling with the root of the count, without an end.

    .. math::
        s(t) = \begin{cases} I + (P - I)\, t / W & t < W \\ P\,(W / t)^a & t \ge W \end{cases}

    Args:
      warmup_steps: \(W\) in [1, inf), steps, whole or not.
      exponent: \(a\) in [0, inf), 0.5 by default. About 0.5 suits a run of unknown length, too, if
        it ends with a cool-down.

    Example:
      >>> import gradx
      >>> schedule = gradx.inverse_sqrt_schedule(0.0, 1.0, warmup_steps=100)
      >>> [float(schedule(t)) for t in (0, 50, 100, 400, 1600)]
      [0.0, 0.5, 1.0, 0.5, 0.25]

    Vaswani et al., `Attention is all you need <https://arxiv.org/abs/1706.03762>`_, 2017, whose
    peak is \((d W)^{-1/2}\) for the width \(d\) of the model; Shen et al., `Power scheduler
    <https://arxiv.org/abs/2408.13359>`_, 2024, for other exponents.
    """
    warmup = duration("warmup_steps", warmup_steps, 1)
    power = power_of("exponent", exponent)

    def rest(count: Any) -> Array:
        return peak_value * (warmup / (as_float(since(as_count(count), 0)) + warmup)) ** power

    return ScheduleFn(warmed_up(init_value, peak_value, warmup, rest), borders=(warmup,))
