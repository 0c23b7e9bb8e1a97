"""SPlus: what the laws do not see, on single matrices."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import references

import gradx


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


# ---------------------------------------------------------------- whitening


@pytest.mark.parametrize("shape", [(4, 4), (3, 5), (5, 3)])
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


def test_transposed_gradients_give_transposed_updates() -> None:
    grads = normal(12, 4, 3)
    tx = gradx.scale_by_splus(precondition_frequency=3)
    updates, state = run(tx, grads)
    transposed, of_transposed = run(tx, grads.mT)
    close(transposed.mT, updates)
    close(of_transposed.row_factor, state.column_factor)


def test_turned_gradients_give_turned_updates() -> None:
    """But for the first step, before there are bases."""
    grads = normal(12, 4, 3)
    left, right = (np.linalg.qr(normal(n, n, seed=n))[0] for n in (4, 3))
    tx = gradx.scale_by_splus(precondition_frequency=3)
    turned = run(tx, left @ grads @ right)[0]
    close(turned[1:], left @ run(tx, grads)[0][1:] @ right)


def test_stacked_matrices_are_as_single_ones() -> None:
    grads = normal(8, 2, 4, 3)
    alone = [run(gradx.scale_by_splus(precondition_frequency=3), grads[:, i])[0] for i in range(2)]
    axes = gradx.MatrixAxes(-2, -1)
    stacked, state = run(gradx.scale_by_splus(precondition_frequency=3, axes=axes, chunk=1), grads)
    close(stacked, np.stack(alone, axis=1))
    assert state.row_basis.shape == (8, 2, 4, 4)


def test_devices_may_share_the_matrices() -> None:
    mesh = jax.make_mesh((jax.device_count(),), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    grads = [normal(5, 4, 3, seed=i) for i in range(3)]
    tx = gradx.scale_by_splus(precondition_frequency=2)
    shared = gradx.scale_by_splus(precondition_frequency=2, share=gradx.Share(mesh, "d"))
    for actual, expected in zip(run(shared, grads)[0], run(tx, grads)[0], strict=True):
        close(actual, expected)


# ---------------------------------------------------------------- odd matrices


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("kind", ["zero", "then zero", "late", "one rank", "tiny", "huge"])
def test_poor_gradients_keep_the_bases_orthogonal(kind: str, dtype: Any) -> None:
    grads = normal(8, 6, 4, dtype=np.float32)
    match kind:
        case "zero":
            grads[:] = 0
        case "then zero":
            grads[3:] = 0
        case "late":
            grads[:5] = 0
        case "one rank":
            grads = grads[:, :, :1] * grads[:, :1]
        case "tiny":
            grads *= np.float32(1e-30 if dtype != jnp.float16 else 1e-7)
        case "huge":
            grads *= np.float32(1e15 if dtype != jnp.float16 else 1e4)
    tx = gradx.scale_by_splus(precondition_frequency=2)
    updates, state = run(tx, jnp.asarray(grads, dtype), double=False)
    assert all(np.isfinite(x.astype(np.float32)).all() for x in jax.tree.leaves((updates, state)))
    orthogonal(state.row_basis, 1e-5)
    orthogonal(state.column_basis, 1e-5)
    largest = np.abs(updates.astype(np.float32)).max()
    assert largest == 0 if kind == "zero" else 0 < largest <= np.sqrt(24) + 0.1


@pytest.mark.parametrize("double", [False, True])
def test_eps_takes_away_the_steps_in_directions_without_gradient(double: bool) -> None:
    """Of a gradient of rank one nothing else is there than rounding errors."""
    a, b = normal(6), normal(4, seed=1)
    size = np.array([1.0, 5.0, 0.2, 3.0])[:, None, None]
    grads = (size * np.outer(a, b)).astype(np.float64 if double else np.float32)
    updates, _ = run(gradx.scale_by_splus(eps=1e-3), grads, double=double)
    expected = np.outer(a, b) / (np.linalg.norm(a) * np.linalg.norm(b))
    for update in updates[1:]:
        close(update, expected, rtol=5e-3)


def test_with_eps_a_row_without_gradient_stays() -> None:
    """Without, it moves like the others: its eigenvector is known up to rounding errors only."""
    grads = normal(8, 4, 3, dtype=np.float32)
    grads[:, 1] = 0
    signs, _ = run(gradx.scale_by_splus(precondition_frequency=3), grads, double=False)
    assert np.abs(signs[1:, 1]).max() > 0.5
    tx = gradx.scale_by_splus(eps=1e-3, precondition_frequency=3)
    assert np.abs(run(tx, grads, double=False)[0][:, 1]).max() < 0.05


@pytest.mark.parametrize("shape", [(1, 5), (5, 1), (1, 1)])
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


def renewed(tx: Any, count: int, steps: int) -> Any:
    """In which steps after the first the basis of each of several matrices changes."""
    _, state = run(tx, [normal(steps, 4, 3, seed=i) for i in range(count)])
    bases = np.stack(state.row_basis, axis=1)
    return (bases[1:] != bases[:-1]).any(axis=(2, 3))


def test_all_bases_are_renewed_in_every_kth_step() -> None:
    changed = renewed(gradx.scale_by_splus(precondition_frequency=4), 2, 10)
    np.testing.assert_array_equal(changed[:, 0], [t % 4 == 0 for t in range(1, 10)])
    np.testing.assert_array_equal(changed[:, 1], changed[:, 0])


def test_staggered_each_basis_is_renewed_once_in_k_steps() -> None:
    changed = renewed(gradx.scale_by_splus(precondition_frequency=4, staggered=True), 3, 13)
    for begin in range(1, 9):
        np.testing.assert_array_equal(changed[begin : begin + 4].sum(axis=0), np.ones(3))
    assert changed.sum(axis=1).max() == 1


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


def test_the_first_moment_may_be_short() -> None:
    tx = gradx.scale_by_splus(eps=0.1, mu_dtype=jnp.bfloat16, precondition_frequency=2)
    grads = normal(6, 4, 3, dtype=np.float32)
    updates, state = run(tx, grads, double=False)
    assert state.mu.dtype == jnp.bfloat16
    full = gradx.scale_by_splus(eps=0.1, precondition_frequency=2)
    close(updates, run(full, grads, double=False)[0], 0.05)
