"""`tree_map_params`: what in a state belongs to a parameter, whoever made the state."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
import pytest
from problems import assert_same

import gradx

P = {"w": jnp.ones((2, 2)), "b": jnp.ones(2)}

CHAINS = {
    "gradx": lambda: gradx.chain(gradx.clip_by_global_norm(gradx.tunable(1.0)), gradx.adamw(0.1)),
    "optax": lambda: optax.chain(optax.clip(1.0), optax.adamw(0.1, mask={"w": True, "b": False})),
    "masks": lambda: gradx.masked(gradx.adam(0.1), gradx.by_path({"w": True}, default=False)),
    "optax's masks": lambda: optax.masked(gradx.adam(0.1), {"w": True, "b": False}),
    "groups": lambda: gradx.partition(
        {"a": gradx.trace(gradx.by_path({"w": 0.5})), "b": optax.adam(0.1)},
        gradx.by_path({"w": "a"}, default="b"),
    ),
    "numbers": lambda: gradx.inject_hyperparams(gradx.rmsprop)(lambda count: 0.1, momentum=0.9),
    "optax's numbers": lambda: optax.inject_hyperparams(optax.adam)(0.1),
    "monitors": lambda: gradx.chain(
        gradx.monitor({"norm": gradx.measure_with_ema(gradx.global_norm, 0.9)}), gradx.lion(0.1)
    ),
}


@pytest.mark.parametrize("name", CHAINS)
def test_tree_map_params_finds_what_belongs_to_a_parameter(name: str) -> None:
    tx = CHAINS[name]()
    state = tx.init(P)
    sizes = jax.tree.map(lambda x: x.size, P)

    def check(x: Any, size: Any) -> Any:
        assert x.size == size
        return "params"

    found = gradx.tree_map_params(tx, check, state, sizes, transform_non_params=lambda _: "other")
    assert jax.tree.structure(found) == jax.tree.structure(state)
    kinds = dict(zip(map(id, jax.tree.leaves(state)), jax.tree.leaves(found), strict=True))
    for x in jax.tree.leaves(state):
        assert kinds[id(x)] == ("params" if x.shape in ((2, 2), (2,)) else "other")
    assert "params" in kinds.values()
    assert_same(gradx.tree_map_params(tx.init, lambda x: x, state), state)
    hidden = lambda x: isinstance(x, gradx.MaskedNode)
    theirs = optax.tree_map_params(
        tx,
        lambda x, size: x if hidden(x) else check(x, size),
        state,
        sizes,
        transform_non_params=lambda _: "other",
        is_leaf=hidden,
    )
    assert theirs == found


def test_tree_map_params_where_a_parameter_has_several_arrays() -> None:
    class State(NamedTuple):
        velocities: Any

    tx = gradx.leafwise(
        lambda g, s, p, h: (g, s),
        init=lambda p: {"velocities": (jnp.zeros_like(p), jnp.zeros_like(p))},
        state=State,
    )
    names = {"w": ("in", "out"), "b": ("out",)}  # values may be containers themselves
    state = tx.init(P)
    found = gradx.tree_map_params(tx, lambda x, n: n, state, {"w": "w", "b": "b"})
    assert found.velocities == {"w": ("w", "w"), "b": ("b", "b")}
    adam = gradx.scale_by_adam()
    assert gradx.tree_map_params(adam, lambda x, n: n, adam.init(P), names).mu == names
    with_none = adam.init({**P, "none": None})
    found = gradx.tree_map_params(adam, lambda x, n: n, with_none, {**names, "none": "none"})
    assert found.mu == {**names, "none": None}


def test_tree_map_params_refuses_what_does_not_fit() -> None:
    tx = gradx.adam(0.1)
    with pytest.raises(ValueError, match=r"not one of adam\(0\.1\)"):
        gradx.tree_map_params(tx, lambda x: x, gradx.sgd(0.1).init(P))
    with pytest.raises(
        ValueError,
        match=r"tree_map_params: the parameters and the tree.* Only in the parameters: 'b'",
    ):
        gradx.tree_map_params(tx, lambda x, y: x, tx.init(P), {"w": 1})
