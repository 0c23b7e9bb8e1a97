"""KL-Shampoo and KL-SOAP: what the laws do not see, on single matrices."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import first_of
from matrix_runs import close, normal, run

import gradx

both = pytest.mark.parametrize("factory", [gradx.scale_by_kl_shampoo, gradx.scale_by_kl_soap])


@both
@pytest.mark.parametrize("kind", ["zero", "late", "one rank", "tiny", "huge"])
@first_of("shape", [(6, 4), (1, 5), (5, 1)])
@pytest.mark.full
def test_poor_gradients_keep_the_state_sound(factory: Any, kind: str, shape: Any) -> None:
    grads = normal(12, *shape).astype(np.float32)
    match kind:
        case "zero":
            grads[:] = 0
        case "late":
            grads[:5] = 0
        case "one rank":
            grads = grads[:, :, :1] * grads[:, :1]
        case "tiny":
            grads *= np.float32(1e-30)
        case "huge":
            grads *= np.float32(1e15)
    updates, state = run(factory(precondition_frequency=2), grads, double=False)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((updates, state)))
    assert updates.any() == (kind != "zero")
    for basis in (state.row_basis, state.column_basis):
        eye = np.broadcast_to(np.eye(basis.shape[-1]), basis.shape)
        np.testing.assert_allclose(basis.mT @ basis, eye, atol=1e-5)
    assert state.row_values.min() >= np.float32(0.01)
    assert state.column_values.min() >= np.float32(0.01)


@pytest.mark.full
def test_the_factors_find_the_covariance_that_made_the_gradients() -> None:
    """Of gradients A N Bᵀ for a standard normal N: AAᵀ and BBᵀ, up to a factor for both."""
    a, b = np.diag([4.0, 2.0, 1.0]), np.diag([3.0, 1.0])
    left, right = (np.linalg.qr(normal(n, n, seed=n))[0] for n in (3, 2))
    grads = (left @ a) @ normal(3000, 3, 2) @ (right @ b).T
    tx = gradx.scale_by_kl_shampoo(shampoo_beta=0.998, precondition_frequency=5)
    _, state = run(tx, grads)
    found = [
        q @ np.diag(d) @ q.T
        for q, d in (
            (state.row_basis[-1], state.row_values[-1]),
            (state.column_basis[-1], state.column_values[-1]),
        )
    ]
    true = np.kron((left @ a) @ (left @ a).T, (right @ b) @ (right @ b).T)
    close(np.kron(*found), true, rtol=0.15)
    close(state.row_factor[-1], found[0], rtol=0.15)


@pytest.mark.full
def test_eigenvalues_are_kept_above_their_clamp() -> None:
    state = gradx.scale_by_kl_shampoo().init(jnp.ones((20, 5)))
    assert (state.row_values == jnp.float32(0.1)).all()
    _, after = run(gradx.scale_by_kl_shampoo(b2=0.0), np.zeros((3, 20, 5)))
    close(after.row_values[-1], np.full(20, 20.0**-2))
    close(after.column_values[-1], np.full(5, 10.0**-2))
    _, after = run(gradx.scale_by_kl_soap(b2=0.0, max_clamp_value=12), np.zeros((3, 20, 5)))
    close(after.row_values[-1], np.full(20, 12.0**-2))


@both
@pytest.mark.full
def test_a_long_side_has_eigenvalues_alone(factory: Any) -> None:
    tx = factory(max_precond_dim=3, precondition_frequency=2)
    _, state = run(tx, normal(4, 6, 3))
    assert state.row_factor.shape == state.row_basis.shape == (4, 0, 0)
    assert state.row_values.shape == (4, 6)
    assert np.ptp(state.row_values[-1]) > 0


@both
def test_numbers_out_of_range_are_named(factory: Any) -> None:
    with pytest.raises(ValueError, match=r"init_factor must be in \(0, inf\)"):
        factory(init_factor=0.0)
    with pytest.raises(ValueError, match=r"max_clamp_value must be in \(0, inf\)"):
        factory(max_clamp_value=0.0)
    with pytest.raises(ValueError, match=r"shampoo_beta must be in \[0, 1\)"):
        factory(shampoo_beta=1.0)
