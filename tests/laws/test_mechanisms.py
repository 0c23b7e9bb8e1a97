"""The laws about a mechanism: what the library does around an algorithm's arithmetic.

How it is run, what becomes of buffers, where numbers come from, and how it works in other people's
hands. Each runs on the representatives of all mechanisms (see `mechanisms.py`), and on the other
rows of the table under ``-m full``.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import pickle
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases import CASES, Case, each
from compilers import counts_buffers
from mechanisms import (
    OF_A_MATRIX_RULE,
    OF_A_RULE,
    OF_NEITHER,
    OF_RENEWAL,
    each_mechanism,
    every_mechanism,
    every_optimizer_mechanism,
    mechanisms,
    representatives,
    table,
)
from problems import assert_close, assert_same, gradients, params, step
from runs import (
    NARROW_STEPS,
    as_constants,
    first,
    given_numbers,
    numbers_of,
    plain_steps,
    sources_of,
    three_steps,
)

import gradx
from gradx.lift.batching import How
from gradx.lift.matrixwise import MatrixRule
from gradx.numbers import sources
from gradx.numbers.sources import Tunable

P = jax.sharding.PartitionSpec

every_mechanism_of_optax = each_mechanism(case for case in CASES if case.in_optax)


def test_every_mechanism_has_a_representative() -> None:
    """Which classes there are, and who stands for them: `python tests/mechanisms.py`."""
    covered = {m for case in CASES if case.id in representatives() for m in mechanisms(case)}
    assert covered == set(table())
    assert len(representatives()) < len(CASES) / 4  # each costs seconds


def test_no_feature_of_the_lift_is_overlooked() -> None:
    """A new one is told in `mechanisms.py`; and a new class of stages needs a row."""
    told = {*OF_A_RULE, *OF_A_MATRIX_RULE, *OF_RENEWAL, *OF_NEITHER}
    fields = {f.name for f in dataclasses.fields(MatrixRule)}
    assert {*fields, *How._fields} == told
    modules = [m for name, m in sys.modules.items() if name.startswith("gradx.")]
    stages = {
        x.__name__
        for module in modules
        for x in vars(module).values()
        if inspect.isclass(x) and inspect.isfunction(getattr(x, "begin", None))
    }
    # The protocol itself, and what `mechanize` makes of a foreign optimizer inside an update.
    assert stages - set(table()) == {"Stage"}


# ---------------------------------------------------------------- however it is run


class Compiled:
    """The step of a row as a training loop has it: one program, which is given its buffers."""

    def __init__(self, case: Case) -> None:
        self.traces = 0
        tx = case.ready()

        def traced(p: Any, s: Any, g: Any) -> Any:
            self.traces += 1
            return step(tx, p, s, g)

        self.jitted = jax.jit(traced, donate_argnums=(0, 1))

    def __call__(self, p: Any, s: Any, g: Any) -> Any:
        """On copies, so that what is given can be looked at afterwards."""
        return self.jitted(*jax.tree.map(jnp.array, (p, s)), g)


compiled = functools.cache(Compiled)


N = 2  # replicas


def replicas() -> tuple[Any, Any]:
    """Two leaves with other parameters for each, the last with those that are given; and three
    gradients."""
    size = (np.arange(N) + 1.0) / N
    many = jax.tree.map(lambda x: np.stack([x * np.float32(c) for c in size]), params()["dense"])
    return many, stacked(gradients(steps=3)["dense"])


def stacked(tree: Any) -> Any:
    return jax.tree.map(lambda x: np.stack([x] * N), tree)


def three(tx: Any, p: Any, g: Any) -> Any:
    return jax.lax.scan(lambda now, g: (step(tx, *now, g), None), (p, tx.init(p)), g)[0]


def last_replica(tx: Any) -> Any:
    """Its parameters and state after three steps, operation by operation."""
    with jax.disable_jit():
        return three(tx, *jax.tree.map(jnp.asarray, [first(x, -1) for x in replicas()]))


@every_mechanism
def test_one_trace_one_result_however_it_is_run(case: Case) -> None:
    """jit, donated buffers, and vmap in shard_map all do what single operations do."""
    tx = case.ready()
    p, s = params(), tx.init(params())
    after = []
    for i in range(NARROW_STEPS):
        p, s = compiled(case)(p, s, first(gradients(), i))
        after.append(jax.device_get((p, s)))
    assert compiled(case).traces == 1
    plain = plain_steps(case, gradx, np.float32)[0]
    assert_close(after[2][0], plain[2], rtol=1e-6)
    assert_close(after[-1][0], plain[-1], rtol=2e-6)

    # On two devices, each with a batch of both replicas.
    def on_device(*given: Any) -> Any:
        made = jax.vmap(functools.partial(step, tx))(*map(first, given))
        return jax.tree.map(lambda x: x[None], made)

    mesh = jax.make_mesh((N,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    sharded = jax.jit(jax.shard_map(on_device, mesh=mesh, in_specs=P("d"), out_specs=P("d")))
    many, g = replicas()
    p, s = map(stacked, (many, jax.vmap(tx.init)(many)))
    for i in range(3):
        p, s = sharded(p, s, stacked(jax.tree.map(lambda x, i=i: x[:, i], g)))
    made = jax.device_get((p, s))
    assert_same(first(made, 1), first(made))
    assert_close(first(first(made), -1), last_replica(tx), rtol=1e-6)


@pytest.mark.full
@each(CASES)
def test_scan_in_vmap_in_pmap(case: Case) -> None:
    """Too, for which JAX has shard_map; `test_numbers_are_the_same_wherever_they_come_from` scans
    alone."""
    tx = case.ready()
    run = jax.pmap(jax.vmap(functools.partial(three, tx)))
    made = jax.device_get(run(*map(stacked, replicas())))
    assert_same(first(made, 1), first(made))
    assert_close(first(first(made), -1), last_replica(tx), rtol=1e-6)


@pytest.mark.full
@each(CASES)
def test_a_state_that_varies_can_be_carried(case: Case) -> None:
    """A scan inside shard_map wants the types of the carry back: nothing may become the same on all
    devices by being a constant. Types alone, nothing is compiled."""
    tx = case.ready()
    mesh = jax.make_mesh((2,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))

    def run(x: Any) -> Any:
        p, state = jax.tree.map(
            lambda y: jax.lax.pcast(y, ("d",), to="varying"), (params(), tx.init(params()))
        )
        return jax.lax.scan(lambda c, _: (step(tx, *c, c[0]), None), (p, state), length=2)[0]

    spec = jax.sharding.PartitionSpec("d")
    mapped = jax.shard_map(
        lambda x: jax.tree.map(lambda y: y[None], run(x)), mesh=mesh, in_specs=spec, out_specs=spec
    )
    carried = jax.eval_shape(mapped, jnp.zeros(2))
    assert jax.tree.structure(carried[1]) == jax.tree.structure(tx.init(params()))


@every_optimizer_mechanism
def test_a_closed_gate_leaves_it_as_it_is(case: Case) -> None:
    """Bit for bit, with NaN gradients; and an open one does what the optimizer does."""
    wrapped = gradx.apply_if_finite(case.ready(), 1)
    jitted = jax.jit(functools.partial(step, wrapped))
    p, state = jitted(params(), wrapped.init(params()), first(gradients()))
    broken = jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), params())
    same_p, same = jitted(p, state, broken)
    assert_same(same_p, p)
    assert_same(same.inner_state, state.inner_state)
    assert int(same.notfinite_count) == int(same.total_notfinite) == 1
    assert not same.last_finite
    p, state = jitted(same_p, same, first(gradients(), 1))
    assert_close(p, plain_steps(case, gradx, np.float32)[0][1], rtol=1e-6)
    assert int(state.notfinite_count) == 0


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


@counts_buffers
@every_mechanism
def test_buffers_are_reused_and_temporaries_counted(case: Case) -> None:
    not_reused, temporaries = memory(case, gradx)
    assert not_reused <= 4  # a scalar that is only written needs no buffer to reuse
    assert temporaries <= case.temporaries + 0.05


@counts_buffers
@every_mechanism_of_optax
def test_no_more_temporaries_than_optax(case: Case) -> None:
    """But for what a state has beside arrays like the parameter: it is formed, and then stored."""
    state = jax.tree.leaves(jax.eval_shape(case.ready().init, jnp.zeros((64, 256))))
    beside = sum(x.size for x in state if x.shape != (64, 256)) / (64 * 256)
    assert memory(case, gradx)[1] <= memory(case, optax)[1] + beside + 0.01


@every_mechanism
def test_the_state_is_sharded_like_the_parameters(case: Case) -> None:
    mesh = jax.make_mesh((jax.device_count(),), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.sharding.NamedSharding(mesh, P("d"))
    p = jax.device_put(jnp.ones((16, 4)), sharding)
    tx = case.ready()
    state = tx.init(p)
    updates, new = jax.jit(tx.update)(p, state, p)
    for x in jax.tree.leaves((updates, state, new)):
        assert x.shape != p.shape or x.sharding.is_equivalent_to(sharding, x.ndim)


# ---------------------------------------------------------------- where numbers come from


@every_mechanism
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


@every_mechanism
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
    with jax.disable_jit():
        assert_close(three_steps(case.bind(tx)), as_constants(case), rtol=5e-6)


# ---------------------------------------------------------------- in other people's hands


@every_mechanism
def test_inside_an_optax_chain(case: Case) -> None:
    theirs = optax.chain(optax.identity(), case.ready(), optax.scale(1.0))
    with jax.disable_jit():
        assert_close(three_steps(theirs), as_constants(case), rtol=1e-6)


@every_optimizer_mechanism
def test_in_a_flax_train_state(case: Case) -> None:
    from flax.training.train_state import TrainState

    state = TrainState.create(apply_fn=None, params=params(), tx=case.ready())
    g = gradients(steps=3)
    apply = lambda state, g: state.apply_gradients(grads=g)
    kept = jax.eval_shape(apply, state, first(g))
    assert jax.tree.structure(kept) == jax.tree.structure(state)
    with jax.disable_jit():
        for i in range(2):
            state = apply(state, first(g, i))
    assert_close(state.params, first(as_constants(case), 1), rtol=1e-6)


@every_optimizer_mechanism
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
    with jax.disable_jit():
        for i in range(2):
            optimizer.update(model, like_a_model(jax.tree.leaves(first(gradients(), i))))
    assert_close(nnx.state(model, nnx.Param), first(as_constants(case), 1), rtol=1e-6)


@every_mechanism
def test_saved_and_restored_it_continues_bit_for_bit(case: Case) -> None:
    from flax import serialization

    tx = case.ready()
    g = gradients(steps=2)
    p, s = compiled(case)(params(), tx.init(params()), first(g))
    saved = serialization.to_bytes((p, s))
    restored = serialization.from_bytes((params(), tx.init(params())), saved)
    assert_same(compiled(case)(*restored, first(g, 1)), compiled(case)(p, s, first(g, 1)))
    assert_same(pickle.loads(pickle.dumps(s)), s)
