"""The state of something else is refused by name, and never half used."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import optax
import pytest
from cases import CASES, Case
from mechanisms import every_mechanism
from problems import params
from runs import numbers_of

import gradx


def shapes(tree: Any) -> Any:
    return jax.eval_shape(lambda: tree)


P = shapes(params())


def begun(tx: Any) -> Any:
    return jax.eval_shape(tx.init, P)


def kind(state: Any) -> Any:
    return jax.tree.structure(state)


def names(case: Case) -> str:
    """A pattern for the names of a row and of what it wraps: the part that notices says its own."""
    inner = [names(value) for value in case.kwargs.values() if isinstance(value, Case)]
    return "|".join([case.factory, *inner])


def refuses(tx: Any, state: Any, name: str, **extra: Any) -> None:
    with pytest.raises(ValueError, match=rf"\b({name})\b.*: got a state ") as raised:
        jax.eval_shape(lambda g, s, p: tx.update(g, s, p, **extra), P, state, P)
    assert "Was it made by another chain's init?" in str(raised.value), raised.value


def variants(case: Case) -> Iterator[Any]:
    """A row as it stands, with live numbers, and with its first number from a schedule."""
    yield case.make()
    yield gradx.tunable(case.make())
    for name, value in list(numbers_of(case).items())[:1]:
        yield case.make(**{name: gradx.constant_schedule(value)})


@every_mechanism
def test_the_state_of_something_else_is_refused(case: Case) -> None:
    made = [case.bind(tx) for tx in variants(case)]
    states = [begun(tx) for tx in made]
    kinds = [kind(state) for state in states]
    keeps = any(jax.tree.leaves(state) for state in states[:1])
    foreign = [begun(gradx.adam(1e-3)), optax.EmptyState(), (), {}] if keeps else []
    for tx, state in zip(made, states, strict=True):
        for other in [*states, *foreign, *([(state,)] if keeps else [])]:
            if kind(other) != kind(state):
                refuses(tx, other, names(case))
        jax.eval_shape(tx.update, P, state, P)
    assert len(set(kinds)) > 1 or not numbers_of(case)


# Pieces without state that no row has.
KEEP_NOTHING = [
    gradx.identity(),
    gradx.set_to_zero(),
    gradx.scale(0.5),
    gradx.scale_by_learning_rate(0.1),
    gradx.scale_by_learning_rate(None),
    gradx.add_decayed_weights(0.0),
]


def test_what_keeps_nothing_ignores_the_state_it_is_given() -> None:
    """And gives it back, as in Optax; but not a state in which there is something of another's."""
    made = [case.ready() for case in CASES]
    without = [tx for tx in made if begun(tx) == optax.EmptyState()] + KEEP_NOTHING
    assert len(without) > 15
    for tx in without:
        for given in (None, {}, (), 3, [1.0], optax.EmptyState()):
            updates, state = updated(tx, given)
            assert state is given, tx
            assert jax.tree.structure(updates) == jax.tree.structure(P)
        for foreign in (gradx.trace(0.9), gradx.trace(gradx.tunable(0.9)), gradx.scale_by_adam()):
            with pytest.raises(ValueError, match="Was it made by another chain's init"):
                updated(tx, begun(foreign))


def updated(tx: Any, state: Any) -> Any:
    """What `update` gives for a state that no program sees."""
    seen = []
    shown = jax.eval_shape(lambda g: seen.append(tx.update(g, state, g)) or seen[-1][0], P)
    return shown, seen[-1][1]


# Wrappers and pieces that no row has, or not with these states: a transformation, and what made
# the state that it is given.
OTHERS: dict[str, tuple[Any, Any]] = {
    "masked": (gradx.masked(gradx.adam(0.1), True), gradx.adam(0.1)),
    "masked, no stage": (gradx.masked(optax.adam(0.1), True), gradx.adam(0.1)),
    "partition": (gradx.partition({"a": gradx.adam(0.1)}, "a"), gradx.adam(0.1)),
    "partition, labels": (
        gradx.partition({"a": gradx.adam(0.1)}, "a"),
        gradx.partition({"b": gradx.adam(0.1)}, "b"),
    ),
    "partition, no stage": (
        gradx.partition({"a": optax.adam(0.1)}, "a"),
        gradx.partition({"b": optax.adam(0.1)}, "b"),
    ),
    "freeze": (gradx.freeze(True, gradx.adam(0.1)), gradx.freeze(True)),
    "chain": (gradx.chain(gradx.clip(1.0), gradx.trace(0.9)), gradx.trace(0.9)),
    "chain, a named tuple": (gradx.chain(*[gradx.identity()] * 3), gradx.scale_by_adam()),
    "named_chain": (
        gradx.named_chain(("a", gradx.trace(0.9))),
        gradx.named_chain(("b", gradx.trace(0.9))),
    ),
    "identity": (gradx.identity(), gradx.trace(0.9)),
    "sgd": (gradx.sgd(0.1), gradx.sgd(0.1, momentum=0.9)),
    "add_decayed_weights": (
        gradx.add_decayed_weights(0.0),
        gradx.add_decayed_weights(gradx.tunable(0.1)),
    ),
    "snapshot": (gradx.snapshot("a", gradx.global_norm), gradx.snapshot("b", gradx.global_norm)),
    "snapshot, adam": (gradx.snapshot("a", gradx.global_norm), gradx.adam(0.1)),
    "monitor": (
        gradx.monitor({"a": gradx.global_norm}),
        gradx.monitor({"a": gradx.global_norm, "b": gradx.global_norm}),
    ),
    "monitor, adam": (gradx.monitor({"a": gradx.global_norm}), gradx.adam(0.1)),
    "measure_with_ema": (gradx.measure_with_ema(gradx.global_norm, 0.9), gradx.trace(0.9)),
    "sam, opaque": (
        gradx.sam(gradx.sgd(0.1), gradx.sgd(0.1), opaque_mode=True),
        gradx.sam(gradx.sgd(0.1), gradx.sgd(0.1)),
    ),
    "sam, transparent": (
        gradx.sam(gradx.sgd(0.1), gradx.sgd(0.1)),
        gradx.sam(gradx.sgd(0.1), gradx.sgd(0.1), opaque_mode=True),
    ),
    "inject_hyperparams": (gradx.inject_hyperparams(gradx.sgd)(0.1), gradx.adam(0.1)),
    "inject_hyperparams, a schedule": (
        gradx.inject_hyperparams(gradx.sgd)(0.1),
        gradx.inject_hyperparams(gradx.sgd)(lambda count: 0.1),
    ),
    "add_noise": (gradx.add_noise(0.1, 0.5, key=0), gradx.adam(0.1)),
    "differentially_private_aggregate": (
        gradx.differentially_private_aggregate(1.0, 0.1, key=0),
        gradx.adam(0.1),
    ),
    "MultiSteps": (
        gradx.MultiSteps(gradx.sgd(0.1), 2),
        gradx.MultiSteps(gradx.sgd(0.1), 2, weight=1.0),
    ),
    "scale_by_zoom_linesearch": (gradx.scale_by_zoom_linesearch(5), gradx.adam(0.1)),
    "scale_by_backtracking_linesearch": (
        gradx.scale_by_backtracking_linesearch(5),
        gradx.adam(0.1),
    ),
    "hutchinson": (gradx.hutchinson_estimator_diag_hessian(), gradx.adam(0.1)),
}


@pytest.mark.parametrize(("tx", "made_by"), OTHERS.values(), ids=OTHERS)
def test_the_state_of_something_else_is_refused_elsewhere(tx: Any, made_by: Any) -> None:
    refuses(tx, begun(made_by), r"\w+", obj_fn=gradx.global_norm)


LOOK = gradx.lookahead(gradx.adam(0.1), 2, 0.5, reset_state=True)


@pytest.mark.parametrize(
    "state",
    [
        gradx.adam(0.1),
        gradx.lookahead(gradx.sgd(0.1), 2, 0.5),
        gradx.tunable(LOOK),
    ],
    ids=str,
)
def test_lookahead_refuses_the_state_of_something_else(state: Any) -> None:
    synced = gradx.LookaheadParams(P, P)
    with pytest.raises(ValueError, match="Was it made by another chain's init"):
        jax.eval_shape(LOOK.update, P, begun(state), synced)


def test_a_state_for_one_leaf_is_none_for_a_tree() -> None:
    tx = gradx.scale_by_adam()
    with pytest.raises(ValueError, match=r"mu has a tree in it, dict.*another chain's init"):
        jax.eval_shape(tx.update, P["scale"], begun(tx), P["scale"])


def test_what_differs_is_said() -> None:
    constant, live = gradx.sgd(0.1), gradx.sgd(gradx.tunable(0.1))
    scheduled = gradx.sgd(gradx.scaled(lambda count: 0.1, gradx.tunable(1.0)))
    with pytest.raises(ValueError, match=r"with the live values \['learning_rate'\], which are"):
        jax.eval_shape(constant.update, P, begun(live), P)
    with pytest.raises(ValueError, match=r"without the live values \['learning_rate'\], which are"):
        jax.eval_shape(live.update, P, begun(constant), P)
    momentum, steady = (gradx.trace(x) for x in (lambda count: 0.9, 0.9))
    with pytest.raises(ValueError, match="without a count, which a schedule needs here"):
        jax.eval_shape(momentum.update, P, begun(steady), P)
    with pytest.raises(ValueError, match="with the count of a schedule, of which there is none"):
        jax.eval_shape(steady.update, P, begun(momentum), P)
    jax.eval_shape(scheduled.update, P, begun(scheduled), P)


@pytest.mark.parametrize("reset_state", [True, False])
def test_states_of_optaxs_own_classes_are_welcome(reset_state: bool) -> None:
    """Also where a part of them begins anew."""
    arguments: Any = {"sync_period": 2, "reset_state": reset_state}
    ours = gradx.sam(gradx.adam(0.1), gradx.adam(0.1), **arguments)
    theirs = optax.contrib.sam(optax.adam(0.1), optax.adam(0.1), **arguments)
    state = begun(theirs)
    assert kind(jax.eval_shape(ours.update, P, state, P)[1]) == kind(state)
