"""Numbers that stay exact where an algebraic simplification would change them."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

Array = jax.Array


def root_or_zero(square: Array, root: Array) -> Array:
    """The root of a sum of squares; exactly 0 where the sum is 0.

    XLA replaces the root of a scalar's square by |x|, which is not 0 where the square underflows:
    a trust ratio of 1e-30 instead of 1 leaves a parameter near 0 for ever.
    """
    return jnp.where(square == 0, 0.0, root)


def share_of(part: Array, rest: Array, total: Any) -> Array:
    """`part / total`, and exactly 1 where nothing is left.

    XLA may divide by multiplying with the reciprocal, and then n / n is not always 1.
    """
    return jnp.where(rest > 0, part / total, 1.0)


def rounded(x: Array, dtype: Any) -> Array:
    """`x`, in its own dtype, with the digits and exponents that another dtype has.

    XLA may leave out a cast to half precision and back; then a number that is smaller than a digit
    is not rounded away.
    """
    own, about = jnp.finfo(x.dtype), jnp.finfo(dtype)
    if own.nmant == about.nmant and own.nexp == about.nexp:
        return x
    return jax.lax.reduce_precision(x, about.nexp, about.nmant)
