"""`snapshot` and `monitor`: measurements that leave the updates and the state's type alone."""

from __future__ import annotations

import json
import pickle
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from problems import assert_same, gradients, params
from runs import first, paths_and_types, types

import gradx

P = {"w": jnp.ones((2, 2)), "b": jnp.ones(2)}


@gradx.registered
def is_large(updates: Any) -> Any:
    return gradx.global_norm(updates) > 1.0


def monitors(library: Any, decay: Any = 0.5) -> dict[str, Any]:
    return {
        "norm": gradx.global_norm,
        "large": library.measure_with_ema(is_large, decay),
        "average": library.measure_with_ema(gradx.global_norm, decay, debias=False),
    }


# ---------------------------------------------------------------- snapshot and monitor


def test_the_measurements_are_optaxs() -> None:
    """Inside a chain, of what the updates are there, found by Optax's function."""
    found = {}
    for library in (gradx, optax):
        tx = library.chain(
            library.scale(0.5),
            library.snapshot("all", lambda updates: updates),
            library.monitor(monitors(library)),
            library.sgd(0.1),
        )
        state, update = tx.init(params()), jax.jit(tx.update)
        if library is gradx:
            init = optax.tree.get(state, "all")
            assert_same(init, jax.tree.map(jnp.asarray, params()))
        for i in range(3):
            updates, state = update(first(gradients(), i), state, params())
        names = ("all", "norm", "large", "average")
        found[library] = updates, [optax.tree.get(state, name) for name in names]
    ours, theirs = jax.tree.leaves(found[gradx]), jax.tree.leaves(found[optax])
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


def test_same_states_as_optaxs() -> None:
    snapshot = [library.snapshot("norm", gradx.global_norm) for library in (gradx, optax)]
    assert paths_and_types(snapshot[0].init(P)) == paths_and_types(snapshot[1].init(P))
    measured = [library.measure_with_ema(gradx.global_norm, 0.9) for library in (gradx, optax)]
    assert paths_and_types(measured[0].init(P)) == paths_and_types(measured[1].init(P))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_state_keeps_its_type(dtype: Any) -> None:
    """In Optax the first update adds the measurements: a second trace, and no scan."""
    tx = gradx.chain(
        gradx.snapshot("all", lambda updates: updates),
        gradx.snapshot("python", lambda updates: 1.0),
        gradx.monitor({"all": lambda updates: updates, **monitors(gradx)}),
    )
    p = jax.tree.map(lambda x: x.astype(dtype), P)
    state = tx.init(p)
    traces = []

    @jax.jit
    def update(state: Any, g: Any) -> Any:
        traces.append(1)
        return tx.update(g, state, p)[1]

    for _ in range(2):
        new = update(state, p)
        assert types(new) == types(state)
        assert jax.tree.structure(new) == jax.tree.structure(state)
        state = new
    assert len(traces) == 1
    jax.lax.scan(lambda s, _: (update(s, p), None), tx.init(p), length=2)
    wider = update(state, P)  # gradients of another dtype than the parameters
    assert types(wider) == types(state)
    theirs = optax.monitor(monitors(optax))
    state = theirs.init(P)
    assert jax.tree.structure(theirs.update(P, state)[1]) != jax.tree.structure(state)


def test_before_the_first_update_there_are_zeros() -> None:
    calls = []

    def measure(updates: Any) -> Any:
        calls.append(isinstance(updates["b"], jax.core.Tracer))
        return {"sum": updates["b"].sum(), "all": updates["w"]}

    state = gradx.monitor({"m": measure}).init(P)
    assert calls == [True]  # nothing is computed
    assert_same(state.measurements, {"m": {"sum": jnp.zeros(()), "all": jnp.zeros((2, 2))}})


def test_transformations_that_measure_get_parameters_and_extra_arguments() -> None:
    def update(updates: Any, state: Any, params: Any = None, *, loss: Any, **extra: Any) -> Any:
        return {"loss": loss, "size": gradx.global_norm(params)}, state

    theirs = optax.GradientTransformationExtraArgs(lambda params: (), update)
    plain = optax.GradientTransformation(lambda params: (), lambda u, s, p=None: (u["b"], s))
    decay = gradx.from_call("decay")
    tx = gradx.monitor({"all": theirs, "b": plain, "rate": gradx.measure_with_ema(is_large, decay)})
    state = tx.init(P)
    assert set(state.measurements) == {"b"}  # the others need arguments that `init` has not
    for _ in range(2):
        _, state = tx.update(P, state, P, loss=3.0, decay=0.5)
    assert state.measurements["all"] == {"loss": 3.0, "size": jnp.float32(6.0) ** 0.5}
    assert state.measurements["rate"] == 1.0
    with pytest.raises(ValueError, match="needs the extra argument 'decay'"):
        tx.update(P, state, P, loss=3.0)


def test_the_state_may_be_donated() -> None:
    """A measurement that is the parameters themselves has buffers of its own."""
    tx = gradx.chain(gradx.snapshot("all", lambda updates: updates), gradx.sgd(0.1))

    def step(p: Any, s: Any) -> Any:
        updates, s = tx.update(p, s, p)
        return gradx.apply_updates(p, updates), s

    p = jax.tree.map(jnp.array, P)
    p, state = jax.jit(step, donate_argnums=(0, 1))(p, tx.init(p))
    assert_same(optax.tree.get(state, "all"), P)


def test_numbers_can_be_live() -> None:
    tx = gradx.tunable(gradx.monitor({"large": gradx.measure_with_ema(is_large, 0.9)}))
    state = gradx.set_hyperparams(tx.init(P), decay=0.5)
    small = jax.tree.map(lambda x: 0.1 * x, P)
    for g in (P, small):
        _, state = tx.update(g, state)
    np.testing.assert_allclose(state.measurements["large"], 1 / 3, rtol=1e-6)


def test_bad_measures_are_refused() -> None:
    with pytest.raises(ValueError, match="snapshot: a measurement must have a name, got 3"):
        gradx.snapshot(3, is_large)
    with pytest.raises(ValueError, match="snapshot: measure must be a function"):
        gradx.snapshot("norm", 3)
    with pytest.raises(ValueError, match=r"monitor: 'norm' must be a function.*transformation"):
        gradx.monitor({"norm": 3})
    with pytest.raises(ValueError, match="monitor: measures must be a dict"):
        gradx.monitor(is_large)
    with pytest.raises(ValueError, match="measure_with_ema: measure must be a function"):
        gradx.measure_with_ema(gradx.ema(0.9), 0.9)
    with pytest.raises(ValueError, match=r"measure_with_ema: decay must be in \[0, 1\)"):
        gradx.measure_with_ema(is_large, 1.0)


def test_monitors_describe_themselves() -> None:
    tx = gradx.chain(
        gradx.snapshot("norm", gradx.global_norm),
        gradx.monitor({"large": gradx.measure_with_ema(is_large, 0.9)}),
    )
    assert repr(tx) == (
        "chain(snapshot('norm', global_norm), monitor({'large': measure_with_ema(is_large, 0.9)}))"
    )
    assert gradx.from_config(json.loads(json.dumps(gradx.to_config(tx)))) == tx
    assert pickle.loads(pickle.dumps(tx)) == tx
    assert gradx.describe(tx, P).rows[0].state.total() == gradx.state_bytes(tx.init(P))
