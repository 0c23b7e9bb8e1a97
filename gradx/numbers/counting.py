"""Steps and counts: checks when a schedule is made, and arithmetic when it is called."""

from __future__ import annotations

import math
from typing import Any

import jax.numpy as jnp
import numpy as np

from gradx import core
from gradx.core import ranges
from gradx.core.annotations import check_known
from gradx.core.calls import warn
from gradx.core.ranges import Scalar, as_float, is_real
from gradx.lowering.exact import share_of
from gradx.numbers import hyper
from gradx.numbers.sources import Array

# ---------------------------------------------------------------- when it is made


def power_of(name: str, value: Any) -> Scalar:
    """A power of at least 0; an int stays one, because whole powers are products."""
    checked = hyper.constant(name, value, "[0, inf)")
    return value if isinstance(value, int) else checked


def static(name: str, value: Any) -> None:
    """Refuses a traced value where the program depends on it."""
    check_known(name, value, core.where())


def steps(name: str, value: Any, low: int) -> int:
    """A whole number of steps, at least `low`; 1e4 is one, 0.1 * 1234 is not."""
    static(name, value)
    if not is_real(value) or not float(value).is_integer():
        raise ValueError(
            f"{core.where()}: {name} must be a whole number of steps, got {core.show(value)}; "
            f"round(…) makes one of a share of the run."
        )
    ranges.check_number(int(value), f"[{low}, inf)", name, core.where())
    return int(value)


Length = int | float  # of a part of a schedule, in steps


def duration(name: str, value: Any, low: float = -math.inf) -> Length:
    """A number of steps of a schedule; it may be a share of the run, and no whole number."""
    static(name, value)
    number = float(hyper.constant(name, value, ranges.ANY))
    if number < low:
        raise ValueError(f"{core.where()}: {name} must be in [{low}, inf), got {core.show(value)}.")
    return int(number) if number.is_integer() else number


def beginning(name: str, value: Any) -> Length:
    """The steps before something begins; a negative number counts as 0, with a warning."""
    begin = duration(name, value)
    if begin < 0:
        odd(f"{name} is {begin}, which counts as 0")
    return max(begin, 0)


def odd(told: str) -> None:
    """Warns of a schedule that is valid, but probably not what was meant."""
    warn(f"{core.where()}: {told}.")


# ---------------------------------------------------------------- when it is called


def as_count(count: Any) -> Array:
    """The count as an array of at least 32 bits; an integer too large for them becomes a float."""
    if isinstance(count, int | np.integer):
        count = int(count) if abs(int(count)) < 2**31 else float(count)
    count = jnp.asarray(count)
    if jnp.issubdtype(count.dtype, jnp.floating):
        return as_float(count)
    return count.astype(jnp.int32) if count.dtype.itemsize < 4 else count


def is_beyond(step: Any, count: Any) -> bool:
    """Whether the count's own type cannot hold this step, so that it is never reached."""
    dtype = jnp.result_type(count)
    integers = jnp.issubdtype(dtype, jnp.integer) and not isinstance(count, int)
    return integers and isinstance(step, int | float) and step > np.iinfo(dtype).max


def since(count: Any, begin: Any) -> Any:
    """The steps since `begin`, at least 0, in the count's own type: exact for integers."""
    if isinstance(count, int | float) and isinstance(begin, int | float):
        return max(count - begin, 0)
    if is_beyond(begin, count):
        return jnp.zeros_like(count)
    if isinstance(begin, float):
        count = as_float(count)
    if isinstance(begin, int | float) and begin < 0:  # which unsigned counts cannot be
        return jnp.maximum(count, 0) + (-begin)
    return jnp.maximum(count, begin) - begin


def is_before(count: Any, step: Any) -> Any:
    """Whether a step has not come yet."""
    if isinstance(step, float) and not isinstance(count, int | float):
        count = as_float(count)
    elif isinstance(step, int) and step < 0:  # which unsigned counts cannot be
        step = 0
    return count < step


def elapsed(count: Any, begin: Length) -> Array:
    """The steps since `begin`, at least 0, as a float."""
    return as_float(since(as_count(count), begin))


def shares(count: Any, length: Length, begin: Length = 0) -> tuple[Array, Array]:
    """The shares of the steps that are left and done: exactly 0 and 1 at both ends.

    Neither is 1 minus the other, so that a small share has all digits.
    """
    done = since(as_count(count), begin)
    whole = isinstance(length, int) and jnp.issubdtype(done.dtype, jnp.integer)
    whole = whole and not is_beyond(length, done)  # then differences are exact
    done, total = (done, length) if whole else (as_float(done), float(length))
    done = jnp.minimum(done, total)
    left, done = as_float(total - done), as_float(done)
    return share_of(left, done, float(length)), share_of(done, left, float(length))
