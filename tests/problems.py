"""The parameters, gradients and objectives that all laws share, and the ways to step over them."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

STEPS = 12
DRAWN = 20  # so that the first gradients are the same however many are used


def params(dtype: Any = np.float32) -> Any:
    """A matrix, a vector and a scalar; complex if the dtype is."""
    rng = np.random.default_rng(0)
    shapes = {"dense": {"kernel": (4, 3), "bias": (3,)}, "scale": ()}
    return jax.tree.map(lambda s: _numbers(rng, s, dtype), shapes, is_leaf=_is_shape)


def gradients(dtype: Any = np.float32, steps: int = STEPS) -> Any:
    """A gradient for each step, stacked; their size changes from step to step by up to ten.

    Fewer steps are the first of these.
    """
    rng = np.random.default_rng(1)
    size = np.exp(rng.uniform(-1.2, 1.2, size=DRAWN))

    def some(shape: Any) -> Any:
        made = np.stack([_numbers(rng, shape, np.complex128) for _ in range(DRAWN)])
        made = (made * size.reshape((DRAWN,) + (1,) * len(shape)))[:steps]
        return (made if np.issubdtype(dtype, np.complexfloating) else made.real).astype(dtype)

    return jax.tree.map(some, jax.tree.map(np.shape, params()), is_leaf=_is_shape)


def _is_shape(x: Any) -> bool:
    return isinstance(x, tuple)


def _numbers(rng: np.random.Generator, shape: Any, dtype: Any) -> Any:
    real, imaginary = rng.normal(size=shape), rng.normal(size=shape)
    made = real + 1j * imaginary if np.issubdtype(dtype, np.complexfloating) else real
    return np.asarray(made, dtype)


def moved(params: Any, updates: Any) -> Any:
    return jax.tree.map(lambda p, u: (p + u).astype(p.dtype), params, updates)


def cast(tree: Any, dtype: Any) -> Any:
    return jax.tree.map(lambda x: jnp.asarray(x, dtype), tree)


def step(tx: Any, params: Any, state: Any, gradient: Any, **extra: Any) -> Any:
    updates, state = tx.update(gradient, state, params, **extra)
    return moved(params, updates), state


def trajectory(tx: Any, params: Any, gradients: Any, **extra: Any) -> Any:
    """The parameters after each step, stacked: one compilation, whatever the number of steps."""

    def run(params: Any, gradients: Any) -> Any:
        def body(carry: Any, gradient: Any) -> Any:
            new = step(tx, *carry, gradient, **extra)
            return new, new[0]

        return jax.lax.scan(body, (params, tx.init(params)), gradients)[1]

    return jax.jit(run)(*jax.tree.map(jnp.asarray, (params, gradients)))


def assert_close(actual: Any, expected: Any, rtol: float) -> None:
    """All agree, relative to the largest of all: a single element may be near zero."""
    actual, expected = jax.tree.leaves(actual), jax.tree.leaves(expected)
    assert len(actual) == len(expected) > 0
    largest = max(np.max(np.abs(e), initial=0.0) for e in expected)
    for a, e in zip(actual, expected, strict=True):
        a, e = np.asarray(a), np.asarray(e)
        assert a.shape == e.shape
        assert np.isfinite(a).all(), a
        np.testing.assert_allclose(a, e, rtol=0, atol=rtol * largest)


def distance(actual: Any, expected: Any) -> float:
    """The largest difference, relative to the largest element."""
    pairs = list(zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True))
    largest = max(np.max(np.abs(e)) for _, e in pairs)
    return max(float(np.max(np.abs(a - e)) / largest) for a, e in pairs)


def assert_same(actual: Any, expected: Any, ulps: int = 0) -> None:
    """The same structure, dtypes and bits, but for the last `ulps` units of a float."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert a.dtype == e.dtype
        if ulps and jnp.issubdtype(a.dtype, jnp.floating):
            np.testing.assert_array_max_ulp(np.asarray(a), np.asarray(e), maxulp=ulps)
        else:
            np.testing.assert_array_equal(np.asarray(a), np.asarray(e))


def bowl(p: Any) -> Any:
    """A quadratic with curvatures from 1 to 10 and its minimum at 1, in every leaf."""
    return sum(
        jnp.mean(jnp.linspace(1.0, 10.0, x.size).reshape(x.shape) * jnp.abs(x - 1.0) ** 2)
        for x in jax.tree.leaves(p)
    )


def valley(p: Any) -> Any:
    """Rosenbrock's curved valley between neighbouring elements, in every leaf."""
    total = jnp.zeros(())
    for leaf in jax.tree.leaves(p):
        x = jnp.concatenate([leaf.ravel(), jnp.ones(1)])
        total += jnp.mean(1.0 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2)
    return total
