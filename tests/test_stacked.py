"""Many matrices at a time: in stacks, in chunks of them, or leaf by leaf as large ones on CPUs."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matrix_runs import close, normal, run

import gradx
from gradx import stacked

leaf_by_leaf = pytest.mark.skipif(
    jax.default_backend() != "cpu", reason="only on CPUs large matrices are done leaf by leaf"
)


@pytest.fixture
def all_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every matrix counts as large. Programs are kept by shape, so each test has its own."""
    monkeypatch.setattr(stacked, "_CACHED", 1)


@pytest.mark.parametrize("staggered", [False, True])
@pytest.mark.usefixtures("all_large")
def test_large_leaves_are_as_alone(staggered: bool) -> None:
    """Those that hold one matrix, those that hold several, and the turns that they take."""
    every, axes = 3, gradx.MatrixAxes(-2, -1)
    tx = gradx.scale_by_soap(precondition_frequency=every, staggered=staggered, axes=axes)
    grads = [normal(7, 7, 5), normal(7, 2, 7, 5, seed=1), normal(7, 7, 5, seed=2)]
    updates, state = run(tx, grads)
    alone = gradx.scale_by_soap(precondition_frequency=every, axes=axes)
    turns = [0, 1, 3] if staggered else [0, 0, 0]  # of the two of a leaf we look at the first
    for g, turn, u, bases in zip(grads, turns, updates, state.row_basis, strict=True):
        first = (slice(None), 0) if g.ndim == 4 else slice(None)
        expected, kept = run(alone, g)
        renewed = (bases[first][1:] != bases[first][:-1]).any(axis=(1, 2))
        np.testing.assert_array_equal(renewed, [(t - turn) % every == 0 for t in range(1, 7)])
        if turn == 0:
            close(u[first], expected[first])
            close(bases[first], kept.row_basis[first])


@leaf_by_leaf
def test_large_matrices_are_neither_stacked_nor_cut_out_again() -> None:
    n, count = 256, 4
    g = {f"w{i}": jnp.zeros((n, n)) for i in range(count)}
    tx = gradx.scale_by_muon(weight_dimension_numbers=gradx.MatrixAxes())
    compiled = jax.jit(tx.update, donate_argnums=(0, 1)).lower(g, tx.init(g)).compile()
    assert "concatenate" not in compiled.as_text()
    # However many there are: the matrix, its square, a factor, and what they become.
    assert compiled.memory_analysis().temp_size_in_bytes <= 5.1 * 4 * n * n


@pytest.mark.parametrize(("count", "cached"), [(6, 60), (7, 60), (6, 1)])
def test_chunks_of_what_a_cache_holds(
    monkeypatch: pytest.MonkeyPatch, count: int, cached: int
) -> None:
    """Three matrices of twenty elements; one, where their number is not divisible; always one."""
    monkeypatch.setattr(stacked, "_CACHED", cached)
    grads = normal(2, count, 4, 5, seed=cached)
    tx = gradx.scale_by_muon(weight_dimension_numbers=gradx.MatrixAxes(-2, -1))
    alone = [run(tx, grads[:, i])[0] for i in range(count)]
    close(run(tx, grads)[0], np.stack(alone, axis=1))


def test_no_step_renews_two_of_the_largest_before_each_has_had_one() -> None:
    """Of the shapes' turns: by name, the second large one would come together with the first."""
    shapes = {"a": (5, 4), "b": (3, 3), "c": (4, 5)}
    grads = {name: normal(6, *shape) for name, shape in shapes.items()}
    tx = gradx.scale_by_soap(precondition_frequency=2, staggered=True)
    bases: Any = run(tx, grads)[1].row_basis
    renewed = {k: (q[1:] != q[:-1]).any(axis=(1, 2)) for k, q in bases.items()}
    np.testing.assert_array_equal(renewed["a"], ~renewed["c"])


@pytest.mark.usefixtures("all_large")
def test_large_leaves_stay_where_they_are_on_an_explicit_mesh() -> None:
    n = jax.device_count()
    mesh = jax.make_mesh((n,), ("d",), axis_types=(jax.sharding.AxisType.Explicit,))
    spec = jax.sharding.PartitionSpec
    specs = {"a": spec("d", None), "b": spec(None, "d"), "c": spec(None, None)}
    g = {name: jnp.asarray(normal(n, n, seed=i)) for i, name in enumerate(specs)}
    update = jax.jit(gradx.scale_by_muon().update)
    alone = update(g, gradx.scale_by_muon().init(g))[0]
    with jax.set_mesh(mesh):
        placed = {
            k: jax.device_put(x, jax.sharding.NamedSharding(mesh, specs[k])) for k, x in g.items()
        }
        made = update(placed, gradx.scale_by_muon().init(placed))[0]
    assert {k: u.sharding.spec for k, u in made.items()} == specs
    for name, u in made.items():
        close(np.asarray(u), np.asarray(alone[name]), 1e-5)
