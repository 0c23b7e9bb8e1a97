r"""The strong Wolfe conditions, and the search of an interval for a step that meets them.

Everything here is about single numbers: what the objective \(\phi(\eta) = f(\theta + \eta u)\) and
its slope were at the steps tried so far, and which step to try next. First the step grows until an
interval must hold a good one; then the interval shrinks, by cubic and quadratic interpolation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gradx.core import Count
from gradx.core.ranges import Scalar
from gradx.core.updates import safe_increment
from gradx.line_search.objective import Point
from gradx.numbers.sources import Array


@dataclass(frozen=True)
class Conditions:
    """Defines a good step, and how to look for it (see `gradx.scale_by_zoom_linesearch`)."""

    max_steps: int
    max_step: Scalar | None
    tol: Scalar
    increase_factor: Scalar
    slope_rtol: Scalar
    curv_rtol: Scalar
    approx_dec_rtol: Scalar | None
    precision: Scalar

    def decrease_error(self, at: Point, start: Point) -> Array:
        """By how much a step misses the sufficient decrease; 0 if it does not, inf for NaN."""
        error = at.value - start.value - self.slope_rtol * at.step * start.slope
        if self.approx_dec_rtol is not None:
            # Near a minimum values differ by rounding alone, while slopes can still be told apart:
            # Hager and Zhang's condition, if the value is no higher than rounding allows.
            slope = at.slope - (2 * self.slope_rtol - 1) * start.slope
            rounding = at.value - start.value - self.approx_dec_rtol * jnp.abs(start.value)
            error = jnp.minimum(jnp.maximum(slope, rounding), error)
        return _violation(error)

    def curvature_error(self, at: Point, start: Point) -> Array:
        """By how much the slope is still too steep; 0 if it is not, inf for NaN."""
        limit = self.curv_rtol * jnp.abs(start.slope)
        # Not inf * 0, where the search begins at a minimum.
        limit = jnp.where(jnp.isinf(self.curv_rtol), jnp.inf, limit)
        return _violation(jnp.abs(at.slope) - limit)


def _violation(error: Array) -> Array:
    return jnp.where(jnp.isnan(error), jnp.inf, jnp.maximum(error, 0.0))


class Progress(NamedTuple):
    """How far a search has come.

    Attributes:
      count: the steps tried, int32 ().
      last: the last one.
      low: the end of the interval with the lower value.
      high: the other end, which may be the smaller step.
      third: another point, for the cubic.
      safe: the best step so far with a sufficient decrease; step 0 if there is none.
      bracketed: whether the interval is known to hold a good step, bool ().
      done: whether the last step is good, bool ().
      failed: whether to give up, bool ().
      decrease_error: of the last step, ().
      curvature_error: of the last step, ().
    """

    count: Count
    last: Point
    low: Point
    high: Point
    third: Point
    safe: Point
    bracketed: Array
    done: Array
    failed: Array
    decrease_error: Array
    curvature_error: Array


def begin(start: Point) -> Progress:
    no = jnp.zeros_like(start.step, bool)
    infinite = jnp.full_like(start.step, jnp.inf)
    return Progress(
        count=jnp.zeros_like(start.step, jnp.int32),
        last=start,
        low=start,
        high=start,
        third=start,
        safe=start,
        bracketed=no,
        done=no,
        failed=no,
        decrease_error=infinite,
        curvature_error=infinite,
    )


def next_step(now: Progress, guess: Array, conditions: Conditions) -> Array:
    """The step to try: a longer one, or one inside the interval."""
    longer = jnp.where(now.count == 0, guess, conditions.increase_factor * now.last.step)
    if conditions.max_step is not None:
        longer = jnp.minimum(longer, conditions.max_step)
    return jnp.where(now.bracketed, _inside(now.low, now.high, now.third), longer)


def _inside(low: Point, high: Point, third: Point) -> Array:
    """The minimum of the cubic if it is well inside, else of the parabola, else the middle."""
    left, right = jnp.minimum(low.step, high.step), jnp.maximum(low.step, high.step)
    cubic, parabola = _cubic_minimum(low, high, third), _parabola_minimum(low, high)

    def well_inside(step: Array, margin: float) -> Array:  # False for NaN
        room = margin * (right - left)
        return (step > left + room) & (step < right - room)

    middle = jnp.where(well_inside(parabola, 0.1), parabola, (left + right) / 2)
    return jnp.where(well_inside(cubic, 0.2), cubic, middle)


def _parabola_minimum(low: Point, high: Point) -> Array:
    """Through two points, with the slope of the first."""
    d = high.step - low.step
    half_curvature = (high.value - low.value - low.slope * d) / d**2
    return low.step - low.slope / (2 * half_curvature)


def _cubic_minimum(low: Point, high: Point, third: Point) -> Array:
    r"""Of \(a d^3 + b d^2 + \phi'(l) d + \phi(l)\) through three points; NaN if it has none."""
    d, e = high.step - low.step, third.step - low.step
    rise_d = high.value - low.value - low.slope * d
    rise_e = third.value - low.value - low.slope * e
    scale = (d * e) ** 2 * (d - e)
    a = (e**2 * rise_d - d**2 * rise_e) / scale
    b = (d**3 * rise_e - e**3 * rise_d) / scale
    return low.step + (-b + jnp.sqrt(b * b - 3 * a * low.slope)) / (3 * a)


def advance(
    now: Progress, at: Point, start: Point, conditions: Conditions
) -> tuple[Progress, Array]:
    """The search after a step was tried, and whether that step is the new safe one."""
    decrease = conditions.decrease_error(at, start)
    curvature = conditions.curvature_error(at, start)
    good = jnp.maximum(decrease, curvature) <= conditions.tol
    enough = decrease <= conditions.tol
    zooming = now.bracketed
    safe = enough & (~zooming | (at.value < now.safe.value))

    grown, stuck = _longer(now, at, decrease, good, conditions)
    shrunk = _shorter(now, at, decrease)
    low, high, third, bracketed = _choose(zooming, shrunk, grown)

    count = safe_increment(now.count)
    new_safe: Point = _choose(safe, at, now.safe)
    done = good | (~zooming & stuck)
    tiny = zooming & (jnp.abs(now.high.step - now.low.step) <= conditions.precision)
    give_up = (count >= conditions.max_steps) | (tiny & (new_safe.step > 0))
    return (
        Progress(
            count=count,
            last=at,
            low=low,
            high=high,
            third=third,
            safe=new_safe,
            bracketed=bracketed,
            done=done,
            failed=give_up & ~done,
            decrease_error=decrease,
            curvature_error=curvature,
        ),
        safe,
    )


def _longer(
    now: Progress, at: Point, decrease: Array, good: Array, conditions: Conditions
) -> tuple[Any, Array]:
    """While the step grows: the interval, if there is one now; whether it cannot grow further."""
    before = now.last
    too_far = (decrease > 0) | ((at.value >= before.value) & (now.count > 0))
    uphill = (at.slope >= 0) & ~too_far
    low, high = _choose(uphill, (at, before), (before, at))
    bracketed = too_far | uphill | good
    at_the_end = jnp.zeros_like(bracketed)
    if conditions.max_step is not None:
        at_the_end = at.step >= conditions.max_step
    return (low, high, low, bracketed), at_the_end & ~bracketed


def _shorter(now: Progress, at: Point, decrease: Array) -> Any:
    """While the interval shrinks: the part of it that still holds a good step."""
    low, high = now.low, now.high
    too_far = (decrease > 0) | (at.value >= low.value)
    flipped = (at.slope * (high.step - low.step) >= 0) & ~too_far
    new_high = _choose(too_far, at, _choose(flipped, low, high))
    new_low = _choose(too_far, low, at)
    third = _choose(too_far | flipped, high, low)
    return new_low, new_high, third, now.bracketed


def _choose(condition: Array, yes: Any, no: Any) -> Any:
    return jax.tree.map(lambda y, n: jnp.where(condition, y, n), yes, no)
