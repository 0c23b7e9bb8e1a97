"""Dion and Dion2: what is in an update, and what waits in the momentum."""

from __future__ import annotations

from typing import Any

import cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import references
from cases import first_of
from problems import STEPS, assert_close, assert_same, gradients, params, trajectory

import gradx
from gradx.linalg import polar

SHAPES = [(4, 6), (6, 4), (5, 5)]
every_shape = pytest.mark.parametrize("shape", SHAPES)


def numbers(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def steps(tx: Any, gs: Any) -> list[Any]:
    """The updates and states of some steps, jitted."""
    state, update, made = tx.init(gs[0]), jax.jit(tx.update), []
    for g in gs:
        u, state = update(g, state)
        made.append((np.asarray(u), state))
    return made


def polar_factor(b: Any, rank: int | None = None) -> Any:
    u, _, vh = np.linalg.svd(np.float64(b), full_matrices=False)
    return np.float32(u[:, :rank] @ vh[:rank])


# ---------------------------------------------------------------- Dion, with Muon as its limit


@every_shape
@pytest.mark.full
def test_at_full_rank_the_momentum_is_muons(shape: Any) -> None:
    gs = [numbers(*shape, seed=i) for i in range(4)]
    muon = gradx.scale_by_muon("exact", beta=0.8, nesterov=False, bias_correction=False)
    pairs = zip(steps(gradx.scale_by_dion(b1=0.8), gs), steps(muon, gs), strict=True)
    for (_, dion), (_, other) in pairs:
        assert_close(dion.mu, 0.8 / 0.2 * other.mu, rtol=1e-5)


@every_shape
@first_of("fraction", [0.5, 1.0])
@pytest.mark.full
def test_with_singular_vectors_for_a_basis_the_update_is_the_polar_factor(
    shape: Any, fraction: float
) -> None:
    """Of the largest parts of B; they leave the momentum, and what is smaller stays."""
    g = numbers(*shape)
    tx = gradx.scale_by_dion(fraction, b1=0.0)
    state = tx.init(g)
    left, s, vh = np.linalg.svd(g, full_matrices=False)
    rank = state.basis.shape[1]
    shorter = left if shape[0] <= shape[1] else vh.T
    u, after = tx.update(g, state._replace(basis=jnp.asarray(shorter[:, :rank])))
    rest = (left[:, rank:] * s[rank:]) @ vh[rank : len(s)]
    assert_close([u, after.mu], [polar_factor(g, rank), rest], rtol=1e-5)
    assert_close(np.abs(after.basis.T @ shorter[:, :rank]), np.eye(rank, dtype="f"), rtol=1e-5)


@pytest.mark.full
def test_one_gradient_again_and_again_leads_to_the_polar_factor() -> None:
    left, _, vh = np.linalg.svd(numbers(4, 6), full_matrices=False)
    g = (left * np.array([8.0, 4.0, 2.0, 1.0], np.float32)) @ vh
    assert_close(steps(gradx.scale_by_dion(), [g] * 25)[-1][0], polar_factor(g), rtol=1e-5)
    # At a lower rank all directions have their turn, each the sooner the larger it is.
    total = sum(u for u, _ in steps(gradx.scale_by_dion(0.5, b1=0.0), [g] * 200))
    along = np.diagonal(left.T @ total @ vh.T)
    assert (along > 0.02 * 200).all()
    assert along.sum() < 2 * 200


@every_shape
def test_an_update_is_a_basis_times_orthonormal_rows(shape: Any) -> None:
    tx = gradx.scale_by_dion(0.5, b1=0.7)
    gs = [numbers(*shape, seed=i) for i in range(3)]
    before = np.zeros(shape, np.float32)
    for (u, state), g in zip(steps(tx, gs), gs, strict=True):
        turned = (lambda x: x.T) if shape[0] > shape[1] else (lambda x: x)
        rank = state.basis.shape[1]
        assert_close(np.linalg.norm(state.basis, axis=0), np.ones(rank, np.float32), rtol=1e-6)
        rows = np.linalg.lstsq(state.basis, turned(u))[0]
        assert_close(state.basis @ rows, turned(u), rtol=1e-5)
        assert_close(rows @ rows.T, np.eye(rank, dtype="f"), rtol=2e-5)
        b = turned(before + g)
        assert_close(turned(state.mu), b - 0.3 * (b @ rows.T) @ rows, rtol=1e-5)
        before = np.asarray(state.mu)


def test_a_rank_that_the_gradients_do_not_have() -> None:
    """What other columns span already has no part in the update, but keeps its direction."""
    u, v = numbers(4, 2), numbers(2, 6, seed=1)
    tx = gradx.scale_by_dion(b1=0.5, eps=0.0)
    start = tx.init(u @ v)
    (first, _), (_, state), (last, after) = steps(tx, [u[:, :1] @ v[:1], u @ v, numbers(4, 6)])
    s = np.linalg.svd(first, compute_uv=False)
    assert s[0] == pytest.approx(1.0, rel=1e-6)
    assert s[1:].max() < 1e-5
    assert_same(state.basis[:, 2:], start.basis[:, 2:])
    assert np.linalg.matrix_rank(last, tol=1e-3) == 4
    assert np.linalg.matrix_rank(after.basis, tol=1e-3) == 4


def test_without_any_gradient_nothing_moves() -> None:
    g = np.zeros((4, 6), np.float32)
    for tx in (gradx.scale_by_dion(eps=0.0), gradx.scale_by_dion2(eps=0.0)):
        state = tx.init(g)
        u, after = tx.update(g, state)
        assert_same(np.asarray(u), g)
        assert_same(after._replace(count=state.count), state)


@pytest.mark.parametrize(
    ("fraction", "multiple", "rank"),
    [(0.1, 1, 3), (0.11, 1, 4), (1e-9, 1, 1), (0.25, 8, 8), (0.9, 8, 30), (1.0, 1, 30)],
)
@pytest.mark.full
def test_the_rank_is_rounded_up(fraction: float, multiple: int, rank: int) -> None:
    """And 0.1 times 30, which is more than 3 in floating point, to 3."""
    tx = gradx.scale_by_dion(fraction, rank_multiple_of=multiple)
    for shape in [(30, 40), (40, 30)]:
        assert tx.init(np.zeros(shape, np.float32)).basis.shape == (30, rank)


@pytest.mark.full
def test_the_first_basis_follows_from_the_key_alone() -> None:
    def basis(key: Any, dtype: Any = np.float32) -> Any:
        p = {"a": np.ones((4, 6), dtype), "b": np.zeros((4, 6), dtype)}
        found = gradx.scale_by_dion(0.5, key=key).init(p).basis
        assert_same(found["a"], found["b"])
        return np.asarray(found["a"])

    assert_same(basis(7), basis(jax.random.key(7)))
    assert_same(basis(7), basis(7, jnp.bfloat16))
    assert np.abs(basis(7) - basis(8)).max() > 0.1
    with jax.enable_x64(True):
        assert_close(np.float32(basis(7, np.float64)), basis(7), rtol=1e-6)


# ---------------------------------------------------------------- Dion2, row by row


@pytest.mark.full
def test_the_whole_matrix_is_muon() -> None:
    gs = [[numbers(*shape, seed=i) for shape in SHAPES] for i in range(3)]
    for name in ("exact", "polar_express"):
        dion2 = gradx.scale_by_dion2(1.0, name, eps=0.0, ef_decay=0.8)
        muon = gradx.scale_by_muon(name, beta=0.8, eps=0.0, nesterov=False, bias_correction=False)
        ours, theirs = (jax.jit(tx.update) for tx in (dion2, muon))
        a, b = dion2.init(gs[0]), muon.init(gs[0])
        for g in gs:
            (u, a), (v, b) = ours(g, a), theirs(g, b)
            assert_close(u, v, rtol=2e-5)
            assert_close(a.mu, jax.tree.map(lambda x: 0.8 / 0.2 * x, b.mu), rtol=1e-5)


@every_shape
def test_the_largest_rows_or_columns_are_orthogonalised(shape: Any) -> None:
    """Of the shorter side; of a square matrix (inputs, outputs) the columns."""
    g = numbers(*shape)
    u, state = steps(gradx.scale_by_dion2(0.5, "exact", ef_decay=0.9), [g])[0]
    turned = (lambda x: np.asarray(x).T) if shape[0] >= shape[1] else np.asarray
    rows = turned(g)
    sizes = np.abs(rows).sum(axis=1)
    chosen = np.sort(np.argsort(-sizes)[: -(-len(rows) // 2)])
    expected, mu = np.zeros_like(rows), rows.copy()
    expected[chosen] = polar_factor(rows[chosen])
    mu[chosen] *= np.float32(0.9)
    assert_close(turned(u), expected, rtol=1e-5)
    assert_close(turned(state.mu), mu, rtol=1e-6)


def test_of_rows_of_one_size_the_first_are_chosen() -> None:
    g = np.ones((8, 9), np.float32)
    made = steps(gradx.scale_by_dion2(0.25, "exact", ef_decay=0.0), [g] * 5)
    chosen = [np.flatnonzero(np.abs(u).sum(axis=1)).tolist() for u, _ in made]
    assert chosen == [[0, 1], [2, 3], [4, 5], [6, 7], [0, 1]]


def test_a_small_row_has_its_turn() -> None:
    g = numbers(4, 6) * np.array([[1.0], [1.0], [1.0], [0.2]], np.float32)
    made = steps(gradx.scale_by_dion2(0.25, "exact", ef_decay=0.5), [g] * 100)
    turns = [int(np.flatnonzero(np.abs(u).sum(axis=1))[0]) for u, _ in made]
    assert min(turns.count(row) for row in range(4)) > 1
    assert turns.count(3) < turns.count(0)


def test_default_coefficients_in_float64() -> None:
    """The row of the laws has others: five steps that begin at 1 lose a digit of float32."""
    case = cases.row("dion2", learning_rate=0.1)
    flat, treedef = jax.tree.flatten(params(np.float64))
    grads = jax.tree.leaves(gradients(np.float64))
    rule = case.make(references)
    expected = references.run(rule, flat, [[g[i] for g in grads] for i in range(STEPS)])[-1]
    with jax.enable_x64(True):
        after = trajectory(case.make(), params(np.float64), gradients(np.float64))
    assert_close(jax.tree.map(lambda x: x[-1], after), treedef.unflatten(expected), rtol=1e-10)


# ---------------------------------------------------------------- what it costs


def operations(tx: Any, shape: Any) -> float:
    p = jax.ShapeDtypeStruct(shape, jnp.float32)
    lowered = jax.jit(tx.update).lower(p, jax.eval_shape(tx.init, p))
    return float(lowered.compile().cost_analysis()["flops"])


@pytest.mark.full
def test_the_work_of_dion2_falls_with_the_fraction() -> None:
    rows, columns = 64, 256
    muon = operations(gradx.scale_by_muon("modded_nanogpt"), (rows, columns))
    for fraction in (1.0, 0.5, 0.25, 0.125):
        made = operations(gradx.scale_by_dion2(fraction), (rows, columns))
        few = int(fraction * rows)
        # Beside the steps, a few operations for each element.
        assert made < min(polar.operations(few, columns, 5)) + 20 * rows * columns
        assert made < 1.05 * fraction * muon + 20 * rows * columns


@pytest.mark.full
def test_the_products_of_dion_fall_with_the_rank() -> None:
    """Four of them; the work of the orthogonal factor is not in XLA's count."""
    rows, columns = 64, 256
    for fraction in (1.0, 0.5, 0.25):
        made = operations(gradx.scale_by_dion(fraction), (rows, columns))
        assert made < 8 * rows * columns * (fraction * rows) + 20 * rows * columns
