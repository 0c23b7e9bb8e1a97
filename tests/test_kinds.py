"""Parameters of every kind: shapes without values, leaves that nobody optimizes, odd dtypes.

That every row begins from shapes, and rests on no promotion, is a law (`laws/test_algorithms.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import serialization
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from problems import assert_same

import gradx

# ---------------------------------------------------------------- shapes without values


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize(
    "tx",
    [
        gradx.chain(gradx.clip(1.0), optax.adam(0.1)),
        gradx.inject_hyperparams(gradx.sgd)(0.1, momentum=0.9),
        gradx.lookahead(gradx.MultiSteps(gradx.freeze({"w": False}, gradx.muon(0.1)), 2), 2, 0.5),
        gradx.lbfgs(0.1, memory_size=2),  # whose memory is a stack of arrays like the parameter
    ],
    ids=str,
)
def test_a_state_from_shapes_is_where_that_of_parameters_is(tx: Any, axis_type: Any) -> None:
    mesh = jax.make_mesh((2,), ("d",), axis_types=(axis_type,))
    sharding = NamedSharding(mesh, PartitionSpec("d"))
    state = tx.init({"w": jax.device_put(jnp.ones((4, 2)), sharding)})
    made = tx.init({"w": jax.ShapeDtypeStruct((4, 2), jnp.float32, sharding=sharding)})
    assert_same(made, state)
    where, there = ([x.sharding for x in jax.tree.leaves(tree)] for tree in (made, state))
    assert where == there
    assert sharding in where


def test_an_error_names_the_part_that_wants_values() -> None:
    tx = gradx.chain(
        gradx.clip(1.0),
        gradx.partition(
            {"a": gradx.chain(gradx.identity(), gradx.dog(1.0)), "b": gradx.adam(0.1)},
            gradx.by_path({"w": "a"}, default="b"),
        ),
    )
    shapes = {"w": jax.ShapeDtypeStruct((2,), jnp.float32), "x": jnp.ones(2)}
    told = r"^scale_by_dog: init was given shapes .* but 'init_params/w' in its state .*eval_shape"
    with pytest.raises(ValueError, match=told):
        tx.init(shapes)
    measured = gradx.snapshot("norm", gradx.global_norm)
    with pytest.raises(ValueError, match=r"^snapshot: .* 'measurement/norm' in its state"):
        measured.init(shapes)
    with pytest.raises(ValueError, match=r"adam.*'n' is of type int32 array"):
        gradx.adam(0.1).init({"n": jax.ShapeDtypeStruct((2,), jnp.int32)})


def test_nothing_is_asked_of_shapes_that_are_left_out() -> None:
    key = jax.eval_shape(lambda: jax.random.key(0))
    shapes = {"w": jax.ShapeDtypeStruct((2,), jnp.bfloat16), "key": key, "n": jnp.arange(3)}
    tx = gradx.freeze({"w": False, "key": True, "n": True}, gradx.adam(0.1))
    state = gradx.MultiSteps(tx, 2).init(shapes)
    assert state.acc_grads["key"] is None
    assert state.acc_grads["w"].dtype == jnp.float32


# ---------------------------------------------------------------- leaves that nobody optimizes


LEFT_OUT: dict[str, tuple[Any, Any]] = {  # parameter and gradient
    "int8": (jnp.ones(3, jnp.int8), np.zeros(3, jax.dtypes.float0)),  # jax.grad(allow_int=True)
    "int32": (jnp.arange(2), jnp.zeros(2, jnp.int32)),
    "bool": (jnp.array([True]), jnp.zeros(1, bool)),
    "key": (jax.random.key(0), np.zeros((), jax.dtypes.float0)),
    "text": ("relu", "relu"),
    "none": (None, None),
}
ODD_PARAMS = {"w": jnp.ones((2, 3)), **{name: p for name, (p, _) in LEFT_OUT.items()}}
ODD_GRADS = {"w": jnp.ones((2, 3)), **{name: g for name, (_, g) in LEFT_OUT.items()}}
TRAINS = {name: name == "w" for name in ODD_PARAMS}
IS_FROZEN = {name: name != "w" for name in ODD_PARAMS}

LEAVING_OUT: dict[str, Callable[[Any], Any]] = {
    "masked": lambda tx: gradx.masked(tx, TRAINS),
    "freeze": lambda tx: gradx.freeze(IS_FROZEN, tx),
    "frozen at the end": lambda tx: gradx.chain(gradx.masked(tx, TRAINS), gradx.freeze(IS_FROZEN)),
    "masked by Optax": lambda tx: optax.masked(tx, TRAINS),
}
AROUND: dict[str, Callable[[Any], Any]] = {
    "alone": lambda tx: tx,
    "chain": lambda tx: gradx.chain(gradx.identity(), tx),
    "MultiSteps": lambda tx: gradx.MultiSteps(tx, 2, should_skip_update_fn=gradx.skip_not_finite),
    "a conditional": lambda tx: gradx.MultiSteps(tx, 2, conditional=True),
    "no conditional": lambda tx: gradx.MultiSteps(tx, 2, conditional=False),
    "apply_if_finite": lambda tx: gradx.apply_if_finite(tx, 2),
    "conditionally_transform": lambda tx: gradx.conditionally_transform(tx, lambda step: step > 0),
    "cautious": gradx.cautious,
    "sam": lambda tx: gradx.sam(tx, gradx.masked(gradx.sgd(0.1), TRAINS)),
    "split": gradx.split_real_and_imaginary,
}


def the_rest(p: Any) -> Any:
    """What is left out, the key as its data."""
    assert p["text"] == ODD_PARAMS["text"]
    return {**{k: p[k] for k in ("int8", "int32", "bool")}, "key": jax.random.key_data(p["key"])}


@pytest.mark.parametrize("left_out", LEAVING_OUT)
@pytest.mark.parametrize("around", AROUND)
def test_leaves_that_nobody_optimizes_may_be_anything(around: str, left_out: str) -> None:
    tx = AROUND[around](LEAVING_OUT[left_out](gradx.sgd(0.1, momentum=0.9)))
    with jax.disable_jit():
        state, p = tx.init(ODD_PARAMS), ODD_PARAMS
        for _ in range(2):
            updates, state = tx.update(ODD_GRADS, state, p)
            p = gradx.apply_updates(p, updates)
    assert not np.array_equal(p["w"], ODD_PARAMS["w"])
    assert_same(the_rest(p), the_rest(ODD_PARAMS))


def test_lookahead_leaves_them_alone() -> None:
    tx = gradx.lookahead(gradx.freeze(IS_FROZEN, gradx.sgd(0.1)), 1, 0.5)
    p = gradx.LookaheadParams.init_synced(ODD_PARAMS)
    updates, _ = tx.update(ODD_GRADS, tx.init(p), p)
    assert_same(the_rest(gradx.apply_updates(p, updates).slow), the_rest(ODD_PARAMS))


def test_gradients_of_integers_under_jit() -> None:
    tx = gradx.chain(gradx.clip_by_global_norm(1.0), gradx.adam(0.1))
    tx = gradx.MultiSteps(gradx.freeze(gradx.by_path({"w": False}, default=True), tx), 2)
    p = {"w": jnp.ones(3), "codes": jnp.arange(3, dtype=jnp.int8)}

    @jax.jit
    def step(p: Any, state: Any) -> Any:
        g = jax.grad(lambda p: jnp.sum(p["w"] * p["codes"]), allow_int=True)(p)
        updates, state = tx.update(g, state, p)
        return gradx.apply_updates(p, updates), state

    new, state = p, tx.init(p)
    for _ in range(2):
        new, state = step(new, state)
    assert_same(new["codes"], p["codes"])
    assert not np.array_equal(new["w"], p["w"])
    assert "codes" in str(gradx.describe(tx, p))


# ---------------------------------------------------------------- dtypes


@pytest.mark.parametrize("dtype", [jnp.float8_e4m3fn, jnp.float8_e5m2, jnp.bfloat16])
def test_narrow_parameters_train(dtype: Any) -> None:
    """Nothing promotes float8: each step is that of float32, rounded."""
    tx = gradx.adam(0.25)
    p = {"w": jnp.array([1.0, -2.0], dtype)}
    for g in (p, {"w": jnp.array([1.0, -2.0])}):  # as narrow, or wide from a master
        updates, state = tx.update(g, tx.init(p), p)
        assert updates["w"].dtype == g["w"].dtype
        assert {x.dtype for x in jax.tree.leaves(state)} == {
            jnp.dtype("float32"),
            jnp.dtype("int32"),
        }
        assert_same(gradx.apply_updates(p, updates), {"w": jnp.array([0.75, -1.75], dtype)})


def test_other_functions_rest_on_no_promotion() -> None:
    wide, narrow = jnp.ones(3), jnp.ones(3, jnp.bfloat16)
    rate = gradx.warmup_cosine_decay_schedule(0.0, 1.0, 2, 5)
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        gradx.apply_updates(narrow, wide)
        gradx.apply_updates(jnp.arange(3), jnp.ones(3, jnp.int8))
        gradx.incremental_update(wide, narrow, 0.5)
        gradx.global_norm([wide, narrow])
        tx = gradx.add_noise(0.1, 0.5, key=0)
        tx.update(narrow, tx.init(narrow))
        rate(jnp.arange(3))
        gradx.piecewise_constant_schedule(1.0, {1: 0.5, 2: 0.5})(jnp.arange(3))
        tx = gradx.tunable(gradx.adamw(gradx.scaled(rate, 0.5), mu_dtype=jnp.bfloat16))
        tx.update(narrow, tx.init(narrow), narrow)


# ---------------------------------------------------------------- what can be saved


@pytest.mark.parametrize("key", [0, jax.random.PRNGKey(0), jax.random.key(0)], ids=str)
def test_a_seed_becomes_a_plain_array(key: Any) -> None:
    """And a typed key, or the state of an older run that has one, stays typed."""
    g = jnp.ones((2, 2))
    for make in (
        lambda key: gradx.add_noise(0.1, 0.5, key=key),
        lambda key: gradx.scale_by_psgd_kron(key=key),
        lambda key: gradx.hutchinson_estimator_diag_hessian(key),
    ):
        tx, seeded = make(key), make(0)
        with jax.disable_jit():
            state = tx.init(g)
            updates, new = tx.update(g, state, g, obj_fn=lambda p: jnp.sum(p**2))
            same, _ = seeded.update(g, state, g, obj_fn=lambda p: jnp.sum(p**2))
        assert_same(same, updates)
        assert [x.dtype for x in jax.tree.leaves(new)] == [x.dtype for x in jax.tree.leaves(state)]
        if not jnp.issubdtype(getattr(key, "dtype", int), jax.dtypes.prng_key):
            saved = serialization.to_bytes(state)
            assert_same(jax.tree.map(jnp.asarray, serialization.from_bytes(state, saved)), state)


@pytest.mark.parametrize(
    "tx",
    [gradx.set_to_zero(), gradx.freeze({"w": False, "n": True}, gradx.sgd(0.1))],
    ids=str,
)
def test_an_integer_that_nobody_optimizes_stays_one(tx: Any) -> None:
    """Also a scalar of a weak type, which under `jit` looks like a Python number."""
    params = {"w": jnp.ones(2), "n": jnp.asarray(2**24 + 1)}
    grads = jax.tree.map(jnp.zeros_like, params)
    updates, _ = tx.update(grads, tx.init(params), params)
    assert updates["n"].dtype == jnp.int32
    assert gradx.apply_updates(params, updates)["n"] == 2**24 + 1
