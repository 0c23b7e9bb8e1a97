"""SPlus: what the laws do not see, on single matrices."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import references
from cases import first_of
from matrix_runs import close, normal, orthogonal, run

import gradx

# ---------------------------------------------------------------- whitening


@pytest.mark.parametrize("shape", [(4, 4), (3, 5), (5, 3)])
@pytest.mark.full
def test_what_has_the_bases_for_singular_vectors_is_whitened(shape: tuple[int, int]) -> None:
    """All singular values become 1: the update is the polar factor, from the second step on."""
    g = normal(*shape)
    updates, _ = run(gradx.scale_by_splus(eps=1e-9), np.stack([g] * 3))
    close(updates[0], np.sign(g), rtol=1e-6)
    u, _, vh = np.linalg.svd(g, full_matrices=False)
    for update in updates[1:]:
        np.testing.assert_allclose(np.linalg.svd(update)[1], 1.0, rtol=1e-6)
        close(update, u @ vh, rtol=1e-6)


def test_the_step_is_bounded_however_old_the_bases_are() -> None:
    """In the bases its elements are 1 and -1, whatever the size of the gradients."""
    grads = normal(12, 4, 3) * 10.0 ** np.arange(-6, 6)[:, None, None]
    updates, state = run(gradx.scale_by_splus(), grads)
    np.testing.assert_array_equal(state.row_basis, state.row_basis[:1].repeat(12, axis=0))
    inside = state.row_basis[0].T @ updates[1:] @ state.column_basis[0]
    np.testing.assert_allclose(np.abs(inside), 1.0, rtol=1e-12)
    np.testing.assert_allclose(np.sum(updates**2, axis=(1, 2)), 12, rtol=1e-12)


def test_without_bases_it_is_the_sign_of_the_momentum() -> None:
    grads = normal(9, 4, 3)
    updates, state = run(gradx.scale_by_splus(b1=0.8, max_precond_dim=0), grads)
    momentum, _ = run(gradx.ema(0.8), grads)
    np.testing.assert_array_equal(updates, np.sign(momentum))
    assert state.row_factor.size == state.column_basis.size == 0


# ---------------------------------------------------------------- what stays the same


@pytest.mark.parametrize("eps", [0.0, 1e-2])
def test_the_scale_of_the_gradients_makes_no_difference(eps: float) -> None:
    grads = normal(9, 4, 3)
    tx = gradx.scale_by_splus(eps=eps, precondition_frequency=2)
    expected, _ = run(tx, grads)
    close(run(tx, 1e-50 * grads)[0], expected)
    close(run(tx, 1e50 * grads)[0], expected)


# ---------------------------------------------------------------- odd matrices


@first_of("double", [True, False])
@pytest.mark.full
def test_eps_takes_away_the_steps_in_directions_without_gradient(double: bool) -> None:
    """Of a gradient of rank one nothing else is there than rounding errors."""
    a, b = normal(6), normal(4, seed=1)
    size = np.array([1.0, 5.0, 0.2, 3.0])[:, None, None]
    grads = (size * np.outer(a, b)).astype(np.float64 if double else np.float32)
    updates, _ = run(gradx.scale_by_splus(eps=1e-3), grads, double=double)
    expected = np.outer(a, b) / (np.linalg.norm(a) * np.linalg.norm(b))
    for update in updates[1:]:
        close(update, expected, rtol=5e-3)


@pytest.mark.full
def test_a_row_without_gradient_stays() -> None:
    """With the authors' signs it moves like the others: its eigenvector is known up to rounding
    errors only."""
    grads = normal(8, 4, 3, dtype=np.float32)
    grads[:, 1] = 0
    signs, _ = run(gradx.scale_by_splus(rtol=0.0, precondition_frequency=3), grads, double=False)
    assert np.abs(signs[1:, 1]).max() > 0.5
    tx = gradx.scale_by_splus(precondition_frequency=3)
    assert np.abs(run(tx, grads, double=False)[0][:, 1]).max() < 1e-4


@pytest.mark.parametrize("shape", [(1, 5), (5, 1), (1, 1)])
@pytest.mark.full
def test_rows_and_columns(shape: tuple[int, int]) -> None:
    grads = normal(10, *shape)
    updates, state = run(gradx.scale_by_splus(precondition_frequency=3), grads)
    np.testing.assert_allclose(np.sum(updates**2, axis=(1, 2)), grads[0].size, rtol=1e-9)
    orthogonal(state.row_basis, 1e-12)
    orthogonal(state.column_basis, 1e-12)
    # Four of five directions had no gradient, so their basis is free: compare without it.
    numbers: dict[str, Any] = {"precondition_frequency": 3, "max_precond_dim": 1}
    expected = references.updates(
        references.scale_by_splus(**numbers), [np.zeros(shape)], [[g] for g in grads]
    )
    close(run(gradx.scale_by_splus(**numbers), grads)[0], np.stack([u for (u,) in expected]))


def test_a_long_side_has_no_state() -> None:
    state = gradx.scale_by_splus(max_precond_dim=4).init({"w": jnp.ones((8, 4))})
    assert state.row_factor["w"].shape == state.row_basis["w"].shape == (0, 0)
    assert state.column_factor["w"].shape == state.column_basis["w"].shape == (4, 4)
    square = gradx.scale_by_splus().init(jnp.ones((8, 8)))
    assert gradx.state_bytes(square) == 20 * 64 + 4


# ---------------------------------------------------------------- when the bases are renewed


def test_the_bases_are_eigenvectors() -> None:
    _, state = run(gradx.scale_by_splus(b2=0.9, precondition_frequency=1), normal(6, 4, 3))
    for q, factor in [
        (state.row_basis, state.row_factor),
        (state.column_basis, state.column_factor),
    ]:
        turned = q.mT @ factor @ q
        close(turned, turned * np.eye(q.shape[-1]), rtol=1e-12)


# ---------------------------------------------------------------- the optimizer


PARAMS = {"embed": jnp.ones((6, 2)), "mlp": jnp.ones((6, 2)), "bias": jnp.ones(2)}


def updates_of(tx: Any, grads: Any = PARAMS) -> dict[str, float]:
    updates, _ = tx.update(grads, tx.init(PARAMS), PARAMS)
    return {k: float(u.ravel()[0]) for k, u in updates.items()}


def test_a_matrix_has_its_rate_by_shape_and_all_else_a_thousandth() -> None:
    made = updates_of(gradx.splus(0.8, weight_decay=0.0))
    assert made == pytest.approx({"embed": -8e-4, "mlp": -0.2, "bias": -8e-4})
    made = updates_of(gradx.splus(0.8, weight_decay=0.0, fallback=gradx.sgd(1.0)))
    assert made == pytest.approx({"embed": -1.0, "mlp": -0.2, "bias": -1.0})


@pytest.mark.parametrize(
    ("decay", "expected"), [("learning_rate", 0.1 * 0.2), ("schedule", 0.05), ("independent", 0.1)]
)
def test_the_decay_is_by_shape_where_it_is_by_the_rate(decay: Any, expected: float) -> None:
    rate = gradx.scaled(1.6, lambda count: 0.5)
    tx = gradx.splus(rate, weight_decay=0.1, decay=decay)
    made = updates_of(tx, jax.tree.map(jnp.zeros_like, PARAMS))
    assert made == pytest.approx({"embed": 0.0, "mlp": -expected, "bias": 0.0})


def test_the_signs_are_exact_also_where_eps_may_change() -> None:
    grads = normal(3, 4, 3, dtype=np.float32)
    tx = gradx.scale_by_splus(eps=gradx.tunable(0.0), max_precond_dim=0)
    updates, _ = run(tx, grads, double=False)
    assert set(np.unique(updates)) == {-1.0, 1.0}


@pytest.mark.full
def test_the_first_moment_may_be_short() -> None:
    tx = gradx.scale_by_splus(eps=0.1, mu_dtype=jnp.bfloat16, precondition_frequency=2)
    grads = normal(6, 4, 3, dtype=np.float32)
    updates, state = run(tx, grads, double=False)
    assert state.mu.dtype == jnp.bfloat16
    full = gradx.scale_by_splus(eps=0.1, precondition_frequency=2)
    close(updates, run(full, grads, double=False)[0], 0.05)
