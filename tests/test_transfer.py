"""A run that changes its chain: what belongs together is carried, by name, and told."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases import OPTIMIZERS, Case
from flax import nnx
from flax.training.train_state import TrainState
from jax.sharding import NamedSharding, PartitionSpec
from problems import assert_same

import gradx

PARAMS = {"body": {"w": jnp.ones((2, 3)), "b": jnp.ones(3)}, "head": jnp.ones((3, 2))}
DECAY = gradx.linear_schedule(0.1, 0.0, 100)


def filled(state: Any, count: int = 7) -> Any:
    """The state with a value of its own in each array, as if it had trained for `count` steps."""

    def fill(path: Any, x: Any) -> Any:
        if jnp.issubdtype(x.dtype, jnp.integer) and x.shape == ():
            return jnp.full_like(x, count)
        number = sum(map(ord, jax.tree_util.keystr(path)))
        return jnp.full_like(x, number) if jnp.issubdtype(x.dtype, jnp.inexact) else x

    return jax.tree_util.tree_map_with_path(fill, state)


def begun(tx: Any, params: Any = PARAMS) -> Any:
    return filled(tx.init(params))


# ---------------------------------------------------------------- what is kept


def test_a_schedule_goes_on_where_the_constant_was() -> None:
    """The run with another chain in the middle is the run with one chain."""
    before, after = gradx.adam(0.1), gradx.chain(gradx.clip(1e3), gradx.adam(DECAY))
    with jax.disable_jit():
        _, state = before.update(PARAMS, before.init(PARAMS), PARAMS)
        transfer = gradx.transfer_state(state, after, PARAMS)
        updates, _ = after.update(PARAMS, transfer.state, PARAMS)
        _, whole = after.update(PARAMS, after.init(PARAMS), PARAMS)
        expected, _ = after.update(PARAMS, whole, PARAMS)
    assert_same(updates, expected)
    assert not transfer.begun
    assert not transfer.dropped
    assert transfer.kept[-1] == "ScaleByScheduleState.count (from ScaleByAdamState.count)"


def test_adam_gives_muon_its_momentum_and_its_count() -> None:
    old = begun(gradx.adamw(0.1))
    tx = gradx.muon(0.1)
    with pytest.raises(
        ValueError, match=r"ns_coeffs would begin anew; .* be dropped\. .*strict=False"
    ):
        gradx.transfer_state(old, tx, PARAMS)
    state, kept, new, dropped = gradx.transfer_state(old, tx, PARAMS, strict=False)
    muon, adam = (state.inner_states[label].inner_state[0] for label in ("muon", "adam"))
    assert muon.mu["body"]["w"] is old[0].mu["body"]["w"]
    assert adam.nu["body"]["b"] is old[0].nu["body"]["b"]
    assert int(muon.count) == int(adam.count) == 7
    assert "muon/MuonState.mu[body/w] (from ScaleByAdamState.mu[body/w])" in kept
    assert new == ["muon/MuonState.ns_coeffs"]
    assert dropped == ["ScaleByAdamState.nu[body/w]"]


def test_each_group_of_unfrozen_layers_counts_for_itself() -> None:
    """The bias correction of averages that begin anew begins anew."""
    old = begun(gradx.freeze(gradx.by_path({"body": True}, default=False), gradx.adam(DECAY)))
    groups = {"new": gradx.adam(DECAY), "old": gradx.adam(DECAY)}
    tx = gradx.partition(groups, gradx.by_path({"body": "new"}, default="old"))
    with pytest.raises(ValueError, match=r"new/ScaleByAdamState.count, .*mu\[body/b\] and 1 more"):
        gradx.transfer_state(old, tx, PARAMS)
    state, _, _, dropped = gradx.transfer_state(old, tx, PARAMS, strict=False)
    new, kept = (state.inner_states[label].inner_state for label in ("new", "old"))
    assert [int(x.count) for x in (*kept, *new)] == [7, 7, 0, 7]  # the schedules go on in both
    assert_same(kept[0].mu["head"], old.inner_states["train"].inner_state[0].mu["head"])
    assert not dropped


@pytest.mark.parametrize(
    "around",
    [
        lambda tx: gradx.apply_if_finite(tx, 3),
        lambda tx: gradx.MultiSteps(tx, 2),
        lambda tx: gradx.named_chain(("inner", tx), ("ema", gradx.ema(0.9))),
        lambda tx: optax.apply_if_finite(tx, 3),
    ],
    ids=["guard", "accumulation", "labels", "optax"],
)  # fmt: skip
def test_what_is_new_to_the_chain_may_begin_anew(around: Any) -> None:
    """Also strictly; and what it is put around stays bit for bit. The way back drops something."""
    tx = gradx.sgd(DECAY, momentum=0.9)
    old, wrapped = begun(tx), around(tx)
    transfer = gradx.transfer_state(old, wrapped, PARAMS)
    assert transfer.begun
    assert len(transfer.kept) == len(jax.tree.leaves(old))
    back = gradx.transfer_state(transfer.state, tx, PARAMS, strict=False)
    assert_same(back.state, old)
    with pytest.raises(ValueError, match=r"State\..* would be dropped"):
        gradx.transfer_state(transfer.state, tx, PARAMS)


def test_states_of_optax_become_those_of_gradx_and_back() -> None:
    ours, theirs = gradx.adamw(DECAY), optax.adamw(DECAY)
    there = gradx.transfer_state(begun(theirs), ours, PARAMS).state
    assert_same(there, begun(ours))
    assert jax.tree.structure(there) == jax.tree.structure(ours.init(PARAMS))
    assert_same(gradx.transfer_state(there, theirs, PARAMS).state, begun(theirs))


def test_live_numbers_are_kept_by_name() -> None:
    old = gradx.inject_hyperparams(gradx.sgd)(learning_rate=0.1, momentum=0.9).init(PARAMS)
    old = gradx.set_hyperparams(old, learning_rate=0.02)
    tx = gradx.sgd(gradx.tunable(0.5), momentum=gradx.tunable(0.8, name="inertia"))
    state, _, new, dropped = gradx.transfer_state(old, tx, PARAMS, strict=False)
    assert {k: float(x) for k, x in gradx.hyperparams(state).items()} == {
        "inertia": pytest.approx(0.8),
        "learning_rate": pytest.approx(0.02),
    }
    assert new == ["HyperparamsState.hyperparams[inertia]"]
    assert any(name.endswith("hyperparams[momentum]") for name in dropped)
    # A number that becomes live has the value of the transformation, which nobody has to allow.
    assert gradx.transfer_state(
        begun(gradx.sgd(0.1, 0.9)), gradx.sgd(gradx.tunable(0.1), 0.9), PARAMS
    )


def test_other_precision_is_cast_and_told_and_other_shapes_are_not_kept() -> None:
    old = begun(gradx.adam(0.1, mu_dtype=jnp.bfloat16))
    transfer = gradx.transfer_state(old, gradx.adam(0.1), PARAMS)
    assert "ScaleByAdamState.mu[head] (bfloat16 → float32)" in transfer.kept
    assert transfer.state[0].mu["head"].dtype == jnp.float32
    wider = PARAMS | {"head": jnp.ones((3, 5))}
    with pytest.raises(ValueError, match=r"mu\[head\] \(its shape is \(3, 5\), and was \(3, 2\)\)"):
        gradx.transfer_state(old, gradx.adam(0.1), wider)
    other = gradx.transfer_state(
        begun(gradx.adam(0.1), {"w": jnp.ones(2, jnp.complex64)}),
        gradx.adam(0.1),
        {"w": jnp.ones(2)},
        strict=False,
    )
    assert other.begun == ["ScaleByAdamState.mu[w] (it is float32, and was complex64)"]


@pytest.mark.parametrize(
    ("before", "after", "part"),
    [
        (gradx.lawa_params(2, 1), gradx.lawa_params(4, 1), lambda state: state),
        (gradx.lawa_params(4, 1), gradx.lawa_params(2, 1), lambda state: state),
        (
            gradx.skip_spikes(gradx.sgd(0.1, 0.9), window=4),
            gradx.skip_spikes(gradx.sgd(0.1, 0.9), window=8),
            lambda state: state.judge,
        ),
        (
            gradx.skip_spikes(gradx.sgd(0.1, 0.9), window=4),
            gradx.skip_spikes(gradx.sgd(0.1, 0.9), window=4, loss=gradx.from_call("value")),
            lambda state: state.judge,
        ),
    ],
    ids=["more snapshots", "fewer snapshots", "a window", "another window"],
)
def test_numbers_begin_anew_with_the_arrays_that_they_tell_of(
    before: Any, after: Any, part: Any
) -> None:
    old, around = begun(before), gradx.chain(after, gradx.trace(0.5))
    with pytest.raises(ValueError, match=r"(values|snapshots).* would be dropped"):
        gradx.transfer_state((old, begun(gradx.trace(0.5))), around, PARAMS)
    transfer = gradx.transfer_state((old, begun(gradx.trace(0.5))), around, PARAMS, strict=False)
    assert_same(part(transfer.state[0]), part(after.init(PARAMS)))
    assert any(name.endswith("(as its other arrays do)") for name in transfer.begun)
    assert_same(transfer.state[1], begun(gradx.trace(0.5)))


def test_numbers_of_the_whole_stay_where_a_layer_is_new() -> None:
    tx, body = gradx.lawa_params(2, 1), {"body": PARAMS["body"]}
    state, _, new, _ = gradx.transfer_state(begun(tx, body), tx, PARAMS, strict=False)
    assert int(state.taken) == 7
    assert new == ["LawaState.snapshots[0/head]", "LawaState.snapshots[1/head]"]


def test_a_guard_takes_its_snapshot_anew() -> None:
    """It fits one inner state only; to go back to parts of another would end in NaN."""
    guard = lambda tx: gradx.skip_nonfinite(tx, restore_after=1, snapshot_every=1)
    momentum = gradx.sgd(0.1, momentum=0.9)
    old = begun(guard(momentum))
    clipped = gradx.apply_if_finite(guard(gradx.chain(gradx.clip(1.0), momentum)), 3)
    transfer = gradx.transfer_state(old, clipped, PARAMS)  # strictly
    guarded = transfer.state.inner_state
    assert_like(transfer.state, clipped.init(PARAMS))
    assert_same(jax.tree.leaves(guarded.snapshot.inner), jax.tree.leaves(old.inner_state))
    assert_same(guarded.snapshot.params, PARAMS)
    assert (int(guarded.snapshot.age), int(guarded.snapshot.restores)) == (0, 7)
    assert "RestorePoint.inner[1/0/0/body/b] (taken anew)" in transfer.begun
    leaves = jax.tree.leaves(transfer.state)
    assert len({x.unsafe_buffer_pointer() for x in leaves}) == len(leaves)
    squares = guard(gradx.rmsprop(0.1))
    other = gradx.transfer_state(old, squares, PARAMS, strict=False)
    assert not any("RestorePoint" in name for name in other.dropped)
    assert_same(other.state.snapshot.inner, squares.init(PARAMS).snapshot.inner)
    without = gradx.transfer_state(old, gradx.skip_nonfinite(momentum), PARAMS, strict=False)
    assert "RestorePoint.params[head]" in without.dropped


# ---------------------------------------------------------------- what is refused


def test_parts_of_one_class_keep_their_order_or_are_refused() -> None:
    two = gradx.chain(gradx.trace(0.9), gradx.trace(0.5))
    old = begun(two)
    assert_same(
        gradx.transfer_state(old, gradx.apply_if_finite(two, 3), PARAMS).state.inner_state, old
    )
    told = r"trace\[body/b\] \(2 candidates, TraceState.trace\[body/b\], for 1 place\) and 2 more"
    with pytest.raises(ValueError, match=told):
        gradx.transfer_state(old, gradx.trace(0.9), PARAMS)


def test_counts_that_differ_do_not_say_where_a_schedule_begins() -> None:
    tx = gradx.chain(gradx.scale_by_adam(), gradx.ema(0.9))
    old = (filled(tx.init(PARAMS)[0], 3), filled(tx.init(PARAMS)[1], 5))
    new = gradx.chain(tx, gradx.scale_by_schedule(DECAY))
    told = r"count \(the old counts differ: ScaleByAdamState.count is 3, EmaState.count is 5\)"
    with pytest.raises(ValueError, match=rf"{told} would begin anew.*count=…"):
        gradx.transfer_state(old, new, PARAMS)
    given = gradx.transfer_state(old, new, PARAMS, count=4)
    assert_like(given.state, new.init(PARAMS))
    assert int(given.state[1].count) == 4
    assert given.kept[-1] == "ScaleByScheduleState.count (from the given count)"
    assert int(gradx.transfer_state(old, new, PARAMS, strict=False).state[1].count) == 0
    traced = jax.jit(lambda old: gradx.transfer_state(old, new, PARAMS).state[1].count)
    assert int(traced(old)) == 0
    assert int(traced((old[0], old[1]._replace(count=old[0].count)))) == 3
    with pytest.raises(ValueError, match=r"count \(the old state has no count\)"):
        gradx.transfer_state(begun(gradx.sgd(0.1, 0.9)), gradx.sgd(DECAY, 0.9), PARAMS)
    for wrong in (-1, 0.5, True, "3", np.array([1])):
        with pytest.raises(ValueError, match="count must be a whole number of at least 0, got"):
            gradx.transfer_state(old, new, PARAMS, count=wrong)


def test_a_run_may_change_twice_and_then_begin_to_decay() -> None:
    """Averages count from where they were added, and `restart_moments` begins its counts anew."""
    around = lambda rule: gradx.chain(
        gradx.scale_by_adam(), gradx.restart_moments(gradx.ema(0.9), 5), rule
    )
    first = around(gradx.identity())
    adam, restarts, empty = begun(first)
    old = adam, filled(restarts, 2), empty
    averages = (gradx.ema_params(0.9), gradx.swa_params(), gradx.lawa_params(2, 1))
    averaged = gradx.transfer_state(old, gradx.chain(first, *averages), PARAMS).state
    later = (averaged[0][0]._replace(count=jnp.int32(15)), *averaged[0][1:])
    last = gradx.chain(around(gradx.scale_by_schedule(DECAY)), *averages)
    state = gradx.transfer_state((later, *averaged[1:]), last, PARAMS).state
    assert int(state[0][2].count) == 15
    assert [int(x.count) for x in state[1:]] == [0, 0, 0]
    inside = gradx.restart_moments(gradx.adam(DECAY), 5)
    within = gradx.transfer_state(begun(gradx.restart_moments(gradx.adam(0.1), 5)), inside, PARAMS)
    assert int(within.state.inner_state[1].count) == 7


def test_a_plateau_counts_something_else() -> None:
    old = begun(gradx.chain(gradx.adam(0.1), gradx.reduce_on_plateau()))
    old = (old[0], old[1]._replace(count=jnp.int32(0)))
    tx = gradx.chain(gradx.adam(DECAY), gradx.reduce_on_plateau())
    assert int(gradx.transfer_state(old, tx, PARAMS).state[0][1].count) == 7


@pytest.mark.parametrize("strict", [True, False])
def test_states_with_nothing_in_common_are_always_refused(strict: bool) -> None:
    told = r"nothing in common.*TraceState.trace\[body/b\] and 2 more.*has ScaleByAdamState.count"
    with pytest.raises(ValueError, match=told):
        gradx.transfer_state(begun(gradx.sgd(0.1, 0.9)), gradx.adam(0.1), PARAMS, strict=strict)
    with pytest.raises(ValueError, match=r"one has nothing"):
        gradx.transfer_state((), gradx.adam(0.1), PARAMS, strict=strict)
    with pytest.raises(ValueError, match="tx must be a transformation"):
        gradx.transfer_state((), "adam", PARAMS, strict=strict)


def test_nothing_is_kept_where_there_is_nothing() -> None:
    transfer = gradx.transfer_state(begun(gradx.sgd(0.1)), gradx.sgd(0.2), PARAMS)
    assert str(transfer) == "nothing to keep"


# ---------------------------------------------------------------- states of all kinds


class Layers(NamedTuple):
    first: Any
    second: Any


def test_parameters_are_found_in_any_container() -> None:
    tx, arrays = gradx.adam(0.1), {"first": jnp.ones(2), "second": jnp.ones(3)}
    old = begun(tx, arrays)
    for params in (Layers(**arrays), nnx.state({k: nnx.Param(x) for k, x in arrays.items()})):
        transfer = gradx.transfer_state(old, tx, params)
        assert jax.tree.structure(transfer.state) == jax.tree.structure(tx.init(params))
        assert_same(jax.tree.leaves(transfer.state), jax.tree.leaves(old))
        assert "ScaleByAdamState.mu[first]" in transfer.kept
    old = begun(tx, jnp.ones(()))
    bare = gradx.transfer_state(old, gradx.chain(gradx.clip(1.0), tx), jnp.ones(()))
    assert_same(bare.state[1], old)


@pytest.mark.parametrize("library", [gradx, optax], ids=["raw", "typed"])
def test_random_keys_are_kept(library: Any) -> None:
    old = library.add_noise(0.1, 0.5, 0).init(PARAMS)
    tx = gradx.chain(gradx.clip(1.0), library.add_noise(0.1, 0.5, 1))
    assert gradx.transfer_state(old, tx, PARAMS).state[1].rng_key is old.rng_key


def test_a_larger_state_has_it_as_opt_state() -> None:
    tx, params = optax.adam(0.1), {"w": jnp.ones(2)}
    train = TrainState.create(apply_fn=None, params=params, tx=tx)
    for holder in (train, {"opt_state": train.opt_state, "step": 3}):
        state = gradx.transfer_state(holder, gradx.adam(0.1), params).state
        assert_same(jax.tree.leaves(state), jax.tree.leaves(train.opt_state))


def test_the_optimizer_of_flax_nnx_changes_its_chain() -> None:
    model = nnx.Dict(w=nnx.Param(jnp.ones(2)))
    optimizer = nnx.Optimizer(model, optax.sgd(0.1, momentum=0.9), wrt=nnx.Param)
    trace = optimizer.opt_state[0].trace["w"]
    trace[...] = jnp.full(2, 3.0)
    tx = gradx.sgd(gradx.tunable(0.1), momentum=0.9)
    params = nnx.as_pure(nnx.state(model, nnx.Param))
    transfer = gradx.transfer_state(optimizer, tx, params)
    changed = nnx.Optimizer(model, tx, wrt=nnx.Param)
    nnx.update(changed.opt_state, nnx.state(transfer.state))
    assert_same(changed.opt_state[0].trace["w"][...], jnp.full(2, 3.0))
    anew = gradx.reset(changed.opt_state, tx, params, field="trace")
    assert jax.tree.structure(anew) == jax.tree.structure(changed.opt_state)
    assert not anew[0].trace["w"][...].any()


def test_arrays_stay_where_they_are_and_those_of_a_checkpoint_go_there() -> None:
    mesh = jax.make_mesh((2,), ("d",))
    sharding = NamedSharding(mesh, PartitionSpec("d"))
    params = {"w": jax.device_put(jnp.ones((4, 2)), sharding)}
    tx = gradx.apply_if_finite(gradx.adam(DECAY), 3)
    old = begun(gradx.adam(0.1), params)
    for source in (old, jax.tree.map(np.asarray, old)):
        state = gradx.transfer_state(source, tx, params).state
        assert state.inner_state[0].mu["w"].sharding == sharding
        assert_same(state.inner_state[0], old[0])
    assert gradx.reset(old, gradx.adam(0.1), params, field="mu")[0].mu["w"].sharding == sharding


def test_no_array_is_twice_in_a_state_that_may_be_donated() -> None:
    groups = {"a": gradx.adam(DECAY), "b": gradx.adam(DECAY)}
    tx = gradx.partition(groups, gradx.by_path({"body": "a"}, default="b"))
    leaves = jax.tree.leaves(gradx.transfer_state(begun(gradx.adam(0.1)), tx, PARAMS).state)
    assert len({x.unsafe_buffer_pointer() for x in leaves}) == len(leaves)


def test_many_runs_change_together() -> None:
    params = jax.tree.map(lambda x: jnp.stack([x, x]), PARAMS)
    old = jax.vmap(gradx.adam(0.1).init)(params)
    old = (old[0]._replace(count=jnp.array([3, 5])), old[1])
    tx = gradx.adam(DECAY)
    state = jax.vmap(lambda s, p: gradx.transfer_state(s, tx, p).state)(old, params)
    np.testing.assert_array_equal(state[1].count, [3, 5])


# ---------------------------------------------------------------- reset


def test_one_part_begins_anew() -> None:
    tx = gradx.chain(gradx.clip(1.0), gradx.adam(gradx.tunable(0.1)))
    old = begun(tx)
    state = gradx.reset(old, tx, PARAMS, path="^body/w$", field="mu")
    assert not state[1][0].mu["body"]["w"].any()
    restored = state[1][0].mu | {"body": old[1][0].mu["body"]}
    assert_same((state[0], (state[1][0]._replace(mu=restored), state[1][1])), old)
    layer = gradx.reset(old, tx, PARAMS, path="body")
    assert not any(
        x.any() for x in jax.tree.leaves((layer[1][0].mu["body"], layer[1][0].nu["body"]))
    )
    assert int(layer[1][0].count) == 7
    assert gradx.reset(old, tx, PARAMS, field="hyperparams")[1][1] == tx.init(PARAMS)[1][1]
    assert int(gradx.reset(old, tx, PARAMS, field="count")[1][0].count) == 0


def test_a_parameter_is_reset_in_each_of_several_snapshots() -> None:
    tx = gradx.lawa_params(2, 1)
    old, first = begun(tx), tx.init(PARAMS)
    state = gradx.reset(old, tx, PARAMS, path="^body/w$")
    for one, before, new in zip(state.snapshots, old.snapshots, first.snapshots, strict=True):
        expected = {"body": {"b": before["body"]["b"], "w": new["body"]["w"]}}
        assert_same(one, before | expected)
    assert int(state.taken) == 7
    alone = gradx.reset(begun(tx, jnp.ones(2)), tx, jnp.ones(2), path="^$")
    assert_same(alone.snapshots, tx.init(jnp.ones(2)).snapshots)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({}, "give a path, a field, or both"),
        ({"path": "("}, r"reset: '\(' is not a regular expression"),
        ({"field": "nu_"}, r"no field 'nu_'; it has \['count', 'mu', 'nu'\]. Did you mean 'nu'\?"),
        ({"path": "neck"}, r"'neck' is found in none .*: 'body/b', 'body/w', 'head'\."),
        ({"path": "neck", "field": "mu"}, r"'neck' is found in none of the paths of mu: 'body/b'"),
        ({"path": "head", "field": "count"}, "count has no arrays of parameters"),
    ],
)
def test_a_reset_of_what_is_not_there_tells_what_is(given: Any, told: str) -> None:
    tx = gradx.adam(0.1)
    with pytest.raises(ValueError, match=told):
        gradx.reset(tx.init(PARAMS), tx, PARAMS, **given)
    with pytest.raises(ValueError, match="no arrays of parameters"):
        gradx.reset(gradx.sgd(0.1).init(PARAMS), gradx.sgd(0.1), PARAMS, path="head")
    with pytest.raises(ValueError, match="another chain's init"):
        gradx.reset(gradx.sgd(0.1, 0.9).init(PARAMS), tx, PARAMS, field="mu")


# ---------------------------------------------------------------- every optimizer


every_optimizer = pytest.mark.parametrize("case", OPTIMIZERS, ids=lambda case: case.id)


@pytest.mark.full
@every_optimizer
def test_every_optimizer_is_carried_bit_for_bit(case: Case) -> None:
    """To itself, behind a clip, within a guard, and with labels on the way."""
    tx = case.make()
    old = begun(tx)
    here = lambda state: state
    everywhere = {
        "itself": (tx, here),
        "a clip": (gradx.chain(gradx.clip(1.0), tx), lambda state: state[1]),
        "a guard": (gradx.apply_if_finite(tx, 3), lambda state: state.inner_state),
        "a label": (gradx.named_chain(("rule", tx)), lambda state: state["rule"]),
    }
    for new, inside in everywhere.values():
        if not jax.tree.leaves(old) and jax.tree.leaves(new.init(PARAMS)):
            continue  # a guard around what has no state has nothing in common with it
        state, _, _, dropped = gradx.transfer_state(old, new, PARAMS)
        assert not dropped
        assert_same(inside(state), old)


@pytest.mark.full
@every_optimizer
def test_any_optimizer_may_follow_any_other(case: Case) -> None:
    """Or is refused; the new state is one of the new chain, and each array is told once."""
    old = begun(case.make())
    drawn = np.random.default_rng(0).choice(len(OPTIMIZERS), 12, replace=False)
    for tx in (OPTIMIZERS[i].make() for i in drawn):
        first = tx.init(PARAMS)
        try:
            state, kept, new, dropped = gradx.transfer_state(old, tx, PARAMS, strict=False)
        except ValueError as error:
            if "nothing in common" not in str(error):
                raise
            continue
        assert_like(state, first)
        assert len(kept) + len(new) == len(jax.tree.leaves(first))
        assert len(dropped) < len(jax.tree.leaves(old)) or not kept
        if any(".mu[" in name for name in kept):
            assert_like(gradx.reset(state, tx, PARAMS, field="mu"), first)


def assert_like(state: Any, first: Any) -> None:
    """The same structure, and in each place the same type."""
    assert jax.tree.structure(state) == jax.tree.structure(first)
    for x, y in zip(jax.tree.leaves(state), jax.tree.leaves(first), strict=True):
        assert (x.shape, x.dtype, x.weak_type) == (y.shape, y.dtype, y.weak_type)
