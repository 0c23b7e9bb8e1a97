"""Decompositions of matrices which may be mapped over many of them, by `jax.vmap`.

On CPUs jaxlib (0.10.2) shares a stack of matrices among the threads that run the program, and the
thread that asks for it waits for the others. Where a program has as many stacks at a time as there
are threads, two on two cores, all of them wait for ever. So there it is one matrix after the other.
"""

from __future__ import annotations

from collections.abc import Callable
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


def _one_by_one(decompose: Callable[[Array], Any]) -> Callable[[Array], Any]:
    alone = _alone(decompose)

    @jax.custom_jvp
    def one(x: Array) -> Any:
        return jax.lax.platform_dependent(x, cpu=alone, default=decompose)

    # `custom_vmap` has no gradients in reverse.
    one.defjvp(lambda primals, tangents: jax.jvp(decompose, primals, tangents))

    def each(x: Array) -> Any:
        return one(x) if x.ndim == 2 else jax.vmap(each)(x)

    return each


eigh = _one_by_one(lambda x: tuple(jnp.linalg.eigh(x, symmetrize_input=False)))
qr = _one_by_one(lambda x: tuple(jnp.linalg.qr(x)))
svd = _one_by_one(lambda x: tuple(jnp.linalg.svd(x, full_matrices=False)))
largest_singular_value = _one_by_one(lambda x: jnp.linalg.norm(x, ord=2))
