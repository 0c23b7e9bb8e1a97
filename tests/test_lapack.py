"""Decompositions that may be mapped: as JAX's own, with gradients, and none waits for ever."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradx.linalg import decompositions

FUNCTIONS = {
    "eigh": (decompositions.eigh, lambda x: tuple(jnp.linalg.eigh(x, symmetrize_input=False))),
    "qr": (decompositions.qr, lambda x: tuple(jnp.linalg.qr(x))),
    "svd": (decompositions.svd, lambda x: tuple(jnp.linalg.svd(x, full_matrices=False))),
    "largest": (decompositions.largest_singular_value, lambda x: jnp.linalg.norm(x, ord=2)),
}
each = pytest.mark.parametrize(("ours", "theirs"), FUNCTIONS.values(), ids=FUNCTIONS)

# Four stacks in one program, many times: with jnp.linalg on two cores this does not end.
PROGRAM = """
import jax
from gradx.linalg import decompositions as made

def step(stacks):
    return [(made.qr(x), made.eigh(x + x.mT), made.svd(x)) for x in stacks]

stacks = [jax.random.normal(jax.random.key(i), (8, 48, 48)) for i in range(4)]
run = jax.jit(jax.vmap(lambda *stacks: step(stacks)))
for _ in range(30):
    jax.block_until_ready(run(*stacks))
print("done")
"""


def close(a: Any, b: Any) -> None:
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=2e-5, atol=2e-5), a, b)


def symmetric(*shape: int) -> Any:
    x = jnp.asarray(np.random.default_rng(0).standard_normal(shape), jnp.float32)
    return x + x.mT


@each
def test_as_in_jax_also_in_stacks(ours: Any, theirs: Any) -> None:
    x = symmetric(2, 3, 4, 4)
    close(ours(x[0, 0]), theirs(x[0, 0]))
    close(jax.jit(jax.vmap(jax.vmap(ours)))(x), jax.vmap(jax.vmap(theirs))(x))


@each
@pytest.mark.full
def test_there_are_gradients(ours: Any, theirs: Any) -> None:
    x = symmetric(3, 4, 4)
    total = lambda f: lambda x: sum(jnp.sum(y**2 * y) for y in jax.tree.leaves(jax.vmap(f)(x)))
    close(jax.grad(total(ours))(x), jax.grad(total(theirs))(x))
    close(jax.jvp(ours, (x[0],), (x[1],)), jax.jvp(theirs, (x[0],), (x[1],)))


def test_stacks_at_a_time_do_not_wait_for_each_other() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=300
    )
    assert done.stdout.strip() == "done", done.stderr
