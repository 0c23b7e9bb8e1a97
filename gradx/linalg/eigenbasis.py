"""Eigenvectors of the factors that a matrix's gradients gather on either side, followed over time.

A basis is a matrix with the eigenvectors as its columns, those of the largest eigenvalues first. A
side that has none, since it is too long for one, has arrays of shape (0, 0) and stays as it is.
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
    """A product without the short mantissas that accelerators take by default."""
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def adjoint(x: Array) -> Array:
    return x.mT.conj()


def first_factors(p: Array, *, limit: int) -> dict[str, Array]:
    """Before the first gradient: the factors of both sides, and bases in which nothing changes."""
    rows, columns = (length if length <= limit else 0 for length in p.shape)
    return {
        "row_factor": jnp.zeros((rows, rows), p.dtype),
        "column_factor": jnp.zeros((columns, columns), p.dtype),
        "row_basis": jnp.eye(rows, dtype=p.dtype),
        "column_basis": jnp.eye(columns, dtype=p.dtype),
    }


def averaged(g: Array, left: Array, right: Array, decay: Any) -> tuple[Array, Array]:
    """The factors with a further gradient."""
    if left.size:
        left = average(left, times(g, adjoint(g)), decay)
    if right.size:
        right = average(right, times(adjoint(g), g), decay)
    return left, right


def into(x: Array, rows: Array, columns: Array) -> Array:
    """A matrix in the bases of its two sides."""
    x = times(adjoint(rows), x) if rows.size else x
    return times(x, columns) if columns.size else x


def out_of(x: Array, rows: Array, columns: Array) -> Array:
    """A matrix that was in these bases, as it was before."""
    x = times(rows, x) if rows.size else x
    return times(x, adjoint(columns)) if columns.size else x


def cut(rtol: Hyper | None) -> dict[str, Hyper]:
    """The user's number for `least_share`, if there is one."""
    return {} if rtol is None else {"rtol": rtol}


def least_share(h: Numbers, rounding: float) -> Any:
    """The share of all squares that a direction must have, or it is taken for rounding."""
    return getattr(h, "rtol", rounding)


def rounding_of_products(dtype: Any) -> float:
    """How much of all squares products with bases leave in a direction that has nothing.

    They leave some units of rounding of the norm, so a hundred are on the safe side.
    """
    return (100 * float(jnp.finfo(dtype).eps)) ** 2


def rounding_of_factors(dtype: Any) -> float:
    """The same of a factor: it is a sum of squares, and known to some units of rounding itself."""
    return 8 * float(jnp.finfo(dtype).eps)


def squares(x: Array) -> Array:
    """Those of the elements, up to a number for all, so that they neither over- nor underflow."""
    return abs_sq(x / magnitude(x))


def known(square: Array, least: Any, rows: Array, columns: Array) -> Array | bool:
    """Which elements of a matrix in the bases of its sides are more than rounding errors.

    `square` has their squares. A direction with less than this share of all is none that the
    gradients have: what a matrix has along it is rounding. Between directions that they have, the
    bases are mixed by a rounding error of the factors, which are squares themselves: an element
    needs a tenth of the root of this share of what the sums of its row and its column let expect.
    Without bases nothing has been mixed, and all is known; and so it is where squares underflow.
    """
    if not (rows.size or columns.size):
        return True
    total = jnp.sum(square)
    share = square / jnp.where(total > 0, total, 1.0)
    high, wide = (jnp.sum(share, axis=axis, keepdims=True) for axis in (1, 0))
    found = share >= 0.1 * least**0.5 * high * wide
    found = found & (high >= least) if rows.size else found
    found = found & (wide >= least) if columns.size else found
    return found | (total == 0)


def moved(xs: Any, old: tuple[Array, Array], new: tuple[Array, Array]) -> Any:
    """A matrix, or a tree of them, in the old bases of its two sides, in the new ones."""

    def one(x: Array) -> Array:
        x = _moved(x.mT, old[0].conj(), new[0].conj()).mT
        return _moved(x, old[1], new[1])

    return jax.tree.map(one, xs)


def _moved(x: Array, old: Array, new: Array) -> Array:
    if not new.size:
        return x
    if x.shape[0] < x.shape[1]:  # in the order that takes fewer operations
        return times(times(x, adjoint(old)), new)
    return times(x, times(adjoint(old), new))


def first_basis(factor: Array) -> Array:
    """The eigenvectors of a factor."""
    if not factor.size:
        return factor
    return decompositions.eigh(_scaled(factor))[1][:, ::-1]


def power(factor: Array, basis: Array) -> Array:
    """What a step of the power method makes of the basis, but for a positive number."""
    return times(_scaled(factor), basis)


def largest_first(made: Array, basis: Array) -> Array:
    """The order of the columns in which their eigenvalues, as far as `power` knows them, fall."""
    return jnp.argsort(-jnp.sum(basis.conj() * made, axis=0).real)


def orthogonal(made: Array, basis: Array, factor: Array) -> Array:
    """The basis that Gram and Schmidt's method makes of `power`'s; of a factor of zero the old."""
    return jnp.where(_largest(factor) != 0, decompositions.qr(made)[0], basis)


def _scaled(x: Array) -> Array:
    """With a largest element of 1, so that squares neither over- nor underflow."""
    largest = _largest(x)
    return x / jnp.where(largest > 0, largest, 1.0)


def _largest(x: Array) -> Array:
    return jnp.max(jnp.abs(x))
