"""Adam's relatives, Rprop and the small pieces of their rooms: what the laws do not see."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from problems import assert_close, assert_same, gradients, params, trajectory

import gradx


def at(stacked: Any, i: int) -> Any:
    return jax.tree.map(lambda x: jnp.asarray(x[i]), stacked)


def run(tx: Any, grads: Any, p: Any = None) -> tuple[list[np.ndarray[Any, Any]], Any]:
    """The updates of single elements, one after the other, and the last state."""
    p = jnp.ones(1) if p is None else p
    state, out = tx.init(p), []
    for g in grads:
        u, state = tx.update(jnp.full_like(p, g), state, p)
        out.append(np.asarray(u))
    return out, state


# ---------------------------------------------------------------- adan


def test_adan_keeps_the_last_gradient() -> None:
    """It is written in an order that XLA is forced into, and must not be anything else."""
    tx = gradx.scale_by_adan()
    jitted = jax.jit(tx.update, donate_argnums=1)
    p, g = params(), gradients(steps=3)
    state = tx.init(p)
    for i in range(3):
        _, state = jitted(at(g, i), state)
        assert_same(state.g, at(g, i))


@pytest.mark.full
def test_adan_of_the_paper_differs_from_optaxs() -> None:
    p, g = params(), gradients(steps=5)
    ours, papers = (
        trajectory(gradx.adan(0.1, paper=paper), p, g)["scale"] for paper in (False, True)
    )
    assert np.abs(ours - papers).max() > 0.01
    assert_close(ours, trajectory(optax.adan(0.1), p, g)["scale"], rtol=1e-5)
    # With b2 = 1/2 both weights are the same.
    tie, papers = (gradx.adan(0.1, b2=0.5, paper=paper) for paper in (False, True))
    assert_same(trajectory(tie, p, g), trajectory(papers, p, g))


# ---------------------------------------------------------------- acprop, adopt


@pytest.mark.full
def test_acprop_is_exact_where_gradients_do_not_change() -> None:
    """The variance is around the old mean, not solved for from the new one: that would be noise."""
    grads = [0.3] * 40
    with jax.enable_x64(True):
        p = jnp.ones(1, jnp.float64)
        ours, state = run(gradx.scale_by_acprop(b1=0.0), grads, p)
        theirs, _ = run(optax.contrib.scale_by_acprop(b1=0.0), grads, p)
        np.testing.assert_allclose(ours, theirs, rtol=1e-12)
        # From the second step on, each adds only eps_root.
        rest = 0.999**39 * 1e-3 * 0.09 + 1e-16 * (1 - 0.999**40) / 1e-3
        np.testing.assert_allclose(state.nu, rest, rtol=1e-12)


@pytest.mark.parametrize("use_clipping", [True, False])
def test_adopt_does_not_move_in_the_first_step(use_clipping: bool) -> None:
    tx = gradx.scale_by_adopt(use_clipping=use_clipping)
    (u,), state = run(tx, [1e19])
    assert u == 0
    assert state.mu == 0
    assert state.nu == np.float32(1e19) ** 2
    assert run(gradx.scale_by_adopt(eps=0.0, use_clipping=use_clipping), [1.0])[0] == [0.0]


def test_adopts_bound() -> None:
    for bound in (lambda count: 0.5, lambda count: 0.5 + 0 * count):
        made, _ = run(gradx.scale_by_adopt(b1=0.0, clip_value_fn=bound), [1.0, -1e6, 0.1])
        np.testing.assert_allclose(np.ravel(made)[:2], [0, -0.5])
        assert 0 < made[2] < 0.5
    # A complex number keeps its direction, which Optax refuses.
    made, _ = run(gradx.scale_by_adopt(b1=0.0), [1 + 0j, 30 + 40j], jnp.ones(1, jnp.complex64))
    np.testing.assert_allclose(made[1], [0.6 + 0.8j], rtol=1e-6)
    with pytest.raises(ValueError, match="complex"):
        run(optax.contrib.scale_by_adopt(), [1 + 0j], jnp.ones(1, jnp.complex64))


@gradx.registered
def bound_of_two(count: Any) -> float:
    return 2.0


def test_adopts_bound_in_a_config() -> None:
    tx = gradx.adopt(0.1, clip_value_fn=bound_of_two)
    assert repr(tx) == "adopt(0.1, clip_value_fn=bound_of_two)"
    assert gradx.from_config(gradx.to_config(tx)) == tx
    assert repr(gradx.adopt(0.1, clip_value_fn=gradx.fourth_root)) == "adopt(0.1)"
    with pytest.raises(ValueError, match=r"adopt\.clip_value_fn.*registered"):
        gradx.to_config(gradx.adopt(0.1, clip_value_fn=lambda count: 1.0))


# ---------------------------------------------------------------- ademamix


def test_mu_dtype_of_ademamix_is_of_both_averages_and_stays() -> None:
    p = {"w": jnp.ones(3), "c": jnp.ones(2, jnp.complex64)}
    tx = gradx.scale_by_ademamix(mu_dtype=jnp.bfloat16)
    state = tx.init(p)
    _, new = tx.update(p, state)
    for s in (state, new):
        assert s.m1["w"].dtype == s.m2["w"].dtype == jnp.bfloat16
        assert s.m1["c"].dtype == jnp.complex64
        assert {x.dtype for x in s.nu.values()} == {jnp.dtype(jnp.float32)}
    # Optax loses it in the first update, so that no scan can run it.
    theirs = optax.contrib.scale_by_ademamix(mu_dtype=jnp.bfloat16)
    state = theirs.init(p["w"])
    _, new = theirs.update(p["w"], state)
    assert [state.m1.dtype, state.nu.dtype] == [jnp.bfloat16] * 2
    assert [new.m1.dtype, new.nu.dtype] == [jnp.float32] * 2


def test_schedules_of_ademamix_go_by_the_count_of_the_slow_average() -> None:
    def slow(count: Any) -> Any:
        return 0.5 + 0.1 * count

    tx = gradx.scale_by_ademamix(b3=slow, alpha=lambda count: 1.0 + count)
    theirs = optax.contrib.scale_by_ademamix(b3=slow, alpha=lambda count: 1.0 + count)
    g = jnp.full(1, 2.0)
    state = tx.init(g)._replace(count_m2=jnp.int32(3))
    same = theirs.init(g)._replace(count_m2=jnp.int32(3))
    for _ in range(2):
        u, state = tx.update(g, state)
        v, same = theirs.update(g, same)
        np.testing.assert_allclose(u, v, rtol=2e-5)
    assert (state.count, state.count_m2) == (2, 5)
    assert state.count.dtype == state.count_m2.dtype == jnp.int32
    with jax.enable_x64(True):
        assert tx.init(g).count.dtype == jnp.int32


# ---------------------------------------------------------------- optimism


@pytest.mark.full
def test_optimistic_adam_is_optaxs() -> None:
    with pytest.warns(DeprecationWarning, match="optimistic_adam_v2"):
        theirs = optax.optimistic_adam(0.05, 0.3, b1=0.8)
    with jax.enable_x64(True):
        p, g = params(np.float64), gradients(np.float64)
        ours = trajectory(gradx.optimistic_adam(0.05, 0.3, b1=0.8), p, g)
        assert_close(ours, trajectory(theirs, p, g), rtol=1e-10)


@pytest.mark.full
def test_optimistic_adam_follows_a_schedule() -> None:
    rate = gradx.exponential_decay(0.05, 1, 0.9)
    p, g = params(), gradients(steps=5)
    ours = trajectory(gradx.optimistic_adam(rate), p, g)
    assert_close(ours, trajectory(gradx.optimistic_adam_v2(rate), p, g), rtol=2e-6)
    with pytest.raises(ValueError, match="optimistic_adam: learning_rate"):
        gradx.optimistic_adam(-0.1, 0.1)


def test_a_live_beta_may_be_one_and_more() -> None:
    """Its range is not that of a decay, though a decay is called beta elsewhere."""
    tx = gradx.tunable(gradx.optimistic_gradient_descent(0.1))
    state = gradx.set_hyperparams(tx.init(jnp.ones(1)), beta=3.0)
    _, state = tx.update(jnp.ones(1), state)
    u, _ = tx.update(jnp.full(1, 2.0), state)
    np.testing.assert_allclose(u, -0.1 * (2.0 + 3.0 * 1.0), rtol=1e-6)


# ---------------------------------------------------------------- rprop


def test_rprop_is_a_step_ahead_of_optaxs() -> None:
    grads = [3.0, 1.0, 0.1, -0.5, -2.0, -1.0, -1.0]
    ours, _ = run(gradx.rprop(0.1), grads)
    theirs, _ = run(optax.rprop(0.1), grads)
    np.testing.assert_allclose(ours[0], -0.1, rtol=1e-6)
    assert theirs[0] == 0
    # After a change of sign Optax stands still twice: once for it, once for being late.
    assert [float(u[0] != 0) for u in ours] == [1, 1, 1, 0, 1, 1, 1]
    assert [float(u[0] != 0) for u in theirs] == [0, 1, 1, 0, 0, 1, 1]
    np.testing.assert_allclose(ours[:2] + ours[4:6], theirs[1:3] + theirs[5:7], rtol=1e-6)


def test_rprop_takes_signs_of_the_smallest_gradients() -> None:
    made, _ = run(gradx.scale_by_rprop(1e-5), [1e-35, 1e-35, -1e-35])
    np.testing.assert_allclose(np.ravel(made), [1e-5, 1.2e-5, 0.0], rtol=1e-6)


def test_rprop_has_step_sizes_for_both_parts_of_a_complex_number() -> None:
    made, state = run(gradx.scale_by_rprop(0.1), [1 + 1j, 1 - 1j], jnp.ones(1, jnp.complex64))
    np.testing.assert_allclose(made, [[0.1 + 0.1j], [0.12 + 0j]], rtol=1e-6)
    np.testing.assert_allclose(state.step_sizes, [0.12 + 0.05j], rtol=1e-6)


@pytest.mark.parametrize("rate", [0.0, -1.0, lambda count: 0.1, gradx.tunable(0.1), None])
def test_rprops_rate_is_one_positive_number(rate: Any) -> None:
    with pytest.raises(ValueError, match=r"rprop.*learning_rate"):
        gradx.rprop(rate)


# ---------------------------------------------------------------- pieces


@pytest.mark.full
def test_noise_of_noisy_sgd() -> None:
    """Its variance falls as it should, and a key gives the numbers that it gives in Optax."""
    p = jnp.zeros(20_000)
    tx, theirs = (lib.noisy_sgd(0.5, eta=0.04, gamma=1.0, key=3) for lib in (gradx, optax))
    jitted = jax.jit(tx.update)
    state, same = tx.init(p), theirs.init(p)
    for t in range(1, 4):
        u, state = jitted(p, state)
        v, same = theirs.update(p, same)
        np.testing.assert_allclose(u, v, rtol=1e-5)
        assert abs(float(jnp.mean(u))) < 0.002
        assert abs(float(jnp.std(u)) / (0.5 * np.sqrt(0.04 / t)) - 1) < 0.02


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_parameters_kept_nonnegative(dtype: Any) -> None:
    tx = gradx.chain(gradx.sgd(1.0), gradx.keep_params_nonnegative())
    p = jnp.asarray([0.3, 0.1, 5.0, 0.0, -2.0], dtype)
    g = jnp.asarray([0.1, 7.0, -1.0, 1e-3, 0.0], dtype)
    updates, state = tx.update(g, tx.init(p), p)
    new = gradx.apply_updates(p, updates)
    assert (new >= 0).all()
    np.testing.assert_array_equal(new[1:], jnp.asarray([0.0, 6.0, 0.0, 0.0], dtype))
    assert isinstance(state[-1], gradx.NonNegativeParamsState)
    assert gradx.NonNegativeParamsState is optax.NonNegativeParamsState
    with pytest.raises(ValueError, match="keep_params_nonnegative: complex"):
        run(gradx.keep_params_nonnegative(), [1j], jnp.ones(1, jnp.complex64))


def test_apply_every_forgets_what_it_let_through() -> None:
    made, state = run(gradx.apply_every(2), [np.nan, 1.0, 1.0, 2.0, 4.0])
    np.testing.assert_array_equal(np.ravel(made), [0, np.nan, 0, 3, 0])
    assert state.count == 1
    assert state.count.dtype == jnp.int32
    theirs, _ = run(optax.apply_every(2), [np.nan, 1.0, 1.0, 2.0, 4.0])
    assert np.isnan(theirs).all()  # for ever


@pytest.mark.parametrize("k", [0, -1, 2.5, "2", True, None])
def test_apply_every_takes_whole_numbers(k: Any) -> None:
    with pytest.raises(ValueError, match=r"apply_every.*k"):
        gradx.apply_every(k)
    run(gradx.apply_every(np.int64(2)), [1.0])
