"""What a state counts does not depend on which leaves have a gradient."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import Case
from mechanisms import every_mechanism

import gradx

P = {"w": jnp.ones((2, 3)), "b": jnp.ones(3)}


def counts(state: Any) -> dict[str, int]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(state)
    whole = [(path, x) for path, x in leaves if jnp.shape(x) == () and x.dtype == jnp.int32]
    return {jax.tree_util.keystr(path): x for path, x in whole}


def counted(tx: Any, gradients: Any, params: Any) -> dict[str, int]:
    """What the state has counted after a step with these gradients."""

    with jax.disable_jit():
        return jax.tree.map(int, counts(tx.update(gradients, tx.init(params), params)[1]))


@every_mechanism
def test_a_step_without_gradients_is_counted_like_any_other(case: Case) -> None:
    """Else two counts of one state may part, and schedules follow neither."""
    tx = case.ready()
    nothing = jax.tree.map(lambda p: None, P)
    assert counted(tx, nothing, P) == counted(tx, {}, {}) == counted(tx, P, P)


NUMBERS = {"b1": 0.5, "b2": 0.5, "b3": 0.5, "alpha": 2.0}


@pytest.mark.parametrize("name", NUMBERS)
def test_ademamix_takes_numbers_by_path(name: str) -> None:
    """Each leaf is as if its numbers were everybody's."""
    by_path = gradx.by_path({"w": NUMBERS[name]}, default=0.25)
    mixed, first, second = (
        gradx.scale_by_ademamix(**{name: value}) for value in (by_path, NUMBERS[name], 0.25)
    )
    states = [tx.init(P) for tx in (mixed, first, second)]
    for scale in (1.0, -3.0):
        g = jax.tree.map(functools.partial(jnp.multiply, scale), P)
        made = []
        for i, tx in enumerate((mixed, first, second)):
            u, states[i] = tx.update(g, states[i], P)
            made.append(u)
    np.testing.assert_array_equal(made[0]["w"], made[1]["w"])
    np.testing.assert_array_equal(made[0]["b"], made[2]["b"])
    assert float(jnp.abs(made[1]["b"] - made[2]["b"]).max()) > 0


@pytest.mark.full
def test_psgd_takes_the_numbers_of_single_matrices_by_path() -> None:
    p = {"u": jnp.ones((2, 3)), "v": jnp.ones((2, 3))}
    by_path = gradx.by_path({"u": 0.5}, default=0.25)
    given: Any = {"preconditioner_update_probability": 1.0, "probe": "expected"}
    made = {
        rate: tx.update(p, tx.init(p), p)[0]
        for rate in (by_path, 0.5, 0.25)
        for tx in [gradx.scale_by_psgd_kron(preconditioner_lr=rate, **given)]
    }
    np.testing.assert_array_equal(made[by_path]["u"], made[0.5]["u"])
    np.testing.assert_array_equal(made[by_path]["v"], made[0.25]["v"])
    assert float(jnp.abs(made[0.5]["u"] - made[0.25]["u"]).max()) > 0
    with pytest.raises(ValueError, match=r"one number for the whole tree.*update_probability"):
        gradx.scale_by_psgd_kron(preconditioner_update_probability=by_path)


@pytest.mark.parametrize("state", [gradx.scale_by_ademamix().init(P)], ids=["two fields"])
def test_fields_with_the_same_count_have_their_own_buffers(state: Any) -> None:
    """A state is donated, and nothing can be donated twice."""
    tx = gradx.scale_by_ademamix()
    step = jax.jit(lambda s: tx.update(P, s, P)[1], donate_argnums=0)
    for done in range(3):
        assert (int(state.count), int(state.count_m2)) == (done, done)
        state = step(state)
