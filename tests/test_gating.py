"""Steps that do not count: nothing inside changes in them, and they cost next to nothing."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases import every_other, first_of
from compilers import counts_buffers
from flax import nnx
from flax.training.train_state import TrainState
from jax.sharding import NamedSharding, PartitionSpec
from problems import assert_close, assert_same, bowl, gradients, params, step, trajectory

import gradx
from gradx.lowering import predicate


def at(stacked: Any, i: int) -> Any:
    return jax.tree.map(lambda x: jnp.asarray(x[i]), stacked)


# ---------------------------------------------------------------- the inner state


RAW_KEY = jax.random.PRNGKey(0)  # one that NumPy can compare
FOREIGN = {
    "leaf-wise": gradx.adam(0.1),
    "after a norm": gradx.chain(gradx.clip_by_global_norm(0.5), gradx.adam(0.1)),
    "before a norm": gradx.chain(gradx.adam(0.1), gradx.clip_by_global_norm(0.5)),
    "groups": gradx.partition(
        {"a": gradx.adam(0.1), "b": gradx.sgd(0.1, 0.9)}, gradx.by_path({"bias": "a"}, default="b")
    ),
    "live": gradx.tunable(gradx.sgd(0.1, 0.9)),
    "optax": optax.adam(0.1),
    "noise": gradx.chain(gradx.add_noise(0.1, 0.5, RAW_KEY), gradx.trace(0.9)),
}
WRAPPERS = {
    "mask": lambda tx: gradx.conditionally_mask(tx, every_other),
    "transform": lambda tx: gradx.conditionally_transform(tx, every_other),
}


@pytest.mark.parametrize("inner", FOREIGN.values(), ids=list(FOREIGN))
@first_of("kind", WRAPPERS)
def test_a_condition_does_what_the_inner_transformation_does_or_nothing(
    inner: Any, kind: str
) -> None:
    tx = WRAPPERS[kind](inner)
    state, alone = tx.init(params()), inner.init(params())
    update = jax.jit(tx.update)
    for i in range(4):
        g = at(gradients(steps=4), i)
        before = state.inner_state
        updates, state = update(g, state, params())
        assert int(state.step) == i + 1
        if i % 2 == 0:
            expected, alone = inner.update(g, alone, params())
            assert_close(updates, expected, rtol=1e-6)
        else:
            zeros = jax.tree.map(jnp.zeros_like, g)
            assert_same(updates, zeros if kind == "mask" else g)
            assert_same(state.inner_state, before)


def test_the_condition_is_given_the_extra_arguments_if_asked_for() -> None:
    tx = gradx.conditionally_mask(
        gradx.sgd(1.0), lambda step, *, loss: loss < 1.0, forward_extra_args=True
    )
    state = tx.init(jnp.ones(1))
    assert tx.update(jnp.ones(1), state, loss=jnp.float32(0.5))[0] == -1
    assert tx.update(jnp.ones(1), state, loss=jnp.float32(2.0))[0] == 0


@pytest.mark.full
def test_a_gate_needs_no_names_of_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """JAX keeps them for its messages only, and in another way from version to version."""

    def three_steps() -> Any:
        jax.clear_caches()
        tx = gradx.conditionally_mask(gradx.adam(0.1), every_other)
        return trajectory(tx, params(), gradients(steps=3))

    named = three_steps()
    monkeypatch.setattr(predicate, "_nameless", lambda jaxpr: {})
    assert_same(three_steps(), named)


def test_a_condition_must_give_a_bool() -> None:
    for answer in (1, jnp.ones(2, bool)):
        tx = gradx.conditionally_mask(gradx.sgd(1.0), lambda step, a=answer: a)
        with pytest.raises(ValueError, match=r"conditionally_mask: should_transform_fn.*one bool"):
            tx.update(jnp.ones(1), tx.init(jnp.ones(1)))
    with pytest.raises(ValueError, match="conditionally_transform: should_transform_fn"):
        gradx.conditionally_transform(gradx.sgd(1.0), True)


# ---------------------------------------------------------------- what is not finite


@pytest.mark.parametrize("after_limit", ["skip", "apply"])
def test_after_the_limit_of_failures(after_limit: Any) -> None:
    """Optax applies the NaNs then; gradx goes on to skip, unless told otherwise."""
    tx = gradx.apply_if_finite(gradx.sgd(1.0), 2, after_limit=after_limit)
    theirs = optax.apply_if_finite(optax.sgd(1.0), 2)
    state, their_state = tx.init(jnp.ones(1)), theirs.init(jnp.ones(1))
    nan = jnp.array([jnp.nan])
    for i in range(1, 5):
        updates, state = tx.update(nan, state)
        their_updates, their_state = theirs.update(nan, their_state)
        assert int(state.notfinite_count) == int(their_state.notfinite_count) == i
        assert bool(jnp.isnan(updates[0])) == (after_limit == "apply" and i > 2)
        assert bool(jnp.isnan(their_updates[0])) == (i > 2)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float16])
def test_large_sums_are_no_failures(dtype: Any) -> None:
    """A sum may overflow where every term is finite."""
    g = jnp.full(8, jnp.finfo(dtype).max, dtype)
    tx = gradx.apply_if_finite(gradx.sign_sgd(1.0), 2)
    updates, state = tx.update(g, tx.init(g))
    assert state.last_finite
    np.testing.assert_array_equal(updates, -1)
    for bad in (jnp.inf, -jnp.inf, jnp.nan):
        assert not tx.update(g.at[3].set(bad), state)[1].last_finite


def test_one_device_makes_all_of_them_skip() -> None:
    tx = gradx.apply_if_finite(gradx.sgd(1.0), 2, axis_name="d")
    g = jnp.array([[1.0], [jnp.nan]])
    updates, state = jax.vmap(lambda g: tx.update(g, tx.init(g)), axis_name="d")(g)
    np.testing.assert_array_equal(updates, 0)
    np.testing.assert_array_equal(state.total_notfinite, 1)


# ---------------------------------------------------------------- accumulation

MULTI = {
    "k=4": {"every_k_schedule": 4},
    "k=1": {"every_k_schedule": 1},
    "sum": {"every_k_schedule": 3, "use_grad_mean": False},
    "growing": {"every_k_schedule": lambda step: jnp.where(step < 2, 2, 3)},
    "skipping": {"every_k_schedule": 2, "should_skip_update_fn": "skip_not_finite"},
    "skipping large": {"every_k_schedule": 2, "should_skip_update_fn": "skip_large_updates"},
}


@first_of("kind", MULTI)
@first_of("inner", ["chain", "adamw"])
def test_accumulation_agrees_with_optax(kind: str, inner: str) -> None:
    def make(lib: Any) -> Any:
        kwargs = dict(MULTI[kind])
        if skip := kwargs.get("should_skip_update_fn"):
            bound = {"max_squared_norm": 40.0} if "large" in skip else {}
            kwargs["should_skip_update_fn"] = functools.partial(getattr(lib, skip), **bound)
        opt = lib.adamw(lambda t: 0.1 / (1 + t), weight_decay=0.1)
        if inner == "chain":
            opt = lib.chain(lib.clip_by_global_norm(1.0), lib.adam(0.1), lib.scale(0.5))
        return lib.MultiSteps(opt, **kwargs)

    g = gradients(steps=12)
    if kind == "skipping":
        g["scale"][5] = np.nan
    ours, theirs = make(gradx), make(optax)

    def run(tx: Any) -> Any:
        def body(carry: Any, g: Any) -> Any:
            p, state = step(tx, *carry, g)
            seen = tx.has_updated(state), state.mini_step, state.gradient_step, state.skip_state
            return (p, state), (p, seen)

        return jax.jit(lambda p, g: jax.lax.scan(body, (p, tx.init(p)), g)[1])(params(), g)

    (p, ours_seen), (q, theirs_seen) = run(ours), run(theirs)
    assert_close(p, q, rtol=3e-6)
    assert_same(ours_seen, theirs_seen, ulps=1)  # a norm may be summed in another order


LAST, TOKENS = gradx.from_call("last"), gradx.from_call("tokens")
IN_ALL_WAYS: dict[str, tuple[dict[str, Any], list[int]]] = {  # arguments, calls of each update
    "mean": ({"every_k_schedule": 3}, [3, 3]),
    "sum": ({"every_k_schedule": 3, "use_grad_mean": False}, [3, 3]),
    "bfloat16": ({"every_k_schedule": 3, "accumulator_dtype": jnp.bfloat16}, [3, 3]),
    "scheduled": ({"every_k_schedule": lambda step: step + 2}, [2, 3]),
    "weights": ({"every_k_schedule": 3, "weight": TOKENS}, [3, 3]),
    "flag": ({"every_k_schedule": 3, "emit": LAST}, [3, 2]),
    "flag alone": ({"every_k_schedule": None, "emit": LAST}, [5, 1]),
    "flag and weights": ({"every_k_schedule": 4, "emit": LAST, "weight": TOKENS}, [4, 1]),
    "flag, sum": ({"every_k_schedule": 4, "emit": LAST, "use_grad_mean": False}, [4, 2]),
    "flag, one call": ({"every_k_schedule": 1, "emit": LAST}, [1, 1]),
}


def test_without_any_weight_the_update_waits_for_a_gradient() -> None:
    tx = gradx.MultiSteps(gradx.adamw(0.1), 2, weight=gradx.from_call("w"))
    p = jnp.ones(1)
    state, seen = tx.init(p), []
    for w in (0.0, 0.0, 3.0, 0.0, 1.0):
        updates, state = tx.update(p, state, p, w=w)
        seen.append(bool(tx.has_updated(state)))
        assert seen[-1] == bool(updates[0] != 0)
    assert seen == [False, False, True, False, True]


@pytest.mark.parametrize(("how", "calls"), IN_ALL_WAYS.values(), ids=list(IN_ALL_WAYS))
def test_each_way_to_accumulate_is_one_large_batch(how: Any, calls: list[int]) -> None:
    """The gradient of a batch is the mean of its rows; with weights, batches differ in length."""
    rng = np.random.default_rng(0)
    sizes = [2, 5, 1, 3, 2, 4] if "weight" in how else [2] * 6
    batches = [rng.normal(size=(n, 3)) for n in sizes]
    inner = gradx.adam(0.1, eps=1e-2)
    tx = gradx.MultiSteps(inner, **how)
    state, large = tx.init(jnp.zeros(3)), inner.init(jnp.zeros(3))
    ends = np.cumsum(calls)
    for i, batch in enumerate(batches[: ends[-1]], 1):
        mean = jnp.asarray(batch.mean(0), jnp.float32)
        updates, state = tx.update(mean, state, last=jnp.array(i in ends), tokens=len(batch))
        assert tx.has_updated(state) == (i in ends)
        if i not in ends:
            assert not updates.any()
            continue
        whole = np.concatenate(batches[i - calls[list(ends).index(i)] : i]).mean(0)
        if not how.get("use_grad_mean", True):
            whole *= calls[list(ends).index(i)]
        expected, large = inner.update(jnp.asarray(whole, jnp.float32), large)
        rtol = 0.01 if "accumulator_dtype" in how else 1e-5
        assert_close((updates, state.inner_opt_state), (expected, large), rtol=rtol)


def test_a_skipped_call_can_ask_for_the_update_of_those_before() -> None:
    tx = gradx.MultiSteps(gradx.sgd(1.0), 4, True, gradx.skip_not_finite, emit=LAST)
    nan, yes, no = jnp.array([jnp.nan]), jnp.array(True), jnp.array(False)
    state = tx.init(jnp.zeros(1))
    _, state = tx.update(nan, state, last=yes)
    assert not tx.has_updated(state)  # there is nothing to update with
    for g in (1.0, 2.0):
        _, state = tx.update(jnp.array([g]), state, last=no)
    updates, state = tx.update(nan, state, last=yes)
    np.testing.assert_array_equal(updates, [-1.5])
    assert tx.has_updated(state)
    assert int(state.gradient_step) == 1
    with pytest.raises(ValueError, match="extra argument 'last' must give one bool"):
        tx.update(nan, state, last=1)
    with pytest.raises(ValueError, match="needs the extra argument 'last'"):
        tx.update(nan, state)


def test_accumulated_gradients_are_sharded_like_the_parameters() -> None:
    sharding = NamedSharding(jax.make_mesh((8,), ("d",)), PartitionSpec("d"))
    p = {"w": jax.device_put(jnp.ones((8, 2)), sharding)}
    tx = gradx.MultiSteps(gradx.sgd(1.0), 2)
    state = tx.init(p)
    assert state.acc_grads["w"].sharding == sharding
    there = jax.jit(tx.update)(p, state, p)[1].acc_grads["w"].sharding
    assert there.is_equivalent_to(sharding, 2)


def test_whether_it_has_updated_is_known_of_every_trainer() -> None:
    tx = gradx.MultiSteps(gradx.sgd(1.0), 2)
    train = TrainState.create(apply_fn=None, params={"w": jnp.ones(1)}, tx=tx)
    model = nnx.Dict(w=nnx.Param(jnp.ones(1)))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    for updated in (False, True):
        train = train.apply_gradients(grads=train.params)
        optimizer.update(model, nnx.state(model, nnx.Param))
        assert tx.has_updated(train.opt_state) == tx.has_updated(optimizer.opt_state) == updated


def test_between_updates_the_inner_state_is_untouched() -> None:
    tx = gradx.MultiSteps(gradx.adam(0.1), 3)
    state = tx.init(params())
    update = jax.jit(tx.update)
    for i in range(6):
        before = state
        updates, state = update(at(gradients(steps=6), i), state, params())
        if not tx.has_updated(state):
            assert_same(state.inner_opt_state, before.inner_opt_state)
            assert all(not x.any() for x in jax.tree.leaves(updates))
    assert int(state.inner_opt_state[0].count) == 2


def test_weights_give_the_gradient_of_the_whole_batch() -> None:
    """Means over 3, 1 and 0 tokens: the mean of means would weigh the tokens differently."""
    tokens = [jnp.array([1.0, 2.0, 3.0]), jnp.array([10.0]), jnp.zeros(0)]
    tx = gradx.MultiSteps(gradx.sgd(1.0), 3, weight=gradx.from_call("tokens"))
    state = tx.init(jnp.zeros(1))
    for batch in tokens:
        mean = jnp.sum(batch, keepdims=True) / max(batch.size, 1)
        updates, state = tx.update(mean, state, tokens=batch.size)
    np.testing.assert_allclose(updates, [-16.0 / 4], rtol=1e-6)
    total = gradx.MultiSteps(
        gradx.sgd(1.0), 2, use_grad_mean=False, weight=gradx.from_call("tokens")
    )
    state = total.init(jnp.zeros(1))
    for w in (3, 1):
        updates, state = total.update(jnp.ones(1), state, tokens=w)
    np.testing.assert_allclose(updates, [-4.0], rtol=1e-6)
    assert float(state.weight_sum) == 4
    with pytest.raises(ValueError, match=r"'tokens'.*Did you mean"):
        tx.update(jnp.ones(1), tx.init(jnp.zeros(1)), token=3)


@pytest.mark.parametrize("k", [1, 2])
def test_a_weight_of_zero_leaves_a_gradient_out(k: int) -> None:
    """Also one that is NaN, as the mean over no tokens is."""
    tx = gradx.MultiSteps(gradx.sgd(1.0), k, weight=gradx.from_call("tokens"))
    state = tx.init(jnp.zeros(1))
    for _ in range(k):
        updates, state = tx.update(jnp.array([jnp.nan]), state, tokens=0)
    np.testing.assert_array_equal(updates, 0)
    total = gradx.MultiSteps(gradx.sgd(1.0), k, False, weight=gradx.from_call("tokens"))
    state = total.init(jnp.zeros(1))
    for tokens in (3, 0)[:k]:
        updates, state = total.update(jnp.ones(1), state, tokens=tokens)
    np.testing.assert_array_equal(updates, -3)
    with pytest.raises(ValueError, match=r"MultiSteps: weight must be in \[0, inf\)"):
        total.update(jnp.ones(1), state, tokens=-1)


def test_the_sum_of_weights_keeps_its_type() -> None:
    tx = gradx.MultiSteps(gradx.sgd(1.0), 2, weight=gradx.from_call("w"))
    with jax.enable_x64(True):
        state = tx.init(jnp.ones(1))
        new = tx.update(jnp.ones(1), state, w=jnp.ones(()))[1]
        assert new.weight_sum.dtype == state.weight_sum.dtype


def test_states_of_other_kinds() -> None:
    """That of another chain is refused by name; that of Optax's class stays what it is."""
    for tx in (
        gradx.MultiSteps(gradx.sgd(1.0), 2),
        gradx.apply_if_finite(gradx.sgd(1.0), 2),
        gradx.conditionally_mask(gradx.sgd(1.0), every_other),
    ):
        with pytest.raises(ValueError, match="another chain's init"):
            tx.update(jnp.ones(1), gradx.adam(1.0).init(jnp.ones(1)))
    theirs = optax.conditionally_mask(optax.sgd(1.0), every_other).init(jnp.ones(1))
    tx = gradx.conditionally_mask(gradx.sgd(1.0), every_other)
    assert type(tx.update(jnp.ones(1), theirs)[1]) is type(theirs)


def test_an_inner_transformation_must_keep_the_tree() -> None:
    tx = gradx.apply_if_finite(gradx.lookahead(gradx.sgd(1.0), 2, 0.5), 2)
    params = gradx.LookaheadParams.init_synced(jnp.ones(1))
    with pytest.raises(ValueError, match="apply_if_finite: the inner transformation lookahead"):
        tx.update(jnp.ones(1), tx.init(params), params)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_the_sum_is_kept_in_the_dtype_of_choice(dtype: Any) -> None:
    tx = gradx.MultiSteps(gradx.sgd(1.0), 256, accumulator_dtype=dtype)
    p = jnp.ones(4, jnp.bfloat16)
    state = tx.init(p)
    assert state.acc_grads.dtype == dtype

    def body(state: Any, _: Any) -> Any:
        updates, state = tx.update(jnp.full(4, 1 / 256, jnp.bfloat16), state)
        return state, updates

    _, updates = jax.lax.scan(body, state, length=256)
    assert updates.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.float32(updates[-1]), -1 / 256, rtol=1e-2)


def test_float64_and_complex_parameters_are_accumulated_as_such() -> None:
    with jax.enable_x64(True):
        tx = gradx.MultiSteps(gradx.sgd(1.0), 2)
        assert tx.init(jnp.ones(1)).acc_grads.dtype == jnp.float64
    assert tx.init(jnp.ones(1, jnp.complex64)).acc_grads.dtype == jnp.complex64


def bytes_of(tx: Any) -> tuple[float, float]:
    """Temporaries of a step, and what it touches, in arrays like a parameter."""
    p = {"w": jax.ShapeDtypeStruct((64, 256), jnp.float32)}
    s = jax.eval_shape(tx.init, p)
    jitted = jax.jit(lambda p, s, g: step(tx, p, s, g), donate_argnums=(0, 1))
    compiled = jitted.lower(p, s, p).compile()
    touched = compiled.cost_analysis()["bytes accessed"]
    return compiled.memory_analysis().temp_size_in_bytes / 2**16, touched / 2**16


@counts_buffers
def test_accumulation_takes_no_temporaries_and_one_step_nothing_at_all() -> None:
    inner = gradx.adamw(1e-3)
    assert bytes_of(gradx.MultiSteps(inner, 1)) == pytest.approx(bytes_of(inner), abs=0.01)
    temporaries, touched = bytes_of(gradx.MultiSteps(inner, 4))
    assert temporaries < 0.01
    assert touched < bytes_of(inner)[1] + 3.1  # the sum: read and written, and the gradient
    assert gradx.state_bytes(gradx.MultiSteps(inner, 1).init(jnp.ones(100))) < 900


def test_an_expensive_inner_transformation_is_run_once_in_k_calls() -> None:
    runs = []

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        jax.debug.callback(lambda: runs.append(1))
        return updates, state

    expensive = optax.GradientTransformation(lambda p: (), update)
    tx = gradx.MultiSteps(expensive, 4)
    state = tx.init(jnp.ones(2))
    jitted = jax.jit(tx.update)
    for _ in range(8):
        updates, state = jitted(jnp.ones(2), state)
    jax.block_until_ready(updates)
    jax.effects_barrier()
    assert len(runs) == 2


@pytest.mark.parametrize("conditional", [True, False, None])
def test_the_three_ways_to_keep_it_from_acting_agree(conditional: Any) -> None:
    g = gradients(steps=4)
    for inner in (gradx.adam(0.1), optax.adam(0.1)):
        tx = gradx.MultiSteps(inner, 2, conditional=conditional)
        plain = gradx.MultiSteps(gradx.adam(0.1), 2)
        assert_close(trajectory(tx, params(), g), trajectory(plain, params(), g), rtol=2e-6)


def test_it_is_a_transformation_that_describes_itself() -> None:
    tx = gradx.MultiSteps(gradx.adam(0.1), 2, use_grad_mean=False)
    assert repr(tx) == "MultiSteps(adam(0.1), 2, use_grad_mean=False)"
    assert tx == gradx.MultiSteps(gradx.adam(0.1), every_k_schedule=2, use_grad_mean=False)
    assert tx.gradient_transformation() is tx
    assert tx.inner_opt == gradx.adam(0.1)
    assert isinstance(gradx.from_config(gradx.to_config(tx)), gradx.MultiSteps)
    assert "adam" in str(gradx.describe(tx, params()))
    chained = gradx.chain(gradx.clip(1.0), tx)
    assert len(chained.init(params())) == 2


def test_accumulation_in_a_training_loop_under_scan() -> None:
    tx = gradx.MultiSteps(gradx.adam(gradx.cosine_decay_schedule(0.1, 100)), 2)

    def body(carry: Any, _: Any) -> Any:
        p, s = carry
        return step(tx, p, s, jax.grad(bowl)(p)), None

    start = jax.tree.map(lambda x: jnp.asarray(x) * 0.5, params())
    (p, _), _ = jax.jit(lambda c: jax.lax.scan(body, c, length=200))((start, tx.init(start)))
    assert bowl(p) < 1e-2 * bowl(start)


BAD = {
    "opt": lambda: gradx.MultiSteps("adam", 2),
    "every_k_schedule": lambda: gradx.MultiSteps(gradx.sgd(0.1), 0),
    "whole number": lambda: gradx.MultiSteps(gradx.sgd(0.1), 1.5),
    "should_skip_update_fn": lambda: gradx.MultiSteps(gradx.sgd(0.1), 2, True, True),
    "accumulator_dtype": lambda: gradx.MultiSteps(gradx.sgd(0.1), 2, accumulator_dtype=jnp.int32),
    "weight": lambda: gradx.MultiSteps(gradx.sgd(0.1), 2, weight=gradx.tunable(1.0)),
    "without emit": lambda: gradx.MultiSteps(gradx.sgd(0.1), None),
    "emit must be": lambda: gradx.MultiSteps(gradx.sgd(0.1), 2, emit=True),
    "max_consecutive_errors": lambda: gradx.apply_if_finite(gradx.sgd(0.1), -1),
    "after_limit": lambda: gradx.apply_if_finite(gradx.sgd(0.1), 1, after_limit="stop"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        BAD[name]()


def test_a_gradient_of_another_shape_is_refused_by_path() -> None:
    tx = gradx.MultiSteps(gradx.sgd(0.1), 2)
    with pytest.raises(ValueError, match=r"MultiSteps: at 'w' the update has shape \(3,\)"):
        tx.update({"w": jnp.ones(3)}, tx.init({"w": jnp.ones(2)}))


def test_a_part_on_whole_trees_is_traced_once_under_a_gate() -> None:
    traced = []

    def doubled(u: Any, p: Any) -> Any:
        traced.append(u)
        return jax.tree.map(lambda x: 2 * x, u)

    tx = gradx.apply_if_finite(gradx.chain(gradx.stateless(doubled), gradx.scale(0.5)), 3)
    state = tx.init(jnp.ones(3))
    traced.clear()
    jax.jit(tx.update).lower(jnp.ones(3), state)
    assert len(traced) == 1


@pytest.mark.parametrize(
    "tx",
    [
        gradx.adam(0.1),
        gradx.chain(gradx.clip_by_global_norm(1.0), optax.scale_by_adam(), gradx.scale(-0.1)),
        gradx.chain(gradx.scale_by_muon(), gradx.scale(-0.1)),
        gradx.chain(gradx.scale_by_shampoo(), gradx.scale(-0.1)),
        gradx.galore(0.1, rank=2),
    ],
    ids=["adam", "of Optax", "muon", "shampoo", "galore"],
)
def test_without_a_conditional_a_closed_gate_leaves_the_state_too(tx: Any) -> None:
    wrapped = gradx.MultiSteps(tx, 2, conditional=False)
    p = {"w": jnp.ones((3, 4))}
    g = {"w": jnp.arange(12.0).reshape(3, 4)}
    update = jax.jit(wrapped.update)
    updates, closed = update(g, wrapped.init(p), p)
    assert_same(closed.inner_opt_state, wrapped.init(p).inner_opt_state)
    assert_same(updates, {"w": jnp.zeros((3, 4))})
    updates, opened = update(g, closed, p)
    alone, state = tx.update(g, tx.init(p), p)
    assert_close(updates, alone, rtol=1e-5)
    assert_close(opened.inner_opt_state, state, rtol=1e-5)
