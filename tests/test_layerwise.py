"""Norms by leaf, layer-wise rates, factored moments: what the laws do not ask."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases import first_of
from compilers import counts_buffers
from problems import assert_close, assert_same, step

import gradx


def some(*shape: int, seed: int = 0) -> Any:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def after(tx: Any, p: Any, steps: int = 3) -> Any:
    """The parameters after some steps down a bowl, and the state."""
    state = tx.init(p)
    for _ in range(steps):
        p, state = step(tx, p, state, jax.tree.map(lambda x: 2 * x - 1, p))
    return p, state


def assert_like_optax(name: str, p: Any, **kwargs: Any) -> None:
    """The same parameters, the same structure of the state, and Optax's state is taken over."""
    ours, theirs = getattr(gradx, name)(**kwargs), getattr(optax, name)(**kwargs)
    (p1, s1), (p2, s2) = after(ours, p), after(theirs, p)
    assert_close(p1, p2, rtol=2e-6)
    assert shape(s1) == shape(s2)
    # On from Optax's state.
    g = jax.tree.map(jnp.cos, p)
    u1, s1 = ours.update(g, s2, p2)
    u2, s2 = theirs.update(g, s2, p2)
    assert_close(u1, u2, rtol=5e-6)
    assert jax.tree.structure(s1) == jax.tree.structure(s2)


def shape(state: Any) -> Any:
    """The containers of a state by name, with the shapes and dtypes in them."""
    if isinstance(state, jax.Array):
        return state.shape, state.dtype
    if isinstance(state, dict):
        return {k: shape(v) for k, v in state.items()}
    fields = getattr(state, "_fields", None)
    name = type(state).__name__ if isinstance(state, tuple | list) else None
    return name, fields, [shape(x) for x in state] if name else state


# ---------------------------------------------------------------- layer-wise rates

TREE = {"w": some(3, 2), "b": some(2, seed=1)}
ONLY_W = {"w": True, "b": False}


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("lars", {"weight_decay": 0.1, "weight_decay_mask": ONLY_W, "trust_ratio_mask": ONLY_W}),
        ("lars", {"weight_decay": lambda count: 0.1 / (1 + count)}),
        ("lamb", {"weight_decay": 0.1, "mask": ONLY_W}),
        ("lamb", {"weight_decay": lambda count: 0.1 / (1 + count), "mask": ONLY_W}),
        ("fromage", {"min_norm": 0.5}),
        ("novograd", {"weight_decay": 0.1}),
    ],
)
@first_of("rate", [lambda count: 0.1 / (1 + count), 0.1], ids=["falls", "constant"])
def test_layerwise_rates_are_optaxs(name: str, kwargs: Any, rate: Any) -> None:
    assert_like_optax(name, TREE, learning_rate=rate, **kwargs)


def test_fromage_shrinks_by_the_right_amount_at_small_rates() -> None:
    """1 / sqrt(1 + η²) - 1 has no digits in float32."""
    for rate in (1e-4, gradx.tunable(1e-4), lambda count: jnp.float32(1e-4) + 0 * count):
        tx = gradx.fromage(rate)
        u, _ = tx.update(jnp.zeros(1), tx.init(jnp.ones(1)), jnp.ones(1))
        np.testing.assert_allclose(u, -0.5e-8, rtol=1e-5)


def test_fromage_has_one_learning_rate() -> None:
    state = gradx.fromage(gradx.tunable(0.1)).init(TREE)
    assert list(gradx.hyperparams(state)) == ["learning_rate"]
    by_path = gradx.by_path({"w": 0.0}, default=0.1)
    tx = gradx.fromage(by_path)
    u, _ = tx.update(TREE, tx.init(TREE), TREE)
    assert not np.any(u["w"])
    assert np.all(u["b"] != 0)
    with pytest.raises(
        ValueError, match="fromage: learning_rate must be one real number, got None"
    ):
        gradx.fromage(None)  # type: ignore[arg-type]


def test_novograd_begins_with_the_first_gradient() -> None:
    tx = gradx.scale_by_novograd(b1=0.5, b2=0.75, eps=0.0)
    state = tx.init(jnp.zeros(2))
    u, state = tx.update(jnp.array([3.0, 4.0]), state)
    assert_close((u, state.nu), (np.array([0.6, 0.8]), np.array(25.0)), rtol=1e-6)
    u, state = tx.update(jnp.array([0.0, 0.0]), state)
    assert_close((u, state.nu), (np.array([0.3, 0.4]), np.array(18.75)), rtol=1e-6)
    assert state.nu.shape == ()


def test_without_decay_novograd_needs_no_parameters() -> None:
    for decay in (0.1, gradx.tunable(0.0)):
        tx = gradx.novograd(0.1, weight_decay=decay)
        with pytest.raises(ValueError, match="scale_by_novograd: needs the parameters"):
            tx.update(jnp.ones(2), tx.init(jnp.ones(2)))


def test_the_meta_gradient_is_finite_where_a_norm_is_zero() -> None:
    for tx in (
        gradx.scale_by_trust_ratio(),
        gradx.scale_by_param_block_rms(),
        gradx.scale_by_param_block_norm(),
        gradx.clip_by_block_rms(1.0),
    ):
        for p, g in ((0.0, 1.0), (1.0, 0.0), (0.0, 0.0)):

            def moved(p: Any, g: Any, tx: Any = tx) -> Any:
                return jnp.sum(tx.update(g, tx.init(p), p)[0])

            assert np.isfinite(jax.grad(moved, (0, 1))(jnp.full(2, p), jnp.full(2, g))).all()


def test_updates_of_zero_have_no_direction() -> None:
    zeros = jnp.zeros(3)
    for tx in (gradx.normalize(), gradx.normalize_by_update_norm(eps=0.0)):
        assert_same(tx.update(zeros, tx.init(zeros))[0], zeros)


# ---------------------------------------------------------------- factored moments

SHAPES = [(3, 7, 4), (5,), (4, 4), (2, 5), (5, 2), (7, 3, 3, 4), (1, 6), (4, 3, 1)]


@pytest.mark.parametrize("least", [2, 3])
@first_of("shape_of", SHAPES, ids=str)
def test_factored_moments_are_optaxs(shape_of: Any, least: int) -> None:
    assert_like_optax(
        "adafactor",
        some(*shape_of),
        learning_rate=0.1,
        min_dim_size_to_factor=least,
        momentum=0.5,
        weight_decay_rate=0.01,
    )


def test_the_second_moment_of_an_outer_product_is_exact() -> None:
    g = jnp.outer(jnp.arange(1.0, 4.0), jnp.arange(1.0, 6.0))
    tx = gradx.scale_by_factored_rms(min_dim_size_to_factor=1)
    assert_close(tx.update(g, tx.init(g))[0], np.ones((3, 5)), rtol=1e-6)


def test_a_decay_of_ones_own() -> None:
    """With a bound, as for large vision models, or without memory."""
    g = jnp.array([1.0, 2.0])

    def bounded(count: Any, rate: Any) -> Any:
        return jnp.minimum(1 - (count + 1.0) ** -rate, 0.5)

    ours = gradx.scale_by_factored_rms(decay_rate_fn=bounded)
    theirs = optax.scale_by_factored_rms(decay_rate_fn=bounded)
    s1, s2 = ours.init(g), theirs.init(g)
    for i in range(4):
        u1, s1 = ours.update((i + 1) * g, s1)
        u2, s2 = theirs.update((i + 1) * g, s2, g)
    assert_close((u1, s1.v), (u2, s2.v), rtol=2e-6)
    forgets = gradx.scale_by_factored_rms(decay_rate_fn=lambda count, rate: 0.0)
    u, _ = forgets.update(-g, forgets.init(g)._replace(v=jnp.full(2, 9.0)))
    assert_close(u, -np.ones(2), rtol=1e-6)


def test_before_its_offset_the_decay_is_that_of_the_first_step() -> None:
    tx = gradx.scale_by_factored_rms(step_offset=2)
    state, plain = tx.init(jnp.ones(1)), gradx.scale_by_factored_rms()
    for g in (5.0, 3.0, 2.0):  # counts 0, 1, 2: the third is the first that the decay counts
        u, state = tx.update(jnp.array([g]), state)
        assert_close(u, np.ones(1), rtol=1e-6)
    u, state = tx.update(jnp.array([4.0]), state)
    later = plain.init(jnp.ones(1))._replace(count=jnp.int32(1), v=jnp.array([4.0]))
    assert_close(u, plain.update(jnp.array([4.0]), later)[0], rtol=1e-6)


def test_adafactors_momentum_is_as_wide_as_its_parameters() -> None:
    tx = gradx.adafactor(0.1, momentum=0.9)
    for dtype, kept in ((jnp.bfloat16, jnp.float32), (jnp.float32, jnp.float32)):
        assert tx.init(jnp.ones(2, dtype))[4].ema.dtype == kept
    with jax.enable_x64(True):
        assert tx.init(jnp.ones(2, jnp.float64))[4].ema.dtype == jnp.float64
    half = gradx.adafactor(0.1, momentum=0.9, dtype_momentum=jnp.bfloat16)
    assert half.init(jnp.ones(2))[4].ema.dtype == jnp.bfloat16


@pytest.mark.full
def test_float16_gradients_of_zero_and_of_a_thousand() -> None:
    """In float16 the squares are 0 and infinite, and Optax's updates NaN and 0."""
    p = jnp.ones((4, 4), jnp.float16)
    for name in ("lamb", "lars", "fromage", "novograd", "adafactor", "sm3"):
        tx = getattr(gradx, name)(0.5)
        for size in (0.0, 1000.0):
            u, _ = tx.update(jnp.full_like(p, size), tx.init(p), p)
            assert np.isfinite(u).all()
            assert not size or np.all(u != 0)


# ---------------------------------------------------------------- covers


@first_of("shape_of", [s for s in SHAPES if s != (1, 6)], ids=str)
@pytest.mark.parametrize("b2", [1.0, 0.75])
def test_covers_are_optaxs(shape_of: Any, b2: float) -> None:
    assert_like_optax("scale_by_sm3", {"a": some(*shape_of)}, b1=0.5, b2=b2, eps=1e-6)


def test_a_scalar_has_one_bound() -> None:
    """Optax keeps none for it, and fails in the update."""
    tx = gradx.scale_by_sm3(b1=0.0)
    state = tx.init(jnp.ones(()))
    assert [x.shape for x in state.mu] == [()]
    for g, expected in ((3.0, 1.0), (4.0, 0.8)):
        u, state = tx.update(jnp.float32(g), state)
        assert_close(u, np.float32(expected), rtol=1e-6)


def test_a_live_decay_of_one_adds_up() -> None:
    p = some(3, 4)
    expected, _ = after(gradx.scale_by_sm3(), p)
    tx = gradx.scale_by_sm3(b2=gradx.tunable(1.0))
    assert_close(after(tx, p)[0], expected, rtol=1e-6)
    state = gradx.set_hyperparams(tx.init(p), b2=0.5)
    u, _ = tx.update(p, state)
    other = gradx.scale_by_sm3(b2=0.5)
    assert_close(u, other.update(p, other.init(p))[0], rtol=1e-6)


# ---------------------------------------------------------------- measured, and then scaled

# With the updates that have to be kept until a norm of them is known.
MEASURED = {
    "lamb": (1, lambda: gradx.lamb(0.1, eps_root=1e-6, weight_decay=0.1)),
    "a schedule": (1, lambda: gradx.lamb(lambda count: 1 / (1 + count), weight_decay=0.1)),
    "behind a scale": (
        1,
        lambda: gradx.chain(gradx.scale_by_adam(), gradx.scale(0.5), gradx.scale_by_trust_ratio()),
    ),
    "twice": (
        2,
        lambda: gradx.chain(
            gradx.scale_by_adam(), gradx.clip_by_block_rms(1.0), gradx.scale_by_trust_ratio()
        ),
    ),
    "behind a norm": (
        1,
        lambda: gradx.chain(gradx.clip_by_global_norm(1.0), gradx.adafactor(0.1, 2, momentum=0.9)),
    ),
    "unfactored": (1, lambda: gradx.adafactor(0.1, factored=False)),
    "sm3": (1, lambda: gradx.sm3(0.1)),
    "under a gate": (1, lambda: gradx.conditionally_mask(gradx.lamb(0.1), first)),
}


@gradx.registered
def first(step: Any) -> Any:
    return step < 1


@counts_buffers
@pytest.mark.parametrize(("kept", "make"), MEASURED.values(), ids=MEASURED)
def test_what_is_measured_is_kept_until_it_is_known(kept: int, make: Any) -> None:
    """And no number as an array; one leaf more while it is worked on."""
    tx, n = make(), 128
    p = [jax.ShapeDtypeStruct((n, n), jnp.float32)] * 4
    jitted = jax.jit(lambda p, s, g: step(tx, p, s, g), donate_argnums=(0, 1))
    used = jitted.lower(p, jax.eval_shape(tx.init, p), p).compile().memory_analysis()
    assert used.temp_size_in_bytes < (kept + 1.05 / len(p)) * 4 * len(p) * n**2


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_what_is_measured_is_what_is_scaled(dtype: Any) -> None:
    """The update that comes out has the norm that the one before the ratio was said to have."""
    p, g = (x.astype(dtype) for x in (some(6, 4), some(6, 4, seed=1)))
    before = gradx.chain(
        gradx.clip_by_global_norm(0.5), gradx.scale_by_adam(nesterov=True), gradx.scale(0.5)
    )
    tx = gradx.chain(before, gradx.scale_by_trust_ratio())
    s1, s2 = before.init(p), tx.init(p)
    for i in range(3):
        u1, s1 = before.update(g * (i + 1), s1, p)
        u2, s2 = tx.update(g * (i + 1), s2, p)
        p_norm, norm = (np.linalg.norm(np.asarray(x, np.float64)) for x in (p, u1))
        expected = np.asarray(u1, np.float64) * p_norm / norm
        assert_close(u2, expected, rtol=1e-6 if dtype == jnp.float32 else 2e-2)
    assert_same(s1, s2[0])


def _mix(g: Any, s: Any, p: Any, h: Any) -> Any:
    return g @ g.T @ g, s


@gradx.recorded
def _mixing() -> gradx.Transform:
    return gradx.leafwise(_mix)


def test_what_is_dear_is_not_calculated_twice() -> None:
    tx, g = gradx.chain(_mixing(), gradx.clip_by_block_rms(1.0)), some(8, 8)
    compiled = jax.jit(lambda g: tx.update(g, tx.init(g))[0]).lower(g).compile()
    assert compiled.cost_analysis()["flops"] < 1.5 * 2 * 2 * 8**3
    u = np.asarray(g, np.float64) @ np.asarray(g).T @ np.asarray(g)
    assert_close(compiled(g), u / np.sqrt(np.mean(u**2)), rtol=1e-6)
