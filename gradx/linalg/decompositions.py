"""Decompositions of matrices, with derivatives where JAX's are NaN; each also of many matrices."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp

from gradx.lowering.one_by_one import one_by_one
from gradx.numbers.sources import Array

# Vectors of equal eigenvalues, and of no length, may point anywhere, and JAX's derivatives are NaN
# there. But what is made of them, a space or a root, often has one: here they do not turn.


def _of_eigh(dx: Array, values: Array, vectors: Array) -> tuple[Array, Array]:
    gaps = values[None, :] - values[:, None]
    known = jnp.abs(gaps) > _rounding(values)
    turned = _times(_times(vectors.conj().T, dx), vectors)
    turns = jnp.where(known, turned / jnp.where(known, gaps, 1.0), 0.0)
    return jnp.diagonal(turned).real, _times(vectors, turns)


def _of_qr(dx: Array, q: Array, r: Array) -> tuple[Array, Array]:
    lengths = jnp.abs(jnp.diagonal(r))
    known = lengths > _rounding(lengths)
    solvable = r + jnp.diag(jnp.where(known, 0.0, 1.0).astype(r.dtype))
    moved = jax.lax.linalg.triangular_solve(solvable, dx, left_side=False, lower=False)
    moved = jnp.where(known[None], moved, 0.0)
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
