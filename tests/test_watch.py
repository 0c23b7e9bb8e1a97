"""`watch` measures what happens and changes nothing; `metrics` finds what states tell."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P
from problems import assert_same

import gradx
from gradx.running.measures import sums_of_leaf

RNG = np.random.default_rng(0)
PARAMS = {
    "a": {"w": RNG.normal(size=(3, 4)), "n": None},
    "b": RNG.normal(size=5),
}
PARAMS = jax.tree.map(jnp.float32, PARAMS)
RATE = gradx.linear_schedule(1e-2, 0.0, 10)
CLIPPED = gradx.chain(gradx.clip_by_global_norm(2.0), gradx.adamw(RATE))


def gradients(steps: int, like: Any = PARAMS, scale: float = 1.0) -> Any:
    """The gradients of several steps, stacked."""
    rng = np.random.default_rng(1)
    draw = lambda x: jnp.asarray(scale * rng.normal(size=(steps, *x.shape)), x.dtype)
    return jax.tree.map(draw, like)


def at(stacked: Any, t: int) -> Any:
    return jax.tree.map(lambda x: x[t], stacked)


def run(tx: Any, grads: Any, params: Any = PARAMS) -> tuple[Any, Any, Any]:
    """The updates, the states and the parameters of each step, stacked."""

    def body(carry: Any, g: Any) -> Any:
        p, state = carry
        updates, state = tx.update(g, state, p)
        new = gradx.apply_updates(p, updates)
        return (new, state), (updates, state, p)

    return jax.jit(lambda p, g: jax.lax.scan(body, (p, tx.init(p)), g)[1])(params, grads)


def norm(tree: Any) -> float:
    return float(np.sqrt(sum(np.sum(np.abs(np.float64(x)) ** 2) for x in jax.tree.leaves(tree))))


# ---------------------------------------------------------------- what it measures


STEPS = gradients(5)


@functools.cache
def watched() -> tuple[Any, Any, Any]:
    """Five steps, of which the first and the fourth are watched."""
    labels = gradx.by_path({"^a": "first"}, default=None)
    return run(gradx.watch(CLIPPED, every=3, groups=labels), STEPS)


@pytest.mark.parametrize("t", range(5))
def test_it_measures_every_third_step(t: int) -> None:
    updates, states, params = watched()
    found = {name: float(x[t]) for name, x in states.measurements.items()}
    t = 3 * (t // 3)  # the last watched step
    g, u, p = (at(x, t) for x in (STEPS, updates, params))
    expected = {
        "gradient_norm": norm(g),
        "clipped_norm": min(norm(g), 2.0),
        "clip_rate": np.mean([norm(at(STEPS, i)) > 2.0 for i in range(0, t + 1, 3)]),
        "update_norm": norm(u),
        "param_norm": norm(p),
        "update_ratio": norm(u) / norm(p),
        "unmoved": 0.0,
        "gradient_norm/first": norm(g["a"]),
        "update_norm/first": norm(u["a"]),
        "param_norm/first": norm(p["a"]),
        "update_ratio/first": norm(u["a"]) / norm(p["a"]),
        "unmoved/first": 0.0,
        "learning_rate": 1e-2 - 1e-3 * t,
        "max_norm": 2.0,
        "b1": 0.9,
        "b2": 0.999,
        "eps": 1e-8,
        "eps_root": 0.0,
        "weight_decay": 1e-4,
    }
    assert found.keys() == expected.keys()
    for name, x in expected.items():
        np.testing.assert_allclose(found[name], x, rtol=1e-5, atol=1e-9, err_msg=name)


def test_updates_and_inner_state_are_those_without_it() -> None:
    updates, states, params = watched()
    assert_same((updates, states.inner_state, params), run(CLIPPED, STEPS))


def test_the_state_keeps_its_types() -> None:
    for tx in (gradx.watch(CLIPPED), gradx.watch(gradx.MultiSteps(CLIPPED, 2), noise_scale=True)):
        state = jax.eval_shape(tx.init, PARAMS)
        new = jax.eval_shape(lambda s, tx=tx: tx.update(PARAMS, s, PARAMS)[1], state)
        assert jax.tree.map(type_of, new) == jax.tree.map(type_of, state)


def type_of(x: Any) -> Any:
    return x.shape, x.dtype, x.weak_type


def test_a_rate_counts_only_what_is_clipped() -> None:
    tx = gradx.watch(gradx.chain(gradx.clip_by_global_norm(1.0), gradx.sgd(0.1)), every=1)
    grads = jnp.array([[0.5], [3.0], [1.0], [2.0]])
    _, states, _ = run(tx, grads, jnp.ones(1))
    np.testing.assert_allclose(states.measurements["clip_rate"], [0, 1 / 2, 1 / 3, 1 / 2])
    np.testing.assert_allclose(states.measurements["clipped_norm"], [0.5, 1, 1, 1])


CLIP, SGD = gradx.clip_by_global_norm(1.0), gradx.sgd(0.1)
WITH_CLIP = {
    "first": gradx.chain(CLIP, gradx.trace(0.9), gradx.scale(-0.1)),
    "by name": gradx.named_chain(("clip", CLIP), ("sgd", SGD)),
    "Optax": gradx.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.1)),
    "tunable": gradx.tunable(gradx.chain(CLIP, SGD)),
    "under a mask": gradx.chain(gradx.masked(CLIP, True), SGD),
    "in a guard": gradx.skip_nonfinite(gradx.chain(CLIP, SGD)),
    "in a chain": gradx.chain(gradx.chain(CLIP, SGD), gradx.ema_params(0.9)),
    "behind another part": gradx.chain(gradx.scale(2.0), CLIP, SGD),
    "behind momentum": gradx.chain(gradx.grokfast(), CLIP, SGD),
    "accumulating": gradx.MultiSteps(gradx.skip_nonfinite(gradx.chain(CLIP, SGD)), 1),
    "accumulating more": gradx.MultiSteps(gradx.skip_nonfinite(gradx.chain(CLIP, SGD)), 2),
    "accumulating in a guard": gradx.skip_nonfinite(gradx.MultiSteps(gradx.chain(CLIP, SGD), 2)),
}
WITHOUT_CLIP = {
    "one": SGD,
    "small steps": gradx.chain(gradx.scale(0.01), SGD),
    "a part behind": gradx.chain(SGD, gradx.early_stopping(2)),
    "an average behind": gradx.chain(SGD, gradx.ema_params(0.9)),
    "Optax": optax.chain(optax.clip(1.0), optax.sgd(0.1)),
}


@pytest.mark.parametrize("kind", WITH_CLIP)
def test_it_finds_the_clip(kind: str) -> None:
    tx, p = gradx.watch(WITH_CLIP[kind], every=1), jnp.array([3.0, 4.0])
    with jax.disable_jit():
        state = tx.init(p)
        for _ in range(1 + kind.startswith("accumulating ")):
            _, state = tx.update(p, state, p, value=1.0)
    found = state.measurements
    expected = [5.0, 1.0, 1.0]
    names = ("gradient_norm", "clipped_norm", "clip_rate")
    np.testing.assert_allclose([found[name] for name in names], expected, rtol=1e-6)


@pytest.mark.parametrize("kind", WITHOUT_CLIP)
def test_what_does_not_clip_is_no_clip(kind: str) -> None:
    assert "clip_rate" not in jax.eval_shape(gradx.watch(WITHOUT_CLIP[kind]).init, PARAMS)[1]


def test_the_rate_compares_around_the_clip() -> None:
    """What makes updates smaller or larger before it does not count."""
    tx = gradx.watch(gradx.chain(gradx.scale(0.1), CLIP, SGD), every=1)
    p = jnp.array([3.0, 4.0])
    _, state = tx.update(p, tx.init(p), p)
    assert state.measurements["clip_rate"] == 0.0
    np.testing.assert_allclose(state.measurements["clipped_norm"], 0.5)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32, jnp.complex64])
def test_unmoved_are_the_parameters_that_stay_as_they_are(dtype: Any) -> None:
    p = jnp.asarray([1.0, 1.0, 1e-3, 0.0, 3.0], dtype)
    u = jnp.asarray([1e-9, 0.1, 1e-3, 0.0, 1e-3], dtype)
    tx = gradx.watch(gradx.identity())
    _, state = jax.jit(tx.update)(u, tx.init(p), p)
    expected = np.mean(np.asarray(gradx.apply_updates(p, u) == p))
    assert float(state.measurements["unmoved"]) == np.float32(expected)
    assert np.isclose(expected, 0.6 if dtype == jnp.bfloat16 else 0.4)


def test_each_weight_counts_also_beyond_what_float32_can_count() -> None:
    ones = jax.ShapeDtypeStruct((2**25 + 3,), jnp.float16)
    arrays = {"params": ones, "update": ones}
    text = jax.jit(sums_of_leaf).lower(arrays).as_text()
    assert "stablehlo.constant dense<33554435> : tensor<i32>" in text  # the size, as an integer


@pytest.mark.full
def test_each_of_many_weights_counts() -> None:
    p = jnp.ones((2**24 + 3,), jnp.float16)
    sums = sums_of_leaf({"params": p, "update": p.at[0].set(0.0)})
    assert (float(sums["still"]), float(sums["moved"])) == (1.0, 2.0**24 + 2)


def test_extremes() -> None:
    """A parameter of zeros, a gradient that is no number, a tree without arrays."""
    tx = gradx.watch(gradx.sgd(0.1))
    nothing = jnp.zeros(3)
    _, state = tx.update(nothing, tx.init(nothing), nothing)
    assert float(state.measurements["update_ratio"]) == 0.0
    assert float(state.measurements["unmoved"]) == 1.0
    _, state = tx.update(jnp.full(3, jnp.nan), tx.init(nothing), nothing)
    assert np.isnan(state.measurements["gradient_norm"])
    _, state = tx.update(3.0, tx.init(4.0), 4.0)
    assert float(state.measurements["param_norm"]) == 4.0
    _, state = tx.update({"a": None}, tx.init({"a": None}), {"a": None})
    assert float(state.measurements["gradient_norm"]) == 0.0


# ---------------------------------------------------------------- around others, and mapped


def test_around_optax() -> None:
    inner = optax.inject_hyperparams(optax.sgd)(optax.linear_schedule(0.4, 0.0, 4), 0.5)
    tx = gradx.watch(inner, every=2)
    updates, states, _ = run(tx, STEPS)
    assert_same(updates, run(inner, STEPS)[0])
    assert float(states.measurements["learning_rate"][2]) == np.float32(0.2)
    np.testing.assert_allclose(
        states.measurements["update_norm"][3], norm(at(updates, 2)), rtol=1e-6
    )


@pytest.mark.full  # a line search compiles for two seconds
def test_around_a_line_search() -> None:
    """Extra arguments may be functions."""
    tx, loss = gradx.watch(gradx.lbfgs()), lambda p: jnp.sum(p**2)
    p = jnp.array([3.0, 4.0])
    given = {"value": loss(p), "grad": 2 * p, "value_fn": loss}
    updates, state = jax.jit(lambda s: tx.update(2 * p, s, p, **given))(tx.init(p))
    np.testing.assert_allclose(state.measurements["update_norm"], norm(updates), rtol=1e-6)


def test_in_optax_chain_and_around_each_other() -> None:
    twice = gradx.watch(gradx.watch(gradx.adam(0.1), every=1), every=2)
    tx = optax.chain(optax.clip(1.0), twice)
    _, state = jax.jit(tx.update)(PARAMS, tx.init(PARAMS), PARAMS)
    found = gradx.metrics(state)
    assert found["gradient_norm"] == found["inner_state/gradient_norm"] > 0


def test_of_many_runs_each_is_watched_in_its_own_steps() -> None:
    """And it stays a conditional under `vmap`."""
    tx = gradx.watch(gradx.sgd(gradx.tunable(0.1)), every=3)
    counts = jnp.array([0, 1])
    states = jax.vmap(lambda c: tx.init(PARAMS)._replace(count=c))(counts)
    update = jax.vmap(lambda g, s: tx.update(g, s, PARAMS), (0, 0))
    _, new = jax.jit(update)(gradients(2), states)
    expected = [norm(at(gradients(2), 0)), np.nan]
    np.testing.assert_allclose(new.measurements["gradient_norm"], expected, rtol=1e-6)
    assert " cond[" in str(jax.make_jaxpr(update)(gradients(2), states))


def mesh() -> Any:
    return jax.make_mesh((2,), ("d",), axis_types=(AxisType.Auto,))


@pytest.mark.parametrize("types", [True, False])
def test_over_sharded_leaves(types: bool) -> None:
    axis = "d" if types else gradx.sharded("d", {"cut": True, "alike": False})
    labels = {"cut": "cut", "alike": None}
    tx = gradx.watch(gradx.sgd(0.1), groups=labels, axis_name=axis)
    p = {"cut": jnp.arange(1.0, 9.0), "alike": jnp.array([3.0])}
    specs = {"cut": P("d"), "alike": P()}
    g = jax.tree.map(lambda x: jnp.where(x > 4, x, 0.0), p)

    def measured(g: Any, p: Any) -> Any:
        return tx.update(g, tx.init(p), p)[1].measurements

    mapped = jax.shard_map(
        measured, mesh=mesh(), in_specs=(specs, specs), out_specs=P(), check_vma=types
    )
    found, alone = jax.jit(mapped)(g, p), gradx.watch(gradx.sgd(0.1), groups=labels)
    _, expected = alone.update(g, alone.init(p), p)
    assert found.keys() == expected.measurements.keys()
    for name, x in expected.measurements.items():
        np.testing.assert_allclose(found[name], x, rtol=1e-6, err_msg=name)


# ---------------------------------------------------------------- accumulation and noise


@pytest.mark.parametrize("k", [None, 3])
def test_an_update_that_the_call_asks_for_is_watched(k: int | None) -> None:
    steps = gradx.MultiSteps(gradx.sgd(0.5), k, emit=gradx.from_call("last"))
    tx, p = gradx.watch(steps, every=1), jnp.ones(1)
    state = tx.init(p)
    for g, last in ((1.0, False), (3.0, True)):
        _, state = tx.update(jnp.array([g]), state, p, last=jnp.array(last))
        assert jnp.array_equal(
            gradx.metrics(state)["update_norm"], 1.0 if last else jnp.nan, equal_nan=True
        )


def test_around_accumulation_it_counts_updates() -> None:
    tx = gradx.watch(gradx.MultiSteps(CLIPPED, 2), every=2)
    grads = gradients(8)
    updates, states, _ = run(tx, grads)
    assert_same(updates, run(gradx.MultiSteps(CLIPPED, 2), grads)[0])
    np.testing.assert_array_equal(states.count, [0, 1, 1, 2, 2, 3, 3, 4])
    pairs = jax.tree.map(lambda x: x.reshape(4, 2, *x.shape[1:]).mean(1), grads)
    first, second = norm(at(pairs, 0)), norm(at(pairs, 2))
    expected = [np.nan, *[first] * 4, *[second] * 3]
    np.testing.assert_allclose(states.measurements["gradient_norm"], expected, rtol=1e-6)
    clipped = [np.nan, *[min(first, 2.0)] * 4, *[min(second, 2.0)] * 3]
    np.testing.assert_allclose(states.measurements["clipped_norm"], clipped, rtol=1e-6)
    np.testing.assert_allclose(states.measurements["update_norm"][1], norm(at(updates, 1)))


def test_gradients_that_are_left_out_are_not_measured() -> None:
    k, skip = 2, gradx.skip_not_finite
    tx = gradx.watch(
        gradx.MultiSteps(gradx.sgd(1.0), k, should_skip_update_fn=skip), every=1, noise_scale=True
    )
    grads = jnp.array([1.0, jnp.nan, jnp.inf, 3.0, 2.0, jnp.nan])[:, None]
    _, states, _ = run(tx, grads, jnp.ones(1))
    np.testing.assert_array_equal(states.count, [0, 0, 0, 1, 1, 1])
    np.testing.assert_allclose(states.measurements["gradient_norm"], [*[np.nan] * 3, 2, 2, 2])
    np.testing.assert_allclose(states.squares, [1, 1, 1, 10, 4, 4])
    np.testing.assert_allclose(states.measurements["noise_variance"][3:], [2, 2, 2])


def test_the_noise_forgets_a_gradient_that_is_no_number() -> None:
    tx = gradx.watch(gradx.MultiSteps(gradx.sgd(1.0), 2), every=1, noise_scale=True)
    grads = jnp.array([1.0, 3.0, 1.0, jnp.nan, 2.0, 4.0])[:, None]
    _, states, _ = run(tx, grads, jnp.ones(1))
    np.testing.assert_allclose(states.measurements["noise_variance"], [np.nan, 2, 2, 2, 2, 2])
    # 3 in the first update and 8 in the third, which has the weight of a third one.
    signal = [np.nan, 3, 3, 3, 3, 3 + 5 / 3]
    np.testing.assert_allclose(states.measurements["noise_signal"], signal, rtol=1e-6)


SIGNAL, SPREAD, SIZE = 0.5, 2.0, 4000
NOISY = SIGNAL + SPREAD * RNG.normal(size=(32, SIZE))  # 4 updates from 8 gradients each


def noise_of(grads: Any) -> tuple[float, float]:
    """tr Σ and |G|², estimated without bias from the 8 gradients of each update."""
    groups = np.reshape(grads, (-1, 8, SIZE))
    variance = groups.var(axis=1, ddof=1).sum(-1)
    signal = (groups.mean(1) ** 2).sum(-1) - variance / 8
    return variance.mean(), signal.mean()


@pytest.mark.parametrize("mean", [True, False])
def test_the_noise_of_accumulated_gradients(mean: bool) -> None:
    accumulation = gradx.MultiSteps(gradx.identity(), 8, use_grad_mean=mean)
    tx = gradx.watch(accumulation, every=1, noise_scale=True)
    _, states, _ = run(tx, jnp.float32(NOISY), jnp.zeros(SIZE))
    check_noise(at(states.measurements, -1))


def test_the_noise_between_devices() -> None:
    tx = gradx.watch(gradx.chain(gradx.pmean("d"), gradx.sgd(0.1)), every=1, noise_scale=True)

    def last(grads: Any) -> Any:
        return at(run(tx, grads, jnp.zeros(SIZE))[1].measurements, -1)

    by_device = jnp.float32(NOISY).reshape(4, 8, SIZE).swapaxes(0, 1)
    found = jax.vmap(last, axis_name="d")(by_device)
    check_noise(at(found, 0))
    assert_same(at(found, 0), at(found, 7))
    size, mean = found["gradient_norm"][0], np.mean(NOISY[-8:], 0)
    np.testing.assert_allclose(size, norm(mean), rtol=1e-5)


def test_the_noise_between_devices_with_types() -> None:
    tx = gradx.watch(gradx.chain(gradx.pmean("d"), gradx.sgd(0.1)), noise_scale=True)
    p, grads = jnp.ones(3), jnp.array([[1.0, 2.0, 3.0], [3.0, 2.0, 4.0]])

    def measured(g: Any, p: Any) -> Any:
        return tx.update(g[0], tx.init(p), p)[1].measurements

    over = {"mesh": mesh(), "in_specs": (P("d"), P()), "out_specs": P()}
    found = jax.jit(jax.shard_map(measured, **over))(grads, p)
    np.testing.assert_allclose(found["noise_variance"], np.var(grads, axis=0, ddof=1).sum())


def check_noise(found: Any) -> None:
    variance, signal = noise_of(NOISY)
    np.testing.assert_allclose(found["noise_variance"], variance, rtol=1e-4)
    np.testing.assert_allclose(found["noise_signal"], signal, rtol=1e-3)
    np.testing.assert_allclose(found["noise_scale"], variance / signal, rtol=1e-3)
    # The closed form, which four updates come near to.
    np.testing.assert_allclose(found["noise_scale"], (SPREAD / SIGNAL) ** 2, rtol=0.1)


def test_inside_a_guard_it_counts_updates() -> None:
    """Calls that accumulate or are skipped are no steps."""
    steps = gradx.MultiSteps(gradx.sgd(1.0), 2)
    inner = gradx.skip_nonfinite(gradx.chain(steps, gradx.identity()), restore_after=2)
    tx = gradx.watch(inner, every=1, noise_scale=True)
    grads = jnp.array([1.0, jnp.nan, 3.0, 2.0, jnp.inf, 4.0])[:, None]
    _, states, _ = run(tx, grads, jnp.ones(1))
    np.testing.assert_array_equal(states.count, [0, 0, 1, 1, 1, 2])
    np.testing.assert_allclose(states.measurements["update_norm"][2:], [2, 2, 2, 3])
    np.testing.assert_allclose(states.measurements["noise_variance"][2:], 2)


def test_a_guard_that_goes_back_makes_no_update() -> None:
    steps = gradx.MultiSteps(gradx.sgd(1.0), 2)
    tx = gradx.watch(gradx.skip_nonfinite(steps, restore_after=1), every=1)
    _, states, _ = run(tx, jnp.array([1.0, 3.0, jnp.nan, 2.0])[:, None], jnp.ones(1))
    np.testing.assert_array_equal(states.count, [0, 1, 1, 1])
    np.testing.assert_array_equal(states.measurements["update_norm"], [np.nan, 2, 2, 2])


# ---------------------------------------------------------------- what it refuses


def test_it_needs_the_parameters() -> None:
    tx = gradx.watch(gradx.sgd(0.1))
    with pytest.raises(
        ValueError, match=r"^watch: needs the parameters.*update\(updates, state, p"
    ):
        tx.update(PARAMS, tx.init(PARAMS))


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: gradx.watch("adam"), "inner must be a transformation"),
        (lambda: gradx.watch(CLIPPED, every=0), r"every must be in \[1, inf\)"),
        (lambda: gradx.watch(CLIPPED, noise_scale=True), "several gradients.*Watch MultiSteps"),
        (lambda: gradx.watch(optax.adam(0.1), noise_scale=True), "several gradients"),
        (
            lambda: gradx.watch(gradx.MultiSteps(CLIPPED, 1), noise_scale=True),
            "more than one gradient",
        ),
        (
            lambda: gradx.watch(
                gradx.MultiSteps(CLIPPED, 2, weight=gradx.from_call("n")), noise_scale=True
            ),
            "without weights",
        ),
        (
            lambda: gradx.watch(gradx.chain(CLIP, gradx.MultiSteps(SGD, 2)), noise_scale=True),
            "nothing before it",
        ),
        (
            lambda: gradx.watch(
                gradx.chain(gradx.pmean("d", already_reduced=True), CLIPPED), noise_scale=True
            ),
            "leave out already_reduced",
        ),
    ],
)
def test_bad_calls_are_refused_by_name(call: Any, match: str) -> None:
    with pytest.raises(ValueError, match=rf"^watch: .*{match}"):
        call()


@pytest.mark.parametrize(
    ("groups", "match"),
    [
        ({"a": 1, "b": "1"}, "groups has two labels of the same name, 1 and '1'"),
        ({"a": "x"}, r"groups must be a tree .* Missing: 'b'\.$"),
        (
            {"a": {"w": "x", "m": "y"}, "b": "x"},
            r"groups must be .* prefix of it\. Missing: 'a/n'\. Unknown: 'a/m'\.$",
        ),
    ],
)
def test_groups_that_do_not_fit_are_refused(groups: Any, match: str) -> None:
    with pytest.raises(ValueError, match=rf"^watch: {match}"):
        gradx.watch(SGD, groups=groups).init(PARAMS)


def test_the_state_of_another_watch_is_refused() -> None:
    tx, other = gradx.watch(gradx.sgd(0.1)), gradx.watch(CLIPPED)
    state = tx.init(PARAMS)
    with pytest.raises(ValueError, match=r"^watch: got a state with keys .* by another chain"):
        other.update(PARAMS, state._replace(inner_state=CLIPPED.init(PARAMS)), PARAMS)


# ---------------------------------------------------------------- metrics


def test_metrics_of_all_states_that_tell() -> None:
    measures = {"norms": lambda u: {"w": jnp.sum(u), "by_row": u}, "size": gradx.global_norm}
    inner = gradx.apply_if_finite(gradx.adam(gradx.tunable(0.5)), 3)
    skip = gradx.skip_not_finite
    tx = gradx.chain(
        gradx.monitor(measures),
        gradx.snapshot("sum", jnp.sum),
        gradx.MultiSteps(inner, 2, should_skip_update_fn=skip),
        gradx.reduce_on_plateau(),
    )
    p = jnp.array([3.0, 4.0])
    _, state = jax.jit(tx.update)(p, tx.init(p), p, value=2.0)
    found = jax.jit(gradx.metrics)({"opt_state": state, "step": 7, "params": p})
    expected = {
        "norms/w": 7.0,
        "size": 5.0,
        "sum": 7.0,
        "mini_step": 1,
        "gradient_step": 0,
        "skip_state/should_skip": False,
        "skip_state/num_not_finite": 0,
        "notfinite_count": 0,
        "last_finite": True,
        "total_notfinite": 0,
        "plateau_scale": 1.0,
        "learning_rate": 0.5,
    }
    assert {name: x.item() for name, x in found.items()} == expected


def test_metrics_of_optax_and_of_nothing() -> None:
    tx = optax.apply_if_finite(optax.MultiSteps(optax.sgd(0.1), 2).gradient_transformation(), 3)
    assert set(gradx.metrics(tx.init(PARAMS))) == {
        *("notfinite_count", "last_finite", "total_notfinite"),
        *("mini_step", "gradient_step"),
    }
    assert gradx.metrics(gradx.adam(0.1).init(PARAMS)) == {}


def test_metrics_of_two_places_have_different_names() -> None:
    seen = gradx.snapshot("norm", gradx.global_norm)
    labels = gradx.by_path({"^a": "one"}, default="two")
    split = gradx.partition({"one": seen, "two": seen}, labels)
    assert set(gradx.metrics(split.init(PARAMS))) == {"one/norm", "two/norm"}
    assert set(gradx.metrics(gradx.chain(seen, seen).init(PARAMS))) == {"0/norm", "1/norm"}


def test_metrics_with_the_transformation_have_its_numbers_of_now() -> None:
    _, states, _ = watched()
    tx = gradx.watch(CLIPPED, every=3, groups=gradx.by_path({"^a": "first"}, default=None))
    state = at(states, 4)
    told, now = gradx.metrics(state), gradx.metrics(state, tx=tx)
    assert told.keys() == now.keys()
    np.testing.assert_allclose([told["learning_rate"], now["learning_rate"]], [7e-3, 6e-3])
    with pytest.raises(ValueError, match="the state is not one of"):
        gradx.metrics(state, tx=gradx.adam(0.1))


def test_metrics_with_the_transformation_keep_what_is_live_in_optax() -> None:
    inner = optax.inject_hyperparams(optax.sgd)(0.1)
    tx = gradx.chain(gradx.clip(1.0), inner)
    state = tx.init(PARAMS)
    assert set(gradx.metrics(state, tx=tx)) == {"max_delta", "learning_rate"}
    assert set(gradx.metrics(state)) == {"learning_rate"}
    tx = gradx.watch(tx)
    assert gradx.metrics(tx.init(PARAMS), tx=tx).keys() == tx.init(PARAMS).measurements.keys()


def test_metrics_do_not_lose_a_name() -> None:
    seen = gradx.snapshot("learning_rate", gradx.global_norm)
    tx = gradx.chain(seen, gradx.sgd(gradx.tunable(0.5)))
    state = tx.init(PARAMS)
    expected = {"0/learning_rate": norm(PARAMS), "1/1/learning_rate": 0.5}
    assert gradx.metrics(state) == pytest.approx(expected)
    assert gradx.metrics(state, tx=tx) == pytest.approx(expected)
    # Of two watched rates only the one that is live is told twice.
    labels = gradx.by_path({"^a": "one"}, default="two")
    rates = {"one": gradx.watch(SGD), "two": gradx.watch(gradx.sgd(gradx.tunable(0.5)))}
    found = gradx.metrics(gradx.partition(rates, labels).init(PARAMS))
    found = {name: x for name, x in found.items() if "learning_rate" in name}
    assert found == {"one/learning_rate": jnp.float32(0.1), "two/learning_rate": 0.5}


@pytest.mark.parametrize(
    "tx", [gradx.watch(SGD), gradx.apply_if_finite(SGD, 3), gradx.sgd(gradx.tunable(0.1))]
)
def test_metrics_of_many_runs_are_those_of_each(tx: Any) -> None:
    states = jax.tree.map(lambda x: jnp.broadcast_to(x, (2, *jnp.shape(x))), tx.init(jnp.ones(3)))
    with pytest.raises(ValueError, match=r"^metrics: .* has shape \(2,\).*jax.vmap\(metrics\)"):
        gradx.metrics(states)
    found = jax.vmap(gradx.metrics)(states)
    assert found
    assert all(x.shape == (2,) for x in found.values())
    assert gradx.metrics(at(states, 0)).keys() == found.keys()


def test_metrics_in_flax_nnx() -> None:
    from flax import nnx

    model = nnx.Linear(2, 2, rngs=nnx.Rngs(0))
    tx = gradx.watch(gradx.chain(gradx.clip_by_global_norm(1.0), gradx.adam(RATE)))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    params = nnx.state(model, nnx.Param)
    expected = norm(params)  # which the update changes in place
    optimizer.update(model, params)
    found = gradx.metrics(optimizer.opt_state)
    np.testing.assert_allclose(found["gradient_norm"], expected, rtol=1e-6)
    assert gradx.metrics(optimizer.opt_state, tx=tx).keys() == found.keys()
    assert all(isinstance(x, jax.Array) for x in found.values())


# ---------------------------------------------------------------- what it costs


def test_a_step_that_is_not_watched_moves_no_more() -> None:
    """And a watched one reads what the update is made of, once: 16 bytes a parameter."""
    from benchmarks.compiled import program

    def compiled(tx: Any) -> Any:
        def step(p: Any, state: Any, g: Any) -> Any:
            updates, state = tx.update(g, state, p)
            return gradx.apply_updates(p, updates), state

        p = jax.ShapeDtypeStruct((256, 256), jnp.float32)
        jitted = jax.jit(step, donate_argnums=(0, 1))
        return jitted.lower(p, jax.eval_shape(tx.init, p), p).compile()

    plain, watching = compiled(gradx.adamw(1e-3)), compiled(gradx.watch(gradx.adamw(1e-3)))
    handed, branch = program.conditionals(watching.as_text())
    moved = program.cost(watching.as_text()).moved - handed
    bytes_of = lambda x: x / 256**2
    assert bytes_of(moved) < bytes_of(program.cost(plain.as_text()).moved) + 0.1
    assert 15.9 < bytes_of(branch) < 16.5
    assert bytes_of(program.temporaries(watching)) < 0.2
