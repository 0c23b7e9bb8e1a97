"""Schedules that know how many steps there are, and end with a cool-down."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias, get_args

import jax.numpy as jnp

from gradx import core
from gradx.core.meaning import Option
from gradx.core.ranges import Scalar
from gradx.numbers.counting import duration, power_of, shares
from gradx.numbers.sources import Array
from gradx.schedules.curves import between, level, to_power, wave
from gradx.schedules.schedule_fn import ScheduleFn
from gradx.schedules.sequences import warmed_up

__all__ = ["rex_schedule", "wsd_schedule"]

Word: TypeAlias = Literal["linear", "cosine", "1-sqrt", "square"]
WORDS = get_args(Word)
Shape: TypeAlias = Annotated[
    Word | float,
    Option("how the cool-down falls: a word, or the power of the share of it that is left"),
]


def _weights(shape: Any, left: Array, done: Array) -> tuple[Array, Array]:
    """How much of the first and of the last value there is: 1 and 0 in the beginning."""
    match shape:
        case "linear":
            return left, done
        case "cosine":
            return wave(left, done)
        case "1-sqrt":
            root = jnp.sqrt(done)
            return left / (1 + root), root
        case "square":
            return left * (1 + done), done**2
    return to_power(left, done, shape)


@core.recorded
def wsd_schedule(
    init_value: Scalar,
    peak_value: Scalar,
    warmup_steps: int,
    decay_steps: int,
    cooldown_steps: int,
    end_value: Scalar = 0.0,
    shape: Shape = "linear",
) -> ScheduleFn:
    r"""Warm up, stay at the peak, and cool down at the end.

    A run can be continued from any step before the cool-down, whose length is 10% to 20% of the
    steps; a longer run needs no other schedule until then.

    .. math::
        s(t) = \begin{cases}
        I + (P - I)\, t / W & t < W \\
        P & W \le t < T - D \\
        E + (P - E)\, f\left(\min\left(1, \tfrac{t - T + D}{D}\right)\right) & t \ge T - D
        \end{cases}

    with \(f(x) = 1 - x\) for ``"linear"``, \((1 + \cos \pi x) / 2\) for ``"cosine"``,
    \(1 - \sqrt x\) for ``"1-sqrt"``, \(1 - x^2\) for ``"square"`` and \((1 - x)^p\) for a number.

    Args:
      warmup_steps: \(W\) in [0, inf), steps, whole or not; 0 is no warmup.
      decay_steps: \(T\) in [1, inf), the steps of all three phases together.
      cooldown_steps: \(D\) in [0, T - W], the steps of the last phase.
      shape: Of the words, ``"1-sqrt"`` was best in the second reference, and the power 1.2 is in
        use for Muon.

    Raises:
      ValueError: the phases have more than `decay_steps` steps; a shape that does not exist.

    Example:
      >>> import gradx
      >>> schedule = gradx.wsd_schedule(0.0, 1.0, 10, 100, cooldown_steps=20)
      >>> [float(schedule(t)) for t in (0, 5, 10, 80, 90, 100)]
      [0.0, 0.5, 1.0, 1.0, 0.5, 0.0]

    Hu et al., `MiniCPM <https://arxiv.org/abs/2404.06395>`_, 2024; Hägele et al., `Scaling laws and
    compute-optimal training beyond fixed training durations <https://arxiv.org/abs/2405.18392>`_,
    2024.
    """
    warmup = duration("warmup_steps", warmup_steps, 0)
    total = duration("decay_steps", decay_steps, 1)
    cooldown = duration("cooldown_steps", cooldown_steps, 0)
    if warmup + cooldown > total:
        raise ValueError(
            f"{core.where()}: decay_steps is the number of all steps, and must be at least "
            f"warmup_steps and cooldown_steps together; got decay_steps {total}, warmup_steps "
            f"{warmup} and cooldown_steps {cooldown}."
        )
    if not isinstance(shape, str):
        power_of("shape", shape)
    elif shape not in WORDS:
        raise ValueError(
            f"{core.where()}: shape must be one of {list(WORDS)} or a power, got {shape!r}."
        )
    begin = total - warmup - cooldown  # counted from the end of the warmup

    def rest(count: Any) -> Array:
        left, done = shares(count, cooldown, begin)
        return between(peak_value, end_value, *_weights(shape, left, done))

    made = warmed_up(init_value, peak_value, warmup, rest if cooldown else level(peak_value))
    return ScheduleFn(made, borders=(warmup, total - cooldown, total))


@core.recorded
def rex_schedule(
    init_value: Scalar,
    decay_steps: int,
    end_value: Scalar = 0.0,
) -> ScheduleFn:
    r"""Stays high for long and then falls fast, for runs with few steps.

    .. math:: s(t) = E + (I - E) \frac{1 - x}{1 - x / 2}, \qquad x = \min(1, t / T)

    Args:
      decay_steps: \(T\) in [1, inf), steps, whole or not.
      end_value: the value from count \(T\) on.

    Example:
      >>> import gradx
      >>> schedule = gradx.rex_schedule(1.0, decay_steps=4)
      >>> print([f"{schedule(t):.3f}" for t in (0, 1, 2, 3, 4)])
      ['1.000', '0.857', '0.667', '0.400', '0.000']

    Chen, Wolfe and Kyrillidis, `REX: Revisiting budgeted training with an improved schedule
    <https://arxiv.org/abs/2107.04197>`_, 2021.
    """
    length = duration("decay_steps", decay_steps, 1)

    def value(count: Any) -> Array:
        left, done = shares(count, length)
        return between(init_value, end_value, 2 * left / (1 + left), done / (1 + left))

    return ScheduleFn(value, borders=(length,))
