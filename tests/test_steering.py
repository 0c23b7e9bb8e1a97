"""When early stopping raises its flag, a factor for each stacked layer, and what is decayed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from problems import assert_same

import gradx
from gradx.core.known import METRICS

G = jnp.array([1.0, -3.0], jnp.bfloat16)


def flags(values: Sequence[float], **kwargs: Any) -> str:
    """One letter a call: is the flag up?"""
    tx, seen = gradx.early_stopping(**kwargs), ""
    with jax.disable_jit():
        state = tx.init(G)
        for value in values:
            updates, state = tx.update(G, state, value=value)
            assert_same(updates, G)
            seen += "y" if state.stop else "n"
    return seen


@pytest.mark.parametrize(
    ("values", "kwargs", "expected"),
    [
        ([3, 2, 2, 2], {"patience": 2}, "nnny"),  # as good is no better
        ([3, 4, 2, 3, 1, 2, 2], {"patience": 2}, "nnnnnny"),  # in a row
        ([1, 2, 0, -1], {"patience": 1}, "nyyy"),  # it stays up
        ([3, 2.9, 2.8], {"patience": 2, "atol": 0.25}, "nny"),
        ([-4, -4.3, -4.9], {"patience": 2, "rtol": 0.1}, "nnn"),  # each against the best
        ([-4, -4.3, -4.39], {"patience": 2, "rtol": 0.1}, "nny"),
        ([3, math.nan, 2, math.nan, math.nan], {"patience": 2}, "nnnny"),
        ([4, 2, 3, 3, 2, 4], {"patience": 2, "accumulation_size": 2}, "nnnnny"),  # 3, 3, 3
    ],
)
def test_the_flag_goes_up_after_patience(
    values: list[float], kwargs: dict[str, Any], expected: str
) -> None:
    assert flags(values, **kwargs) == expected


def test_a_flag_is_found_in_any_chain() -> None:
    """Where `metrics` looks: in Optax's chains, too."""
    tx = optax.chain(optax.adam(0.1), gradx.chain(gradx.early_stopping(2), gradx.scale(1.0)))
    (found,) = METRICS.find(jax.eval_shape(tx.init, G))
    assert found.known(found.state).keys() == {"stop", "best_value"}
    assert found.state.stop.dtype == bool


# ---------------------------------------------------------------- stacked layers


def test_each_layer_has_its_factor() -> None:
    """Constants, live values and schedules, along any axis."""
    factors = 0.5, gradx.tunable(2.0), lambda count: 1.0 * count
    tx = gradx.scale_layers(factors, axis=-1)
    g = {"w": jnp.ones((2, 3), jnp.float16), "z": jnp.full(3, 1j), "none": None}
    with jax.disable_jit():
        state = gradx.set_hyperparams(tx.init(g), tx=tx, factor_1=4.0)
        for count in range(2):
            updates, state = tx.update(g, state)
            row = np.array([0.5, 4.0, count])
            assert_same(updates["w"], jnp.asarray(np.stack([row, row]), jnp.float16))
            assert_same(updates["z"], jnp.asarray(1j * row, g["z"].dtype))
            assert updates["none"] is None


def test_leaves_that_are_not_stacked_are_named() -> None:
    tx = gradx.scale_layers((1.0, 0.5))
    with pytest.raises(ValueError, match=r"2 factors.* axis 0; 'head' has the shape \(3, 2\)"):
        tx.init({"blocks": jnp.ones((2, 3)), "head": jnp.ones((3, 2))})
    with pytest.raises(ValueError, match=r"scale_layers: .*axis 0; 'bias' has the shape \(\)"):
        tx.update({"bias": jnp.ones(())}, tx.init({}))
    with pytest.raises(ValueError, match=r"scale_layers: factors\[1\] must be"):
        gradx.scale_layers((1.0, math.inf))
    for wrong in ((), 0.5):
        with pytest.raises(ValueError, match="scale_layers: factors must be a tuple"):
            gradx.scale_layers(wrong)
    with pytest.raises(ValueError, match="scale_layers: axis must be a whole number"):
        gradx.scale_layers((1.0,), axis=0.5)


# ---------------------------------------------------------------- what is decayed


def test_a_number_is_told_leaf_by_leaf() -> None:
    params = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2), "head": jnp.ones((2, 2))}
    tx = gradx.partition(
        {
            "body": gradx.adamw(0.1, weight_decay=gradx.by_path({"bias": 0.0}, default=0.2)),
            "head": gradx.chain(gradx.add_decayed_weights(0.3), gradx.adamw(0.1)),
        },
        gradx.by_path({"head": "head"}, default="body"),
    )
    table = gradx.describe(tx, params)
    assert table.by_leaf("weight_decay") == {"bias": "0.0", "head": "0.3, 0.0001", "kernel": "0.2"}
    masked = gradx.adamw(0.1, weight_decay=0.1, mask=gradx.weights_only)
    by_optax = gradx.masked(optax.sgd(0.1), gradx.by_path({"head": True}, default=False))
    told = gradx.describe(gradx.chain(by_optax, masked), params)
    assert told.by_leaf("weight_decay") == {"bias": "-", "head": "?, 0.1", "kernel": "0.1"}
    with pytest.raises(ValueError, match=r"no number 'decay' here, but \['b1', 'b2'"):
        table.by_leaf("decay")
