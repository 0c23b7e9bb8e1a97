"""What changes the updates of any rule: caution, MARS, the hyperball, QK-clip."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from compilers import counts_buffers
from problems import assert_close, assert_same, gradients, params, trajectory

import gradx
from gradx import HeadAxis, MatrixAxes


def after_three(tx: Any, **extra: Any) -> Any:
    p, g = params(), gradients(steps=3)
    return jax.tree.map(lambda x: x[-1], trajectory(tx, p, g, **extra))


def temporaries(tx: Any, count: int = 2, **extra: Any) -> float:
    p = {str(i): jax.ShapeDtypeStruct((64, 256), jnp.float32) for i in range(count)}

    def step(p: Any, s: Any, g: Any) -> Any:
        u, s = tx.update(g, s, p, **extra)
        return gradx.apply_updates(p, u), s

    jitted = jax.jit(step, donate_argnums=(0, 1))
    used = jitted.lower(p, jax.eval_shape(tx.init, p), p).compile().memory_analysis()
    return used.temp_size_in_bytes / (4 * 64 * 256 * count)


# ---------------------------------------------------------------- cautious updates


def test_caution_compares_with_what_it_is_given_itself() -> None:
    """Not with the gradient that begins the pass: here another rule has turned that before."""
    tx = gradx.chain(gradx.scale(-1.0), gradx.cautious(gradx.sgd(1.0, momentum=0.5)))
    state = tx.init(jnp.ones(2))
    _, state = tx.update(jnp.array([-4.0, -4.0]), state)
    updates, _ = tx.update(jnp.array([-4.0, 1.0]), state)
    np.testing.assert_allclose(updates, [-12.0, 0.0])


@pytest.mark.full
def test_caution_is_the_same_around_any_kind_of_transformation() -> None:
    fused = gradx.cautious(gradx.adam(0.05))
    theirs = gradx.cautious(optax.adam(0.05))
    whole = gradx.cautious(gradx.chain(gradx.adam(0.05), gradx.clip_by_global_norm(1e9)))
    assert_close(after_three(theirs), after_three(fused), rtol=1e-5)
    assert_close(after_three(whole), after_three(fused), rtol=1e-6)
    up = gradx.chain(gradx.cautious(gradx.scale_by_adam(), direction="ascent"), gradx.scale(-0.05))
    assert_close(after_three(up), after_three(fused), rtol=1e-6)


def test_caution_keeps_what_goes_downhill_and_the_size() -> None:
    g = np.random.default_rng(0).normal(size=(2, 1000)).astype(np.float32)
    inner = gradx.trace(0.9)
    tx = gradx.cautious(inner, direction="ascent")
    state, inner_state = tx.init(g[0]), inner.init(g[0])
    for now in g:
        updates, state = tx.update(now, state)
        plain, inner_state = inner.update(now, inner_state)
    agree = np.asarray(plain) * g[1] > 0
    assert 0.5 < agree.mean() < 1
    np.testing.assert_allclose(updates, plain * agree / agree.mean(), rtol=1e-6)
    one = gradx.cautious(inner, direction="ascent", min_share=1.0)
    assert_same(one.update(g[0], one.init(g[0]))[0], jnp.asarray(g[0]))


def test_caution_with_tiny_numbers_and_with_nan() -> None:
    tx = gradx.cautious(gradx.sgd(1e-30))
    g = jnp.array([1e-30, 0.0], jnp.float32)
    with jax.enable_x64():
        g = g.astype(jnp.float64)
        updates, _ = tx.update(g, tx.init(g))
    np.testing.assert_allclose(updates, [-2e-60, 0.0], rtol=1e-6)
    broken, _ = tx.update(jnp.array([jnp.nan]), tx.init(jnp.ones(1)))
    assert np.isnan(broken).all()


@counts_buffers
def test_caution_adds_no_state_and_keeps_the_update_once() -> None:
    adam = gradx.adam(0.1)
    tx = gradx.cautious(adam)
    assert_same(tx.init(params()), adam.init(params()))
    assert temporaries(tx) < 1.05
    assert temporaries(gradx.chain(gradx.clip_by_global_norm(1.0), tx)) < 1.05
    before_the_rate = [gradx.add_cautious_decay(0.1), gradx.scale_by_learning_rate(0.1)]
    assert temporaries(gradx.chain(gradx.scale_by_adam(), *before_the_rate)) < 1.05


def test_caution_in_steps_that_do_not_count() -> None:
    tx = gradx.apply_if_finite(gradx.cautious(gradx.adam(0.1)), 3)
    p = jnp.ones(2)
    state = tx.init(p)
    _, first = tx.update(jnp.array([1.0, -1.0]), state, p)
    updates, second = tx.update(jnp.array([jnp.inf, 1.0]), first, p)
    assert_same(updates, jnp.zeros(2))
    assert_same(second.inner_state, first.inner_state)


@pytest.mark.full
def test_caution_around_muon_and_what_comes_after_it() -> None:
    inner = gradx.muon(0.1, "exact")
    tx = gradx.chain(gradx.cautious(inner), gradx.clip_by_block_rms(1e-3))
    p = {"mlp": jnp.ones((2, 3)), "bias": jnp.ones(3)}
    g = jax.tree.map(lambda x: jnp.arange(1.0, 1 + x.size).reshape(x.shape), p)
    updates, _ = tx.update(g, tx.init(p), p)
    plain, _ = inner.update(g, inner.init(p), p)
    keep = plain["mlp"] * g["mlp"] < 0
    assert not keep.all()
    assert_same(updates["mlp"] == 0, ~keep)
    np.testing.assert_allclose(jnp.mean(updates["mlp"] ** 2), 1e-6, rtol=1e-5)


# ---------------------------------------------------------------- cautious decay


def test_cautious_decay_before_and_after_the_learning_rate() -> None:
    first = gradx.chain(
        gradx.scale_by_adam(), gradx.add_cautious_decay(0.5), gradx.scale_by_learning_rate(0.1)
    )
    last = gradx.chain(gradx.adam(0.1), gradx.add_cautious_decay(0.05, flip_sign=True))
    assert_close(after_three(last), after_three(first), rtol=1e-6)


def test_cautious_decay_by_mask_and_without() -> None:
    tx = gradx.add_cautious_decay(0.5, gradx.weights_only)
    p = {"kernel": jnp.ones((1, 1)), "bias": jnp.ones(1)}
    updates, _ = tx.update(p, tx.init(p), p)
    assert_same(updates, {"kernel": jnp.full((1, 1), 1.5), "bias": jnp.ones(1)})
    nothing = gradx.add_cautious_decay(0.0)
    assert_same(nothing.update(p, nothing.init(p))[0], p)
    with pytest.raises(ValueError, match="weight_decay"):
        gradx.add_cautious_decay(-0.1)


# ---------------------------------------------------------------- MARS


@pytest.mark.full
def test_mars_is_a_correction_before_adam() -> None:
    pieces = gradx.chain(gradx.correct_by_mars(gamma=0.3), gradx.scale_by_adam(0.95, 0.99))
    assert_close(after_three(gradx.scale_by_mars(gamma=0.3)), after_three(pieces), rtol=1e-6)
    plain = gradx.scale_by_mars(0.9, 0.99, gamma=0.0, max_norm=jnp.inf)
    assert_close(after_three(plain), after_three(gradx.scale_by_adam(0.9, 0.99)), rtol=1e-6)


def test_mars_before_muon_sees_the_change() -> None:
    tx = gradx.chain(gradx.correct_by_mars(0.5, 1.0), gradx.scale_by_muon("exact", beta=0.0))
    alone = gradx.scale_by_muon("exact", beta=0.0, nesterov=False)
    first, second = jnp.array([[1.0, 2.0], [0.5, 1.0]]), jnp.array([[2.0, 1.0], [0.0, 1.0]])
    state = tx.init(first)
    _, state = tx.update(first, state)
    updates, _ = tx.update(second, state)
    expected, _ = alone.update(2 * second - first, alone.init(first))
    assert_close(updates, expected, rtol=1e-5)


@counts_buffers
def test_mars_needs_no_temporaries() -> None:
    assert temporaries(gradx.mars(0.1, weight_decay=0.1)) < 0.05


# ---------------------------------------------------------------- the hyperball


def norms(x: Any, axis: Any = None) -> Any:
    return np.sqrt(np.sum(np.square(np.asarray(x, np.float64)), axis=axis))


@pytest.mark.parametrize("inner", [gradx.scale_by_adam(), gradx.scale_by_muon(), gradx.trace(0.9)])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_norm_stays_and_the_step_is_relative(inner: Any, dtype: Any) -> None:
    rng = np.random.default_rng(0)
    p = {"mlp": jnp.asarray(rng.normal(size=(4, 6)), dtype)}
    tx = gradx.hyperball(inner, 0.2)
    state = tx.init(p)
    update = jax.jit(tx.update)
    start = norms(p["mlp"])
    for _ in range(20):
        g = {"mlp": jnp.asarray(rng.normal(size=(4, 6)), dtype)}
        updates, state = update(g, state, p)
        new = gradx.apply_updates(p, updates)
        relative = norms(new["mlp"] - p["mlp"]) / start
        assert 0.1 < relative < 0.21  # an angle whose sine is 0.2 at most
        p = new
    assert norms(p["mlp"]) == pytest.approx(start, rel=1e-5 if dtype == jnp.float32 else 1e-2)


@pytest.mark.full
def test_each_matrix_of_a_stack_has_its_own_norm() -> None:
    rng = np.random.default_rng(0)
    p = {"layers": {"mlp": rng.normal(size=(3, 2, 4)).astype(np.float32)}}
    p["layers"]["mlp"] *= np.array([1.0, 10.0, 100.0], np.float32)[:, None, None]
    g = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), p)
    tx = gradx.hyperball(gradx.identity(), 0.5)
    state = tx.init(p)
    updates, _ = tx.update(g, state, p)
    new = p["layers"]["mlp"] + updates["layers"]["mlp"]
    np.testing.assert_allclose(norms(new, (1, 2)), norms(p["layers"]["mlp"], (1, 2)), rtol=1e-6)
    one = {"mlp": p["layers"]["mlp"][1]}
    alone, _ = tx.update({"mlp": g["layers"]["mlp"][1]}, tx.init(one), one)
    assert_close(updates["layers"]["mlp"][1], alone["mlp"], rtol=1e-6)

    fused = gradx.scale_by_hyperball(0.5, MatrixAxes(0, 1, parts=3))
    w = np.concatenate(list(p["layers"]["mlp"]), axis=1)
    d = np.concatenate(list(g["layers"]["mlp"]), axis=1)
    parts, _ = fused.update(d, fused.init(w), w)
    assert_close(np.split(np.asarray(parts), 3, axis=1), list(updates["layers"]["mlp"]), rtol=1e-6)


def test_where_nothing_can_move() -> None:
    tx = gradx.scale_by_hyperball(1.0)
    w = jnp.array([[3.0, 4.0]])
    for g in (jnp.zeros((1, 2)), w):  # no direction; and straight to the middle
        updates, _ = tx.update(g, tx.init(w), w)
        assert_same(updates, jnp.zeros((1, 2)))
    for dtype in (jnp.float16, jnp.bfloat16):
        w = w.astype(dtype)
        updates, _ = tx.update(0 * w, tx.init(w), w)
        assert_same(updates, 0 * w)


def test_matrices_of_zeros_have_no_sphere() -> None:
    tx = gradx.hyperball(gradx.scale_by_adam(), 0.1)
    p = {"mlp": {"up": jnp.ones((2, 2)), "down": jnp.zeros((2, 2))}, "bias": jnp.zeros(2)}
    with pytest.raises(ValueError, match=r"hyperball.*'mlp/down' begins at zero"):
        tx.init(p)
    stack = {"mlp": jnp.stack([jnp.ones((2, 2)), jnp.zeros((2, 2))])}
    with pytest.raises(ValueError, match="'mlp' begins at zero"):
        tx.init(stack)
    axes = gradx.by_path({"up": MatrixAxes()}, default=None)
    gradx.hyperball(gradx.scale_by_adam(), 0.1, axes=axes).init(p)  # the other goes to Adam
    state = jax.jit(tx.init)(p)  # where no value can be seen: it stays at zero, and finite
    updates, _ = tx.update(jax.tree.map(jnp.ones_like, p), state, p)
    assert_same(updates["mlp"]["down"], jnp.zeros((2, 2)))


def test_the_hyperball_refuses_what_is_no_matrix() -> None:
    with pytest.raises(ValueError, match="'bias' of shape"):
        gradx.scale_by_hyperball(0.1).init({"mlp": jnp.ones((2, 2)), "bias": jnp.ones(2)})
    frozen = gradx.hyperball(gradx.scale_by_adam(), 0.1, fallback=gradx.set_to_zero())
    p = {"mlp": jnp.ones((2, 2)), "bias": jnp.ones(2)}
    updates, _ = frozen.update(p, frozen.init(p), p)
    assert_same(updates["bias"], jnp.zeros(2))


@counts_buffers
def test_the_hyperball_keeps_the_update_once() -> None:
    assert temporaries(gradx.hyperball(gradx.scale_by_adam(), 0.1)) < 1.05


# ---------------------------------------------------------------- QK-clip


def attention(heads: int = 3, size: int = 4) -> Any:
    rng = np.random.default_rng(0)

    def kernel(*shape: int) -> Any:
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    return {
        "attention": {
            "query": {"kernel": kernel(5, heads, size), "bias": kernel(heads, size)},
            "key": {"kernel": kernel(5, heads, size), "bias": kernel(heads, size)},
            "value": {"kernel": kernel(5, heads, size)},
            "query_norm": {"scale": kernel(size)},
        }
    }


def largest_logits(p: Any, x: Any) -> Any:
    """Of each head, over the pairs of inputs."""

    def project(name: str) -> Any:
        part = p["attention"][name]
        return jnp.einsum("nd,dhk->hnk", x, part["kernel"]) + part["bias"][:, None]

    return jnp.max(jnp.einsum("hnk,hmk->hnm", project("query"), project("key")), axis=(1, 2))


def test_the_logits_are_bounded_and_nothing_else_changes() -> None:
    p = attention()
    x = jnp.asarray(np.random.default_rng(1).normal(size=(7, 5)), jnp.float32)
    logits = largest_logits(p, x)
    threshold = float(jnp.sort(logits)[1])
    tx = gradx.chain(gradx.sgd(0.0), gradx.qk_clip(threshold))
    g = jax.tree.map(jnp.ones_like, p)
    updates, _ = jax.jit(tx.update)(g, tx.init(p), p, max_logits={"attention": logits})
    after = largest_logits(gradx.apply_updates(p, updates), x)
    np.testing.assert_allclose(after, jnp.minimum(logits, threshold), rtol=1e-5)
    assert_same(updates["attention"]["value"]["kernel"], jnp.zeros((5, 3, 4)))
    assert_same(updates["attention"]["query_norm"]["scale"], jnp.zeros(4))


def test_what_is_clipped_is_the_weight_after_the_step() -> None:
    p = {"q": jnp.ones((1, 2, 1)), "other": jnp.ones(1)}
    tx = gradx.chain(gradx.sgd(0.5), gradx.qk_clip(25.0))
    updates, _ = tx.update(p, tx.init(p), p, max_logits=jnp.array([100.0, 25.0]))
    assert_same((p["q"] + updates["q"]).ravel(), jnp.array([0.25, 0.5]))
    assert_same(updates["other"], jnp.array([-0.5]))


@pytest.mark.full
def test_heads_side_by_side_stacked_and_by_path() -> None:
    logits = jnp.array([4.0, 1.0, 16.0])
    root = np.array([0.5, 1.0, 0.25], np.float32)
    tx = gradx.qk_clip(1.0)
    flat = {"q_proj": {"kernel": jnp.ones((2, 6)), "bias": jnp.ones(6)}}
    updates, _ = tx.update(flat, tx.init(flat), flat, max_logits=logits)
    for leaf in jax.tree.leaves(jax.tree.map(lambda p, u: p + u, flat, updates)):
        np.testing.assert_allclose(leaf, np.broadcast_to(2 * root.repeat(2), leaf.shape))

    stacked = {"attn": {"key": {"kernel": jnp.ones((2, 5, 3, 4)), "bias": jnp.ones((2, 3, 4))}}}
    two = jnp.stack([logits, jnp.ones(3)])
    updates, _ = tx.update(stacked, tx.init(stacked), stacked, max_logits={"attn": two})
    made = updates["attn"]["key"]["kernel"] + 1
    scale = np.stack([2 * root, np.full(3, 2.0)])
    np.testing.assert_allclose(made, np.broadcast_to(scale[:, None, :, None], made.shape))

    # A weight of Equinox or PyTorch has its heads side by side in the outputs, which come first.
    p = {
        "query_proj": {"weight": jnp.ones((6, 4))},
        "wk": {"w": jnp.ones((4, 6)), "b": jnp.ones(6)},
    }
    updates, _ = tx.update(p, tx.init(p), p, max_logits=logits)
    made = jax.tree.map(lambda p, u: p + u, p, updates)
    scale = 2 * root.repeat(2)
    np.testing.assert_allclose(made["query_proj"]["weight"], np.tile(scale[:, None], 4))
    np.testing.assert_allclose(made["wk"]["w"], np.tile(scale, (4, 1)))
    np.testing.assert_allclose(made["wk"]["b"], scale)
    p = {"attn": {"key_proj": {"weight": jnp.ones((2, 6, 4))}}}
    updates, _ = tx.update(p, tx.init(p), p, max_logits={"attn": two})
    made = updates["attn"]["key_proj"]["weight"] + 1
    scale = np.stack([scale, np.full(6, 2.0)])
    np.testing.assert_allclose(made, np.broadcast_to(scale[:, :, None], made.shape))

    grouped = gradx.by_path({"wq": HeadAxis(0, power=1.0)}, default=None)
    tx = gradx.qk_clip(1.0, grouped)
    p = {"wq": jnp.ones((3, 2)), "wk": jnp.ones((1, 2))}
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, p), tx.init(p), p, max_logits=logits)
    np.testing.assert_allclose((p["wq"] + updates["wq"])[:, 0], root**2)
    assert_same(updates["wk"], jnp.zeros((1, 2)))


def test_the_innermost_block_counts() -> None:
    p = {"a": {"q": jnp.ones((1, 1, 1))}, "b": {"q": jnp.ones((1, 1, 1))}}
    zeros = jax.tree.map(jnp.zeros_like, p)
    tx = gradx.qk_clip(1.0)
    state = tx.init(p)
    for logits in ({"a": 4.0, "b": 16}, {"a": {"q": 4.0}, "b": jnp.array([16.0])}):
        updates, _ = tx.update(zeros, state, p, max_logits=logits)
        assert (updates["a"]["q"].item(), updates["b"]["q"].item()) == (-0.5, -0.75)
    for logits in (jnp.nan, jnp.inf, -5.0):  # nothing to go by, and nothing to do
        updates, _ = tx.update(p, state, p, max_logits=logits)
        assert_same(updates, p)


@pytest.mark.full
def test_qk_clip_after_muon_in_half_precision() -> None:
    p = jax.tree.map(lambda x: x.astype(jnp.bfloat16), attention())
    tx = gradx.chain(gradx.muon(0.1), gradx.qk_clip())
    logits = {"attention": jnp.full(3, 200.0, jnp.bfloat16)}
    updates, _ = jax.jit(tx.update)(p, tx.init(p), p, max_logits=logits)
    assert {x.dtype for x in jax.tree.leaves(updates)} == {jnp.dtype(jnp.bfloat16)}
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(updates))


def test_bad_heads_and_logits_are_named() -> None:
    p = attention()
    tx = gradx.qk_clip()
    state = tx.init(p)
    with pytest.raises(ValueError, match=r"qk_clip: needs the largest logits"):
        tx.update(p, state, p)
    with pytest.raises(ValueError, match=r"nothing for 'attention/key/bias'; it has 'attn'"):
        tx.update(p, state, p, max_logits={"attn": jnp.ones(3)})
    with pytest.raises(ValueError, match=r"'attention/key/bias' have the shape \(4,\).*\(3,\)"):
        tx.update(p, state, p, max_logits={"attention": jnp.ones(4)})
    with pytest.raises(ValueError, match="must be real numbers"):
        tx.update(p, state, p, max_logits={"attention": jnp.ones(3, complex)})
    with pytest.raises(ValueError, match="no leaf is a query or a key"):
        tx.init({"mlp": jnp.ones((2, 2)), "query_norm": {"scale": jnp.ones(2)}})
    with pytest.raises(ValueError, match="at 'attention/key/bias' of shape"):
        gradx.qk_clip(heads=HeadAxis(-4)).init({"attention": {"key": {"bias": jnp.ones((3, 4))}}})
    with pytest.raises(ValueError, match="claims no leaf"):
        gradx.qk_clip(heads=gradx.by_path({"wq": HeadAxis()}, default=None)).init(p)
    with pytest.raises(ValueError, match="heads must be HeadAxis"):
        gradx.qk_clip(heads=gradx.by_path({"query": -2}, default=None)).init(p)
    for axis in (1.0, "x", None, True, (0, 1.0)):
        bad = gradx.qk_clip(heads=gradx.by_path({"query/kernel": HeadAxis(axis)}, default=None))
        with pytest.raises(
            ValueError, match=r"qk_clip: at 'attention/query/kernel' axis must be a"
        ):
            bad.init(p)
    with pytest.raises(ValueError, match="power"):
        gradx.qk_clip(heads=gradx.by_path({"y": HeadAxis(0, power=-1.0)}, default=None)).init(p)
    flat = {"q_proj": jnp.ones((2, 6))}
    with pytest.raises(ValueError, match=r"'q_proj' have the shape \(4,\).*divisor"):
        tx.update(flat, tx.init(flat), flat, max_logits=jnp.ones(4))


def test_heads_stand_in_a_config() -> None:
    heads = gradx.by_path({"query": HeadAxis((0, -2)), "key": HeadAxis()}, default=None)
    tx = gradx.qk_clip(50.0, heads)
    assert gradx.from_config(gradx.to_config(tx)) == tx
