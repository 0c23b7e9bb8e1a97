"""Products of matrices, in the numbers that a target multiplies fast.

Accelerators have units for factors of two bytes, whose products they add up in float32. Products of
float32 to the last digit take six passes through these units on TPUs, and cannot use them on GPUs.
CPUs have none: there a narrow factor is first made a wide one.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from gradx.lowering.policy import by_target

Array = jax.Array
T = TypeVar("T")

# What the factors of a product are: of a dtype, or as they come, and how exactly then.
Factors = np.dtype | jax.lax.Precision

HIGHEST = jax.lax.Precision.HIGHEST
_NARROW = jnp.dtype(jnp.bfloat16)

# Operations in the time of one element of two bytes: an H200 does 790e12 a second, and moves 4.8e12
# bytes; a v5e 197e12 and 0.8e12.
WAIT = 400


def with_factors(factors: Factors | None, run: Callable[..., T], *arrays: Array) -> T:
    """`run(factors, *arrays)`; its results must not have another dtype for other factors.

    None stands for what suits the target: bfloat16 on accelerators, if the arrays are of float32,
    else all digits.
    """
    if factors is not None:
        return run(factors, *arrays)
    narrow, exact = partial(run, _NARROW), partial(run, HIGHEST)
    if any(x.dtype != jnp.float32 for x in arrays):
        return exact(*arrays)
    return by_target("narrow_products", narrow, exact, *arrays)


def times(factors: Factors, a: Array, b: Array) -> Array:
    """The product, added up in float32 or wider.

    That of float32 waits for the next one in the dtype of the factors, so that it has to be written
    and read in that only. Of one byte they are too narrow to keep anything in.
    """
    if isinstance(factors, jax.lax.Precision):
        return jnp.matmul(a, b, precision=factors)
    kept = wide(a).dtype
    if jnp.iscomplexobj(a) or factors.itemsize >= kept.itemsize:
        return jnp.matmul(a, b, precision=HIGHEST)  # there is no narrow complex dtype
    if kept == jnp.float32 and factors.itemsize >= 2:
        kept = factors
    return jnp.matmul(
        a.astype(factors),
        b.astype(factors),
        precision=HIGHEST if factors.itemsize >= 4 else None,
        preferred_element_type=kept,
    )


def wide(x: Array) -> Array:
    """A product in float32 or wider again, for a sum."""
    return x if x.dtype.itemsize >= 4 else x.astype(jnp.float32)


def rough(factors: Factors) -> bool:
    """Whether factors may have fewer digits than float32."""
    if isinstance(factors, jax.lax.Precision):
        return factors != HIGHEST
    return factors.itemsize < 4
