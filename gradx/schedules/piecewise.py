"""Schedules through given points: constant between them, or interpolated; the one-cycle policy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise
from operator import mul
from typing import Annotated, Any, Literal

import jax.numpy as jnp

from gradx import core
from gradx.core.meaning import Number
from gradx.core.ranges import Scalar, as_float
from gradx.lowering.exact import share_of
from gradx.numbers.counting import Length, as_count, duration, elapsed, is_beyond, static
from gradx.numbers.hyper import constant
from gradx.numbers.sources import Array, Schedule
from gradx.schedules.curves import between, wave
from gradx.schedules.schedule_fn import ScheduleFn

__all__ = [
    "cosine_onecycle_schedule",
    "linear_onecycle_schedule",
    "piecewise_constant_schedule",
    "piecewise_interpolate_schedule",
]

# ---------------------------------------------------------------- tables of points


def counted(count: Any, starts: Sequence[Length]) -> Array:
    """The count in a type that can hold the starts: a float if one is below 0 or a fraction."""
    whole = all(isinstance(s, int) and s >= 0 for s in starts)
    return as_count(count) if whole else elapsed(count, 0)


def phase(count: Array, starts: Sequence[Length]) -> Array:
    """The index of the last of the ascending starts that the count has reached."""
    reachable = [s for s in starts[1:] if not is_beyond(s, count)]
    column = jnp.array(reachable, count.dtype).reshape(-1, *[1] * count.ndim)
    return jnp.sum(count[None] >= column, axis=0)


def stairs(values: Sequence[Scalar], starts: Sequence[Length]) -> Schedule:
    """`values[k]` from `starts[k]` on; starts ascend, but for the first, which is 0."""

    def value(count: Any) -> Array:
        return _table(values)[phase(counted(count, starts), starts)]

    return value


def polyline(values: Sequence[Scalar], starts: Sequence[Length], curve: str) -> Schedule:
    """From `values[k]` at `starts[k]` to `values[k + 1]`, and so on; constant after the last."""
    lengths = [*(float(b - a) or 1.0 for a, b in pairwise(starts)), 1.0]

    def value(count: Any) -> Array:
        count = counted(count, starts)
        k = phase(count, starts)
        # Starts that the count cannot hold are never looked up.
        begins = jnp.array([0 if is_beyond(s, count) else s for s in starts], count.dtype)
        length = _table(lengths)[k]
        done = jnp.clip(as_float(count - begins[k]), 0, length)
        weights = share_of(length - done, done, length), share_of(done, length - done, length)
        here, there = _table(values)[k], _table([*values[1:], values[-1]])[k]
        return between(here, there, *(weights if curve == "linear" else wave(*weights)))

    return value


def _table(values: Sequence[Scalar]) -> Array:
    return jnp.array(values, jnp.result_type(float, *values))


def _accumulated(
    init_value: Any, boundaries_and_scales: Mapping[int, float] | None
) -> tuple[list[Scalar], list[Length]]:
    """The first value times the scales so far, and the steps at which these values are reached."""
    scale_at = {} if boundaries_and_scales is None else boundaries_and_scales
    if not isinstance(scale_at, Mapping):
        raise ValueError(
            f"{core.where()}: boundaries_and_scales must be a dict {{step: scale}}, got "
            f"{core.show(scale_at)}."
        )
    scales = {
        duration("a boundary in boundaries_and_scales", boundary): constant(
            f"boundaries_and_scales[{boundary}]", scale, "[0, inf)"
        )
        for boundary, scale in scale_at.items()
    }
    starts = sorted(scales)
    factors = [init_value, *(scales[b] for b in starts)]
    return list(accumulate(factors, mul)), [0, *starts]


def share(name: str, value: Any, low: float) -> float:
    """A share of the steps, at least `low`, known when the schedule is made."""
    static(name, value)
    return float(constant(name, value, f"[{low!r}, 1]"))


# ---------------------------------------------------------------- the schedules


@core.recorded
def piecewise_constant_schedule(
    init_value: Scalar, boundaries_and_scales: Mapping[int, float] | None = None
) -> ScheduleFn:
    r"""Constant between boundaries, multiplied by a scale at each.

    .. math:: s(t) = I \prod_{i:\, b_i \le t} f_i

    Args:
      boundaries_and_scales: the scale at each boundary, \(b_i \to f_i\): steps, whole or not, to
        numbers in [0, inf), in any order; none by default. A boundary below 0 has been passed
        already.

    Example:
      >>> import gradx
      >>> schedule = gradx.piecewise_constant_schedule(1.0, {10: 0.5, 20: 0.5})
      >>> [float(schedule(t)) for t in (0, 9, 10, 20, 99)]
      [1.0, 1.0, 0.5, 0.25, 0.25]
    """
    values, starts = _accumulated(init_value, boundaries_and_scales)
    return ScheduleFn(stairs(values, starts), borders=starts)


@core.recorded
def piecewise_interpolate_schedule(
    interpolate_type: Literal["linear", "cosine"],
    init_value: Scalar,
    boundaries_and_scales: Mapping[int, float] | None = None,
) -> ScheduleFn:
    r"""Lines or half cosine waves through the values of `piecewise_constant_schedule`.

    .. math::
        s(t) = v_k + (v_{k+1} - v_k)\,w\left(\frac{t - b_k}{b_{k+1} - b_k}\right),
        \quad b_k \le t < b_{k+1}, \quad v_k = I \prod_{i \le k} f_i

    Here \(b_0 = 0\), \(f_0 = 1\), and \(w(x) = x\) or \(w(x) = (1 - \cos \pi x) / 2\). The last
    value is kept.

    Args:
      interpolate_type: the curve between points, ``"linear"`` or ``"cosine"``.
      boundaries_and_scales: the scale at each boundary, \(b_i \to f_i\): steps, whole or not, to
        numbers in [0, inf), in any order; none by default. A boundary below 0 has been passed
        already. The scales multiply: {10: 0.5, 20: 0.5} ends at a quarter.

    Example:
      >>> import gradx
      >>> schedule = gradx.piecewise_interpolate_schedule("linear", 1.0, {10: 0.5, 20: 0.5})
      >>> [float(schedule(t)) for t in (0, 5, 10, 15, 20, 99)]
      [1.0, 0.75, 0.5, 0.375, 0.25, 0.25]
    """
    values, starts = _accumulated(init_value, boundaries_and_scales)
    return ScheduleFn(polyline(values, starts, interpolate_type), borders=starts)


@core.recorded
def linear_onecycle_schedule(
    transition_steps: int,
    peak_value: Scalar,
    pct_start: float = 0.3,
    pct_final: float = 0.85,
    div_factor: Annotated[Scalar, Number("(0, inf)", "d")] = 25.0,
    final_div_factor: Annotated[Scalar, Number("(0, inf)", "d_f")] = 1e4,
) -> ScheduleFn:
    r"""One-cycle policy: up to a peak, back down, and to almost nothing, along straight lines.

    .. math::
        (t, s) = (0, P/d) \to (\lfloor aT \rfloor, P) \to (\lfloor bT \rfloor, P/d)
        \to (T, P/(d\,d_f))

    Args:
      transition_steps: how many steps there are in all, \(T\) in [1, inf), whole or not.
      pct_start: the share of the steps that goes up, \(a\) in [0, 1]; 0.3 by default.
      pct_final: the share of the steps until the value is back at where it started, \(b\) in
        [a, 1]; 0.85 by default.
      div_factor: the peak divided by the first value.
      final_div_factor: the first value divided by the last.

    Example:
      >>> import gradx
      >>> schedule = gradx.linear_onecycle_schedule(100, peak_value=1.0)
      >>> print([f"{schedule(t):.6f}" for t in (0, 30, 85, 100)])
      ['0.040000', '1.000000', '0.040000', '0.000004']

    Reference: Smith and Topin, *Super-convergence: very fast training of neural networks using
    large learning rates*, https://arxiv.org/abs/1708.07120, 2017. Deviation from
    Optax: a phase without steps is skipped, by a jump to its end. In Optax the last of several
    phases that end on the same step drops the scales of the others, so that the values are too
    large or too small.
    """
    total = duration("the transition_steps of a linear onecycle", transition_steps, 1)
    up = share("pct_start", pct_start, 0.0)
    down = share("pct_final", pct_final, up)
    low = peak_value / div_factor
    starts = [0, int(up * total), int(down * total), total]
    values = [low, low * div_factor, low, low / final_div_factor]
    return ScheduleFn(polyline(values, starts, "linear"), borders=starts)


@core.recorded
def cosine_onecycle_schedule(
    transition_steps: int,
    peak_value: Scalar,
    pct_start: float = 0.3,
    div_factor: Annotated[Scalar, Number("(0, inf)", "d")] = 25.0,
    final_div_factor: Annotated[Scalar, Number("(0, inf)", "d_f")] = 1e4,
) -> ScheduleFn:
    r"""One-cycle policy: up to a peak and down to almost nothing, along half cosine waves.

    .. math::
        (t, s) = (0, P/d) \to (\lfloor aT \rfloor, P) \to (T, P/(d\,d_f))

    Args:
      transition_steps: how many steps there are in all, \(T\) in [1, inf), whole or not.
      pct_start: the share of the steps that goes up, \(a\) in [0, 1]; 0.3 by default.
      div_factor: the peak divided by the first value.
      final_div_factor: the first value divided by the last.

    Example:
      >>> import gradx
      >>> schedule = gradx.cosine_onecycle_schedule(100, peak_value=1.0)
      >>> print([f"{schedule(t):.6f}" for t in (0, 15, 30, 65, 100)])
      ['0.040000', '0.520000', '1.000000', '0.500002', '0.000004']

    Reference: Smith and Topin, *Super-convergence: very fast training of neural networks using
    large learning rates*, https://arxiv.org/abs/1708.07120, 2017, with cosines for
    its lines, as in PyTorch's ``OneCycleLR``. A phase without steps is skipped, as in
    `linear_onecycle_schedule`.
    """
    total = duration("the transition_steps of a cosine onecycle", transition_steps, 1)
    up = share("pct_start", pct_start, 0.0)
    low = peak_value / div_factor
    starts = [0, int(up * total), total]
    values = [low, low * div_factor, low / final_div_factor]
    return ScheduleFn(polyline(values, starts, "cosine"), borders=starts)
