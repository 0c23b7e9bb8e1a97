"""The laws of `chain`, over random chains of gradx's and Optax's pieces."""

from __future__ import annotations

import functools
from collections import OrderedDict
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import assert_same

import gradx

KERNELS = gradx.by_path({"kernel": True}, default=False)

# Rules for one array, rules that see the whole tree, masks, schedules, live values, functions of
# trees and Optax's own: whatever `chain` treats in a different way.
POOL = {
    "scale": gradx.scale(0.3),
    "scheduled": gradx.scale(lambda count: 1.0 / (1 + count)),
    "trace": gradx.trace(0.9),
    "clip": gradx.clip(0.4),
    "norm": gradx.clip_by_global_norm(0.7),
    "scale_by_adam": gradx.scale_by_adam(),
    "adamw": gradx.adamw(0.1, weight_decay=0.1),
    "live": gradx.sgd(gradx.tunable(0.1), 0.9),
    "masked": gradx.masked(gradx.trace(0.5, nesterov=True), KERNELS),
    "masked-norm": gradx.masked(gradx.clip_by_global_norm(0.3), KERNELS),
    "function": gradx.stateless(lambda updates, params: jax.tree.map(lambda u: 0.9 * u, updates)),
    "identity": gradx.identity(),
    "optax-trace": optax.trace(0.8),
    "optax-norm": optax.clip_by_global_norm(0.5),
    "optax-adam": optax.scale_by_adam(),
}

# The pieces that both libraries have, by one call each.
SHARED = {
    "scale": lambda library: library.scale(0.3),
    "scheduled": lambda library: library.scale_by_schedule(lambda count: 1.0 / (1 + count)),
    "trace": lambda library: library.trace(0.9),
    "clip": lambda library: library.clip(0.4),
    "norm": lambda library: library.clip_by_global_norm(0.7),
    "adam": lambda library: library.adam(0.1),
    "adamw": lambda library: library.adamw(0.1, weight_decay=0.1, mask=KERNELS),
    "masked": lambda library: library.masked(library.trace(0.5), KERNELS),
    "identity": lambda library: library.identity(),
}

names = st.lists(st.sampled_from(sorted(POOL)), min_size=1, max_size=4)
short = st.lists(st.sampled_from(sorted(POOL)), min_size=1, max_size=2)


def parts_of(drawn: list[str]) -> list[Any]:
    return [POOL[name] for name in drawn]


def tree(seed: int, dtype: Any) -> Any:
    rng = np.random.default_rng(seed)
    shapes = {"kernel": (3, 2), "bias": (2,)}
    return {k: jnp.asarray(2.0**seed * rng.normal(size=s), dtype) for k, s in shapes.items()}


@functools.cache  # chains of the same parts are equal, and hash alike
def run(tx: Any, dtype: Any = jnp.float32, jit: bool = True) -> Any:
    """The updates of two steps, and the state after them."""
    params = tree(0, dtype)
    state = tx.init(params)
    update = jax.jit(tx.update) if jit else tx.update
    first, state = update(tree(1, dtype), state, params)
    second, state = update(tree(2, dtype), state, params)
    return first, second, state


def by_hand(*parts: Any) -> optax.GradientTransformationExtraArgs:
    """What `chain` means: each part's update on what the one before made."""
    full = [optax.with_extra_args_support(tx) for tx in parts]

    def init(params: Any) -> Any:
        return tuple(tx.init(params) for tx in full)

    def update(updates: Any, states: Any, params: Any = None, **extra: Any) -> Any:
        new = []
        for tx, state in zip(full, states, strict=True):
            updates, state = tx.update(updates, state, params, **extra)
            new.append(state)
        return updates, tuple(new)

    return optax.GradientTransformationExtraArgs(init, update)


def assert_near(actual: Any, expected: Any, rtol: float) -> None:
    """The same structure and dtypes, and the same numbers relative to the largest of the tree."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    pairs = list(zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True))
    largest = max((np.max(np.abs(e.astype(float))) for _, e in pairs), default=0.0)
    for a, e in pairs:
        assert a.dtype == e.dtype
        difference = np.abs(np.asarray(a, float) - np.asarray(e, float))
        assert np.max(difference) <= rtol * largest


# ---------------------------------------------------------------- the laws


@given(names)
@settings(max_examples=6)
def test_identity_is_neutral(drawn: list[str]) -> None:
    tx = gradx.chain(*parts_of(drawn))
    *updates, state = run(tx)
    first, second, (nothing, after) = run(gradx.chain(gradx.identity(), tx))
    assert_same([first, second, after], [*updates, state])
    assert nothing == optax.EmptyState()
    first, second, (before, nothing) = run(gradx.chain(tx, gradx.identity()))
    assert_same([first, second, before], [*updates, state])
    first, second, (alone,) = run(gradx.chain(tx))
    assert_same([first, second, alone], [*updates, state])


@given(short, short, short)
@settings(max_examples=6)
def test_chains_are_associative(a: list[str], b: list[str], c: list[str]) -> None:
    """Jitted, to the last bit, though nesting changes what shares a pass; the state nests alike."""
    x, y, z = (gradx.chain(*parts_of(drawn)) for drawn in (a, b, c))
    *flat, (s1, s2, s3) = run(gradx.chain(x, y, z))
    *left, state = run(gradx.chain(gradx.chain(x, y), z))
    assert_same([*left, state], [*flat, ((s1, s2), s3)])
    *right, state = run(gradx.chain(x, gradx.chain(y, z)))
    assert_same([*right, state], [*flat, (s1, (s2, s3))])


@given(short, short, short)
@settings(max_examples=4)
def test_unjitted_chains_are_associative_up_to_rounding(
    a: list[str], b: list[str], c: list[str]
) -> None:
    """Each pass is a program of its own then, and in one program XLA fuses multiplies and adds."""
    x, y, z = (gradx.chain(*parts_of(drawn)) for drawn in (a, b, c))
    *flat, (s1, s2, s3) = run(gradx.chain(x, y, z), jit=False)
    nested = run(gradx.chain(gradx.chain(x, y), z), jit=False)
    assert_near(nested, (*flat, ((s1, s2), s3)), rtol=1e-6)


@given(names)
@settings(max_examples=8)
def test_one_pass_does_what_the_parts_do_one_after_the_other(drawn: list[str]) -> None:
    """Jitted, to the last bit: sharing a pass decides where XLA is called, not what it does."""
    parts = parts_of(drawn)
    assert_same(run(gradx.chain(*parts)), run(by_hand(*parts)))


@given(names)
@settings(max_examples=4)
def test_unjitted_too_up_to_fused_multiply_adds(drawn: list[str]) -> None:
    parts = parts_of(drawn)
    assert_near(run(gradx.chain(*parts), jit=False), run(by_hand(*parts), jit=False), rtol=1e-6)


@given(names)
@settings(max_examples=5)
def test_in_half_precision_up_to_a_rounding_for_each_part(drawn: list[str]) -> None:
    """A shared pass rounds once at its end; its parts alone round each time, by 2**-9."""
    parts = parts_of(drawn)
    *fused, _ = run(gradx.chain(*parts), jnp.bfloat16)
    *apart, _ = run(by_hand(*parts), jnp.bfloat16)
    assert {u.dtype for u in jax.tree.leaves(fused)} == {jnp.dtype(jnp.bfloat16)}
    assert_near(fused, apart, rtol=2**-7 * len(parts))
    *nested, _ = run(gradx.chain(parts[0], gradx.chain(*parts[1:])), jnp.bfloat16)
    assert_near(nested, apart, rtol=2**-7 * len(parts))


def test_a_shared_pass_rounds_half_precision_once() -> None:
    """The deviation from Optax that the law above leaves room for, and that `chain` documents."""
    g = jnp.asarray(1.0, jnp.bfloat16)
    parts = [gradx.scale(1 + 2**-8), gradx.scale(1 + 2**-8)]  # each alone rounds to 1
    assert gradx.chain(*parts).update(g, (optax.EmptyState(),) * 2)[0] == 1 + 2**-7
    assert by_hand(*parts).update(g, (optax.EmptyState(),) * 2)[0] == 1


@given(st.lists(st.sampled_from(sorted(SHARED)), min_size=1, max_size=4))
@settings(max_examples=6)
def test_chains_of_what_optax_has_too_agree_with_optax(drawn: list[str]) -> None:
    ours = gradx.chain(*(SHARED[name](gradx) for name in drawn))
    theirs = optax.chain(*(SHARED[name](optax) for name in drawn))
    for dtype in (jnp.float32, jnp.float16):
        params = tree(0, dtype)
        state, expected = ours.init(params), theirs.init(params)
        assert type(state) is type(expected) is tuple
        assert paths(state) == paths(expected)
    *updates, _ = run(ours)
    *expected, _ = run(theirs)
    assert_near(updates, expected, rtol=2e-5)  # Optax's bias correction is the less exact one


def paths(state: Any) -> list[Any]:
    found, _ = jax.tree_util.tree_flatten_with_path(state)
    return [(jax.tree_util.keystr(path), x.shape) for path, x in found]


@given(names)
@settings(max_examples=10)
def test_the_state_is_the_tuple_of_the_parts_states(drawn: list[str]) -> None:
    parts = parts_of(drawn)
    params = tree(0, jnp.float32)
    assert_same(gradx.chain(*parts).init(params), tuple(tx.init(params) for tx in parts))


def test_the_empty_chain_is_the_identity() -> None:
    g = tree(1, jnp.float32)
    updates, state = gradx.chain().update(g, gradx.chain().init(g), g)
    assert_same(updates, g)
    assert state == gradx.chain().init(g) == ()


# ---------------------------------------------------------------- by name


def test_named_chain_keeps_a_dictionary_in_order() -> None:
    parts = [("z", gradx.trace(0.9)), ("a", gradx.scale_by_adam()), ("m", optax.scale(-0.1))]
    tx = gradx.named_chain(*parts)
    params = tree(0, jnp.float32)
    assert_same(tx.init(params), optax.named_chain(*parts).init(params))
    assert isinstance(tx.init(params), OrderedDict)
    *updates, state = run(tx)
    *expected, states = run(gradx.chain(*(part for _, part in parts)))
    assert_same(updates, expected)
    assert list(state) == ["z", "a", "m"]
    assert_same(tuple(state.values()), states)
    # A dictionary that came back from a checkpoint in another order is the same state.
    shuffled = {name: state[name] for name in sorted(state)}
    again, _ = tx.update(params, shuffled, params)
    assert_same(again, tx.update(params, state, params)[0])


@pytest.mark.parametrize(
    ("args", "match"),
    [
        ([("a", gradx.scale(1.0)), ("a", gradx.scale(2.0))], r"names must be unique.*\['a'\]"),
        ([gradx.scale(1.0)], r"pairs \(name, transformation\), got scale\(1.0\)"),
        ([("a",)], r"pairs \(name, transformation\)"),
        ([(1, gradx.scale(1.0))], r"pairs \(name, transformation\)"),
        ([("a", gradx.scale(1.0)), ("b", 0.1)], "named_chain: element b .* got 0.1"),
    ],
)
def test_named_chain_refuses(args: list[Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        gradx.named_chain(*args)


# ---------------------------------------------------------------- what passes through


def recorder(seen: list[Any]) -> optax.GradientTransformationExtraArgs:
    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        seen.append(extra)
        return updates, state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def test_extra_arguments_reach_every_part() -> None:
    """Through Optax's chain too; its plain transformations, which take none, do not mind."""
    seen: list[Any] = []
    looks = recorder(seen)
    scaling = gradx.scale(gradx.from_call("factor"))
    chains: list[Any] = [
        gradx.chain(looks, gradx.chain(optax.scale(1.0), looks), scaling),
        gradx.named_chain(("a", looks), ("b", gradx.masked(looks, KERNELS)), ("c", scaling)),
        optax.chain(gradx.chain(looks, scaling), looks),
    ]
    g = tree(1, jnp.float32)
    for tx in chains:
        updates, _ = tx.update(g, tx.init(g), g, factor=3.0, loss=1.0)
        assert_same(updates, jax.tree.map(lambda x: 3.0 * x, g))
    assert seen == [{"factor": 3.0, "loss": 1.0}] * 6


def test_missing_parameters_are_passed_on_as_none() -> None:
    seen: list[Any] = []
    looks = gradx.stateless(lambda updates, params: seen.append(params) or updates)
    tx = gradx.chain(gradx.scale(1.0), looks, optax.scale(1.0))
    tx.update(jnp.ones(2), tx.init(jnp.ones(2)))
    assert seen == [None]


# ---------------------------------------------------------------- errors


@pytest.mark.parametrize("element", [None, 0.1, "adam", gradx.adam, [gradx.adam(0.1)], optax.adam])
def test_an_element_that_is_no_transformation_is_named_by_its_position(element: Any) -> None:
    with pytest.raises(ValueError, match="chain: element 1 must be a gradient transformation"):
        gradx.chain(gradx.clip(1.0), element)


@pytest.mark.parametrize("other", [optax.scale(1.0), gradx.scale(1.0)], ids=["passes", "one pass"])
def test_the_state_of_another_chain_is_refused(other: Any) -> None:
    """Whether the chain is one pass or several."""
    g = tree(1, jnp.float32)
    tx = gradx.chain(gradx.scale_by_adam(), other)
    for state, match in [
        (gradx.chain(gradx.scale_by_adam()).init(g), "length 1 instead of a tuple of 2 states"),
        (
            gradx.named_chain(("a", gradx.clip(1.0))).init(g),
            "OrderedDict instead of a tuple of 2 states",
        ),
        (None, "NoneType instead of a tuple of 2 states"),
        (gradx.chain(gradx.scale_by_rms(), other).init(g), "ScaleByRmsState .* ScaleByAdamState"),
    ]:
        with pytest.raises(ValueError, match=match):
            tx.update(g, state, g)
    named = gradx.named_chain(("a", gradx.scale_by_adam()), ("b", other))
    with pytest.raises(ValueError, match=r"with a tuple instead of .* keys \['a', 'b'\]"):
        named.update(g, tx.init(g), g)
    with pytest.raises(ValueError, match=r"with keys \['a'\] instead of .* keys \['a', 'b'\]"):
        named.update(g, {"a": None}, g)


def test_the_state_of_another_tree_is_refused_by_path() -> None:
    tx = gradx.chain(gradx.scale_by_adam(), gradx.scale(1.0))
    g = tree(1, jnp.float32)
    with pytest.raises(ValueError, match=r"the state's mu.* Only in the gradients: 'bias'"):
        tx.update(g, tx.init({"kernel": g["kernel"]}), g)


# ---------------------------------------------------------------- behind what works on whole trees


def each(f: Any) -> Any:
    """A transformation of whole trees, which is a stage that begins a pass."""
    return gradx.stateless(lambda u, p: jax.tree.map(f, u))


BF16 = {"w": jnp.ones((2, 2), jnp.bfloat16)}


def test_a_rule_is_told_of_the_leaves_that_it_is_given() -> None:
    """Not of those before a part that sums over examples."""
    mean = gradx.experimental.aggregating.average_per_element_updates()
    params = {"w": jnp.ones((1, 4))}
    tx = gradx.chain(mean, gradx.scale_by_shape(convention="spectral"))
    updates, _ = tx.update({"w": jnp.ones((3, 1, 4))}, tx.init(params), params)
    np.testing.assert_allclose(updates["w"], np.full((1, 4), 2.0))
    decay = gradx.add_decayed_weights(0.1, mask=gradx.weights_only)
    tx = gradx.chain(each(lambda x: x.sum(0)), decay)
    gain = {"gain": jnp.ones(3)}
    assert_same(
        tx.update({"gain": jnp.zeros((2, 3))}, tx.init(gain), gain)[0], {"gain": jnp.zeros(3)}
    )


def test_gradients_may_be_filled_in_and_taken_away() -> None:
    params = {"a": jnp.ones(2), "b": jnp.ones(2)}
    fill = gradx.stateless(
        lambda u, p: jax.tree.map(
            lambda g, x: jnp.zeros_like(x) if g is None else g, u, p, is_leaf=lambda x: x is None
        )
    )
    tx = gradx.chain(fill, gradx.add_decayed_weights(0.5))
    updates, _ = tx.update({"a": jnp.ones(2), "b": None}, tx.init(params), params)
    np.testing.assert_array_equal(updates["b"], [0.5, 0.5])
    tx = gradx.chain(gradx.stateless(lambda u, p: {"a": u["a"], "b": None}), gradx.sgd(0.5))
    updates, _ = tx.update(params, tx.init(params), params)
    assert updates["b"] is None
    np.testing.assert_array_equal(updates["a"], [-0.5, -0.5])


def test_an_integer_stays_one_through_several_passes() -> None:
    mask = {"n": False, "w": True}
    scaled = gradx.masked(gradx.scale(1.0), mask)
    tx = gradx.chain(scaled, gradx.masked(gradx.clip_by_global_norm(1.0), mask))
    g = {"n": jnp.asarray(2**24 + 1), "w": jnp.ones(2)}
    made = tx.update(g, tx.init(g), g)[0]["n"]
    assert (made.dtype, int(made)) == (jnp.int32, 2**24 + 1)
    tx = gradx.chain(each(lambda x: 1), gradx.scale(-0.5))
    made = tx.update(jnp.float32(2), tx.init(jnp.float32(2)))[0]
    assert (made.dtype, float(made)) == (jnp.float32, -0.5)


@pytest.mark.parametrize("given", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("rule", [gradx.scale_by_muon, lambda: gradx.scale(2.0)])
def test_a_rule_gives_back_the_dtype_that_it_was_given(rule: Any, given: Any) -> None:
    tx = gradx.chain(each(lambda x: x.astype(given)), rule())
    for g in (BF16, {"w": BF16["w"].astype(jnp.float32)}):
        assert tx.update(g, tx.init(g))[0]["w"].dtype == given


def test_groups_wait_for_nobody() -> None:
    """A group that needs no norm is not rounded between, in whichever order they stand."""
    rates, norms = gradx.scale(1 / 3), gradx.clip_by_global_norm(9.0)
    g = {"w": jnp.bfloat16(1), "v": jnp.bfloat16(1)}
    for groups in ({"a": rates, "b": norms}, {"b": norms, "a": rates}):
        split = gradx.partition(groups, gradx.by_path({"w": "a"}, default="b"))
        tx = gradx.chain(split, gradx.scale(7.0))
        assert float(tx.update(g, tx.init(g))[0]["w"]) == float(jnp.bfloat16(7 / 3))


def test_under_a_gate_a_chain_is_rounded_at_its_end() -> None:
    third = each(lambda x: x.astype(jnp.float32) / 3)
    tx = gradx.apply_if_finite(gradx.chain(third, gradx.scale(7.0)), 3)
    made = tx.update(jnp.bfloat16(1), tx.init(jnp.bfloat16(1)))[0]
    assert (made.dtype, float(made)) == (jnp.bfloat16, float(jnp.bfloat16(7 / 3)))


def test_mechanize_gives_back_the_gradients_dtype() -> None:
    tx = gradx.mechanize(each(lambda x: -x.astype(jnp.float32)))
    assert tx.update(BF16, tx.init(BF16), BF16)[0]["w"].dtype == jnp.bfloat16


def test_schedule_free_around_optax_says_what_is_missing() -> None:
    g = {"w": jnp.ones(2)}
    tx = gradx.schedule_free(optax.adamw(0.1), 0.1)
    with pytest.raises(ValueError, match=r"schedule_free.*needs the parameters"):
        tx.update(g, tx.init(g))


def test_a_part_that_gives_another_tree_is_named() -> None:
    tx = gradx.chain(gradx.scale(2.0), gradx.stateless(lambda u, p: list(u.values())))
    with pytest.raises(ValueError, match=r"chain: .*the updates of stateless"):
        tx.update({"w": jnp.ones(2)}, tx.init(None))
