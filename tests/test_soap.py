"""SOAP: what the laws do not see, on single matrices."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import references
from cases import first_of
from matrix_runs import close, normal, orthogonal, run

import gradx

# ---------------------------------------------------------------- what stays the same


@pytest.mark.parametrize("limit", [0, 10])
def test_in_the_identity_basis_it_is_adam(limit: int) -> None:
    """One step late. Diagonal gradients have the axes for eigenvectors, in some order."""
    diagonals = normal(12, 3)
    grads = normal(12, 3, 3) if limit == 0 else diagonals[:, :, None] * np.eye(3)
    tx = gradx.scale_by_soap(precondition_frequency=3, max_precond_dim=limit)
    updates, state = run(tx, grads)
    adam, _ = run(gradx.scale_by_adam(0.95, 0.95), grads[1:])
    assert not updates[0].any()
    close(updates[1:], adam)
    assert state.row_basis.shape == (12, *((0, 0) if limit == 0 else (3, 3)))


@pytest.mark.full
def test_the_scale_of_the_gradients_makes_no_difference() -> None:
    grads = normal(9, 4, 3)
    tx = gradx.scale_by_soap(eps=0.0, precondition_frequency=2)
    close(run(tx, 1e-50 * grads)[0], run(tx, grads)[0])


@pytest.mark.full
def test_convolutions_are_as_matrices() -> None:
    grads = normal(8, 2, 4, 3)
    axes = gradx.MatrixAxes((0, 1), 2)
    tx, flat = gradx.scale_by_soap(axes=axes), gradx.scale_by_soap()
    close(run(tx, grads)[0], run(flat, grads.reshape(8, 8, 3))[0].reshape(grads.shape))


# ---------------------------------------------------------------- odd matrices


@pytest.mark.parametrize("shape", [(1, 5), (5, 1), (1, 1)])
@pytest.mark.full
def test_rows_and_columns(shape: tuple[int, int]) -> None:
    grads = normal(10, *shape)
    updates, state = run(gradx.scale_by_soap(precondition_frequency=3), grads)
    assert np.isfinite(updates).all()
    orthogonal(state.row_basis, 1e-12)
    orthogonal(state.column_basis, 1e-12)
    # Four of five directions had no gradient, so their basis is free: compare without it.
    numbers = {"precondition_frequency": 3, "max_precond_dim": 1}
    expected = references.updates(
        references.scale_by_soap(**numbers), [np.zeros(shape)], [[g] for g in grads]
    )
    close(run(gradx.scale_by_soap(**numbers), grads)[0], np.stack([u for (u,) in expected]))


def test_bases_become_the_eigenvectors() -> None:
    """Of a factor that stays the same; their eigenvalues fall."""
    fixed = normal(5, 5) * 3.0 ** -np.arange(5)
    signs = np.sign(normal(60, 5, 1, seed=1))
    grads = np.linalg.qr(normal(5, 5, seed=2))[0] @ (signs * fixed)
    _, state = run(gradx.scale_by_soap(precondition_frequency=1), grads)
    q, factor = state.column_basis[-1], state.column_factor[-1]
    values = np.diag(q.T @ factor @ q)
    close(values, np.linalg.eigvalsh(factor)[::-1], rtol=1e-6)
    assert (np.diff(values) < 0).all()


def test_a_long_side_has_no_state() -> None:
    state = gradx.scale_by_soap(max_precond_dim=4).init({"w": jnp.ones((8, 4))})
    assert state.row_factor["w"].shape == state.row_basis["w"].shape == (0, 0)
    assert state.column_factor["w"].shape == state.column_basis["w"].shape == (4, 4)
    square = gradx.scale_by_soap().init(jnp.ones((8, 8)))
    assert gradx.state_bytes(square) == 24 * 64 + 4


def test_what_is_no_matrix_goes_to_the_fallback() -> None:
    params = {"embed": jnp.ones((6, 2)), "mlp": jnp.ones((3, 2)), "bias": jnp.ones(2)}
    tx = gradx.soap(0.1, weight_decay=0.0, fallback=gradx.sgd(1.0))
    updates, _ = tx.update(params, tx.init(params), params)
    assert {k: float(u.ravel()[0]) for k, u in updates.items()} == {
        "embed": -1.0,
        "mlp": 0.0,
        "bias": -1.0,
    }


# ---------------------------------------------------------------- when the bases are renewed


@pytest.mark.full
def test_staggered_shapes_take_turns_too() -> None:
    """In four steps four matrices are renewed, one in each, though each has a shape of its own."""
    g = {f"w{n}": jnp.asarray(np.random.default_rng(n).normal(size=(n, n))) for n in (2, 3, 4, 5)}
    tx = gradx.scale_by_soap(precondition_frequency=4, staggered=True)
    update = jax.jit(tx.update)
    _, state = update(g, tx.init(g), g)
    for _ in range(5):
        before = state.row_basis
        _, state = update(g, state, g)
        same = jax.tree.map(lambda x, y: bool((x == y).all()), before, state.row_basis)
        assert sum(not s for s in same.values()) == 1


@pytest.mark.full
def test_staggered_a_matrix_does_what_it_does_alone_at_its_phase() -> None:
    """The second of two is renewed in the steps 1, 3, 5, ...: as alone, but for the phase."""
    grads = [normal(9, 4, 3, seed=i) for i in range(2)]
    updates, state = run(gradx.scale_by_soap(precondition_frequency=2, staggered=True), grads)
    first, of_first = run(gradx.scale_by_soap(precondition_frequency=2), grads[0])
    close(updates[0], first)
    close(state.row_basis[0], of_first.row_basis)
    orthogonal(state.row_basis[1], 1e-12)


def computations(text: str) -> dict[str, str]:
    """The computations of an HLO module by name, the entry under "ENTRY"."""
    blocks = re.split(r"\n\n", text)
    found = {}
    for block in blocks:
        head = re.match(r"\s*(ENTRY )?%?([\w.\-]+) \(", block)
        if head:
            found["ENTRY" if head[1] else head[2]] = block
    return found


@first_of("staggered", [False, True])
@pytest.mark.parametrize("many", [False, True])
@pytest.mark.full
def test_what_is_expensive_stands_under_a_conditional(staggered: bool, many: bool) -> None:
    """Also where several states are stepped at once, each with its count."""
    tx = gradx.scale_by_soap(staggered=staggered)
    p = {"a": jnp.ones((4, 3)), "b": jnp.ones((4, 3))}

    state, step = tx.init(p), tx.update
    if many:
        p, state = jax.tree.map(lambda x: jnp.stack([x, x]), (p, state))
        step = jax.vmap(step)
    parts = computations(jax.jit(step).lower(p, state).compile().as_text())
    expensive = {name for name, body in parts.items() if re.search("geqrf|syevd", body)}
    always, new = set(), {"ENTRY"}
    while new:
        always |= new
        called = re.sub(r" conditional\(.*", "", "\n".join(parts[name] for name in new))
        new = (set(re.findall(r"%([\w.\-]+)", called)) & set(parts)) - always
    assert expensive
    assert not expensive & always


@pytest.mark.full
def test_many_states_with_their_own_counts() -> None:
    tx = gradx.scale_by_soap(precondition_frequency=3)
    grads = normal(9, 4, 3)
    _, states = run(tx, grads)
    with jax.enable_x64(True):
        some = jax.tree.map(lambda x: jnp.asarray(x[jnp.array([0, 1, 2, 4])]), states)
        updates, new = jax.vmap(tx.update)(jnp.asarray(grads[jnp.array([1, 2, 3, 5])]), some)
        for i, t in enumerate([1, 2, 3, 5]):
            one, alone = tx.update(
                jnp.asarray(grads[t]), jax.tree.map(lambda x, t=t: jnp.asarray(x[t - 1]), states)
            )
            close(updates[i], one)
            close(new.row_basis[i], alone.row_basis)
            close(new.nu[i], alone.nu)


# ---------------------------------------------------------------- arguments


@pytest.mark.full
def test_the_average_of_the_factors_has_a_number_of_its_own() -> None:
    grads = normal(3, 4, 3)
    _, state = run(gradx.scale_by_soap(shampoo_beta=0.5), grads)
    close(state.row_factor[0], 0.5 * grads[0] @ grads[0].T)
    _, state = run(gradx.scale_by_soap(b2=0.25), grads)
    close(state.column_factor[0], 0.75 * grads[0].T @ grads[0])
    with pytest.raises(ValueError, match=r"scale_by_soap: shampoo_beta must be in \[0, 1\)"):
        gradx.scale_by_soap(shampoo_beta=1.0)


@pytest.mark.full
def test_the_first_moment_may_be_short() -> None:
    tx = gradx.scale_by_soap(mu_dtype=jnp.bfloat16, precondition_frequency=2)
    grads = normal(6, 4, 3, dtype=np.float32)
    updates, state = run(tx, grads, double=False)
    assert state.mu.dtype == jnp.bfloat16
    close(updates, run(gradx.scale_by_soap(precondition_frequency=2), grads, double=False)[0], 0.05)
