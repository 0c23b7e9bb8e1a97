"""Decompositions of a matrix or of many, with finite derivatives where JAX's are NaN."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp

from gradx.lowering.one_by_one import one_by_one
from gradx.numbers.sources import Array

# Eigenvectors of equal eigenvalues, and directions of columns of length zero, are arbitrary, and
# JAX's derivatives are NaN there. A space or a root made of them often has a derivative, so here
# the arbitrary vectors do not turn.


def _of_eigh(dx: Array, values: Array, vectors: Array) -> tuple[Array, Array]:
    gaps = values[None, :] - values[:, None]
    distinct = jnp.abs(gaps) > _rounding(values)
    turned = _times(_times(vectors.conj().T, dx), vectors)
    turns = jnp.where(distinct, turned / jnp.where(distinct, gaps, 1.0), 0.0)
    return jnp.diagonal(turned).real, _times(vectors, turns)


def _of_qr(dx: Array, q: Array, r: Array) -> tuple[Array, Array]:
    lengths = jnp.abs(jnp.diagonal(r))
    nonzero = lengths > _rounding(lengths)
    solvable = r + jnp.diag(jnp.where(nonzero, 0.0, 1.0).astype(r.dtype))
    moved = jax.lax.linalg.triangular_solve(solvable, dx, left_side=False, lower=False)
    moved = jnp.where(nonzero[None], moved, 0.0)
    inside = _times(q.conj().T, moved)
    below = jnp.tril(inside, -1)
    turns = below - below.conj().T + jnp.diag(jnp.diagonal(inside) - jnp.diagonal(inside).real)
    return moved + _times(q, turns - inside), _times(inside - turns, r)


def _rounding(x: Array) -> Array:
    return x.size * jnp.finfo(x.dtype).eps * jnp.max(jnp.abs(x), initial=0.0)


_times = partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)

eigh = one_by_one(lambda x: tuple(jnp.linalg.eigh(x, symmetrize_input=False)), _of_eigh)
qr = one_by_one(lambda x: tuple(jnp.linalg.qr(x)), _of_qr)
svd = one_by_one(lambda x: tuple(jnp.linalg.svd(x, full_matrices=False)))
largest_singular_value = one_by_one(lambda x: jnp.linalg.norm(x, ord=2))
