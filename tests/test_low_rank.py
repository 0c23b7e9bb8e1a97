"""Matrix rules with gradients of low rank, as batches smaller than a layer make them, in float32.

PSGD-Kron is not among them, since the noise that it damps with has all directions; nor are NorMuon
and AdaMuon, which divide by rows and by elements.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matrix_runs import normal, run

import gradx

STEPS = 10
SAMPLES, TARGETS, START = normal(12, 3), normal(8, 3, seed=1), 0.3 * normal(8, 12, seed=2)

FOLLOWED = {
    "soap": gradx.scale_by_soap(precondition_frequency=4),
    "kl_soap": gradx.scale_by_kl_soap(precondition_frequency=4),
    "splus": gradx.scale_by_splus(precondition_frequency=4),
    "shampoo": gradx.scale_by_shampoo(precondition_frequency=4),
}
OTHERS = {
    "dion": gradx.scale_by_dion(),
    "galore": gradx.scale_by_galore(rank=4),  # one direction more than there are
    "muon": gradx.scale_by_muon(),  # whose steps multiply a rounding error by some hundred, at most
}
# Of which the update depends on the size of the gradients.
SIZED = {
    "kl_shampoo": gradx.scale_by_kl_shampoo(precondition_frequency=4),
    "shampoo, the square root": gradx.scale_by_shampoo(exponent=0.5, graft="none"),
}


def least_squares(tx: Any) -> list[Any]:
    """The matrix after each step of least squares with fewer samples than features."""
    x, y, w = (jnp.asarray(a, jnp.float32) for a in (SAMPLES, TARGETS, START))
    state, update, after = tx.init(w), jax.jit(tx.update), []
    for _ in range(STEPS):
        u, state = update((w @ x - y) @ x.T, state, w)
        w = w - 0.02 * u
        after.append(np.asarray(w, np.float64))
    return after


def outside(w: Any) -> float:
    """The part of a matrix that is in no sample."""
    basis = np.linalg.qr(SAMPLES)[0]
    return float(np.linalg.norm(w - w @ basis @ basis.T) / np.linalg.norm(w))


@pytest.mark.parametrize("tx", [*FOLLOWED.values(), *SIZED.values()], ids=[*FOLLOWED, *SIZED])
def test_steps_stay_in_the_span_of_the_samples(tx: Any) -> None:
    """From the second on: the first of SPlus is one of signs, in no basis."""
    after = least_squares(tx)
    assert outside(after[-1] - after[0]) < 1e-5


@pytest.mark.parametrize("tx", FOLLOWED.values(), ids=FOLLOWED)
def test_the_size_of_the_gradients_makes_no_difference(tx: Any) -> None:
    gradient, update = (START @ SAMPLES - TARGETS) @ SAMPLES.T, jax.jit(tx.update)

    def updates(scale: float) -> Any:
        state, made = tx.init(jnp.zeros((8, 12))), []
        for size in (1.0, -0.5, 2.0):
            u, state = update(jnp.asarray(scale * size * gradient, jnp.float32), state)
            made.append(np.asarray(u))
        return made

    expected = updates(1.0)
    for scale in (1e-3, 1e3):
        np.testing.assert_allclose(
            updates(scale), expected, rtol=0, atol=1e-3 * np.max(np.abs(expected))
        )


@pytest.mark.parametrize("tx", OTHERS.values(), ids=OTHERS)
def test_the_others_stay_in_the_span(tx: Any) -> None:
    after = least_squares(tx)
    assert outside(after[-1] - START) < 1e-4


@pytest.mark.full
@pytest.mark.parametrize("name", FOLLOWED)
def test_the_authors_way_divides_rounding_by_itself(name: str) -> None:
    tx = getattr(gradx, f"scale_by_{name}")(rtol=0.0, precondition_frequency=4)
    after = least_squares(tx)
    assert outside(after[-1] - after[0]) > 1e-3


@pytest.mark.full
@pytest.mark.parametrize("name", [*FOLLOWED, "kl_shampoo"])
def test_gradients_of_full_rank_know_no_difference(name: str) -> None:
    grads, factory = normal(12, 5, 4, dtype=np.float32), getattr(gradx, f"scale_by_{name}")
    made, plain = (
        run(factory(precondition_frequency=1, **more), grads, double=False)[0]
        for more in ({}, {"rtol": 0.0})
    )
    np.testing.assert_array_equal(made[1:], plain[1:])
