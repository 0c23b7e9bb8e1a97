"""Eigenvectors of the factors that a matrix's gradients gather on either side, followed over time.

A basis is a matrix with the eigenvectors as its columns, those of the largest eigenvalues first. A
side that has none, since it is too long for one, has arrays of shape (0, 0) and stays as it is.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from gradx.sources import Array


def times(a: Array, b: Array) -> Array:
    """A product without the short mantissas that accelerators take by default."""
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def adjoint(x: Array) -> Array:
    return x.mT.conj()


def empty_factor(length: int, limit: int, like: Array) -> Array:
    """A factor before the first gradient."""
    kept = length if length <= limit else 0
    return jnp.zeros((kept, kept), like.dtype)


def plain_basis(length: int, limit: int, like: Array) -> Array:
    """The basis in which a matrix is what it is."""
    return jnp.eye(length if length <= limit else 0, dtype=like.dtype)


def into(x: Array, rows: Array, columns: Array) -> Array:
    """A matrix in the bases of its two sides."""
    x = times(adjoint(rows), x) if rows.size else x
    return times(x, columns) if columns.size else x


def out_of(x: Array, rows: Array, columns: Array) -> Array:
    """A matrix that was in these bases, as it was before."""
    x = times(rows, x) if rows.size else x
    return times(x, adjoint(columns)) if columns.size else x


def moved(x: Array, old: tuple[Array, Array], new: tuple[Array, Array]) -> Array:
    """A matrix in the old bases of its two sides, in the new ones."""
    turns = [times(adjoint(n), o) if n.size else n for n, o in zip(new, old, strict=True)]
    return into(x, adjoint(turns[0]), adjoint(turns[1]))


def first_basis(factor: Array) -> Array:
    """The eigenvectors of a factor."""
    if not factor.size:
        return factor
    return jnp.linalg.eigh(_scaled(factor), symmetrize_input=False)[1][:, ::-1]


def largest_first(factor: Array, basis: Array) -> Array:
    """The order of the columns in which their eigenvalues, as far as they are known, fall."""
    estimates = jnp.sum(basis.conj() * times(factor, basis), axis=0).real
    return jnp.argsort(-estimates)


def next_basis(factor: Array, basis: Array) -> Array:
    """One power iteration and Gram and Schmidt's method, which leaves the basis orthogonal.

    It stays as it is where the factor is zero.
    """
    if not factor.size:
        return basis
    power = times(_scaled(factor), basis)
    return jnp.where(jnp.any(power != 0), jnp.linalg.qr(power)[0], basis)


def _scaled(x: Array) -> Array:
    """With a largest element of 1, so that squares neither over- nor underflow."""
    largest = jnp.max(jnp.abs(x))
    return x / jnp.where(largest > 0, largest, 1.0)
