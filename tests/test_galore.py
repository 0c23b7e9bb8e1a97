"""GaLore's projections: of which leaves, on which side, when they are renewed, and their signs."""

from __future__ import annotations

import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases import first_of
from problems import assert_close, assert_same, step

import gradx

GaLore = gradx.GaLoreDimensionNumbers


def some(shapes: Any, seed: int = 0) -> Any:
    rng = np.random.default_rng(seed)
    make = lambda s: jnp.asarray(rng.normal(size=s), jnp.float32)
    return jax.tree.map(make, shapes, is_leaf=lambda s: isinstance(s, tuple))


def run(tx: Any, p: Any, steps: int) -> Any:
    shapes = jax.tree.map(jnp.shape, p)
    state = tx.init(p)
    update = jax.jit(lambda p, s, g: step(tx, p, s, g))
    for i in range(steps):
        p, state = update(p, state, some(shapes, seed=i + 1))
    return p, state


SHAPES = {"tall": (6, 3), "wide": (3, 7), "square": (4, 4), "vector": (5,), "conv": (2, 3, 4)}


# ---------------------------------------------------------------- against Optax


@pytest.mark.full
def test_across_renewals_as_in_optax_where_signs_do_not_matter() -> None:
    """With a base optimizer that keeps squares only."""
    p = some(SHAPES)
    ours, state = run(gradx.galore(0.1, 2, 3, 0.5, gradx.scale_by_rms(), 0.01), p, 10)
    theirs, their_state = run(
        optax.contrib.galore(0.1, 2, 3, 0.5, optax.scale_by_rms(), 0.01), p, 10
    )
    assert_close(ours, theirs, rtol=5e-6)
    assert jax.tree.map(jnp.shape, state[0].projector) == jax.tree.map(
        jnp.shape, their_state[0].projector
    )
    assert jax.tree.structure(state[0]) != jax.tree.structure(their_state[0])  # classes of our own
    assert [x.shape for x in jax.tree.leaves(state)] == [
        x.shape for x in jax.tree.leaves(their_state)
    ]


@first_of("numbers", [(1, (2, 0)), (0, (1, 2)), ((0, 1), 2), ((-1, 0), -2), ((2, 1), (0,))])
@pytest.mark.full
def test_axes_of_a_matrix_as_in_optax(numbers: Any) -> None:
    p = some({"conv": (2, 3, 4), "vector": (5,)})
    ours, _ = run(gradx.galore(0.1, 2, weight_dimension_numbers=GaLore(*numbers)), p, 4)
    of_optax = optax.contrib.GaLoreDimensionNumbers(*numbers)
    theirs, _ = run(optax.contrib.galore(0.1, 2, weight_dimension_numbers=of_optax), p, 4)
    assert_close(ours, theirs, rtol=5e-6)
    again, _ = run(gradx.galore(0.1, 2, weight_dimension_numbers=of_optax), p, 4)
    assert_same(again, ours)


@pytest.mark.full
def test_an_optimizer_of_optax_inside() -> None:
    p = some(SHAPES)
    ours, _ = run(gradx.galore(0.1, 2, base_optimizer=optax.scale_by_adam()), p, 4)
    assert_close(ours, run(gradx.galore(0.1, 2), p, 4)[0], rtol=5e-6)


# ---------------------------------------------------------------- which leaves


CHOICES = {
    "tree": {"conv": GaLore(0, (1, 2)), "rest": {"kernel": None, "bias": None}},
    "prefix": {"conv": GaLore(0, (1, 2)), "rest": None},
    "function": lambda tree: {"conv": GaLore(0, (1, 2)), "rest": None},
    "by path": gradx.by_path({"conv": GaLore(0, (1, 2))}, default=None),
}


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("hidden", [None, "rest", "missing"])
@pytest.mark.full
def test_leaves_are_chosen(choice: str, hidden: str | None) -> None:
    tx = gradx.scale_by_galore(rank=1, weight_dimension_numbers=CHOICES[choice])
    p = some({"conv": (2, 2, 2), "rest": {"kernel": (3, 3), "bias": (3,)}})
    if hidden == "rest":
        tx = gradx.freeze(gradx.by_path({"rest": True}, default=False), tx)
    state = tx.init(p)
    g = {**p, "conv": None} if hidden == "missing" else p
    updates, state = jax.jit(tx.update)(g, state)
    is_ours = lambda x: isinstance(x, gradx.GaLoreState)
    (kept,) = (x for x in jax.tree.leaves(state, is_leaf=is_ours) if is_ours(x))
    assert kept.projector["conv"].shape == (4, 1)
    if hidden == "missing":
        assert updates["conv"] is None
        assert_same(kept.projector["conv"], jnp.zeros((4, 1)))
    else:
        assert np.linalg.matrix_rank(updates["conv"].reshape(2, 4)) == 1
    expected = jnp.zeros((3, 3)) if hidden == "rest" else jnp.sign(g["rest"]["kernel"])
    assert_close(updates["rest"]["kernel"], expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        (GaLore(0, 1), r"at 'a/b' each axis of the shape \(2, 3, 4\)"),
        (GaLore(0, (0, 1, 2)), "each axis"),
        (GaLore(0, (1, 5)), "each axis"),
        (GaLore((0, 1, 2), ()), "each axis"),
        ({"a": {"b": 2}}, "at 'a/b' it is 2"),
        ({"a": {"c": GaLore()}}, "weight_dimension_numbers must be a tree"),
        (gradx.by_path({"nobody": GaLore()}, default=None), "claims no leaf"),
    ],
)
def test_dimension_numbers_that_do_not_fit_are_refused_by_path(numbers: Any, message: str) -> None:
    tx = gradx.galore(0.1, weight_dimension_numbers=numbers)
    with pytest.raises(ValueError, match=message) as raised:
        tx.init(some({"a": {"b": (2, 3, 4)}}))
    assert "galore > scale_by_galore" in str(raised.value)


def test_dimension_numbers_survive_repr_and_config() -> None:
    numbers = {"a": GaLore(0, (1, 2)), "b": optax.contrib.GaLoreDimensionNumbers(1, 0), "c": None}
    tx = gradx.galore(0.1, weight_dimension_numbers=numbers, base_optimizer=gradx.trace(0.9))
    again = gradx.from_config(json.loads(json.dumps(gradx.to_config(tx))))
    assert again == tx
    assert eval(repr(tx), vars(gradx)) == tx
    assert "GaLoreDimensionNumbers(reduction_axis=0, output_axis=(1, 2))" in repr(tx)


# ---------------------------------------------------------------- directions


def test_gradients_of_low_rank_keep_what_they_have() -> None:
    """Directions whose singular value is 0 are orthonormal too, and nothing is lost."""
    x, y = some({"x": (8, 2), "y": (2, 5)}).values()
    for g in (x @ y, (x @ y).T, jnp.zeros((8, 5)), jnp.zeros((5, 8)), 1e-30 * x @ y, 1e30 * x @ y):
        for side in ("longer", "shorter"):
            tx = gradx.scale_by_galore(rank=4, base_optimizer=gradx.identity(), side=side)
            updates, state = jax.jit(tx.update)(g, tx.init(g))
            size = jnp.max(jnp.abs(g))
            assert_close(updates, g, rtol=2e-6) if size else assert_same(updates, g)
            assert_close(state.projector.T @ state.projector, jnp.eye(4), rtol=2e-6)


def test_a_zero_gradient_at_the_renewal_does_not_end_the_training() -> None:
    p = jnp.zeros((4, 3))
    tx = gradx.galore(0.1, rank=2)
    updates, state = tx.update(p, tx.init(p))
    assert_same(updates, p)
    updates, state = tx.update(jnp.ones((4, 3)), state)
    assert np.linalg.matrix_rank(updates) in (1, 2)


def test_directions_that_remain_keep_their_sign() -> None:
    """So momentum along them goes on. LAPACK gives 4 in 10 of these the other sign."""
    rng = np.random.default_rng(0)
    u, v = (np.linalg.qr(rng.normal(size=(n, n)))[0] for n in (12, 8))
    base = (u[:, :8] * 2.0 ** -np.arange(8)) @ v.T
    tx = gradx.scale_by_galore(rank=4, update_proj_gap=1)
    update, state = jax.jit(tx.update), tx.init(jnp.zeros((12, 8)))
    for i in range(20):
        noisy = base + 0.02 * rng.normal(size=base.shape) / np.sqrt(12)
        old = state.projector
        g = jnp.asarray(-noisy if i % 2 else noisy, jnp.float32)  # its sign says nothing
        _, state = update(g, state)
        if i:
            overlap = np.sum(np.asarray(old) * np.asarray(state.projector), axis=0)
            assert (overlap > 0.8).all(), overlap


@pytest.mark.full
def test_directions_are_renewed_in_few_steps() -> None:
    """For a sweep too, where `lax.cond` would decompose every matrix in every step."""
    tx = gradx.scale_by_galore(rank=2, update_proj_gap=3)
    p = some({"w": (6, 4)})
    state = tx.init(p)
    many = jax.tree.map(lambda x: jnp.stack([x, x]), state)
    update = jax.jit(jax.vmap(tx.update, (None, 0)))
    for i in range(5):
        before = many.projector["w"]
        _, many = update(some({"w": (6, 4)}, seed=i), many)
        _, state = tx.update(some({"w": (6, 4)}, seed=i), state)
        assert (i % 3 == 0) == bool(jnp.any(before != many.projector["w"]))
        assert_close(many.projector["w"][1], state.projector["w"], rtol=1e-5)
    before, *conditionals = str(jax.make_jaxpr(update)(p, many)).split("cond[")
    assert "eigh" in " ".join(conditionals)
    assert "eigh" not in before


def test_counts_that_differ_renew_each_its_own() -> None:
    tx = gradx.scale_by_galore(rank=2, update_proj_gap=2)
    p = some({"w": (6, 4)})
    states = [tx.init(p)]
    states.append(tx.update(p, states[0])[1])
    g = some({"w": (6, 4)}, seed=3)
    together = jax.vmap(lambda s: tx.update(g, s))(jax.tree.map(lambda *x: jnp.stack(x), *states))
    alone = [tx.update(g, s) for s in states]
    assert_close(together, jax.tree.map(lambda *x: jnp.stack(x), *alone), rtol=1e-5)


# ---------------------------------------------------------------- the base optimizer


@pytest.mark.full
def test_half_precision_is_projected_in_float32() -> None:
    p = jax.tree.map(lambda x: x.astype(jnp.bfloat16), some({"w": (6, 4), "b": (4,)}))
    for base in (None, optax.scale_by_adam()):
        tx = gradx.galore(0.1, 2, base_optimizer=base)
        updates, state = jax.jit(tx.update)(p, tx.init(p))
        floats = [x for x in jax.tree.leaves(state) if jnp.issubdtype(x.dtype, jnp.floating)]
        assert {x.dtype for x in floats} == {jnp.dtype(jnp.float32)}
        assert {x.dtype for x in jax.tree.leaves(updates)} == {jnp.dtype(jnp.bfloat16)}


def test_live_numbers_of_the_base_optimizer() -> None:
    tx = gradx.galore(gradx.tunable(0.1), 2, base_optimizer=gradx.trace(gradx.tunable(0.9)))
    p = some({"w": (6, 4)})
    state = tx.init(p)
    assert sorted(gradx.hyperparams(state)) == ["decay", "learning_rate"]
    _, state = jax.jit(tx.update)(p, gradx.set_hyperparams(state, decay=0.0))
    twice, _ = jax.jit(tx.update)(p, state)
    once, _ = jax.jit(tx.update)(p, gradx.set_hyperparams(tx.init(p), decay=0.0))
    assert_close(twice, once, rtol=1e-6)


def test_a_base_optimizer_that_wants_the_parameters_is_told_why_not() -> None:
    tx = gradx.galore(0.1, base_optimizer=gradx.adamw(0.1))
    p = some({"w": (6, 4)})
    with pytest.raises(ValueError, match="needs the parameters") as raised:
        tx.update(p, tx.init(p), p)
    assert "weight_decay of galore" in raised.value.__notes__[0]


def test_what_does_not_fit_is_refused() -> None:
    p = some({"w": (6, 4)})
    tx = gradx.scale_by_galore(rank=2)
    with pytest.raises(ValueError, match="got a state of type EmptyState"):
        tx.update(p, optax.EmptyState())
    with pytest.raises(ValueError, match=r"at 'w' the state's projector has shape \(6, 2\)"):
        tx.update({"w": jnp.ones((4, 6, 1))}, tx.init(p))
    for name, value in {"rank": 2.0, "side": "left", "update_proj_gap": -1}.items():
        with pytest.raises(ValueError, match=rf"scale_by_galore: {name}"):
            gradx.scale_by_galore(**{name: value})


def test_a_skipped_step_leaves_everything_as_it_is() -> None:
    tx = gradx.apply_if_finite(gradx.galore(0.1, 2), 5)
    p = some({"w": (6, 4), "b": (3,)})
    state = tx.init(p)
    broken = jax.tree.map(lambda x: x * jnp.nan, p)
    updates, after = jax.jit(tx.update)(broken, state, p)
    assert_same(after.inner_state, state.inner_state)
    assert_same(updates, jax.tree.map(jnp.zeros_like, p))


def test_describe_shows_what_works_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    table = gradx.describe(gradx.galore(0.1, 2), {"w": jnp.ones((6, 4))})
    assert "base_optimizer: scale_by_adam" in str(table)
