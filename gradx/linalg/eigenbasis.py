"""Shampoo's factors of a matrix, and their eigenvectors, followed from step to step.

The factors are averages of G Gᴴ (rows) and Gᴴ G (columns). A basis has the eigenvectors of a factor
as its columns, those of the largest eigenvalues first. A side that is too long for a factor has
arrays of shape (0, 0), and is left as it is.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from gradx.core.trees import abs_sq
from gradx.lift.averages import average
from gradx.lift.stages import Numbers
from gradx.linalg import decompositions
from gradx.linalg.polar import magnitude
from gradx.numbers.sources import Array, Hyper


def times(a: Array, b: Array) -> Array:
    """A product in full precision; accelerators take shorter mantissas by default."""
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def adjoint(x: Array) -> Array:
    return x.mT.conj()


def first_factors(p: Array, *, limit: int) -> dict[str, Array]:
    """The factors of both sides before the first gradient, zero, and identities as bases."""
    rows, columns = (length if length <= limit else 0 for length in p.shape)
    return {
        "row_factor": jnp.zeros((rows, rows), p.dtype),
        "column_factor": jnp.zeros((columns, columns), p.dtype),
        "row_basis": jnp.eye(rows, dtype=p.dtype),
        "column_basis": jnp.eye(columns, dtype=p.dtype),
    }


def averaged(g: Array, left: Array, right: Array, decay: Any) -> tuple[Array, Array]:
    """The factors with a new gradient averaged in."""
    if left.size:
        left = average(left, times(g, adjoint(g)), decay)
    if right.size:
        right = average(right, times(adjoint(g), g), decay)
    return left, right


def into(x: Array, rows: Array, columns: Array) -> Array:
    """A matrix expressed in the bases of its two sides."""
    x = times(adjoint(rows), x) if rows.size else x
    return times(x, columns) if columns.size else x


def out_of(x: Array, rows: Array, columns: Array) -> Array:
    """The inverse of `into`: a matrix brought back from these bases."""
    x = times(rows, x) if rows.size else x
    return times(x, adjoint(columns)) if columns.size else x


def cut(rtol: Hyper | None) -> dict[str, Hyper]:
    """The user's number for `least_share`, if it was given."""
    return {} if rtol is None else {"rtol": rtol}


def least_share(h: Numbers, rounding: float) -> Any:
    """The share of all squares below which a direction is taken for rounding error."""
    return getattr(h, "rtol", rounding)


def rounding_of_products(dtype: Any) -> float:
    """The share of all squares that products with bases may leave in an empty direction.

    They leave a few units of rounding of the norm, so a hundred are on the safe side.
    """
    return (100 * float(jnp.finfo(dtype).eps)) ** 2


def rounding_of_factors(dtype: Any) -> float:
    """The same for a factor: a sum of squares, itself known to a few units of rounding."""
    return 8 * float(jnp.finfo(dtype).eps)


def squares(x: Array) -> Array:
    """The elements' squares up to a common factor, so that they neither over- nor underflow."""
    return abs_sq(x / magnitude(x))


def known(square: Array, least: Any, rows: Array, columns: Array) -> Array | bool:
    """Which elements of a matrix in the bases of its sides are more than rounding errors.

    `square` has their squares. A row or column with less than the share `least` of their sum is
    rounding error: the gradients have no such direction. The other directions are mixed with each
    other by rounding errors of the factors, which are squares. So an element must also reach a
    tenth of the root of `least`, times what the sums of its row and its column predict. Without
    bases nothing was mixed, and every element counts; so it is where all squares underflow.
    """
    if not (rows.size or columns.size):
        return True
    total = jnp.sum(square)
    share = square / jnp.where(total > 0, total, 1.0)
    high, wide = (jnp.sum(share, axis=axis, keepdims=True) for axis in (1, 0))
    signal = share >= 0.1 * least**0.5 * high * wide
    signal = signal & (high >= least) if rows.size else signal
    signal = signal & (wide >= least) if columns.size else signal
    return signal | (total == 0)


def moved(xs: Any, old: tuple[Array, Array], new: tuple[Array, Array]) -> Any:
    """Takes a matrix, or a tree of them, from the old bases of its two sides to the new ones."""

    def both_sides(x: Array) -> Array:
        x = _moved(x.mT, old[0].conj(), new[0].conj()).mT
        return _moved(x, old[1], new[1])

    return jax.tree.map(both_sides, xs)


def _moved(x: Array, old: Array, new: Array) -> Array:
    if not new.size:
        return x
    if x.shape[0] < x.shape[1]:  # this order takes fewer operations
        return times(times(x, adjoint(old)), new)
    return times(x, times(adjoint(old), new))


def first_basis(factor: Array) -> Array:
    """The eigenvectors of a factor."""
    if not factor.size:
        return factor
    return decompositions.eigh(_scaled(factor))[1][:, ::-1]


def power(factor: Array, basis: Array) -> Array:
    """The factor times the basis, a step of the power method, up to a positive number."""
    return times(_scaled(factor), basis)


def largest_first(product: Array, basis: Array) -> Array:
    """The order of the columns by falling eigenvalue, estimated from `power`'s product."""
    return jnp.argsort(-jnp.sum(basis.conj() * product, axis=0).real)


def orthogonal(product: Array, basis: Array, factor: Array) -> Array:
    """The new basis: Q of the QR decomposition of the product; the old one if `factor` is 0."""
    return jnp.where(_largest(factor) != 0, decompositions.qr(product)[0], basis)


def _scaled(x: Array) -> Array:
    """Divides by the largest element, so that squares neither over- nor underflow."""
    largest = _largest(x)
    return x / jnp.where(largest > 0, largest, 1.0)


def _largest(x: Array) -> Array:
    return jnp.max(jnp.abs(x))
