"""Sophia's estimate of the curvature: whose numbers, in which steps, of which parameters."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from problems import assert_close, assert_same, step

import gradx

PARAMS = {"w": jnp.array([[1.0, -2.0], [0.5, 3.0]]), "x": jnp.array([0.3, 0.7, -0.1])}


def loss(p: Any) -> Any:
    return jnp.sum(p["w"] ** 4) + jnp.sum(jnp.exp(p["x"])) * jnp.mean(p["w"])


def run(tx: Any, steps: int, p: Any = PARAMS, obj_fn: Any = loss) -> Any:
    """The parameters and the state after some steps."""

    def body(carry: Any, _: Any) -> Any:
        p, s = carry
        return step(tx, p, s, jax.grad(obj_fn)(p), obj_fn=obj_fn), None

    return jax.jit(lambda: jax.lax.scan(body, (p, tx.init(p)), length=steps)[0])()


# ---------------------------------------------------------------- Hutchinson's estimate


@pytest.mark.parametrize("key", [None, jax.random.PRNGKey(3), jax.random.key(3)], ids=str)
def test_the_same_key_gives_the_estimates_of_optax(key: Any) -> None:
    ours = gradx.hutchinson_estimator_diag_hessian(key)
    theirs = optax.contrib.hutchinson_estimator_diag_hessian(key)
    state, their_state = ours.init(PARAMS), theirs.init(PARAMS)
    assert jax.tree.map(jnp.shape, state) == gradx.HutchinsonState(their_state.key.shape)
    for _ in range(2):
        made, state = ours.update(PARAMS, state, PARAMS, obj_fn=loss)
        expected, their_state = theirs.update(PARAMS, their_state, PARAMS, obj_fn=loss)
        assert_same(made, expected)


def test_a_seed_is_the_key_of_that_seed() -> None:
    state = gradx.hutchinson_estimator_diag_hessian(3).init(PARAMS)
    assert_same(state.key, jax.random.PRNGKey(3))
    with pytest.raises(ValueError, match="random_seed"):
        gradx.hutchinson_estimator_diag_hessian("3")


def test_it_estimates_a_diagonal_hessian_exactly() -> None:
    p = {"a": jnp.array([1.0, 2.0]), "none": None, "b": jnp.ones(3, jnp.bfloat16)}
    tx = gradx.hutchinson_estimator_diag_hessian()
    obj_fn = lambda p: jnp.sum(p["a"] ** 3) + jnp.sum(p["b"].astype(float) ** 2)
    made, _ = tx.update(p, tx.init(p), p, obj_fn=obj_fn)
    assert made["none"] is None
    np.testing.assert_array_equal(made["a"], [6.0, 12.0])
    np.testing.assert_array_equal(made["b"].astype(jnp.float32), [2.0, 2.0, 2.0])


@pytest.mark.full
def test_shares_of_the_batch_are_averaged_over_a_mapped_axis() -> None:
    data = jnp.arange(12.0).reshape(4, 3)
    estimate = lambda tx, obj_fn: tx.update(p, tx.init(p), p, obj_fn=obj_fn)[0]
    p = jnp.ones(3)
    tx = gradx.hutchinson_estimator_diag_hessian(axis_name="batch")
    made = jax.vmap(lambda x: estimate(tx, lambda p: jnp.sum((p * x) ** 2)), axis_name="batch")(
        data
    )
    whole = estimate(
        gradx.hutchinson_estimator_diag_hessian(), lambda p: jnp.sum((p * data) ** 2) / 4
    )
    assert_close(made, jnp.stack([whole] * 4), rtol=1e-6)
    with pytest.raises(ValueError, match="no mapped axis 'batch'"):
        estimate(tx, lambda p: jnp.sum(p**2))


# ---------------------------------------------------------------- Sophia with it


@pytest.mark.full
def test_trains_as_in_optax() -> None:
    for extra in ({}, {"clip_threshold": None, "eps": 0.1}, {"update_interval": 1, "gamma": 0.5}):
        ours = run(gradx.sophia(1e-3, b2=0.9, **extra), 12)
        theirs = run(optax.contrib.sophia(1e-3, b2=0.9, **extra), 12)
        assert_close(ours[0], theirs[0], rtol=2e-6)
        assert_same(ours[1][0].hessian_fn_state.key, theirs[1][0].hessian_fn_state.key)


def test_what_the_estimate_needs_is_asked_for_by_name() -> None:
    tx = gradx.sophia(0.1)
    state = tx.init(PARAMS)
    with pytest.raises(ValueError, match=r"hutchinson.*obj_fn") as raised:
        tx.update(PARAMS, state, PARAMS)
    assert "sophia > scale_by_sophia" in raised.value.__notes__[0]
    with pytest.raises(ValueError, match=r"hutchinson.*obj_fn"):
        tx.update(PARAMS, state, PARAMS, obj_fn=3.0)
    with pytest.raises(ValueError, match=r"hutchinson.*needs the parameters"):
        gradx.scale_by_sophia().update(PARAMS, gradx.scale_by_sophia().init(PARAMS), obj_fn=loss)


def noted(calls: list[int]) -> Any:
    """An estimate that notes when it is really made."""

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        jax.debug.callback(lambda: calls.append(1))
        return updates, state

    return optax.GradientTransformation(lambda params: (), update)


@pytest.mark.parametrize("vmapped", [False, True])
def test_the_estimate_is_made_in_few_steps(vmapped: bool) -> None:
    """For a sweep too, where `lax.cond` would make it in every step."""
    calls: list[int] = []
    tx = gradx.sophia(gradx.tunable(0.1), update_interval=3, hessian_diagonal_fn=noted(calls))
    update = lambda s: tx.update(PARAMS, s, PARAMS)[1]
    state = tx.init(PARAMS)
    if vmapped:
        rates = jnp.array([0.1, 0.2])
        state = jax.vmap(lambda r: gradx.set_hyperparams(state, learning_rate=r))(rates)
        update = jax.vmap(update)
    update = jax.jit(update)
    for _ in range(7):
        state = update(state)
    jax.effects_barrier()
    assert len(calls) == 3  # in the steps 1, 4 and 7


@pytest.mark.full
def test_sweeps_whose_counts_differ_do_what_each_would_alone() -> None:
    tx = gradx.sophia(0.1, update_interval=3, gamma=1.0, hessian_diagonal_fn=gradx.scale(2.0))
    g = PARAMS
    states = [tx.init(PARAMS)]
    for _ in range(2):
        states.append(tx.update(g, states[-1], PARAMS)[1])
    expected = [tx.update(g, s, PARAMS) for s in states]
    together = jax.vmap(lambda s: tx.update(g, s, PARAMS))(jax.tree.map(jnp_stack, *states))
    assert_close(together, jax.tree.map(jnp_stack, *expected), rtol=1e-6)


def jnp_stack(*xs: Any) -> Any:
    return jnp.stack(xs)


@pytest.mark.parametrize("frozen", [True, False])
def test_the_loss_is_given_whole_parameters_inside_groups(frozen: bool) -> None:
    """It is differentiated by the leaves of its group; the others are constants."""
    sophia = gradx.sophia(0.1, weight_decay=0.0)
    choice = gradx.by_path({"w": "other"}, default="sophia")
    tx = (
        gradx.freeze(gradx.by_path({"w": True}, default=False), sophia)
        if frozen
        else gradx.partition({"sophia": sophia, "other": gradx.sgd(0.0)}, choice)
    )
    (p, state) = run(tx, 3)
    alone_of = lambda p: loss({"w": PARAMS["w"], "x": p["x"]})
    (alone, alone_state) = run(sophia, 3, {"x": PARAMS["x"]}, alone_of)
    assert_close(p, {"w": PARAMS["w"], "x": alone["x"]}, rtol=1e-6)
    nu = [x for x in jax.tree.leaves(state) if x.shape == (3,)]
    assert_close(nu, [alone_state[0].mu["x"], alone_state[0].nu["x"]], rtol=1e-6)


def test_a_step_that_is_skipped_changes_no_key() -> None:
    tx = gradx.apply_if_finite(gradx.sophia(0.1), 5)
    state = tx.init(PARAMS)
    broken = jax.tree.map(lambda x: x * jnp.nan, PARAMS)
    updates, after = jax.jit(lambda s: tx.update(broken, s, PARAMS, obj_fn=loss))(state)
    assert_same(after.inner_state, state.inner_state)
    assert_same(updates, jax.tree.map(jnp.zeros_like, PARAMS))


def test_a_missing_gradient_leaves_its_curvature_alone() -> None:
    tx = gradx.scale_by_sophia(b2=0.5)
    g = {"w": None, "x": PARAMS["x"]}
    updates, state = tx.update(g, tx.init(PARAMS), PARAMS, obj_fn=loss)
    assert updates["w"] is None
    assert_same(state.nu["w"], jnp.zeros((2, 2)))
    assert np.all(np.asarray(state.nu["x"]) != 0)


def test_live_numbers_of_both_parts() -> None:
    tx = gradx.tunable(gradx.scale_by_sophia(hessian_diagonal_fn=gradx.scale(2.0)))
    state = tx.init(PARAMS)
    assert sorted(gradx.hyperparams(state)) == [
        *("b1", "b2", "clip_threshold", "eps", "gamma", "step_size")
    ]
    state = gradx.set_hyperparams(state, step_size=4.0, b2=0.5)
    _, state = jax.jit(tx.update)(PARAMS, state, PARAMS)
    assert_close(state.inner_state.nu, jax.tree.map(lambda x: 2 * x, PARAMS), rtol=1e-6)


# ---------------------------------------------------------------- the win rate


def test_the_win_rate_is_printed_where_it_is_asked_for(capsys: Any) -> None:
    tx = gradx.sophia(
        0.1,
        gamma=1.0,
        b2=0.0,
        hessian_diagonal_fn=gradx.scale(2.0),
        verbose=True,
        print_win_rate_every_n_steps=2,
    )
    p = jnp.array([1.0, 1.0, 1.0, -1.0])  # nu = 2 g; in step 2 all but the negative one win
    state = tx.init(p)
    for _ in range(3):
        _, state = jax.jit(tx.update)(p, state, p)
    jax.effects_barrier()
    assert capsys.readouterr().out == "sophia: win rate 0.75 in step 2\n"


def test_a_win_rate_that_nobody_would_see_is_an_error() -> None:
    with pytest.raises(ValueError, match="without verbose"):
        gradx.sophia(0.1, print_win_rate_every_n_steps=5)
    with pytest.raises(ValueError, match="clip_threshold"):
        gradx.sophia(0.1, verbose=True, print_win_rate_every_n_steps=5, clip_threshold=None)
    gradx.sophia(0.1, verbose=True)  # 0 is "off" to Optax, too


# ---------------------------------------------------------------- bad input


def test_states_and_estimates_that_do_not_fit_are_refused() -> None:
    tx = gradx.scale_by_sophia(hessian_diagonal_fn=gradx.scale(1.0))
    with pytest.raises(ValueError, match=r"scale_by_sophia: got a state of type ScaleByAdamState"):
        tx.update(PARAMS, gradx.scale_by_adam().init(PARAMS), PARAMS)
    with pytest.raises(ValueError, match="'' is complex"):
        tx.update(jnp.ones(1) * 1j, tx.init(jnp.ones(1) * 1j))
    other = gradx.stateless(lambda updates, params: {"w": updates["w"]})
    tx = gradx.scale_by_sophia(hessian_diagonal_fn=other)
    with pytest.raises(ValueError, match=r"the Hessian's diagonal.*Only in the gradients: 'x'"):
        tx.update(PARAMS, tx.init(PARAMS), PARAMS)
