"""Exponential moving averages, their bias corrections and their first values."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax.numpy as jnp

from gradx import core
from gradx.core.ranges import as_float
from gradx.core.roots import sqrt
from gradx.core.trees import wide
from gradx.core.updates import safe_increment
from gradx.lift.stages import Numbers
from gradx.numbers.sources import Array


def average(old: Array, new: Array, decay: float | Array) -> Array:
    r"""One step of an exponential moving average, \(\beta m + (1 - \beta) x\)."""
    return decay * old + (1 - decay) * new


def weight_so_far(decay: float | Array, t: Array) -> Array:
    r"""The weight \(1 - \beta^t\) that an average has gathered after `t` updates.

    Through `expm1`: with a decay of 0.999 the difference loses four digits of float32.
    """
    t = as_float(t)
    if isinstance(decay, float):
        log = math.log(decay) if decay > 0 else -math.inf
        return -jnp.expm1(log * t)
    return -jnp.expm1(jnp.log1p(decay - 1) * t)


def bias_corrections(h: Numbers, t: Array) -> Mapping[str, Array]:
    """The bias corrections of Adam, as factors: leaves multiply, they do not divide."""
    return {
        "correct_mu": 1 / weight_so_far(h.b1, t),
        "correct_next_mu": 1 / weight_so_far(h.b1, safe_increment(t)),
        "correct_nu": 1 / weight_so_far(h.b2, t),
    }


def unbiased_mu(mu: Array, g: Array, h: Numbers) -> Array:
    """The bias-corrected first moment; with `h.nesterov` one step ahead (Dozat)."""
    if h.nesterov:
        return h.b1 * h.correct_next_mu * mu + (1 - h.b1) * h.correct_mu * g
    return h.correct_mu * mu


def storage(name: str, dtype: Any) -> Any:
    """Checks a dtype to keep an average in; `None` stays, and means that of the parameter.

    Raises:
      ValueError: it is no floating-point dtype.
    """
    if dtype is None:
        return None
    kept = dtype_of(dtype, jnp.inexact)
    if kept is None:
        raise ValueError(
            f"{core.where()}: {name} must be a floating-point dtype, got {core.show(dtype)}."
        )
    return kept


def dtype_of(given: Any, kind: Any) -> Any:
    """The dtype that is meant, if it is of this kind (`jnp.inexact`, say); else None."""
    try:
        dtype = jnp.dtype(given)
    except TypeError:
        return None
    return dtype if jnp.issubdtype(dtype, kind) else None


def zeros(p: Array, *, dtype: Any = None) -> Array:
    """Zeros like the parameter, complex where it is."""
    kept = p.dtype if dtype is None else dtype
    return jnp.zeros_like(p, wide(kept, p.dtype) if jnp.iscomplexobj(p) else kept)


def real_zeros(p: Array) -> Array:
    """Zeros for an average of squares."""
    return jnp.zeros_like(p.real)


def full(p: Array, *, value: float | Array) -> Array:
    """A real number everywhere."""
    return jnp.full_like(p.real, value)


def zero_moments(mu_dtype: Any = None) -> Mapping[str, Callable[..., Array]]:
    """Adam's first state: `mu` like the parameter, and a real `nu`."""
    return {"mu": partial(zeros, dtype=mu_dtype), "nu": real_zeros}


def nu_correction(h: Numbers, t: Array) -> Mapping[str, Any]:
    """The bias correction of one average, as a factor; 1 without `h.bias_correction`."""
    return {"correct": 1 / weight_so_far(h.decay, t) if h.bias_correction else 1.0}


def root(variance: Array, h: Numbers) -> Array:
    """The divisor of `scale_by_rms` and `scale_by_stddev`."""
    return sqrt(variance + h.eps) if h.eps_in_sqrt else sqrt(variance) + h.eps
