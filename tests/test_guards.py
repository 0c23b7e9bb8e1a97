"""Guards: a bad step changes nothing, is counted, and may lead back to a snapshot.

Also what makes spikes harmless without a skip: clips that know the last norms, and restarts.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases import first_of
from compilers import counts_buffers
from jax.sharding import PartitionSpec
from problems import assert_close, assert_same, step
from runs import types

import gradx
from gradx.core.known import METRICS

P = {"w": jnp.array([1.0, -2.0, 0.5]), "b": jnp.array(0.25)}
NAN, INF, HUGE = jnp.nan, jnp.inf, 1e30


def gradient(i: int, bad: float = 0.0) -> Any:
    """The gradient of step i, with one element that is bad."""
    rng = np.random.default_rng(i)
    return {"w": jnp.float32(rng.normal(size=3)).at[i % 3].add(bad), "b": jnp.float32(rng.normal())}


def stacked(gs: Any) -> Any:
    return jax.tree.map(lambda *xs: jnp.stack(xs), *gs)


def metrics(state: Any) -> dict[str, Any]:
    """What all known states in a larger one tell; a name that comes twice is an error."""
    told = [dict(found.known(found.state)) for found in METRICS.find(state)]
    names = [name for one in told for name in one]
    assert len(names) == len(set(names))
    return {name: np.asarray(x).item() for one in told for name, x in one.items()}


def after(tx: Any, gs: Any, p: Any = P, **extra: Any) -> Any:
    """Parameters and state after these gradients, step by step."""
    state = tx.init(p)
    with jax.disable_jit():
        for g in gs:
            p, state = step(tx, p, state, g, **extra)
    return p, state


# ---------------------------------------------------------------- as if the step had not been

GUARDS = {
    "skip_nonfinite": gradx.skip_nonfinite,
    "skip_spikes": lambda inner: gradx.skip_spikes(inner, window=3, sigmas=50.0),
    "restoring": lambda inner: gradx.skip_nonfinite(inner, restore_after=9, snapshot_every=1),
}
INNER = {
    "adamw": gradx.adamw(gradx.cosine_decay_schedule(0.1, 20)),
    "after a norm": gradx.chain(gradx.clip_by_global_norm(0.5), gradx.sgd(gradx.tunable(0.1), 0.9)),
    "of Optax": optax.adam(0.1),
    "accumulating": gradx.MultiSteps(gradx.adam(0.1), 2),
    "of named parts": gradx.named_chain(("z", gradx.trace(0.9)), ("a", gradx.scale(-0.1))),
    "noise": gradx.chain(gradx.add_noise(0.1, 0.5, jax.random.PRNGKey(0)), gradx.scale(-0.1)),
}
GOOD = [gradient(i) for i in range(4)]
BAD = [gradient(10, NAN), gradient(11, INF), gradient(12, HUGE), gradient(13, -INF)]
MIXED = [GOOD[0], BAD[0], GOOD[1], BAD[1], BAD[2], GOOD[2], GOOD[3], BAD[3]]


def test_a_run_with_bad_steps_is_bit_for_bit_one_without() -> None:
    """In one program with scan: the same steps with the bad ones among them, and behind them."""

    def run(gs: Any) -> Any:
        def trained(tx: Any) -> Any:
            def body(carry: Any, g: Any) -> Any:
                return step(tx, *carry, g), None

            return jax.lax.scan(body, (P, tx.init(P)), gs)[0]

        return {(g, i): trained(GUARDS[g](INNER[i])) for g, i in pairs}

    pairs = list(zip(GUARDS, ["of Optax", "after a norm", "of named parts"], strict=True))
    jitted = jax.jit(run)
    among, behind = jitted(stacked(MIXED)), jitted(stacked(GOOD + BAD))
    for name in pairs:
        (p, state), (same_p, same) = among[name], behind[name]
        assert_same((p, state.inner_state), (same_p, same.inner_state))
        assert int(state.skipped) == int(same.skipped) == 4
        assert np.isfinite(p["w"]).all()
        alone, inner = after(INNER[name[1]], GOOD)
        assert_close(p, alone, rtol=1e-6)
        assert jax.tree.structure(inner) == jax.tree.structure(state.inner_state)


@pytest.mark.full
@pytest.mark.parametrize("guard", GUARDS)
@pytest.mark.parametrize("inner", INNER)
def test_each_guard_around_each_inner_transformation(guard: str, inner: str) -> None:
    tx = GUARDS[guard](INNER[inner])
    (p, state), (same_p, same) = after(tx, MIXED), after(tx, GOOD)
    assert_same((p, state.inner_state), (same_p, same.inner_state))


def test_accumulation_around_a_guard_skips_the_whole_batch() -> None:
    tx = gradx.MultiSteps(gradx.skip_nonfinite(gradx.adam(0.1)), 2)
    p, state = after(tx, [*GOOD[:2], BAD[0], GOOD[0], *GOOD[2:]])
    same_p, same = after(tx, GOOD)
    guarded, alone = state.inner_opt_state, same.inner_opt_state
    assert_same((p, guarded.inner_state), (same_p, alone.inner_state))
    assert (int(guarded.skipped), int(alone.skipped)) == (1, 0)


def test_a_loss_that_is_not_finite_is_bad() -> None:
    tx = gradx.skip_nonfinite(gradx.sgd(1.0), loss=gradx.from_call("value"))
    state = tx.init(P)
    for value, bad in ((1.0, False), (INF, True), (jnp.bfloat16(NAN), True), (3, False)):
        updates, state = tx.update(GOOD[0], state, value=value)
        assert bool(state.last_skipped) == bad
        assert bool(jnp.any(updates["w"])) != bad
    with pytest.raises(ValueError, match="skip_nonfinite: needs the extra argument 'value'"):
        tx.update(GOOD[0], state)


def test_what_is_not_optimized_is_not_looked_at() -> None:
    p = {**P, "n": jnp.array([3]), "none": None, "key": jax.random.key(0)}
    g = {**GOOD[0], "n": np.zeros(1, jax.dtypes.float0), "none": None, "key": p["key"]}
    left = {name: name in P for name in p}
    for options in ({}, {"restore_after": 1}):
        tx = gradx.skip_nonfinite(gradx.masked(gradx.sgd(1.0), left), **options)
        with jax.disable_jit():
            updates, state = tx.update(g, tx.init(p), p)
            assert not state.last_skipped
            assert_same(updates["w"], -g["w"])
            bad = {**g, "w": g["w"] * NAN}
            updates, state = tx.update(bad, state, p)
        assert state.last_skipped
        assert_same(updates["w"], jnp.zeros(3))


def test_a_norm_is_summed_in_float32() -> None:
    """In float16 the square of 300 overflows."""
    g = {"w": jnp.full(3, 300, jnp.float16)}
    tx = gradx.skip_nonfinite(gradx.sgd(0.5))
    updates, _ = tx.update(g, tx.init(g))
    assert_same(updates, {"w": jnp.full(3, -150, jnp.float16)})


# ---------------------------------------------------------------- policies


def test_the_flag_is_raised_once_and_for_all() -> None:
    tx = gradx.skip_nonfinite(gradx.sgd(0.1), flag_after=2)
    state, seen = tx.init(P), []
    for g in (BAD[0], GOOD[0], BAD[0], BAD[1], GOOD[1]):
        with jax.disable_jit():
            _, state = tx.update(g, state)
        told = metrics(state)
        seen.append((told["skipped"], told["in_a_row"], told["flagged"]))
    expected = [(1, 1, False), (1, 0, False), (2, 1, False), (3, 2, True), (3, 0, True)]
    assert seen == expected
    assert not after(gradx.skip_nonfinite(gradx.sgd(0.1)), BAD)[1].flagged


def trail(tx: Any, gs: Any, p: Any = P) -> Any:
    """The parameters and states before each step, and after the last one."""
    state, seen = tx.init(p), []
    with jax.disable_jit():
        for g in gs:
            seen.append((p, state))
            updates, state = tx.update(g, state, p)
            p = gradx.apply_updates(p, updates)
    return [*seen, (p, state)]


def test_after_bad_steps_it_goes_back_to_the_last_snapshot() -> None:
    """Snapshots are of what good steps 0, 2, 4, … begin with; the one of `init` is the first."""
    tx = gradx.skip_nonfinite(gradx.adam(0.01), restore_after=2, snapshot_every=2)
    seen = trail(tx, [GOOD[0], GOOD[1], GOOD[2], GOOD[3], BAD[0], BAD[1], BAD[2], GOOD[0]])
    for at in (0, 1, 2):
        assert_same(seen[at][1].snapshot.params, P)
    for at in (3, 4, 5):  # taken in the step after two good ones
        assert_same(seen[at][1].snapshot.params, seen[2][0])
    assert_same(seen[5][0], seen[4][0])  # one bad step
    p, state = seen[6]  # two of them
    assert_close(p, seen[2][0], rtol=1e-7)
    assert_same(state.inner_state, seen[2][1].inner_state)
    assert (int(state.snapshot.age), metrics(state)["restores"]) == (0, 1)
    assert_same(seen[7][0], p)  # a third one: it is there already
    assert (int(seen[7][1].in_a_row), metrics(seen[7][1])["restores"]) == (3, 1)
    assert int(seen[8][1].snapshot.age) == 1
    assert int(seen[8][1].inner_state[0].count) == 3


@pytest.mark.parametrize(
    ("dtype", "apply"),
    [(jnp.bfloat16, gradx.apply_updates), (jnp.float16, optax.apply_updates)],
)
def test_half_precision_parameters_arrive_exactly(dtype: Any, apply: Any) -> None:
    rng = np.random.default_rng(0)
    size = 10.0 ** rng.integers(-3, 1, size=64)
    p = {"w": jnp.asarray(rng.normal(size=64) * size, dtype)}
    tx = gradx.skip_nonfinite(gradx.sgd(1.0), restore_after=1)
    now = {"w": jnp.asarray(rng.normal(size=64) * size[::-1], dtype)}  # far from the snapshot
    with jax.disable_jit():
        updates, _ = tx.update({"w": jnp.full(64, NAN, dtype)}, tx.init(p), now)
    assert updates["w"].dtype == jnp.float32
    assert_same(apply(now, updates), p)


def test_live_values_stay_as_they_are_now() -> None:
    """Counts go back; a rate that was lowered is not raised again, and is not found twice."""
    rate = gradx.tunable(0.1)
    tx = gradx.skip_nonfinite(gradx.chain(gradx.adam(rate), gradx.scale(0.5)), restore_after=1)
    _, state = after(tx, GOOD[:2])
    assert list(gradx.hyperparams(state)) == ["learning_rate"]
    state = gradx.set_hyperparams(state, learning_rate=0.01)
    with jax.disable_jit():
        _, state = tx.update(BAD[0], state, P)
    assert gradx.hyperparams(state)["learning_rate"] == jnp.float32(0.01)
    assert not any(
        x.any() for x in jax.tree.leaves(gradx.core.trees.map_numbers(jnp.asarray, mu(state)))
    )


def mu(state: Any) -> Any:
    return state.inner_state[0][0].mu


def test_a_snapshot_is_a_part_of_the_state_like_others() -> None:
    """It is described, sharded and named by what belongs to a parameter, and has own buffers."""
    tx = gradx.skip_nonfinite(gradx.adam(0.1), restore_after=1)
    state = tx.init(P)
    named = gradx.tree_map_params(tx, lambda x, name: name, state, {"w": "w", "b": "b"})
    assert named.snapshot.params == {"w": "w", "b": "b"}
    assert named.snapshot.inner[0][1:] == ({"w": "w", "b": "b"},) * 2
    assert "adam" in str(gradx.describe(tx, P))
    arrays = [x.unsafe_buffer_pointer() for x in jax.tree.leaves((P, state))]
    assert len(arrays) == len(set(arrays))
    with pytest.raises(ValueError, match="skip_nonfinite: needs the parameters"):
        tx.update(GOOD[0], state)


@pytest.mark.full
def test_each_of_many_runs_goes_back_by_itself() -> None:
    tx = gradx.skip_nonfinite(gradx.adam(0.1), restore_after=1)
    both = jax.tree.map(lambda *xs: jnp.stack(xs), GOOD[1], BAD[0])
    _, state = after(tx, GOOD[:1])
    updates, new = jax.vmap(tx.update, (0, None, None))(both, state, P)
    for i, g in enumerate((GOOD[1], BAD[0])):
        with jax.disable_jit():
            alone = tx.update(g, state, P)
        assert_close(jax.tree.map(lambda x, i=i: x[i], (updates, new)), alone, rtol=1e-6)


@pytest.mark.parametrize("g", [GOOD[1], BAD[2]], ids=["good", "bad"])
def test_a_step_that_may_go_back_has_derivatives_in_both_modes(g: Any) -> None:
    """Of the updates by the parameters: none in a good step, -1 in one that goes back."""
    tx = gradx.skip_nonfinite(gradx.adam(0.1), restore_after=1)
    state = tx.init(P)
    with jax.disable_jit():
        made, pull = jax.vjp(lambda p: tx.update(g, state, p), P)
        (reverse,) = pull(jax.tree.map(ones_like, made))
        _, forward = jax.jvp(
            lambda p: tx.update(g, state, p)[0], (P,), (jax.tree.map(jnp.ones_like, P),)
        )
    expected = -1.0 if g is BAD[2] else 0.0
    assert_same(forward, jax.tree.map(lambda x: jnp.full_like(x, expected), P))
    assert_same(reverse, forward)


def ones_like(x: Any) -> Any:
    kind = jnp.issubdtype(x.dtype, jnp.floating)
    return jnp.ones_like(x) if kind else np.zeros(x.shape, jax.dtypes.float0)


@counts_buffers
def test_a_guard_takes_no_temporaries() -> None:
    """It reads the gradients once more; one that goes back reads the snapshot's parameters, too."""
    p = {"w": jax.ShapeDtypeStruct((64, 256), jnp.float32)}

    def cost(tx: Any) -> tuple[float, float]:
        s = jax.eval_shape(tx.init, jax.tree.map(lambda x: jnp.ones(x.shape), p))
        jitted = jax.jit(lambda p, s, g: step(tx, p, s, g), donate_argnums=(0, 1))
        compiled = jitted.lower(p, s, p).compile()
        touched = compiled.cost_analysis()["bytes accessed"]
        return compiled.memory_analysis().temp_size_in_bytes / 2**16, touched / 2**16

    inner = gradx.trace(0.9)
    for tx, more in (
        (gradx.skip_spikes(inner), 1.0),
        # The branches, which seldom run, are counted in full: 2 arrays are saved, and 1 comes back.
        (gradx.skip_nonfinite(inner, restore_after=2), 2.0 + 2 * (2 + 1)),
    ):
        temporaries, touched = cost(tx)
        assert temporaries < 0.05
        assert touched == pytest.approx(cost(inner)[1] + more, abs=0.2)


# ---------------------------------------------------------------- spikes


def norms(tx: Any, values: Any, **extra: Any) -> list[bool]:
    """Which of these gradient norms are skipped."""
    state, skipped = tx.init(jnp.zeros(1)), []
    update = jax.jit(tx.update)
    for x in values:
        updates, state = update(jnp.array([x], jnp.float32), state, **extra)
        assert bool(state.last_skipped) == (updates[0] == 0)
        skipped.append(bool(state.last_skipped))
    return skipped


def test_a_spike_is_skipped_once_half_the_window_is_seen() -> None:
    tx = gradx.skip_spikes(gradx.sgd(1.0), window=6, sigmas=3.0)
    assert norms(tx, [1, 2, 50, 1]) == [False] * 4  # the third is compared with two only
    assert norms(tx, [1, 2, 1.5, 50, 2]) == [False, False, False, True, False]
    # What is not finite is not.
    assert norms(tx, [1, 2, NAN, 50, INF, 2, 1000]) == [False] * 2 + [
        True,
        False,
        True,
        False,
        True,
    ]


ROSE = [(0.0, 3, 124), (0.03, 3, 20), (0.1, 3, 10), (0.03, 100, 51)]  # deviation, to, after


def test_a_spike_does_not_hide_the_next_ones_but_a_level_that_stays_is_accepted() -> None:
    tx = gradx.skip_spikes(gradx.sgd(1.0))

    def skipped(values: Any) -> Any:
        def body(state: Any, x: Any) -> Any:
            _, state = tx.update(x[None], state)
            return state, state.last_skipped

        return jax.lax.scan(body, tx.init(jnp.zeros(1)), values)[1]

    wave = np.sqrt(2) * np.sin(2.0 * np.arange(128))
    runs = [np.append(1 + noise * wave, np.full(200, level)) for noise, level, _ in ROSE]
    runs.append(np.append(np.zeros(128), np.full(200, 1e6)))
    for noise in (0.0, 0.1):
        runs.append(np.append(1 + noise * wave, np.resize([1e6, 1e5, 5e5, 1.0, 1e5], 200)))
    told = np.asarray(jax.jit(jax.vmap(skipped))(jnp.float32(runs)))[:, 128:]
    for found, steps in zip(told, [*(steps for *_, steps in ROSE), 121], strict=False):
        assert list(found) == [True] * steps + [False] * (200 - steps)
    for found in told[-2:]:
        assert list(found[:5]) == [True, True, True, False, True]


@pytest.mark.full
@pytest.mark.parametrize("window", [2, 3, 8, 128])
@pytest.mark.parametrize("sigmas", [0.1, 1.0, 2.0, 6.0, 50.0])
def test_a_level_that_stays_is_accepted_whatever_the_arguments(window: int, sigmas: float) -> None:
    tx = gradx.skip_spikes(gradx.sgd(1.0), window=window, sigmas=sigmas)
    for level in (3.0, 100.0):
        skipped = norms(tx, [1.0] * window + [level] * (2 * window + 60))
        assert skipped[window]
        assert not skipped[-1]


def test_equal_values_are_no_spikes() -> None:
    """Their mean is exactly what they are, whatever sum and division round."""
    tx = gradx.skip_spikes(gradx.sgd(1.0), window=7)
    assert not any(norms(tx, [0.1] * 9))
    assert norms(tx, [0.1] * 5 + [0.11])[-1]


def test_the_bounds_are_those_of_numpy() -> None:
    tx = gradx.skip_spikes(gradx.sgd(1.0), window=4, sigmas=2.0, loss=gradx.from_call("value"))
    state, values = tx.init(jnp.zeros(1)), [3.0, 1.0, 4.0, 1.5, 9.0]
    with jax.disable_jit():
        for x in [*values, 0.0]:
            _, state = tx.update(jnp.array([x + 1]), state, value=x)
    expected = np.mean(values[1:]) + 2 * np.std(values[1:], ddof=1)
    told = metrics(state)
    np.testing.assert_allclose(told["loss_bound"], expected, rtol=1e-6)
    np.testing.assert_allclose(told["norm_bound"], expected + 1, rtol=1e-6)


def test_a_loss_alone_may_decide() -> None:
    value = gradx.from_call("value")
    tx = gradx.skip_spikes(gradx.sgd(1.0), window=2, loss=value, norm=False)
    state = tx.init(P)
    with jax.disable_jit():
        for x, bad in ((1.0, False), (1.1, False), (9.0, True), (1.0, False)):
            _, state = tx.update(gradient(0, 10.0 * x), state, value=x)
            assert bool(state.last_skipped) == bad
        assert tx.update(BAD[0], state, value=1.0)[1].last_skipped
    assert list(state.judge.values) == ["loss"]


# ---------------------------------------------------------------- clips by history

CLIPS = {
    "zclip": gradx.zclip(warmup=2),
    "adagc": gradx.adagc(ratio=2.0, max_norm=100.0, warmup=2),
}


@pytest.mark.parametrize("name", CLIPS)
def test_zeros_and_what_is_not_finite_leave_no_trace(name: str) -> None:
    """In the first steps too, where an average of 0 would bound all later updates by 0."""
    tx = CLIPS[name]
    state = tx.init(jnp.zeros(1))
    with jax.disable_jit():
        for x in (0.0, 0.0, 0.0, 4.0, NAN, INF, 3e38, 0.0, 5.0):
            updates, state = tx.update(jnp.array([x], jnp.float32), state)
            assert jnp.isfinite(updates[0]) == (x not in (NAN, INF))
            assert all(jnp.isfinite(x).all() for x in jax.tree.leaves(state))
    assert updates[0] > 0


def test_a_spike_is_clipped_to_less_the_larger_it_is() -> None:
    tx, made = gradx.zclip(warmup=4, decay=0.5), []
    for spike in (9.0, 90.0, 900.0):
        state = tx.init(jnp.zeros(1))
        with jax.disable_jit():
            for x in (1.0, 2.0, 1.0, 2.0, spike):
                updates, state = tx.update(jnp.array([x]), state)
        made.append(float(updates[0]))
    z = (np.array([9, 90, 900]) - 1.5) / (0.5 + 1e-6)
    np.testing.assert_allclose(made, 1.5 + 0.5 * 2.5**2 / z, rtol=1e-6)


# ---------------------------------------------------------------- restarts


def test_a_restart_ends_the_memory_but_not_live_values() -> None:
    tx = gradx.restart_moments(gradx.adam(gradx.tunable(0.1)), every=2)
    _, state = after(tx, GOOD[:2])
    state = gradx.set_hyperparams(state, learning_rate=0.5)
    alone = gradx.adam(0.5)
    with jax.disable_jit():
        updates, state = tx.update(GOOD[2], state, P)
        assert_close(updates, alone.update(GOOD[2], alone.init(P))[0], rtol=1e-6)
    assert (int(state.count), metrics(state)) == (1, {"restarts": 1})
    assert gradx.hyperparams(state)["learning_rate"] == 0.5


def test_the_warm_up_after_a_restart_is_that_of_spam() -> None:
    tx = gradx.restart_moments(gradx.sgd(1.0), every=3, warmup=2)
    state, made = tx.init(jnp.zeros(1)), []
    with jax.disable_jit():
        for _ in range(6):
            updates, state = tx.update(-jnp.ones(1), state, jnp.zeros(1))
            made.append(float(updates[0]))
    np.testing.assert_allclose(made, [1, 1, 1, 0.01, 1 - 0.99 * 0.75, 1], rtol=1e-6)


# ---------------------------------------------------------------- states and arguments


@first_of("dtype, x64", [(jnp.bfloat16, False), (jnp.float32, True), (jnp.complex64, False)])
def test_the_state_keeps_its_types(dtype: Any, x64: bool) -> None:
    value = gradx.from_call("value")
    with jax.enable_x64(x64), jax.numpy_dtype_promotion("strict"):
        p = jax.tree.map(lambda x: jnp.asarray(x, dtype), P)
        for tx in (
            gradx.skip_nonfinite(gradx.adam(0.1), restore_after=1, loss=value),
            gradx.skip_spikes(gradx.adam(0.1), window=3, loss=value, restore_after=1),
        ):
            state = tx.init(p)
            updates, new = jax.eval_shape(lambda *a, tx=tx: tx.update(*a, value=1.0), p, state, p)
            assert types(new) == types(state)
            wide = gradx.core.trees.wide(jnp.dtype(dtype))
            assert {x.dtype for x in jax.tree.leaves(updates)} == {wide}


def test_states_of_other_guards_are_refused() -> None:
    sgd = gradx.sgd(0.1, 0.9)
    made = [
        gradx.skip_nonfinite(sgd),
        gradx.skip_nonfinite(sgd, restore_after=1),
        gradx.skip_spikes(sgd),
        gradx.skip_spikes(sgd, window=3),
        gradx.skip_spikes(sgd, loss=gradx.from_call("value")),
        gradx.skip_nonfinite(gradx.adam(0.1), restore_after=1),
    ]
    states = [tx.init(P) for tx in made]
    for i, tx in enumerate(made):
        for j, state in enumerate(states):
            if i != j:
                with pytest.raises(ValueError, match=r"got a state .* another chain's init"):
                    jax.eval_shape(lambda g, s, tx=tx: tx.update(g, s, g, value=1.0), P, state)


WRONG: dict[str, Any] = {
    r"skip_nonfinite: inner must be": lambda: gradx.skip_nonfinite("adam"),
    r"skip_nonfinite: flag_after must be in \[1": lambda: guard(flag_after=0),
    r"skip_nonfinite: flag_after must be a whole": lambda: guard(flag_after=1.5),
    r"skip_nonfinite: restore_after must be in \[1": lambda: guard(restore_after=0),
    r"skip_nonfinite: snapshot_every must be in \[1": lambda: guard(snapshot_every=0),
    r"skip_nonfinite: loss must be from_call": lambda: guard(loss="value"),
    r"skip_nonfinite: axis_name must be": lambda: guard(axis_name=0.5),
    r"skip_nonfinite: axis_name must be the": lambda: guard(axis_name=3),
    r"skip_spikes: sigmas must be one .* It is a constant": lambda: gradx.skip_spikes(
        gradx.sgd(0.1), sigmas=gradx.tunable(6.0)
    ),
    r"zclip: warmup must be in \[1": lambda: gradx.zclip(warmup=0),
    r"adagc: warmup must be a whole": lambda: gradx.adagc(warmup=0.5),
    r"restart_moments: every must be in \[1": lambda: gradx.restart_moments(gradx.sgd(0.1), 0),
    r"restart_moments: warmup must be in \[0, 3\]": lambda: gradx.restart_moments(
        gradx.sgd(0.1), 3, warmup=4
    ),
    r"skip_spikes: window must be in \[2": lambda: gradx.skip_spikes(gradx.sgd(0.1), window=1),
    r"skip_spikes: sigmas must be in \(0": lambda: gradx.skip_spikes(gradx.sgd(0.1), sigmas=0.0),
    r"skip_spikes: with norm=False": lambda: gradx.skip_spikes(gradx.sgd(0.1), norm=False),
}


# ---------------------------------------------------------------- devices that differ


@gradx.recorded
def averaging(learning_rate: gradx.Hyper) -> gradx.Transform:
    return gradx.chain(gradx.pmean("d"), gradx.sgd(learning_rate))


COMBINING: dict[str, Any] = {
    "chain": gradx.chain(gradx.pmean("d"), gradx.sgd(0.1)),
    "chains": gradx.named_chain(("a", gradx.chain(gradx.trace(0.9), gradx.psum("d")))),
    "wrapper": gradx.MultiSteps(gradx.masked(gradx.pmean("d"), True), 2),
    "labels": gradx.partition({"a": gradx.sgd(0.1), "b": gradx.pmean("d")}, "a"),
    "factory": gradx.MultiSteps(averaging(0.1), 2),
    "sharded": gradx.pmean(gradx.sharded("d", {"w": True, "b": False})),
    "examples": gradx.dpsgd(0.1, 0.5, 0.1, 0, axis_name="d"),
}
SKIPPING: dict[str, Any] = {
    "skip_nonfinite": gradx.skip_nonfinite,
    "skip_spikes": gradx.skip_spikes,
    "apply_if_finite": lambda tx, **axis: gradx.apply_if_finite(tx, 3, **axis),
}


@pytest.mark.parametrize("guard", SKIPPING)
@pytest.mark.parametrize("inner", COMBINING)
def test_devices_that_combine_gradients_must_decide_alike(guard: str, inner: str) -> None:
    """A device that skips would let the others wait for it in the collective, for ever."""
    make, tx = SKIPPING[guard], COMBINING[inner]
    told = rf"^{guard}: gradients may differ by device before .*'d'.*, and .*: give axis_name='d',"
    with pytest.raises(ValueError, match=told):
        make(tx)
    with pytest.raises(ValueError, match=r"give axis_name=\('e', 'd'\), or put .* before this"):
        make(tx, axis_name="e")
    for axis in ("d", ("e", "d"), gradx.sharded("d")):
        assert make(tx, axis_name=axis)
    # Before the guard it is right, and models of their own on each device may decide for theirs.
    assert gradx.chain(tx, make(gradx.adamw(0.1)))


@pytest.mark.parametrize("guard", SKIPPING)
def test_what_a_guard_makes_of_a_mean_is_the_same_on_all_devices_by_type(guard: str) -> None:
    tx = SKIPPING[guard](averaging(0.1), axis_name="d")
    p = jnp.ones(2)
    over = {"in_specs": (PartitionSpec("d"), PartitionSpec()), "out_specs": PartitionSpec()}
    mesh = jax.sharding.Mesh(jax.devices()[:2], "d")
    update = jax.shard_map(lambda g, s: tx.update(g[0], s, p), mesh=mesh, **over)
    state = tx.init(p)
    _, new = jax.eval_shape(update, jnp.ones((2, 2)), state)  # else the specs would be refused
    assert types(new) == types(state)


def test_an_accumulation_that_skips_says_whether_devices_may_differ() -> None:
    tx, skip = COMBINING["chain"], {"should_skip_update_fn": gradx.skip_not_finite}
    with pytest.raises(
        ValueError, match=r"MultiSteps: gradients may .*: let .* conditional=True, or"
    ):
        gradx.MultiSteps(tx, 2, **skip)
    for said in (True, False):
        assert gradx.MultiSteps(tx, 2, **skip, conditional=said)
    assert gradx.MultiSteps(tx, 2)
    assert gradx.MultiSteps(gradx.sgd(0.1), 2, **skip)


def guard(**options: Any) -> Any:
    return gradx.skip_nonfinite(gradx.sgd(0.1), **options)


@pytest.mark.parametrize("told", WRONG)
def test_wrong_arguments_are_refused(told: str) -> None:
    with pytest.raises(ValueError, match=f"^{told}"):
        WRONG[told]()
