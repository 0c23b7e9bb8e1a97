"""Shampoo: its blocks, when its roots are renewed, and gradients that are hard on them."""

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
from gradx.linalg import decompositions


def some(*shape: int, seed: int = 0) -> Any:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def run(tx: Any, grads: list[Any]) -> tuple[list[Any], Any]:
    """The updates of some steps, and the last state."""
    state, made = tx.init(grads[0]), []
    update = jax.jit(tx.update)
    for g in grads:
        u, state = update(g, state)
        made.append(u)
    return made, state


# ---------------------------------------------------------------- blocks


@first_of("shape", [(5, 7), (4, 6), (2, 5), (3, 2), (1, 3)])
@pytest.mark.parametrize("graft", ["adam", "none"])
@pytest.mark.full
def test_blocks_are_matrices_of_their_own(shape: tuple[int, int], graft: str) -> None:
    grads = [np.asarray(some(*shape, seed=i)) for i in range(4)]
    numbers: Any = {"b2": 0.9, "eps": 1e-2, "graft": graft}
    made, state = run(gradx.scale_by_shampoo(**numbers, block_size=2), grads)
    expected = references.updates(
        references.scale_by_shampoo(**numbers, block_size=2), grads[:1], [[g] for g in grads]
    )
    assert_close(made, [us[0] for us in expected], rtol=5e-6)
    rows, columns = shape
    wide, high = min(2, rows), min(2, columns)
    assert state.left.shape == (rows, -(-columns // 2) * wide)
    assert state.right.shape == (columns, -(-rows // 2) * high)


@pytest.mark.full
def test_a_matrix_of_one_block_keeps_its_two_factors() -> None:
    grads = [some(3, 5, seed=i) for i in range(3)]
    _, state = run(gradx.scale_by_shampoo(), grads)
    assert_close(state.left, sum(g @ g.T for g in grads), rtol=1e-6)
    assert_close(state.right, sum(g.T @ g for g in grads), rtol=1e-6)


@pytest.mark.full
def test_stacked_layers_are_matrices_of_their_own() -> None:
    grads = [some(3, 4, 2, seed=i) for i in range(3)]
    stacked = gradx.scale_by_shampoo(eps=1e-2, axes=gradx.MatrixAxes(1, 2))
    made, state = run(stacked, grads)
    assert state.left.shape == (3, 4, 4)
    for i in range(3):
        alone, _ = run(gradx.scale_by_shampoo(eps=1e-2), [g[i] for g in grads])
        assert_close([u[i] for u in made], alone, rtol=5e-6)


@pytest.mark.full
@first_of("block_size", [2, 1024])
def test_a_transposed_matrix_has_the_transposed_update(block_size: int) -> None:
    grads = [some(5, 3, seed=i) for i in range(3)]
    tx = gradx.scale_by_shampoo(eps=1e-2, block_size=block_size)
    made, _ = run(tx, grads)
    turned, _ = run(tx, [g.T for g in grads])
    assert_close([u.T for u in turned], made, rtol=5e-6)


def test_the_size_is_that_of_the_graft() -> None:
    grads = [some(3, 5, seed=i) for i in range(4)]
    made, _ = run(gradx.scale_by_shampoo(graft_b2=0.9, graft_eps=1e-8), grads)
    adam, _ = run(gradx.scale_by_adam(b2=0.9), grads)
    sizes = [[jnp.linalg.norm(u) for u in us] for us in (made, adam)]
    assert_close(*sizes, rtol=1e-5)


# ---------------------------------------------------------------- renewal


@pytest.mark.full
def test_roots_are_renewed_in_every_kth_step() -> None:
    tx = gradx.scale_by_shampoo(precondition_frequency=3)
    grads = [some(3, 2, seed=i) for i in range(7)]
    state, roots = tx.init(grads[0]), []
    for g in grads:
        _, state = tx.update(g, state)
        roots.append(np.asarray(state.left_root))
    renewed = [i for i in range(1, 7) if not np.array_equal(roots[i], roots[i - 1])]
    assert renewed == [3, 6]
    assert np.any(roots[0] != 0)


@pytest.mark.full
def test_staggered_each_step_renews_some() -> None:
    tx = gradx.scale_by_shampoo(precondition_frequency=2, staggered=True)
    grads = [{n: some(3, 2, seed=10 * i + j) for j, n in enumerate("abc")} for i in range(5)]
    state, before, renewed = tx.init(grads[0]), None, []
    for g in grads:
        _, state = tx.update(g, state)
        now = jax.tree.map(np.asarray, state.left_root)
        if before is not None:
            renewed.append("".join(n for n in "abc" if not np.array_equal(now[n], before[n])))
        before = now
    assert renewed == ["b", "ac", "b", "ac"]


# ---------------------------------------------------------------- hard gradients


@first_of("dtype", [jnp.float16, jnp.bfloat16, jnp.float32])
@pytest.mark.full
def test_updates_stay_finite(dtype: Any) -> None:
    shapes, sizes = [(1, 4), (4, 1), (1, 1), (3, 5)], [0.0, 1e-30, 1e4, 1e15]
    values = [min(size, float(jnp.finfo(dtype).max) / 4) for size in sizes]
    g = {f"{s} of {x}": jnp.full(s, x, dtype) for s in shapes for x in values}
    made, state = run(gradx.scale_by_shampoo(block_size=3), [g, g])
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((made, state)))
    for u in made:
        assert all(x.dtype == dtype for x in u.values())
        assert not any(u[f"{s} of 0.0"].any() for s in shapes)


@pytest.mark.parametrize("eps", [1e-12, 1e-8, 1e-4])
@pytest.mark.full
def test_factors_without_full_rank_do_no_harm(eps: float) -> None:
    """The average has nothing in the directions in which the roots are 1000, but for rounding."""
    g = np.asarray(some(6, 1), np.float64) * np.asarray(some(1, 4, seed=1), np.float64)
    grads = [g * c for c in (1.0, -0.5, 2.0)]
    made, _ = run(gradx.scale_by_shampoo(eps=eps), [jnp.asarray(x, jnp.float32) for x in grads])
    expected = references.updates(references.scale_by_shampoo(eps=eps), [g], [[x] for x in grads])
    assert_close(made, [us[0] for us in expected], rtol=2e-5)


@pytest.mark.full
def test_what_is_not_finite_stays_unless_it_is_kept_out() -> None:
    grads = [some(3, 2, seed=i) for i in range(4)]
    bad = [*grads[:2], grads[0].at[0, 0].set(jnp.inf), *grads[2:]]
    alone, _ = run(gradx.scale_by_shampoo(), grads)
    poisoned, _ = run(gradx.scale_by_shampoo(), bad)
    assert not any(np.isfinite(u).all() for u in poisoned[2:])
    kept_out, _ = run(gradx.apply_if_finite(gradx.scale_by_shampoo(), 5), bad)
    assert_same(kept_out[2], jnp.zeros((3, 2)))
    assert_close(kept_out[:2] + kept_out[3:], alone, rtol=1e-6)


@pytest.mark.full
def test_where_eigenvalues_cannot_be_found_the_old_roots_stay(monkeypatch: Any) -> None:
    def decompose(x: Any) -> Any:  # as LAPACK does if it does not converge
        values, vectors = eigh(x)
        return jnp.full_like(values, jnp.nan), vectors

    eigh, tx, g = (
        decompositions.eigh,
        gradx.scale_by_shampoo(),
        some(7, 2),
    )  # a shape without a program
    _, state = tx.update(g, tx.init(g))
    before = np.asarray(state.left_root)
    jax.clear_caches()
    monkeypatch.setattr(decompositions, "eigh", decompose)
    u, state = tx.update(g, state)
    assert_same(np.asarray(state.left_root), before)
    assert np.isfinite(u).all()
    monkeypatch.undo()
    jax.clear_caches()
    _, state = tx.update(g, state)
    assert np.any(state.left_root != before)


# ---------------------------------------------------------------- the optimizer


@pytest.mark.full
def test_what_is_no_matrix_has_adam() -> None:
    p = {"embed": some(5, 3), "mlp": some(3, 4), "bias": some(4)}
    g = jax.tree.map(lambda x: x + 1, p)
    tx, adam = gradx.shampoo(0.1), gradx.adam(0.1)
    updates, _ = tx.update(g, tx.init(p), p)
    theirs, _ = adam.update(g, adam.init(p), p)
    assert_close([updates["embed"], updates["bias"]], [theirs["embed"], theirs["bias"]], rtol=1e-6)
    assert np.max(np.abs(updates["mlp"] - theirs["mlp"])) > 1e-3


def test_a_leaf_that_is_no_matrix_is_named() -> None:
    with pytest.raises(ValueError, match=r"scale_by_shampoo.*'bias'"):
        gradx.scale_by_shampoo().init({"bias": jnp.ones(3)})


@pytest.mark.full
def test_shared_by_devices_it_is_the_same() -> None:
    auto = (jax.sharding.AxisType.Auto,)
    mesh = jax.make_mesh((jax.device_count(),), ("d",), axis_types=auto)
    grads = [{n: some(3, 2, seed=10 * i + j) for j, n in enumerate("abc")} for i in range(3)]
    numbers: Any = {"eps": 1e-2, "precondition_frequency": 2, "staggered": False}
    made, state = run(gradx.scale_by_shampoo(**numbers), grads)
    shared, shared_state = run(
        gradx.scale_by_shampoo(**numbers, share=gradx.Share(mesh, "d"), chunk=1), grads
    )
    assert_close(shared, made, rtol=1e-5)
    assert_close(shared_state.left_root, state.left_root, rtol=1e-5)
