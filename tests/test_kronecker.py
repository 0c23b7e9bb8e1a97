"""What the rules that follow eigenvectors on both sides of a matrix have in common."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import first_of
from matrix_runs import close, normal, orthogonal, run

import gradx

FACTORIES = [
    gradx.scale_by_soap,
    gradx.scale_by_splus,
    gradx.scale_by_kl_soap,
    gradx.scale_by_kl_shampoo,
]
one = first_of("factory", FACTORIES, ids=lambda f: f.__name__)


@one
@pytest.mark.full
def test_transposed_gradients_give_transposed_updates(factory: Any) -> None:
    grads, tx = normal(12, 4, 3), factory(precondition_frequency=3)
    updates, state = run(tx, grads)
    transposed, of_transposed = run(tx, grads.mT)
    close(transposed.mT, updates)
    one_side = {f for f in state._fields if f.startswith("row_")} - {"row_basis"}  # signs are free
    assert "row_factor" in one_side
    for field in one_side:
        close(getattr(of_transposed, field), getattr(state, field.replace("row", "column")))


@one
@pytest.mark.full
def test_turned_gradients_give_turned_updates(factory: Any) -> None:
    """But for the first step, before there are bases."""
    grads, tx = normal(12, 4, 3), factory(precondition_frequency=3)
    left, right = (np.linalg.qr(normal(n, n, seed=n))[0] for n in (4, 3))
    turned = run(tx, left @ grads @ right)[0]
    close(turned[1:], left @ run(tx, grads)[0][1:] @ right)


@one
@pytest.mark.full
def test_stacked_matrices_are_as_single_ones(factory: Any) -> None:
    grads = normal(8, 2, 4, 3)
    alone = [run(factory(precondition_frequency=3), grads[:, i])[0] for i in range(2)]
    axes = gradx.MatrixAxes(-2, -1)
    stacked, state = run(factory(precondition_frequency=3, axes=axes, chunk=1), grads)
    close(stacked, np.stack(alone, axis=1))
    assert state.row_basis.shape == (8, 2, 4, 4)


@one
@pytest.mark.full
def test_devices_may_share_the_matrices(factory: Any) -> None:
    mesh = jax.make_mesh((jax.device_count(),), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    grads = [normal(5, 4, 3, seed=i) for i in range(3)]
    shared = run(factory(precondition_frequency=2, share=gradx.Share(mesh, "d")), grads)
    alone = run(factory(precondition_frequency=2), grads)
    for actual, expected in zip(jax.tree.leaves(shared), jax.tree.leaves(alone), strict=True):
        close(actual, expected)


# ---------------------------------------------------------------- poor gradients


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("kind", ["zero", "then zero", "late", "one rank", "tiny", "huge"])
@pytest.mark.parametrize(
    ("factory", "most"),
    [(gradx.scale_by_soap, 20.0), (gradx.scale_by_splus, np.sqrt(24) + 0.1)],
    ids=["soap", "splus"],
)
@pytest.mark.full
def test_poor_gradients_keep_the_bases_orthogonal(
    factory: Any, most: float, kind: str, dtype: Any
) -> None:
    grads = normal(12, 6, 4, dtype=np.float32)
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
    tx = factory(precondition_frequency=2)
    updates, state = run(tx, jnp.asarray(grads, dtype), double=False)
    assert all(np.isfinite(x.astype(np.float32)).all() for x in jax.tree.leaves((updates, state)))
    orthogonal(state.row_basis, 1e-5)
    orthogonal(state.column_basis, 1e-5)
    largest = np.abs(updates.astype(np.float32)).max()
    assert largest == 0 if kind == "zero" else 0 < largest <= most


@one
@pytest.mark.parametrize("shape", [(1, 5), (5, 1), (1, 1)])
@pytest.mark.full
def test_rows_and_columns(factory: Any, shape: tuple[int, int]) -> None:
    updates, state = run(factory(precondition_frequency=3), normal(10, *shape))
    assert np.isfinite(updates).all()
    assert updates[1:].any()
    orthogonal(state.row_basis, 1e-12)
    orthogonal(state.column_basis, 1e-12)


# ---------------------------------------------------------------- when the bases are renewed


def renewed(tx: Any, count: int, steps: int) -> Any:
    """In which steps after the first the basis of each of several matrices changes."""
    _, state = run(tx, [normal(steps, 4, 3, seed=i) for i in range(count)])
    bases = np.stack(state.row_basis, axis=1)
    return (bases[1:] != bases[:-1]).any(axis=(2, 3))


@one
@pytest.mark.full
def test_all_bases_are_renewed_in_every_kth_step(factory: Any) -> None:
    changed = renewed(factory(precondition_frequency=4), 2, 10)
    np.testing.assert_array_equal(changed[:, 0], [t % 4 == 0 for t in range(1, 10)])
    np.testing.assert_array_equal(changed[:, 1], changed[:, 0])


@first_of(
    "factory, count",
    [*((f, 3) for f in FACTORIES), *((gradx.scale_by_soap, n) for n in (1, 4, 6, 9))],
)
@pytest.mark.full
def test_staggered_each_basis_is_renewed_once_in_k_steps(factory: Any, count: int) -> None:
    changed = renewed(factory(precondition_frequency=4, staggered=True), count, 13)
    for begin in range(1, 9):
        np.testing.assert_array_equal(changed[begin : begin + 4].sum(axis=0), np.ones(count))
    assert changed.sum(axis=1).max() <= -(-count // 4)
