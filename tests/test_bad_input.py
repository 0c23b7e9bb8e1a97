"""Input that must be refused, with an error that names the argument; what it might have hidden."""

from __future__ import annotations

import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import gradx

PARAMS = {"bias": jnp.ones(2), "kernel": jnp.ones((2, 2))}


def live_sgd() -> Any:
    return gradx.sgd(gradx.tunable(0.1)).init(PARAMS)


@pytest.mark.parametrize("mark", [jnp.ones(2, bool), np.array([True]), 1, "yes", None])
def test_masks_are_bools(mark: Any) -> None:
    with pytest.raises(ValueError, match=r"masked.*'bias' it is"):
        gradx.masked(gradx.scale(1.0), {"bias": mark, "kernel": True}).init(PARAMS)


def test_an_idle_pattern_names_who_asked() -> None:
    tx = gradx.masked(gradx.sgd(0.1), gradx.by_path({"x": True}, default=False))
    with pytest.raises(ValueError, match=r"^masked: mask: by_path: the pattern 'x' claims no leaf"):
        tx.init(PARAMS)


@pytest.mark.parametrize("value", [1j, np.True_, jnp.array(True), 1e39, jnp.array(1j), object()])
def test_set_hyperparams_wants_real_numbers(value: Any) -> None:
    with pytest.raises(ValueError, match="learning_rate"):
        gradx.set_hyperparams(live_sgd(), learning_rate=value)


def test_live_numbers_are_checked_as_they_are_stored() -> None:
    """1 - 1e-12 is 1 in float32, and Adam's bias correction would be 1/0."""
    tx = gradx.scale_by_adam(b2=gradx.tunable(0.9))
    with pytest.raises(ValueError, match="b2"):
        gradx.set_hyperparams(tx.init(PARAMS), tx=tx, b2=1 - 1e-12)
    with pytest.raises(ValueError, match="b2"):
        gradx.scale_by_adam(b2=gradx.tunable(1 - 1e-12))
    for too_large in (1e39, gradx.tunable(1e39)):
        with pytest.raises(ValueError, match="learning_rate"):
            gradx.sgd(too_large)


def test_two_live_values_of_one_name() -> None:
    with pytest.raises(ValueError, match="'x'"):
        gradx.adam(0.1, b1=gradx.tunable(0.9, "x"), b2=gradx.tunable(0.999, "x"))
    shared = gradx.adam(0.1, b1=gradx.tunable(0.9, "x"), b2=gradx.tunable(0.9, "x"))
    assert list(gradx.hyperparams(shared.init(PARAMS))) == ["x"]


def test_tunable() -> None:
    assert gradx.hyperparams(gradx.sgd(gradx.tunable(np.array(0.5))).init(PARAMS))
    for name in (3, True, ""):
        with pytest.raises(ValueError, match="name"):
            gradx.tunable(0.5, name=name)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="own names"):
        gradx.tunable(gradx.sgd(0.1), name="x")
    with pytest.raises(ValueError, match=r"scaled\(schedule, tunable"):
        gradx.tunable(lambda count: 0.1)


@pytest.mark.parametrize("value", ["a", 1j, True, None, jnp.ones(2)])
def test_from_call_wants_a_real_number(value: Any) -> None:
    tx = gradx.sgd(gradx.from_call("rate"))
    with pytest.raises(ValueError, match="'rate' must be one real number"):
        tx.update(PARAMS, tx.init(PARAMS), rate=value)


PARTITION = {"name": "partition", "arguments": {"transforms": 3, "param_labels": "x"}}
CONFIGS: list[Any] = [
    {"name": "adam", "arguments": {}},
    {"name": "adam", "arguments": ["learning_rate"]},
    {"name": ["adam"], "arguments": {}},
    {"name": "adam", "arguments": {"learning_rate": 0.1, "mu_dtype": {"dtype": "os"}}},
    {"name": "chain", "arguments": {"args": 3}},
    {**PARTITION, "arguments": {"transforms": {"dict": [[{"dict": []}, 1]]}, "param_labels": "x"}},
    PARTITION,
]


@pytest.mark.parametrize("config", CONFIGS, ids=json.dumps)
def test_a_config_of_another_form(config: Any) -> None:
    with pytest.raises(ValueError, match=r"from_config|partition"):
        gradx.from_config(config)


def test_labels() -> None:
    two = {"a": gradx.sgd(0.1), "b": gradx.sgd(0.1)}
    for optional in ("b", ["nope"]):
        with pytest.raises(ValueError, match="optional"):
            gradx.partition(two, "a", optional=optional)
    with pytest.raises(ValueError, match="of one kind"):
        gradx.partition({"a": gradx.sgd(0.1), 1: gradx.sgd(0.1)}, {"bias": 1, "kernel": "a"})


def test_a_required_learning_rate() -> None:
    for factory in (gradx.sgd, gradx.adam, gradx.adamw, gradx.lion, gradx.adagrad):
        with pytest.raises(ValueError, match="learning_rate"):
            factory(None)


def test_patterns_are_asked_about_arrays_only() -> None:
    params = {"w": jnp.ones(2), "n": None}
    assert gradx.sgd(gradx.by_path({"w": 0.1})).init(params)
    with pytest.raises(ValueError, match="'n' claims no leaf"):
        gradx.sgd(gradx.by_path({"n": 0.1}, default=0.2)).init(params)


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
def test_zero_updates_keep_the_sharding(axis_type: Any) -> None:
    mesh = jax.make_mesh((8,), ("d",), axis_types=(axis_type,))
    x = jax.device_put(jnp.ones((16, 4)), NamedSharding(mesh, PartitionSpec("d")))
    tx = gradx.freeze(True, gradx.adam(0.1))
    zeros, _ = tx.update(x, tx.init(x), x)
    assert zeros.sharding.is_equivalent_to(x.sharding, 2)
    assert not zeros.any()


def test_equal_transforms_are_equal() -> None:
    for make in (
        lambda: gradx.sgd(gradx.by_path({"bias": 0.1}, default=0.2)),
        lambda: gradx.sgd(gradx.scaled(0.1, gradx.by_path({"bias": 0.1}, default=0.2))),
        lambda: gradx.freeze(gradx.by_path({"bias": True}, default=False), gradx.sgd(0.1)),
        lambda: gradx.sgd(jnp.float32(0.5)),
    ):
        assert make() == make()
        assert hash(make()) == hash(make())
    one = gradx.adam(0.1, mu_dtype=jnp.bfloat16)
    other = gradx.adam(0.1, mu_dtype=jnp.dtype("bfloat16"))
    assert one == other
    assert hash(one) == hash(other)


def test_a_rule_without_a_factory_says_so() -> None:
    assert "leafwise" in repr(gradx.leafwise(lambda g, s, p, h: (g, s)))


def aggregated(g: Any, s: Any, p: Any, h: Any) -> Any:
    velocities = tuple(beta * v + g for beta, v in zip(h.betas, s.trace, strict=True))
    return sum(velocities), s._replace(trace=velocities)


def test_a_leaf_may_have_a_tuple_in_a_field() -> None:
    tx = gradx.leafwise(
        aggregated,
        init=lambda p: {"trace": (jnp.zeros_like(p), jnp.zeros_like(p))},
        state=gradx.TraceState,
        flags={"betas": (0.0, 0.5)},
    )
    state = tx.init(PARAMS)
    for _ in range(2):
        updates, state = tx.update(PARAMS, state)
    np.testing.assert_array_equal(updates["bias"], [2.5, 2.5])
    assert len(state.trace["bias"]) == 2


def broken(g: Any, s: Any, p: Any, h: Any) -> Any:
    return h.no_such_number * g, s


def test_an_error_in_a_rule_says_where() -> None:
    tx = gradx.leafwise(broken)
    with pytest.raises(AttributeError) as raised:
        tx.update(PARAMS, tx.init(PARAMS))
    assert "at the leaf 'bias'" in raised.value.__notes__[-1]
    told = r"init must give the arrays .*\['trace'\] of TraceState, .* gives \[\]"
    with pytest.raises(ValueError, match=told):
        gradx.leafwise(broken, state=gradx.TraceState).init(PARAMS)
    listed = gradx.leafwise(broken, flags={"axes": [0]})
    with pytest.raises(ValueError, match=r"h.axes is \[0\]"):
        listed.update(PARAMS, listed.init(PARAMS))
    with pytest.raises(ValueError, match="a range reads like"):
        gradx.leafwise(broken, hypers={"rate": 0.1}, ranges={"rate": "0..1"})
