"""Decompositions of matrices which may be mapped over many of them, by `jax.vmap`.

On CPUs jaxlib (0.10.2) shares a stack of matrices among the threads that run the program, and the
thread that asks for it waits for the others. Where a program has as many stacks at a time as there
are threads, two on two cores, all of them wait for ever. So there it is one matrix after the other.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from gradx.sources import Array


def _alone(decompose: Callable[[Array], Any]) -> Callable[[Array], Any]:
    """The function, which `vmap` makes a loop of; but a stack of one is as good as a matrix."""

    @jax.custom_batching.custom_vmap
    def alone(x: Array) -> Any:
        return decompose(x)

    @alone.def_vmap
    def _(size: int, batched: Any, x: Array) -> tuple[Any, Any]:
        made = _alone(jax.vmap(decompose))(x) if size == 1 else jax.lax.map(alone, x)
        return made, jax.tree.map(lambda _: True, made)

    return alone


def _one_by_one(
    decompose: Callable[[Array], Any], derivative: Any = None
) -> Callable[[Array], Any]:
    """`derivative` is of what was decomposed, its change and the parts; JAX's by default."""
    alone = _alone(decompose)

    @jax.custom_jvp
    def one(x: Array) -> Any:
        return jax.lax.platform_dependent(x, cpu=alone, default=decompose)

    @one.defjvp  # `custom_vmap` has no gradients in reverse
    def _(primals: tuple[Array], tangents: tuple[Array]) -> Any:
        if derivative is None:
            return jax.jvp(decompose, primals, tangents)
        made = one(*primals)
        return made, derivative(*tangents, *made)

    def each(x: Array) -> Any:
        return one(x) if x.ndim == 2 else jax.vmap(each)(x)

    return each


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

eigh = _one_by_one(lambda x: tuple(jnp.linalg.eigh(x, symmetrize_input=False)), _of_eigh)
qr = _one_by_one(lambda x: tuple(jnp.linalg.qr(x)), _of_qr)
svd = _one_by_one(lambda x: tuple(jnp.linalg.svd(x, full_matrices=False)))
largest_singular_value = _one_by_one(lambda x: jnp.linalg.norm(x, ord=2))
