"""Matrix optimizers: holes in trees, gates that disagree, explicit meshes, extreme numbers."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases import first_of
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from problems import assert_close, assert_same

import gradx

RULES = {
    "muon": gradx.scale_by_muon(),
    "soap": gradx.scale_by_soap(precondition_frequency=2),
    "kl_shampoo": gradx.scale_by_kl_shampoo(precondition_frequency=2),
    "shampoo": gradx.scale_by_shampoo(),
    "psgd": gradx.scale_by_psgd_kron(),
    "splus": gradx.scale_by_splus(precondition_frequency=2),
    "dion": gradx.scale_by_dion(),
    "dion2": gradx.scale_by_dion2(),
}
one_rule = first_of("tx", RULES.values(), ids=RULES)


def normal(*shape: int, seed: int = 0) -> Any:
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def same(a: Any, b: Any, rtol: float = 2e-5) -> None:
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(
            x, y, rtol=rtol, atol=rtol * float(jnp.max(jnp.abs(y), initial=1.0))
        ),
        a,
        b,
    )


@one_rule
def test_a_hole_before_the_matrices(tx: Any) -> None:
    some = {"b": normal(4, 3), "c": normal(3, 3, seed=1)}
    holed = {"a": None, **some}
    updates, state = tx.update(holed, tx.init(holed), holed)
    alone, of_alone = tx.update(some, tx.init(some), some)
    assert updates.pop("a") is None
    same(updates, alone)
    assert len(jax.tree.leaves(state)) == len(jax.tree.leaves(of_alone))


@one_rule
@pytest.mark.full
def test_gates_of_many_states_may_disagree(tx: Any) -> None:
    gated = gradx.apply_if_finite(tx, 5)
    p = normal(2, 4, 3)
    state = jax.vmap(gated.init)(p)
    step = jax.jit(jax.vmap(gated.update))
    _, state = step(normal(2, 4, 3, seed=1), state, p)
    bad = normal(2, 4, 3, seed=2).at[0].set(jnp.nan)
    _, new = step(bad, state, p)
    lane = lambda i, tree: jax.tree.map(lambda x: x[i], tree)
    assert_same(lane(0, new.inner_state), lane(0, state.inner_state))
    _, alone = jax.jit(gated.update)(bad[1], lane(1, state), p[1])
    same(lane(1, new.inner_state), alone.inner_state)


@one_rule
@first_of("shared", [True, False])
@pytest.mark.full
def test_sharded_leaves_on_an_explicit_mesh(tx: Any, shared: bool) -> None:
    """Several steps, with parameters, gradients and state on the mesh."""
    mesh = jax.make_mesh((2,), ("d",), axis_types=(AxisType.Explicit,))
    if shared:
        share = gradx.Share(mesh, "d")
        tx = tx.spec.factory(**{**dict(tx.spec.arguments), "share": share})
    specs = {"a": P("d", None), "b": P(None, "d"), "c": P()}

    def on_mesh(tree: Any) -> Any:
        return {k: jax.device_put(x, NamedSharding(mesh, specs[k])) for k, x in tree.items()}

    with jax.enable_x64(True):
        shapes = {"a": (4, 6), "b": (4, 6), "c": (6, 6)}
        wide = lambda seed: {
            k: normal(*s, seed=seed + i).astype(jnp.float64)
            for i, (k, s) in enumerate(shapes.items())
        }
        params, step = wide(0), jax.jit(tx.update)
        placed = on_mesh(params)
        want_state, state = tx.init(params), tx.init(placed)
        for i in range(3):
            g = wide(10 * i + 10)
            want, want_state = step(g, want_state, params)
            got, state = step(on_mesh(g), state, placed)
            same(got, want, rtol=1e-9)
            for k, x in placed.items():
                assert jax.typeof(got[k]).sharding.spec == jax.typeof(x).sharding.spec


@one_rule
def test_half_precision_is_rounded_once(tx: Any) -> None:
    """At the end of a chain, not after the rule."""
    p = normal(8, 6).astype(jnp.bfloat16)
    g = [normal(8, 6, seed=i).astype(jnp.bfloat16) for i in (1, 2)]

    def last(tx: Any, dtype: Any) -> Any:
        state = tx.init(p)
        for x in g:
            u, state = tx.update(x.astype(dtype), state, p.astype(dtype))
        return u

    half = last(gradx.chain(tx, gradx.scale(3.0)), jnp.bfloat16)
    wide = last(gradx.chain(tx, gradx.scale(3.0)), jnp.float32)
    assert half.dtype == jnp.bfloat16
    assert_same(half, wide.astype(jnp.bfloat16))


def test_narrow_products_leave_complex_matrices_whole() -> None:
    g = jnp.array([[1j, 0], [0, 1]], jnp.complex64)
    tx = gradx.scale_by_muon(dtype=jnp.bfloat16)
    same(tx.update(g, tx.init(g))[0], gradx.scale_by_muon().update(g, tx.init(g))[0])
    tx = gradx.scale_by_soap(mu_dtype=jnp.bfloat16)
    assert tx.init(g).mu.dtype == jnp.complex64


@pytest.mark.parametrize("size", [1e38, 3e38, 1e-36])
def test_a_gradient_near_the_end_of_the_range(size: float) -> None:
    tx = gradx.scale_by_muon("exact", beta=0.0, eps=0.0)
    g = jnp.eye(3) * 0.25 + 0.5
    want, _ = tx.update(g, tx.init(g))
    same(tx.update(g * size, tx.init(g))[0], want)
    tx = gradx.scale_by_muon(beta=0.0, eps=0.0)
    want, _ = tx.update(g, tx.init(g))
    same(tx.update(g * size, tx.init(g))[0], want)


@first_of("factory", [gradx.muon, gradx.soap, gradx.splus, gradx.scion])
def test_numbers_by_path_for_either_group(factory: Any) -> None:
    params = {"embed": normal(5, 3), "mlp": normal(4, 3), "bias": normal(3)}
    rate = gradx.by_path({"embed": 0.5, "mlp": 0.1}, default=0.2)
    tx = factory(rate)
    updates, _ = jax.jit(tx.update)(params, tx.init(params), params)
    for path in params:
        one = factory(rate.pick(path))
        want, _ = one.update(params, one.init(params), params)
        assert_close(updates[path], want[path], rtol=1e-5)
    with pytest.raises(ValueError, match="the pattern 'emebd' claims no leaf"):
        factory(gradx.by_path({"emebd": 0.5}, default=0.2)).init(params)


@pytest.mark.parametrize("with_params", [True, False])
def test_a_matrix_without_a_gradient_keeps_its_state(with_params: bool) -> None:
    """Nobody needs to know its shape, so nobody needs the parameters."""
    params = {"mlp": normal(4, 3), "up": normal(3, 4), "bias": normal(3)}
    tx = gradx.muon(0.1)
    _, state = tx.update(params, tx.init(params), params)
    updates, after = tx.update({**params, "mlp": None}, state, params if with_params else None)
    whole, _ = tx.update(params, state, params)
    assert updates["mlp"] is None
    for name in ("up", "bias"):
        same(updates[name], whole[name])
    mu = after.inner_states["muon"].inner_state[0].mu
    same(mu["mlp"], state.inner_states["muon"].inner_state[0].mu["mlp"])
    assert not np.array_equal(mu["up"], state.inner_states["muon"].inner_state[0].mu["up"])


def test_a_matrix_without_a_gradient_beside_an_optimizer_of_optax() -> None:
    params = {"mlp": jnp.ones((3, 3)), "bias": jnp.ones(3)}
    tx = gradx.muon(0.1, fallback=optax.adam(1e-3))
    missing = {**params, "mlp": None}
    _, state = tx.update(missing, tx.init(params), params)
    assert tx.update(params, state, params)[0]["mlp"].shape == (3, 3)
    with pytest.raises(
        ValueError, match=r"at 'mlp' there is no gradient.*update.updates, state, p"
    ):
        tx.update(missing, state)


def rule(g: Any, s: Any, p: Any, h: Any) -> Any:
    return g, s


def bare(p: Any) -> Any:
    return p


class OneField(NamedTuple):
    mu: Any


@pytest.mark.parametrize(
    ("given", "match"),
    [
        (
            {"init": bare, "state": OneField},
            r"the fields \['mu'\] of OneField.* gives <.*\[4, 3\]>",
        ),
        ({"state": OneField}, r"the fields \['mu'\] of OneField, .* gives \[\]"),
        ({"like_leaf": {"nu": None}, "state": OneField}, r"like_leaf has \['nu'\]"),
        ({"every": 2}, "about renew"),
        ({"renew": bare, "state": OneField}, "needs a state with the field 'count'"),
    ],
)
def test_a_rule_that_does_not_fit_its_state(given: Any, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        gradx.matrixwise(rule, **given).init(normal(4, 3))
