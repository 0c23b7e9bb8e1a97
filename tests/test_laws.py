"""The laws: each holds for every row of the table in `cases.py`."""

from __future__ import annotations

import functools
import inspect
import json
import pickle
from typing import Any

import cases
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import references
from cases import CASES, OPTIMIZERS, Case, each
from problems import (
    STEPS,
    assert_close,
    assert_same,
    bowl,
    distance,
    gradients,
    params,
    step,
    trajectory,
    valley,
)

import gradx
from gradx import calls, hyper, sources
from gradx.sources import Tunable

P = jax.sharding.PartitionSpec

every_case = each(CASES)
every_case_of_optax = each(case for case in CASES if case.in_optax)
every_optimizer = each(OPTIMIZERS)
every_complex_case = each(case for case in CASES if case.complex)


def first(stacked: Any, i: int = 0) -> Any:
    return jax.tree.map(lambda x: x[i], stacked)


def reference_of(case: Case) -> Any:
    return case.make(references, **({} if case.value is None else {"value": case.value}))


def reference_trajectory(case: Case, dtype: Any) -> list[Any]:
    flat, treedef = jax.tree.flatten(params(dtype))
    grads = jax.tree.leaves(gradients(dtype))
    after = references.run(reference_of(case), flat, [[g[i] for g in grads] for i in range(STEPS)])
    return [treedef.unflatten(p) for p in after]


# ---------------------------------------------------------------- the right numbers


@functools.cache
def twenty_steps(case: Case, library: Any, dtype: Any) -> Any:
    """The parameters after each step, which several laws compare with something."""
    p, g = params(dtype), gradients(dtype)
    if library is optax and not case.scalars_in_optax:
        p, g = p["dense"], g["dense"]
    with jax.enable_x64(dtype == np.float64):
        return jax.tree.map(np.asarray, trajectory(case.ready(library), p, g))


@every_case
def test_matches_the_papers_in_float64(case: Case) -> None:
    expected = reference_trajectory(case, np.float64)
    actual = twenty_steps(case, gradx, np.float64)
    assert all(x.dtype == np.float64 for x in jax.tree.leaves(actual))
    for i in (0, 1, STEPS - 1):
        assert_close(first(actual, i), expected[i], rtol=1e-10)


@every_case
def test_matches_the_papers_in_float32(case: Case) -> None:
    actual = twenty_steps(case, gradx, np.float32)
    assert_close(first(actual, STEPS - 1), reference_trajectory(case, np.float64)[-1], rtol=2e-6)


@every_case
def test_the_first_updates_match_the_papers_in_float32(case: Case) -> None:
    """Where bias corrections matter, and 1 - b**t has lost four digits."""
    p, g = params(), gradients(steps=2)
    flat, treedef = jax.tree.flatten(p)
    sequence = [jax.tree.leaves(first(g, i)) for i in range(2)]
    expected = references.updates(reference_of(case), flat, sequence)
    tx = case.ready()
    state = tx.init(p)
    for i in range(2):
        updates, state = tx.update(first(g, i), state, p)
        assert_close(updates, treedef.unflatten(expected[i]), rtol=5e-6)
        p = jax.tree.map(lambda x, u: x + u, p, updates)


@every_complex_case
def test_matches_the_papers_for_complex_numbers(case: Case) -> None:
    actual = trajectory(case.ready(), params(np.complex64), gradients(np.complex64))
    assert_close(first(actual, STEPS - 1), reference_trajectory(case, np.complex128)[-1], rtol=5e-6)


@every_case_of_optax
def test_agrees_with_optax(case: Case) -> None:
    """The same algorithm, which float64 shows; and the same numbers in float32, to 2e-6 beyond
    what Optax in float32 is away from itself in float64.

    (Its bias corrections are: 1 - b2**t loses four digits of float32 in the first steps.)
    """
    ours, theirs = (
        {dtype: first(twenty_steps(case, library, dtype), -1) for dtype in (np.float32, np.float64)}
        for library in (gradx, optax)
    )
    p = params()
    if not case.scalars_in_optax:
        p, ours = p["dense"], {dtype: tree["dense"] for dtype, tree in ours.items()}
    assert_close(ours[np.float64], theirs[np.float64], rtol=1e-6 if case.narrow_in_optax else 1e-10)
    beyond = distance(theirs[np.float32], theirs[np.float64])
    assert_close(ours[np.float32], theirs[np.float32], rtol=2e-6 + beyond)
    ours, theirs = case.ready().init(p), case.ready(optax).init(p)
    assert paths_and_types(ours) == paths_and_types(theirs)


def paths_and_types(state: Any) -> list[Any]:
    found, _ = jax.tree_util.tree_flatten_with_path(state)
    return [(jax.tree_util.keystr(path), x.shape, x.dtype) for path, x in found]


@every_optimizer
@pytest.mark.parametrize("problem", [bowl, valley])
def test_converges(case: Case, problem: Any) -> None:
    steps = 400
    rate = case.kwargs["learning_rate"]
    tx = case.ready(
        learning_rate=rate if case.constant_rate else gradx.cosine_decay_schedule(rate, steps)
    )

    @jax.jit
    def left(start: Any) -> Any:
        def body(carry: Any, _: Any) -> Any:
            extra = {} if case.value is None else {"value": problem(carry[0])}
            return step(tx, *carry, jax.grad(problem)(carry[0]), **extra), None

        end = jax.lax.scan(body, (start, tx.init(start)), length=steps)[0][0]
        return problem(end) / problem(start)

    assert left(jax.tree.map(lambda x: x * np.float32(0.5), params())) < 3e-3


# ---------------------------------------------------------------- the state keeps its type


def types(tree: Any) -> Any:
    return [(x.shape, x.dtype, x.weak_type) for x in jax.tree.leaves(tree)]


@every_case
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_state_and_updates_keep_their_types(case: Case, dtype: Any) -> None:
    tx = case.ready()
    p = jax.tree.map(lambda x: jnp.asarray(x, dtype), params())
    state = tx.init(p)
    updates, new = jax.eval_shape(tx.update, p, state, p)
    assert jax.tree.structure(new) == jax.tree.structure(state)
    assert types(new) == types(state)
    assert {x.dtype for x in jax.tree.leaves(updates)} == {jnp.dtype(dtype)}
    floats = {x.dtype for x in jax.tree.leaves(state) if jnp.issubdtype(x.dtype, jnp.floating)}
    assert floats <= {jnp.dtype(jnp.float32), *([jnp.dtype(dtype)] if case.keeps_params else [])}


@every_case
def test_one_trace_one_result_however_it_is_run(case: Case) -> None:
    """jit, donated buffers, scan, vmap, pmap and shard_map all do the same."""
    tx = case.ready()
    traces = []

    def traced(p: Any, s: Any, g: Any) -> Any:
        traces.append(1)
        return step(tx, p, s, g)

    jitted = jax.jit(traced, donate_argnums=(0, 1))
    g = gradients(steps=3)
    p, s = jax.tree.map(jnp.array, params()), tx.init(params())
    for i in range(3):
        p, s = jitted(p, s, first(g, i))
    assert len(traces) == 1
    once = (p, s)

    assert_close(first(twenty_steps(case, gradx, np.float32), 2), p, rtol=1e-6)

    def three(p: Any, g: Any) -> Any:
        return jax.lax.scan(lambda now, g: (step(tx, *now, g), None), (p, tx.init(p)), g)[0]

    # Eight replicas with different parameters, the last with those of `once`.
    n = jax.device_count()
    size = (np.arange(n) + 1.0) / n
    many = jax.tree.map(lambda x: np.stack([x * np.float32(c) for c in size]), params())
    many_g = jax.tree.map(lambda x: np.stack([x] * n), g)
    over_batch = jax.device_get(jax.jit(jax.vmap(three))(many, many_g))
    assert_close(first(over_batch, n - 1), once, rtol=1e-6)

    over_devices = jax.device_get(jax.pmap(three)(many, many_g))
    assert_close(over_devices, over_batch, rtol=1e-6)

    def shard(p: Any, g: Any) -> Any:
        p, g = first(p), first(g)
        s = tx.init(p)
        for i in range(3):  # not in a scan: what the state begins with is the same on all devices
            p, s = step(tx, p, s, first(g, i))
        return jax.tree.map(lambda x: x[None], (p, s))

    mesh = jax.make_mesh((n,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    sharded = jax.jit(jax.shard_map(shard, mesh=mesh, in_specs=P("d"), out_specs=P("d")))
    assert_close(jax.device_get(sharded(many, many_g)), over_batch, rtol=1e-6)


@functools.cache
def memory(case: Case, library: Any) -> tuple[int, float]:
    """The donated bytes that a step does not reuse; its temporaries, in arrays like a parameter."""
    tx = case.ready(library)
    p = {"w": jax.ShapeDtypeStruct((64, 256), jnp.float32)}
    s = jax.eval_shape(tx.init, p)
    jitted = jax.jit(lambda p, s, g: step(tx, p, s, g), donate_argnums=(0, 1))
    used = jitted.lower(p, s, p).compile().memory_analysis()
    donated = gradx.state_bytes((p, s))
    return donated - used.alias_size_in_bytes, used.temp_size_in_bytes / (64 * 256 * 4)


@every_case
def test_buffers_are_reused_and_temporaries_counted(case: Case) -> None:
    not_reused, temporaries = memory(case, gradx)
    assert not_reused <= 4  # a scalar that is only written needs no buffer to reuse
    assert temporaries <= case.temporaries + 0.05


@every_case_of_optax
def test_no_more_temporaries_than_optax(case: Case) -> None:
    assert memory(case, gradx)[1] <= memory(case, optax)[1] + 0.01


@every_case
def test_the_state_is_sharded_like_the_parameters(case: Case) -> None:
    mesh = jax.make_mesh((jax.device_count(),), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.sharding.NamedSharding(mesh, P("d"))
    p = jax.device_put(jnp.ones((16, 4)), sharding)
    tx = case.ready()
    state = tx.init(p)
    updates, new = jax.jit(tx.update)(p, state, p)
    for x in jax.tree.leaves((updates, state, new)):
        assert x.shape != p.shape or x.sharding.is_equivalent_to(sharding, x.ndim)


# ---------------------------------------------------------------- odd trees and numbers


@every_case
def test_odd_trees(case: Case) -> None:
    tx = case.ready()
    odd = {
        "none": None,
        "empty": jnp.ones((0, 3)),
        "scalar": jnp.ones(()),
        "deep": [(jnp.ones(2),)],
    }
    updates, state = tx.update(odd, tx.init(odd), odd)
    assert jax.tree.structure(updates) == jax.tree.structure(odd)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((updates, state)))
    assert tx.update({}, tx.init({}), {})[0] == {}


@every_case
def test_a_leaf_without_gradient_is_left_alone(case: Case) -> None:
    tx = case.ready()
    p = {"a": jnp.ones(2), "b": jnp.full(3, 0.5)}
    updates, state = tx.update({"a": None, "b": jnp.ones(3)}, tx.init(p), p)
    assert updates["a"] is None
    alone, alone_state = tx.update({"b": jnp.ones(3)}, tx.init({"b": p["b"]}), {"b": p["b"]})
    assert_same(updates["b"], alone["b"])
    fresh = [x for x in jax.tree.leaves(tx.init(p)) if x.shape == (2,)]
    assert_same([x for x in jax.tree.leaves(state) if x.shape == (2,)], fresh)
    # What `state` has for the leaf `a` is the only difference from a state without it.
    assert types(alone_state) == types(tx.init({"b": p["b"]}))


@every_case
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("size", [0.0, 1e-30, 1e4, 1e15])
def test_extreme_gradients_stay_finite(case: Case, dtype: Any, size: float) -> None:
    """Zero gradients too: no 0/0, in any dtype."""
    tx = case.ready()
    p = {"w": jnp.asarray([1.0, -2.0], dtype), "x": jnp.zeros((), dtype)}
    g = jax.tree.map(lambda x: jnp.full_like(x, min(size, float(jnp.finfo(dtype).max) / 4)), p)
    state = tx.init(p)
    for _ in range(2):
        updates, state = tx.update(g, state, p)
        assert all(np.isfinite(x).all() for x in jax.tree.leaves((updates, state)))


@every_case
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_is_only_storage(case: Case, dtype: Any) -> None:
    """The arithmetic is that of float32: rounding happens once, at the end."""
    tx = case.ready()
    p = jax.tree.map(lambda x: jnp.asarray(x, dtype), params())
    g = jax.tree.map(lambda x: jnp.asarray(x, dtype), first(gradients()))
    wide = lambda tree: jax.tree.map(lambda x: x.astype(jnp.float32), tree)
    half, half_state = tx.update(g, tx.init(p), p)
    full, full_state = tx.update(wide(g), tx.init(wide(p)), wide(p))
    assert_same(half, jax.tree.map(lambda x: x.astype(dtype), full))
    if case.keeps_params:
        half_state = jax.tree.map(lambda x: wide(x) if x.dtype == dtype else x, half_state)
    # Two programs: XLA may join a product and a sum, with one rounding, in only one of them.
    assert_same(half_state, full_state, ulps=1)


# ---------------------------------------------------------------- where numbers come from


def three_steps(tx: Any, **extra: Any) -> Any:
    return trajectory(tx, params(), gradients(steps=3), **extra)


def as_constants(case: Case) -> Any:
    """Three steps of a row as it stands, which several laws compare with."""
    return jax.tree.map(lambda x: x[:3], twenty_steps(case, gradx, np.float32))


def numbers_of(case: Case) -> dict[str, float]:
    """The hyperparameters of a row, with their values."""
    return {
        name: value
        for name, value in given_numbers(case, sources.takes_number)
        if isinstance(value, float)
    }


def given_numbers(case: Case, takes: Any) -> list[tuple[str, Any]]:
    parameters = calls.signature(getattr(gradx, case.factory)).parameters
    return [
        (name, case.kwargs.get(name, parameter.default))
        for name, parameter in parameters.items()
        if takes(parameter.annotation)
    ]


@every_case
def test_numbers_are_the_same_wherever_they_come_from(case: Case) -> None:
    """Each number here is the product of its value, which the call gives, and all other sources."""
    numbers = numbers_of(case)

    def by_path(value: float) -> Any:
        return gradx.by_path({"bias": value, ".": value}, optional=True)

    if case.whole_tree:
        with pytest.raises(ValueError, match="one number for the whole tree"):
            case.ready(**{name: by_path(value) for name, value in numbers.items()})
    others = [gradx.tunable(1.0), lambda count: 1.0 + 0.0 * count]
    others += [] if case.whole_tree else [by_path(1.0)]
    tx = case.ready(**{name: gradx.scaled(gradx.from_call(name), *others) for name in numbers})
    given = {name: jnp.float32(value) for name, value in numbers.items()}
    assert_close(three_steps(tx, **given), as_constants(case), rtol=5e-6)


def how_many_numbers(case: Case) -> int:
    inner = [v for v in case.kwargs.values() if isinstance(v, Case)]
    tuples = [value for _, value in given_numbers(case, sources.takes_numbers)]
    return len(numbers_of(case)) + sum(map(len, tuples)) + sum(map(how_many_numbers, inner))


def sources_of(tx: Any, p: Any) -> list[tuple[str, Any]]:
    """Every source in the rules of a transformation, whatever its factory's signature says."""
    if tx.parts is None:
        rules = getattr(tx.stage, "rules", [tx.stage])
        hypers = [rule.hypers for rule in rules if hasattr(rule, "hypers")]
        return [source for numbers in hypers for source in numbers.sources.items()]
    parts = tx.parts(p, jax.eval_shape(tx.init, p))
    return [source for part in parts for source in sources_of(part.transform, part.params)]


@every_case
def test_every_number_can_be_made_live(case: Case) -> None:
    tx = gradx.tunable(case.make())
    values = gradx.hyperparams(tx.init(params()))
    assert len(values) == how_many_numbers(case) + case.copies
    taken = inspect.signature(getattr(gradx, case.factory)).parameters
    live, constant = set(), set()
    for name, source in sources_of(tx, params()):
        is_live = any(isinstance(node, Tunable) for node in source.walk())
        (live if is_live else constant).add(name)
    assert not (constant - live) & set(taken)  # an alias may keep to itself what its parts take
    assert_close(three_steps(case.bind(tx)), as_constants(case), rtol=5e-6)


# ---------------------------------------------------------------- in other people's hands


@every_case
def test_inside_an_optax_chain(case: Case) -> None:
    theirs = optax.chain(optax.identity(), case.ready(), optax.scale(1.0))
    assert_close(three_steps(theirs), as_constants(case), rtol=1e-6)


@every_optimizer
def test_in_a_flax_train_state(case: Case) -> None:
    from flax.training.train_state import TrainState

    state = TrainState.create(apply_fn=None, params=params(), tx=case.ready())
    g = gradients(steps=3)
    apply = jax.jit(lambda state, g: state.apply_gradients(grads=g))
    for i in range(2):
        state = apply(state, first(g, i))
    assert_close(state.params, first(as_constants(case), 1), rtol=1e-6)


@every_optimizer
def test_in_an_nnx_optimizer(case: Case) -> None:
    from flax import nnx

    class Model(nnx.Module):
        def __init__(self) -> None:
            self.dense = nnx.Dict(jax.tree.map(nnx.Param, params()["dense"]))
            self.scale = nnx.Param(params()["scale"])
            self.steps = nnx.BatchStat(jnp.zeros((), jnp.int32))  # not for the optimizer

    model = Model()
    optimizer = nnx.Optimizer(model, case.ready(), wrt=nnx.Param)
    like_a_model = jax.tree.structure(nnx.state(model, nnx.Param)).unflatten
    for i in range(2):
        optimizer.update(model, like_a_model(jax.tree.leaves(first(gradients(), i))))
    assert_close(nnx.state(model, nnx.Param), first(as_constants(case), 1), rtol=1e-6)


@every_case
def test_saved_and_restored_it_continues_bit_for_bit(case: Case) -> None:
    from flax import serialization

    tx = case.ready()
    g = gradients(steps=2)
    jitted = jax.jit(lambda p, s, g: step(tx, p, s, g))
    p, s = jitted(params(), tx.init(params()), first(g))
    saved = serialization.to_bytes((p, s))
    restored = serialization.from_bytes((params(), tx.init(params())), saved)
    assert_same(jitted(*restored, first(g, 1)), jitted(p, s, first(g, 1)))
    assert_same(pickle.loads(pickle.dumps(s)), s)


# ---------------------------------------------------------------- a description of itself


@every_case
def test_repr_and_config_make_it_again(case: Case) -> None:
    tx = case.make()
    again = [
        eval(repr(tx), {**vars(cases), **vars(gradx)}),
        gradx.from_config(json.loads(json.dumps(gradx.to_config(tx)))),
        pickle.loads(pickle.dumps(tx)),
    ]
    for other in again:
        assert other == tx
        assert hash(other) == hash(tx)
        assert repr(other) == repr(tx)
    assert tx != gradx.chain(tx)


@every_case
def test_describe_accounts_for_the_whole_state(case: Case) -> None:
    tx = gradx.chain(gradx.identity(), case.make())
    table = gradx.describe(tx, params())
    assert table.rows[0].state.total() == gradx.state_bytes(tx.init(params()))
    assert case.factory in str(table)
    assert case.factory in table._repr_html_()


# ---------------------------------------------------------------- bad input


NEVER_A_NUMBER = [
    float("nan"),
    "0.1",
    [0.1],
    True,
    False,
    1j,
    jnp.ones(2),
    lambda count: jnp.ones(3),
]

BORDERS = (-float("inf"), -1.0, -0.1, 0.0, 0.5, 1.0, 1.5, 5.0, float("inf"))


@every_case
def test_bad_numbers_are_refused_by_name(case: Case) -> None:
    """And good ones are not: each number has the range of its name, or the one in the row."""
    for name in numbers_of(case):
        allowed = hyper.Interval(case.ranges.get(name) or hyper.RANGES[name])
        for value in BORDERS:
            if value in allowed:
                case.make(**{name: value})
        for value in [*NEVER_A_NUMBER, *(x for x in BORDERS if x not in allowed)]:
            with pytest.raises(ValueError, match=case.factory) as raised:
                case.make(**{name: value})
            assert case.renamed.get(name, name) in str(raised.value)
    for name, value in case.bad.items():
        with pytest.raises(ValueError, match=name):
            case.make(**{name: value})


@every_case
def test_bad_trees_are_refused_by_path(case: Case) -> None:
    tx = case.ready()
    good = params()
    state = tx.init(good)
    with pytest.raises(ValueError, match="scale"):
        tx.update({"dense": good["dense"]}, state, good)
    with pytest.raises(ValueError, match="dense/kernel"):
        tx.init({"dense": {"kernel": jnp.arange(3)}})
    with pytest.raises(ValueError, match="dense/kernel"):
        tx.init({"dense": {"kernel": "a string"}})
    with pytest.raises(ValueError, match="dense/kernel"):
        tx.update({**good, "dense": {**good["dense"], "kernel": jnp.arange(3)}}, state, good)


@every_case
def test_forgotten_params_name_the_transform(case: Case) -> None:
    tx = case.ready()
    if case.needs_params:
        with pytest.raises(ValueError, match=rf"{case.factory}.*needs the parameters"):
            tx.update(params(), tx.init(params()))
    else:
        updates, _ = tx.update(params(), tx.init(params()))
        assert jax.tree.structure(updates) == jax.tree.structure(params())
