"""ASAM and LookSAM: both modes, what is called when, and what a mask and a bad gradient do."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from problems import assert_close, assert_same
from references import chain, look_sam, normalize, run, sgd

import gradx

P = {"kernel": jnp.array([[1.0, -2.0], [0.5, 3.0]]), "bias": jnp.array([0.5, -0.25])}


def slope(p: Any) -> Any:
    """Gradients of a curved loss, so that those uphill have another direction."""
    return p**3 - p[::-1]


def test_the_mask_of_asam_leaves_biases_with_sams_step() -> None:
    """As in the authors' code, where only parameters called weight have a size."""
    g = {"kernel": jnp.full((2, 2), 0.5), "bias": jnp.array([1.0, -2.0])}
    tx = gradx.asam_adversary(0.5, 0.01, gradx.weights_only)
    updates, _ = tx.update(g, tx.init(P), P)
    size = np.abs(P["kernel"]) + 0.01
    norm = np.sqrt(np.sum((size * g["kernel"]) ** 2) + np.sum(np.square(g["bias"])))
    assert_close(updates["kernel"], -0.5 * size**2 * g["kernel"] / norm, rtol=1e-6)
    assert_close(updates["bias"], -0.5 * g["bias"] / norm, rtol=1e-6)
    with pytest.raises(ValueError, match=r"asam_adversary: .*mask"):
        gradx.asam_adversary(mask={"kernel": True}).init(P)


def test_asam_is_sam_with_its_adversary() -> None:
    tx = gradx.asam(gradx.sgd(0.1), 0.3, 0.1, gradx.weights_only)
    by_hand = gradx.sam(
        gradx.sgd(0.1), gradx.asam_adversary(0.3, 0.1, gradx.weights_only), reset_state=False
    )
    with jax.disable_jit():
        state = tx.init(P)
        for _ in range(2):
            made = tx.update(P, state, P)
            assert_same(made, by_hand.update(P, state, P))
            state = made[1]


def test_the_opaque_mode_follows_the_paper_and_asks_every_k_steps() -> None:
    """With parts of Optax; the laws compare the transparent mode."""
    asked: list[Any] = []

    def grad_fn(p: Any, i: int) -> Any:
        if not isinstance(p, jax.core.Tracer):
            asked.append(p)
        return slope(p)

    adversary = optax.chain(optax.contrib.normalize(), optax.sgd(0.1))
    tx = gradx.look_sam(optax.sgd(0.01), adversary, 3, 0.5, opaque_mode=True)
    start = np.array([1.0, -2.0, 0.5])
    rule = look_sam(sgd(0.01), chain(normalize(), sgd(0.1)), 3, 0.5)
    (expected,) = run(rule, [start], lambda ps: [slope(ps[0])], 4 + 2)[-1]
    with jax.enable_x64(True), jax.disable_jit():
        p = jnp.asarray(start)
        state = tx.init(p)
        for _ in range(4):
            updates, state = tx.update(slope(p), state, p, grad_fn=grad_fn)
            p = gradx.apply_updates(p, updates)
    assert_close(p, expected, rtol=1e-12)
    assert len(asked) == 2  # in the first and the fourth of 4 steps
    assert state.cache is None


def test_a_bad_gradient_does_not_outlive_its_period() -> None:
    """The direction is selected and not multiplied by 0, so NaN goes when it is found anew."""
    tx = gradx.look_sam(gradx.sgd(0.1), gradx.sgd(0.1), 1)
    p = jnp.ones(2)
    with jax.disable_jit():
        _, state = tx.update(jnp.full(2, jnp.nan), tx.init(p), p)
        _, state = tx.update(jnp.ones(2), state, p)
        assert np.isnan(state.direction.direction).all()
        updates, state = tx.update(jnp.ones(2), state, p)
        updates, state = tx.update(jnp.array([1.0, 2.0]), state, p + updates)
    assert np.isfinite(state.direction.direction).all()


def test_alpha_is_a_live_value() -> None:
    tx = gradx.look_sam(gradx.sgd(0.1), gradx.sgd(0.1), alpha=gradx.tunable(0.7))
    state = gradx.set_hyperparams(tx.init(P), tx=tx, alpha=0.0)
    assert gradx.hyperparams(state)["alpha"] == 0
    assert gradx.hyperparams(state, tx=tx)["alpha"] == 0


def test_a_state_of_the_other_mode_is_refused() -> None:
    parts = gradx.sgd(0.1), gradx.sgd(0.1)
    opaque, clear = gradx.look_sam(*parts, opaque_mode=True), gradx.look_sam(*parts)
    with pytest.raises(ValueError, match=r"look_sam: .*of transparent mode"):
        opaque.update(P, clear.init(P), P, grad_fn=lambda p, i: p)
    with pytest.raises(ValueError, match=r"look_sam: .*grad_fn"):
        opaque.update(P, opaque.init(P), P)
    with pytest.raises(ValueError, match="look_sam: batch_axis_name is for opaque_mode"):
        gradx.look_sam(*parts, batch_axis_name="d")
