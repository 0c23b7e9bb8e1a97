"""Line searches: the same ways as Optax's, no evaluation too many, and no trap on the way."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases import first_of
from objectives import assert_same_way, quickly

import gradx

P = jax.sharding.PartitionSpec


def square(x: Any) -> Any:
    return jnp.sum(jnp.abs(x) ** 2)


def stretched(x: Any) -> Any:
    return jnp.sum(jnp.arange(1.0, 1.0 + x.size) * (x - 1.0) ** 2)


def searches(lib: Any = gradx, **store: Any) -> list[Any]:
    return [
        lib.scale_by_zoom_linesearch(8),
        lib.scale_by_backtracking_linesearch(8, **store),
    ]


both = pytest.mark.parametrize("search", searches(), ids=["zoom", "backtracking"])


def one_step(tx: Any, f: Any, x: Any, state: Any = None, **data: Any) -> Any:
    """`(x, state)` after a step down the gradient, with the conjugate that transforms expect."""
    value, grad = jax.value_and_grad(f)(x, **data)
    grad = jax.tree.map(jnp.conj, grad)
    state = tx.init(x) if state is None else state
    updates, state = tx.update(grad, state, x, value=value, grad=grad, value_fn=f, **data)
    return gradx.apply_updates(x, updates), state


def stepped(tx: Any, f: Any, x: Any, state: Any = None) -> Any:
    """`one_step` as one program."""
    state = tx.init(x) if state is None else state
    return quickly(lambda x, state: one_step(tx, f, x, state))(x, state)


# ---------------------------------------------------------------- the same ways as Optax's

ZOOMS = {
    "keep": {},
    "one": {"initial_guess_strategy": "one"},
    "bounded": {"max_learning_rate": 0.5, "curv_rtol": 0.1, "approx_dec_rtol": None, "tol": 1e-3},
    "failing": {"max_linesearch_steps": 4, "slope_rtol": 0.4, "curv_rtol": 0.41},
}
BACKTRACKING = {
    "longer": {},
    "anew": {
        "increase_factor": math.inf,
        "store_grad": True,
        "slope_rtol": 0.3,
        "decrease_factor": 0.5,
    },
    "tolerant": {"increase_factor": 1.0, "atol": 1e-2, "rtol": 1e-2, "max_learning_rate": 0.1},
}


@first_of("name, dtype", [(name, np.float32 if name == "keep" else np.float64) for name in ZOOMS])
def test_zoom_goes_the_way_of_optax(name: str, dtype: Any) -> None:
    rate = 0.01 if name in ("one", "bounded") else 0.1
    kwargs = {"max_linesearch_steps": 20, **ZOOMS[name]}
    assert_same_way(lambda l: l.chain(l.sgd(rate), l.scale_by_zoom_linesearch(**kwargs)), dtype)


@pytest.mark.parametrize(
    ("name", "dtype"), [*((name, np.float64) for name in BACKTRACKING), ("longer", np.float32)]
)
def test_backtracking_goes_the_way_of_optax(name: str, dtype: Any) -> None:
    def make(lib: Any) -> Any:
        search = lib.scale_by_backtracking_linesearch(30, **BACKTRACKING[name])
        return lib.chain(lib.sgd(1.0), search)

    assert_same_way(make, dtype)


def test_the_states_are_those_of_optax() -> None:
    def fields(state: Any) -> Any:
        leaves, _ = jax.tree_util.tree_flatten_with_path(state)
        return type(state).__name__, [
            (jax.tree_util.keystr(p), x.shape, x.dtype) for p, x in leaves
        ]

    x = {"w": jnp.ones(2), "none": None}
    pairs = zip(searches(store_grad=True), searches(optax, store_grad=True), strict=True)
    for ours, theirs in pairs:
        assert fields(ours.init(x)) == fields(theirs.init(x))
        state = theirs.init(jnp.ones(2))  # and a state of Optax's class is welcome
        assert type(stepped(ours, square, jnp.ones(2), state)[1]) is type(state)


# ---------------------------------------------------------------- evaluations and compilations


def evaluations(tx: Any, batched: bool) -> tuple[int, int]:
    """How often the objective is traced, and evaluated, in a search."""
    traced, evaluated = [], []

    def f(x: Any) -> Any:
        traced.append(1)
        jax.debug.callback(lambda: evaluated.append(1))
        return stretched(x)

    def run(x: Any) -> Any:
        value, grad = jax.value_and_grad(stretched)(x)
        return tx.update(-grad, tx.init(x), x, value=value, grad=grad, value_fn=f)[0]

    x = jnp.array([0.3, 3.0, -2.0])
    quickly(jax.vmap(run) if batched else run)(x[None] if batched else x).block_until_ready()
    jax.effects_barrier()
    return len(traced), len(evaluated)


@pytest.mark.full
def test_no_evaluation_is_wasted() -> None:
    """Optax's zoom traces the objective twice, and under vmap evaluates both every time."""
    ours, theirs = searches(store_grad=True), searches(optax, store_grad=True)
    traced, alone = evaluations(ours[0], False)
    assert evaluations(ours[0], True) == (traced, alone)
    assert evaluations(theirs[0], True) == (2 * traced, 2 * alone)
    assert alone > 1
    assert evaluations(ours[1], False)[1] == evaluations(theirs[1], False)[1] > 1


@both
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_step_is_compiled_once(search: Any, dtype: Any) -> None:
    """Types and weak types of the state stay, so a loop can carry it; updates keep their dtype."""
    tx = gradx.chain(gradx.sgd(0.5), search)
    traces = []

    @quickly
    def step(x: Any, state: Any) -> Any:
        traces.append(1)
        return one_step(tx, lambda x: stretched(x).astype(dtype), x, state)

    x = jnp.array([0.0, 4.0], dtype)
    state = tx.init(x)
    for _ in range(3):
        new_x, new = step(x, state)
        assert [(a.dtype, a.weak_type) for a in jax.tree.leaves((new_x, new))] == [
            (a.dtype, a.weak_type) for a in jax.tree.leaves((x, state))
        ]
        x, state = new_x, new
    assert len(traces) == 1
    assert {a.dtype for a in jax.tree.leaves(state)} <= {jnp.dtype("float32"), jnp.dtype("int32")}
    # A value in Python's numbers, or in half precision, changes nothing of that.
    given = {"value": 1.0, "grad": x, "value_fn": stretched}
    _, new = jax.eval_shape(lambda x, state: tx.update(x, state, x, **given), x, state)
    assert [a.dtype for a in jax.tree.leaves(new)] == [a.dtype for a in jax.tree.leaves(state)]


@both
@pytest.mark.full
def test_inside_shard_map(search: Any) -> None:
    """Each device minimises for itself, in a loop; and all together, with a common objective."""
    tx = gradx.chain(gradx.sgd(0.1), search)
    mesh = jax.make_mesh((2,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    x = jnp.array([[0.5, 2.0], [3.0, -1.0]])

    def alone(x: Any) -> Any:
        return jax.lax.fori_loop(0, 2, lambda _, x: one_step(tx, stretched, x)[0], x[0])[None]

    def common(x: Any, center: Any) -> Any:
        def f(x: Any, center: Any) -> Any:
            return jax.lax.pmean(jnp.sum((x - center[0]) ** 2), "d")

        return one_step(tx, f, x, center=center)[0]

    shard = partial(jax.shard_map, mesh=mesh)
    apart = quickly(shard(alone, in_specs=P("d"), out_specs=P("d")))(x)
    np.testing.assert_allclose(apart, quickly(jax.vmap(lambda x: alone(x[None])[0]))(x), rtol=1e-6)
    together = quickly(shard(common, in_specs=(P(), P("d")), out_specs=P()))(x[0], x)
    mean, _ = stepped(tx, lambda y: jnp.mean(jnp.sum((y - x) ** 2, -1)), x[0])
    np.testing.assert_allclose(together, mean, rtol=1e-6)


# ---------------------------------------------------------------- what is reused


def test_value_and_grad_are_reused_while_they_are_finite() -> None:
    calls: list[int] = []

    def f(x: Any) -> Any:
        jax.debug.callback(lambda: calls.append(1))
        return square(x["value"]) + square(x["grad"])

    x = {"value": jnp.ones(2), "grad": jnp.full(2, 3.0)}  # names that must not confuse it
    tx = gradx.chain(gradx.trace(0.5), gradx.scale(-0.2), gradx.scale_by_zoom_linesearch(5))
    tx = gradx.chain(gradx.identity(), gradx.named_chain(("inner", tx)))  # deep inside
    value_and_grad = gradx.value_and_grad_from_state(f)
    state = tx.init(x)
    value, grad = value_and_grad(x, state=state)
    jax.effects_barrier()
    assert (float(value), len(calls)) == (20.0, 1)
    updates, state = tx.update(grad, state, x, value=value, grad=grad, value_fn=f)
    x = gradx.apply_updates(x, updates)
    jax.effects_barrier()
    calls.clear()
    value, grad = value_and_grad(x, state=state)
    jax.effects_barrier()
    assert not calls
    expected_value, expected = jax.value_and_grad(f)(x)
    np.testing.assert_allclose(value, expected_value, rtol=1e-6)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-6), grad, expected)


def test_value_and_grad_come_in_the_types_of_jax() -> None:
    def f(x: Any, scale: Any, *, shift: Any) -> Any:
        return jnp.sum(scale * (x - shift) ** 2)

    tx = gradx.scale_by_zoom_linesearch(5)
    x = jnp.ones(2, jnp.bfloat16)
    value, grad = gradx.value_and_grad_from_state(f)(x, 2.0, shift=3.0, state=tx.init(x))
    assert (value, grad.dtype) == (16.0, jnp.bfloat16)
    theirs = optax.chain(optax.sgd(0.1), optax.scale_by_zoom_linesearch(5))
    assert (
        gradx.value_and_grad_from_state(square)(jnp.ones(3), state=theirs.init(jnp.ones(3)))[0] == 3
    )


def test_a_state_without_value_and_grad_is_refused() -> None:
    value_and_grad = gradx.value_and_grad_from_state(square)
    x = jnp.ones(2)
    with pytest.raises(ValueError, match=r"one line search in it.*has none"):
        value_and_grad(x, state=gradx.adam(0.1).init(x))
    with pytest.raises(ValueError, match="store_grad=True"):
        value_and_grad(x, state=gradx.scale_by_backtracking_linesearch(3).init(x))
    with pytest.raises(ValueError, match="has 2"):
        value_and_grad(x, state=[gradx.scale_by_zoom_linesearch(3).init(x)] * 2)
    with pytest.raises(ValueError, match="value_fn must be a function"):
        gradx.value_and_grad_from_state(1.0)


# ---------------------------------------------------------------- where a search has no easy time


def log_barrier(x: Any) -> Any:
    """Not a number left of 0; its minimum is at 1."""
    return jnp.sum(x - jnp.log(x))


@both
def test_outside_of_the_domain_it_comes_back(search: Any) -> None:
    tx = gradx.chain(gradx.sgd(9.0), search)
    x = jnp.array([2.0])  # a full step leads to -2.5

    def body(_: Any, carry: Any) -> Any:
        return one_step(tx, log_barrier, *carry)

    x, _ = quickly(partial(jax.lax.fori_loop, 0, 7, body))((x, tx.init(x)))
    np.testing.assert_allclose(x, 1.0, atol=0.1)


@both
@pytest.mark.full
def test_after_a_search_that_failed_the_next_one_can_move(search: Any) -> None:
    """In Optax the step size 0 is where every later search begins: it never moves again."""
    x, direction = jnp.array([2.0]), jnp.array([-1.0])

    def twice(tx: Any) -> Any:
        @quickly
        def step(state: Any, good: Any) -> Any:
            given = {"value": square(x), "grad": 2 * x}
            f = lambda x: jnp.where(good, square(x), jnp.nan)
            return tx.update(direction, state, x, value_fn=f, **given)

        updates, state = step(tx.init(x), False)
        assert (float(updates[0]), float(state.learning_rate)) == (0.0, 0.0)
        return step(state, True)

    updates, state = twice(search)
    assert updates[0] == -1.0
    assert state.value == 1.0
    theirs = {"scale_by_zoom_linesearch": 0, "scale_by_backtracking_linesearch": 1}
    updates, _ = twice(searches(optax)[theirs[search.spec.name]])
    assert updates[0] == 0.0


@both
def test_an_infinite_direction_is_not_gone(search: Any) -> None:
    x = jnp.ones(2)
    updates, state = search.update(
        jnp.array([-jnp.inf, 1.0]), search.init(x), x, value=2.0, grad=2 * x, value_fn=square
    )
    np.testing.assert_array_equal(updates, 0.0)
    assert state.value == 2.0


@both
def test_at_a_minimum_it_stays(search: Any) -> None:
    x = {"w": jnp.zeros(3), "none": None, "empty": jnp.zeros((0, 2))}

    def f(p: Any) -> Any:
        return square(p["w"])

    new, state = stepped(gradx.chain(gradx.sgd(0.1), search), f, x)
    assert all(np.isfinite(a).all() for a in jax.tree.leaves((new, state)))
    np.testing.assert_array_equal(new["w"], 0.0)
    assert state[1].info.num_linesearch_steps == 1


def test_at_a_minimum_without_a_bound_on_the_slope() -> None:
    """Optax multiplies 0 by infinity there, and tries all steps."""
    steps = []
    for lib in (gradx, optax):
        tx = lib.scale_by_zoom_linesearch(5, curv_rtol=math.inf)
        _, state = stepped(tx, square, jnp.zeros(2))
        steps.append(int(state.info.num_linesearch_steps))
    assert steps == [1, 5]


@both
def test_an_empty_tree(search: Any) -> None:
    def constant(p: Any) -> Any:
        return jnp.ones(())

    updates, state = search.update({}, search.init({}), {}, value=1.0, grad={}, value_fn=constant)
    assert updates == {}
    assert state.value == 1.0


@both
def test_a_leaf_without_a_gradient_stays(search: Any) -> None:
    x = {"w": jnp.ones(2), "step": jnp.arange(3)}

    def f(p: Any) -> Any:
        return square(p["w"]) + jnp.sum(p["step"])

    grads = {"w": 2 * x["w"], "step": None}
    state = search.init({"w": x["w"], "step": None})
    down = jax.tree.map(lambda g: -0.1 * g, grads)
    updates, state = search.update(down, state, x, value=f(x), grad=grads, value_fn=f)
    assert updates["step"] is None
    assert f({**x, "w": x["w"] + updates["w"]}) < f(x)


@pytest.mark.full
def test_the_slope_of_complex_parameters() -> None:
    """Both searches take the gradient that transformations take, the conjugate of `jax.grad`'s.

    Optax's backtracking takes the conjugate of that again, and climbs.
    """

    def f(z: Any) -> Any:
        return jnp.sum(jnp.array([1.0, 4.0]) * jnp.abs(z - (1 + 2j)) ** 2)

    def values(lib: Any, search: Any) -> Any:
        tx = lib.chain(lib.sgd(1.0), search)

        def body(carry: Any, _: Any) -> Any:
            new = one_step(tx, f, *carry)
            return new, f(new[0])

        z = jnp.array([3, -1j], jnp.complex64)
        return quickly(lambda z: jax.lax.scan(body, (z, tx.init(z)), length=8)[1])(z)

    kwargs = {"max_backtracking_steps": 30, "slope_rtol": 0.5}
    down = values(gradx, gradx.scale_by_backtracking_linesearch(**kwargs))
    up = values(optax, optax.scale_by_backtracking_linesearch(**kwargs))
    assert down[-1] < 0.1 < 1e4 < up[-1]
    zoom = values(gradx, gradx.scale_by_zoom_linesearch(30))
    np.testing.assert_allclose(zoom, values(optax, optax.scale_by_zoom_linesearch(30)), rtol=1e-5)


def test_it_is_part_of_any_chain() -> None:
    """After other transformations; with data; with a number from the call that is not for it."""
    first = gradx.chain(gradx.clip_by_global_norm(1.0), gradx.sgd(gradx.from_call("learning_rate")))
    tx = optax.chain(first, gradx.scale_by_zoom_linesearch(15))

    def f(x: Any, data: Any, weight: Any = 1.0) -> Any:
        return weight * jnp.sum((x - data) ** 2)

    x, data = jnp.zeros(2), jnp.ones(2)
    given = {"value": 2.0, "grad": -2 * data, "value_fn": f, "learning_rate": 0.3}

    @quickly
    def step(data: Any, **more: Any) -> Any:
        return tx.update(-2 * data, tx.init(x), x, data=data, **given, **more)

    updates, _ = step(data)
    assert f(x + updates, data) < 0.9 * f(x, data)
    heavier, state = step(data, weight=3.0)
    np.testing.assert_allclose(state[-1].value, f(x + heavier, data, 3.0), rtol=1e-6)
    with pytest.raises(ValueError, match=r"'wieght', which value_fn does not take.*'weight'"):
        step(data, wieght=3.0)
    with pytest.raises(ValueError, match=r"value_fn needs 'data' beside the parameters"):
        tx.update(x, tx.init(x), x, **given)


# ---------------------------------------------------------------- what is printed


@pytest.mark.full
def test_verbose_says_why_a_search_failed(capfd: pytest.CaptureFixture[str]) -> None:
    def kinked(x: Any) -> Any:
        return jnp.sum(x**2 + jnp.abs(x - 0.3))

    def printed(tx: Any, *runs: tuple[float, Any]) -> list[str]:
        x = jnp.array([1.0])

        @quickly
        def run(direction: Any, which: Any) -> Any:
            f = lambda x: jax.lax.switch(which, [square, kinked, lambda x: jnp.nan * x[0]], x)
            given = {"value": square(x), "grad": 2 * x, "value_fn": f}
            return tx.update(direction, tx.init(x), x, **given)

        said = []
        for direction, which in runs:
            jax.block_until_ready(run(jnp.array([direction]), which))
            jax.effects_barrier()
            said.append(capfd.readouterr().out)
        return said

    runs = (-1.0, 0), (1.0, 0), (-1.0, 2)
    good, uphill, nowhere = printed(gradx.scale_by_zoom_linesearch(4, verbose=True), *runs)
    assert good == ""
    assert "scale_by_zoom_linesearch: no step met both conditions, after 4 tried" in uphill
    assert "do not point downhill" in uphill
    assert "inf or NaN" in nowhere
    tight = gradx.scale_by_zoom_linesearch(
        4, max_learning_rate=0.9, curv_rtol=0.0, approx_dec_rtol=None, verbose=True
    )
    short, safe = printed(tight, (-1e-3, 0), (-1.0, 1))
    assert "raise max_learning_rate" in short
    assert "Took the step" in safe
    good, uphill, nowhere = printed(gradx.scale_by_backtracking_linesearch(2, verbose=True), *runs)
    assert good == ""
    assert "scale_by_backtracking_linesearch: no step decreased" in uphill
    assert "do not point downhill" in uphill
    assert "inf or NaN" in nowhere


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("name", "bad"),
    [
        ("max_linesearch_steps", 0),
        ("max_linesearch_steps", 2.5),
        ("max_learning_rate", 0.0),
        ("tol", -1.0),
        ("increase_factor", 1.0),
        ("slope_rtol", 1.0),
        ("curv_rtol", -0.1),
        ("approx_dec_rtol", math.nan),
        ("stepsize_precision", -1e-9),
        ("initial_guess_strategy", "two"),
    ],
)
def test_bad_arguments_of_zoom(name: str, bad: Any) -> None:
    with pytest.raises(ValueError, match=rf"scale_by_zoom_linesearch: {name} must be"):
        gradx.scale_by_zoom_linesearch(**{"max_linesearch_steps": 5, name: bad})


@pytest.mark.parametrize(
    ("name", "bad"),
    [
        ("max_backtracking_steps", -1),
        ("slope_rtol", -1e-4),
        ("decrease_factor", 1.0),
        ("increase_factor", 0.9),
        ("max_learning_rate", 0.0),
        ("atol", -1.0),
        ("rtol", math.inf),
    ],
)
def test_bad_arguments_of_backtracking(name: str, bad: Any) -> None:
    with pytest.raises(ValueError, match=rf"scale_by_backtracking_linesearch: {name} must be"):
        gradx.scale_by_backtracking_linesearch(**{"max_backtracking_steps": 5, name: bad})


def test_every_search_at_an_infinite_step_is_refused() -> None:
    with pytest.raises(ValueError, match="must be finite"):
        gradx.scale_by_backtracking_linesearch(
            5, increase_factor=math.inf, max_learning_rate=math.inf
        )


@both
def test_bad_calls_are_refused(search: Any) -> None:
    x = {"w": jnp.ones(2)}

    def f(p: Any) -> Any:
        return square(p["w"])

    def g(p: Any, labels: Any) -> Any:
        return square(p["w"] - labels)

    state, good = search.init(x), {"value": 2.0, "grad": x, "value_fn": f}
    name = search.spec.name

    def refused(match: str, params: Any = x, updates: Any = x, **changed: Any) -> None:
        with pytest.raises(ValueError, match=f"{name}: .*{match}"):
            search.update(updates, state, params, **{**good, **changed})

    refused("needs the parameters", params=None)
    refused("needs the extra argument 'value'", value=None)
    refused("needs the extra arguments 'grad' and 'value_fn'", grad=None, value_fn=None)
    refused("value must be one real number", value=jnp.ones(2))
    refused("value_fn must be a function", value_fn=3.0)
    refused("value_fn must return one real number", value_fn=lambda p: p["w"])
    refused("value_fn needs 'labels'", value_fn=g)
    refused("the gradients and the extra argument grad must be trees", grad={"v": jnp.ones(2)})
    refused("'w'.*gradient is None", grad={"w": None})
    refused("'w'.*int32", updates={"w": jnp.arange(2)})
    with pytest.raises(ValueError, match="got a state of type EmptyState instead of ScaleBy"):
        search.update(x, gradx.EmptyState(), x, **good)
    with pytest.raises(ValueError, match="parameter at 'w' is of type int32"):
        search.init({"w": jnp.arange(2)})
    frozen = gradx.freeze(gradx.by_path({"w": False}, default=True), search)
    tree = {**x, "v": jnp.ones(1)}
    with pytest.raises(ValueError, match="at the end of the whole chain"):
        frozen.update(tree, frozen.init(tree), tree, **{**good, "grad": tree})
