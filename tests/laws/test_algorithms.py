"""The laws about an algorithm: each holds for every row of the table in `cases.py`.

What an algorithm computes, which types it keeps, what it does with odd trees and numbers, and what
it refuses. What rounding, odd trees and extreme gradients do, the first row of each factory shows;
over rows that give it other numbers, these laws run under ``-m full``. Operations run one by one
here unless the program is the point (see `runs.py`). The laws about the mechanisms around it are in
`test_mechanisms.py`.
"""

from __future__ import annotations

import json
import pickle
import re
from typing import Any

import cases
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import references
from cases import CASES, OPTIMIZERS, Case, each, each_factory
from mechanisms import each_mechanism, every_mechanism
from problems import (
    STEPS,
    assert_close,
    assert_same,
    bowl,
    cast,
    distance,
    gradients,
    params,
    step,
    valley,
)
from runs import (
    first,
    numbers_of,
    paths_and_types,
    plain_steps,
    reference_of,
    reference_trajectory,
    types,
)

import gradx
from gradx.core import ranges
from gradx.core.vocabulary import RANGES

every_case = each(CASES)
every_case_of_optax = each(case for case in CASES if case.in_optax)
every_factory = each_factory(CASES)
every_optimizer = each_factory(OPTIMIZERS)
every_complex_mechanism = each_mechanism(case for case in CASES if case.complex)


# ---------------------------------------------------------------- the right numbers


@every_case
def test_matches_the_papers_in_float64(case: Case) -> None:
    expected = reference_trajectory(case, np.float64)
    actual = plain_steps(case, gradx, np.float64)[0]
    assert all(x.dtype == np.float64 for x in jax.tree.leaves(actual))
    for i in (0, 1, STEPS - 1):
        assert_close(actual[i], expected[i], rtol=1e-10)


@every_factory
def test_matches_the_papers_in_float32(case: Case) -> None:
    actual = plain_steps(case, gradx, np.float32)[0]
    expected = reference_trajectory(case, np.float64)[: len(actual)]
    assert_close(actual[-1], expected[-1], rtol=2e-6)


@every_factory
def test_the_first_updates_match_the_papers_in_float32(case: Case) -> None:
    """Where bias corrections matter, and 1 - b**t has lost four digits."""
    flat, treedef = jax.tree.flatten(params())
    sequence = [jax.tree.leaves(first(gradients(steps=2), i)) for i in range(2)]
    expected = references.updates(reference_of(case), flat, sequence)
    made = plain_steps(case, gradx, np.float32)[1]
    for i in range(2):
        assert_close(made[i], treedef.unflatten(expected[i]), rtol=5e-6)


@every_complex_mechanism
def test_matches_the_papers_for_complex_numbers(case: Case) -> None:
    actual = plain_steps(case, gradx, np.complex64)[0]
    expected = reference_trajectory(case, np.complex128)[: len(actual)]
    assert_close(actual[-1], expected[-1], rtol=5e-6)


@every_case_of_optax
def test_agrees_with_optax(case: Case) -> None:
    """The same algorithm, which float64 shows; and the same numbers in float32, to 2e-6 beyond
    what Optax in float32 is away from itself in float64.

    (Its bias corrections are: 1 - b2**t loses four digits of float32 in the first steps.)
    """
    of_optax = (lambda p: p) if case.scalars_in_optax else lambda p: p["dense"]
    ours, theirs = (
        {dtype: plain_steps(case, library, dtype)[0] for dtype in (np.float32, np.float64)}
        for library in (gradx, optax)
    )
    last = len(theirs[np.float32]) - 1
    wide, narrow = (of_optax(ours[dtype][last]) for dtype in (np.float64, np.float32))
    assert_close(wide, theirs[np.float64][-1], rtol=1e-6 if case.narrow_in_optax else 1e-10)
    beyond = distance(theirs[np.float32][-1], theirs[np.float64][-1])
    assert_close(narrow, theirs[np.float32][-1], rtol=2e-6 + beyond)
    p = of_optax(params())
    mine, other = (jax.eval_shape(case.ready(library).init, p) for library in (gradx, optax))
    assert paths_and_types(mine) == paths_and_types(other)


OBJECTIVES = [jax.jit(jax.value_and_grad(problem)) for problem in (bowl, valley)]


@every_optimizer
def test_converges(case: Case) -> None:
    """In a compiled step: down to 0.003 of where it began, in a bowl and in a curved valley."""
    rate = case.kwargs["learning_rate"]
    tx = case.ready(
        learning_rate=rate if case.constant_rate else gradx.cosine_decay_schedule(rate, 400)
    )

    @jax.jit
    def stepped(p: Any, state: Any, gradient: Any, value: Any) -> Any:
        extra = {} if case.value is None else {"value": value}
        return step(tx, p, state, gradient, **extra)

    start = jax.tree.map(lambda x: jnp.asarray(x * np.float32(0.5)), params())
    for objective in OBJECTIVES:
        p, state = start, tx.init(start)
        for _ in range(400):
            value, gradient = objective(p)
            p, state = stepped(p, state, gradient, value)
        assert objective(p)[0] / objective(start)[0] < 3e-3


# ---------------------------------------------------------------- the state keeps its type


@every_case
def test_state_and_updates_keep_their_types(case: Case) -> None:
    """Where JAX must not promote as well, neither dtypes (it never promotes float8) nor ranks."""
    for dtype in (jnp.float32, jnp.float8_e4m3fn, *[jnp.complex64] * case.complex):
        keeps_its_types(case, dtype)


@pytest.mark.full
@every_case
def test_narrow_parameters_keep_their_types_among_wide_numbers(case: Case) -> None:
    """With x64 enabled schedules give float64."""
    with jax.enable_x64(True):
        keeps_its_types(case, jnp.float32)


def keeps_its_types(case: Case, dtype: Any) -> None:
    tx, plain = case.ready(), np.complex64 if dtype == jnp.complex64 else np.float32
    p = jax.eval_shape(lambda: cast(params(plain), dtype))
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        state = jax.eval_shape(tx.init, p)
        updates, new = jax.eval_shape(tx.update, p, state, p)
    assert jax.tree.structure(new) == jax.tree.structure(state)
    assert types(new) == types(state)
    assert {x.dtype for x in jax.tree.leaves(updates)} == {jnp.dtype(dtype)}
    floats = {x.dtype for x in jax.tree.leaves(state) if jnp.issubdtype(x.dtype, jnp.floating)}
    kept = {jnp.dtype(jnp.float32), *([jnp.dtype(dtype)] if case.keeps_params else [])}
    assert floats <= kept


# ---------------------------------------------------------------- odd trees and numbers


@every_factory
def test_a_state_begins_without_values(case: Case) -> None:
    """From shapes alone, and with plain arrays that anything can save. Else an error says which
    values it begins with, and these do matter."""
    tx = case.ready()
    p = jax.tree.map(jnp.asarray, params())
    with jax.disable_jit():
        state = tx.init(p)
        try:
            made, told = tx.init(jax.eval_shape(lambda p: p, p)), ""
        except ValueError as error:
            made, told = tx.init(jax.tree.map(lambda x: 3 * x, p)), str(error)
    assert all(
        x.dtype == bool or jnp.issubdtype(x.dtype, jnp.number) for x in jax.tree.leaves(state)
    )
    if not told:
        assert_same(made, state)
    else:
        assert re.search(rf"{case.factory}: .*shapes without values.* '.*' in its state", told)
        pairs = zip(jax.tree.leaves(made), jax.tree.leaves(state), strict=True)
        assert not all(np.array_equal(*pair) for pair in pairs)


@every_factory
def test_odd_trees(case: Case) -> None:
    tx = case.ready()
    odd = {
        "none": None,
        "empty": jnp.ones((0, 3)),
        "scalar": jnp.ones(()),
        "deep": [(jnp.ones(3),)],
    }
    with jax.disable_jit():
        updates, state = tx.update(odd, tx.init(odd), odd)
        assert jax.tree.structure(updates) == jax.tree.structure(odd)
        assert all(np.isfinite(x).all() for x in jax.tree.leaves((updates, state)))
        assert tx.update({}, tx.init({}), {})[0] == {}


@every_mechanism
def test_python_numbers_are_parameters(case: Case) -> None:
    """And gradients, those without a fraction too: as scalars of float32."""
    tx = case.ready()
    p, g = {"a": 1, "b": 2.5}, {"a": 2, "b": -0.5}
    arrays = jax.tree.map(jnp.float32, (p, g))
    with jax.disable_jit():
        begun = tx.init(p)
        assert types(begun) == types(tx.init(arrays[0]))
        made = tx.update(g, begun, p)
        assert_same(made, tx.update(arrays[1], tx.init(arrays[0]), arrays[0]))
        assert gradx.apply_updates({"a": 1}, {"a": -0.5}) == {"a": 0.5}


@every_factory
def test_a_leaf_without_gradient_is_left_alone(case: Case) -> None:
    tx = case.ready()
    p = {"a": jnp.ones(5), "b": jnp.full(3, 0.5)}  # no state has another array of shape (5,)
    with jax.disable_jit():
        updates, state = tx.update({"a": None, "b": jnp.ones(3)}, tx.init(p), p)
        assert updates["a"] is None
        alone, alone_state = tx.update({"b": jnp.ones(3)}, tx.init({"b": p["b"]}), {"b": p["b"]})
        assert_same(updates["b"], alone["b"])
        fresh = [x for x in jax.tree.leaves(tx.init(p)) if x.shape == (5,)]
        assert_same([x for x in jax.tree.leaves(state) if x.shape == (5,)], fresh)
        # What `state` has for the leaf `a` is the only difference from a state without it.
        assert types(alone_state) == types(tx.init({"b": p["b"]}))


@every_factory
def test_extreme_gradients_are_survived(case: Case) -> None:
    """One of zeros (no 0/0), one that is far too large, and then another, perhaps tiny: no NaN,
    then or ever, and no infinite update up to 1e19, nor an infinite state before.

    Beyond the root of the largest number Adam's second moment is infinite: it stands still. In
    float16 nothing overflows, since the arithmetic is that of float32.
    """
    tx, g = case.ready(), first(gradients(steps=1))
    unit = jax.tree.map(lambda x: x / np.max(np.abs(x)), g)
    for p, sizes in [
        (cast(params(), jnp.float32), (0.0, 1.0, 1e19, 1e-30)),
        (cast(params(), jnp.float32), (1.0, 3e38, 1.0)),
        (cast(params(), jnp.float16), (1.6e4, 0.0)),
    ]:
        with jax.disable_jit():
            state, largest = tx.init(p), 0.0
            for size in sizes:
                now = jax.tree.map(lambda x, p, size=size: jnp.asarray(x * size, p.dtype), unit, p)
                updates, state = tx.update(now, state, p)
                largest = max(largest, size)
                made, kept = jax.tree.leaves(updates), jax.tree.leaves(state)
                assert not any(np.isnan(x).any() for x in (*made, *kept)), size
                finite = made * (largest <= 1e19) + kept * (largest < 1e19)
                assert all(np.isfinite(x).all() for x in finite), size


@every_factory
def test_half_precision_is_only_storage(case: Case) -> None:
    """The arithmetic is that of float32: rounding happens once, at the end."""
    tx = case.ready()
    for dtype in (jnp.bfloat16, jnp.float16):
        p, g = cast(params(), dtype), cast(first(gradients()), dtype)
        wide_p, wide_g = cast(p, jnp.float32), cast(g, jnp.float32)
        with jax.disable_jit():
            half, half_state = tx.update(g, tx.init(p), p)
            full, full_state = tx.update(wide_g, tx.init(wide_p), wide_p)
        assert_same(half, cast(full, dtype))
        if case.keeps_params:
            half_state = jax.tree.map(like_float, half_state, full_state)
        assert_same(half_state, full_state)


def like_float(x: Any, other: Any) -> Any:
    return x.astype(other.dtype)


# ---------------------------------------------------------------- a description of itself


@every_case
def test_repr_and_config_make_it_again(case: Case) -> None:
    tx = case.make()
    again = [
        eval(repr(tx), {**vars(cases), **vars(gradx)}),
        gradx.from_config(json.loads(json.dumps(gradx.to_config(tx)))),
        pickle.loads(pickle.dumps(tx)),
    ]
    for other in again:
        assert other == tx
        assert hash(other) == hash(tx)
        assert repr(other) == repr(tx)
    assert tx != gradx.chain(tx)


@every_case
def test_describe_accounts_for_the_whole_state(case: Case) -> None:
    tx = gradx.chain(gradx.identity(), case.make())
    table = gradx.describe(tx, params())
    assert table.rows[0].state.total() == gradx.state_bytes(tx.init(params()))
    assert case.factory in str(table)
    assert case.factory in table._repr_html_()


# ---------------------------------------------------------------- bad input


NEVER_A_NUMBER = [
    float("nan"),
    "0.1",
    [0.1],
    True,
    False,
    1j,
    jnp.ones(2),
    lambda count: jnp.ones(3),
]

BORDERS = (-float("inf"), -1.0, -0.1, 0.0, 0.5, 1.0, 1.5, 5.0, float("inf"))


@every_case
def test_bad_numbers_are_refused_by_name(case: Case) -> None:
    """And good ones are not: each number has the range of its name, or the one in the row."""
    for name in numbers_of(case):
        allowed = ranges.Interval(case.ranges.get(name) or RANGES[name])
        for value in BORDERS:
            if value in allowed:
                case.make(**{name: value})
        for value in [*NEVER_A_NUMBER, *(x for x in BORDERS if x not in allowed)]:
            with pytest.raises(ValueError, match=case.factory) as raised:
                case.make(**{name: value})
            assert re.match(rf"{case.factory}( > \w+)*: {name}\b", str(raised.value))
    for name, value in case.bad.items():
        with pytest.raises(ValueError, match=name):
            case.make(**{name: value})


@every_case
def test_bad_trees_are_refused_by_path(case: Case) -> None:
    tx = case.ready()
    good = params()
    with jax.disable_jit():
        state = tx.init(good)
        less = {"dense": good["dense"]}
        with pytest.raises(ValueError, match=r"the gradients and the .* Only in the .*: 'scale'\."):
            tx.update(less, state, good)
        told = r"the gradients and the parameters .* Only in the gradients: 'scale'\."
        with pytest.raises(ValueError, match=told):
            tx.update(good, state, less)
        with pytest.raises(ValueError, match="dense/kernel"):
            tx.init({"dense": {"kernel": jnp.arange(3)}})
        with pytest.raises(ValueError, match="dense/kernel"):
            tx.init({"dense": {"kernel": "a string"}})
        with pytest.raises(ValueError, match="dense/kernel"):
            tx.update({**good, "dense": {**good["dense"], "kernel": jnp.arange(3)}}, state, good)


@every_case
def test_forgotten_params_name_the_transform(case: Case) -> None:
    tx = case.ready()
    state = jax.eval_shape(tx.init, params())
    if case.needs_params:
        with pytest.raises(ValueError, match=rf"{case.factory}.*needs the parameters"):
            jax.eval_shape(tx.update, params(), state)
    else:
        updates, _ = jax.eval_shape(tx.update, params(), state)
        assert jax.tree.structure(updates) == jax.tree.structure(params())
