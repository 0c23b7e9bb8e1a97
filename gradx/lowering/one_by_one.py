"""Decompositions of many matrices, one after the other on CPUs, where stacks can deadlock.

On CPUs jaxlib (0.10.2) shares a stack of matrices among the threads that run the program, and the
thread that asks for it waits for the others. If a program has as many stacks at a time as there are
threads, such as two on two cores, all of them wait for ever.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from gradx.lowering.policy import by_target

Array = jax.Array


def one_by_one(decompose: Callable[[Array], Any], derivative: Any = None) -> Callable[[Array], Any]:
    """A decomposition of matrices in the last two axes.

    Args:
      decompose: `matrix -> parts`, such as `jnp.linalg.qr`.
      derivative: `(change of the matrix, *parts) -> changes of the parts`; JAX's by default.
    """
    alone = _alone(decompose)

    @jax.custom_jvp
    def one(x: Array) -> Any:
        return by_target("one_by_one", alone, decompose, x)

    @one.defjvp  # `custom_vmap` has no reverse mode
    def _(primals: tuple[Array], tangents: tuple[Array]) -> Any:
        if derivative is None:
            return jax.jvp(decompose, primals, tangents)
        made = one(*primals)
        return made, derivative(*tangents, *made)

    def each(x: Array) -> Any:
        return one(x) if x.ndim == 2 else jax.vmap(each)(x)

    return each


def _alone(decompose: Callable[[Array], Any]) -> Callable[[Array], Any]:
    """The function; under `vmap` a loop, except for a stack of one."""

    @jax.custom_batching.custom_vmap
    def alone(x: Array) -> Any:
        return decompose(x)

    @alone.def_vmap
    def _(size: int, batched: Any, x: Array) -> tuple[Any, Any]:
        made = _alone(jax.vmap(decompose))(x) if size == 1 else jax.lax.map(alone, x)
        return made, jax.tree.map(lambda _: True, made)

    return alone
