"""Gradients of single examples: bounded as promised, summed, and the noise on top of them."""

from __future__ import annotations

import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases import first_of
from compilers import counts_buffers
from problems import assert_close, assert_same

import gradx

PARAMS = {"dense": {"kernel": jnp.ones((4, 3)), "bias": jnp.zeros(3)}, "scale": jnp.ones(())}
N = 6


def grads(dtype: Any = np.float32, seed: int = 0) -> Any:
    """One gradient for each of six examples; they differ in size, and the third is zero."""
    rng = np.random.default_rng(seed)

    def some(p: Any) -> Any:
        made = rng.normal(size=(N, *p.shape)) + 1j * rng.normal(size=(N, *p.shape))
        made *= np.array([0.1, 3.0, 0.0, 1.0, 0.5, 10.0]).reshape(N, *[1] * p.ndim)
        return (made if np.issubdtype(dtype, np.complexfloating) else made.real).astype(dtype)

    return jax.tree.map(some, PARAMS)


def reference(g: Any, bound: float) -> Any:
    """The sum of the clipped gradients in float64; Abadi et al., 2016, arXiv:1607.00133, Alg. 1."""
    flat, treedef = jax.tree.flatten(g)
    flat = [np.asarray(x, np.complex128 if np.iscomplexobj(x) else np.float64) for x in flat]
    sums = [np.zeros_like(x[0]) for x in flat]
    for b in range(N):
        norm = np.sqrt(sum(np.sum(np.abs(x[b]) ** 2) for x in flat))
        sums = [s + x[b] / max(1.0, norm / bound) for s, x in zip(sums, flat, strict=True)]
    return treedef.unflatten(sums)


def mean_of(g: Any, bound: float) -> Any:
    return jax.tree.map(lambda s: s / N, reference(g, bound))


# ---------------------------------------------------------------- sums of clipped gradients


@pytest.mark.parametrize("bound", [0.5, 3.0, 1e9, float("inf")])
@first_of("dtype", [np.float32, np.complex64, np.float64])
def test_clips_each_example_and_adds_them_up(bound: float, dtype: Any) -> None:
    with jax.enable_x64(dtype == np.float64):
        g = grads(dtype)
        made, count = gradx.per_example_global_norm_clip(g, bound)
        assert_close(made, reference(g, bound), rtol=1e-12 if dtype == np.float64 else 1e-6)
        assert {x.dtype for x in jax.tree.leaves(made)} == {jnp.dtype(dtype)}
        norms = [float(gradx.global_norm(jax.tree.map(lambda x, b=b: x[b], g))) for b in range(N)]
        assert int(count) == sum(norm > bound for norm in norms)
        assert_close(
            made, optax.per_example_global_norm_clip(jax.tree.leaves(g), bound)[0], rtol=2e-6
        )


@pytest.mark.parametrize("uniform", [True, False])
def test_clips_each_layer_as_in_optax_and_within_the_bound(uniform: bool) -> None:
    g = grads()
    made, counts = gradx.per_example_layer_norm_clip(g, 1.5, uniform)
    theirs, their_counts = optax.per_example_layer_norm_clip(g, 1.5, uniform)
    assert_close(made, theirs, rtol=2e-6)
    assert jax.tree.map(int, counts) == jax.tree.map(int, their_counts)
    one = jax.tree.map(lambda x: x[5:], g)  # the largest
    assert gradx.global_norm(gradx.per_example_layer_norm_clip(one, 1.5, uniform)[0]) <= 1.500001


def test_examples_out_of_and_within_bounds_of_zero() -> None:
    g = [jnp.array([[0, 0, 0], [0, 3, 4], [4, 0, 3], [3, 4, 0]])]  # whole numbers, too
    assert_same(gradx.per_example_global_norm_clip(g, 0.0)[0], [jnp.zeros(3)])
    assert int(gradx.per_example_global_norm_clip(g, 0.0)[1]) == 3
    assert_close(gradx.per_example_global_norm_clip(g, 1.25)[0], [jnp.full(3, 1.75)], rtol=1e-6)
    assert gradx.per_example_global_norm_clip({"a": None}, 1.0)[0] == {"a": None}
    assert gradx.per_example_layer_norm_clip({"a": None, "b": g[0]}, 1.25)[1]["a"] is None


def test_a_nan_is_not_hidden() -> None:
    made, _ = gradx.per_example_global_norm_clip({"a": jnp.array([[1.0], [jnp.nan]])}, 1.0)
    assert jnp.isnan(made["a"]).all()


@pytest.mark.full
def test_half_precision_is_summed_in_float32() -> None:
    g = jnp.full((4096, 2), 1.0, jnp.bfloat16)
    made, _ = gradx.per_example_global_norm_clip({"a": g}, 10.0)
    assert made["a"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(made["a"].astype(jnp.float32), [4096.0, 4096.0])
    tx = gradx.differentially_private_aggregate(float("inf"), 0.0, key=0)
    large = jnp.full((8, 2), 60000.0, jnp.float16)
    assert_same(tx.update({"a": large}, tx.init({}))[0], {"a": large[0]})


@counts_buffers
def test_half_precision_is_not_widened_as_a_whole() -> None:
    g = jax.ShapeDtypeStruct((64, 128, 32), jnp.bfloat16)
    clip = jax.jit(lambda g: gradx.per_example_global_norm_clip(g, 1.0))
    used = clip.lower(g).compile().memory_analysis().temp_size_in_bytes
    assert used < 4 * 128 * 32 * 4  # a few like the parameters; widened it would be 64 of these


# ---------------------------------------------------------------- the transformation


@pytest.mark.parametrize("dtype", [np.float32, np.complex64])
def test_without_noise_it_is_the_mean_of_the_clipped_gradients(dtype: Any) -> None:
    tx = gradx.differentially_private_aggregate(1.5, 0.0, key=0)
    state = tx.init(PARAMS)
    for seed in range(2):
        g = grads(dtype, seed)
        made, state = jax.jit(tx.update)(g, state, PARAMS)
        assert_close(made, mean_of(g, 1.5), rtol=1e-6)


@pytest.mark.parametrize("key", [3, jax.random.PRNGKey(3), jax.random.key(3)], ids=str)
def test_the_same_key_gives_the_noise_of_optax(key: Any) -> None:
    """In the kind of key that was given; of a seed it is the raw one, which anything can save."""
    ours = gradx.differentially_private_aggregate(1.5, 0.7, key)
    typed = jax.random.wrap_key_data(key) if getattr(key, "dtype", None) == jnp.uint32 else key
    theirs = optax.contrib.differentially_private_aggregate(1.5, 0.7, typed)
    state, their_state = ours.init(PARAMS), theirs.init(PARAMS)
    for seed in range(3):
        made, state = ours.update(grads(seed=seed), state, PARAMS)
        expected, their_state = theirs.update(grads(seed=seed), their_state, PARAMS)
        assert_close(made, expected, rtol=2e-6)
        assert jax.tree.leaves(state)[0].dtype == getattr(key, "dtype", jnp.uint32)


@pytest.mark.full
def test_the_noise_has_the_deviation_that_privacy_needs() -> None:
    """Independent of each other: the elements, the leaves, the steps; in both parts, if complex."""
    tx = gradx.differentially_private_aggregate(2.0, 1.5, key=0)
    zero = {"a": jnp.zeros((4, 100, 100)), "b": jnp.zeros((4, 100, 100))}
    state, drawn = tx.init({}), []
    for _ in range(2):
        made, state = tx.update(zero, state)
        drawn += [made["a"].ravel(), made["b"].ravel()]
    complex_zero = jnp.zeros((4, 100, 100), jnp.complex64)
    made, _ = tx.update(complex_zero, tx.init({}))
    drawn += [made.real.ravel(), made.imag.ravel()]
    expected = 2.0 * 1.5 / 4
    np.testing.assert_allclose(np.std(drawn, axis=1), expected, rtol=0.03)
    np.testing.assert_allclose(np.mean(drawn, axis=1), 0.0, atol=4 * expected / 100)
    correlations = np.corrcoef(np.array(drawn)) - np.eye(len(drawn))
    assert np.abs(correlations).max() < 0.05


@pytest.mark.full
def test_examples_may_be_shared_by_devices() -> None:
    g = grads()
    whole = gradx.differentially_private_aggregate(1.5, 0.7, key=0)
    expected, state = whole.update(g, whole.init(PARAMS))
    shared = gradx.differentially_private_aggregate(1.5, 0.7, key=0, axis_name="d")
    shares = jax.tree.map(lambda x: x.reshape(3, 2, *x.shape[1:]), g)
    update = lambda g: shared.update(g, shared.init(PARAMS))
    made, states = jax.pmap(update, axis_name="d")(shares)
    for i in range(3):
        assert_close(jax.tree.map(lambda x, i=i: x[i], made), expected, rtol=1e-6)
    assert_same(states.rng_key[0], state.rng_key)
    with pytest.raises(ValueError, match="no mapped axis 'd'"):
        update(g)


@pytest.mark.full
@pytest.mark.filterwarnings('ignore:"seed" is deprecated:DeprecationWarning')
def test_dpsgd_trains_as_in_optax() -> None:
    for momentum in ({}, {"momentum": 0.9}, {"momentum": 0.9, "nesterov": True}):
        ours = gradx.dpsgd(0.1, 1.5, 0.7, jax.random.key(3), **momentum)
        theirs = optax.contrib.dpsgd(0.1, 1.5, 0.7, 3, **momentum)
        state, their_state = ours.init(PARAMS), theirs.init(PARAMS)
        for seed in range(3):
            made, state = jax.jit(ours.update)(grads(seed=seed), state, PARAMS)
            expected, their_state = theirs.update(grads(seed=seed), their_state, PARAMS)
            assert_close(made, expected, rtol=2e-6)
    assert [x.shape for x in jax.tree.leaves(state)] == [
        x.shape for x in jax.tree.leaves(their_state)
    ]


@pytest.mark.full
def test_a_donated_state_frees_no_key() -> None:
    for key in (jax.random.key(0), jax.random.PRNGKey(0)):
        tx = gradx.dpsgd(0.1, 1.0, 1.0, key)
        step = jax.jit(tx.update, donate_argnums=1)
        _, state = step(grads(), tx.init(PARAMS), PARAMS)
        step(grads(), state, PARAMS)
        tx.init(PARAMS)


def test_missing_gradients_and_empty_trees() -> None:
    tx = gradx.differentially_private_aggregate(1.0, 1.0, key=0)
    made, _ = tx.update({"a": None, "b": jnp.zeros((2, 3))}, tx.init({}))
    assert made["a"] is None
    assert made["b"].shape == (3,)
    assert tx.update({}, tx.init({}))[0] == {}


def test_it_is_described_by_its_arguments() -> None:
    tx = gradx.dpsgd(0.1, 1.0, 0.5, 3, momentum=0.9)
    assert gradx.from_config(json.loads(json.dumps(gradx.to_config(tx)))) == tx
    assert eval(repr(tx), vars(gradx)) == tx
    assert gradx.hyperparams(gradx.tunable(tx).init(PARAMS)).keys() == {"decay", "learning_rate"}


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"key": 1.5}, "key must be a random key"),
        ({"key": True}, "key must be a random key"),
        ({"key": jnp.ones(2)}, "key must be a random key"),
        ({"key": jax.random.split(jax.random.key(0))}, "key must be a random key"),
        ({"key": 0, "l2_norm_clip": 0.0}, r"l2_norm_clip must be in \(0, inf\]"),
        ({"key": 0, "noise_multiplier": -1.0}, r"noise_multiplier must be in \[0, inf\)"),
        ({"key": 0, "l2_norm_clip": float("inf")}, "l2_norm_clip must be finite"),
    ],
)
def test_bad_arguments_are_refused(arguments: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as raised:
        gradx.differentially_private_aggregate(
            **{"l2_norm_clip": 1.0, "noise_multiplier": 1.0, **arguments}
        )
    assert str(raised.value).startswith("differentially_private_aggregate: ")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (jnp.ones(()), "at 'dense/kernel' is a single number"),
        (jnp.ones((5, 4, 3)), "there are 6, and 5 at 'dense/kernel'"),
        (
            jnp.ones((6, 3, 4)),
            r"at 'dense/kernel' the gradient has shape \(6, 3, 4\) and the param",
        ),
        (jnp.ones((6, 4, 3), jnp.int32), "the gradient at 'dense/kernel' is of type int32"),
        ("text", "the gradient at 'dense/kernel' must be a numeric array"),
    ],
)
def test_gradients_that_are_not_of_single_examples_are_refused(changed: Any, message: str) -> None:
    tx = gradx.dpsgd(0.1, 1.0, 1.0, 0)
    g = {**grads(), "dense": {**grads()["dense"], "kernel": changed}}
    with pytest.raises(ValueError, match=message):
        tx.update(g, tx.init(PARAMS), PARAMS)


def test_averaged_and_missing_examples_are_refused() -> None:
    tx = gradx.dpsgd(0.1, 1.0, 1.0, 0)
    with pytest.raises(ValueError, match=r"it must be .*'examples', 4"):
        tx.update({"w": jnp.ones((4, 3))}, tx.init({}), {"w": jnp.ones((4, 3))})
    with pytest.raises(ValueError, match="there are no examples"):
        tx.update({"w": jnp.ones((0, 3))}, tx.init({}))
    with pytest.raises(ValueError, match="per_example_global_norm_clip: l2_norm_clip must be in"):
        gradx.per_example_global_norm_clip(grads(), -1.0)
    with pytest.raises(ValueError, match="nesterov needs a momentum"):
        gradx.dpsgd(0.1, 1.0, 1.0, 0, nesterov=True)


# ---------------------------------------------------------------- units of one array


@pytest.mark.parametrize("shape", [(5,), (4, 3), (1, 5), (2, 4, 3), (2, 3, 4, 5), (2, 1, 3, 4, 2)])
def test_units_are_those_of_optax(shape: Any) -> None:
    rng = np.random.default_rng(0)
    g = jnp.asarray(rng.normal(size=shape), jnp.float32)
    norm = gradx.unitwise_norm(g)
    assert_close(norm, optax.transforms.unitwise_norm(g), rtol=1e-6)
    assert_close(gradx.unitwise_norm(g, 0), optax.transforms.unitwise_norm(g, 0), rtol=1e-6)
    bound = jnp.asarray(np.broadcast_to(1.5, shape), jnp.float32)
    made = gradx.unitwise_clip(norm, bound, g)
    assert_close(made, optax.transforms.unitwise_clip(norm, bound, g), rtol=1e-6)


def test_units_of_half_precision_and_of_other_shapes() -> None:
    large = jnp.full(4, 1000.0, jnp.float16)
    assert_same(gradx.unitwise_norm(large), jnp.full(4, 2000.0))
    assert gradx.unitwise_clip(jnp.full(4, 2000.0), jnp.ones(4), large).dtype == jnp.float16
    with pytest.raises(ValueError, match="unitwise_norm: which axes"):
        gradx.unitwise_norm(jnp.ones((2,) * 6))
    with pytest.raises(ValueError, match=r"unitwise_clip: the norms have shape \(3,\)"):
        gradx.unitwise_clip(jnp.ones(3), jnp.ones(3), jnp.ones(4))
