"""Steps and counts: what a schedule is told when it is made, and what it is asked later."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

from gradx import core, hyper
from gradx.calls import check_known
from gradx.sources import Array, Number, as_float, is_real

# ---------------------------------------------------------------- when it is made


def power_of(name: str, value: Any) -> Number:
    """A positive power; an int stays one, because whole powers are products."""
    checked = hyper.constant(name, value, "(0, inf)")
    return value if isinstance(value, int) else checked


def static(name: str, value: Any) -> None:
    """Refuses a traced value where the program itself hangs on it."""
    check_known(name, value, core.where())


def steps(name: str, value: Any, low: int) -> int:
    """A whole number of steps, at least `low`; 1e4 is one, 0.1 * 1234 is not."""
    static(name, value)
    if not is_real(value) or not float(value).is_integer():
        raise ValueError(
            f"{core.where()}: {name} must be a whole number of steps, got {core.show(value)}; "
            f"round(…) makes one of a share of the run."
        )
    hyper.check_number(int(value), f"[{low}, inf)", name, core.where())
    return int(value)


# ---------------------------------------------------------------- when it is asked


def as_count(count: Any) -> Array:
    """The count as an array of at least 32 bits; what these cannot hold becomes a float."""
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
    return integers and isinstance(step, int) and step > np.iinfo(dtype).max


def since(count: Any, begin: Any) -> Any:
    """The steps since `begin`, at least 0, in the count's own type: exact for integers."""
    if isinstance(count, int | float) and isinstance(begin, int):
        return max(count - begin, 0)
    if is_beyond(begin, count):
        return jnp.zeros_like(count)
    return jnp.maximum(count, begin) - begin


def elapsed(count: Any, begin: int) -> Array:
    """The steps since `begin`, at least 0, as a float."""
    return as_float(since(as_count(count), begin))
