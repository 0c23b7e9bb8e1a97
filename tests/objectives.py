"""Test functions of optimization without noise, as one function of ten numbers and an index.

One function, so that all of them are compiled at once: `jax.vmap` runs them next to each other.
Those of two variables use the first two numbers.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import gradx

SIZE = 10


class Objective(NamedTuple):
    """A function, where to begin, and its lowest value."""

    name: str
    function: Any
    start: tuple[float, ...]
    lowest: float


def rosenbrock(x: Any) -> Any:
    return jnp.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2)


def himmelblau(x: Any) -> Any:
    return (x[0] ** 2 + x[1] - 11) ** 2 + (x[0] + x[1] ** 2 - 7) ** 2


def beale(x: Any) -> Any:
    a, b = x[0], x[1]
    return (1.5 - a + a * b) ** 2 + (2.25 - a + a * b**2) ** 2 + (2.625 - a + a * b**3) ** 2


def booth(x: Any) -> Any:
    return (x[0] + 2 * x[1] - 7) ** 2 + (2 * x[0] + x[1] - 5) ** 2


def matyas(x: Any) -> Any:
    return 0.26 * (x[0] ** 2 + x[1] ** 2) - 0.48 * x[0] * x[1]


def sphere(x: Any) -> Any:
    return jnp.sum(x**2)


def ill_conditioned(x: Any) -> Any:
    """Curvatures from 1 to 10,000."""
    return jnp.sum(jnp.logspace(0, 4, x.size) * x**2) / 2


def styblinski_tang(x: Any) -> Any:
    return jnp.sum(x**4 - 16 * x**2 + 5 * x) / 2


def zakharov(x: Any) -> Any:
    tilted = jnp.sum(jnp.arange(1, x.size + 1) * x) / 2
    return jnp.sum(x**2) + tilted**2 + tilted**4


OBJECTIVES = [
    Objective("rosenbrock", rosenbrock, (-1.2, 1.0), 0.0),
    Objective("rosenbrock 10", rosenbrock, (-1.2, 1.0) * 5, 0.0),
    Objective("himmelblau", himmelblau, (0.5, -0.5), 0.0),
    Objective("beale", beale, (1.0, 1.0), 0.0),
    Objective("booth", booth, (-4.0, 6.0), 0.0),
    Objective("matyas", matyas, (5.0, -3.0), 0.0),
    Objective("sphere", sphere, tuple(range(1, 11)), 0.0),
    Objective("ill-conditioned", ill_conditioned, (1.0,) * 10, 0.0),
    Objective("styblinski-tang", styblinski_tang, (-1.0,) * 5, -39.16616570377142 * 5),
    Objective("zakharov", zakharov, (0.5, -0.25, 0.1, 0.2), 0.0),
]


def of_the_first(function: Any, size: int) -> Any:
    """The function of the first few numbers; the others do not matter."""
    return lambda x: function(x[:size])


BRANCHES = [of_the_first(o.function, len(o.start)) for o in OBJECTIVES]


def objective(x: Any, which: Any) -> Any:
    return jax.lax.switch(which, BRANCHES, x)


def starts(dtype: Any = np.float64) -> Any:
    """The starting points of all functions, one a row."""
    padded = [np.pad(o.start, (0, SIZE - len(o.start))) for o in OBJECTIVES]
    return jnp.asarray(np.stack(padded), dtype)


# ---------------------------------------------------------------- against Optax


# Valleys, quartics and bowls: the coefficients of `family`, one function a row.
ROWS = np.array([[100, 1, 0, 0], [0, 1, 0.5, -8], [0, 50, 0, 0], [3, 1, 0.1, 0.3]])


def family(x: Any, c: Any) -> Any:
    bowl = jnp.linspace(0.1, 1, x.size) * (x - 1) ** 2
    valley = (x[1:] - x[:-1] ** 2) ** 2
    return jnp.sum(c[0] * valley) + jnp.sum(c[1] * bowl + c[2] * x**4 + c[3] * x**2)


def quickly(function: Any, **kwargs: Any) -> Any:
    """`jax.jit` for programs that run once: compiled in half the time."""
    return jax.jit(function, compiler_options={"xla_backend_optimization_level": 0}, **kwargs)


def trajectories(tx: Any, dtype: Any, steps: int) -> Any:
    """The parameters after each step, for each row of the family."""

    def run(x: Any, c: Any) -> Any:
        def body(carry: Any, _: Any) -> Any:
            x, state = carry
            value, grad = jax.value_and_grad(family)(x, c)
            extra = {"value": value, "grad": grad, "value_fn": family, "c": c}
            updates, state = tx.update(grad, state, x, **extra)
            return (x + updates, state), x + updates

        return jax.lax.scan(body, (x, tx.init(x)), length=steps)[1]

    x = jnp.tile(jnp.linspace(-1.2, 1.0, 6), (len(ROWS), 1)).astype(dtype)
    return np.asarray(quickly(jax.vmap(run))(x, jnp.asarray(ROWS, dtype)))


def assert_same_way(make: Any, dtype: Any, steps: int = 8) -> None:
    """gradx and Optax go the same way, to 2e-6 in float32 and 1e-8 in float64."""
    rtol = 1e-8 if dtype == np.float64 else 2e-6
    with jax.enable_x64(dtype == np.float64):
        ours, theirs = (trajectories(make(lib), dtype, steps) for lib in (gradx, optax))
    for i in range(len(ROWS)):
        np.testing.assert_allclose(ours[i], theirs[i], rtol=0, atol=rtol * np.abs(theirs[i]).max())
