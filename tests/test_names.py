"""What a rule reads from `h` has one meaning a name, and it gets and gives its state by name."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import pytest
from problems import assert_same

import gradx

W = {"w": jnp.ones((2, 3))}


def doubled(g: Any, s: Any, p: Any, h: Any) -> Any:
    return 2 * g, s


def misspelt(g: Any, s: Any, p: Any, h: Any) -> Any:
    return h.b9 * g, s


LIFTS = pytest.mark.parametrize("lift", [gradx.leafwise, gradx.matrixwise])

AT_CONSTRUCTION: dict[str, tuple[dict[str, Any], str]] = {
    "flag": ({"hypers": {"b": 0.1}, "flags": {"b": True}}, r"'b' is .* hypers and in flags"),
    "scalar": ({"hypers": {"b": 0.1}, "scalars": {"b": 0}}, r"'b' is .* hypers and in scalars"),
    "both": ({"flags": {"b": 1}, "scalars": {"b": 0}}, r"'b' is .* flags and in scalars"),
    "before": ({"hypers": {"before": 0.1}}, "'before' is .* the lift gives and in hypers"),
    "gate": ({"flags": {"gate": True}}, "'gate' is .* the lift gives and in flags"),
    "ranges": ({"hypers": {"b": 0.1}, "ranges": {"b3": "[0, 1)"}}, r"ranges has \['b3'\]"),
}


@LIFTS
@pytest.mark.parametrize(("given", "match"), AT_CONSTRUCTION.values(), ids=AT_CONSTRUCTION)
def test_a_name_with_two_meanings_is_refused(lift: Any, given: Any, match: str) -> None:
    @gradx.recorded
    def mine() -> gradx.Transform:
        made: gradx.Transform = lift(doubled, **given)
        return made

    with pytest.raises(ValueError, match=rf"^mine: .*{match}"):
        mine()


def again(h: Any, t: Any) -> Any:
    return {"b": 2.0}


def decided(h: Any, sums: Any) -> Any:
    return {"b": 2.0}, {}


def by_leaf(g: Any, s: Any, p: Any, h: Any) -> Any:
    return {"b": jnp.sum(g)}


@pytest.mark.parametrize(
    "given",
    [{"per_step": again}, {"per_tree": decided}, {"per_leaf": by_leaf}],
    ids=lambda given: next(iter(given)),
)
@pytest.mark.parametrize("place", ["hypers", "flags"])
def test_a_name_made_in_the_run_hides_none(given: dict[str, Any], place: str) -> None:
    tx = gradx.leafwise(doubled, **given, **{place: {"b": 1.0}})
    (made_by,) = given
    with pytest.raises(ValueError, match=f"h.b would be two things.* in {made_by}"):
        tx.update(W, tx.init(W), W)


def test_what_two_functions_make_has_two_names() -> None:
    tx = gradx.leafwise(doubled, per_step=again, per_tree=decided)
    with pytest.raises(ValueError, match=r"h.b would be two things.* in per_tree"):
        tx.update(W, tx.init(W), W)


@LIFTS
def test_a_missing_name_says_what_there_is(lift: Any) -> None:
    tx = lift(misspelt, hypers={"b1": 0.9}, flags={"nesterov": True})
    with pytest.raises(
        AttributeError, match=r"misspelt of .* h\.b9, .* h has \['b1', 'nesterov'\]"
    ):
        tx.update(W, tx.init(W), W)


# ---------------------------------------------------------------- the state


class Moments(NamedTuple):
    count: Any
    mu: Any
    nu: Any


ZEROS = {"mu": jnp.zeros_like, "nu": jnp.zeros_like}


def moved(g: Any, s: Any, p: Any, h: Any) -> Any:
    """What is not replaced stays; the count is the lift's."""
    assert (s.count, s.mu.shape) == ((), g.shape)
    return s.mu + 2 * s.nu, s._replace(mu=s.mu + g)


@LIFTS
def test_a_rule_reads_and_writes_its_state_by_name(lift: Any) -> None:
    """In whatever order `init` gives it."""
    tx = lift(moved, state=Moments, init={"nu": jnp.ones_like, "mu": jnp.zeros_like})
    state = tx.init(W)
    for i in range(3):
        updates, state = tx.update(W, state)
        assert_same(updates["w"], jnp.full((2, 3), 2.0 + i))
    assert_same(state, Moments(jnp.int32(3), {"w": jnp.full((2, 3), 3.0)}, W))


def takes_slots(g: Any, slots: Any, p: Any, h: Any) -> Any:
    return g, slots


def gathers_slots(g: Any, slots: Any, p: Any, h: Any) -> Any:
    return slots


def renews_slots(slots: Any, h: Any) -> Any:
    return slots


def kept(s: Any, h: Any) -> Any:
    return s


OLD_FORM: dict[str, Any] = {
    "leafwise": lambda: gradx.leafwise(takes_slots),
    "matrixwise": lambda: gradx.matrixwise(takes_slots),
    "renew": lambda: gradx.matrixwise(moved, state=Moments, renew=renews_slots),
    "start": lambda: gradx.matrixwise(moved, state=Moments, renew=kept, start=renews_slots),
    "gather": lambda: gradx.matrixwise(moved, state=Moments, renew=kept, gather=gathers_slots),
}


@pytest.mark.parametrize("make", OLD_FORM.values(), ids=OLD_FORM)
def test_a_rule_of_the_old_form_is_refused_with_the_new_one(make: Any) -> None:
    """When it is made, and not in a step."""

    @gradx.recorded
    def mine() -> gradx.Transform:
        made: gradx.Transform = make()
        return made

    told = r"^mine: the function \w+_slots of a rule takes slots; .*g, s, p, h.*u, s\._replace\("
    with pytest.raises(ValueError, match=told):
        mine()


def gives_a_tuple(g: Any, s: Any, p: Any, h: Any) -> Any:
    return g, (s.mu, s.nu)


def gives_an_array(g: Any, s: Any, p: Any, h: Any) -> Any:
    return g, s.mu


def gives_a_dict(g: Any, s: Any, p: Any, h: Any) -> Any:
    return g, {"mu": s.mu, "nu": s.nu}


def gives_no_nu(g: Any, s: Any, p: Any, h: Any) -> Any:
    return g, s._replace(nu=None)


def gives_a_count(g: Any, s: Any, p: Any, h: Any) -> Any:
    return g, s._replace(count=g)


@LIFTS
@pytest.mark.parametrize(
    ("rule", "given"),
    [
        (gives_a_tuple, r"\(<.*>, <.*>\)"),
        (gives_an_array, "<"),
        (gives_a_dict, "{'mu'"),
        (gives_no_nu, r"Moments\(.*nu=None\)"),
        (gives_a_count, r"Moments\(count=<"),
    ],
)
def test_a_state_of_another_form_is_refused_with_the_names(
    lift: Any, rule: Any, given: str
) -> None:
    tx = lift(rule, state=Moments, init=ZEROS)
    told = (
        rf"the function {rule.__name__} .* a Moments like .* \['mu', 'nu'\], "
        rf"got {given}.*_replace\("
    )
    with pytest.raises(ValueError, match=told) as raised:
        tx.update(W, tx.init(W))
    assert "'w'" in raised.value.__notes__[-1]


@LIFTS
def test_a_field_that_is_not_there_is_named(lift: Any) -> None:
    read = lift(lambda g, s, p, h: (s.mv, s), state=Moments, init=ZEROS)
    written = lift(lambda g, s, p, h: (g, s._replace(mv=g)), state=Moments, init=ZEROS)
    for tx, kind in ((read, AttributeError), (written, ValueError)):
        with pytest.raises(kind, match="'mv'"):
            tx.update(W, tx.init(W))


def by_position(p: Any) -> Any:
    return p, p


def of_mu(p: Any) -> Any:
    return {"mu": p}


@LIFTS
@pytest.mark.parametrize(
    ("init", "given"),
    [
        (None, r"\[\]"),
        (of_mu, r"\['mu'\]"),
        (by_position, r"\(<.*>, <.*>\)"),
        ({"mu": jnp.zeros_like}, r"\['mu'\]"),
        ({"mu": jnp.zeros_like, "nv": jnp.zeros_like}, r"\['mu', 'nv'\]"),
        ({**ZEROS, "count": jnp.zeros_like}, r"\['count', 'mu', 'nu'\]"),
    ],
    ids=["none", "one", "tuple", "one of two", "misspelt", "the count"],
)
def test_init_by_other_names_is_refused_with_both(lift: Any, init: Any, given: str) -> None:
    tx = lift(moved, state=Moments, init=init)
    told = rf"by the names of the fields \['mu', 'nu'\] of Moments, .* gives {given}"
    with pytest.raises(ValueError, match=told):
        tx.init(W)


def test_a_matrix_begins_with_what_is_not_like_the_leaf() -> None:
    """`init` may not give what the lift begins at zero."""
    given: dict[str, Any] = {"state": Moments, "like_leaf": {"mu": None}}
    with pytest.raises(ValueError, match=r"\['nu'\] of Moments, .* gives \['mu', 'nu'\]"):
        gradx.matrixwise(moved, init=ZEROS, **given).init(W)
    tx = gradx.matrixwise(moved, init={"nu": jnp.ones_like}, **given)
    assert_same(tx.init(W), Moments(jnp.int32(0), {"w": jnp.zeros((2, 3))}, W))


# ---------------------------------------------------------------- what is known of a leaf


def known(leaves: Any, extra: Any) -> list[Any]:
    """The first axis of each leaf that has one; others are left alone."""
    found = zip(leaves.paths, leaves.values, strict=True)
    return [
        {"rows": x.shape[0], "path": path} if x is not None and x.ndim else None
        for path, x in found
    ]


def by_rows(g: Any, s: Any, p: Any, h: Any) -> Any:
    return g * h.rows, s._replace(mu=s.mu + len(h.path))


class OneMoment(NamedTuple):
    mu: Any


def test_a_rule_is_told_what_is_known_of_each_leaf() -> None:
    def first(p: Any, facts: Any) -> dict[str, Any]:
        return {"mu": jnp.full_like(p, facts["rows"])}

    tx = gradx.leafwise(by_rows, facts=known, init=first, state=OneMoment)
    params = {"a": jnp.ones(2), "long": jnp.ones((3, 1)), "none": jnp.ones(())}
    state = tx.init({**params, "none": None})
    np.testing.assert_array_equal(state.mu["long"], [[3.0]] * 3)
    updates, state = tx.update({**params, "none": None}, state)
    np.testing.assert_array_equal(updates["a"], [2.0, 2.0])
    np.testing.assert_array_equal(updates["long"], [[3.0]] * 3)
    np.testing.assert_array_equal(state.mu["long"], [[7.0]] * 3)
    alone = gradx.leafwise(lambda g, s, p, h: (g * h.rows, s), facts=known)
    made = alone.update(params, alone.init(params))[0]
    assert made["none"] is params["none"]


def test_a_fact_hides_no_number() -> None:
    tx = gradx.leafwise(by_rows, facts=known, hypers={"rows": 1.0}, ranges={"rows": "[0, inf)"})
    state = tx.init({"w": jnp.ones(2)})
    with pytest.raises(ValueError, match=r"h\.rows would be two things"):
        tx.update({"w": jnp.ones(2)}, state)


def test_facts_that_do_not_fit_are_refused() -> None:
    params = {"a": jnp.ones(2), "b": jnp.ones(2)}
    short = gradx.leafwise(lambda g, s, p, h: (g, s), facts=lambda leaves, extra: [{}])
    with pytest.raises(ValueError, match="each of the 2 leaves, or None, and gives 1 answers"):
        short.init(params)
    with pytest.raises(ValueError, match="facts or what measure_init measures; give one"):
        gradx.leafwise(by_rows, facts=known, measure_init=lambda p: {"n": 1.0})
