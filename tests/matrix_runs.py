"""Steps over matrices, in float64, for the tests of single rules."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def normal(*shape: int, seed: int = 0, dtype: Any = np.float64) -> Any:
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


@functools.cache  # equal transformations, one program for each shape
def program(tx: Any) -> Any:
    def body(state: Any, g: Any) -> Any:
        updates, state = tx.update(g, state)
        return state, (updates, state)

    return jax.jit(lambda state, grads: jax.lax.scan(body, state, grads)[1])


def run(tx: Any, grads: Any, *, double: bool = True) -> tuple[Any, Any]:
    """The updates of all steps, and the state after each, stacked; in float64."""
    with jax.enable_x64(double):
        first = tx.init(jax.tree.map(lambda g: jnp.zeros_like(g[0]), grads))
        made: tuple[Any, Any] = jax.tree.map(np.asarray, program(tx)(first, grads))
        return made


def close(actual: Any, expected: Any, rtol: float = 1e-9) -> None:
    largest = np.max(np.abs(expected))
    np.testing.assert_allclose(actual, expected, rtol=0, atol=rtol * largest)


def orthogonal(basis: Any, atol: float) -> None:
    eye = np.broadcast_to(np.eye(basis.shape[-1]), basis.shape)
    np.testing.assert_allclose(basis.mT @ basis, eye, atol=atol)
