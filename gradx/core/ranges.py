"""Ranges of numbers, and whether a number that is known now lies in its range."""

from __future__ import annotations

import contextlib
import functools
import math
import re
import weakref
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from gradx.core.binding import is_tree
from gradx.core.show import show
from gradx.core.spec import Described
from gradx.core.trees import wide

Array = jax.Array
Scalar: TypeAlias = float | Array

ANY = "(-inf, inf)"
LARGEST = 3.4028235677973366e38  # what rounds to infinity in float32 is beyond

# How to get what Optax does with numbers below these ranges.
BELOW = {
    "learning_rate": " To climb, put scale(-1.0) behind it in a chain.",
    "weight_decay": " add_decayed_weights takes any number.",
}


@dataclass(frozen=True)
class Interval:
    """A range of numbers, written as in mathematics: ``[0, 1)``, ``(0, inf]``."""

    text: str

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[\[(][^,]+,[^,]+[\])]", self.text):
            raise ValueError(f"a range reads like '[0, 1)' or '(0, inf]', got {self.text!r}.")

    @functools.cached_property
    def ends(self) -> tuple[float, float]:
        low, high = self.text[1:-1].split(",")
        return float(low), float(high)

    def __contains__(self, x: float) -> bool:
        low, high = self.ends
        above = x >= low if self.text[0] == "[" else x > low
        below = x <= high if self.text[-1] == "]" else x < high
        return above and below


interval_of = functools.lru_cache(maxsize=256)(Interval)


def factor_range(interval: str) -> str:
    """The range of one factor of a product: only its sign is known."""
    return ANY if -1.0 in interval_of(interval) else "[0, inf)"


_of_the_run: ContextVar[bool] = ContextVar("_of_the_run", default=False)


@contextlib.contextmanager
def of_the_run() -> Iterator[None]:
    """Switches range checks off in a schedule, which may reach any value, as under `jit`."""
    token = _of_the_run.set(True)
    try:
        yield
    finally:
        _of_the_run.reset(token)


HOW_TO_GIVE = (
    "Give a number, a schedule (count -> number), tunable(…), by_path(…), from_call(…) or a "
    "product scaled(…)."
)

CONSTANT = (
    " It is a constant, and takes no schedule, tunable(…) or other source. Give a number; to "
    "change it later, make this again with another one."
)


def no_number(value: Any, name: str, where: str) -> ValueError:
    """The error for a value that is neither a number nor another source of one."""
    if is_tree(value):
        return ValueError(
            f"{where}: {name} must be one real number, got a tree, a {type(value).__name__}. "
            f"An optimizer is made without the parameters, which tx.init(params) is given; for "
            f"numbers that differ from leaf to leaf, use by_path(…)."
        )
    return ValueError(f"{where}: {name} must be one real number, got {show(value)}. {HOW_TO_GIVE}")


def check_number(value: float, interval: str, name: str, where: str) -> None:
    """Raises ValueError unless the number lies in its range."""
    if value not in interval_of(interval) and not _of_the_run.get():
        is_below = -math.inf < value < 0
        remedy = next((r for word, r in BELOW.items() if is_below and word in name), "")
        raise ValueError(f"{where}: {name} must be in {interval}, got {value!r}.{remedy}")


def check_in_float32(value: float, interval: str, name: str, where: str) -> None:
    """`check_number`, also of the number in float32: 1 - 1e-12 is 1 there, 1e39 infinite."""
    check_number(value, interval, name, where)
    with np.errstate(over="ignore"):
        check_number(float(np.float32(value)), interval, name, where)


def check_constant(value: Any, interval: str, name: str, where: str) -> None:
    """Raises ValueError unless it is one real number, and in its range if its value is known."""
    if not is_real(value):
        told = CONSTANT if callable(value) or isinstance(value, Described) else ""
        raise ValueError(f"{where}: {name} must be one real number, got {show(value)}.{told}")
    if isinstance(value, jax.core.Tracer):
        return
    number = float(value)
    check_number(number, interval, name, where)
    if abs(number) > LARGEST:  # too large for the arithmetic
        check_number(math.copysign(math.inf, number), interval, name, where)


_CHECKED: weakref.WeakSet[Callable[[Any], Any]] = weakref.WeakSet()


def check_schedule(schedule: Callable[[Any], Any], name: str, where: str) -> None:
    """Raises ValueError for a function that gives no number for a count.

    It is traced for its type only, and once, so that nothing is computed or printed twice: each
    factory on the way asks.
    """
    with contextlib.suppress(TypeError):  # some functions have no hash or no weak references
        if schedule in _CHECKED:
            return
    try:
        try:
            made: Any = jax.eval_shape(schedule, jax.ShapeDtypeStruct((), jnp.int32))
        except (jax.errors.ConcretizationTypeError, jax.errors.TracerArrayConversionError):
            made = schedule(0)  # it branches on the count: it works outside jit only, as in Optax
        dtype = jnp.result_type(made)
        real = jnp.issubdtype(dtype, jnp.floating) or jnp.issubdtype(dtype, jnp.integer)
    except Exception as error:
        raise ValueError(
            f"{where}: {name} is the function {show(schedule)}, which does not work as a "
            f"schedule, count -> number: {type(error).__name__}: {str(error).partition(chr(10))[0]}"
        ) from error
    if made is None or jnp.shape(made) != () or not real:
        raise ValueError(
            f"{where}: {name} is the schedule {show(schedule)}, which must return one real "
            f"number for a count, but returns {show(made)}."
        )
    with contextlib.suppress(TypeError):
        _CHECKED.add(schedule)


def is_real(value: Any) -> bool:
    """Whether it is one integer or floating-point number, of Python, NumPy or JAX; no bool."""
    if type(value) in (int, float):
        return True
    kinds = int | float | np.generic | np.ndarray | jax.Array
    if isinstance(value, bool) or not isinstance(value, kinds) or np.shape(value) != ():
        return False
    try:
        dtype = jnp.result_type(value)
    except TypeError:  # of a text, which NumPy has arrays of
        return False
    return jnp.issubdtype(dtype, jnp.integer) or jnp.issubdtype(dtype, jnp.floating)


def is_zero(value: Any) -> bool:
    """Whether a number is the constant 0, known now."""
    return isinstance(value, int | float) and is_real(value) and value == 0


def as_float(value: Any) -> Array:
    """A strongly typed float array of at least float32, whatever kind of number it was."""
    value = jnp.asarray(value)
    floating = jnp.issubdtype(value.dtype, jnp.floating)
    return value.astype(wide(value.dtype) if floating else float)
