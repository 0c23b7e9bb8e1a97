"""Where a number comes from, end to end: schedules, live values, by path, from the call."""

from __future__ import annotations

import contextlib
import inspect
import re
import typing
from collections import Counter
from typing import Any

import cases
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases import first_of
from hypothesis import given
from hypothesis import strategies as st
from problems import assert_close, assert_same, params
from runs import sources_of

import gradx
from gradx.numbers.sources import Constant

PARAMS = {"bias": jnp.array([0.5, -1.0]), "kernel": jnp.array([[1.0, 2.0], [-3.0, 0.25]])}
GRADS = {"bias": jnp.array([1.0, -2.0]), "kernel": jnp.array([[0.5, 1.0], [4.0, -8.0]])}
HALF = jax.tree.map(lambda x: x.astype(jnp.bfloat16), PARAMS)


def ramp(count: Any) -> Any:
    return 0.1 * (count + 1)


def first_update(tx: Any, **extra: Any) -> Any:
    return tx.update(GRADS, tx.init(PARAMS), PARAMS, **extra)[0]


def times(factors: Any) -> Any:
    """What gradient descent with these learning rates does to `GRADS`."""
    if not isinstance(factors, dict):
        factors = dict.fromkeys(GRADS, factors)
    return {name: -factors[name] * g for name, g in GRADS.items()}


# ---------------------------------------------------------------- schedules


@pytest.mark.parametrize(
    "make",
    [
        lambda rate: gradx.sgd(rate),
        lambda rate: gradx.sgd(gradx.scaled(1.0, rate)),
        lambda rate: gradx.sgd(gradx.by_path({"bias": rate}, default=rate)),
        lambda rate: gradx.chain(gradx.scale_by_schedule(rate), gradx.scale(-1.0)),
        lambda rate: gradx.masked(gradx.sgd(rate), True),
        lambda rate: gradx.partition({"all": gradx.sgd(rate)}, "all"),
    ],
)
def test_schedules_see_the_count_of_updates_done(make: Any) -> None:
    """0 in the first update, 1 in the second: wherever the schedule stands."""
    tx = make(ramp)
    state = tx.init(PARAMS)
    for count in range(3):
        updates, state = tx.update(GRADS, state, PARAMS)
        assert_close(updates, times(0.1 * (count + 1)), rtol=1e-6)
    assert [int(x) for x in jax.tree.leaves(state) if x.dtype == jnp.int32] == [3]


def test_a_schedule_of_another_number_counts_too() -> None:
    """Where the rule's own state has no count, one is kept beside it."""
    tx = gradx.trace(lambda count: 0.5 * count)
    state, expected = tx.init(PARAMS), 0.0
    for count in range(3):
        updates, state = tx.update(GRADS, state, PARAMS)
        expected = 0.5 * count * expected + GRADS["bias"]
        assert_close(updates["bias"], expected, rtol=1e-6)
    assert isinstance(state, gradx.HyperparamsState)
    assert state.count == 3
    # Adam's state counts already: nothing is added.
    adam = gradx.scale_by_adam(b1=lambda count: 0.9 + 0.0 * count)
    assert jax.tree.structure(adam.init(PARAMS)) == jax.tree.structure(
        gradx.scale_by_adam().init(PARAMS)
    )


@pytest.mark.parametrize(
    "schedule",
    [
        lambda count: 1,
        lambda count: np.float64(0.5),
        lambda count: jnp.bfloat16(0.5),
        lambda count: jnp.where(count > 0, 2, 1),
        lambda count: 0.5 if count < 10 else 0.1,  # branches: it works outside jit only
    ],
)
def test_schedules_may_return_any_kind_of_number(schedule: Any) -> None:
    assert_close(first_update(gradx.sgd(schedule)), times(float(schedule(0))), rtol=1e-6)


def test_a_schedule_that_returns_no_number_is_refused_where_it_is_given() -> None:
    with pytest.raises(ValueError, match=r"sgd.*learning_rate is the schedule.*shape=\(2,\)"):
        gradx.sgd(lambda count: jnp.ones(2))
    with pytest.raises(ValueError, match=r"learning_rate is the (function|schedule)"):
        gradx.sgd(lambda count: [0.1])


# ---------------------------------------------------------------- live values: read and set


LIVE = gradx.chain(
    gradx.clip_by_global_norm(gradx.tunable(1.0)),
    gradx.scale_by_adam(b2=gradx.tunable(0.999)),
    gradx.scale_by_learning_rate(gradx.scaled(ramp, gradx.tunable(1.0))),
    gradx.add_decayed_weights(gradx.tunable(0.1, name="shrink")),
)
NAMES = ["max_norm", "b2", "learning_rate.factor1", "shrink"]


def test_live_values_are_listed_by_name() -> None:
    values = gradx.hyperparams(LIVE.init(PARAMS))
    assert list(values) == NAMES
    assert [float(v) for v in values.values()] == [1.0, np.float32(0.999), 1.0, np.float32(0.1)]
    kinds = {(v.shape, v.dtype, v.weak_type) for v in values.values()}
    assert kinds == {((), jnp.dtype(jnp.float32), False)}
    assert gradx.hyperparams(gradx.adam(0.1).init(PARAMS)) == {}


def test_they_are_found_inside_larger_trees_and_optaxs_chains() -> None:
    inner = gradx.sgd(gradx.tunable(0.1))
    states = {
        "chain": optax.chain(optax.clip(1.0), inner).init(PARAMS),
        "tuple": {"step": 3, "opt_state": (inner.init(PARAMS), None)},
        "masked": optax.masked(inner, True).init(PARAMS),
    }
    for state in states.values():
        assert list(gradx.hyperparams(state)) == ["learning_rate"]
        new = gradx.set_hyperparams(state, learning_rate=0.5)
        assert gradx.hyperparams(new) == {"learning_rate": 0.5}
        assert jax.tree.structure(new) == jax.tree.structure(state)


def test_setting_changes_what_is_set_in_a_new_state() -> None:
    state = LIVE.init(PARAMS)
    before = jax.tree.map(np.asarray, state)
    new = gradx.set_hyperparams(state, max_norm=0.25, **{"learning_rate.factor1": 2})
    expected = dict(zip(NAMES, [0.25, 0.999, 2.0, 0.1], strict=True))
    assert_close(gradx.hyperparams(new), expected, rtol=1e-7)
    assert_same(state, before)
    types = lambda tree: [(x.shape, x.dtype, x.weak_type) for x in jax.tree.leaves(tree)]
    assert types(new) == types(state)
    assert_same(gradx.set_hyperparams(state), state)
    for value in (0.25, np.float64(0.25), jnp.bfloat16(0.25), np.float16(0.25), jnp.array(0.25)):
        assert_same(gradx.set_hyperparams(state, b2=value), gradx.set_hyperparams(state, b2=0.25))


@pytest.mark.parametrize("name", ["b1", "rate", "max_norms", "learning_rate", "step_size"])
def test_a_name_that_is_not_live_lists_those_that_are(name: str) -> None:
    """Unknown, misspelt, a constant or a schedule: nothing is ignored."""
    with pytest.raises(ValueError, match=re.escape(f"no live value {name!r}; it has {NAMES}")) as e:
        gradx.set_hyperparams(LIVE.init(PARAMS), **{name: 0.5})
    assert "make it live where the chain is built" in str(e.value)
    assert ("Did you mean 'max_norm'?" in str(e.value)) == (name == "max_norms")
    with pytest.raises(ValueError, match="it has none"):
        gradx.set_hyperparams(gradx.sgd(ramp).init(PARAMS), **{name: 0.5})


def test_a_pattern_sets_all_that_it_matches() -> None:
    params = {"mlp": jnp.ones((2, 2)), "bias": jnp.ones(2)}
    state = gradx.soap(gradx.tunable(0.1)).init(params)
    with pytest.raises(ValueError, match=r"'learning_rate' is ambiguous.*'\*/learning_rate'"):
        gradx.set_hyperparams(state, learning_rate=0.2)
    new = gradx.set_hyperparams(state, **{"*/learning_rate": 0.2})
    names = ["others/learning_rate", "soap/learning_rate"]
    assert_close(gradx.hyperparams(new), dict.fromkeys(names, 0.2), rtol=1e-7)
    with pytest.raises(ValueError, match="no live value '\\*/rate'; it has"):
        gradx.set_hyperparams(state, **{"*/rate": 0.2})
    with pytest.raises(ValueError, match="soap/learning_rate is set twice"):
        gradx.set_hyperparams(state, **{"*/learning_rate": 0.2, "soap/learning_rate": 0.1})


@pytest.mark.parametrize(
    ("name", "value", "match"),
    [
        ("max_norm", 0.0, r"max_norm must be in \(0, inf\], got 0.0"),
        ("b2", 1.0, r"b2 must be in \[0, 1\), got 1.0"),
        ("b2", np.float64(-0.1), r"b2 must be in \[0, 1\), got -0.1"),
        ("b2", float("nan"), r"b2 must be in \[0, 1\), got nan"),
        ("shrink", float("inf"), r"shrink must be in \(-inf, inf\), got inf"),
        ("learning_rate.factor1", -1.0, r"learning_rate.factor1 must be in \[0, inf\)"),
        ("b2", jnp.ones(2), r"b2 has shape \(\), got a value of shape \(2,\)"),
        ("b2", True, "b2 must be a real number, got True"),
        ("b2", "0.9", "b2 must be a real number, got '0.9'"),
        ("b2", None, "b2 must be a real number, got None"),
        ("b2", [0.9], "b2 must be a real number"),
    ],
)
def test_a_bad_value_is_refused_by_name(name: str, value: Any, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        gradx.set_hyperparams(LIVE.init(PARAMS), tx=LIVE, **{name: value})


# A transformation with one live value, then what it may be set to, and what not.
RANGES = [
    (lambda x: gradx.scion(0.1, momentum=x(0.1)), "momentum", (1.0, 0.5), (0.0, 1.5)),
    (lambda x: gradx.sophia(0.1, eps=x(1e-8)), "eps", (1e-6,), (0.0,)),
    (lambda x: gradx.add_decayed_weights(x(-0.1)), "weight_decay", (-0.1, 0.0), (np.inf,)),
    # An optimizer hands it on to that, and does not allow so much itself.
    (lambda x: gradx.adamw(0.1, weight_decay=x(0.1)), "weight_decay", (0.0,), (-0.1,)),
    (lambda x: gradx.clip_by_global_norm(x(1.0)), "max_norm", (np.inf, 2.0), (0.0, np.nan)),
    (lambda x: gradx.MultiSteps(gradx.sgd(x(0.1)), 2), "learning_rate", (2.0,), (-1.0,)),
    (
        lambda x: gradx.freeze({"bias": True, "kernel": False}, gradx.trace(x(0.9))),
        "decay",
        (0.0, 1.0),
        (1.5,),
    ),
    (
        lambda x: gradx.partition({"a": gradx.lion(0.1, b2=x(0.5))}, {"bias": "a", "kernel": "a"}),
        "b2",
        (0.02,),
        (0.0,),
    ),
    (
        lambda x: gradx.prodigy(betas=(x(0.9), 0.99)),
        "b1",
        (0.0,),
        (1.0,),
    ),
    (
        lambda x: gradx.monitor({"m": gradx.measure_with_ema(unmeasured, x(0.9))}),
        "decay",
        (0.0,),
        (1.0,),
    ),
    (lambda x: gradx.mechanize(gradx.sgd(0.1), eps=x(1e-8)), "eps", (1.0,), (0.0,)),
    (lambda x: gradx.inject_hyperparams(gradx.scion)(x(0.1).initial), "momentum", (1.0,), (0.0,)),
    (
        lambda x: gradx.inject_hyperparams(gradx.adam)(0.1, b1=x(0.9)),
        "b1",
        (0.0,),
        (1.0,),
    ),
    (lambda x: gradx.sgd(gradx.scaled(ramp, x(1.0))), "learning_rate.factor1", (5.0,), (-5.0,)),
]


def unmeasured(updates: Any) -> Any:
    return updates["bias"][0]


@pytest.mark.parametrize(("make", "name", "good", "bad"), RANGES)
def test_a_transformation_knows_the_ranges_of_its_rules(
    make: Any, name: str, good: Any, bad: Any
) -> None:
    tx = make(gradx.tunable)
    state = tx.init(PARAMS)
    for value in good:
        new = gradx.set_hyperparams(state, tx=tx, **{name: value})
        assert gradx.hyperparams(new)[name] == np.float32(value)
    for value in bad:
        with pytest.raises(ValueError, match=f"set_hyperparams: .*{re.escape(name)}.* must be in"):
            gradx.set_hyperparams(state, tx=tx, **{name: value})
    with pytest.raises(ValueError, match=r"must be finite, got inf.*set_hyperparams\(state, tx=tx"):
        gradx.set_hyperparams(state, **{name: np.inf})
    gradx.set_hyperparams(state, **{name: -7.0})  # nobody knows its range


@pytest.mark.parametrize("case", cases.CASES, ids=lambda case: case.id)
def test_every_live_value_has_a_range(case: cases.Case) -> None:
    """And what it begins with lies in it, so that every rule of the table is found."""
    tx = gradx.tunable(case.make())
    state = tx.init(PARAMS)
    values = gradx.hyperparams(state)
    same = gradx.set_hyperparams(state, tx=tx, **values)
    assert_same(gradx.hyperparams(same), values)
    for name in values:
        with pytest.raises(ValueError, match="must be in"):
            gradx.set_hyperparams(state, tx=tx, **{name: np.nan})


def test_a_state_of_another_transformation_has_no_ranges() -> None:
    live = gradx.adam(gradx.tunable(0.1))
    for tx in (
        gradx.adam(0.1),
        gradx.sgd(gradx.tunable(0.1), 0.9),
        gradx.chain(live),
        gradx.adam(gradx.tunable(0.1), b1=gradx.tunable(0.9)),
        gradx.inject_hyperparams(gradx.adam)(0.1),
        gradx.MultiSteps(live, 2),
    ):
        with pytest.raises(ValueError, match="set_hyperparams: the state is not one of"):
            gradx.set_hyperparams(live.init(PARAMS), tx=tx, learning_rate=0.2)
    with pytest.raises(ValueError, match="tx must be a transformation of gradx"):
        gradx.set_hyperparams(live.init(PARAMS), tx=optax.adam(0.1), learning_rate=0.2)  # type: ignore[arg-type]
    foreign = gradx.chain(optax.chain(optax.identity(), live))
    state = foreign.init(PARAMS)
    with pytest.raises(ValueError, match="the range of learning_rate is not known"):
        gradx.set_hyperparams(state, tx=foreign, learning_rate=0.2)
    gradx.set_hyperparams(state, learning_rate=0.2)


def test_larger_states_are_looked_into() -> None:
    from flax import nnx
    from flax.training.train_state import TrainState

    tx = gradx.chain(gradx.clip_by_global_norm(gradx.tunable(1.0)), gradx.adam(gradx.tunable(0.1)))
    model = nnx.Dict(jax.tree.map(nnx.Param, PARAMS))
    for state in (
        TrainState.create(apply_fn=None, params=PARAMS, tx=tx),
        {"step": 0, "opt_state": tx.init(PARAMS)},
        nnx.Optimizer(model, tx, wrt=nnx.Param).opt_state,
    ):
        new = gradx.set_hyperparams(state, tx=tx, max_norm=np.inf, learning_rate=0.2)
        assert_close(gradx.hyperparams(new)["learning_rate"], 0.2, rtol=1e-6)
        with pytest.raises(ValueError, match=r"learning_rate must be in \[0, inf\)"):
            gradx.set_hyperparams(state, tx=tx, learning_rate=-0.1)


def test_no_live_value_is_called_tx() -> None:
    with pytest.raises(ValueError, match=r"sgd.*no live value may be called 'tx'"):
        gradx.sgd(gradx.tunable(0.1, name="tx"))
    with pytest.raises(ValueError, match="no live value may be called 'tx'"):
        gradx.leafwise(doubled, hypers={"tx": gradx.tunable(0.1)})


def doubled(g: Any, s: Any, p: Any, h: Any) -> Any:
    return 2 * g, s


def test_names_that_occur_twice_are_told_apart_by_their_place() -> None:
    pair = {"a": gradx.sgd(gradx.tunable(0.1)), "b": gradx.sgd(gradx.tunable(0.2), 0.9)}
    labels = gradx.by_path({"bias": "a"}, default="b")
    for tx, expected in [
        (gradx.partition(pair, labels), ["a/learning_rate", "b/learning_rate"]),
        (gradx.named_chain(*pair.items()), ["a/learning_rate", "b/learning_rate"]),
        (gradx.chain(*pair.values()), ["0/1/learning_rate", "1/1/learning_rate"]),
    ]:
        state = tx.init(PARAMS)
        assert list(gradx.hyperparams(state)) == expected
        with pytest.raises(ValueError, match=re.escape(f"ambiguous: it is one of {expected}")):
            gradx.set_hyperparams(state, learning_rate=0.5)
        new = gradx.set_hyperparams(state, **{expected[1]: 0.5})
        assert_close(list(gradx.hyperparams(new).values()), [0.1, 0.5], rtol=1e-7)


# ---------------------------------------------------------------- live values: what they are for


def test_setting_does_not_compile_again() -> None:
    traces = []

    @jax.jit
    def step(state: Any) -> Any:
        traces.append(1)
        return LIVE.update(GRADS, state, PARAMS)

    state = LIVE.init(PARAMS)
    small, _ = step(gradx.set_hyperparams(state, shrink=0.0))
    large, after = step(gradx.set_hyperparams(state, shrink=1.0))
    assert_close(jax.tree.map(jnp.subtract, large, small), PARAMS, rtol=1e-6)
    step(gradx.set_hyperparams(after, b2=0.5, max_norm=3))
    assert len(traces) == 1


def test_setting_works_inside_a_jitted_program() -> None:
    @jax.jit
    def step(state: Any, rate: Any) -> Any:
        return tx.update(GRADS, gradx.set_hyperparams(state, learning_rate=rate), PARAMS)

    tx = gradx.sgd(gradx.tunable(0.1))
    updates, state = step(tx.init(PARAMS), 0.5)
    assert_close(updates, times(0.5), rtol=1e-6)
    assert gradx.hyperparams(state) == {"learning_rate": 0.5}


def test_a_sweep_is_one_vmap_over_states() -> None:
    tx = gradx.adamw(gradx.tunable(1.0), weight_decay=gradx.tunable(0.0))
    rates, decays = np.array([0.01, 0.1, 0.3], np.float32), np.array([0.0, 0.1, 1.0], np.float32)

    def three_steps(state: Any) -> Any:
        for _ in range(3):
            updates, state = tx.update(GRADS, state, PARAMS)
        return updates, state

    def with_numbers(rate: Any, decay: Any) -> Any:
        return gradx.set_hyperparams(tx.init(PARAMS), learning_rate=rate, weight_decay=decay)

    states = jax.vmap(with_numbers)(rates, decays)
    assert gradx.hyperparams(states)["learning_rate"].shape == (3,)
    swept = jax.jit(jax.vmap(three_steps))(states)
    for i in range(3):
        alone = three_steps(with_numbers(rates[i], decays[i]))
        assert_close(jax.tree.map(lambda x, i=i: x[i], swept), alone, rtol=1e-6)
    # A whole sweep can be set at once, and is checked element by element.
    same = gradx.set_hyperparams(states, learning_rate=rates, weight_decay=decays)
    assert_same(same, states)
    with pytest.raises(ValueError, match=r"learning_rate must be in \[0, inf\), got -1.0"):
        gradx.set_hyperparams(states, tx=tx, learning_rate=np.array([0.1, -1.0, 0.1]))


def test_numbers_stay_float32_beside_bfloat16() -> None:
    """Optax's injected b2=0.999 becomes 1.0 there, and the second moment never moves."""
    g = jax.tree.map(lambda x: x.astype(jnp.bfloat16), GRADS)
    constant = gradx.adam(1e-3, b2=0.999)
    expected, reference = constant.update(g, constant.init(HALF), HALF)
    for tx in (
        gradx.tunable(constant),
        gradx.adam(lambda count: 1e-3, b2=lambda count: jnp.float32(0.999)),
        gradx.adam(gradx.from_call("rate"), b2=gradx.scaled(gradx.tunable(0.999), 1.0)),
    ):
        state = tx.init(HALF)
        updates, new = tx.update(g, state, HALF, rate=1e-3)
        assert_same(updates, expected)
        live = gradx.hyperparams(new)
        assert_same(live, gradx.hyperparams(state))
        assert all(v.dtype == jnp.float32 for v in live.values())
        assert all(v == np.float32(0.999) for k, v in live.items() if k.startswith("b2"))
        nus = [x for x in jax.tree.leaves(new) if x.shape == (2, 2)]
        assert_close(nus, [x for x in jax.tree.leaves(reference) if x.shape == (2, 2)], rtol=1e-5)


# ---------------------------------------------------------------- tunable(chain)


def test_a_whole_chain_becomes_live() -> None:
    """Masks, groups, options and schedules stay; every constant number turns."""
    tx = gradx.chain(
        gradx.clip_by_global_norm(1.0),
        gradx.partition(
            {"a": gradx.adamw(0.1, mask=gradx.weights_only), "b": gradx.sgd(ramp, 0.9)},
            gradx.by_path({"kernel": "a"}, default="b"),
        ),
        optax.scale(1.0),
    )
    live = gradx.tunable(tx)
    state = live.init(PARAMS)
    names = ["b1", "b2", "decay", "eps", "eps_root", "learning_rate", "max_norm", "weight_decay"]
    assert sorted(gradx.hyperparams(state)) == names
    assert_close(first_update(live), first_update(tx), rtol=1e-6)
    changed = gradx.set_hyperparams(state, learning_rate=0.2, max_norm=100.0)
    updates, _ = live.update(GRADS, changed, PARAMS)
    bare = gradx.adamw(0.2, mask=gradx.weights_only)
    kernel = {"kernel": PARAMS["kernel"]}
    expected, _ = bare.update({"kernel": GRADS["kernel"]}, bare.init(kernel), kernel)
    assert_close(updates["kernel"], expected["kernel"], rtol=1e-6)
    assert repr(live) == f"tunable({tx!r})"


def test_live_once_is_live_for_good() -> None:
    tx = gradx.sgd(gradx.tunable(0.1, name="rate"), 0.9)
    assert sorted(gradx.hyperparams(gradx.tunable(tx).init(PARAMS))) == ["decay", "rate"]
    twice = gradx.tunable(gradx.tunable(gradx.sgd(0.1)))
    assert list(gradx.hyperparams(twice.init(PARAMS))) == ["learning_rate"]


@gradx.recorded
def mine(
    learning_rate: float | gradx.Hyper,
    momentum: gradx.Hyper | float | None = 0.9,
    decay: typing.Optional[gradx.Hyper] = 0.1,  # noqa: UP045
    betas: tuple[gradx.Hyper, gradx.Hyper] | None = (0.9, 0.99),
    *factors: gradx.Hyper,
    strength: float = 1.0,
) -> gradx.Transform:
    parts = [gradx.scale(x) for x in factors]
    assert betas is not None
    adam = gradx.scale_by_adam(*betas)
    return gradx.chain(
        adam, gradx.add_decayed_weights(decay), *parts, gradx.sgd(learning_rate, momentum)
    )


def test_a_number_is_told_by_what_its_annotation_means() -> None:
    """However it is spelt; a `float` is one that the rule must know before the run."""
    live = gradx.tunable(mine(0.1, 0.9, 0.1, (0.9, 0.99), 2.0, 3.0))
    names = {"learning_rate", "decay", "b1", "b2", "weight_decay", "0/step_size"}
    found = gradx.hyperparams(live.init(PARAMS))
    assert {"learning_rate", "decay", "b1", "b2", "weight_decay"} < set(found)
    assert sorted(float(v) for k, v in found.items() if "step_size" in k) == [2.0, 3.0]
    assert len(found) == len(names) + 1
    assert gradx.hyperparams(gradx.tunable(mine(0.1)).init(PARAMS)).keys() == names - {
        "0/step_size"
    }


def numbers_left(tx: Any) -> list[tuple[str, float]]:
    """The constants in the rules of a transformation of which every number was made live."""
    nodes = [(k, n) for k, s in sources_of(gradx.tunable(tx), params()) for n in s.walk()]
    return [(name, float(node.number)) for name, node in nodes if isinstance(node, Constant)]


FACTORIES = {case.factory: case for case in reversed(cases.CASES)}.values()


@pytest.mark.parametrize("case", FACTORIES, ids=lambda case: case.factory)
def test_no_number_of_a_rule_is_left_out(case: cases.Case) -> None:
    """Where an argument moves a number of a rule, that number is live, whatever the annotation."""
    make = getattr(gradx, case.factory)
    arguments = cases.made(case.kwargs, gradx)
    for name, parameter in inspect.signature(make).parameters.items():
        given = arguments.get(name, parameter.default)
        several = given if isinstance(given, tuple) else (given,)
        if not any(isinstance(x, float) for x in several):
            continue
        left = []
        for by in (0.9, 0.97, 1.01, 1.02, 0.5):  # two of these are in every range
            moved = tuple((x or 0.01) * by if isinstance(x, float) else x for x in several)
            with contextlib.suppress(ValueError):
                new = moved if isinstance(given, tuple) else moved[0]
                left.append(numbers_left(make(**{**arguments, name: new})))
        assert len(left) > 1
        assert left[0] == left[1], name


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        "0.1",
        ramp,
        optax.adam(0.1),
        gradx.from_call("x"),
        gradx.by_path({}, default=1.0),
    ],
)
def test_what_cannot_be_live_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match=r"tunable: value must be a number or a transformation of"):
        gradx.tunable(value)


# ---------------------------------------------------------------- by path


LAYERS = ["layers_0/kernel", "layers_0/bias", "layers_1/kernel", "layers_1/bias", "embed", "head/b"]
PATTERNS = ["layers", "layers_1", "kernel", "bias", "^embed$", "head", "b", r"_\d/", "nothing", "."]


def nested(paths: list[str], leaf: Any) -> Any:
    tree: dict[str, Any] = {}
    for path in paths:
        *outer, name = path.split("/")
        at = tree
        for step in outer:
            at = at.setdefault(step, {})
        at[name] = leaf(path)
    return tree


@given(
    st.lists(st.sampled_from(PATTERNS), unique=True, max_size=5),
    st.lists(st.sampled_from(LAYERS), unique=True, min_size=1),
)
def test_the_first_pattern_that_matches_decides(patterns: list[str], paths: list[str]) -> None:
    """Every leaf gets exactly that pattern's value; the others the default."""
    params = nested(paths, lambda path: jnp.ones(1))
    expected = {}
    for path in paths:
        matching = [i for i, pattern in enumerate(patterns) if re.search(pattern, path)]
        expected[path] = float(matching[0] + 1) if matching else 0.0
    rules = {pattern: float(i + 1) for i, pattern in enumerate(patterns)}
    source = gradx.by_path(rules, default=0.0, optional=True)
    assert source(params) == nested(paths, expected.__getitem__)
    tx = gradx.sgd(source)
    updates, _ = tx.update(params, tx.init(params))
    assert jax.tree.map(lambda u: float(-u[0]), updates) == nested(paths, expected.__getitem__)
    # Strict, it refuses if and only if a pattern decides nothing.
    idle = [p for p, value in rules.items() if value not in expected.values()]
    strict = gradx.by_path(rules, default=0.0)
    if idle:
        with pytest.raises(ValueError, match=re.escape(f"the pattern {idle[0]!r} claims no leaf")):
            gradx.sgd(strict).init(params)
        gradx.sgd(gradx.by_path(rules, default=0.0, optional=idle)).init(params)
    else:
        assert strict(params) == source(params)


def test_by_path_takes_every_other_source() -> None:
    rate = gradx.by_path(
        {
            "bias": gradx.scaled(gradx.tunable(2.0), ramp),
            "kernel": gradx.by_path({"k": gradx.from_call("rate")}, default=0.0),
        }
    )
    assert_close(
        first_update(gradx.sgd(rate), rate=0.5), times({"bias": 0.2, "kernel": 0.5}), rtol=1e-6
    )


def test_live_values_by_path_are_called_by_their_pattern() -> None:
    rate = gradx.by_path({"bias": gradx.tunable(0.1)}, default=gradx.tunable(0.2))
    tx = gradx.sgd(rate)
    state = tx.init(PARAMS)
    assert list(gradx.hyperparams(state)) == ["learning_rate[bias]", "learning_rate[default]"]
    state = gradx.set_hyperparams(state, **{"learning_rate[bias]": 0.7})
    assert_close(tx.update(GRADS, state)[0], times({"bias": 0.7, "kernel": 0.2}), rtol=1e-6)
    with pytest.raises(ValueError, match=r"learning_rate\[bias\] must be in \[0, inf\), got -1.0"):
        gradx.set_hyperparams(state, tx=tx, **{"learning_rate[bias]": -1.0})
    constants = gradx.sgd(gradx.by_path({"bias": 0.1}, default=0.2))
    live = gradx.tunable(constants).init(PARAMS)
    assert list(gradx.hyperparams(live)) == ["learning_rate[bias]", "learning_rate[default]"]


@pytest.mark.parametrize(
    ("args", "kwargs", "match"),
    [
        (({"(": 1.0},), {}, r"'\(' is not a regular expression"),
        (({1: 1.0},), {}, "1 is not a regular expression"),
        (({"a": 1.0},), {"optional": ["b"]}, r"optional must be a list of some .*\['a'\]"),
        (({"a": 1.0},), {"optional": "a"}, "optional must be a list"),
    ],
)
def test_bad_patterns_are_refused_when_they_are_written(args: Any, kwargs: Any, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        gradx.by_path(*args, **kwargs)


def test_patterns_are_checked_against_the_leaves_at_init() -> None:
    rate = gradx.by_path({"bias": 0.1})
    with pytest.raises(ValueError, match=r"sgd > scale_by_learning_rate: .* matches 'kernel' and"):
        gradx.sgd(rate).init(PARAMS)
    rate = gradx.by_path({"bias": 0.1, "norm": 0.2}, default=0.3)
    with pytest.raises(ValueError, match=r"'norm' claims no leaf.*'bias', 'kernel'"):
        gradx.sgd(rate).init(PARAMS)
    with pytest.raises(ValueError, match=r"sgd.*learning_rate\[bias\] must be in .* got -0.1"):
        gradx.sgd(gradx.by_path({"bias": -0.1}, default=0.3))
    with pytest.raises(ValueError, match=r"sgd.*learning_rate\[default\] must be one real number"):
        gradx.sgd(gradx.by_path({"bias": 0.1}, default="0.3"))


# ---------------------------------------------------------------- from the call, and products


def test_numbers_from_the_call() -> None:
    tx = gradx.sgd(gradx.from_call("rate"))
    for value in (0.5, np.float64(0.5), jnp.bfloat16(0.5), jnp.float32(0.5)):
        assert_close(first_update(tx, rate=value), times(0.5), rtol=1e-6)
    assert_close(first_update(tx, rate=2), times(2.0), rtol=1e-6)
    jitted = jax.jit(lambda rate: first_update(tx, rate=rate))
    assert_close(jitted(0.25), times(0.25), rtol=1e-6)


@pytest.mark.parametrize(
    ("extra", "match"),
    [
        ({}, r"update\(updates, state, params, rate=…\); the call gave none\.$"),
        ({"loss": 1.0}, r"the call gave \['loss'\]\.$"),
        ({"rates": 1.0}, "Did you mean 'rate' where the call says 'rates'"),
        ({"rate": jnp.ones(2)}, r"'rate' must be one real number"),
    ],
)
def test_a_number_that_the_call_does_not_give(extra: Any, match: str) -> None:
    with pytest.raises(ValueError, match=match) as raised:
        first_update(gradx.sgd(gradx.from_call("rate")), **extra)
    assert str(raised.value).startswith("sgd > scale_by_learning_rate: ")


@pytest.mark.parametrize("name", ["learning rate", "", 3, None])
def test_a_name_for_the_call_must_be_one(name: Any) -> None:
    with pytest.raises(ValueError, match="from_call: name must be a Python identifier"):
        gradx.from_call(name)


def test_products_of_all_sources() -> None:
    rate = gradx.scaled(
        0.5,
        ramp,
        gradx.tunable(2.0),
        gradx.from_call("factor"),
        gradx.by_path({"bias": 3.0}, default=1.0),
        gradx.scaled(10.0, 0.1),
    )
    tx = gradx.sgd(rate)
    updates = first_update(tx, factor=4.0)
    assert_close(updates, times({"bias": 1.2, "kernel": 0.4}), rtol=1e-6)
    assert list(gradx.hyperparams(tx.init(PARAMS))) == ["learning_rate.factor2"]
    with pytest.raises(ValueError, match="scaled: needs at least one factor"):
        gradx.scaled()
    with pytest.raises(ValueError, match=r"learning_rate.factor1 must be in \[0, inf\), got -1.0"):
        gradx.sgd(gradx.scaled(1.0, -1.0))
    with pytest.raises(ValueError, match=r"b1 must be in \[0, 1\), got 1.8"):
        gradx.adam(0.1, b1=gradx.scaled(0.9, 2.0))  # each factor is fine, the product is not


# ---------------------------------------------------------------- constants of every kind


@pytest.mark.parametrize(
    "value",
    [0.5, np.float32(0.5), np.float64(0.5), np.array(0.5), jnp.float32(0.5), jnp.bfloat16(0.5)],
)
def test_constants_may_be_of_numpy_and_jax(value: Any) -> None:
    assert_same(first_update(gradx.sgd(value)), first_update(gradx.sgd(0.5)))
    assert repr(gradx.sgd(value)) == "sgd(0.5)"


@pytest.mark.parametrize("value", [0.5, np.float32(0.5), np.float64(0.5), jnp.bfloat16(0.5)])
def test_so_may_initial_values(value: Any) -> None:
    state = gradx.sgd(gradx.tunable(value)).init(PARAMS)
    assert_same(gradx.hyperparams(state), {"learning_rate": jnp.float32(0.5)})


def test_whole_numbers_are_numbers() -> None:
    for value in (2, np.int32(2), jnp.asarray(2)):
        assert_same(first_update(gradx.sgd(value)), first_update(gradx.sgd(2.0)))


@first_of("make", [gradx.adam, gradx.sgd, lambda r: gradx.adamw(0.1, weight_decay=r)])
def test_constants_may_be_traced(make: Any) -> None:
    """A transformation made inside jit, vmap or grad, from its arguments; nothing leaks."""

    def update(rate: Any) -> Any:
        return first_update(make(rate))

    with jax.checking_leaks():
        jitted = jax.jit(update)(0.3)
        swept = jax.vmap(update)(jnp.array([0.1, 0.3]))
    assert_close(jitted, update(0.3), rtol=1e-6)
    assert_close(jax.tree.map(lambda x: x[1], swept), update(0.3), rtol=1e-6)
    slope = jax.grad(lambda rate: update(rate)["bias"][0])(0.3)
    difference = (update(0.4)["bias"][0] - update(0.2)["bias"][0]) / 0.2
    np.testing.assert_allclose(slope, difference, rtol=1e-5)
    # The caches that were filled with tracers serve no later call.
    assert_same(jax.jit(update)(0.3), jitted)


def test_a_traced_constant_shows_its_type() -> None:
    shown = []
    jax.jit(lambda rate: shown.append(repr(gradx.adam(rate))) or rate)(0.1)
    assert shown == ["adam(<traced float32[]>)"]


# ---------------------------------------------------------------- weight decay, three ways


@pytest.mark.parametrize("make", [gradx.adamw, gradx.lion, gradx.adamaxw, gradx.nadamw])
@pytest.mark.parametrize(
    ("decay", "factor"), [("learning_rate", 0.3 * 0.8), ("schedule", 0.8), ("independent", 1.0)]
)
def test_kinds_of_weight_decay(make: Any, decay: str, factor: float) -> None:
    """At the third update the shape is 0.8 and the peak 0.3: what lambda is multiplied by."""
    rate = gradx.scaled(0.3, lambda count: 1.0 - 0.1 * count)
    with_decay, without = make(rate, weight_decay=0.5, decay=decay), make(rate, weight_decay=0.0)
    state, bare = with_decay.init(PARAMS), without.init(PARAMS)
    for _ in range(3):
        updates, state = with_decay.update(GRADS, state, PARAMS)
        plain, bare = without.update(GRADS, bare, PARAMS)
    expected = jax.tree.map(lambda u, p: u - factor * 0.5 * p, plain, PARAMS)
    assert_close(updates, expected, rtol=1e-6)


def test_the_schedule_kind_has_to_know_the_peak() -> None:
    for rate in (ramp, gradx.by_path({"bias": ramp}, default=0.1)):
        with pytest.raises(
            ValueError, match=r"adamw: decay='schedule'.*scaled\(peak_value, shape\)"
        ):
            gradx.adamw(rate, decay="schedule")
    # Without a schedule there is nothing to multiply by.
    for rate in (0.1, gradx.tunable(0.1), gradx.scaled(0.1, gradx.tunable(1.0))):
        decayed = gradx.adamw(rate, weight_decay=0.5, decay="schedule")
        independent = gradx.adamw(rate, weight_decay=0.5, decay="independent")
        assert_same(first_update(decayed), first_update(independent))


def test_weight_decay_by_path_and_by_mask_agree() -> None:
    by_path = gradx.adamw(0.1, weight_decay=gradx.by_path({"bias": 0.0}, default=0.5))
    for mask in (gradx.weights_only, {"bias": False, "kernel": True}):
        masked = gradx.adamw(0.1, weight_decay=0.5, mask=mask)
        assert_close(first_update(by_path), first_update(masked), rtol=1e-6)
    with pytest.raises(ValueError, match=r"weight_decay\[bias\] must be in \[0, inf\), got -1.0"):
        gradx.adamw(0.1, weight_decay=gradx.by_path({"bias": -1.0}, default=0.5))


def test_what_optax_made_has_no_known_range() -> None:
    """Its factories check nothing, so that with `tx` less would be checked than without it."""
    tx = gradx.inject_hyperparams(optax.adam)(0.1)
    with pytest.raises(ValueError, match="the range of learning_rate is not known"):
        gradx.set_hyperparams(tx.init(jnp.ones(2)), tx=tx, learning_rate=np.nan)


def test_the_state_of_another_injection_is_refused() -> None:
    state = gradx.inject_hyperparams(gradx.scale_by_adam)(0.9).init(jnp.ones(2))
    tx = gradx.inject_hyperparams(gradx.scale_by_adam, static_args=("b2",))(0.9)
    with pytest.raises(ValueError, match="the state is not one of"):
        gradx.set_hyperparams(state, tx=tx, b1=0.5)


def test_numbers_in_a_list_become_live_like_those_in_a_tuple() -> None:
    names = [
        set(gradx.hyperparams(gradx.tunable(gradx.prodigy(betas=betas)).init(jnp.ones(2))))
        for betas in ((0.8, 0.99), [0.8, 0.99])
    ]
    assert {"b1", "b2"} < names[0] == names[1]


# ---------------------------------------------------------------- every number of a chain


def numbers_after(tx: Any, steps: int, **extra: Any) -> dict[str, float]:
    state = tx.init(PARAMS)
    for _ in range(steps):
        _, state = tx.update(PARAMS, state, PARAMS, **extra)
    found = gradx.hyperparams(state, tx=tx)
    assert {x.dtype for x in found.values()} <= {jnp.dtype(jnp.float32)}
    return {name: round(float(x), 5) for name, x in found.items()}


ramp_down = gradx.linear_schedule(1.0, 0.0, 4)
CHAINS: list[tuple[Any, dict[str, float]]] = [
    (
        gradx.chain(gradx.clip(2.0), gradx.sgd(ramp_down, 0.5)),
        {"max_delta": 2.0, "decay": 0.5, "learning_rate": 0.75},
    ),
    (
        gradx.sgd(gradx.scaled(ramp_down, gradx.by_path({"bias": 2.0}, default=1.0))),
        {"learning_rate[bias]": 1.5, "learning_rate[default]": 0.75},
    ),
    (
        gradx.chain(gradx.sgd(gradx.tunable(0.1)), gradx.sgd(0.2)),
        {"0/1/learning_rate": 0.1, "1/1/learning_rate": 0.2},
    ),
    (
        gradx.partition(
            {"a": gradx.sgd(0.1), "b": gradx.sgd(0.2)}, gradx.by_path({"bias": "a"}, default="b")
        ),
        {"a/learning_rate": 0.1, "b/learning_rate": 0.2},
    ),
    (gradx.inject_hyperparams(gradx.sgd)(ramp_down), {"learning_rate": 0.75}),
    (gradx.MultiSteps(gradx.sgd(ramp_down), 2), {"learning_rate": 1.0}),
    (gradx.chain(optax.clip(1.0), gradx.sgd(0.1)), {"learning_rate": 0.1}),
    (gradx.masked(gradx.sgd(0.1), {"bias": True, "kernel": False}), {"learning_rate": 0.1}),
]


@pytest.mark.parametrize(("tx", "expected"), CHAINS, ids=[str(tx)[:30] for tx, _ in CHAINS])
def test_every_number_of_a_chain(tx: Any, expected: dict[str, float]) -> None:
    assert numbers_after(tx, 2) == expected


def test_the_chain_may_be_the_optimizer_of_a_larger_state() -> None:
    tx = gradx.sgd(ramp_down)
    assert gradx.hyperparams({"opt_state": tx.init(PARAMS)}, tx=tx) == {"learning_rate": 1.0}


def test_before_the_first_update_a_schedule_has_its_first_value() -> None:
    assert numbers_after(gradx.sgd(ramp_down), 0) == {"learning_rate": 1.0}
    assert numbers_after(gradx.sgd(gradx.from_call("rate")), 1, rate=0.1) == {}


@pytest.mark.parametrize("case", cases.CASES, ids=lambda case: case.id)
def test_the_numbers_of_every_row_are_found(case: cases.Case) -> None:
    """There is a number of the name of each live value."""
    tx = gradx.tunable(case.make())
    state = tx.init(PARAMS)
    known, live = (
        Counter(name.rpartition("/")[2] for name in found)
        for found in (gradx.hyperparams(state, tx=tx), gradx.hyperparams(state))
    )
    assert known >= live


def test_numbers_of_another_state_are_refused() -> None:
    with pytest.raises(ValueError, match="hyperparams: the state is not one of"):
        gradx.hyperparams(gradx.adam(0.1).init(PARAMS), tx=gradx.sgd(0.1, 0.9))
    with pytest.raises(ValueError, match="tx must be a transformation of gradx"):
        gradx.hyperparams(gradx.adam(0.1).init(PARAMS), tx=optax.adam(0.1))  # type: ignore[arg-type]
