"""What a rule reads from `h` has one meaning a name."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import pytest

import gradx

W = {"w": jnp.ones((2, 3))}


def doubled(g: Any, slots: Any, p: Any, h: Any) -> Any:
    return 2 * g, slots


def misspelt(g: Any, slots: Any, p: Any, h: Any) -> Any:
    return h.b9 * g, slots


LIFTS = pytest.mark.parametrize("lift", [gradx.leafwise, gradx.matrixwise])

AT_CONSTRUCTION: dict[str, tuple[dict[str, Any], str]] = {
    "flag": ({"hypers": {"b": 0.1}, "flags": {"b": True}}, r"'b' is .* hypers and in flags"),
    "scalar": ({"hypers": {"b": 0.1}, "scalars": {"b": 0}}, r"'b' is .* hypers and in scalars"),
    "both": ({"flags": {"b": 1}, "scalars": {"b": 0}}, r"'b' is .* flags and in scalars"),
    "before": ({"hypers": {"before": 0.1}}, "'before' is .* the lift gives and in hypers"),
    "gate": ({"flags": {"gate": True}}, "'gate' is .* the lift gives and in flags"),
    "made": ({"hypers": {"made": 0.1}}, "'made' is .* the lift gives and in hypers"),
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


def by_leaf(g: Any, slots: Any, p: Any, h: Any) -> Any:
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
