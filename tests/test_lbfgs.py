"""L-BFGS: the same ways as Optax's, the minima of SciPy's, and what its memory costs."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases import first_of
from compilers import counts_buffers
from objectives import (
    OBJECTIVES,
    assert_same_way,
    himmelblau,
    objective,
    quickly,
    rosenbrock,
    starts,
)

import gradx

P = jax.sharding.PartitionSpec


# ---------------------------------------------------------------- the same ways as Optax's


@first_of(
    "kwargs, dtype, steps",
    [
        ({}, np.float64, 8),
        ({}, np.float32, 6),
        ({"memory_size": 1}, np.float64, 8),
        ({"learning_rate": 0.5, "memory_size": 5, "scale_init_precond": False}, np.float64, 8),
    ],
    ids=["default", "float32", "short", "unscaled"],
)
def test_it_goes_the_way_of_optax(kwargs: Any, dtype: Any, steps: int) -> None:
    assert_same_way(lambda lib: lib.lbfgs(**kwargs), dtype, steps)


def test_the_state_is_that_of_optax() -> None:
    x = {"w": jnp.ones((2, 3)), "b": jnp.ones(())}
    ours, theirs = (
        [
            (jax.tree_util.keystr(path), leaf.shape, leaf.dtype)
            for path, leaf in jax.tree_util.tree_flatten_with_path(lib.lbfgs().init(x))[0]
        ]
        for lib in (gradx, optax)
    )
    assert ours == theirs
    state = gradx.lbfgs().init(x)
    assert optax.tree_utils.tree_get(state, "count") == 0
    assert [type(s).__name__ for s in state] == [type(s).__name__ for s in optax.lbfgs().init(x)]


# ---------------------------------------------------------------- the minima of SciPy's


def minimum(f: Any, x: Any, tolerance: float, steps: int = 300, **data: Any) -> Any:
    """`(x, updates done, evaluations)`, in one loop, until no partial derivative is larger."""
    tx = gradx.lbfgs()
    value_and_grad = gradx.value_and_grad_from_state(f)

    def body(carry: Any) -> Any:
        x, state, evaluations = carry
        value, grad = value_and_grad(x, state=state, **data)
        updates, state = tx.update(grad, state, x, value=value, grad=grad, value_fn=f, **data)
        return x + updates, state, evaluations + state[-1].info.num_linesearch_steps

    def goes_on(carry: Any) -> Any:
        memory, _, search = carry[1]
        steep = jnp.max(jnp.abs(search.grad)) > tolerance
        return (memory.count == 0) | ((memory.count < steps) & steep)

    x, state, evaluations = jax.lax.while_loop(goes_on, body, (x, tx.init(x), 1))
    return x, state[0].count, evaluations


def minimum_of_scipy(value_and_grad_of: Any, x: Any, tolerance: float, *data: Any) -> Any:
    from scipy.optimize import minimize  # scikit-learn brings SciPy; seconds, only under `full`

    def value_and_grad(x: Any) -> Any:
        value, grad = value_and_grad_of(x, *data)
        return float(value), np.asarray(grad)

    options = {"maxcor": 10, "ftol": 0.0, "gtol": tolerance, "maxiter": 300}
    return minimize(value_and_grad, np.asarray(x), jac=True, method="L-BFGS-B", options=options)


@pytest.mark.full
def test_the_minima_of_scipy() -> None:
    """With about as many evaluations: the first column is gradx's, the second SciPy's.

    rosenbrock          46     46
    rosenbrock 10      105     96
    himmelblau          23     18
    beale               17     17
    booth               10     10
    matyas               8      7
    sphere               4      4
    ill-conditioned    205    220
    styblinski-tang     10      8
    zakharov            13     12
    """
    with jax.enable_x64(True):
        run = jax.vmap(lambda x, which: minimum(objective, x, 1e-8, which=which))
        x, _, evaluations = quickly(run)(starts(), jnp.arange(len(OBJECTIVES)))
        value_and_grad = quickly(jax.value_and_grad(objective))
        for i, o in enumerate(OBJECTIVES):
            scipy = minimum_of_scipy(value_and_grad, starts()[i], 1e-8, i)
            value, _ = value_and_grad(x[i], i)
            assert abs(value - o.lowest) < 1e-12 * max(1.0, abs(o.lowest)), o.name
            assert abs(scipy.fun - o.lowest) < 1e-12 * max(1.0, abs(o.lowest)), o.name
            assert evaluations[i] <= 1.25 * scipy.nfev + 4, (o.name, evaluations[i], scipy.nfev)


@pytest.mark.full
def test_the_logistic_regression_of_scipy() -> None:
    """569 tumours, 30 measurements of each: the minimum that SciPy finds."""
    from sklearn.datasets import load_breast_cancer

    data = load_breast_cancer()
    features = (data.data - data.data.mean(0)) / data.data.std(0)

    def loss(w: Any, features: Any, signs: Any) -> Any:
        margins = signs * (features @ w[:-1] + w[-1])
        return jnp.mean(jnp.logaddexp(0.0, -margins)) + 0.005 * jnp.sum(w[:-1] ** 2)

    with jax.enable_x64(True):
        given = {"features": jnp.asarray(features), "signs": jnp.asarray(2.0 * data.target - 1)}
        w = jnp.zeros(31)
        found, _, evaluations = quickly(lambda w: minimum(loss, w, 1e-6, **given))(w)
        scipy = minimum_of_scipy(quickly(jax.value_and_grad(loss)), w, 1e-6, *given.values())
        np.testing.assert_allclose(loss(found, **given), scipy.fun, rtol=1e-10)
        np.testing.assert_allclose(found, scipy.x, atol=1e-4)
        assert evaluations <= 1.25 * scipy.nfev + 4


# ---------------------------------------------------------------- steps that it must not use


@pytest.mark.parametrize("fixed", [True, False], ids=["fixed", "backtracking"])
@pytest.mark.full
def test_it_goes_to_minima_only(fixed: bool) -> None:
    """Himmelblau's function has four minima of 0, four saddles, and a maximum of 181.6.

    Where the gradient did not grow along a step, P would not be positive definite: of 50 ways Optax
    ends 37 on the maximum with fixed step sizes, and 17 above 100 with backtracking.
    """

    def values(lib: Any) -> Any:
        search = None if fixed else lib.scale_by_backtracking_linesearch(20)
        tx = lib.lbfgs(0.1 if fixed else None, linesearch=search)

        def run(x: Any) -> Any:
            def body(carry: Any, _: Any) -> Any:
                x, state = carry
                value, grad = jax.value_and_grad(himmelblau)(x)
                extra = {"value": value, "grad": grad, "value_fn": himmelblau}
                updates, state = tx.update(grad, state, x, **extra)
                return (x + updates, state), None

            return himmelblau(jax.lax.scan(body, (x, tx.init(x)), length=150)[0][0])

        x = jnp.asarray(np.random.default_rng(1).normal(size=(50, 2)) * 1.5)
        return np.asarray(quickly(jax.vmap(run))(x))

    with jax.enable_x64(True):
        ours, theirs = values(gradx), values(optax)
    assert np.sum(theirs > 100) > 10
    assert np.sum(ours > 100) == 0
    assert np.median(ours) < 1e-3


def test_a_step_without_curvature_is_left_out() -> None:
    """Its weight is 0, also where 1 / <s, y> would overflow; the scale stays."""
    tx = gradx.scale_by_lbfgs(memory_size=3)
    x, g = jnp.array([1.0, -1.0]), jnp.array([3.0, 4.0])
    state = tx.init(x)
    steps = [(x, g), (x - 0.1 * g, 0.5 * g), (x, 0.5 * g - 1e-3), (x + 1e-20, 0.5 * g)]
    made = []
    for p, gradient in steps:
        updates, state = tx.update(gradient, state, p)
        made.append(updates)
    np.testing.assert_allclose(made[0], g / 5)  # the first direction is no longer than 1
    np.testing.assert_allclose(made[1], 0.2 * 0.5 * g, rtol=1e-6)  # s = 0.2 y
    np.testing.assert_allclose(state.weights_memory, [1 / (0.1 * 0.5 * 25), 0, 0], rtol=1e-6)
    assert all(np.isfinite(u).all() for u in made)
    huge, _ = tx.update(jnp.full(2, 1e30), tx.init(x), x)  # whose square overflows
    assert np.isfinite(huge).all()
    assert huge[0] > 0


# ---------------------------------------------------------------- one program


def one_step(tx: Any, f: Any, x: Any, state: Any) -> Any:
    value, grad = jax.value_and_grad(f)(x)
    grad = jax.tree.map(jnp.conj, grad)
    updates, state = tx.update(grad, state, x, value=value, grad=grad, value_fn=f)
    return gradx.apply_updates(x, updates), state


def test_a_step_is_compiled_once() -> None:
    tx = gradx.lbfgs(memory_size=3)
    traces = []

    @quickly
    def step(x: Any, state: Any) -> Any:
        traces.append(1)
        return one_step(tx, rosenbrock, x, state)

    def types(tree: Any) -> Any:
        return [(leaf.dtype, leaf.shape, leaf.weak_type) for leaf in jax.tree.leaves(tree)]

    x = jnp.array([-1.2, 1.0])
    state = tx.init(x)
    for _ in range(2):
        new_x, new = step(x, state)
        assert types((new_x, new)) == types((x, state))
        x, state = new_x, new
    assert len(traces) == 1


def test_it_is_differentiable() -> None:
    """Through the memory and at a zero gradient: the fixed-size variant is no more than sums."""

    def after(start: Any) -> Any:
        tx, x = gradx.lbfgs(0.1, memory_size=3, linesearch=None), start
        state = tx.init(x)
        for _ in range(4):
            updates, state = tx.update(2 * x * jnp.array([1.0, 5.0]), state, x)
            x = x + updates
        return jnp.sum(x**2)

    grad = quickly(jax.grad(after))
    for start in ([1.0, 2.0], [0.0, 0.0], [1.0, 0.0]):
        assert np.isfinite(grad(jnp.array(start))).all()


@pytest.mark.full
def test_it_minimises_on_each_device_for_itself() -> None:
    tx = gradx.lbfgs(memory_size=2)
    mesh = jax.make_mesh((2,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))

    def run(x: Any) -> Any:
        state = tx.init(x[0])
        x, state = one_step(tx, rosenbrock, x[0], state)  # now all of it varies
        body = lambda _, carry: one_step(tx, rosenbrock, *carry)
        return jax.lax.fori_loop(0, 3, body, (x, state))[0][None]

    x = jnp.array([[-1.2, 1.0], [2.0, -1.0]])
    apart = quickly(jax.shard_map(run, mesh=mesh, in_specs=P("d"), out_specs=P("d")))(x)
    np.testing.assert_allclose(apart, quickly(jax.vmap(lambda x: run(x[None])[0]))(x), rtol=1e-4)


# ---------------------------------------------------------------- trees


def test_none_and_empty_trees_and_a_zero_gradient() -> None:
    tx = gradx.lbfgs(memory_size=2)
    x = {"w": jnp.zeros(2), "none": None, "empty": jnp.zeros((0, 3))}
    f = lambda p: jnp.sum(p["w"] ** 2)
    state = tx.init(x)
    step = quickly(lambda x, state: one_step(tx, f, x, state))
    for _ in range(2):
        x, state = step(x, state)
    assert x["none"] is None
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((x, state)))
    nothing = quickly(lambda state: one_step(tx, lambda _: jnp.ones(()), {}, state))
    assert nothing(tx.init({}))[0] == {}


@pytest.mark.full
def test_a_tree_is_one_vector_and_a_complex_plane_two_real_ones() -> None:
    tx = gradx.lbfgs(memory_size=3)

    def after(f: Any, x: Any) -> Any:
        def run(x: Any) -> Any:
            body = lambda _, carry: one_step(tx, f, *carry)
            return jax.lax.fori_loop(0, 6, body, (x, tx.init(x)))[0]

        return quickly(run)(x)

    with jax.enable_x64(True):
        x = jnp.array([-1.2, 1.0, 0.5, 2.0])
        expected = after(rosenbrock, x)
        tree = {"a": x[:1], "b": (x[1], x[2:].reshape(2, 1))}
        joined = lambda t: jnp.concatenate([jnp.ravel(a) for a in jax.tree.leaves(t)])
        np.testing.assert_allclose(joined(after(lambda t: rosenbrock(joined(t)), tree)), expected)
        parts = lambda z: jnp.concatenate([z.real, z.imag])
        z = after(lambda z: rosenbrock(parts(z)), x[:2] + 1j * x[2:])
        np.testing.assert_allclose(parts(z), expected)


def test_a_step_that_does_not_count_leaves_the_memory_alone() -> None:
    tx = gradx.apply_if_finite(gradx.scale_by_lbfgs(memory_size=2), max_consecutive_errors=5)
    x = jnp.array([1.0, 2.0])
    state = tx.init(x)
    for k in range(3):
        _, state = tx.update(x * (3.0 - k), state, x - 0.1 * k)
    updates, after = tx.update(jnp.array([jnp.nan, 1.0]), state, x)
    np.testing.assert_array_equal(updates, 0.0)
    jax.tree.map(np.testing.assert_array_equal, after.inner_state, state.inner_state)


def test_it_works_on_a_part_of_the_parameters() -> None:
    """What a mask hides has no memory; the line search, behind it, sees the whole."""
    x = {"body": jnp.array([3.0]), "head": jnp.array([-1.2, 1.0])}
    frozen = gradx.freeze(gradx.by_path({"body": True}, default=False), gradx.scale_by_lbfgs())
    tx = gradx.chain(frozen, gradx.scale(-1.0), gradx.scale_by_zoom_linesearch(10))
    f = lambda p: rosenbrock(p["head"]) + jnp.sum(p["body"])
    state = tx.init(x)
    memory = state[0].inner_states["train"].inner_state
    assert [m.shape for m in jax.tree.leaves(memory.diff_params_memory)] == [(10, 2)]
    new, _ = quickly(lambda x, state: one_step(tx, f, x, state))(x, state)
    assert new["body"] == 3.0
    assert f(new) < f(x)


# ---------------------------------------------------------------- what it costs


def memory_of(tx: Any, n: int = 8) -> tuple[int, float]:
    """The donated bytes that are not reused; the temporaries, in sizes of all parameters."""
    p = {f"w{i}": jax.ShapeDtypeStruct((64, 64), jnp.float32) for i in range(n)}
    state = jax.eval_shape(tx.init, p)

    def step(p: Any, state: Any, g: Any) -> Any:
        updates, state = tx.update(g, state, p)
        return gradx.apply_updates(p, updates), state

    used = quickly(step, donate_argnums=(0, 1)).lower(p, state, p).compile().memory_analysis()
    donated = gradx.state_bytes((p, state))
    return donated - used.alias_size_in_bytes, used.temp_size_in_bytes / gradx.state_bytes(p)


@counts_buffers
@pytest.mark.full
def test_the_memory_is_updated_in_place() -> None:
    """Beside the direction there is one leaf of the memory at a time; Optax has four copies."""
    (not_reused, ours), (_, theirs) = (memory_of(lib.scale_by_lbfgs()) for lib in (gradx, optax))
    assert not_reused == 0
    assert ours < 1.5
    assert ours < 0.3 * theirs


def test_the_memory_is_sharded_like_the_parameters() -> None:
    mesh = jax.make_mesh((4,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    x = jax.device_put(jnp.ones((8, 2)), jax.sharding.NamedSharding(mesh, P("d")))
    tx = gradx.lbfgs(0.1, memory_size=3, linesearch=None)
    state = tx.init(x)
    _, new = jax.jit(tx.update)(x, state, x)
    for memory in (state[0], new[0]):
        for leaf in (memory.diff_params_memory, memory.diff_updates_memory):
            assert leaf.sharding.shard_shape(leaf.shape) == (3, 2, 2)


# ---------------------------------------------------------------- bad input


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match=r"lbfgs > scale_by_lbfgs: memory_size must be in \[1"):
        gradx.lbfgs(memory_size=0)
    with pytest.raises(ValueError, match="memory_size must be a whole number"):
        gradx.scale_by_lbfgs(2.5)
    with pytest.raises(ValueError, match="learning_rate must be in"):
        gradx.lbfgs(-0.1)
    with pytest.raises(ValueError, match="must be a gradient transformation"):
        gradx.lbfgs(linesearch="zoom")
    tx, x = gradx.lbfgs(), jnp.ones(2)
    with pytest.raises(ValueError, match="needs the extra arguments 'value' and 'grad' and 'valu"):
        tx.update(x, tx.init(x), x)
    with pytest.raises(ValueError, match="state of type EmptyState instead of ScaleByLBFGSState"):
        gradx.scale_by_lbfgs().update(x, gradx.EmptyState(), x)
