"""Products of matrices, in the dtypes that a target multiplies fast.

Accelerators have units for factors of two bytes, whose products they add up in float32. Products in
full float32 take six passes through these units on TPUs, and cannot use them on GPUs. CPUs have no
such units: there a narrow factor is first widened.
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

# The dtype of the factors of a product; or, for factors as they come, the precision.
Factors = np.dtype | jax.lax.Precision

HIGHEST = jax.lax.Precision.HIGHEST
_NARROW = jnp.dtype(jnp.bfloat16)

# Operations while one element of two bytes is moved: an H200 does 790e12 a second, and moves 4.8e12
# bytes; a v5e 197e12 and 0.8e12.
WAIT = 400


def with_factors(factors: Factors | None, run: Callable[..., T], *arrays: Array) -> T:
    """`run(factors, *arrays)`; its results must not have another dtype for other factors.

    None stands for what suits the target: bfloat16 on accelerators, if the arrays are float32, else
    full precision.
    """
    if factors is not None:
        return run(factors, *arrays)
    narrow, exact = partial(run, _NARROW), partial(run, HIGHEST)
    if any(x.dtype != jnp.float32 for x in arrays):
        return exact(*arrays)
    return by_target("narrow_products", narrow, exact, *arrays)


def times(factors: Factors, a: Array, b: Array) -> Array:
    """The product, added up in float32 or wider.

    A float32 product is returned in the dtype of the factors, so that the next product writes and
    reads only that. Factors of one byte are too narrow for it.
    """
    if isinstance(factors, jax.lax.Precision):
        return jnp.matmul(a, b, precision=factors)
    result = wide(a).dtype
    if jnp.iscomplexobj(a) or factors.itemsize >= result.itemsize:
        return jnp.matmul(a, b, precision=HIGHEST)  # there is no narrow complex dtype
    if result == jnp.float32 and factors.itemsize >= 2:
        result = factors
    return jnp.matmul(
        a.astype(factors),
        b.astype(factors),
        precision=HIGHEST if factors.itemsize >= 4 else None,
        preferred_element_type=result,
    )


def wide(x: Array) -> Array:
    """A product, widened again to at least float32 for a sum."""
    return x if x.dtype.itemsize >= 4 else x.astype(jnp.float32)


def rough(factors: Factors) -> bool:
    """Whether factors may have fewer digits than float32."""
    if isinstance(factors, jax.lax.Precision):
        return factors != HIGHEST
    return factors.itemsize < 4
