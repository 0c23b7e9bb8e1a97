"""PSGD-Kron: its noise, when its factors are fitted, what they become, and hard gradients."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import references
from cases import first_of
from problems import assert_close, assert_same

import gradx


def some(*shape: int, seed: int = 0) -> Any:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def run(tx: Any, grads: Any) -> tuple[Any, Any]:
    """The updates of some steps, stacked, and the last state."""

    def body(state: Any, g: Any) -> Any:
        u, state = tx.update(g, state)
        return state, u

    first = jax.tree.map(lambda g: g[0], grads)
    state, made = jax.jit(lambda s, g: jax.lax.scan(body, s, g))(tx.init(first), grads)
    return made, state


# ---------------------------------------------------------------- noise


@pytest.mark.full
@pytest.mark.parametrize("mode", [None, "one_diag", "all_diag"])
@first_of("shape", [(4, 3), (3, 3), (1, 4)])
def test_with_noise_it_is_the_authors_rule(mode: Any, shape: tuple[int, int]) -> None:
    grads = np.asarray(some(8, *shape))
    key, noise = jax.random.key(3), []
    for _ in grads:
        key, now = jax.random.split(key)
        noise.append(np.asarray(jax.random.normal(now, shape, jnp.float32), np.float64))
    numbers: Any = {"memory_save_mode": mode, "preconditioner_lr": 0.3}
    made, _ = run(gradx.scale_by_psgd_kron(**numbers, key=3), grads)
    reference = references.scale_by_psgd_kron(**numbers, probe=lambda t, shape: noise[t])
    expected = references.updates(reference, grads[:1], [[g] for g in grads])
    assert_close(list(made), [us[0] for us in expected], rtol=5e-6)


@pytest.mark.full
def test_the_key_decides_the_noise() -> None:
    grads = some(3, 4, 3)
    keys = 0, jax.random.PRNGKey(0), 1
    made = [run(gradx.scale_by_psgd_kron(key=k), grads)[0] for k in keys]
    assert_same(made[0], made[1])
    assert np.max(np.abs(made[0] - made[2])) > 1e-3
    silent = [run(gradx.scale_by_psgd_kron(key=k, probe="expected"), grads)[0] for k in (0, 1)]
    assert_same(*silent)


# ---------------------------------------------------------------- when


@pytest.mark.full
def test_factors_are_fitted_as_often_as_they_should() -> None:
    def fitted(often: Any, steps: int) -> list[int]:
        tx = gradx.scale_by_psgd_kron(preconditioner_update_probability=often)
        state, found = tx.init(some(3, 2)), []
        for i in range(1, steps + 1):
            before = state.left
            _, state = tx.update(some(3, 2, seed=i), state)
            if not np.array_equal(before, state.left):
                found.append(i)
        return found

    assert fitted(None, 3) == [1, 2, 3]
    assert fitted(0.25, 9) == [4, 8]
    assert fitted(0.1, 10) == [10]
    assert fitted(0.0, 4) == []
    assert fitted(lambda count: jnp.where(count < 2, 1.0, 0.5), 6) == [1, 2, 4, 6]


def test_the_authors_schedule() -> None:
    ours = gradx.precond_update_prob_schedule(0.9, 0.1, 0.01, 50)
    theirs = references.precond_update_prob_schedule(0.9, 0.1, 0.01, 50)
    counts = [0, 49, 50, 51, 150, 269, 270, 10**6]
    assert_close([ours(t) for t in counts], [np.float64(theirs(t)) for t in counts], rtol=1e-6)


def test_to_fit_is_a_conditional_also_for_stacked_matrices() -> None:
    """And not a choice between two results, which would take both."""
    tx = gradx.scale_by_psgd_kron()
    p = {"a": some(4, 3), "b": some(4, 3)}
    text = jax.jit(tx.update).lower(p, tx.init(p)).as_text()
    assert "stablehlo.case" in text or "stablehlo.if" in text


# ---------------------------------------------------------------- what becomes of them


@pytest.mark.parametrize(
    ("numbers", "left", "right"),
    [
        ({}, (3, 3), (5, 5)),
        ({"memory_save_mode": "one_diag"}, (3, 3), (5,)),
        ({"memory_save_mode": "all_diag"}, (3,), (5,)),
        ({"max_size_triangular": 4}, (3, 3), (5,)),
        ({"max_size_triangular": 0}, (3,), (5,)),
    ],
)
def test_which_factors_are_diagonal(numbers: Any, left: Any, right: Any) -> None:
    tx = gradx.scale_by_psgd_kron(preconditioner_init_scale=0.25, **numbers)
    state = tx.init(jnp.ones((3, 5)))
    assert (state.left.shape, state.right.shape) == (left, right)
    assert_close(jnp.max(state.left) * jnp.max(state.right), np.float32(0.25), rtol=1e-6)
    turned = tx.init(jnp.ones((5, 3)))
    assert (turned.left.shape, turned.right.shape) == (right, left)


@first_of("probe", ["normal", "expected"])
@pytest.mark.full
def test_it_whitens(probe: Any) -> None:
    """Gradients with rows and columns of very different size, mixed, come out white."""
    mix = some(3, 3, seed=5) * jnp.array([4.0, 1.0, 0.5])
    scale = jnp.array([3.0, 1.0, 1.0, 0.5])
    grads = jnp.einsum("ij,tjk,k->tik", mix, some(1500, 3, 4, seed=1), scale)
    _, state = run(gradx.scale_by_psgd_kron(0.0, 1.0, preconditioner_lr=0.03, probe=probe), grads)
    assert_close(state.left, jnp.triu(state.left), rtol=0)

    whole = jnp.einsum("ji,jk->ik", state.left, state.left) @ grads[-700:]
    whole = whole @ (state.right.T @ state.right)  # with the last factors, and without the cap
    rows = jnp.einsum("tik,tjk->ij", whole, whole) / (700 * 4)
    columns = jnp.einsum("tik,til->kl", whole, whole) / (700 * 3)
    for found in (rows, columns):
        assert np.linalg.cond(found) < 3
        assert 0.6 < np.trace(found) / len(found) < 1.6
    raw = jnp.einsum("tik,tjk->ij", grads, grads)
    assert np.linalg.cond(raw) > 50


@pytest.mark.full
def test_updates_are_capped() -> None:
    grads = 1e3 * some(3, 4, 3)
    made, _ = run(gradx.scale_by_psgd_kron(), grads)
    assert_close(jnp.sqrt(jnp.mean(made**2, axis=(1, 2))), np.full(3, 1.1), rtol=1e-6)


@pytest.mark.full
def test_stacked_layers_are_matrices_of_their_own() -> None:
    grads = some(4, 3, 4, 2)
    made, state = run(gradx.scale_by_psgd_kron(axes=gradx.MatrixAxes(1, 2)), grads)
    assert state.left.shape == (3, 4, 4)
    for i in range(3):
        alone, _ = run(gradx.scale_by_psgd_kron(), grads[:, i])
        assert_close(made[:, i], alone, rtol=5e-6)


# ---------------------------------------------------------------- hard gradients


@first_of("probe", ["normal", "expected"])
@first_of("dtype", [jnp.float16, jnp.bfloat16, jnp.float32])
@pytest.mark.full
def test_updates_stay_finite(probe: Any, dtype: Any) -> None:
    shapes, sizes = [(1, 4), (4, 1), (1, 1), (3, 5)], [0.0, 1e-30, 1e4, 1e15]
    values = [min(size, float(jnp.finfo(dtype).max) / 4) for size in sizes]
    grads = {f"{s} of {x}": jnp.full((3, *s), x, dtype) for s in shapes for x in values}
    made, state = run(gradx.scale_by_psgd_kron(probe=probe), grads)
    numbers = state._replace(key=jnp.zeros(()))
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((made, numbers)))
    assert {u.dtype for u in jax.tree.leaves(made)} == {jnp.dtype(dtype)}


@first_of("first", [0.0, 1e-30])
@pytest.mark.parametrize("probe", ["normal", "expected"])
@pytest.mark.full
def test_a_gradient_after_a_long_sleep(probe: Any, first: float) -> None:
    """Without a gradient nothing holds the factors back; they must not grow until they overflow."""
    grads = jnp.concatenate([jnp.full((1200, 4, 3), first), some(300, 4, 3)])
    made, state = run(gradx.scale_by_psgd_kron(0.9, 1.0, probe=probe), grads)
    assert np.isfinite(made).all()
    assert np.isfinite(state.left).all()
    assert 0.3 < np.sqrt(np.mean(made[-100:] ** 2)) < 1.2


# ---------------------------------------------------------------- the optimizer


@pytest.mark.full
def test_what_is_no_matrix_has_adam() -> None:
    p = {"embed": some(5, 3), "mlp": some(3, 4), "bias": some(4)}
    g = jax.tree.map(lambda x: x + 1, p)
    tx, adam = gradx.psgd_kron(0.1), gradx.adam(0.1)
    updates, _ = tx.update(g, tx.init(p), p)
    theirs, _ = adam.update(g, adam.init(p), p)
    assert_close([updates["embed"], updates["bias"]], [theirs["embed"], theirs["bias"]], rtol=1e-6)
    assert np.max(np.abs(updates["mlp"] - theirs["mlp"])) > 1e-3


def test_a_leaf_that_is_no_matrix_is_named() -> None:
    with pytest.raises(ValueError, match=r"scale_by_psgd_kron.*'bias'"):
        gradx.scale_by_psgd_kron().init({"bias": jnp.ones(3)})


@pytest.mark.full
def test_shared_by_devices_it_is_the_same() -> None:
    auto = (jax.sharding.AxisType.Auto,)
    mesh = jax.make_mesh((jax.device_count(),), ("d",), axis_types=auto)
    grads = {n: some(3, 4, 3, seed=j) for j, n in enumerate("abc")}
    made, state = run(gradx.scale_by_psgd_kron(), grads)
    share = gradx.Share(mesh, "d")
    shared, shared_state = run(gradx.scale_by_psgd_kron(share=share, chunk=1), grads)
    assert_close(shared, made, rtol=1e-5)
    assert_close(shared_state.left, state.left, rtol=1e-5)
