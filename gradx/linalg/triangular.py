"""PSGD's preconditioner: a triangular factor for each side of a matrix, fitted to whiten it.

A factor Q is an upper triangular matrix, or the vector of its diagonal if it is diagonal.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from gradx.core.roots import sqrt
from gradx.core.trees import abs_sq
from gradx.linalg import polar
from gradx.numbers.sources import Array

# The noise that is added to the whitened matrix, relative to its mean |element|; psgd_jax's number.
_DAMPING = float(jnp.finfo(jnp.float32).eps) ** 0.5


def scaled_identity(length: int, scale: Any, diagonal: bool, like: Array) -> Array:
    if diagonal:
        return jnp.zeros_like(like, shape=(length,)) + scale
    return jnp.zeros_like(like, shape=(length, length)) + scale * jnp.eye(length, dtype=like.dtype)


def _times(a: Array, b: Array) -> Array:
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def into(x: Array, q: Array) -> Array:
    """Q x."""
    return q[:, None] * x if q.ndim == 1 else _times(q, x)


def out_of(x: Array, q: Array) -> Array:
    """Qᴴ x."""
    return q.conj()[:, None] * x if q.ndim == 1 else _times(q.mT.conj(), x)


def _solved(x: Array, q: Array) -> Array:
    """The transposed inverse of Q, times x."""
    if q.ndim == 1:
        return x / q[:, None]
    return jax.lax.linalg.triangular_solve(q, x, left_side=True, lower=False, transpose_a=True)


def _gram(x: Array, q: Array) -> Array:
    """x xᴴ, or its diagonal if Q is diagonal."""
    return jnp.sum(abs_sq(x), axis=1) if q.ndim == 1 else _times(x, x.mT.conj())


def fitted(
    m: Array, left: Array, right: Array, rate: Any, key: Array | None
) -> tuple[Array, Array]:
    """The factors after a step that whitens the momentum, with the noise of this key.

    Without a key, the expectation over all noise is taken. Both factors get the same largest
    element.
    """
    size = jnp.mean(jnp.abs(m))
    if key is not None:
        v = jax.random.normal(key, m.shape, m.dtype)
        a = into(into(m + _DAMPING * size * v, left).mT, right).mT
        b = _solved(_solved(v, left.conj()).mT, right.conj()).mT
        scale = jnp.maximum(polar.magnitude(a), 1.0)  # it cancels in `_moved`
        found, wanted = [[_gram(x, left), _gram(x.mT, right)] for x in (a / scale, b / scale)]
    else:
        a = into(into(m, left).mT, right).mT
        squares = [(_DAMPING * size) ** 2 * jnp.sum(abs_sq(q)) for q in (right, left)]
        found = [
            _gram(x, q) + square * _gram(q[:, None] if q.ndim == 1 else q, q)
            for x, q, square in zip((a, a.mT), (left, right), squares, strict=True)
        ]
        inverses = [_inverse(q) for q in (left, right)]
        weights = [jnp.sum(abs_sq(x)) for x in reversed(inverses)]
        wanted = [
            weight * _gram(x[:, None] if x.ndim == 1 else x.mT.conj(), q)
            for weight, x, q in zip(weights, inverses, (left, right), strict=True)
        ]
    new = [
        _moved(q, now, target, rate)
        for q, now, target in zip((left, right), found, wanted, strict=True)
    ]
    largest = [jnp.max(jnp.abs(q)) for q in new]
    balance = jnp.sqrt(largest[1] / largest[0])
    usable = (size > 0) & jnp.isfinite(size)
    return jnp.where(usable, new[0] * balance, left), jnp.where(usable, new[1] / balance, right)


def _inverse(q: Array) -> Array:
    if q.ndim == 1:
        return 1 / q
    identity = jnp.eye(q.shape[0], dtype=q.dtype)
    return jax.lax.linalg.triangular_solve(q, identity, left_side=True, lower=False)


def _moved(q: Array, found: Array, wanted: Array, rate: Any) -> Array:
    """A step of the factor towards `found` = `wanted`, which holds once the momentum is white."""
    difference, total = found - wanted, found + wanted
    tiny = jnp.finfo(total.dtype).tiny
    if q.ndim == 1:
        return q - rate * difference / (jnp.max(total) + tiny) * q
    return q - _times(jnp.triu(rate / (_norm(total) + tiny) * difference), q)


def _norm(x: Array) -> Array:
    """A lower bound of the spectral norm of a positive matrix, by one power iteration."""
    largest = jnp.max(jnp.abs(x))
    x = x / jnp.where(largest > 0, largest, 1.0)
    start = x[:, jnp.argmax(jnp.sum(abs_sq(x), axis=0))]
    once = _times(x, start)
    size = _length(once)
    return largest * _length(_times(x, once / jnp.where(size > 0, size, 1.0)))


def _length(x: Array) -> Array:
    return sqrt(jnp.sum(abs_sq(x)))
