"""Roots and quotients with derivatives that stay finite near 0."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

Array = jax.Array


def _power(function: Callable[[Array], Array], exponent: float) -> Callable[[Array], Array]:
    r"""`function`, \(x^a\), with the derivative 0 at 0, where an infinite slope times 0 is NaN.

    It is 0 at infinity too, as in JAX. This is right where the result is smooth or constant around
    0: for a norm below its bound, or for \(m / (\sqrt v + \epsilon)\) where \(m\) is 0 as well.
    Programs without derivatives stay the same.
    """

    @jax.custom_jvp
    def power(x: Array) -> Array:
        return function(x)

    @power.defjvp
    def _(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
        (x,), (dx,), y = primals, tangents, power(*primals)
        # In this order, since x^(a - 1) by itself overflows.
        flat = (x == 0) | jnp.isinf(x)
        x, slope = jnp.where(flat, 1.0, x), exponent * jnp.where(flat, 0.0, y)
        return y, jnp.where(flat, 0.0, dx / x * slope)

    return jax.jit(power, inline=True)  # outside of jit, 20 times as fast


sqrt = _power(jnp.sqrt, 1 / 2)
rsqrt = _power(jax.lax.rsqrt, -1 / 2)
cbrt = _power(jnp.cbrt, 1 / 3)


@jax.custom_jvp
def divide(x: Array, y: Array) -> Array:
    """`x / y`, with a derivative that does not divide by y², which underflows below 1e-19."""
    return x / y


@divide.defjvp
def _(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    (_, y), (dx, dy), quotient = primals, tangents, divide(*primals)
    return quotient, (dx - quotient * dy) / y
