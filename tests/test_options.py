"""What a factory is given: options are checked, and all that is given is the factory's own."""

from __future__ import annotations

import collections
import copy
import functools
import inspect
import pickle
import typing
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from typing import Any, Literal

import cases
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax_names import OWN
from problems import assert_close, assert_same

import gradx
from gradx import core
from gradx.core import annotations
from gradx.core.kept import kept as kept_of

PARAMS = {"bias": jnp.ones(2), "kernel": jnp.ones((2, 2))}


def halving(count: Any) -> Any:
    return 0.5**count


def steps(tx: Any, count: int = 2) -> Any:
    state, made = tx.init(PARAMS), []
    for _ in range(count):
        updates, state = tx.update(PARAMS, state, PARAMS)
        made.append(updates)
    return made


# ---------------------------------------------------------------- bools, words and functions

# The smallest call of what has no row of its own in the table of algorithms.
CALLS: dict[str, tuple[Any, ...]] = {
    "HeadAxis": (-1,),
    "MultiSteps": (gradx.sgd(0.1), 2),
    "apply_if_finite": (gradx.sgd(0.1), 1),
    "asam": (gradx.sgd(0.1),),
    "by_path": ({"bias": 0.1},),
    "cautious": (gradx.sgd(0.1),),
    "conditionally_mask": (gradx.sgd(0.1), bool),
    "conditionally_transform": (gradx.sgd(0.1), bool),
    "cyclic_schedule": (0.0, 1.0, 2),
    "dpsgd": (0.1, 1.0, 1.0, 0),
    "exponential_decay": (0.1, 10, 0.5),
    "inject_hyperparams": (gradx.sgd,),
    "inject_stateful_hyperparams": (gradx.sgd,),
    "leafwise": (bool,),
    "lookahead": (gradx.sgd(0.1), 5, 0.5),
    "masked": (gradx.sgd(0.1), True),
    "matrixwise": (bool,),
    "measure_with_ema": (bool, 0.9),
    "multi_transform": ({"a": gradx.sgd(0.1)}, "a"),
    "nadam": (0.1,),
    "partition": ({"a": gradx.sgd(0.1)}, "a"),
    "per_example_layer_norm_clip": (PARAMS, 1.0),
    "piecewise_interpolate_schedule": ("linear", 1.0),
    "pmean": ("data",),
    "psum": ("data",),
    "recorded": (lambda: gradx.sgd(0.1),),  # without a name of its own it is not registered
    "sam": (gradx.sgd(0.1), gradx.sgd(0.1)),
    "scale_by_backtracking_linesearch": (5,),
    "scale_by_zoom_linesearch": (5,),
    "scale_by_schedule": (halving,),
    "skip_nonfinite": (gradx.sgd(0.1),),
    "snapshot": ("norm", bool),
    "stateless": (bool,),
    "stateless_with_tree_map": (bool,),
    "transfer_state": (gradx.adam(0.1).init(PARAMS), gradx.adam(0.1), PARAMS),
    "tree_map_params": (gradx.sgd(0.1), bool, gradx.sgd(0.1).init(PARAMS)),
    "value_and_grad_from_state": (bool,),
    "warmup_exponential_decay_schedule": (0.0, 1.0, 5, 10, 0.5),
    "watch": (gradx.MultiSteps(gradx.sgd(0.1), 2),),
}
ROWS = {case.factory: case for case in reversed(cases.CASES)}


def options() -> list[tuple[str, str]]:
    """Every argument of every public function that its annotation makes an option."""
    found = []
    for name in OWN:
        if inspect.isfunction(made := getattr(gradx, name)) or name in core.REGISTRY:
            found += [(name, option) for option in annotations.options(made)]
    return [*found, ("HeadAxis", "side_by_side")]


def call(name: str, **changed: Any) -> Any:
    made = getattr(gradx, name)
    bound = inspect.signature(made).bind_partial(*CALLS.get(name, ()))
    if name not in CALLS and name in ROWS:
        bound.arguments |= cases.made(ROWS[name].kwargs, gradx)
    bound.arguments |= changed
    made = made(*bound.args, **bound.kwargs)
    return gradx.qk_clip(1.0, made).init(PARAMS) if name == "HeadAxis" else made


@pytest.mark.filterwarnings("ignore:inject_stateful_hyperparams is deprecated")
@pytest.mark.parametrize(("name", "option"), options())
def test_no_option_takes_nonsense(name: str, option: str) -> None:
    call(name)
    made = getattr(gradx, name)
    who = "qk_clip" if name == "HeadAxis" else made.__name__  # which takes it, and checks it
    for nonsense in ("no", 2, object(), 0.0, jnp.ones(2, bool)):
        with pytest.raises(ValueError, match=rf"^{who}: .*\b{option} .* got ") as error:
            call(name, **{option: nonsense})
        assert core.show(nonsense) in str(error.value)


def test_no_option_escapes_the_law_above() -> None:
    """Every public function whose default is a bool, and every word of several, is annotated so."""
    known = set(options())
    assert len(known) > 180
    for name in OWN:
        made = getattr(gradx, name)
        if not inspect.isfunction(made) and name not in core.REGISTRY:
            continue
        for argument, parameter in annotations.signature(made).parameters.items():
            kinds = annotations.members(parameter.annotation)
            is_option = bool in kinds or any(typing.get_origin(k) is Literal for k in kinds)
            if isinstance(parameter.default, bool):
                assert is_option or Any in kinds, (name, argument)
            assert not is_option or (name, argument) in known or {int, float} & set(kinds)


@pytest.mark.parametrize("flag", [True, np.True_, np.array(True), jnp.array(True)])
def test_a_bool_of_any_library_is_one(flag: Any) -> None:
    made = gradx.sgd(0.1, 0.9, nesterov=flag)
    assert repr(made) == "sgd(0.1, momentum=0.9, nesterov=True)"
    assert made == gradx.sgd(0.1, 0.9, nesterov=True)
    injected = gradx.inject_hyperparams(gradx.sgd)(0.1, momentum=0.9, nesterov=flag)
    assert_same(steps(injected), steps(made))
    with pytest.raises(ValueError, match="nesterov must be known before the run"):
        jax.jit(lambda flag: gradx.sgd(0.1, nesterov=flag))(flag)


if typing.TYPE_CHECKING:
    from nowhere import Unknown


@gradx.recorded
def mine(
    learning_rate: float,
    mode: Literal["a", "b"] | None = None,
    after: Callable[[Any], Any] | None = None,
    *,
    loud: typing.Optional[bool] = None,  # noqa: UP045
    share: gradx.Share | Literal[False] | None = None,
    other: Unknown = 0,
) -> gradx.Transform:
    return gradx.sgd(learning_rate)


@pytest.mark.parametrize(
    ("option", "match"),
    [
        ({"mode": "c"}, r"mine: mode must be one of \['a', 'b'\] or None, got 'c'"),
        ({"after": 1}, "mine: after must be a function or None, got 1"),
        ({"loud": "yes"}, "mine: loud must be True, False or None, got 'yes'"),
        ({"share": True}, "mine: share must be a Share, False or None, got True"),
    ],
)
def test_a_users_factory_is_checked_too(option: Any, match: str) -> None:
    """Also where other annotations cannot be evaluated."""
    mine(0.1, "a", abs, loud=np.False_, other="anything")
    with pytest.raises(ValueError, match=match):
        mine(0.1, **option)


# ---------------------------------------------------------------- changed afterwards


def sized(g: Any, s: Any, p: Any, h: Any) -> Any:
    return h.size * g, s


def mutable() -> dict[str, tuple[Any, Callable[[Any], Any], Callable[[Any], None]]]:
    """Name to (an argument that can be changed, what takes it, how it changes)."""

    def put(key: Any, value: Any) -> Callable[[Any], None]:
        return lambda it: it.__setitem__(key, value)

    def masks(mask: Any) -> Any:
        return gradx.masked(gradx.scale(5.0), mask)

    both = {"a": gradx.scale(2.0), "b": gradx.scale(3.0)}
    return {
        "dict": ({"bias": True, "kernel": False}, masks, put("bias", False)),
        "np.array": (
            {"bias": np.array(True), "kernel": np.array(False)},
            masks,
            lambda mask: put((), False)(mask["bias"]),
        ),
        "labels": (
            {"bias": "a", "kernel": "b"},
            lambda labels: gradx.partition(both, labels),
            lambda labels: labels.update(bias="b", kernel="a"),
        ),
        "transforms": (
            dict(both),
            lambda both: gradx.partition(both, {"bias": "a", "kernel": "b"}),
            put("a", gradx.scale(9.0)),
        ),
        "user's mapping": (
            collections.UserDict(both),
            lambda both: gradx.partition(both, {"bias": "a", "kernel": "b"}),
            put("a", gradx.scale(9.0)),
        ),
        "flags": (
            {"size": 2.0},
            lambda flags: gradx.leafwise(sized, flags=flags),
            put("size", 3.0),
        ),
        "rules": (
            {"bias": 0.1, "b": 0.2},
            lambda rules: gradx.sgd(gradx.by_path(rules, 0.3, optional=True)),
            put("bias", 0.7),
        ),
        "boundaries": (
            {1: 0.5},
            lambda at: gradx.sgd(gradx.piecewise_constant_schedule(1.0, at)),
            put(1, 0.1),
        ),
        "cycles": (
            [{"init_value": 0.1, "peak_value": 1.0, "warmup_steps": 1, "decay_steps": 5}],
            lambda cycles: gradx.sgd(gradx.sgdr_schedule(cycles)),
            lambda cycles: put("init_value", 0.7)(cycles[0]),
        ),
        "coefficients": (
            np.array([3.4445, -4.7750, 2.0315]),
            lambda ns_coeffs: gradx.scale_by_scion(ns_coeffs=ns_coeffs),
            put(0, 3.0),
        ),
    }


@pytest.mark.parametrize("name", mutable())
def test_what_changes_afterwards_changes_nothing(name: str) -> None:
    """Neither what a transformation does nor what it says of itself, nor which it equals."""
    given, make, change = mutable()[name]
    tx, same = make(given), make(copy.deepcopy(given))
    before, said, number = steps(tx), repr(tx), hash(tx)
    equal = tx == same

    @functools.partial(jax.jit, static_argnums=0)
    def jitted(tx: Any, g: Any) -> Any:
        return tx.update(g, tx.init(g), g)[0]

    jitted(tx, PARAMS)
    change(given)
    changed = make(given)
    assert (repr(tx), hash(tx), tx == same) == (said, number, equal)
    assert_same(steps(tx), before)
    for one in (tx, same, changed):
        assert_close(jitted(one, PARAMS), steps(one, 1)[0], rtol=1e-6)


def containers() -> list[Any]:
    from flax import nnx
    from flax.core import FrozenDict

    marks = {"b": np.ones(2, bool), "a": [True]}
    return [
        marks,
        OrderedDict(marks),
        defaultdict(list, marks),
        FrozenDict({"b": np.ones(2, bool)}),
        nnx.State({"a": True, "b": False}),
        gradx.MatrixAxes(np.arange(2), -1),
        (1, [marks]),
        {"x"},
    ]


@pytest.mark.parametrize("given", containers(), ids=lambda given: type(given).__name__)
def test_containers_keep_their_type_and_order(given: Any) -> None:
    kept = kept_of(given)
    assert kept is not given
    assert type(kept) is type(given)
    assert str(kept) == str(given)
    mine, theirs = (jax.tree.leaves(tree) for tree in (kept, given))
    for one, other in zip(mine, theirs, strict=True):
        assert not isinstance(one, np.ndarray) or not np.shares_memory(one, other)


def test_what_does_not_change_is_not_copied() -> None:
    partial = jax.tree_util.Partial(halving)
    for value in (halving, partial, "a", 0.1, None, (1, "a"), optax.sgd(0.1), object(), int):
        assert kept_of(value) is value
    assert gradx.sgd(partial) == gradx.sgd(partial)


# ---------------------------------------------------------------- donated or deleted afterwards


def with_arrays(value: Any, made: list[jax.Array]) -> Any:
    """The same with JAX arrays for its numbers, which are listed."""
    if isinstance(value, float):
        made.append(jnp.asarray(value, jnp.float32))
        return made[-1]
    return type(value)(with_arrays(v, made) for v in value) if type(value) is tuple else value


@pytest.mark.parametrize("case", cases.CASES, ids=lambda case: case.id)
def test_arrays_may_be_deleted_when_it_is_made(case: cases.Case) -> None:
    """And so may a state, since it has nothing of what it is made from."""
    arrays: list[jax.Array] = []
    numbers = {name: with_arrays(v, arrays) for name, v in cases.made(case.kwargs, gradx).items()}
    for name, parameter in annotations.signature(getattr(gradx, case.factory)).parameters.items():
        if gradx.numbers.sources.takes_number(parameter.annotation) and name not in numbers:
            numbers[name] = with_arrays(parameter.default, arrays)
    tx = getattr(gradx, case.factory)(**numbers)
    for array in arrays:
        array.delete()
    assert hash(tx) == hash(tx)
    assert "delete" not in repr(tx)
    assert tx == pickle.loads(pickle.dumps(tx))
    gradx.describe(tx, PARAMS)
    for x in jax.tree.leaves(tx.init(PARAMS)):
        x.delete()
    jax.device_get(tx.init(PARAMS))  # of deleted arrays it would raise


@pytest.mark.parametrize(
    "make",
    [
        lambda x: gradx.adam(x),
        lambda x: gradx.adam(0.1, b1=gradx.tunable(x)),
        lambda x: gradx.adam(gradx.scaled(x, gradx.by_path({"bias": x}, default=gradx.tunable(x)))),
        lambda x: gradx.sgd(gradx.linear_schedule(x, 0.0, 10)),
        lambda x: gradx.inject_hyperparams(gradx.adam)(x),
        lambda x: gradx.inject_hyperparams(optax.adam)(x),
        lambda x: gradx.leafwise(scaled_by, hypers={"rate": x}),
        lambda x: gradx.masked(gradx.scale(x), {"bias": x < 1, "kernel": True}),
        lambda x: gradx.chain(gradx.scale(x), gradx.MultiSteps(gradx.sgd(x), 1)),
    ],
)
def test_donated_numbers(make: Any) -> None:
    x = jnp.float32(0.5)
    tx, expected = make(x), steps(make(jnp.float32(0.5)), 1)
    jax.jit(lambda x: x + 1, donate_argnums=0)(x)
    assert x.is_deleted()
    assert repr(tx)
    assert hash(tx) == hash(tx)
    assert_same(steps(tx, 1), expected)


def scaled_by(g: Any, s: Any, p: Any, h: Any) -> Any:
    return h.rate * g, s


@pytest.mark.parametrize(
    "make",
    [
        lambda key: gradx.add_noise(0.1, 0.5, key=key),
        lambda key: gradx.noisy_sgd(0.1, key=key),
        lambda key: gradx.psgd_kron(0.1, key=key),
        lambda key: gradx.dpsgd(0.1, 1.0, 1.0, key),
    ],
)
def test_deleted_keys(make: Any) -> None:
    key = jax.random.key(3)
    tx = make(key)
    assert tx == make(jax.random.key(3))
    assert tx != make(jax.random.key(4))
    raw = make(jax.random.PRNGKey(3))
    key.delete()
    for one in (tx, raw):
        assert hash(one) == hash(one)
        assert repr(one)
        for leaf in jax.tree.leaves(one.init(PARAMS)):
            leaf.delete()
        one.init(PARAMS)


def test_an_array_is_still_an_argument_of_the_program() -> None:
    traces = []

    def rule(g: Any, s: Any, p: Any, h: Any) -> Any:
        traces.append(h.rate)
        return h.rate * g, s

    for rate in (0.1, 0.2, 0.3):
        tx = gradx.leafwise(rule, hypers={"rate": jnp.float32(rate)})
        tx.update({"a": jnp.ones(5)}, tx.init({"a": jnp.ones(5)}))
    assert len(traces) == 1

    @jax.jit
    def traced(rate: Any) -> Any:
        tx = gradx.sgd(rate)  # a tracer stays one
        return tx.update(PARAMS, tx.init(PARAMS))[0]

    assert_close(traced(0.5), jax.tree.map(lambda x: -0.5 * x, PARAMS), rtol=1e-6)
    inside = jax.jit(lambda: gradx.sgd(jnp.float32(0.5)).spec.arguments[0][1] * 2)
    assert inside() == 1.0


# ---------------------------------------------------------------- as a part of trees


def warmed(length: int) -> Any:
    return lambda count: jnp.minimum((count + 1.0) / length, 1.0)


TREES = [
    lambda: gradx.adam(0.1),
    lambda: gradx.MultiSteps(gradx.adam(gradx.tunable(0.1)), 2),
    lambda: gradx.chain(
        gradx.clip(1.0), gradx.masked(gradx.trace(0.9), {"bias": True, "kernel": False})
    ),
    lambda: gradx.partition(
        {"a": gradx.sgd(0.1), "b": gradx.adam(0.1)}, gradx.by_path({"b": "a"}, "b")
    ),
    lambda: gradx.inject_hyperparams(gradx.sgd)(0.1),
    lambda: gradx.chain(optax.scale(0.5), gradx.sgd(0.1)),
    lambda: gradx.leafwise(scaled_by, hypers={"rate": 0.5}),
]


@pytest.mark.parametrize("make", TREES)
def test_a_transformation_is_a_tree_without_leaves(make: Any) -> None:
    tx = make()
    held = {"tx": tx, "x": [jnp.ones(2)]}
    assert jax.tree.leaves(tx) == []
    again = jax.tree.map(lambda x: x + 1, held)
    assert again["tx"] is tx
    assert repr(jax.eval_shape(lambda held: held, held)["tx"]) == repr(tx)
    assert copy.deepcopy(held)["tx"] is tx
    expected = steps(tx)

    @jax.jit
    def two(held: Any) -> Any:
        def body(carry: Any, _: Any) -> Any:
            tx, state = carry
            updates, state = tx.update(PARAMS, state, PARAMS)
            return (tx, state), updates

        return jax.lax.scan(body, (held["tx"], held["tx"].init(PARAMS)), length=2)[1]

    for i, updates in enumerate(expected):
        assert_close(jax.tree.map(lambda x, i=i: x[i], two(held)), updates, rtol=1e-6)
    batch = {"tx": tx, "x": [jnp.ones((3, 2))]}
    assert jax.vmap(lambda held: held["x"][0].sum())(batch).shape == (3,)


def test_equal_ones_share_a_trace_and_others_do_not() -> None:
    """What a schedule or a mask closes over is what tells them apart."""
    traces = []

    @jax.jit
    def first(tx: Any, g: Any) -> Any:
        traces.append(tx)
        return tx.update(g, tx.init(g), g)[0]

    for _ in range(2):
        first(gradx.MultiSteps(gradx.adam(gradx.linear_schedule(0.1, 0.0, 9)), 2), PARAMS)
    assert len(traces) == 1
    made = [gradx.sgd(warmed(length)) for length in (1, 2, 4)]
    made += [gradx.sgd(functools.partial(lambda count, by: by, by=by)) for by in (0.3, 0.2)]
    made += [
        gradx.masked(gradx.scale(9.0), lambda tree, on=on: jax.tree.map(lambda x: on, tree))
        for on in (True, False)
    ]
    for _ in range(2):
        for tx, size in zip(made, (-1.0, -0.5, -0.25, -0.3, -0.2, 9.0, 1.0), strict=True):
            assert_close(
                first(tx, PARAMS), jax.tree.map(lambda x, c=size: c * x, PARAMS), rtol=1e-6
            )
    assert len(traces) == 1 + len(made)


def test_bools_and_numbers_are_no_equals() -> None:
    pairs = [
        (gradx.by_path({"a": True}, 0.1), gradx.by_path({"a": 1}, 0.1)),
        (gradx.masked(gradx.identity(), [True]), gradx.masked(gradx.identity(), (True,))),
        (
            gradx.masked(gradx.identity(), {"a": True}),
            gradx.masked(gradx.identity(), OrderedDict(a=True)),
        ),
        (gradx.scale(0.0), gradx.scale(-0.0)),
    ]
    for one, other in pairs:
        assert one != other


def filter_jit(function: Any) -> Any:
    """As that of Equinox: arrays are traced; all else is static, compared by `==`."""

    @functools.partial(jax.jit, static_argnums=(1, 2))
    def run(arrays: Any, structure: Any, static: Any) -> Any:
        pairs = zip(arrays, static, strict=True)
        return function(*structure.unflatten([s if a is None else a for a, s in pairs]))

    def call(*args: Any) -> Any:
        leaves, structure = jax.tree.flatten(args)
        arrays = [x if isinstance(x, jax.Array) else None for x in leaves]
        return run(
            arrays,
            structure,
            tuple(None if a is not None else x for a, x in zip(arrays, leaves, strict=True)),
        )

    return call


def test_in_equinoxs_hands() -> None:
    seen = []

    @filter_jit
    def step(tx: Any, state: Any, g: Any) -> Any:
        seen.append(tx)
        return tx.update(g, state, g)

    for _ in range(2):
        tx = gradx.MultiSteps(gradx.adam(0.1), 2)
        updates, _ = step(tx, tx.init(PARAMS), PARAMS)
        assert_same(updates, steps(tx, 1)[0])
    assert len(seen) == 1
    assert seen[0].spec is not None
    assert isinstance(seen[0], gradx.MultiSteps)


def test_a_class_of_ones_own_is_a_tree_without_leaves_too() -> None:
    class Mine(gradx.Transform):
        pass

    mine = Mine(*gradx.sgd(0.1))
    assert jax.tree.leaves(mine) == []
    assert jax.tree.map(abs, [mine])[0] is mine
    assert type(mine.with_spec(gradx.sgd(0.1).spec)) is Mine


def test_schedules_and_sources_stay_leaves() -> None:
    """As functions are: a tree of schedules can be mapped over."""
    schedules = {"a": gradx.constant_schedule(1.0), "b": halving}
    assert jax.tree.map(lambda s: float(s(1)), schedules) == {"a": 1.0, "b": 0.5}
